# SPDX-License-Identifier: Apache-2.0
"""Blocks of volumes, whose memory grows with the organ's size instead of the scan's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Block = tuple[slice, slice, slice]
"""A part of a volume, slices (K, J, I)."""


@dataclass(frozen=True, eq=False)
class ProbabilityBlock:
    """The probability of a label, 0 beyond a block.

    Attributes:
        first: the block's first voxel (k, j, i).
        values: float16 (k, j, i).
    """

    first: tuple[int, int, int]
    values: np.ndarray

    def whole(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return the probability on a whole scan, float16 of `shape` (K, J, I)."""
        whole = np.zeros(shape, self.values.dtype)
        ends = zip(self.first, self.values.shape, strict=True)
        whole[tuple(slice(start, start + length) for start, length in ends)] = self.values
        return whole


def whole_block(shape: Sequence[int]) -> Block:
    """Return the block that is the whole volume."""
    return tuple(slice(0, length) for length in shape)


def block_around(blocks: Sequence[Block]) -> Block:
    """Return the smallest block that holds others."""
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*blocks, strict=True)
    )


def block_within(block: Block, outer: Block) -> Block:
    """Return the place of a block in the array of another one that holds it."""
    return tuple(
        slice(one.start - other.start, one.stop - other.start)
        for one, other in zip(block, outer, strict=True)
    )
