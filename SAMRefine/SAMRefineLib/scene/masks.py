# SPDX-License-Identifier: Apache-2.0
"""Segments as masks on a volume's grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.aside import Aside, directly
from SRCSMSegmenterLib.scene.nodes import (
    BINARY,
    GRID,
    check_target,
    node_geometry,
    reference_geometry,
)
from SRCSMSegmenterLib.scene.sampling import any_mask_slabs, frame_image, sampled

from ..boxes.patches import (
    NOTHING,
    Block,
    Patch,
    common,
    joined_patches,
    label_blocks,
    moved,
    whole_block,
)

OFF = 1e-3
"""Voxels by which an image may be off the grid and still counts as lying on it."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Voxels of an image that one or several segments share, on a volume's grid.

    Attributes:
        first: the first voxel (k, j, i).
        labels: values of the segments, (k, j, i); a view of the image if that lies on the grid.
    """

    first: tuple[int, int, int]
    labels: np.ndarray

    def within(self, block: Block) -> "Layer":
        """Return the part in a block of the grid, a view."""
        shared = common(Patch(self.first, self.labels).block, block)
        own = moved(shared, [-n for n in self.first])
        return Layer(tuple(part.start for part in shared), self.labels[own])

    def mask(self, label: int, block: Block) -> np.ndarray:
        """Return a copy of a segment in a block of the grid, bool (k, j, i)."""
        mask, part = np.zeros([part.stop - part.start for part in block], bool), self.within(block)
        place = moved(Patch(part.first, part.labels).block, [-each.start for each in block])
        np.equal(part.labels, label, out=mask[place])
        return mask


Layers = dict[str, tuple[Layer, int]]
"""By segment ID: the image that holds the segment, and its label in there."""


def read_layers(
    segmentation_node: slicer.vtkMRMLSegmentationNode, ids: Sequence[str], geometry: Geometry
) -> Layers:
    """Return the images of segments; segments that do not exist are left out.

    Nothing is copied, so that the rest can be done in another thread.

    Args:
        segmentation_node: a segmentation that fits the grid (`check_target`).
        ids: IDs of segments.
        geometry: the grid.
    """
    segmentation, grid = segmentation_node.GetSegmentation(), whole_block(geometry.shape)
    layers: dict[object, Layer] = {}  # segments that do not overlap share an image
    found: Layers = {}
    for id in ids:
        segment = segmentation.GetSegment(id)
        if segment is None:
            continue
        image = segment.GetRepresentation(BINARY)
        if image not in layers:
            layers[image] = _layer(image, geometry).within(grid)
        found[id] = layers[image], segment.GetLabelValue()
    return found


def blocks_in(layers: Layers) -> dict[str, Block]:
    """Return the smallest block of each segment on the grid; each image is searched once."""
    blocks = {layer: label_blocks(layer.labels) for layer, _ in layers.values()}
    return {
        id: moved(blocks[layer].get(label, NOTHING), layer.first)
        for id, (layer, label) in layers.items()
    }


def patches_in(layers: Layers) -> dict[str, Patch]:
    """Copy the smallest block of each segment, bool."""
    return {
        id: Patch(tuple(part.start for part in block), layers[id][0].mask(layers[id][1], block))
        for id, block in blocks_in(layers).items()
    }


def any_patch(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    id: str,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    aside: Aside = directly,
) -> Patch:
    """Sample a segment of any segmentation, of voxels or surfaces, on a volume's grid.

    Args:
        segmentation_node: the segmentation.
        id: the segment's ID.
        volume_node: the volume.
        aside: called every few milliseconds.

    Returns:
        The smallest block of the volume that shows the segment, bool.
    """
    patches, k = [], 0
    for slab in any_mask_slabs(segmentation_node, id, volume_node):
        part = Patch.of(slab)
        if part.mask.size:
            patches.append(Patch((part.first[0] + k, *part.first[1:]), part.mask))
        k += len(slab)
        aside(lambda: None)
    return joined_patches(patches)


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


def _layer(image: slicer.vtkOrientedImageData, geometry: Geometry) -> Layer:
    """Return an image on a grid: as it is if its voxels are those of the grid, else sampled."""
    if image is None or image.GetPointData().GetScalars() is None:
        return Layer((0, 0, 0), np.zeros((0, 0, 0), np.uint8))
    matrix, extent = vtk.vtkMatrix4x4(), image.GetExtent()
    image.GetImageToWorldMatrix(matrix)
    to_grid = geometry.inverse @ slicer.util.arrayFromVTKMatrix(matrix)
    shift, ends = np.rint(to_grid[:3, 3]), np.array(extent).reshape(3, 2)
    farthest = np.abs(ends).max(axis=1)
    labels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    for sign in (1, -1):  # of the K axis: Slicer mirrors left-handed volumes, but not segmentations
        turn = np.diag((1.0, 1.0, sign))
        off = np.abs(to_grid[:3, :3] - turn) @ farthest + np.abs(to_grid[:3, 3] - shift)
        if off.max() <= OFF:
            first = (turn @ ends + shift[:, None]).min(axis=1).astype(int)
            return Layer(tuple(map(int, first[::-1])), labels[::sign])
    return Layer((0, 0, 0), sampled(image, geometry, whole_block(geometry.shape)))
