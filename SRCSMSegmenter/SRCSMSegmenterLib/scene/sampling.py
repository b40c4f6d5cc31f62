# SPDX-License-Identifier: Apache-2.0
"""Segments of the scene, sampled on the grid of a volume."""

from collections.abc import Iterator

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..geometry import Geometry
from .nodes import BINARY, node_geometry

Block = tuple[slice, slice, slice]
"""Position of a block in a (K, J, I) array."""


SLAB = 1 << 22
"""Voxels that are sampled at a time: they take some milliseconds."""


def any_mask_slabs(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    id: str,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> Iterator[np.ndarray]:
    """Sample a segment of any segmentation, of voxels or surfaces, on a volume's grid.

    Yields:
        bool (k, J, I), slab by slab along K of the volume.
    """
    segmentation = segmentation_node.GetSegmentation()
    voxels = segmentation.ContainsRepresentation(BINARY)
    if not voxels:
        segmentation.CreateRepresentation(BINARY)
    segment, geometry = segmentation.GetSegment(id), node_geometry(volume_node)
    image, label = segment.GetRepresentation(BINARY), segment.GetLabelValue()
    if not voxels:
        segmentation.RemoveRepresentation(BINARY)  # it was made above
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode(), transform
    )
    count, rows, columns = geometry.shape
    planes = max(1, SLAB // (rows * columns))
    for k in range(0, count, planes):
        block = slice(k, min(k + planes, count)), slice(0, rows), slice(0, columns)
        yield sampled(image, geometry, block, transform) == label


def frame_image(
    first: tuple[int, int, int], shape: tuple[int, int, int], geometry: Geometry
) -> slicer.vtkOrientedImageData:
    """Make an image of a block, without voxels."""
    image = slicer.vtkOrientedImageData()
    ends = [(n, n + m - 1) for n, m in zip(first[::-1], shape[::-1], strict=True)]
    image.SetExtent(*sum(ends, ()))
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(geometry.affine))
    return image


def sampled(
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
    frame = frame_image(tuple(part.start for part in block), shape, geometry)
    on_grid = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, frame, on_grid, False, False, transform
    )
    return vtk_to_numpy(on_grid.GetPointData().GetScalars()).reshape(shape)
