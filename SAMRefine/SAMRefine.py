# SPDX-License-Identifier: Apache-2.0
"""SAMRefine: correct organs with boxes that SAM redraws, in 3D Slicer.

Module, panel, logic and test as Slicer looks for them by name. What the panel's widgets show is in
SAMRefineLib/panel/panel.py, the work on the scene in scene/logic.py and its
neighbours, all computing in a worker process. PyTorch is never imported here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from SAMRefineLib.boxes.boxes import Box, Box3D, SliceGrid
from SAMRefineLib.panel.buttons import show_buttons
from SAMRefineLib.panel.panel import RefinePanel, refined_text
from SAMRefineLib.panel.parameters import Neighbours, Parameters, rename_old_parameters
from SAMRefineLib.panel.sam_chooser import SamChooser
from SAMRefineLib.refine.organ_state import Organ, Settings, organs_from_json
from SAMRefineLib.scene import logic as slicer_refine_logic
from SAMRefineLib.scene.masks import fits
from SAMRefineLib.scene.requests import TASKS
from SAMRefineLib.scene.roi_views import BOUND, SLICE_BOX, align_views
from SAMRefineLib.scene.session import BOXES, SEGMENTATION, VOLUME, RefineRun, RefineSession
from SRCSMSegmenterLib.errors import SRCSMError, VolumeError
from SRCSMSegmenterLib.panel import models, packages
from SRCSMSegmenterLib.panel.module_widget import ModuleWidget, edit_segmentation
from SRCSMSegmenterLib.scene import logic as slicer_logic
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.nodes import node_geometry
from SRCSMSegmenterLib.scene.samples import load_phantom

PLANES = ("sagittal", "coronal", "axial")
"""Slices across R, A and S."""


class SAMRefine(ScriptedLoadableModule):
    """What Slicer shows of the module in its list."""

    def __init__(self, parent: "qt.QObject") -> None:
        super().__init__(parent)
        parent.title = _("SAM Refine")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Markups", "SRCSMSegmenter"]
        parent.contributors = ["SRCSM contributors"]
        parent.helpText = _(
            "Corrects a segmentation with boxes: each organ gets one in every slice, you move "
            "those that are wrong, and SAM redraws the organ within them."
            "<p><b>Research use only. Not for diagnosis.</b></p>"
        )
        parent.acknowledgementText = _(
            "After Wang et al., <i>Leveraging SAM for Single-Source Domain Generalization in "
            "Medical Image Segmentation</i> "
            '(<a href="https://github.com/SARIHUST/SAMMed">SAMMed</a>). SAM is by A. Kirillov et '
            "al., <i>Segment Anything</i>, ICCV 2023."
        )
        worker_host.add_tasks(TASKS)


class SAMRefineWidget(ModuleWidget):
    """The panel: what the user does goes to the parameter node and the session, what comes of it
    to `panel`.

    Attributes:
        session: the boxes that are being worked on, or None.
    """

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        self.session: RefineSession | None = None
        self.sams: SamChooser | None = None
        self._shortcuts: list[qt.QShortcut] = []
        self._result = ""
        super().__init__(parent)

    # Life cycle

    def setup(self) -> None:
        """Build the panel, the first time the module is opened and after a reload."""
        super().setup()
        self.requirements = Path(self.resourcePath("sam-requirements.txt"))
        ui = self.ui
        for selector in (ui.inputSelector, ui.segmentationSelector):
            selector.setMRMLScene(slicer.mrmlScene)
        self.logic = SAMRefineLogic()
        self.panel = RefinePanel(ui)
        self.panel.show_shortcuts({key: does for key, does, button in self._keys()})
        self.sams = SamChooser(self.panel, self.onSamPicked)

        ui.organTable.connect("itemChanged(QTableWidgetItem*)", self.onOrganTicked)
        ui.organTable.connect("itemSelectionChanged()", self.onOrganChosen)
        ui.newOrganComboBox.connect("editTextChanged(QString)", self.onOrganNamed)
        ui.boxesButton.connect("clicked()", self.onMakeBoxes)
        ui.addOrganButton.connect("clicked()", self.onAddOrgan)
        ui.removeOrganButton.connect("clicked()", self.onRemoveOrgan)
        ui.resetOrganButton.connect("clicked()", self.onResetOrgan)
        ui.resetAllButton.connect("clicked()", self.onResetAll)
        ui.previousUncertainButton.connect("clicked()", self.onPreviousUncertain)
        ui.nextUncertainButton.connect("clicked()", self.onNextUncertain)
        ui.addBoxButton.connect("clicked()", self.onAddBox)
        ui.removeBoxButton.connect("clicked()", self.onRemoveBox)
        ui.resetBoxButton.connect("clicked()", self.onResetBox)
        ui.positivePointButton.connect("clicked()", self.onPositivePoint)
        ui.negativePointButton.connect("clicked()", self.onNegativePoint)
        ui.clearPointsButton.connect("clicked()", self.onClearPoints)
        ui.refineOrganButton.connect("clicked()", self.onRefineOrgan)
        ui.refineAllButton.connect("clicked()", self.onRefineAll)
        ui.undoButton.connect("clicked()", self.onUndo)
        ui.redoButton.connect("clicked()", self.onRedo)
        ui.beforeButton.connect("clicked()", self.onBefore)
        ui.editButton.connect("clicked()", self.onEdit)
        self.begin()

    def enter(self) -> None:
        """Slicer calls this whenever the user comes to the module."""
        self.sams.refresh()
        super().enter()
        parameters = self._parameterNode
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        scalar = [node for node in volumes if node.GetClassName() == "vtkMRMLScalarVolumeNode"]
        if scalar and parameters.inputVolume is None:
            parameters.inputVolume = scalar[0]
            parameters.segmentation = _segmentationOf(scalar[0])
        self._removeShortcuts()
        self._installShortcuts()

    def exit(self) -> None:
        """Slicer calls this whenever the user goes to another module; a run goes on."""
        self._removeShortcuts()
        if self.session is not None:
            self.session.live = self.session.ahead = False
        super().exit()

    def forget(self) -> None:
        """Let go of what belongs to this scene."""
        self._removeShortcuts()
        self.sams.close()
        self._close()

    def startFrom(
        self,
        segmentationNode: "slicer.vtkMRMLSegmentationNode | None",
        volumeNode: "slicer.vtkMRMLScalarVolumeNode | None" = None,
    ) -> None:
        """Make boxes of a segmentation on a volume, or go on with those there are."""
        if self._parameterNode is None:
            slicer.util.selectModule(self.moduleName)
        parameters = self._parameterNode
        if volumeNode is not None:
            parameters.inputVolume = volumeNode
        parameters.segmentation = segmentationNode
        if self.session is None and not self._lackingForBoxes():
            self.onMakeBoxes()

    # What is worked on

    def update(self, caller: object = None, event: object = None) -> None:
        """Follow the state of the parameter node, and show it."""
        parameters = self._parameterNode
        if parameters is None:
            return
        if self.session is not None and not self._fits(self.session):
            self._close()
        if self.session is None:
            self._reopen()
        if self.session is not None:
            self._configure()
        self._show()

    def _fits(self, session: RefineSession) -> bool:
        parameters = self._parameterNode
        nodes = session.volumeNode, session.segmentationNode
        chosen = parameters.inputVolume, parameters.segmentation
        return not session.closed and nodes == chosen and self._isChosen(session.grid)

    def _isChosen(self, grid: SliceGrid) -> bool:
        axis = self._parameterNode.axis.value
        return grid.axis == (grid.geometry.coarsest_axis if axis is None else axis)

    def _reopen(self) -> None:
        """Go on with boxes that are in the scene."""
        parameters = self._parameterNode
        for node in slicer_refine_logic.saved_boxes():
            nodes = node.GetNodeReference(VOLUME), node.GetNodeReference(SEGMENTATION)
            if None in nodes or nodes != (parameters.inputVolume, parameters.segmentation):
                continue
            try:
                saved = organs_from_json(node.GetParameter(BOXES), f'"{node.GetName()}"')
                if not self._isChosen(saved.grid):
                    continue
                session = slicer_refine_logic.open_boxes(node)
            except SRCSMError as error:
                self.panel.show_message(str(error))
                continue
            self._use(session)
            parameters.mask_threshold = shown_mask_threshold(session)
            parameters.neighbours = Neighbours(session.settings.neighbours)
            return

    def _use(self, session: RefineSession) -> None:
        self.session, self._result = session, ""
        session.changed, session.message = self._show, self.panel.show_message

    def _configure(self) -> None:
        parameters, session = self._parameterNode, self.session
        session.configure(self._chosen(session.settings))
        session.live = parameters.live
        session.ahead = not self._lackingForSam()
        organs = [organ.value for organ in session.organs]
        if parameters.organ in organs:
            session.active = parameters.organ

    def _chosen(self, settings: Settings) -> Settings:
        """Return settings with what was chosen in the panel; the others stay."""
        parameters = self._parameterNode
        return replace(
            self.sams.chosen_in(settings),
            mask_threshold=round(parameters.mask_threshold, 2),
            device=parameters.device.value,
            neighbours=parameters.neighbours.value,
        )

    def _close(self) -> None:
        if self.session is not None:
            self.session.changed = lambda: None
            self.session.close()
            self.session = None

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Show what goes wrong meanwhile; it changed nothing."""
        self.panel.show_message("")
        try:
            yield
        except SRCSMError as error:
            self.panel.show_message(str(error))

    # What is shown

    def _show(self) -> None:
        """Show everything; called whenever anything changes."""
        parameters, panel = self._parameterNode, self.panel
        if parameters is None:
            return
        if self.session is not None and self.session.closed:
            self.session = None
        session = self.session
        shown = shown_mask_threshold(session) if session else None
        if session is not None and shown != round(parameters.mask_threshold, 2):
            parameters.mask_threshold = shown  # it was undone
        self.sams.show(parameters.sam)
        organs = session.organs if session else ()
        panel.show_organs(organs, (session.active or 0) if session else 0)
        panel.show_new_organs(self._organNames(organs))
        panel.show_organ_help(self._help())
        panel.show_warnings(self._warnings())
        panel.show_axis(self._axisText())
        panel.show_running(session is not None and session.run is not None)
        panel.show_before(session is not None and session.before_shown)
        panel.show_result(self._result)
        if session is not None:
            organ = session.organ(session.active) if session.active else None
            panel.show_slice(session.slice, session.grid, organ)
            panel.show_embeddings(session.embeddings if session.ahead else {})
        self._showButtons()

    def _showButtons(self) -> None:
        parameters = self._parameterNode
        make = _("Make boxes") if parameters.segmentation else _("Start without boxes")
        self.ui.boxesButton.text = make
        show_buttons(self.panel, self.session, self._lackingForBoxes(), self._lackingForSam())

    def _lackingForBoxes(self) -> list[str]:
        volume = self._parameterNode.inputVolume
        if volume is None:
            return [_("Choose a volume.")]
        try:
            node_geometry(volume)
        except VolumeError as error:
            return [str(error)]
        return []

    def _lackingForSam(self) -> list[str]:
        return self.lackingPackages() + self.sams.lacking()

    def _warnings(self) -> list[str]:
        parameters = self._parameterNode
        if self.session is not None or self._lackingForBoxes() or parameters.segmentation is None:
            return []
        volume = parameters.inputVolume
        if fits(parameters.segmentation, volume, node_geometry(volume)):
            return []
        return [
            _(
                "The segmentation does not lie on the volume's grid. It stays as it is; its "
                "organs are copied to a new one, which is refined."
            )
        ]

    def _help(self) -> str:
        if self.session is None:
            return ""
        if not self.session.organs:
            return _("Add an organ, then move its box over it.")
        if all(organ.report is None for organ in self.session.organs):
            return _(
                "Scroll through the slices and drag what does not fit: a slice's own box in the "
                "slice views, the box around the whole organ in the other views."
            )
        return ""

    def _axisText(self) -> str:
        parameters = self._parameterNode
        if self._lackingForBoxes():
            return ""
        geometry = node_geometry(parameters.inputVolume)
        axis = parameters.axis.value
        grid = SliceGrid(geometry, geometry.coarsest_axis if axis is None else axis)
        plane = PLANES[int(abs(geometry.direction[:, grid.axis]).argmax())]
        return _("{n} {plane} slices, {mm:.1f} mm apart").format(
            n=grid.count, plane=plane, mm=grid.thickness
        )

    def _organNames(self, organs: tuple[Organ, ...]) -> list[str]:
        """Names that a missed organ may have."""
        known = models.model_cards().values()
        names = dict.fromkeys(organ.name for card in known for organ in card.organs)
        taken = {organ.name.replace(" ", "_") for organ in organs}
        return [name for name in names if name not in taken]

    # Keys

    def _keys(self) -> list[tuple[str, str, "qt.QPushButton"]]:
        """Key, what it does, and the button it stands for; Slicer's views use none of them."""
        return [
            ("P", _("previous slice to check"), self.ui.previousUncertainButton),
            ("N", _("next slice to check"), self.ui.nextUncertainButton),
            ("D", _("redraw the organ"), self.ui.refineOrganButton),
            ("Z", _("undo"), self.ui.undoButton),
            ("Y", _("redo"), self.ui.redoButton),
            ("C", _("compare before and after"), self.ui.beforeButton),
        ]

    def _installShortcuts(self) -> None:
        window = slicer.util.mainWindow()
        for key, _does, button in self._keys() if window else ():
            shortcut = qt.QShortcut(window)
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", lambda button=button: button.click())
            self._shortcuts.append(shortcut)

    def _removeShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    # What the user does

    def onSamPicked(self, key: str) -> None:
        """Another SAM, or one came or went."""
        if self._parameterNode is not None:
            self._parameterNode.sam = key
            self.update()

    def onMakeBoxes(self) -> None:
        """Boxes around the segments, or none yet to begin with."""
        parameters = self._parameterNode
        with self._telling():
            session = self.logic.boxes(
                parameters.segmentation,
                parameters.inputVolume,
                axis=parameters.axis.value,
                settings=self._chosen(Settings()),
            )
            self._use(session)
            parameters.segmentation = session.segmentationNode
            align_views(session.volumeNode)
            boxes = session.organ(session.active).frames.effective() if session.active else {}
            if boxes and session.slice not in boxes:
                session.jump(sorted(boxes)[len(boxes) // 2])
        self.update()

    def onOrganTicked(self, item: "qt.QTableWidgetItem") -> None:
        """An organ is to be shown, used or kept, or is not any more."""
        ticked = self.panel.ticked(item)
        if ticked is None:
            return
        name, value = ticked
        calls = {
            "shown": self.session.set_shown,
            "enabled": self.session.set_enabled,
            "kept": self.session.keep_coarse,
        }
        with self._telling():
            calls[name](self.panel.organ_of(item), value)
        self._show()

    def onOrganChosen(self) -> None:
        """Another organ is to be corrected."""
        if self.session is not None and (value := self.panel.selected_organ()):
            self.session.active = self._parameterNode.organ = value

    def onOrganNamed(self, text: str) -> None:
        """A name for a missed organ is typed."""
        self._showButtons()

    def onAddOrgan(self) -> None:
        """An organ that was missed, in the ROI that the user drew, if there is one."""
        roi = drawn_roi()
        block = None if roi else middle_block(self.session)
        with self._telling():
            value = self.session.add_organ(self.panel.new_organ(), block, roi)
            self._parameterNode.organ = value

    def onRemoveOrgan(self) -> None:
        """The organ is to have no boxes any more."""
        self.session.remove_organ(self.session.active)

    def onResetOrgan(self) -> None:
        """Back to the organ's automatic boxes."""
        self.session.reset(self.session.active)

    def onResetAll(self) -> None:
        """Back to the automatic boxes of all."""
        self.session.reset()

    def onPreviousUncertain(self) -> None:
        """Look at the uncertain slice before this one."""
        self.session.next_uncertain(-1)

    def onNextUncertain(self) -> None:
        """Look at the next uncertain slice."""
        self.session.next_uncertain(1)

    def onAddBox(self) -> None:
        """A box in this slice."""
        with self._telling():
            self.session.add_slice_box(self.session.active)

    def onRemoveBox(self) -> None:
        """No box in this slice."""
        self.session.switch_off(self.session.active)

    def onResetBox(self) -> None:
        """The automatic box in this slice."""
        self.session.reset(self.session.active, self.session.slice)

    def onPositivePoint(self) -> None:
        """The next click into a view is a point in the organ."""
        self._placePoint(True)

    def onNegativePoint(self) -> None:
        """The next click into a view is a point beside the organ."""
        self._placePoint(False)

    def _placePoint(self, positive: bool) -> None:
        markups = slicer.modules.markups.logic()
        markups.SetActiveList(self.session.points.node(positive))
        markups.StartPlaceMode(False)

    def onClearPoints(self) -> None:
        """No points any more."""
        self.session.clear_points(self.session.active)

    # The run

    def onRefineOrgan(self) -> None:
        """Redraw the organ that is being corrected."""
        self._refine([self.session.active])

    def onRefineAll(self) -> None:
        """Redraw all organs that are ticked."""
        self._refine(None)

    def _refine(self, values: list[int] | None) -> None:
        self._result = ""
        self.panel.show_progress("", 0.0, None)
        with self._telling():
            self.logic.refine(
                self.session,
                values,
                progress=self.panel.show_progress,
                log=self.panel.log,
                done=self.onDone,
                wait=False,
            )
        self._show()

    def onCancel(self) -> None:
        """Stop the run, if there is one; the scene stays as it is."""
        if self.session is not None:
            self.session.cancel()

    def onDone(self, run: RefineRun) -> None:
        """The run is finished, in whatever way."""
        if run.error is None:
            refined = [o for o in run.session.organs if o.value in run.values and o.report]
            self._result = " ".join([refined_text(refined), *run.messages])
            self.panel.log(self._result)
        elif run.error.kind == "Cancelled":
            self.panel.log(str(run.error))
        else:
            self.panel.show_message(f"{run.error} {run.error.remedy}")
            self.panel.log(f"{run.error}\n{run.error.details}")
        self._show()

    # The result

    def onUndo(self) -> None:
        """Take back the last step."""
        self._result = ""
        self.session.undo()

    def onRedo(self) -> None:
        """Do it again."""
        self.session.redo()

    def onBefore(self) -> None:
        """Show the state before, or that of now."""
        self.session.show_before(not self.session.before_shown)

    def onEdit(self) -> None:
        """Open the segmentation in Slicer's Segment Editor."""
        edit_segmentation(self.session.segmentationNode, self.session.volumeNode)


class SAMRefineLogic(ScriptedLoadableModuleLogic):
    """Refinement without widgets; see the README for a script to paste."""

    def getParameterNode(self) -> Parameters:
        """Return the panel's state in this scene."""
        node = super().getParameterNode()
        rename_old_parameters(node)
        return Parameters(node)

    boxes = staticmethod(slicer_refine_logic.boxes)
    savedBoxes = staticmethod(slicer_refine_logic.saved_boxes)
    openBoxes = staticmethod(slicer_refine_logic.open_boxes)
    refine = staticmethod(slicer_refine_logic.refine)

    def stop(self) -> None:
        """End the worker; the next refinement starts it again."""
        worker_host.stop_worker()


class SAMRefineTest(ScriptedLoadableModuleTest):
    """Run by "Reload and Test" and by CTest, inside Slicer; the panel's tests are in Testing."""

    def runTest(self) -> None:
        """What "Reload and Test" calls."""
        self.setUp()
        self.test_boxes_of_the_phantom_are_refined()

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_boxes_of_the_phantom_are_refined(self) -> None:
        """From the sample data to a refined segmentation, by the worker."""
        requirements = Path(__file__).with_name("Resources") / "sam-requirements.txt"
        if missing := packages.missing(requirements):
            self.skipTest(f"not installed: {', '.join(missing)}")
        volume, logic = load_phantom("MR"), SAMRefineLogic()
        session = logic.boxes(slicer_logic.segment(volume, model="abdomen-ct"), volume)
        node = logic.refine(session)
        assert node is session.segmentationNode
        assert all(organ.report is not None for organ in session.organs if organ.frames.effective())
        session.close()


def _segmentationOf(
    volume: "slicer.vtkMRMLScalarVolumeNode",
) -> "slicer.vtkMRMLSegmentationNode | None":
    """The first that was drawn on a volume."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume:
            return node
    return None


def shown_mask_threshold(session: RefineSession) -> float:
    """Return where the slider stands for a session's value, which a script may have set."""
    return round(min(max(session.settings.mask_threshold, 0.05), 0.95), 2)


def drawn_roi() -> "slicer.vtkMRMLMarkupsROINode | None":
    """The ROI that was drawn last with Slicer's markups toolbar."""
    selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
    node = selection and slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
    if node is None or not node.IsA("vtkMRMLMarkupsROINode") or min(node.GetSize()) <= 0:
        return None
    return None if node.GetAttribute(BOUND) or node.GetAttribute(SLICE_BOX) else node


def middle_block(session: RefineSession) -> Box3D:
    """A third of the slice that is shown, in its middle, and a tenth of the slices around it."""
    grid, n = session.grid, session.slice
    reach = max(1, grid.count // 20)
    rows, columns = grid.shape
    box = Box(columns / 3, rows / 3, columns * 2 / 3, rows * 2 / 3)
    return grid.block(box, max(0, n - reach), min(grid.count - 1, n + reach))
