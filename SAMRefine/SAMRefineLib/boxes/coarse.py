# SPDX-License-Identifier: Apache-2.0
"""The mask of an organ that a refinement starts from."""

from dataclasses import dataclass

import numpy as np

from .boxes import SliceGrid, filter_mask

THRESHOLD = 0.5
"""Probability from which a voxel belongs to the mask."""

SURE = 0.75
"""The paper's theta 1: boxes around what is more probable."""

UNSURE = 0.75
"""A network is unsure of an organ where it is sure of a smaller part of its mask."""


@dataclass(frozen=True, eq=False)
class CoarseOrgan:
    """What a coarse network knows of an organ.

    Attributes:
        mask: (K, J, I) its probability, or a bool mask.
    """

    name: str
    value: int
    mask: np.ndarray


def sureness(mask: np.ndarray) -> float:
    """Share of a coarse mask that the network is sure of; 1 for a bool mask or an empty one."""
    if mask.dtype == bool:
        return 1.0
    shown = int((mask >= THRESHOLD).sum())
    return int((mask > SURE).sum()) / shown if shown else 1.0


class CoarseMask:
    """A coarse mask, its largest piece, and where it shows anything.

    Attributes:
        given: (K, J, I) probabilities, or a bool mask; not to be written to.
        voxels: how many it has, for the slices that show any.
    """

    def __init__(self, given: np.ndarray, grid: SliceGrid) -> None:
        self.given = given
        self._stack = grid.stack(given)
        mask, probability = given, None
        if given.dtype != bool:
            mask, probability = given >= THRESHOLD, given
        self._piece = grid.stack(filter_mask(mask, grid, probability, in_slices=False))
        counts = grid.stack(mask).sum(axis=(1, 2))
        self.voxels = {int(n): int(counts[n]) for n in np.flatnonzero(counts)}

    def shown(self, n: int) -> np.ndarray:
        """(rows, columns) bool: the mask of slice n as it came."""
        image = self._stack[n]
        return image if image.dtype == bool else image >= THRESHOLD

    def piece(self, n: int) -> np.ndarray:
        """(rows, columns) bool: the mask of slice n without strays, pieces apart from the largest
        in the volume."""
        return self._piece[n]

    def probability(self, n: int) -> np.ndarray:
        """(rows, columns) float16 of slice n, 0 where it shows strays."""
        strays = self.shown(n) & ~self.piece(n)
        return np.where(strays, 0, self._stack[n]).astype(np.float16)
