# SPDX-License-Identifier: Apache-2.0
"""Which buttons of the panel work, and why the others do not."""

from slicer.i18n import tr as _

from ..scene.session import RefineSession
from .panel import RefinePanel


def show_buttons(
    panel: RefinePanel, session: RefineSession | None, boxes: list[str], sam: list[str]
) -> None:
    """Bring all buttons up to date.

    Args:
        session: the boxes that are being worked on.
        boxes: why no boxes can be made, a sentence each.
        sam: why SAM cannot be asked.
    """
    ui, show = panel.ui, panel.show_button
    ui.boxesButton.visible = session is None
    ui.organsCollapsibleButton.visible = session is not None
    show(ui.boxesButton, _("Put a box around each organ, slice by slice."), boxes)
    if session is None:
        none = [_("Make boxes first.")]
        for button in (ui.refineOrganButton, ui.refineAllButton, ui.undoButton, ui.redoButton):
            show(button, "", none)
        for button in (ui.beforeButton, ui.editButton):
            show(button, "", none)
        return
    _show_organ_buttons(panel, session)
    _show_slice_buttons(panel, session)

    organs, going_on = session.organs, _unless(session.run is None, _("A refinement is running."))
    one = _unless(session.active, _("Click an organ in the table."))
    some = _unless(organs, _("There is no organ yet."))
    used = some or _unless(
        any(organ.enabled for organ in organs), _("Tick an organ in the column Use.")
    )
    show(ui.refineOrganButton, _("Have SAM redraw the chosen organ."), going_on or sam + one)
    show(
        ui.refineAllButton, _("Have SAM redraw all organs that are ticked."), going_on or sam + used
    )
    undo = _unless(session.can_undo, _("There is nothing to undo."))
    redo = _unless(session.can_redo, _("There is nothing to redo."))
    show(ui.undoButton, _("Take back the last edit or refinement."), going_on or undo)
    show(ui.redoButton, _("Do again what was undone."), going_on or redo)
    coarse = any(organ.coarse for organ in organs)
    before = _unless(coarse, _("There is no outline from before."))
    show(ui.beforeButton, _("Show the outlines from before, or those of now."), before)
    show(ui.editButton, _("Go on by hand, in Slicer's Segment Editor."), [])


def _show_organ_buttons(panel: RefinePanel, session: RefineSession) -> None:
    ui, show = panel.ui, panel.show_button
    one = _unless(session.active, _("Click an organ in the table."))
    some = _unless(session.organs, _("There is no organ yet."))
    named = _unless(panel.new_organ(), _("Type the organ's name, or choose one."))
    added = _(
        "Add the organ: in the ROI that you drew with Slicer's markups toolbar, or with a box in "
        "the middle of the slice."
    )
    show(ui.addOrganButton, added, named)
    show(ui.removeOrganButton, _("Take the organ's boxes away. Its segment stays."), one)
    show(ui.resetOrganButton, _("Return to the automatic boxes of the organ."), one)
    show(ui.resetAllButton, _("Return to the automatic boxes of all organs."), some)


def _show_slice_buttons(panel: RefinePanel, session: RefineSession) -> None:
    ui, show, n = panel.ui, panel.show_button, session.slice
    if not session.active:
        none = [_("Click an organ in the table.")]
        for button in (ui.previousUncertainButton, ui.nextUncertainButton, ui.addBoxButton,
                       ui.removeBoxButton, ui.resetBoxButton, ui.positivePointButton,
                       ui.negativePointButton, ui.clearPointsButton):  # fmt: skip
            show(button, "", none)
        return
    organ, unsure = session.organ(session.active), session.uncertain_slices()
    frames = organ.frames
    here = n in frames.effective()
    before = _unless(any(m < n for m in unsure), _("No slice to check before this one."))
    after = _unless(any(m > n for m in unsure), _("No slice to check after this one."))
    show(ui.previousUncertainButton, _("The last slice before this one to be looked at."), before)
    show(ui.nextUncertainButton, _("The next slice after this one to be looked at."), after)
    no_box = _unless(here, _("The organ has no box in this slice."))
    boxed = _unless(not here, _("The organ has a box in this slice."))
    edited = n in frames.edited or n in frames.off
    automatic = _unless(edited, _("The box of this slice was not changed by hand."))
    show(ui.addBoxButton, _("Give the organ a box in this slice."), boxed)
    show(ui.removeBoxButton, _("No box in this slice: the organ is not in it."), no_box)
    show(ui.resetBoxButton, _("Return to the automatic box of this slice."), automatic)
    positive = _("Then click into the organ: SAM is told that this is part of it.")
    negative = _("Then click beside the organ: SAM is told that this is not part of it.")
    show(ui.positivePointButton, positive, no_box)
    show(ui.negativePointButton, negative, no_box)
    points = _unless(organ.hints, _("The organ has no points."))
    show(ui.clearPointsButton, _("Remove the organ's points."), points)


def _unless(fulfilled: object, sentence: str) -> list[str]:
    """What is missing: nothing, or a sentence."""
    return [] if fulfilled else [sentence]
