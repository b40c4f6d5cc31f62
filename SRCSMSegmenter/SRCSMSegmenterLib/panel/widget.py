# SPDX-License-Identifier: Apache-2.0
"""The module's panel: connects what the user does with the logic, and the logic with `Panel`."""

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import SRCSMError, VolumeError
from ..scene import nodes, views
from ..scene.input_warnings import input_warnings
from ..scene.logic import SegmentationRun
from ..scene.measures import measures
from . import models
from .module_widget import ModuleWidget, edit_segmentation
from .panel import Panel, ResultRow
from .parameters import FRAME_SHOWN


class SegmenterWidget(ModuleWidget):
    """The panel of the module SRCSMSegmenter.

    The user's actions change the parameter node and call the logic; `panel` shows the results.

    Attributes:
        run: the segmentation that is running, or None.
    """

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        self.run: SegmentationRun | None = None
        self._lastRun: SegmentationRun | None = None
        self._cards: dict[str, models.ModelCard] = {}
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
        ui.editButton.connect("clicked()", self.onEdit)
        ui.refineButton.connect("clicked()", self.onRefine)
        ui.trainingSetButton.connect("clicked()", self.onAddToTrainingSet)
        self.begin()

    def enter(self) -> None:
        """Show the panel's state; Slicer calls this whenever the user opens the module."""
        self._cards = models.model_cards()
        super().enter()
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        scalar = [node for node in volumes if node.GetClassName() == "vtkMRMLScalarVolumeNode"]
        if scalar and self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = scalar[0]

    def forget(self) -> None:
        """Release what belongs to this scene."""
        self._lastRun = None

    def update(self, caller: object = None, event: object = None) -> None:
        """Show the state of the parameter node."""
        parameters = self._parameterNode
        if parameters is None:
            return
        panel, volume = self.panel, parameters.inputVolume
        card = self._cards.get(parameters.model)
        panel.show_models(self._cards, parameters.model, models.own_models())
        panel.show_organs(card, parameters.skippedOrgans)
        panel.show_frames(nodes.frame_count(volume) if volume else 0)
        panel.show_warnings(self._warnings())
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
            self.panel.show_message(str(error))
            return
        self.panel.show_message("")
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
        parameters = self._parameterNode
        self.panel.show_message("")
        wanted, skipped = self.panel.organs(ticked=True), self.panel.organs(ticked=False)
        try:
            self.run = self.logic.segment(
                parameters.inputVolume,
                model=parameters.model,
                sourceMatching=parameters.sourceMatching.value,
                organs=wanted if skipped else None,
                device=parameters.device.value,
                keepLargest=parameters.keepLargest,
                outputSegmentation=parameters.outputSegmentation,
                frame=self._frame(),
                progress=self.panel.show_progress,
                log=self.panel.log,
                done=self.onDone,
                wait=False,
            )
        except SRCSMError as error:
            self.panel.show_message(str(error))
        self.panel.show_progress("", 0.0, None)
        self.update()

    def onCancel(self) -> None:
        """Cancel the run, if there is one; the scene stays as it is."""
        if self.run is not None:
            self.run.cancel()

    def onDone(self, run: SegmentationRun) -> None:
        """Show the result of a run, or why there is none."""
        self.run = None
        if run.error is None:
            parameters = self.logic.getParameterNode()  # the panel may be closed meanwhile
            parameters.result, self._lastRun = run.segmentationNode, run
            if parameters.show3D:
                run.segmentationNode.CreateClosedSurfaceRepresentation()
        elif run.error.kind == "Cancelled":
            self.panel.log(str(run.error))
        else:
            self.panel.show_message(f"{run.error} {run.error.remedy}")
            self.panel.log(f"{run.error}\n{run.error.details}")
        self.update()

    # The result

    def _showResult(self, segmentation: "slicer.vtkMRMLSegmentationNode | None") -> None:
        rows = measures(segmentation) if segmentation else []
        colors = {organ.name: organ.color for card in self._cards.values() for organ in card.organs}
        organs = [
            ResultRow(m.name, colors.get(m.name, (128, 128, 128)), m.volume_ml, m.least_certain)
            for m in rows
        ]
        name = segmentation.GetName() if segmentation else ""
        self.panel.show_results(name, organs, self.onJump)
        last = self._lastRun if segmentation and self._lastRun else None
        self.panel.show_notes(last.messages if last else [], last is not None)
        self.panel.show_refine("SAMRefine" in slicer.app.moduleManager().modulesNames())

    def onJump(self, k: int) -> None:
        """Show slice `k` of the volume that was segmented in all slice views."""
        volume = _segmentedVolume(self._parameterNode.result)
        if volume is not None:
            views.jump_to_slice(volume, k)

    def onUndo(self) -> None:
        """Undo the last result."""
        self._lastRun.undo()
        self._lastRun = None
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
