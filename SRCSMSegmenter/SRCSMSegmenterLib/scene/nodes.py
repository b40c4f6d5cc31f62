# SPDX-License-Identifier: Apache-2.0
"""Volume and segmentation nodes of Slicer's scene as the engine sees them; nothing is changed.

A volume is segmented on its own grid, IJK to RAS, without the transforms above it: those move it
about in the world, and the result, which observes the same transform, moves with it.

Main thread only, as all of MRML.
"""

import slicer
import vtk

from ..errors import VolumeError
from ..geometry import Geometry, Volume
from .aside import Aside, directly

BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
GRID = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()

ORGAN_TAG = "SRCSM.Organ"
"""Segment tag: the organ that a result put here. Segments without it are the user's."""

OWN_SUFFIX = " (SRCSM)"
"""End of the name of a segment that a result put beside one of the user's with the same name."""


def read_volume(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    frame: int | None = None,
    aside: Aside = directly,
) -> Volume:
    """Copy a node's voxels on the node's own grid, transforms above it left out.

    A copy, because another thread sends it while the user may edit or delete the node.

    Args:
        frame: of the sequence that the node shows; None for the one shown now.
        aside: copies the voxels.

    Returns:
        (K, J, I) in the node's voxel type.

    Raises:
        VolumeError: no scalar volume, without voxels, or no such frame.
    """
    node = frame_node(volume_node, frame)
    geometry = node_geometry(node)
    return Volume(aside(slicer.util.arrayFromVolume(node).copy), geometry)


def node_geometry(node: slicer.vtkMRMLScalarVolumeNode) -> Geometry:
    """Return the grid of a volume node, transforms above it left out.

    Raises:
        VolumeError: no scalar volume, or without voxels.
    """
    # Label maps and vector volumes are derived from scalar volumes, so IsA would let them through.
    if node is None or node.GetClassName() != "vtkMRMLScalarVolumeNode":
        given = "nothing" if node is None else f'"{node.GetName()}", a {node.GetNodeTagName()},'
        raise VolumeError(f"Only scalar volumes can be segmented; {given} was given.")
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise VolumeError(f'The volume "{node.GetName()}" has no voxels; load it again.')
    if image.GetNumberOfScalarComponents() != 1:
        raise VolumeError(f'The volume "{node.GetName()}" does not have one number a voxel.')
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    affine = slicer.util.arrayFromVTKMatrix(matrix)
    affine[:3, 3] += affine[:3, :3] @ image.GetExtent()[::2]  # 0, but for images that were cut out
    return Geometry(image.GetDimensions(), affine)


def frame_count(volume_node: slicer.vtkMRMLScalarVolumeNode) -> int:
    """Count the frames of the sequence that a volume shows; 0 if it shows none."""
    sequence = sequence_of(volume_node)
    return sequence.GetNumberOfDataNodes() if sequence else 0


def frame_node(
    volume_node: slicer.vtkMRMLScalarVolumeNode, frame: int | None
) -> slicer.vtkMRMLScalarVolumeNode:
    """Return the node that holds a frame, without showing it.

    Raises:
        VolumeError: no such frame.
    """
    if frame is None:
        return volume_node
    count = frame_count(volume_node)
    if not 0 <= frame < count:
        raise VolumeError(
            f'There is no frame {frame} of "{volume_node.GetName()}": it shows a sequence of '
            f"{count}, counted from 0."
        )
    return sequence_of(volume_node).GetNthDataNode(frame)


def browser_of(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> slicer.vtkMRMLSequenceBrowserNode | None:
    """Return the browser of the sequence that a volume shows; None if it shows none."""
    return slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume_node)


def sequence_of(
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> slicer.vtkMRMLSequenceNode | None:
    """Return the sequence that a volume shows; None if it shows none."""
    browser = browser_of(volume_node)
    return browser.GetSequenceNode(volume_node) if browser else None


def reference_geometry(node: slicer.vtkMRMLSegmentationNode) -> Geometry | None:
    """Return the grid that a segmentation is drawn on; None if none is set."""
    grid = node.GetSegmentation().GetConversionParameter(GRID)
    if not grid:
        return None
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(grid, image, False)
    image.GetImageToWorldMatrix(matrix)
    affine = slicer.util.arrayFromVTKMatrix(matrix)
    affine[:3, 3] += affine[:3, :3] @ image.GetExtent()[::2]
    return Geometry(image.GetDimensions(), affine)


def check_target(
    node: slicer.vtkMRMLSegmentationNode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> None:
    """Check that a result on this grid can be put into a segmentation.

    Raises:
        VolumeError: the segmentation lies elsewhere than the volume, or holds only surfaces.
    """
    segmentation, name = node.GetSegmentation(), node.GetName()
    if segmentation.GetNumberOfSegments() == 0:
        return
    if segmentation.GetSourceRepresentationName() != BINARY:
        raise VolumeError(
            f'The segmentation "{name}" is made of surfaces, not of voxels; choose a new one.'
        )
    grid = reference_geometry(node)
    same_transform = node.GetTransformNodeID() == volume_node.GetTransformNodeID()
    # Slicer mirrors left-handed volumes when it reads them, but not segmentations.
    voxels = (geometry, geometry.mirrored())
    if not same_transform or (grid is not None and not any(map(grid.matches, voxels))):
        raise VolumeError(
            f'The segmentation "{name}" does not lie on the grid of "{volume_node.GetName()}"; '
            "choose a new one."
        )


def organ_segments(segmentation: slicer.vtkSegmentation) -> dict[str, str]:
    """Return organ's name -> ID of its segment, of those that results put there."""
    segments, organ = {}, vtk.reference("")
    for id in segmentation.GetSegmentIDs():
        if segmentation.GetSegment(id).GetTag(ORGAN_TAG, organ):
            segments[str(organ)] = id
    return segments
