# SPDX-License-Identifier: Apache-2.0
"""Segments as masks on a volume's grid, and reversible changes of some of their voxels.

A change is made by Slicer's own segment editor logic and remembers which voxels a segment gained
and lost, no more: undoing it leaves alone whatever else was drawn since.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.nodes import (
    BINARY,
    GRID,
    SURFACE,
    check_target,
    node_geometry,
    reference_geometry,
)

from ..boxes.boxes import SliceGrid
from ..refine.organ_state import Neighbours, Patch

Block = tuple[slice, slice, slice]
"""Part of a (K, J, I) array."""


@dataclass(frozen=True, eq=False)
class Change:
    """Voxels of a block that a segment gained and lost.

    Attributes:
        segment: its ID.
        first: the block's first voxel (k, j, i).
        shape: of the block.
        gained, lost: the block's masks, as bits.
    """

    segment: str
    first: tuple[int, int, int]
    shape: tuple[int, int, int]
    gained: np.ndarray
    lost: np.ndarray

    @classmethod
    def between(
        cls, segment: str, before: np.ndarray, after: np.ndarray, block: Block
    ) -> "Change | None":
        """From one mask of a block to another; None where they are equal."""
        around = Patch.of(before ^ after)
        if not around.mask.size:
            return None
        gained, lost = (
            (one & ~other)[around.block] for one, other in ((after, before), (before, after))
        )
        first = tuple(part.start + n for part, n in zip(block, around.first, strict=True))
        return cls(segment, first, around.mask.shape, np.packbits(gained), np.packbits(lost))

    def then(self, later: "Change") -> "Change":
        """Return the change that does what this one and a later one of the segment do."""
        ends = [np.add(each.first, each.shape) for each in (self, later)]
        first = np.minimum(self.first, later.first)
        shape = tuple(map(int, np.max(ends, axis=0) - first))
        gained, lost, regained, lost_again = (
            each._within(bits, first, shape)
            for each in (self, later)
            for bits in (each.gained, each.lost)
        )
        gained, lost = (
            gained & ~lost_again | regained & ~lost,
            lost & ~regained | lost_again & ~gained,
        )
        return Change(
            self.segment, tuple(map(int, first)), shape, np.packbits(gained), np.packbits(lost)
        )

    def _within(
        self, bits: np.ndarray, first: np.ndarray, shape: tuple[int, int, int]
    ) -> np.ndarray:
        """Return one of the masks as part of a larger block."""
        larger = np.zeros(shape, bool)
        starts = np.subtract(self.first, first)
        part = tuple(slice(a, a + n) for a, n in zip(starts, self.shape, strict=True))
        larger[part] = self.mask(bits)
        return larger

    def mask(self, bits: np.ndarray) -> np.ndarray:
        """The block's mask from its bits."""
        return np.unpackbits(bits, count=int(np.prod(self.shape))).reshape(self.shape)


def joined(changes: Iterable[Change], later: Iterable[Change]) -> tuple[Change, ...]:
    """Return at most one change for each segment that does what changes and later ones do.

    `apply` removes before it adds, so what a segment gains in one step and loses in the next must
    not be told twice.
    """
    by_segment = {change.segment: change for change in changes}
    for change in later:
        earlier = by_segment.get(change.segment)
        by_segment[change.segment] = change if earlier is None else earlier.then(change)
    return tuple(by_segment.values())


