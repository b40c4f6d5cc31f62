# SPDX-License-Identifier: Apache-2.0
"""Surfaces of segments for Slicer's 3-D views, made one after another. Main thread only."""

from collections.abc import Mapping

import slicer
import vtk

from .aside import Aside, directly
from .labelmaps import Labelmap, own_labelmaps
from .nodes import BINARY, SURFACE


def show_3d(
    segmentation_node: slicer.vtkMRMLSegmentationNode, shown: bool, aside: Aside = directly
) -> None:
    """Make the surfaces of a segmentation, and turn the 3-D views to them; or hide them.

    Raises:
        Cancelled: `aside` raised it; nothing was changed.
    """
    if shown:
        make_surfaces(segmentation_node, aside)
    segmentation_node.CreateDefaultDisplayNodes()
    segmentation_node.GetDisplayNode().SetVisibility3D(shown)
    manager = slicer.app.layoutManager() if shown and hasattr(slicer, "app") else None
    for n in range(manager.threeDViewCount if manager else 0):
        manager.threeDWidget(n).threeDView().resetFocalPoint()


def is_shown_3d(segmentation_node: slicer.vtkMRMLSegmentationNode) -> bool:
    """Tell whether the surfaces of a segmentation are shown."""
    display = segmentation_node.GetDisplayNode()
    has_surface = segmentation_node.GetSegmentation().ContainsRepresentation(SURFACE)
    return has_surface and display is not None and bool(display.GetVisibility3D())


def make_surfaces(
    segmentation_node: slicer.vtkMRMLSegmentationNode, aside: Aside = directly
) -> None:
    """Make the surfaces that segments lack; they are added when all of them are made.

    Args:
        aside: called before each of them.

    Raises:
        Cancelled: `aside` raised it; nothing was changed.
    """
    segmentation = segmentation_node.GetSegmentation()
    of_voxels = segmentation.GetSourceRepresentationName() == BINARY
    lacking = [
        id
        for id in segmentation.GetSegmentIDs()
        if of_voxels and segmentation.GetSegment(id).GetRepresentation(SURFACE) is None
    ]
    made = {}
    labelmaps = own_labelmaps(segmentation, lacking[:-1], aside)  # many times smaller than a scan
    for number, id in enumerate(labelmaps):
        aside(lambda: None, number / len(lacking))
        made[id] = _surface(segmentation, labelmaps[id])
    # Slicer's own function makes the last one, and tells its views that there are surfaces.
    add_surfaces(segmentation_node, made)
    segmentation.CreateRepresentation(SURFACE)


def surfaces_of(segmentation: slicer.vtkSegmentation) -> dict[str, vtk.vtkPolyData]:
    """Return the surfaces of segments that have one, by ID."""
    surfaces = {
        id: segmentation.GetSegment(id).GetRepresentation(SURFACE)
        for id in segmentation.GetSegmentIDs()
    }
    return {id: surface for id, surface in surfaces.items() if surface is not None}


def add_surfaces(
    segmentation_node: slicer.vtkMRMLSegmentationNode, surfaces: Mapping[str, vtk.vtkPolyData]
) -> None:
    """Give segments surfaces that were made of their voxels before."""
    for id, surface in surfaces.items():
        if (segment := segmentation_node.GetSegmentation().GetSegment(id)) is not None:
            segment.AddRepresentation(SURFACE, surface)
    if surfaces and (display := segmentation_node.GetDisplayNode()) is not None:
        display.Modified()  # by which the views look at all surfaces anew


def _surface(segmentation: slicer.vtkSegmentation, labelmap: Labelmap) -> vtk.vtkPolyData:
    """Make the surface of voxels by Slicer's rules and a segmentation's parameters."""
    segment, alone = slicer.vtkSegment(), slicer.vtkSegmentation()
    image, label = labelmap
    segment.AddRepresentation(BINARY, image)
    segment.SetLabelValue(label)
    alone.SetSourceRepresentationName(BINARY)
    alone.CopyConversionParameters(segmentation)
    alone.AddSegment(segment, "alone")
    alone.CreateRepresentation(SURFACE)
    return segment.GetRepresentation(SURFACE)
