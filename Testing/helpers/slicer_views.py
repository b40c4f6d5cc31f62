# SPDX-License-Identifier: Apache-2.0
"""Slicer's slice and 3-D views in VTK windows without a screen, for pictures.

Slicer's own nodes and displayable managers draw; only the windows around them are ours, one for
each view, as in Slicer. VTK draws through EGL; on Debian that is
`apt-get install libegl1 libgl1-mesa-dri`.
"""

from pathlib import Path

import numpy as np
import slicer
import vtk
from PIL import Image
from vtk.util.numpy_support import vtk_to_numpy

SMOOTH = 2
"""All is drawn so many times as large, for smooth edges."""

COLORS = {
    "Axial": (0.953, 0.290, 0.200),
    "Coronal": (0.431, 0.690, 0.294),
    "Sagittal": (0.929, 0.835, 0.298),
}


class View:
    """A square view in a window that nobody sees.

    Attributes:
        side: in pixels of the picture.
    """

    def __init__(self, side: int) -> None:
        """Nothing is to be seen yet."""
        self.side = side
        self._application = slicer.mrmlScene.kept[0]
        self._kept: list[object] = []
        markups = slicer.modules.markups.logic()
        if not markups.IsMarkupsNodeRegistered("vtkMRMLMarkupsROINode"):
            # As the module of the Markups does.
            markups.RegisterMarkupsNode(slicer.vtkMRMLMarkupsROINode(), slicer.vtkSlicerROIWidget())
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(True)
        self._window.SetMultiSamples(8)
        self._window.SetSize(SMOOTH * side, SMOOTH * side)
        # Displayable managers want one.
        self._window.SetInteractor(vtk.vtkGenericRenderWindowInteractor())
        self._renderer = vtk.vtkRenderer()
        self._window.AddRenderer(self._renderer)

    def show_slice(
        self,
        name: str,
        volume: slicer.vtkMRMLScalarVolumeNode,
        point: np.ndarray,
        centre: np.ndarray,
        across_mm: float,
        *,
        along_volume: bool = False,
    ) -> None:
        """Be a slice view.

        Args:
            name: "Axial", "Coronal" or "Sagittal".
            point: RAS, which the slice goes through.
            centre: RAS, which is in the middle of the view.
            along_volume: turned into the volume's own plane.
        """
        scene = slicer.mrmlScene
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(self._application)
        node = logic.AddSliceNode(name)
        node.SetOrientation(name)
        if along_volume:
            node.RotateToVolumePlane(volume)
        node.SetDimensions(SMOOTH * self.side, SMOOTH * self.side, 1)
        node.SetFieldOfView(across_mm, across_mm, 1)
        node.JumpSliceByCentering(*centre)
        node.JumpSliceByOffsetting(*point)
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        logic.UpdatePipeline()
        mapper = vtk.vtkImageMapper()
        mapper.SetInputConnection(logic.GetImageDataConnection())
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddViewProp(actor)
        self._renderer.GetActiveCamera().ParallelProjectionOn()  # in which handles are drawn
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        self._manage(factory, node, "vtkMRMLSegmentationsDisplayableManager2D")
        self._kept.append(logic)

    def show_3d(self, zoom: float = 1.3, turned: float = -15) -> None:
        """Be a 3-D view of all that is there, from the front.

        Args:
            turned: degrees to the patient's left.
        """
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
        node.SetBoxVisible(False)
        renderer = self._renderer
        renderer.SetBackground(node.GetBackgroundColor())  # of its gradient the lower end
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        self._manage(factory, node, "vtkMRMLSegmentationsDisplayableManager3D")
        camera = renderer.GetActiveCamera()
        camera.SetPosition(0, 1, 0)
        camera.SetViewUp(0, 0, 1)
        renderer.ResetCamera()
        camera.Azimuth(turned)
        camera.Elevation(10)
        camera.Zoom(zoom)
        renderer.ResetCameraClippingRange()

    def write(
        self, text: str, x: float, y: float, color: tuple[float, float, float], size: int = 0
    ) -> vtk.vtkTextActor:
        """Text at (x, y), shares of the view's sides; `size` in pixels of the picture."""
        actor = vtk.vtkTextActor()
        actor.SetInput(text)
        style = actor.GetTextProperty()
        style.SetFontSize(SMOOTH * (size or self.side // 28))
        style.SetColor(color)
        style.SetFontFamilyToArial()
        style.SetBold(True)
        actor.SetPosition(x * SMOOTH * self.side, y * SMOOTH * self.side)
        self._renderer.AddViewProp(actor)
        return actor

    def picture(self) -> np.ndarray:
        """What is to be seen now, uint8 (rows, columns, 3).

        Raises:
            RuntimeError: VTK cannot draw here.
        """
        self._window.Render()
        if not self._window.SupportsOpenGL():
            raise RuntimeError("VTK cannot draw here; see the packages at the top of this file.")
        image = vtk.vtkWindowToImageFilter()
        image.SetInput(self._window)
        image.ReadFrontBufferOff()
        image.Update()
        found = image.GetOutput()
        columns, rows, _ = found.GetDimensions()
        pixels = vtk_to_numpy(found.GetPointData().GetScalars()).reshape(rows, columns, 3)[::-1]
        # Means of SMOOTH x SMOOTH pixels.
        blocks = pixels.reshape(rows // SMOOTH, SMOOTH, columns // SMOOTH, SMOOTH, 3)
        return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

    def _manage(self, factory: object, node: slicer.vtkMRMLNode, segments: str) -> None:
        factory.SetMRMLApplicationLogic(self._application)
        for name in (segments, "vtkMRMLMarkupsDisplayableManager"):
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        group = factory.InstantiateDisplayableManagers(self._renderer)
        group.SetMRMLDisplayableNode(node)
        self._kept.append(group)


def save(picture: np.ndarray, output: Path) -> None:
    """Write a small PNG: scans are noise, which takes up most of a file in true colours."""
    few = Image.fromarray(picture).quantize(
        256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
    )
    few.save(output, optimize=True)
