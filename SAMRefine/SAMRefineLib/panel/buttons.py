# SPDX-License-Identifier: Apache-2.0
"""Buttons of the panel: their actions, and the reasons why some are disabled."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

import qt
from slicer.i18n import tr as _

from ..scene.session import RefineSession
from .panel import RefinePanel
from .texts import refine_texts, step_text

if TYPE_CHECKING:
    from .widget import RefineWidget


def connect_buttons(widget: "RefineWidget") -> None:
    """Connect the buttons to the widget and its session; most are disabled without a session."""
    ui = widget.ui

    def session() -> RefineSession:
        return widget.session

    for button, clicked in {
        ui.boxesButton: widget.onMakeBoxes,
        ui.addOrganButton: widget.onAddOrgan,
        ui.removeOrganButton: lambda: session().remove_organ(session().active),
        ui.resetOrganButton: lambda: session().reset(session().active),
        ui.resetAllButton: lambda: session().reset(),
        ui.previousUncertainButton: lambda: session().next_uncertain(-1),
        ui.nextUncertainButton: lambda: session().next_uncertain(1),
        ui.addBoxButton: widget.onAddBox,
        ui.removeBoxButton: lambda: session().switch_off(session().active),
        ui.resetBoxButton: lambda: session().reset(session().active, session().slice),
        ui.positivePointButton: lambda: widget.placing.toggle(True),
        ui.negativePointButton: lambda: widget.placing.toggle(False),
        ui.clearPointsButton: lambda: session().clear_points(session().active),
        ui.refineOrganButton: lambda: widget.onRefine([session().active]),
        ui.refineAllButton: lambda: widget.onRefine(None),
        ui.undoButton: lambda: widget.onStep(session().undo),
        ui.redoButton: lambda: widget.onStep(session().redo),
        ui.beforeButton: lambda: session().show_before(not session().before_shown),
        ui.editButton: widget.onEdit,
        ui.trainingSetButton: widget.onAddToTrainingSet,
    }.items():
        button.connect("clicked()", clicked)


def keys_of(ui: SimpleNamespace) -> list[tuple[str, str, "qt.QPushButton"]]:
    """List keys, their effects and their buttons; Slicer's views use none of these keys."""
    return [
        ("P", _("previous slice to check"), ui.previousUncertainButton),
        ("N", _("next slice to check"), ui.nextUncertainButton),
        ("D", _("redraw the organ"), ui.refineOrganButton),
        ("Z", _("undo"), ui.undoButton),
        ("Y", _("redo"), ui.redoButton),
        ("C", _("compare before and after"), ui.beforeButton),
    ]


def show_buttons(
    panel: RefinePanel, session: RefineSession | None, boxes: list[str], sam: list[str]
) -> None:
    """Enable the buttons that work, and explain in the others' tooltips what is missing.

    Args:
        panel: the panel.
        session: the boxes that are being worked on, or None.
        boxes: sentences why boxes cannot be made; empty if they can.
        sam: sentences why SAM cannot be asked; empty if it can.
    """
    ui, show = panel.ui, panel.show_button
    ui.boxesButton.visible = session is None
    ui.organsCollapsibleButton.visible = session is not None
    show(ui.boxesButton, _("Put a box around each organ, slice by slice."), boxes)
    if session is None:
        none = [_("Make boxes first.")]
        for button in (ui.refineOrganButton, ui.refineAllButton, ui.undoButton, ui.redoButton):
            show(button, "", none)
        for button in (ui.beforeButton, ui.editButton, ui.trainingSetButton):
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
    refine_organ, refine_all = refine_texts(session)
    show(ui.refineOrganButton, refine_organ, going_on or sam + one)
    show(ui.refineAllButton, refine_all, going_on or sam + used)
    undo = _unless(session.can_undo, _("There is nothing to undo."))
    redo = _unless(session.can_redo, _("There is nothing to redo."))
    steps = session.history.steps
    undone = step_text(steps.past[-1], steps.present) if steps.past else ""
    redone = step_text(steps.present, steps.future[0]) if steps.future else ""
    show(ui.undoButton, _("Undo: {step}.").format(step=undone), going_on or undo)
    show(ui.redoButton, _("Redo: {step}.").format(step=redone), going_on or redo)
    coarse = any(organ.coarse for organ in organs)
    before = _unless(coarse, _("There is no outline from before."))
    show(ui.beforeButton, _("Show the outlines from before, or those of now."), before)
    show(ui.editButton, _("Continue by hand in Slicer's Segment Editor."), [])
    added = _(
        "Write the volume and the corrected segmentation into an nnU-Net dataset on this computer, "
        "for srcsm train. Nothing there is overwritten."
    )
    show(ui.trainingSetButton, added, going_on or some)


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
    show(ui.removeOrganButton, _("Remove the organ's boxes. Its segment stays."), one)
    show(ui.resetOrganButton, _("Return to the automatic boxes of the organ."), one)
    show(ui.resetAllButton, _("Return to the automatic boxes of all organs."), some)


def _show_slice_buttons(panel: RefinePanel, session: RefineSession) -> None:
    ui, show, shown = panel.ui, panel.show_button, session.slice
    if not session.active:
        none = [_("Click an organ in the table.")]
        for button in (ui.previousUncertainButton, ui.nextUncertainButton, ui.addBoxButton,
                       ui.removeBoxButton, ui.resetBoxButton, ui.positivePointButton,
                       ui.negativePointButton, ui.clearPointsButton):  # fmt: skip
            show(button, "", none)
        return
    organ, uncertain = session.organ(session.active), session.uncertain_slices()
    frames = organ.frames
    here = shown in frames.effective()
    before = _unless(any(k < shown for k in uncertain), _("No slice to check before this one."))
    after = _unless(any(k > shown for k in uncertain), _("No slice to check after this one."))
    show(ui.previousUncertainButton, _("Show the last slice to check before this one."), before)
    show(ui.nextUncertainButton, _("Show the next slice to check after this one."), after)
    no_box = _unless(here, _("The organ has no box in this slice."))
    boxed = _unless(not here, _("The organ has a box in this slice."))
    edited = shown in frames.edited or shown in frames.off
    automatic = _unless(edited, _("The box of this slice was not changed by hand."))
    show(ui.addBoxButton, _("Give the organ a box in this slice."), boxed)
    show(ui.removeBoxButton, _("Remove the box of this slice: the organ is not in it."), no_box)
    show(ui.resetBoxButton, _("Return to the automatic box of this slice."), automatic)
    positive = _("Then click into the organ: SAM includes the place.")
    negative = _("Then click beside the organ: SAM excludes the place.")
    show(ui.positivePointButton, positive, no_box)
    show(ui.negativePointButton, negative, no_box)
    points = _unless(organ.points, _("The organ has no points."))
    show(ui.clearPointsButton, _("Remove the organ's points."), points)


def _unless(fulfilled: object, sentence: str) -> list[str]:
    """Return no sentence if a condition holds, else the one given."""
    return [] if fulfilled else [sentence]
