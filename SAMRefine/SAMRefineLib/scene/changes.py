# SPDX-License-Identifier: Apache-2.0
"""Reversible changes of voxels of segments.

A change is made by Slicer's own segment editor logic and stores only the voxels that a segment
gained and lost, so that undoing it leaves later drawings alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import slicer

from SRCSMSegmenterLib.errors import Cancelled
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.aside import Aside, directly
from SRCSMSegmenterLib.scene.nodes import SURFACE

from ..boxes.boxes import SliceGrid
from ..boxes.patches import NOTHING, Block, Patch, around, extent, whole_block
from ..refine.organ_state import NeighbourRule
from .masks import Layers, block_image, blocks_in, same_direction


@dataclass(frozen=True, eq=False)
class VoxelChange:
    """Voxels of a block that a segment gained and lost.

    Attributes:
        segment: the segment's ID.
        first: the block's first voxel (k, j, i).
        shape: the block's shape (k, j, i).
        gained, lost: masks of the block, packed to bits.
    """

    segment: str
    first: tuple[int, int, int]
    shape: tuple[int, int, int]
    gained: np.ndarray
    lost: np.ndarray

    @classmethod
    def between(
        cls, segment: str, before: np.ndarray, after: np.ndarray, block: Block
    ) -> "VoxelChange | None":
        """Return the change from one mask of a block to another; None if they are equal.

        Args:
            segment: the segment's ID.
            before, after: bool masks of the block, (k, j, i).
            block: its position in the volume.
        """
        changed = Patch.of(before ^ after)
        if not changed.mask.size:
            return None
        gained, lost = (
            (one & ~other)[changed.block] for one, other in ((after, before), (before, after))
        )
        first = tuple(part.start + n for part, n in zip(block, changed.first, strict=True))
        return cls(segment, first, changed.mask.shape, np.packbits(gained), np.packbits(lost))

    def then(self, later: "VoxelChange") -> "VoxelChange":
        """Merge this change with a later one of the same segment."""
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
        return VoxelChange(
            self.segment, tuple(map(int, first)), shape, np.packbits(gained), np.packbits(lost)
        )

    def _within(
        self, bits: np.ndarray, first: np.ndarray, shape: tuple[int, int, int]
    ) -> np.ndarray:
        """Return a mask of this change as part of a larger block, bool of `shape` (k, j, i)."""
        larger = np.zeros(shape, bool)
        starts = np.subtract(self.first, first)
        part = tuple(slice(a, a + n) for a, n in zip(starts, self.shape, strict=True))
        larger[part] = self.mask(bits)
        return larger

    def mask(self, bits: np.ndarray) -> np.ndarray:
        """Unpack a mask of the block, (k, j, i)."""
        return np.unpackbits(bits, count=int(np.prod(self.shape))).reshape(self.shape)


def joined(changes: Iterable[VoxelChange], later: Iterable[VoxelChange]) -> tuple[VoxelChange, ...]:
    """Merge changes with later ones to at most one for each segment.

    `apply` removes voxels before it adds others, so changes that it is given together must not
    contain one that a segment gains in one step and loses in the next.
    """
    by_segment = {change.segment: change for change in changes}
    for change in later:
        earlier = by_segment.get(change.segment)
        by_segment[change.segment] = change if earlier is None else earlier.then(change)
    return tuple(by_segment.values())


def apply(
    changes: Iterable[VoxelChange],
    segmentation_node: slicer.vtkMRMLSegmentationNode,
    geometry: Geometry,
    *,
    backwards: bool = False,
    aside: Aside = directly,
) -> set[str]:
    """Make changes, or undo them, in segments that still exist.

    Args:
        changes: at most one for each segment (`joined`).
        segmentation_node: the segmentation.
        geometry: the grid that the changes are on; see `check_target`.
        backwards: undo the changes.
        aside: called between segments, each of which takes up to a tenth of a second.

    Returns:
        IDs of segments whose surfaces are outdated; see `renew_surfaces`.

    Raises:
        Cancelled: `aside` raised it; nothing is changed.
    """
    segmentation = segmentation_node.GetSegmentation()
    changes = [change for change in changes if segmentation.GetSegment(change.segment)]
    segments = {change.segment: segmentation.GetSegment(change.segment) for change in changes}
    surfaces = {
        id: surface
        for id, segment in segments.items()
        if (surface := segment.GetRepresentation(SURFACE)) is not None
    }
    # Not a node of the scene, which would be saved and listed.
    editor, logic = slicer.vtkMRMLSegmentEditorNode(), slicer.vtkSlicerSegmentEditorLogic()
    editor.SetScene(segmentation_node.GetScene())
    logic.SetMRMLScene(segmentation_node.GetScene())
    logic.SetSegmentEditorNode(editor)
    logic.SetSegmentationNode(segmentation_node)
    mirrored = not same_direction(segmentation_node, geometry)
    # Voxels are removed first, so that segments which hand voxels to each other never overlap. With
    # these overwrite modes, and masking on, the logic leaves segments in the layer that they share.
    # Others are never touched, as only the segment's own voxels are removed.
    modes = {
        True: (logic.ModificationModeAdd, editor.OverwriteNone),
        False: (logic.ModificationModeRemove, editor.OverwriteAllSegments),
    }

    def modify(adds: bool, change: VoxelChange, bits: np.ndarray) -> None:
        mask, (mode, overwrite) = change.mask(bits), modes[adds]
        if mask.any():
            editor.SetOverwriteMode(overwrite)
            image = block_image(mask, change.first, geometry, mirrored)
            logic.ModifySegmentByLabelmap(
                segmentation_node, change.segment, image, mode, False, False
            )

    steps = _steps(changes, backwards)
    for id in surfaces:  # else every step would compute them anew, for seconds
        segments[id].RemoveRepresentation(SURFACE)
    done = 0
    try:
        for done, step in enumerate(steps):
            aside(lambda: None, done / len(steps))
            modify(*step)
    except Cancelled:
        for adds, *rest in reversed(steps[:done]):
            modify(not adds, *rest)
        raise
    finally:
        logic.SetSegmentEditorNode(None)
        editor.SetAndObserveSegmentationNode(None)
        for id, surface in surfaces.items():
            segments[id].AddRepresentation(SURFACE, surface)
    return set(surfaces)


def _steps(
    changes: Sequence[VoxelChange], backwards: bool
) -> list[tuple[bool, VoxelChange, np.ndarray]]:
    """List the steps of `apply`: True to add or False to remove, the change, the voxels."""
    bits = {
        adds: [each.gained if adds != backwards else each.lost for each in changes]
        for adds in (False, True)
    }
    return [(adds, *pair) for adds in bits for pair in zip(changes, bits[adds], strict=True)]


def renew_surfaces(segmentation_node: slicer.vtkMRMLSegmentationNode, ids: Iterable[str]) -> None:
    """Compute the surfaces of segments anew, if they exist; a large one takes seconds."""
    segmentation = segmentation_node.GetSegmentation()
    segments = [segment for id in ids if (segment := segmentation.GetSegment(id)) is not None]
    shown = [each for each in segments if each.GetRepresentation(SURFACE) is not None]
    for segment in shown:
        segment.RemoveRepresentation(SURFACE)
    if shown:
        segmentation.CreateRepresentation(SURFACE)


def changes_to(
    layers: Layers,
    grid: SliceGrid,
    wanted: Mapping[str, Mapping[int, np.ndarray]],
    neighbours: NeighbourRule,
) -> list[VoxelChange]:
    """Return the changes that draw masks into segments, without making them.

    Args:
        layers: all segments of the segmentation (`masks.read_layers`).
        grid: its slices.
        wanted: by segment ID and slice index, bool (rows, columns); other slices stay.
        neighbours: rule for voxels of segments that are not among `wanted`.
    """
    geometry, axis = grid.geometry, 2 - grid.axis
    slices = {k for masks in wanted.values() for k in masks}
    if not slices:
        return []
    planes = list(whole_block(geometry.shape))
    planes[axis] = slice(min(slices), max(slices) + 1)
    chosen = {
        id: (layer.within(tuple(planes)), label)
        for id, (layer, label) in layers.items()
        if id in wanted
    }
    blocks = [*blocks_in(chosen).values(), *(_drawn_block(wanted[id], axis) for id in chosen)]
    blocks = [block for block in blocks if block[0].start < block[0].stop]
    if not blocks:
        return []
    block = reduce(around, blocks)
    before = {id: layer.mask(label, block) for id, (layer, label) in chosen.items()}
    after = {id: mask.copy() for id, mask in before.items()}
    rest = block[:axis] + block[axis + 1 :]
    for id, mask in after.items():
        stack = np.moveaxis(mask, axis, 0)
        for k, drawn in wanted[id].items():
            if block[axis].start <= k < block[axis].stop:  # beyond, nothing is and will be
                stack[k - block[axis].start] = drawn[rest]
    # Other segments are read only in the block that changes.
    changed = Patch.of(_union([before[id] ^ after[id] for id in after]))
    if not changed.mask.size:
        return []
    part = changed.block
    block = tuple(
        slice(a.start + b.start, a.start + b.stop) for a, b in zip(block, part, strict=True)
    )
    drawn = list(after)
    before, after = ({id: mask[part] for id, mask in each.items()} for each in (before, after))
    if neighbours != "overlap":
        others = [id for id in layers if id not in before]
        before |= {id: layers[id][0].mask(layers[id][1], block) for id in others}
        after = before | after
    for id in drawn:
        if neighbours == "keep":
            taken = _union([mask for other, mask in after.items() if other != id])
            after[id] = after[id] & (before[id] | ~taken)
        elif neighbours == "overwrite":
            gained = after[id] & ~before[id]
            after |= {other: after[other] & ~gained for other in others}
    changes = (VoxelChange.between(id, before[id], after[id], block) for id in after)
    return [change for change in changes if change is not None]


def _drawn_block(masks: Mapping[int, np.ndarray], axis: int) -> Block:
    """Return the block that masks, bool (rows, columns) by slice index, show anything of.

    Args:
        masks: the masks.
        axis: the axis of a (K, J, I) array that is sliced.
    """
    shown = {k: mask for k, mask in masks.items() if mask.any()}
    if not shown:
        return NOTHING
    seen = _union(list(shown.values()))
    block = [extent(seen.any(axis=1)), extent(seen.any(axis=0))]
    block.insert(axis, slice(min(shown), max(shown) + 1))
    return tuple(block)


def _union(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Combine masks of one shape step by step: numpy's reduction would copy all of them first."""
    return reduce(np.logical_or, masks, np.zeros((), bool))
