# SPDX-License-Identifier: Apache-2.0
"""Coarse masks: the masks and probabilities that a refinement starts from, and boxes around them.

Mask filter and boxes follow Wang et al., "Leveraging SAM for Single-Source Domain Generalization in
Medical Image Segmentation" (SAMMed).
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from SRCSMSegmenterLib.components import smaller_components
from SRCSMSegmenterLib.errors import PromptError

from .boxes import Box, SliceGrid
from .patches import Patch, shown_block

ROUNDING = 1e-3
"""Most by which a probability may exceed 1, as in files of few digits."""

THRESHOLD = 0.5
"""Probability from which a voxel belongs to the mask."""

BOX_CONFIDENCE = 0.75
"""Voxels of a greater probability are certain, and get a box: the paper's theta 1."""

CERTAIN_SHARE = 0.75
"""An organ is uncertain if less than this share of its mask exceeds `BOX_CONFIDENCE`."""


@dataclass(frozen=True, eq=False)
class CoarseOrgan:
    """An organ as a coarse network segmented it.

    Attributes:
        name: the organ's name.
        label: its label, 1 or more.
        mask: (K, J, I) probabilities of the organ, or a bool mask.
    """

    name: str
    label: int
    mask: np.ndarray


def checked_probabilities(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of any shape if all of it are probabilities.

    Args:
        name: of the array in the error.

    Raises:
        PromptError: values that are not finite, or not from 0 to 1.
    """
    lowest, highest = (float(f(array, initial=0)) for f in (np.min, np.max))
    if not np.isfinite([lowest, highest]).all():
        raise PromptError(f"{name} has values that are NaN or infinite; it needs probabilities.")
    if not 0 <= lowest <= highest <= 1 + ROUNDING:
        raise PromptError(
            f"{name} goes from {lowest:g} to {highest:g}; probabilities go from 0 to 1. Divide per "
            "cent by 100."
        )
    return array


def coarse_probability(mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the probability of one organ that agrees with its mask.

    The likeliest of several labels may have a probability below `THRESHOLD`; it counts as that, so
    that the organ keeps every voxel of its mask.

    Args:
        mask: bool (K, J, I), the organ in a label map.
        probability: (K, J, I) of whatever label a voxel has.

    Returns:
        float16 (K, J, I), 0 outside the mask and at least `THRESHOLD` inside.
    """
    return np.where(mask, np.clip(probability, THRESHOLD, 1), 0).astype(np.float16)


@dataclass(frozen=True, eq=False)
class CoarsePatch:
    """An organ as a coarse network segmented it, 0 outside a block; see `CoarseOrgan`."""

    name: str
    label: int
    patch: Patch

    def organ(self, shape: tuple[int, int, int]) -> CoarseOrgan:
        """Return the organ on a whole volume of `shape` (K, J, I)."""
        return CoarseOrgan(self.name, self.label, self.patch.whole(shape))


def certain_share(mask: np.ndarray) -> float:
    """Return the share of a coarse mask that exceeds `BOX_CONFIDENCE`.

    Args:
        mask: (K, J, I) probabilities of one organ, or a bool mask.

    Returns:
        The share of the voxels from `THRESHOLD` on; 1 for a bool mask or an empty one.
    """
    if mask.dtype == bool:
        return 1.0
    shown = int((mask >= THRESHOLD).sum())
    return int((mask > BOX_CONFIDENCE).sum()) / shown if shown else 1.0


def is_uncertain(mask: np.ndarray) -> bool:
    """Tell whether the network is uncertain of an organ, (K, J, I) probabilities or bool."""
    return certain_share(mask) < CERTAIN_SHARE


def least_certain_slices(coarse: Patch, grid: SliceGrid) -> list[int]:
    """List the slices that show an organ, the least certain first; none of a bool mask.

    The uncertainty of a slice is that of `decision`: the voxels that are expected to be wrong, over
    the root of those that are expected to show the organ.
    """
    if coarse.mask.dtype == bool or not coarse.mask.size:
        return []
    stack = np.moveaxis(coarse.mask, 2 - grid.axis, 0)
    shown = np.array([image.sum(dtype=np.float64) for image in stack])
    wrong = np.array([np.minimum(image, 1 - image).sum(dtype=np.float64) for image in stack])
    there = np.flatnonzero(shown)
    order = np.argsort(-wrong[there] / np.sqrt(shown[there]), kind="stable")
    return [int(k) + coarse.first[2 - grid.axis] for k in there[order]]


class CoarseMask:
    """A coarse mask, its largest component, and the slices that show it.

    Attributes:
        given: (K, J, I) probabilities, or a bool mask; not to be written to.
        voxels: number of voxels by slice index, for the slices that show any.
        graded: whether voxels beside the mask have probabilities too, as those of a network do; a
            label map, even with the confidence of its labels, says nothing of them.
    """

    def __init__(self, given: np.ndarray, grid: SliceGrid) -> None:
        """Find the largest component of `given`, (K, J, I) on `grid`."""
        self.given = given
        self._stack = grid.stack(given)
        # An organ fills a small part of a volume; of the rest nothing is computed or kept.
        block, axis = shown_block(given), 2 - grid.axis
        self._block = (block[axis], *block[:axis], *block[axis + 1 :])
        part = self._stack[self._block]
        mask, weights = (part, None) if part.dtype == bool else (part >= THRESHOLD, part)
        self.graded = weights is not None and bool(((part > 0) & ~mask).any())
        self._component = mask.copy()
        filter_stack(self._component, weights, in_volume=True, in_slices=False)
        counts, first = mask.sum(axis=(1, 2)), self._block[0].start
        self.voxels = {int(k) + first: int(counts[k]) for k in np.flatnonzero(counts)}

    def shown(self, slice_index: int) -> np.ndarray:
        """Return the mask of a slice as it was given, bool (rows, columns)."""
        image = self._stack[slice_index]
        return image if image.dtype == bool else image >= THRESHOLD

    def grade(self, slice_index: int) -> np.ndarray:
        """Return a slice as it was given, probabilities or bool (rows, columns)."""
        return self._stack[slice_index]

    def component(self, slice_index: int) -> np.ndarray:
        """Return the part of the largest component in a slice, bool (rows, columns)."""
        image = np.zeros(self._stack.shape[1:], bool)
        slices, *within = self._block
        if slices.start <= slice_index < slices.stop:
            image[tuple(within)] = self._component[slice_index - slices.start]
        return image

    def probability(self, slice_index: int) -> np.ndarray:
        """Return a slice, float16 (rows, columns), with smaller components set to 0."""
        smaller = self.shown(slice_index) & ~self.component(slice_index)
        return np.where(smaller, 0, self._stack[slice_index]).astype(np.float16)


def boxes_from_coarse(
    coarse: np.ndarray,
    grid: SliceGrid,
    box_confidence: float = BOX_CONFIDENCE,
    shrink: int = 1,
    *,
    in_volume: bool = True,
    in_slices: bool = True,
) -> dict[int, Box]:
    """Draw a box around the certain part of a coarse mask, for each slice that shows any of it.

    Args:
        coarse: (K, J, I), probabilities of one organ, or a bool mask (probabilities 0 and 1).
        grid: its slices.
        box_confidence: only greater probabilities count (the paper's theta 1).
        shrink: average blocks of shrink x shrink pixels first; the paper has 4 at 512 pixels. Box
            edges are then multiples of it, except at the slice's own edge. 1, the default, is as
            fast.
        in_volume: keep only the largest component of the volume.
        in_slices: afterwards keep only the largest component of every slice. The paper's filter is
            this one alone.

    Returns:
        Boxes by slice index, ascending. No entry for a slice without a component
        (`slices_without_box` lists those that show the organ nevertheless).

    Raises:
        PromptError: `coarse` does not lie on the grid, `box_confidence` is not from [0, 1), or
            `shrink` is less than 1.
    """
    if not 0 <= box_confidence < 1:
        raise PromptError(
            f"A box confidence of {box_confidence:g} is not a probability from 0 to below 1."
        )
    if shrink < 1:
        raise PromptError(f"Slices cannot be shrunk by {shrink}; give 1 or more.")
    stack = grid.stack(coarse)
    if shrink > 1:
        stack = _shrunk(stack, shrink)
    if stack.dtype == bool:
        certain, weights = stack.copy(), None
    else:
        certain, weights = stack > box_confidence, stack
    filter_stack(certain, weights, in_volume, in_slices)
    rows, columns = grid.shape
    boxes = {}
    for slice_index in np.flatnonzero(certain.any(axis=(1, 2))):
        y0, y1 = _extent(certain[slice_index].any(axis=1))
        x0, x1 = _extent(certain[slice_index].any(axis=0))
        boxes[int(slice_index)] = Box(
            x0 * shrink, y0 * shrink, min(x1 * shrink, columns), min(y1 * shrink, rows)
        )
    return boxes


def boxes_from_patch(
    coarse: Patch,
    grid: SliceGrid,
    box_confidence: float = BOX_CONFIDENCE,
    shrink: int = 1,
    *,
    in_volume: bool = True,
    in_slices: bool = True,
) -> dict[int, Box]:
    """Draw the boxes of a coarse mask that is 0 outside a block; see `boxes_from_coarse`."""
    if not coarse.mask.size:
        return {}
    if shrink > 1:
        coarse = _aligned(coarse, grid, shrink)
    part = grid.part(coarse.first, coarse.mask.shape)
    x, y, k = (coarse.first[2 - axis] for axis in (grid.column_axis, grid.row_axis, grid.axis))
    boxes = boxes_from_coarse(
        coarse.mask, part, box_confidence, shrink, in_volume=in_volume, in_slices=in_slices
    )
    return {
        slice_index + k: Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y)
        for slice_index, box in boxes.items()
    }


