# SPDX-License-Identifier: Apache-2.0
"""Life cycle of a module's panel, the same for both modules: scenes, packages, reloading."""

import importlib.util
import sys
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from ..errors import Cancelled, SRCSMError
from ..scene.training_set import add_to_training_set
from . import packages
from .common import STATUS_MS, CommonPanel, load_ui
from .waiting import waiting

_TRAINING_SET = "SRCSM/TrainingSet"
"""Setting: the dataset that a segmentation was added to last."""


class ModuleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Base class of the modules' widget classes.

    A module sets `panel` in `setup`, and has its own `update`, `onCancel` and `forget`.

    Attributes:
        logicClass: class of `logic`; the module's file sets it.
        logic: its `getParameterNode` gives the panel's state in the scene.
        panel: how things are shown.
        entered: True while the module is the one that is open.
        requirements: file with packages that this module needs beside those of all.
        usedBy: modules that use this one's library, and are reloaded with it; each has a function
            `register_tasks`, which tells the library of its tasks.
    """

    usedBy: tuple[str, ...] = ()
    logicClass: type | None = None
    requirements: Path | None = None

    def __init__(self, parent: "qt.QWidget | None" = None) -> None:
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel: CommonPanel | None = None
        self.entered = False
        self._parameterNode = None
        self._guiTag: int | None = None
        self._outdated = packages.outdated_slicer()
        self._missing: list[str] = []
        self._watched: slicer.vtkMRMLScalarVolumeNode | None = None
        self._updateTimer = qt.QTimer()
        self._updateTimer.singleShot = True  # of many changes at once, such as loading, the last
        self._updateTimer.connect("timeout()", self.update)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Load the .ui file and make the logic; a module continues and then calls `begin`."""
        super().setup()
        uiWidget = load_ui(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        self.logic = self.logicClass() if self.logicClass else None

    def begin(self) -> None:
        """Observe the scene, and show the panel's state in it if the module is open already."""
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        # Nodes that come one by one would be taken for choices of the user's.
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self.ui.installButton.connect("clicked()", self.onInstall)
        self.ui.cancelButton.connect("clicked()", self.onCancel)
        if self.parent.isEntered:  # it was reloaded; else Slicer calls `enter`
            self.enter()

    def enter(self) -> None:
        """Show the panel's state; Slicer calls this whenever the user opens the module."""
        self.entered = True
        self._missing = self.missingPackages(self.requirements)
        if self._outdated:
            self.panel.show_outdated(self._outdated)
        else:
            self.panel.show_missing(
                packages.described(self._missing), packages.offline_help(self._missing)
            )
        self._observe(self.logic.getParameterNode())

    def exit(self) -> None:
        """Hide; Slicer calls this whenever the user opens another module. What runs goes on."""
        self.entered = False
        self._observe(None)

    def cleanup(self) -> None:
        """End everything; Slicer calls this before it unloads or reloads the module."""
        self.onCancel()
        self.forget()
        self._observe(None)
        self.removeObservers()
        self.logic.stop()

    def onReload(self) -> None:
        """Reload the module with its library; Slicer alone would reload only the module's file."""
        _forget_library(self.moduleName)
        super().onReload()
        for user in self.usedBy:
            if user in sys.modules:
                _reload_user(user)

    def onSceneStartClose(self, caller: object = None, event: object = None) -> None:
        """Release all that is about to be deleted."""
        self.onCancel()
        self.forget()
        self.panel.show_added(None)
        self.panel.show_message("")
        self._observe(None)

    def onSceneStartImport(self, caller: object = None, event: object = None) -> None:
        """Let go of the parameter node until all that it refers to is there."""
        self._observe(None)

    def onSceneEndClose(self, caller: object = None, event: object = None) -> None:
        """Show the scene as it is now if the module is open."""
        if self.entered:
            self.enter()

    def watchVolume(self, volume: "slicer.vtkMRMLScalarVolumeNode | None") -> None:
        """Call `update` when the voxels or the place of a volume change; None watches none."""
        if volume is self._watched:
            return
        events = (
            slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
            slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
        )
        for event in events:
            if self._watched is not None:
                self.removeObserver(self._watched, event, self._onVolumeChanged)
            if volume is not None:
                self.addObserver(volume, event, self._onVolumeChanged)
        self._watched = volume

    def _onVolumeChanged(self, caller: object = None, event: object = None) -> None:
        self._updateTimer.start()

    def update(self, caller: object = None, event: object = None) -> None:
        """Show the state of the parameter node."""

    def onCancel(self) -> None:
        """Cancel what is running, if anything is; the scene stays as it is."""

    def forget(self) -> None:
        """Release what belongs to this scene."""

    def _observe(self, parameters: object) -> None:
        """Bind the panel to other parameters; None binds it to none."""
        if parameters is None:
            self.watchVolume(None)
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(
                self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.update
            )
        self._parameterNode = parameters
        if parameters is not None:
            # Unlike connectGui, this returns the tag in every version of Slicer.
            bound = {w.property("SlicerParameterName"): w for w in vars(self.ui).values()}
            bound.pop(None, None)
            self._guiTag = parameters.connectParametersToGui(bound)
            self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.update)
            self.update()

    def onInstall(self) -> None:
        """Install what is missing; the text above the button said what and how large."""
        self.panel.show_message("")
        self.panel.show_installing(True)
        slicer.app.processEvents()
        try:
            packages.install(self._missing, self.requirements)
        except Exception as error:  # of pip, light-the-torch, the network, the disk
            self.panel.show_message(str(error))
            self.panel.log(str(error))
        self.panel.show_installing(False)
        self.enter()

    def addToTrainingSet(
        self,
        segmentation: "slicer.vtkMRMLSegmentationNode",
        volume: "slicer.vtkMRMLScalarVolumeNode | None",
    ) -> None:
        """Let the user point at a dataset, and add a corrected segmentation to it."""
        settings = slicer.app.userSettings()
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(),
            _("Training set: the folder of an nnU-Net dataset, or an empty folder for a new one"),
            settings.value(_TRAINING_SET) or "",
        )
        if folder:
            settings.setValue(_TRAINING_SET, folder)
            self.addCase(segmentation, volume, folder)

    def addCase(
        self,
        segmentation: "slicer.vtkMRMLSegmentationNode",
        volume: "slicer.vtkMRMLScalarVolumeNode | None",
        folder: str,
    ) -> None:
        """Add a segmentation to a dataset, and show how to train on it, or why it does not fit."""
        self.panel.show_message("")
        self.panel.show_added(None)
        try:
            with waiting(_("Writing the volume and its organs")) as aside:
                case = add_to_training_set(volume, segmentation, folder, aside=aside)
            self.panel.show_added(case)
        except Cancelled as stopped:
            slicer.util.showStatusMessage(str(stopped), STATUS_MS)
        except SRCSMError as error:
            self.panel.show_message(str(error))

    def missingPackages(self, requirements: Path | None) -> list[str]:
        """List the packages that are not there; none if Slicer is too old to be asked."""
        return [] if self._outdated else packages.missing(requirements)

    def lackingPackages(self) -> list[str]:
        """Explain in a sentence why nothing can be computed; empty if all packages are there."""
        if self._outdated:
            return [self._outdated]
        if not self._missing:
            return []
        return [_("Install the missing packages first; see the top of the panel.")]


def _forget_library(module: str) -> None:
    """Let Python load a module's library anew when it is imported next."""
    for name in [name for name in sys.modules if name.startswith(f"{module}Lib")]:
        del sys.modules[name]


def _reload_user(module: str) -> None:
    """Reload a module that uses a library which was reloaded.

    There must not be two of one library, each with a worker and results of its own.
    """
    _forget_library(module)
    if hasattr(slicer.modules, f"{module}Widget"):
        slicer.util.reloadScriptedModule(module)
    else:  # its panel was not opened yet; Slicer's function expects one
        path = slicer.util.modulePath(module)
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    sys.modules[module].register_tasks()


def edit_segmentation(
    segmentation: "slicer.vtkMRMLSegmentationNode", volume: "slicer.vtkMRMLScalarVolumeNode | None"
) -> None:
    """Open a segmentation in Slicer's Segment Editor."""
    slicer.util.selectModule("SegmentEditor")
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(volume)
