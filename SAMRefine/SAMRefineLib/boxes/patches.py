# SPDX-License-Identifier: Apache-2.0
"""Compact masks: the block of a volume that shows something, and packed masks of slices."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask of a volume that is False outside a block.

    Attributes:
        first: the block's first voxel (k, j, i).
        mask: the block's mask, bool (k, j, i).
    """

    first: tuple[int, int, int]
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> "Patch":
        """Copy the smallest block that shows anything of a bool array (K, J, I)."""
        planes = _extent(mask.any(axis=(1, 2)))
        seen = mask[planes].any(axis=0)  # the whole array is read only once
        block = planes, _extent(seen.any(axis=1)), _extent(seen.any(axis=0))
        return cls(tuple(part.start for part in block), mask[block].copy())

    @property
    def block(self) -> tuple[slice, slice, slice]:
        """Position of the block in a (K, J, I) array."""
        return tuple(slice(n, n + m) for n, m in zip(self.first, self.mask.shape, strict=True))

    def whole(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return the mask of a whole volume, bool of `shape` (K, J, I)."""
        whole = np.zeros(shape, bool)
        whole[self.block] = self.mask
        return whole


def _extent(flags: np.ndarray) -> slice:
    """Return the range from the first to the last True of a bool array (n,)."""
    shown = np.flatnonzero(flags)
    return slice(int(shown[0]), int(shown[-1]) + 1) if shown.size else slice(0, 0)


def packed(mask: np.ndarray) -> bytes:
    """Compress a bool mask (rows, columns) to a few hundred bytes, as undo histories need many."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def packed_slices(masks: Mapping[int, np.ndarray]) -> dict[int, bytes]:
    """Compress masks (rows, columns) by slice index; those that show nothing are left out."""
    return {slice_index: packed(mask) for slice_index, mask in masks.items() if mask.any()}


def unpacked(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Return the bool mask of `shape` (rows, columns) that `packed` was given."""
    bits = np.frombuffer(zlib.decompress(content), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)
