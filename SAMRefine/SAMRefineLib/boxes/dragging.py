# SPDX-License-Identifier: Apache-2.0
"""Propagation of a drag of an organ's 3-D box to its slice boxes, and mirrored boxes."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from SRCSMSegmenterLib.errors import PromptError

from .boxes import Box, Box3D, SliceGrid
from .key_frames import KeyFrames

STILL = 1e-3
"""Voxels; a shorter movement of an edge is rounding."""


def differs(one: Box3D, other: Box3D) -> bool:
    """Tell whether an edge differs by more than rounding."""
    return bool(np.abs(_edges(one) - _edges(other)).max() > STILL)


def dragged(frames: KeyFrames, bound: Box3D) -> KeyFrames:
    """Return the boxes of an organ after its 3-D box was dragged to `bound`.

    - If the 3-D box is moved as a whole, all boxes move along, across slices by whole slices.
    - A face that is dragged inwards cuts the boxes; dragged out again, it restores what it cut.
    - A face that is dragged outwards within the slices stretches the boxes: those that reached the
      face follow it, others follow less the farther they are from it. A face that is dragged
      outwards across the slices adds slices with the box of the last one.

    Key frames remain key frames: they move along, and slices in between still follow them. If the
    organ has no box yet, each slice of `bound` gets its rectangle.

    Raises:
        PromptError: nothing of `bound`, or of the boxes, is left within the volume.
    """
    grid = frames.grid
    before = frames.bounds3d()
    if before is None:
        boxes = KeyFrames.drawn(frames.name, frames.label, bound, grid).automatic
        return dataclasses.replace(frames, moved=boxes, edited={}, off=frozenset(), limit=None)
    moves = _edges(bound) - _edges(before)
    if np.ptp(moves, axis=0).max() <= STILL:
        return _moved(frames, moves[0])
    bound = _within(bound, grid, frames.name)
    whole = frames.limited(None).bounds3d()
    out = np.array(
        (np.minimum(whole.lower, bound.lower), np.maximum(whole.upper, bound.upper)), float
    )
    if np.abs(out - _edges(whole)).max() > STILL:
        frames = _stretched(frames, whole, Box3D(*out))
    inwards = max((bound.lower - out[0]).max(), (out[1] - bound.upper).max())
    return frames.limited(bound if inwards > STILL else None)


def mirrored(frames: KeyFrames) -> KeyFrames:
    """Return the same boxes in space on the grid with the K axis reversed.

    Slicer mirrors left-handed volumes when it reads them again.
    """
    grid = SliceGrid(frames.grid.geometry.mirrored(), frames.grid.axis)
    count = grid.geometry.size[2]

    def mirrored_index(slice_index: int) -> int:
        return count - 1 - slice_index if grid.axis == 2 else slice_index

    def box(given: Box) -> Box:
        if grid.axis == 2:
            return given
        return Box(given.x0, count - given.y1, given.x1, count - given.y0)  # rows run along K

    def boxes(given: Mapping[int, Box]) -> dict[int, Box]:
        return {mirrored_index(k): box(each) for k, each in given.items()}

    limit = frames.limit
    if limit is not None:
        lower, upper = list(limit.lower), list(limit.upper)
        lower[2], upper[2] = count - limit.upper[2], count - limit.lower[2]
        limit = Box3D(lower, upper)
    return KeyFrames(
        frames.name,
        frames.label,
        grid,
        boxes(frames.automatic),
        boxes(frames.edited),
        frozenset(map(mirrored_index, frames.off)),
        limit,
        None if frames.moved is None else boxes(frames.moved),
    )


def _edges(block: Box3D) -> np.ndarray:
    """Return lower and upper edges along I, J, K in voxels, (2, 3)."""
    return np.array((block.lower, block.upper))


def _within(bound: Box3D, grid: SliceGrid, name: str) -> Box3D:
    """Cut a 3-D box to the volume.

    Raises:
        PromptError: no slice is left of it.
    """
    lower = np.clip(bound.lower, 0, grid.geometry.size)
    upper = np.clip(bound.upper, 0, grid.geometry.size)
    if (upper - lower).min() <= STILL or not grid.slices_of(Box3D(lower, upper)):
        raise PromptError(f'The 3-D box of "{name}" left the volume; move it over the organ.')
    return Box3D(lower, upper)


def _moved(frames: KeyFrames, by: np.ndarray) -> KeyFrames:
    """Move all boxes by voxels along I, J, K, (3,)."""
    grid = frames.grid
    by = by.copy()
    by[grid.axis] = slices = round(by[grid.axis])
    x, y = by[grid.column_axis], by[grid.row_axis]
    rows, columns = grid.shape

    def moved(boxes: Mapping[int, Box]) -> dict[int, Box]:
        shifted = {}
        for k, box in boxes.items():
            there = Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y)
            inside = there.overlap(Box(0, 0, columns, rows))
            if inside is not None and 0 <= k + slices < grid.count:
                shifted[k + slices] = inside
        return shifted

    off = frozenset(k + slices for k in frames.off if 0 <= k + slices < grid.count)
    limit = frames.limit
    if limit is not None:
        limit = _within(Box3D(*(_edges(limit) + by)), grid, frames.name)
    result = dataclasses.replace(
        frames, moved=moved(frames.unedited), edited=moved(frames.edited), off=off, limit=limit
    )
    if not result.effective():
        raise PromptError(f'The boxes of "{frames.name}" left the volume; move them over it.')
    return result


def _stretched(frames: KeyFrames, whole: Box3D, out: Box3D) -> KeyFrames:
    """Stretch the boxes within `whole`, their bound, to fill the larger block `out`."""
    grid = frames.grid
    old, new, ends = _edges(whole), _edges(out), grid.geometry.size
    scale = (new[1] - new[0]) / (old[1] - old[0])

    def along(axis: int, *edges: float) -> list[float]:
        mapped = (new[0, axis] + (edge - old[0, axis]) * scale[axis] for edge in edges)
        return [min(max(edge, 0.0), ends[axis]) for edge in mapped]

    def stretched(boxes: Mapping[int, Box]) -> dict[int, Box]:
        larger = {}
        for k, box in boxes.items():
            x0, x1 = along(grid.column_axis, box.x0, box.x1)
            y0, y1 = along(grid.row_axis, box.y0, box.y1)
            larger[k] = Box(x0, y0, x1, y1)
        return larger

    boxes, moved = frames.limited(None).effective(), stretched(frames.unedited)
    first, last = min(boxes), max(boxes)
    added = set(grid.slices_of(out)) - set(range(first, last + 1))
    ending = stretched({k: boxes[k] for k in (first, last)})
    moved |= {k: ending[first if k < first else last] for k in added}
    edited = {k: box for k, box in stretched(frames.edited).items() if k not in added}
    return dataclasses.replace(
        frames, moved=moved, edited=edited, off=frames.off - added, limit=None
    )