def patch_slices_without_box(coarse: Patch, grid: SliceGrid, boxes: Collection[int]) -> list[int]:
    """List the slices of a mask that is 0 outside a block; see `slices_without_box`."""
    first = coarse.first[2 - grid.axis]
    part = grid.part(coarse.first, coarse.mask.shape)
    inside = {slice_index - first for slice_index in boxes}
    return [k + first for k in slices_without_box(coarse.mask, part, inside)]


def _aligned(coarse: Patch, grid: SliceGrid, shrink: int) -> Patch:
    """Enlarge a patch to whole blocks of shrink x shrink pixels, as far as slices reach."""
    first, widths = list(coarse.first), [(0, 0)] * 3
    for axis in (grid.column_axis, grid.row_axis):
        n = 2 - axis
        start, stop = coarse.first[n], coarse.first[n] + coarse.mask.shape[n]
        last = min(-(-stop // shrink) * shrink, grid.geometry.size[axis])
        widths[n] = start % shrink, last - stop
        first[n] = start - start % shrink
    return Patch(tuple(first), np.pad(coarse.mask, widths))


def slices_without_box(coarse: np.ndarray, grid: SliceGrid, boxes: Collection[int]) -> list[int]:
    """List the slices that show an organ (probability of at least a half) but have no box.

    The coarse mask in these slices was too uncertain for a box, or not part of the largest
    component.

    Args:
        coarse: (K, J, I), probabilities of one organ, or a bool mask.
        grid: its slices.
        boxes: indices of the slices that have a box.
    """
    shown = (grid.stack(coarse) >= THRESHOLD).any(axis=(1, 2))
    return [int(k) for k in np.flatnonzero(shown) if k not in boxes]


def filter_stack(
    stack: np.ndarray, weights: np.ndarray | None, in_volume: bool, in_slices: bool
) -> None:
    """Drop all but the largest components from a stack of slices, in place.

    Of components of equal size the first in the array's order stays.

    Args:
        stack: bool (slices, rows, columns), one organ.
        weights: probabilities of the same shape, of which high ones weigh more
            (`smaller_components`); None counts every voxel alike.
        in_volume: keep the largest face-connected component of the stack.
        in_slices: then keep the largest 4-connected component of every slice.
    """
    if not stack.any():
        return
    # Organs fill a small part of a volume; the rest need not be searched.
    extents = (_extent(stack.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    around = tuple(slice(*extent) for extent in extents)
    stack, weights = stack[around], None if weights is None else weights[around]
    if in_volume:
        stack &= ~smaller_components(stack.view(np.uint8), weights)
    if in_slices:
        for k in range(len(stack)):
            some = slice(k, k + 1)
            stack[some] &= ~smaller_components(
                stack[some].view(np.uint8), None if weights is None else weights[some]
            )


def _shrunk(stack: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels of (slices, rows, columns).

    Blocks at the far edges may be smaller.
    """
    for axis in (1, 2):
        starts = np.arange(0, stack.shape[axis], factor)
        sums = np.add.reduceat(stack, starts, axis=axis, dtype=np.float32)
        lengths = np.diff(starts, append=stack.shape[axis]).astype(np.float32)
        stack = sums / lengths.reshape((-1, 1) if axis == 1 else -1)
    return stack


def _extent(line: np.ndarray) -> tuple[int, int]:
    """Return the first True and one past the last of a bool array (n,) that has any."""
    return int(line.argmax()), len(line) - int(line[::-1].argmax())
