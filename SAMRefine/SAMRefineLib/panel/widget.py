# SPDX-License-Identifier: Apache-2.0
"""Widget of SAM Refine: from the user's actions to the parameter node and the session.

`panel` shows the state, the session changes the scene, and a worker process computes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from SRCSMSegmenterLib.errors import Cancelled, SRCSMError
from SRCSMSegmenterLib.panel.common import STATUS_MS
from SRCSMSegmenterLib.panel.module_widget import ModuleWidget, edit_segmentation
from SRCSMSegmenterLib.panel.waiting import waiting
from SRCSMSegmenterLib.scene import views

from ..refine.client import RefineRun
from ..refine.organ_state import Settings
from ..scene.box_nodes import remove_boxes_of
from ..scene.roi_views import drawn_roi
from ..scene.segments import segmentation_on
from ..scene.session import RefineSession
from ..scene.slice_views import align_views
from .buttons import connect_buttons, keys_of, show_buttons
from .chosen_boxes import is_of_choice, open_chosen
from .organ_texts import refined_text
from .panel import RefinePanel
from .parameters import NeighbourChoice, shown_mask_threshold
from .placing import PointPlacing
from .sam_chooser import SamChooser
from .shortcuts import Shortcuts
from .texts import axis_text, lacking_volume, missed_organ_names, organ_help, segmentation_warnings


class RefineWidget(ModuleWidget):
    """The base of the module's widget class.

    Attributes:
        session: the boxes that are being worked on, or None.
        sams: the rows of the panel about SAMs.
        shortcuts: the keys of the panel.
        placing: the buttons that place points.
    """

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        """Make a widget, which `setup` fills."""
        self.session: RefineSession | None = None
        self.sams: SamChooser | None = None
        self.shortcuts: Shortcuts | None = None
        self.placing: PointPlacing | None = None
        self._result = ""
        super().__init__(parent)

    # life cycle

    def setup(self) -> None:
        """Build the panel, when the module is opened first and after a reload."""
        super().setup()
        self.requirements = Path(self.resourcePath("sam-requirements.txt"))
        ui = self.ui
        for selector in (ui.inputSelector, ui.segmentationSelector):
            selector.setMRMLScene(slicer.mrmlScene)
        self.panel = RefinePanel(ui)
        keys = keys_of(ui)
        self.shortcuts = Shortcuts({key: button for key, _effect, button in keys})
        self.panel.show_shortcuts(keys)
        self.sams = SamChooser(self.panel, self.onSamPicked)
        ui.organTable.connect("itemChanged(QTableWidgetItem*)", self.onOrganTicked)
        ui.organTable.connect("itemSelectionChanged()", self.onOrganChosen)
        ui.organTable.horizontalHeader().connect("sectionClicked(int)", self.onColumnClicked)
        ui.newOrganComboBox.connect("editTextChanged(QString)", self.onOrganNamed)
        ui.newOrganComboBox.lineEdit().connect("returnPressed()", self.onOrganEntered)
        buttons = {True: ui.positivePointButton, False: ui.negativePointButton}
        self.placing = PointPlacing(buttons, lambda: self.session and self.session.points)
        connect_buttons(self)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.begin()

    def enter(self) -> None:
        """Show the present scene; Slicer calls this when the user comes to the module."""
        self.sams.refresh()
        parameters = self.logic.getParameterNode()
        # Before the selector is bound, which picks the first volume.
        if parameters.inputVolume is None and (volume := views.shown_volume()) is not None:
            parameters.inputVolume = volume
            parameters.segmentation = segmentation_on(volume)
        super().enter()
        if self.session is not None:
            self.session.set_visible(True)
            self.session.read_hand_edits()  # made in the Segment Editor
        self.shortcuts.install()

    def exit(self) -> None:
        """Stop background jobs; Slicer calls this when the user goes to another module."""
        self.shortcuts.remove()
        self.placing.stop()
        if self.session is not None:
            self.session.live = self.session.ahead = False
            self.session.set_visible(False)
        super().exit()

    def forget(self) -> None:
        """Release everything that belongs to this scene."""
        self.shortcuts.remove()
        self.placing.close()
        self.sams.close()
        self.closeSession()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, scene: object, event: str, node: "slicer.vtkMRMLNode") -> None:
        """Remove boxes that are not open with the volume or segmentation that they are of."""
        if not slicer.mrmlScene.IsClosing():
            remove_boxes_of(node)

    def startFrom(
        self,
        segmentationNode: "slicer.vtkMRMLSegmentationNode | None",
        volumeNode: "slicer.vtkMRMLScalarVolumeNode | None" = None,
    ) -> None:
        """Make boxes of a segmentation on a volume, or open those that exist."""
        if self._parameterNode is None:
            slicer.util.selectModule(self.moduleName)
        parameters = self._parameterNode
        if volumeNode is not None:
            parameters.inputVolume = volumeNode
        parameters.segmentation = segmentationNode
        if self.session is None and not lacking_volume(parameters.inputVolume):
            self.onMakeBoxes()

    # the session

    def update(self, caller: object = None, event: object = None) -> None:
        """Follow the parameter node, and show the state."""
        if self._parameterNode is None:
            return
        self.watchVolume(self._parameterNode.inputVolume)  # whose voxels may come after it
        if self.session is not None and not is_of_choice(self.session, self._parameterNode):
            self.closeSession()
        if self.session is None:
            self._reopen()
        if self.session is not None:
            self._configure()
        self.show()

    def _reopen(self) -> None:
        """Open boxes of the chosen nodes and axis that are in the scene."""
        parameters, logic = self._parameterNode, self.logic
        session = open_chosen(
            logic.savedBoxes(), parameters, logic.openBoxes, self.panel.show_message
        )
        if session is not None:
            self._use(session)
            parameters.mask_threshold = shown_mask_threshold(session.settings)
            parameters.neighbours = NeighbourChoice(session.settings.neighbours)

    def _use(self, session: RefineSession) -> None:
        self.session, self._result = session, ""
        session.changed, session.message = self.show, self.panel.show_message
        session.outlines.waiting = partial(waiting, _("Drawing the organs"))
        views.show_volume(session.volumeNode)
        session.read_hand_edits()  # none yet: later ones are found by comparison

    def _configure(self) -> None:
        """Give the session what was chosen in the panel."""
        parameters, session = self._parameterNode, self.session
        if parameters.organ in [organ.label for organ in session.organs]:
            session.active = parameters.organ  # first, as `show` takes it over
        session.configure(self._chosen_in(session.settings))
        session.live = parameters.live
        session.ahead = not self._lacking_sam()

    def _chosen_in(self, settings: Settings) -> Settings:
        """Return settings with what was chosen in the panel; the others stay."""
        parameters = self._parameterNode
        return replace(
            self.sams.chosen_in(settings),
            mask_threshold=round(parameters.mask_threshold, 2),
            device=parameters.device.value,
            neighbours=parameters.neighbours.value,
        )

    def closeSession(self) -> None:
        """Release the boxes, which stay in the scene."""
        if self.session is not None:
            self.placing.stop()
            self.session.changed = lambda: None
            self.session.close()
        self._forgetSession()

    def _forgetSession(self) -> None:
        """Forget boxes that are closed, and what was said about them."""
        self.session, self._result = None, ""

    def _lacking_sam(self) -> list[str]:
        return self.lackingPackages() + self.sams.lacking()

    @contextmanager
    def _errors_shown(self) -> Iterator[None]:
        """Show an error of the context, which changed nothing."""
        self.panel.show_message("")
        try:
            yield
        except SRCSMError as error:
            self.panel.show_message("" if isinstance(error, Cancelled) else str(error))

    # display

    def show(self) -> None:
        """Show everything; called after every change."""
        parameters, panel = self._parameterNode, self.panel
        if parameters is None:
            return
        if self.session is not None and self.session.closed:
            self._forgetSession()
        session = self.session
        if session is not None:
            parameters.organ = session.active or parameters.organ
            shown = shown_mask_threshold(session.settings)
            if shown != round(parameters.mask_threshold, 2):
                parameters.mask_threshold = shown  # it was undone
        self.sams.show(parameters.sam)
        organs = session.organs if session else ()
        dice = session.outlines.edits.dice if session else {}
        panel.show_organs(organs, (session.active or 0) if session else 0, dice)
        panel.show_new_organs(missed_organ_names(organs))
        panel.show_organ_help(organ_help(organs) if session else "")
        panel.show_warnings([] if session else segmentation_warnings(parameters))
        panel.show_axis(axis_text(parameters))
        panel.show_running(session is not None and session.run is not None)
        panel.show_before(session is not None and session.before_shown)
        panel.show_result(self._result)
        if session is not None:
            organ = session.organ(session.active) if session.active else None
            panel.show_slice(session.slice, session.grid, organ)
            panel.show_embeddings(session.embeddings if session.ahead else {})
        self.placing.show()
        self._show_buttons()

    def _show_buttons(self) -> None:
        parameters = self._parameterNode
        make = _("Make boxes") if parameters.segmentation else _("Start without boxes")
        self.ui.boxesButton.text = make
        boxes, sam = lacking_volume(parameters.inputVolume), self._lacking_sam()
        show_buttons(self.panel, self.session, boxes, sam)

    # boxes

    def onSamPicked(self, key: str) -> None:
        """Take over another SAM, or follow one that was added or removed."""
        if self._parameterNode is not None:
            self._parameterNode.sam = key
            self.update()

    def onMakeBoxes(self) -> None:
        """Make boxes around the segments, or start without any."""
        parameters = self._parameterNode
        with self._errors_shown(), waiting(_("Putting boxes around the organs")) as aside:
            session = self.logic.boxes(
                parameters.segmentation,
                parameters.inputVolume,
                axis=parameters.axis.value,
                settings=self._chosen_in(Settings()),
                aside=aside,
            )
            self._use(session)
            self.panel.show_message("")  # of the boxes before, while these were made
            parameters.segmentation = session.segmentationNode
            align_views(session.volumeNode)
            boxes = session.organ(session.active).frames.effective() if session.active else {}
            if boxes and session.slice not in boxes:
                session.jump(sorted(boxes)[len(boxes) // 2])
        self.update()

    def onOrganTicked(self, item: "qt.QTableWidgetItem") -> None:
        """Show, use or keep an organ, or stop doing so."""
        tick = self.panel.ticked(item)
        if tick is None:
            return
        name, ticked = tick
        calls = {
            "shown": self.session.set_shown,
            "enabled": self.session.set_enabled,
            "kept": self.session.keep_coarse,
        }
        with self._errors_shown():
            calls[name](self.panel.organ_of(item), ticked)
        self.show()

    def onOrganChosen(self) -> None:
        """Make another organ the active one."""
        if self.session is not None and (label := self.panel.selected_organ()):
            self.session.active = self._parameterNode.organ = label

    def onOrganNamed(self, text: str) -> None:
        """Follow the name of a missed organ that is typed."""
        self._show_buttons()

    def onAddOrgan(self) -> None:
        """Add a missed organ, in the ROI that the user drew if there is one."""
        with self._errors_shown():
            label = self.session.add_organ(self.panel.new_organ(), roi=drawn_roi())
            self.panel.clear_new_organ()  # a second click is not a second organ
            self._parameterNode.organ = label
        self._show_buttons()

    def onOrganEntered(self) -> None:
        """Add the organ when Enter is pressed behind its name."""
        if self.ui.addOrganButton.enabled:
            self.onAddOrgan()

    def onColumnClicked(self, column: int) -> None:
        """Tick all organs in a column of ticks, or none if all of them are ticked."""
        if self.session is None or (name := self.panel.tick_column(column)) is None:
            return
        set_one = {"shown": self.session.set_shown, "enabled": self.session.set_enabled}[name]
        ticked = not all(getattr(organ, name) for organ in self.session.organs)
        for organ in self.session.organs:
            set_one(organ.label, ticked)

    def onAddBox(self) -> None:
        """Add a box in this slice."""
        with self._errors_shown():
            self.session.add_slice_box(self.session.active)

    # refinement

    def onRefine(self, labels: list[int] | None) -> None:
        """Redraw the organs with some labels; None for all that are ticked."""
        self._result = ""
        self.panel.show_progress("", 0.0, None)
        with self._errors_shown():
            self.logic.refine(
                self.session,
                labels,
                progress=self.panel.show_progress,
                log=self.panel.log,
                done=self.onDone,
                wait=False,
            )
        self.show()

    def onCancel(self) -> None:
        """Stop the refinement, if one runs; the scene does not change."""
        if self.session is not None:
            self.session.cancel()

    def onDone(self, run: RefineRun) -> None:
        """Show the end of a refinement, whether it succeeded, failed or was cancelled."""
        if run.error is None:
            refined = [o for o in run.session.organs if o.label in run.labels and o.report]
            text = refined_text(refined)
            self._result = " ".join([text, *run.messages])  # which are in the log
            self.panel.log(text)
            slicer.util.showStatusMessage(self._result, STATUS_MS)
        elif run.error.kind == "Cancelled":
            self.panel.log(str(run.error))
        else:
            self.panel.show_message(run.error.told)
            self.panel.log(f"{run.error}\n{run.error.details}")
        self.show()

    def onStep(self, step: Callable[[], None]) -> None:
        """Undo or redo a step of the session."""
        self._result = ""
        with self._errors_shown():
            step()

    def onEdit(self) -> None:
        """Open the segmentation in Slicer's Segment Editor."""
        edit_segmentation(self.session.segmentationNode, self.session.volumeNode)

    def onAddToTrainingSet(self) -> None:
        """Add the segmentation to a dataset that networks are trained on."""
        self.addToTrainingSet(self.session.segmentationNode, self.session.volumeNode)