def apply(
    changes: Iterable[Change],
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    geometry: Geometry,
    *,
    backwards: bool = False,
) -> set[str]:
    """Make changes, or undo them; segments that are gone are passed over.

    Args:
        changes: at most one for each segment (`joined`).
        geometry: the grid that the changes are on; see `check_target`.

    Returns:
        IDs of segments whose surfaces are still those of before; see `renew_surfaces`.
    """
    segmentation = segmentation_node.GetSegmentation()
    changes = [change for change in changes if segmentation.GetSegment(change.segment)]
    segments = {change.segment: segmentation.GetSegment(change.segment) for change in changes}
    surfaces = {
        id: surface
        for id, segment in segments.items()
        if (surface := segment.GetRepresentation(SURFACE)) is not None
    }
    # Not a node of the scene, which would be saved, shown in lists, and closed by users.
    editor, logic = slicer.vtkMRMLSegmentEditorNode(), slicer.vtkSlicerSegmentEditorLogic()
    editor.SetScene(segmentation_node.GetScene())
    logic.SetMRMLScene(segmentation_node.GetScene())
    logic.SetSegmentEditorNode(editor)
    logic.SetSegmentationNode(segmentation_node)
    mirrored = not _same_way(segmentation_node, geometry)
    # First what is lost, so that segments which hand voxels to each other never overlap on the way.
    # With these modes of overwriting, and masking on, the logic leaves segments in the layer that
    # they share; others are never touched, as what is removed is the segment's own.
    steps = (
        (logic.ModificationModeRemove, editor.OverwriteAllSegments, backwards),
        (logic.ModificationModeAdd, editor.OverwriteNone, not backwards),
    )
    for id in surfaces:
        segments[id].RemoveRepresentation(SURFACE)  # or every step makes it anew, for seconds
    try:
        for mode, overwrite, gained in steps:
            editor.SetOverwriteMode(overwrite)
            for change in changes:
                mask = change.mask(change.gained if gained else change.lost)
                if mask.any():
                    image = _image(mask, change.first, geometry, mirrored)
                    logic.ModifySegmentByLabelmap(
                        segmentation_node, change.segment, image, mode, False, False
                    )
    finally:
        logic.SetSegmentEditorNode(None)
        editor.SetAndObserveSegmentationNode(None)
        for id, surface in surfaces.items():
            segments[id].AddRepresentation(SURFACE, surface)
    return set(surfaces)


def renew_surfaces(segmentation_node: slicer.vtkMRMLSegmentationNode, ids: Iterable[str]) -> None:
    """Make the surfaces of segments anew, where they are still there; a large one takes seconds."""
    segmentation = segmentation_node.GetSegmentation()
    segments = [segment for id in ids if (segment := segmentation.GetSegment(id)) is not None]
    shown = [each for each in segments if each.GetRepresentation(SURFACE) is not None]
    for segment in shown:
        segment.RemoveRepresentation(SURFACE)
    if shown:
        segmentation.CreateRepresentation(SURFACE)


def redrawn(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    grid: SliceGrid,
    wanted: Mapping[str, Mapping[int, np.ndarray]],
    neighbours: Neighbours,
) -> list[Change]:
    """The changes that draw masks into segments; nothing is done yet.

    Args:
        wanted: segment's ID -> slice number -> bool (rows, columns); other slices stay.
        neighbours: what happens to voxels of segments that are not among `wanted`.
    """
    numbers = {n for slices in wanted.values() for n in slices}
    if not numbers:
        return []
    geometry, axis, start = grid.geometry, 2 - grid.axis, min(numbers)
    planes = [slice(0, n) for n in geometry.shape]
    planes[axis] = slice(start, max(numbers) + 1)
    before = read_masks(segmentation_node, list(wanted), geometry, tuple(planes))
    if not before:
        return []
    after = {id: mask.copy() for id, mask in before.items()}
    for id, mask in after.items():
        stack = np.moveaxis(mask, axis, 0)
        for n, drawn in wanted[id].items():
            stack[n - start] = drawn
    # The rest is looked at only where something happens.
    around = Patch.of(_union([before[id] ^ after[id] for id in after]))
    if not around.mask.size:
        return []
    part = around.block
    block = tuple(
        slice(a.start + b.start, a.start + b.stop) for a, b in zip(planes, part, strict=True)
    )
    drawn = list(after)
    before, after = ({id: mask[part] for id, mask in each.items()} for each in (before, after))
    if neighbours != "overlap":
        ids = segmentation_node.GetSegmentation().GetSegmentIDs()
        others = [id for id in ids if id not in before]
        before |= read_masks(segmentation_node, others, geometry, block)
        after = before | after
    for id in drawn:
        if neighbours == "keep":
            taken = _union([mask for other, mask in after.items() if other != id])
            after[id] = after[id] & (before[id] | ~taken)
        elif neighbours == "overwrite":
            gained = after[id] & ~before[id]
            after |= {other: after[other] & ~gained for other in others}
    changes = (Change.between(id, before[id], after[id], block) for id in after)
    return [change for change in changes if change is not None]


