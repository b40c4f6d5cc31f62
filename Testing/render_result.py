# SPDX-License-Identifier: Apache-2.0
"""Draw what Slicer shows of a result: three slice views and a 3-D view, with Slicer's own nodes
and displayable managers, into a PNG; neither Slicer nor a screen is needed.

    python Testing/render_result.py Resources/Screenshots/SRCSMSegmenter-MR.png

Shown is the phantom, as in the Sample Data module. VTK draws through EGL; on Debian that is
`apt-get install libegl1 libgl1-mesa-dri`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer_scene_fixture import start_scene

from SRCSMSegmenterLib import slicer_logic, slicer_scene
from SRCSMSegmenterLib.slicer_samples import load_phantom

SIDE = 500
"""Pixels of a view; drawn twice as large, for smooth edges."""

ACROSS_MM = 330.0
UP = (0, 0, 25)
"""mm from the right kidney's middle to where the planes meet: through as many organs as can be."""

VIEWS = {"Axial": (0, 1), "Coronal": (0, 0), "Sagittal": (1, 0)}
"""Slice views and their places, column and row from below, as in Slicer's Four-Up layout."""

COLORS = {"Axial": (0.953, 0.290, 0.200), "Coronal": (0.431, 0.690, 0.294)}
COLORS |= {"Sagittal": (0.929, 0.835, 0.298)}


def main() -> None:
    """Segment the phantom and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--modality", choices=("CT", "MR"), default="MR")
    parser.add_argument("--model", default="abdomen-ct")
    options = parser.parse_args()
    start_scene()
    try:
        volume = load_phantom(options.modality)
        segmentation = slicer_logic.segment(volume, model=options.model)
    finally:
        slicer_logic.stop_worker()
    draw(volume, segmentation, options.output)


def draw(
    volume: slicer.vtkMRMLScalarVolumeNode,
    segmentation: slicer.vtkMRMLSegmentationNode,
    output: Path,
) -> None:
    """Write the four views of a volume with its segmentation as a PNG.

    Raises:
        RuntimeError: VTK cannot draw here.
    """
    application = slicer.mrmlScene.kept[0]
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetMultiSamples(8)
    window.SetSize(4 * SIDE, 4 * SIDE)
    window.SetInteractor(vtk.vtkGenericRenderWindowInteractor())  # displayable managers want one
    point = np.add(_middle(segmentation, "right_kidney"), UP)
    kept = [
        _slice_view(window, application, name, place, volume, point)
        for name, place in VIEWS.items()
    ]
    kept.append(_view_3d(window, application, segmentation, (1, 1)))
    window.Render()
    if not window.SupportsOpenGL():
        raise RuntimeError("VTK cannot draw here; see the packages at the top of this file.")
    image = vtk.vtkWindowToImageFilter()
    image.SetInput(window)
    image.ReadFrontBufferOff()
    half = vtk.vtkImageResize()
    half.SetInputConnection(image.GetOutputPort())
    half.SetOutputDimensions(2 * SIDE, 2 * SIDE, 1)
    writer = vtk.vtkPNGWriter()
    writer.SetInputConnection(half.GetOutputPort())
    writer.SetFileName(str(output))
    writer.Write()
    del kept


def _middle(segmentation: slicer.vtkMRMLSegmentationNode, organ: str) -> tuple[float, ...]:
    """RAS mm of the middle of an organ."""
    id = slicer_scene.organ_segments(segmentation.GetSegmentation())[organ]
    return segmentation.GetSegmentCenterRAS(id)


def _slice_view(
    window: vtk.vtkRenderWindow,
    application: slicer.vtkSlicerApplicationLogic,
    name: str,
    place: tuple[int, int],
    volume: slicer.vtkMRMLScalarVolumeNode,
    point: np.ndarray,
) -> object:
    scene = slicer.mrmlScene
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLScene(scene)
    logic.SetMRMLApplicationLogic(application)
    node = logic.AddSliceNode(name)
    node.SetOrientation(name)
    node.SetDimensions(2 * SIDE, 2 * SIDE, 1)
    node.SetFieldOfView(ACROSS_MM, ACROSS_MM, 1)
    node.JumpSliceByCentering(*slicer_scene.node_geometry(volume).centre)
    node.JumpSliceByOffsetting(*point)
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    logic.UpdatePipeline()

    renderer = _renderer(window, place)
    mapper = vtk.vtkImageMapper()
    mapper.SetInputConnection(logic.GetImageDataConnection())
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    renderer.AddViewProp(actor)
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    factory.SetMRMLApplicationLogic(application)
    if not factory.IsDisplayableManagerRegistered("vtkMRMLSegmentationsDisplayableManager2D"):
        factory.RegisterDisplayableManager("vtkMRMLSegmentationsDisplayableManager2D")
    group = factory.InstantiateDisplayableManagers(renderer)
    group.SetMRMLDisplayableNode(node)
    _write(renderer, name, 0.02, 0.02, COLORS[name])
    return logic, group


def _view_3d(
    window: vtk.vtkRenderWindow,
    application: slicer.vtkSlicerApplicationLogic,
    segmentation: slicer.vtkMRMLSegmentationNode,
    place: tuple[int, int],
) -> object:
    segmentation.CreateClosedSurfaceRepresentation()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
    renderer = _renderer(window, place)
    renderer.GradientBackgroundOn()
    renderer.SetBackground(node.GetBackgroundColor())
    renderer.SetBackground2(node.GetBackgroundColor2())
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    factory.SetMRMLApplicationLogic(application)
    if not factory.IsDisplayableManagerRegistered("vtkMRMLSegmentationsDisplayableManager3D"):
        factory.RegisterDisplayableManager("vtkMRMLSegmentationsDisplayableManager3D")
    group = factory.InstantiateDisplayableManagers(renderer)
    group.SetMRMLDisplayableNode(node)
    camera = renderer.GetActiveCamera()
    camera.SetPosition(0, 1, 0)  # from the front
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Azimuth(-15)
    camera.Elevation(10)
    camera.Zoom(1.3)
    renderer.ResetCameraClippingRange()
    segments = segmentation.GetSegmentation()
    for row, measure in enumerate(slicer_scene.measures(segmentation)):
        segment = segments.GetSegment(slicer_scene.organ_segments(segments)[measure.name])
        text = f"{segment.GetName()}  {measure.volume_ml:.0f} ml"
        _write(renderer, text, 0.6, 0.19 - 0.05 * row, (0.1, 0.1, 0.2))
    return group


def _write(
    renderer: vtk.vtkRenderer, text: str, x: float, y: float, color: tuple[float, float, float]
) -> None:
    """Text at (x, y), shares of the view's sides."""
    actor = vtk.vtkTextActor()
    actor.SetInput(text)
    actor.GetTextProperty().SetFontSize(SIDE // 14)
    actor.GetTextProperty().SetColor(color)
    actor.GetTextProperty().SetFontFamilyToArial()
    actor.GetTextProperty().SetBold(True)
    actor.SetPosition(x * 2 * SIDE, y * 2 * SIDE)
    renderer.AddViewProp(actor)


def _renderer(window: vtk.vtkRenderWindow, place: tuple[int, int]) -> vtk.vtkRenderer:
    column, row = place
    renderer = vtk.vtkRenderer()
    renderer.SetViewport(column / 2, row / 2, (column + 1) / 2, (row + 1) / 2)
    window.AddRenderer(renderer)
    return renderer


if __name__ == "__main__":
    sys.exit(main())
