# SPDX-License-Identifier: Apache-2.0
"""A MRML scene without an application: Slicer's real nodes and logics from the slicer-core wheel.

`start_scene` gives `slicer` what Slicer itself would give it and our code uses: `mrmlScene` and
`modules.<name>.logic()`. Inside Slicer all of it is there already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")

import slicer
import vtk

LOGICS = {
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
}


@cache
def start_scene() -> slicer.vtkMRMLScene:
    """The scene, `slicer.mrmlScene`, with the logics above; made once a process."""
    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = application.GetColorLogic()
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    application.SetModuleLogic("Colors", colors)
    slicer.modules = SimpleNamespace()
    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        setattr(slicer.modules, name.lower(), SimpleNamespace(logic=lambda logic=logic: logic))
    slicer.mrmlScene = scene
    # What reads files, .mrb among them.
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLScene(scene)
    remote.AddDataIOToScene()
    data.SetMRMLApplicationLogic(application)
    data.SetAndObserveDataIOManager(scene.GetDataIOManager())
    # What Slicer's subject hierarchy widget does.
    scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, _forget_item)
    scene.kept = (application, remote, data)  # Python forgets what nobody holds
    return scene


@vtk.calldata_type(vtk.VTK_OBJECT)
def _forget_item(scene: slicer.vtkMRMLScene, event: str, node: slicer.vtkMRMLNode) -> None:
    hierarchy = scene.GetSubjectHierarchyNode()
    if hierarchy and hierarchy.GetItemByDataNode(node):
        hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), False, False)


@contextmanager
def empty_scene() -> Iterator[slicer.vtkMRMLScene]:
    """The scene, empty but for its colours, before and after; any error or warning that VTK or
    MRML has to say is an error here."""
    heard, window, before = [], vtk.vtkStringOutputWindow(), vtk.vtkOutputWindow.GetInstance()
    scene = start_scene()
    scene.Clear(0)
    # Makes it. Held for good: one that is made where another was freed is taken for that one.
    scene.kept += (slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene),)
    for event in ("ErrorEvent", "WarningEvent"):
        window.AddObserver(event, lambda *_: heard.append(window.GetOutput()))
    vtk.vtkOutputWindow.SetInstance(window)
    try:
        yield scene
        scene.Clear(0)
    finally:
        vtk.vtkOutputWindow.SetInstance(before)
    assert not heard, heard[-1]
