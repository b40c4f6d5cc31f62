# SPDX-License-Identifier: Apache-2.0
"""The module's panel: connects user actions with the logic, and the logic with `Panel`."""

import time
from collections.abc import Callable
from functools import partial

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import Cancelled, SRCSMError, VolumeError
from ..scene import nodes, views, worker_host
from ..scene.input_warnings import input_warnings
from ..scene.logic import SegmentationRun
from ..scene.sequence import SequenceRun
from . import models, packages
from .common import STATUS_MS, duration
from .module_widget import ModuleWidget
from .panel import Panel
from .parameters import FRAME_SHOWN
from .result_section import ResultSection
from .waiting import waiting


class SegmenterWidget(ModuleWidget):
    """The panel of the module SRCSMSegmenter.

    The user's actions change the parameter node and call the logic; `panel` shows the results.

    Attributes:
        run: the segmentation that is running, or None.
        results: the section "Result".
    """

    usedBy = ("SAMRefine",)

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        self.run: SegmentationRun | SequenceRun | None = None
        self.results: ResultSection | None = None
        self._cards: dict[str, models.ModelCard] = {}
        self._samLacks: list[str] = []
        self._started = 0.0
        self._messageOf: tuple = ()
        super().__init__(parent)

    # Life cycle

    def setup(self) -> None:
        """Build the panel, the first time the module is opened and after a reload."""
        super().setup()
        ui = self.ui
        for selector in (ui.inputSelector, ui.outputSelector):
            selector.setMRMLScene(slicer.mrmlScene)
        self.panel = Panel(ui)
        self.results = ResultSection(self.panel, lambda: self.logic.getParameterNode(), self.update)

        ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChosen)
        ui.organList.connect("itemChanged(QListWidgetItem*)", self.onOrganTicked)
        ui.addModelButton.connect("clicked()", self.onAddModel)
        ui.removeModelButton.connect("clicked()", self.onRemoveModel)
        ui.segmentButton.connect("clicked()", self.onSegment)
        ui.undoButton.connect("clicked()", self.onUndo)
        ui.allOrgansButton.connect("clicked()", lambda: self.tickOrgans(True))
        ui.noOrgansButton.connect("clicked()", lambda: self.tickOrgans(False))
        ui.trainingSetButton.connect("clicked()", self.onAddToTrainingSet)
        self.begin()

    def enter(self) -> None:
        """Show the panel's state; Slicer calls this whenever the user opens the module."""
        self._cards, offer = models.model_cards(), worker_host.refinement()
        self._samLacks = self.missingPackages(offer.requirements) if offer else []
        parameters = self.logic.getParameterNode()
        if parameters.inputVolume is None:  # once it is bound, the selector picks the first
            parameters.inputVolume = views.shown_volume()
        super().enter()

    def exit(self) -> None:
        """Hide; Slicer calls this whenever the user opens another module. What runs goes on."""
        super().exit()
        self.results.leave()

    def forget(self) -> None:
        """Release what belongs to this scene."""
        self.results.forget()
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
        self.results.show(self._cards.values(), self.entered)

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
        self.panel.take_tick(item)
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
                waiting=waiting,
                wait=False,
            )
        except Cancelled as stopped:
            self.panel.show_idle(str(stopped))
            return
        except SRCSMError as error:
            self.panel.show_idle("")
            self._showMessage(str(error))
            return
        views.show_volume(parameters.inputVolume)
        self.update()
        if focused:
            ui.cancelButton.setFocus()

    def _segmenting(self) -> Callable:
        """Return the function that segments the volume as shown, a frame of it, or all frames."""
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
            self.results.take(run)
            ended = _("{name}: done in {time}").format(
                name=run.segmentationNode.GetName(), time=duration(time.monotonic() - self._started)
            )
            if self.logic.getParameterNode().show3D:  # the panel may be closed meanwhile
                self.results.show3D(run.segmentationNode, True)
        elif run.error.kind == "Cancelled":
            ended = _("Cancelled; nothing was changed")
            self.panel.log(str(run.error))
        else:
            self._showMessage(run.error.told)
            self.panel.log(f"{run.error}\n{run.error.details}")
        self.panel.show_idle(ended)
        slicer.util.showStatusMessage(ended, STATUS_MS)
        self.update()
        if focused:
            self.ui.segmentButton.setFocus()

    def onUndo(self) -> None:
        """Undo the last result."""
        if self.results.undo():
            self.panel.show_idle("")

    def onAddToTrainingSet(self) -> None:
        """Add the result, as it was corrected, to a dataset that networks are trained on."""
        result = self._parameterNode.result
        self.addToTrainingSet(result, views.segmented_volume(result))
