# SPDX-License-Identifier: Apache-2.0
"""Segments as masks on a volume's grid."""

from collections.abc import Mapping, Sequence

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.nodes import (
    BINARY,
    GRID,
    check_target,
    node_geometry,
    reference_geometry,
)

from ..boxes.patches import Patch

Block = tuple[slice, slice, slice]
"""Position of a block in a (K, J, I) array."""


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
            layers[image] = _sampled(image, geometry, block)
        masks[id] = layers[image] == segment.GetLabelValue()
    return masks


def any_mask(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    id: str,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> np.ndarray:
    """Sample a segment of any segmentation, of voxels or surfaces, on a volume's grid.

    Returns:
        bool (K, J, I) of the volume.
    """
    segmentation = segmentation_node.GetSegmentation()
    voxels = segmentation.ContainsRepresentation(BINARY)
    if not voxels:
        segmentation.CreateRepresentation(BINARY)
    segment, geometry = segmentation.GetSegment(id), node_geometry(volume_node)
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode(), transform
    )
    block = tuple(slice(0, n) for n in geometry.shape)
    sampled = _sampled(segment.GetRepresentation(BINARY), geometry, block, transform)
    mask = sampled == segment.GetLabelValue()
    if not voxels:
        segmentation.RemoveRepresentation(BINARY)  # it was made above
    return mask


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
    frame, matrix = _frame((0, 0, 0), geometry.shape, geometry), vtk.vtkMatrix4x4()
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
    image = _frame((k, j, i), mask.shape, geometry)
    scalars = np.ascontiguousarray(mask, np.uint8).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(scalars, deep=True))
    return image


def _frame(
    first: tuple[int, int, int], shape: tuple[int, int, int], geometry: Geometry
) -> slicer.vtkOrientedImageData:
    """Make an image of a block, without voxels."""
    image = slicer.vtkOrientedImageData()
    ends = [(n, n + m - 1) for n, m in zip(first[::-1], shape[::-1], strict=True)]
    image.SetExtent(*sum(ends, ()))
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(geometry.affine))
    return image


def _sampled(
    image: slicer.vtkOrientedImageData,
    geometry: Geometry,
    block: Block,
    transform: vtk.vtkAbstractTransform | None = None,
) -> np.ndarray:
    """Sample an image at the voxels of a block, (k, j, i); 0 outside the image.

    Args:
        image: the image, or None.
        geometry: the grid.
        block: position of the block in the grid.
        transform: from the image's space to that of the grid.
    """
    shape = tuple(part.stop - part.start for part in block)
    if image is None or image.GetPointData().GetScalars() is None:
        return np.zeros(shape, np.uint8)
    frame = _frame(tuple(part.start for part in block), shape, geometry)
    sampled = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, frame, sampled, False, False, transform
    )
    return vtk_to_numpy(sampled.GetPointData().GetScalars()).reshape(shape)
