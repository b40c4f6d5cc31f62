# SPDX-License-Identifier: Apache-2.0
"""The section "Result" of the panel: actions on a segmentation."""

from collections.abc import Callable, Iterable

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import Cancelled
from ..models.catalogue import ModelCard
from ..scene import nodes, surfaces, views
from ..scene.logic import SegmentationRun
from ..scene.measures import measures, slice_axis
from ..scene.sequence import SequenceRun
from ..terminology import readable
from .common import STATUS_MS
from .module_widget import edit_segmentation
from .panel import Panel, ResultRow
from .parameters import Parameters
from .remeasuring import Remeasuring
from .waiting import waiting


class ResultSection:
    """The numbers of the segmentation that the parameter node calls the result, and its buttons.

    Attributes:
        last_run: the run that can be undone, or None.
    """

    def __init__(
        self,
        panel: Panel,
        parameters: Callable[[], Parameters],
        changed: Callable[[], None],
    ) -> None:
        """Connect the buttons.

        Args:
            panel: the widgets.
            parameters: returns the panel's state.
            changed: called when the whole panel has to be shown anew.
        """
        self.last_run: SegmentationRun | SequenceRun | None = None
        self._before: slicer.vtkMRMLSegmentationNode | None = None
        self._panel, self._parameters, self._changed = panel, parameters, changed
        self._remeasuring = Remeasuring(changed)
        ui = panel.ui
        ui.resultTable.connect("cellClicked(int,int)", self.onOrganClicked)
        ui.show3DButton.connect("toggled(bool)", self.onShow3D)
        ui.copyButton.connect("clicked()", self.onCopy)
        ui.editButton.connect("clicked()", self.onEdit)
        ui.refineButton.connect("clicked()", self.onRefine)

    @property
    def _result(self) -> slicer.vtkMRMLSegmentationNode | None:
        return self._parameters().result

    def take(self, run: SegmentationRun | SequenceRun) -> None:
        """Take over the result of a run, which can be undone."""
        parameters = self._parameters()
        self._before = parameters.result
        parameters.result, self.last_run = run.segmentationNode, run

    def show(self, cards: Iterable[ModelCard], entered: bool) -> None:
        """Show the result.

        Args:
            cards: of all models, for the organs' colours.
            entered: whether the module is open; if not, edits are not followed.
        """
        result, panel = self._result, self._panel
        self._remeasuring.follow(result if entered else None)
        colors = {readable(organ.name): organ.color for card in cards for organ in card.organs}
        rows = [
            ResultRow(m.name, colors.get(m.name, (128, 128, 128)), m.volume_ml, m.least_certain)
            for m in (measures(result) if result else [])
        ]
        name = result.GetName() if result else ""
        axis = "IJK"[slice_axis(result)] if result else "K"
        panel.show_results(name, rows, axis, self.onJump)
        last = self.last_run
        if last is None or result is None or last.segmentationNode is not result:
            panel.show_notes([], "")
        else:
            volume = views.segmented_volume(result)
            undo = _('Undo the segmentation of "{volume}": "{name}" is as it was before.').format(
                volume=volume.GetName() if volume else "", name=name
            )
            panel.show_notes(last.messages, undo)
        panel.show_3d_state(result is not None and surfaces.is_shown_3d(result))
        panel.show_refine("SAMRefine" in slicer.app.moduleManager().modulesNames())

    def leave(self) -> None:
        """Follow no edits while another module is open."""
        self._remeasuring.follow(None)

    def forget(self) -> None:
        """Release what belongs to this scene."""
        self.last_run = self._before = None
        self._remeasuring.follow(None)

    def onJump(self, number: int) -> None:
        """Show a slice of the volume that was segmented in all slice views."""
        volume = views.segmented_volume(self._result)
        if volume is not None:
            views.show_volume(volume)
            views.jump_to_slice(volume, number, slice_axis(self._result))

    def onOrganClicked(self, row: int, column: int) -> None:
        """Go to the middle of the organ in a row of the table."""
        result = self._result
        name = self._panel.ui.resultTable.item(row, 0).text()
        ids = {
            readable(organ): id
            for organ, id in nodes.organ_segments(result.GetSegmentation()).items()
        }
        if any(m.name == name and m.volume_ml for m in measures(result)) and name in ids:
            if (volume := views.segmented_volume(result)) is not None:
                views.show_volume(volume)
            views.jump_to_segment(result, ids[name])

    def onShow3D(self, shown: bool) -> None:
        """Show the surfaces of this result and of those to come, or hide them."""
        self._parameters().show3D = shown
        self.show3D(self._result, shown)
        self._changed()

    def show3D(self, segmentation: slicer.vtkMRMLSegmentationNode, shown: bool) -> None:
        """Show or hide surfaces; the user may cancel their making."""
        try:
            with waiting(_("Making surfaces of the organs"), patience=0) as aside:
                surfaces.show_3d(segmentation, shown, aside)
        except Cancelled:
            self._parameters().show3D = False

    def onCopy(self) -> None:
        """Put the table on the clipboard."""
        qt.QApplication.clipboard().setText(self._panel.table_text())
        slicer.util.showStatusMessage(_("The table was copied"), STATUS_MS)

    def undo(self) -> bool:
        """Undo the last result; ask first if later changes would go with it.

        Returns:
            False if the user does not want it.
        """
        question = _(
            "The segmentation was changed after it was made, by SAM Refine or by hand. Undo takes "
            "these changes along."
        )
        if self.last_run.editedSince and not slicer.util.confirmOkCancelDisplay(question):
            return False
        self.last_run.undo()
        before, self.last_run, self._before = self._before, None, None
        if self._result is None and before is not None and before.GetScene() is not None:
            self._parameters().result = before
        if self._result is not None and self._parameters().show3D:
            self.show3D(self._result, True)
        self._changed()
        return True

    def onEdit(self) -> None:
        """Open the result in Slicer's Segment Editor."""
        edit_segmentation(self._result, views.segmented_volume(self._result))

    def onRefine(self) -> None:
        """Open the result in SAM Refine, with boxes around its organs."""
        result = self._result
        slicer.util.selectModule("SAMRefine")
        refine = slicer.modules.samrefine.widgetRepresentation().self()
        refine.startFrom(result, views.segmented_volume(result))
