# SPDX-License-Identifier: Apache-2.0
"""The module's panel: connects what the user does with the logic, and the logic with `Panel`."""

import time
from collections.abc import Callable
from functools import partial

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import SRCSMError, VolumeError
from ..scene import nodes, views, worker_host
from ..scene.input_warnings import input_warnings
from ..scene.logic import SegmentationRun
from ..scene.measures import measures
from ..scene.sequence import SequenceRun
from ..terminology import readable
from . import models, packages
from .common import duration
from .module_widget import ModuleWidget, edit_segmentation
from .panel import Panel, ResultRow
from .parameters import FRAME_SHOWN
from .remeasuring import Remeasuring

STATUS_MS = 5000
"""How long a message stays in the status bar."""


class SegmenterWidget(ModuleWidget):
    """The panel of the module SRCSMSegmenter.

    The user's actions change the parameter node and call the logic; `panel` shows the results.

    Attributes:
        run: the segmentation that is running, or None.
    """

    usedBy = ("SAMRefine",)

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        self.run: SegmentationRun | SequenceRun | None = None
        self._lastRun: SegmentationRun | SequenceRun | None = None
        self._cards: dict[str, models.ModelCard] = {}
        self._samLacks: list[str] = []
        self._started = 0.0
        self._messageOf: tuple = ()
        self._remeasuring = Remeasuring(self.update)
        super().__init__(parent)

    # Life cycle

    def setup(self) -> None:
        """Build the panel, the first time the module is opened and after a reload."""
        super().setup()
        ui = self.ui
        for selector in (ui.inputSelector, ui.outputSelector):
            selector.setMRMLScene(slicer.mrmlScene)
        self.panel = Panel(ui)

        ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChosen)
        ui.organList.connect("itemChanged(QListWidgetItem*)", self.onOrganTicked)
        ui.addModelButton.connect("clicked()", self.onAddModel)
        ui.removeModelButton.connect("clicked()", self.onRemoveModel)
        ui.segmentButton.connect("clicked()", self.onSegment)
        ui.undoButton.connect("clicked()", self.onUndo)
        ui.allOrgansButton.connect("clicked()", lambda: self.tickOrgans(True))
        ui.noOrgansButton.connect("clicked()", lambda: self.tickOrgans(False))
        ui.resultTable.connect("cellClicked(int,int)", self.onOrganClicked)
        ui.show3DButton.connect("toggled(bool)", self.onShow3D)
        ui.copyButton.connect("clicked()", self.onCopy)
        ui.editButton.connect("clicked()", self.onEdit)
        ui.refineButton.connect("clicked()", self.onRefine)
        ui.trainingSetButton.connect("clicked()", self.onAddToTrainingSet)
        self.begin()

    def enter(self) -> None:
        """Show the panel's state; Slicer calls this whenever the user opens the module."""
        self._cards, offer = models.model_cards(), worker_host.refinement()
        self._samLacks = packages.missing(offer.requirements) if offer else []
        super().enter()
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = views.shown_volume()

    def exit(self) -> None:
        """Hide; Slicer calls this whenever the user opens another module. What runs goes on."""
        self._remeasuring.follow(None)
        super().exit()

    def forget(self) -> None:
        """Release what belongs to this scene."""
        self._lastRun = None
        self._remeasuring.follow(None)
        self.panel.show_idle("")

    def update(self, caller: object = None, event: object = None) -> None:
        """Show the state of the parameter node."""
        parameters = self._parameterNode
        if parameters is None:
            return
        panel, volume = self.panel, parameters.inputVolume
        self.watchVolume(volume)
        self._dropOldMessage()
        card = self._cards.get(parameters.model)
        panel.show_models(self._cards, parameters.model, models.own_models())
        panel.show_organs(card, parameters.skippedOrgans)
        panel.show_frames(nodes.frame_count(volume) if volume else 0, parameters.allFrames)
        panel.show_warnings(self._warnings())
        panel.show_refinement(*self._refinement())
        panel.show_state(self.run is not None, self._lacking())
        self._showResult(parameters.result)

    def _lacking(self) -> list[str]:
        """List what has to be done before Segment can be pressed."""
        parameters, reasons = self._parameterNode, self.lackingPackages()
        if parameters.inputVolume is None:
            reasons.append(_("Choose a volume."))
        else:
            try:
                nodes.node_geometry(parameters.inputVolume)
            except VolumeError as error:
                reasons.append(str(error))
        if parameters.model not in self._cards:
            reasons.append(_("Choose a model."))
        elif not self.panel.organs(ticked=True):
            reasons.append(_("Tick an organ."))
        return reasons

    def _warnings(self) -> list[str]:
        parameters = self._parameterNode
        card = self._cards.get(parameters.model)
        if card is None or parameters.inputVolume is None:
            return []
        try:
            return input_warnings(
                parameters.inputVolume, card, parameters.sourceMatching.value, frame=self._frame()
            )
        except VolumeError:
            return []  # why it cannot be segmented is in the tooltip of Segment

    def _refinement(self) -> tuple[str, str]:
        """Return the SAM that would refine, and why it cannot; "" if it can."""
        offer, card = worker_host.refinement(), self._cards.get(self._parameterNode.model)
        if offer is None:
            return "", _("The module SAM Refine is not installed.")
        sam = offer.sam_for(card.modality) if card else ""
        if not sam:
            return "", _("There is no SAM for this model.")
        if self._samLacks:
            return sam, _("SAM needs {packages}; open SAM Refine to install.").format(
                packages=", ".join(packages.described(self._samLacks))
            )
        return sam, ""

    def _showMessage(self, text: str) -> None:
        """Show a message about the present choices."""
        self.panel.show_message(text)
        self._messageOf = self._choices() if text else ()

    def _dropOldMessage(self) -> None:
        """Hide a message about another volume or model."""
        if self._messageOf and self._messageOf != self._choices():
            self._showMessage("")

    def _choices(self) -> tuple:
        parameters = self._parameterNode
        return parameters and (parameters.inputVolume, parameters.model)

    def _frame(self) -> int | None:
        """Return the frame that was picked; None for the one shown, or if there is no sequence."""
        parameters = self._parameterNode
        count = nodes.frame_count(parameters.inputVolume)
        return parameters.frame if FRAME_SHOWN < parameters.frame < count else None

    # What the user chooses

    def onModelChosen(self, index: int) -> None:
        """Take the chosen model."""
        if index >= 0:
            self._parameterNode.model = self.panel.chosen_model()

    def onOrganTicked(self, item: "qt.QListWidgetItem") -> None:
        """Remember which organs are not wanted."""
        self._parameterNode.skippedOrgans = self.panel.organs(ticked=False)

    def tickOrgans(self, ticked: bool) -> None:
        """Tick all organs, or none."""
        self._parameterNode.skippedOrgans = [] if ticked else self.panel.organs()
        self.update()

    def onAddModel(self) -> None:
        """Let the user point at a model folder."""
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of a trained network, or of several")
        )
        if folder:
            self.addModels(folder)

    def addModels(self, folder: str) -> None:
        """Add the model or models of a folder to the list and choose the first."""
        try:
            added = models.add_models(folder)
        except SRCSMError as error:
            self._showMessage(str(error))
            return
        self._showMessage("")
        self._cards = models.model_cards()
        self._parameterNode.model = added[0]
        self.update()

    def onRemoveModel(self) -> None:
        """Take the chosen model off the list."""
        models.remove_model(self._parameterNode.model)
        self._cards = models.model_cards()
        self._parameterNode.model = next(iter(self._cards), "")
        self.update()

    # The run

    def onSegment(self) -> None:
        """Start a segmentation; the result is put into the scene when it is complete."""
        parameters, ui = self._parameterNode, self.ui
        self._showMessage("")
        wanted, skipped = self.panel.organs(ticked=True), self.panel.organs(ticked=False)
        focused, self._started = ui.segmentButton.focus, time.monotonic()
        self.panel.show_progress("", 0.0, None)
        try:
            self.run = self._segmenting()(
                parameters.inputVolume,
                model=parameters.model,
                sourceMatching=parameters.sourceMatching.value,
                organs=wanted if skipped else None,
                device=parameters.device.value,
                keepLargest=parameters.keepLargest,
                refine=parameters.refine and ui.refineCheckBox.enabled,
                progress=self.panel.show_progress,
                log=self.panel.log,
                done=self.onDone,
                wait=False,
            )
        except SRCSMError as error:
            self.panel.show_idle("")
            self._showMessage(str(error))
            return
        views.show_volume(parameters.inputVolume)
        self.update()
        if focused:
            ui.cancelButton.setFocus()

    def _segmenting(self) -> Callable:
        """Return what segments the volume: as it is shown, a frame of it, or all frames."""
        parameters = self._parameterNode
        if parameters.allFrames and nodes.frame_count(parameters.inputVolume):
            return self.logic.segmentSequence
        return partial(
            self.logic.segment,
            outputSegmentation=parameters.outputSegmentation,
            frame=self._frame(),
        )

    def onCancel(self) -> None:
        """Cancel the run, if there is one; the scene stays as it is."""
        if self.run is not None:
            self.run.cancel()

    def onDone(self, run: SegmentationRun | SequenceRun) -> None:
        """Show the result of a run, or why there is none."""
        self.run, focused, ended = None, self.ui.cancelButton.focus, ""
        if run.error is None:
            parameters = self.logic.getParameterNode()  # the panel may be closed meanwhile
            parameters.result, self._lastRun = run.segmentationNode, run
            ended = _("{name}: done in {time}").format(
                name=run.segmentationNode.GetName(), time=duration(time.monotonic() - self._started)
            )
            if parameters.show3D:
                self.show3D(run.segmentationNode, True)
        elif run.error.kind == "Cancelled":
            ended = _("Cancelled; nothing was changed")
            self.panel.log(str(run.error))
        else:
            self._showMessage(f"{run.error} {run.error.remedy}")
            self.panel.log(f"{run.error}\n{run.error.details}")
        self.panel.show_idle(ended)
        slicer.util.showStatusMessage(ended, STATUS_MS)
        self.update()
        if focused:
            self.ui.segmentButton.setFocus()

    # The result

    def _showResult(self, segmentation: "slicer.vtkMRMLSegmentationNode | None") -> None:
        self._remeasuring.follow(segmentation if self.entered else None)
        colors = {
            readable(organ.name): organ.color
            for card in self._cards.values()
            for organ in card.organs
        }
        organs = [
            ResultRow(m.name, colors.get(m.name, (128, 128, 128)), m.volume_ml, m.least_certain)
            for m in (measures(segmentation) if segmentation else [])
        ]
        name = segmentation.GetName() if segmentation else ""
        self.panel.show_results(name, organs, self.onJump)
        last = self._lastRun
        if last is None or segmentation is None or last.segmentationNode is not segmentation:
            self.panel.show_notes([], "")
        else:
            undo = _('Undo the segmentation of "{volume}": "{name}" is as it was before.').format(
                volume=_nameOf(_segmentedVolume(segmentation)), name=name
            )
            self.panel.show_notes(last.messages, undo)
        self.panel.show_3d_state(segmentation is not None and views.is_shown_3d(segmentation))
        self.panel.show_refine("SAMRefine" in slicer.app.moduleManager().modulesNames())

    def onJump(self, k: int) -> None:
        """Show slice `k` of the volume that was segmented in all slice views."""
        volume = _segmentedVolume(self._parameterNode.result)
        if volume is not None:
            views.show_volume(volume)
            views.jump_to_slice(volume, k)

    def onOrganClicked(self, row: int, column: int) -> None:
        """Go to the middle of the organ in a row of the table."""
        result = self._parameterNode.result
        name = self.ui.resultTable.item(row, 0).text()
        ids = {
            readable(organ): id
            for organ, id in nodes.organ_segments(result.GetSegmentation()).items()
        }
        if any(m.name == name and m.volume_ml for m in measures(result)) and name in ids:
            if (volume := _segmentedVolume(result)) is not None:
                views.show_volume(volume)
            views.jump_to_segment(result, ids[name])

    def onShow3D(self, shown: bool) -> None:
        """Show the surfaces of this result and of those to come, or hide them."""
        self._parameterNode.show3D = shown
        self.show3D(self._parameterNode.result, shown)
        self.update()

    def show3D(self, segmentation: "slicer.vtkMRMLSegmentationNode", shown: bool) -> None:
        """Show or hide surfaces, with a wait cursor: making them takes a moment."""
        with slicer.util.WaitCursor(shown):
            views.show_3d(segmentation, shown)

    def onCopy(self) -> None:
        """Put the table on the clipboard."""
        qt.QApplication.clipboard().setText(self.panel.table_text())
        slicer.util.showStatusMessage(_("The table was copied"), STATUS_MS)

    def onUndo(self) -> None:
        """Undo the last result; ask first if what was changed since would go with it."""
        question = _(
            "The segmentation was changed after it was made, by SAM Refine or by hand. Undo takes "
            "these changes along."
        )
        if self._lastRun.editedSince and not slicer.util.confirmOkCancelDisplay(question):
            return
        self._lastRun.undo()
        self._lastRun = None
        self.panel.show_idle("")
        self.update()

    def onEdit(self) -> None:
        """Open the result in Slicer's Segment Editor."""
        result = self._parameterNode.result
        edit_segmentation(result, _segmentedVolume(result))

    def onAddToTrainingSet(self) -> None:
        """Add the result, as it was corrected, to a dataset that networks are trained on."""
        result = self._parameterNode.result
        self.addToTrainingSet(result, _segmentedVolume(result))

    def onRefine(self) -> None:
        """Open the result in SAM Refine, with boxes around its organs."""
        result = self._parameterNode.result
        slicer.util.selectModule("SAMRefine")
        refine = slicer.modules.samrefine.widgetRepresentation().self()
        refine.startFrom(result, _segmentedVolume(result))


def _segmentedVolume(
    segmentation: "slicer.vtkMRMLSegmentationNode",
) -> "slicer.vtkMRMLScalarVolumeNode | None":
    """Return the volume that a segmentation is of."""
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def _nameOf(node: "slicer.vtkMRMLNode | None") -> str:
    return node.GetName() if node is not None else ""
