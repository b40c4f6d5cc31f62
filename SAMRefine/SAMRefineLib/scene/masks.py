# SPDX-License-Identifier: Apache-2.0
"""Segments as masks on a volume's grid."""

from collections.abc import Mapping, Sequence

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.nodes import (
    BINARY,
    GRID,
    check_target,
    node_geometry,
    reference_geometry,
)
from SRCSMSegmenterLib.scene.sampling import Block, frame_image, sampled

from ..boxes.patches import Patch


def read_masks(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    ids: Sequence[str],
    geometry: Geometry,
    block: Block | None = None,
) -> dict[str, np.ndarray]:
    """Read segments as bool masks (k, j, i) by ID; segments that do not exist are left out.

    Args:
        segmentation_node: a segmentation that fits the grid (`check_target`).
        ids: IDs of segments.
        geometry: the grid.
        block: the part of the grid to read; None for all.
    """
    block = block or tuple(slice(0, n) for n in geometry.shape)
    segmentation = segmentation_node.GetSegmentation()
    layers: dict[object, np.ndarray] = {}  # segments that do not overlap share an image
    masks = {}
    for id in ids:
        segment = segmentation.GetSegment(id)
        if segment is None:
            continue
        image = segment.GetRepresentation(BINARY)
        if image not in layers:
            layers[image] = sampled(image, geometry, block)
        masks[id] = layers[image] == segment.GetLabelValue()
    return masks


def fits(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> bool:
    """Tell whether results on the volume's grid can be drawn into a segmentation unchanged."""
    try:
        check_target(segmentation_node, volume_node, geometry)
    except VolumeError:
        return False
    return True


def lay_on(
    segmentation_node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> None:
    """Put an empty segmentation on a volume's grid and under its transform."""
    geometry = node_geometry(volume_node)
    frame, matrix = frame_image((0, 0, 0), geometry.shape, geometry), vtk.vtkMatrix4x4()
    frame.GetImageToWorldMatrix(matrix)
    segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    role = segmentation_node.GetReferenceImageGeometryReferenceRole()
    segmentation_node.SetNodeReferenceID(role, volume_node.GetID())
    grid = slicer.vtkSegmentationConverter.SerializeImageGeometry(matrix, frame.GetExtent())
    segmentation_node.GetSegmentation().SetConversionParameter(GRID, grid)


def add_segment(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    geometry: Geometry,
    patch: Patch,
    id: str,
    name: str,
    color: Sequence[float],
    tags: Mapping[str, str] | None = None,
) -> str:
    """Add a segment and return its ID.

    Args:
        segmentation_node: the segmentation.
        geometry: the grid of the patch.
        patch: the segment's voxels.
        id: its ID, if that is free.
        name: its name.
        color: RGB, 0-1.
        tags: its tags.
    """
    segmentation, segment = segmentation_node.GetSegmentation(), slicer.vtkSegment()
    segment.SetName(name)
    segment.SetColor(*color)
    for tag, text in (tags or {}).items():
        segment.SetTag(tag, text)
    mirrored = not same_direction(segmentation_node, geometry)
    mask = patch.mask if patch.mask.size else np.zeros((1, 1, 1), bool)
    segment.AddRepresentation(BINARY, block_image(mask, patch.first, geometry, mirrored))
    segment.SetLabelValue(1)
    id = segmentation.GenerateUniqueSegmentID(id)
    segmentation.AddSegment(segment, id)
    return id


def same_direction(node: slicer.vtkMRMLSegmentationNode, geometry: Geometry) -> bool:
    """Tell whether a segmentation's K axis has the grid's direction (`check_target`)."""
    grid = reference_geometry(node)
    return grid is None or grid.left_handed == geometry.left_handed


def block_image(
    mask: np.ndarray, first: tuple[int, int, int], geometry: Geometry, mirrored: bool
) -> slicer.vtkOrientedImageData:
    """Convert a mask of a block to an image.

    Args:
        mask: bool (k, j, i).
        first: the block's first voxel (k, j, i).
        geometry: the grid that the block lies on.
        mirrored: reverse the K axis.
    """
    k, j, i = first
    if mirrored:
        mask, k = mask[::-1], geometry.size[2] - k - len(mask)
        geometry = geometry.mirrored()
    image = frame_image((k, j, i), mask.shape, geometry)
    scalars = np.ascontiguousarray(mask, np.uint8).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(scalars, deep=True))
    return image
