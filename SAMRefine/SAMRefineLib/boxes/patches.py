# SPDX-License-Identifier: Apache-2.0
"""Compact masks: the block of a volume that shows something, and packed masks of slices."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

Block = tuple[slice, slice, slice]
"""Position of a block in a (K, J, I) array."""

NOTHING: Block = (slice(0, 0),) * 3
"""A block without voxels."""

CHUNK = 1 << 22
"""Voxels that are read at a time: they take some milliseconds, and little memory."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask of a volume that is 0 outside a block.

    Attributes:
        first: the block's first voxel (k, j, i).
        mask: the block's mask (k, j, i), bool or probabilities.
    """

    first: tuple[int, int, int]
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> "Patch":
        """Copy the smallest block that shows anything of a bool array (K, J, I)."""
        block = label_blocks(mask).get(1, NOTHING)
        return cls(tuple(part.start for part in block), mask[block].copy())

    @property
    def block(self) -> Block:
        """Position of the block in a (K, J, I) array."""
        return tuple(slice(n, n + m) for n, m in zip(self.first, self.mask.shape, strict=True))

    def whole(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return the mask of a whole volume of `shape` (K, J, I)."""
        whole = np.zeros(shape, self.mask.dtype)
        whole[self.block] = self.mask
        return whole


def label_blocks(labels: np.ndarray) -> dict[int, Block]:
    """Find the smallest block of each label in one pass.

    Args:
        labels: (K, J, I) bool or integers; 0 is background.

    Returns:
        The blocks by label.
    """
    from scipy.ndimage import find_objects  # when needed: Slicer loads this file at its start

    labels = labels.view(np.uint8) if labels.dtype == bool else labels
    planes = max(1, CHUNK // max(1, labels[:1].size))
    found: dict[int, Block] = {}
    for k in range(0, len(labels), planes):
        chunk = labels[k : k + planes]
        seen = chunk.max(axis=0)  # most of a volume shows nothing, and this is a fast pass
        rows, columns = extent(seen.any(axis=1)), extent(seen.any(axis=0))
        # Of other types than integers, such as those of imported segments, it takes none.
        part = np.ascontiguousarray(chunk[:, rows, columns])
        part = part if part.dtype.kind in "iu" else part.astype(np.int32)
        for label, block in enumerate(find_objects(part) if part.size else (), start=1):
            if block is not None:
                block = moved(block, (k, rows.start, columns.start))
                found[label] = around(found[label], block) if label in found else block
    return found


def shown_block(probability: np.ndarray) -> Block:
    """Find the smallest block of (K, J, I) probabilities outside which all are 0."""
    # Numbers that are not negative are 0 if their bits are, and bits are compared much faster.
    bits = np.ascontiguousarray(probability).view(f"u{probability.itemsize}")
    planes, seen = np.zeros(len(bits), bool), np.zeros(bits.shape[1:], bool)
    count = max(1, CHUNK // seen.size)
    for k in range(0, len(bits), count):
        highest = bits[k : k + count].max(axis=2)
        planes[k : k + count] = highest.any(axis=1)
        if highest.any():
            seen |= bits[k : k + count].max(axis=0) > 0
    return extent(planes), extent(seen.any(axis=1)), extent(seen.any(axis=0))


def common(one: Block, other: Block) -> Block:
    """Return the intersection of two blocks; its parts have no length if it is empty."""
    starts = [max(a.start, b.start) for a, b in zip(one, other, strict=True)]
    stops = [min(a.stop, b.stop) for a, b in zip(one, other, strict=True)]
    return tuple(slice(a, max(a, b)) for a, b in zip(starts, stops, strict=True))


def whole_block(shape: tuple[int, int, int]) -> Block:
    """Return the block of a whole volume of `shape` (K, J, I)."""
    return tuple(slice(0, n) for n in shape)


def joined_patches(patches: Sequence[Patch]) -> Patch:
    """Return the union of several bool patches."""
    block = reduce(around, [patch.block for patch in patches]) if patches else NOTHING
    first = tuple(part.start for part in block)
    mask = np.zeros([part.stop - part.start for part in block], bool)
    for patch in patches:
        mask[moved(patch.block, [-n for n in first])] |= patch.mask
    return Patch(first, mask)


def around(one: Block, other: Block) -> Block:
    """Return the smallest block that holds two others."""
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )


def moved(block: Block, by: Sequence[int]) -> Block:
    """Return a block at another place, `by` (k, j, i) voxels farther."""
    return tuple(slice(a.start + n, a.stop + n) for a, n in zip(block, by, strict=True))


def extent(flags: np.ndarray) -> slice:
    """Return the range from the first to the last True of a bool array (n,)."""
    shown = np.flatnonzero(flags)
    return slice(int(shown[0]), int(shown[-1]) + 1) if shown.size else slice(0, 0)


def packed(mask: np.ndarray) -> bytes:
    """Compress a bool mask (rows, columns) to a few hundred bytes, as undo histories need many."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def packed_slices(masks: Iterable[tuple[int, np.ndarray]]) -> dict[int, bytes]:
    """Compress masks (rows, columns) with slice indices; those that show nothing are left out."""
    return {slice_index: packed(mask) for slice_index, mask in masks if mask.any()}


def unpacked(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Return the bool mask of `shape` (rows, columns) that `packed` was given."""
    bits = np.frombuffer(zlib.decompress(content), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)