def _union(masks: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other: numpy's own reduction copies all of them into one array first."""
    return reduce(np.logical_or, masks, np.zeros((), bool))


def read_masks(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    ids: Sequence[str],
    geometry: Geometry,
    block: Block | None = None,
) -> dict[str, np.ndarray]:
    """Segment's ID -> bool mask of a block, all by default, of a grid that the segmentation fits
    (`check_target`); IDs of segments that are gone are left out."""
    block = block or tuple(slice(0, n) for n in geometry.shape)
    segmentation = segmentation_node.GetSegmentation()
    layers: dict[object, np.ndarray] = {}  # segments that do not overlap share an image
    found = {}
    for id in ids:
        segment = segmentation.GetSegment(id)
        if segment is None:
            continue
        image = segment.GetRepresentation(BINARY)
        if image not in layers:
            layers[image] = _sampled(image, geometry, block)
        found[id] = layers[image] == segment.GetLabelValue()
    return found


def any_mask(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    id: str,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> np.ndarray:
    """bool (K, J, I): a segment of any segmentation, wherever it lies, of voxels or surfaces, as
    sampled by the volume's grid."""
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
    found = _sampled(segment.GetRepresentation(BINARY), geometry, block, transform)
    mask = found == segment.GetLabelValue()
    if not voxels:
        segmentation.RemoveRepresentation(BINARY)  # it was made for us
    return mask


def fits(
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> bool:
    """True where results on the volume's grid can be drawn into a segmentation as they are."""
    try:
        check_target(segmentation_node, volume_node, geometry)
    except VolumeError:
        return False
    return True


def lay_on(
    segmentation_node: slicer.vtkMRMLSegmentationNode, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> None:
    """Put an empty segmentation on a volume's own grid, under its transform."""
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
    """Add a segment; returns its ID, `id` if that is free."""
    segmentation, segment = segmentation_node.GetSegmentation(), slicer.vtkSegment()
    segment.SetName(name)
    segment.SetColor(*color)
    for tag, text in (tags or {}).items():
        segment.SetTag(tag, text)
    mirrored = not _same_way(segmentation_node, geometry)
    mask = patch.mask if patch.mask.size else np.zeros((1, 1, 1), bool)
    segment.AddRepresentation(BINARY, _image(mask, patch.first, geometry, mirrored))
    segment.SetLabelValue(1)
    id = segmentation.GenerateUniqueSegmentID(id)
    segmentation.AddSegment(segment, id)
    return id


def _same_way(node: slicer.vtkMRMLSegmentationNode, geometry: Geometry) -> bool:
    """False where the segmentation's K axis runs the other way (`check_target`)."""
    grid = reference_geometry(node)
    return grid is None or grid.left_handed == geometry.left_handed


def _image(
    mask: np.ndarray, first: tuple[int, int, int], geometry: Geometry, mirrored: bool
) -> slicer.vtkOrientedImageData:
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
    """An image without voxels, where a block lies."""
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
    """An image's values at the voxels of a block, 0 beyond it.

    Args:
        transform: from the image's space to that of the grid.
    """
    shape = tuple(part.stop - part.start for part in block)
    if image is None or image.GetPointData().GetScalars() is None:
        return np.zeros(shape, np.uint8)
    frame = _frame(tuple(part.start for part in block), shape, geometry)
    found = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, frame, found, False, False, transform
    )
    return vtk_to_numpy(found.GetPointData().GetScalars()).reshape(shape)
