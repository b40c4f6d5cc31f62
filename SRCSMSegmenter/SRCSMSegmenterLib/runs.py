# SPDX-License-Identifier: Apache-2.0
"""Masks as runs of voxels along I: few numbers, as organs fill a small part of a large scan."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .blocks import Block

SLAB = 16
"""Planes of a label map whose runs are looked for together."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of labelled voxels in the order of the array; neighbours of one label are one run.

    Attributes:
        shape: (K, J, I) of the label map.
        rows: (runs,) number of the row, k * J + j.
        starts, stops: (runs,) first voxel i of the run, and that after its last.
    """

    shape: tuple[int, int, int]
    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: np.ndarray | slice) -> "Runs":
        return Runs(self.shape, self.rows[some], self.starts[some], self.stops[some])

    @property
    def lengths(self) -> np.ndarray:
        """(runs,) voxels of each."""
        return self.stops - self.starts

    @property
    def box(self) -> Block:
        """The smallest block that holds all runs, of which there must be one."""
        k, j = np.divmod(self.rows, self.shape[1])
        ends = (k[0], k[-1] + 1), (j.min(), j.max() + 1), (self.starts.min(), self.stops.max())
        return tuple(slice(int(start), int(stop)) for start, stop in ends)

    def fill(self, array: np.ndarray, box: Block, value: int) -> None:
        """Set all voxels to a value in the array of a box that holds the runs."""
        np.put(array, self.voxels(box), value)

    def voxels(self, box: Block) -> np.ndarray:
        """Return the places of all voxels in the flattened array of a box that holds the runs."""
        lengths = self.lengths
        before = np.cumsum(lengths) - lengths
        return np.repeat(self._firsts(box) - before, lengths) + np.arange(lengths.sum())

    def sums(self, values: np.ndarray, box: Block) -> np.ndarray:
        """Add up the values (k, j, i) of a box that holds the runs over each: (runs,) float64."""
        firsts = self._firsts(box)
        ends = np.stack((firsts, firsts + self.lengths), 1).reshape(-1)
        ends = ends[: len(ends) - int(ends[-1] == values.size)]
        # Sums of what lies between two runs are left out.
        return np.add.reduceat(values.reshape(-1), ends, dtype=np.float64)[::2]

    def _firsts(self, box: Block) -> np.ndarray:
        """Return the place of each run's first voxel in the flattened array of a box."""
        planes, rows, columns = box
        j, i = rows.stop - rows.start, columns.stop - columns.start
        k, row = np.divmod(self.rows, self.shape[1])
        first = ((k - planes.start).astype(np.int64) * j + row - rows.start) * i
        return first + self.starts - columns.start

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the voxels in each plane of K, J and I."""
        planes, height, width = self.shape
        k, j = np.divmod(self.rows, height)
        change = np.bincount(self.starts, minlength=width + 1)
        change -= np.bincount(self.stops, minlength=width + 1)
        return (
            np.bincount(k, self.lengths, planes),
            np.bincount(j, self.lengths, height),
            np.cumsum(change)[:-1],
        )

    def slabs(self) -> Iterator[slice]:
        """Yield which runs lie in each `SLAB` planes, if any do."""
        ends = np.arange(0, self.shape[0] + SLAB, SLAB) * self.shape[1]
        places = np.searchsorted(self.rows, ends)
        for start, stop in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
            if start < stop:
                yield slice(start, stop)


def runs_of(labels: np.ndarray) -> tuple[Runs, np.ndarray]:
    """Find the runs of all labels.

    Args:
        labels: (K, J, I) integers, 0 is background.

    Returns:
        The runs, and (runs,) the label of each.
    """
    _, height, width = labels.shape
    rows, starts, stops, values = [], [], [], []
    for k in range(0, len(labels), SLAB):
        slab = labels[k : k + SLAB].reshape(-1, width)
        if not slab.any():
            continue
        change = np.empty((len(slab), width + 1), bool)
        change[:, 0], change[:, -1] = slab[:, 0] != 0, slab[:, -1] != 0
        np.not_equal(slab[:, 1:], slab[:, :-1], out=change[:, 1:-1])
        row, i = np.divmod(np.flatnonzero(change), width + 1)
        value = slab[row, np.minimum(i, width - 1)]
        value[i == width] = 0
        begins = np.flatnonzero(value)
        rows.append((row[begins] + k * height).astype(np.int32))
        starts.append(i[begins].astype(np.int32))
        stops.append(i[begins + 1].astype(np.int32))  # each run ends where the next change is
        values.append(value[begins])
    if not rows:
        rows = starts = stops = [np.zeros(0, np.int32)]
        values = [np.zeros(0, labels.dtype)]
    joined = (np.concatenate(parts) for parts in (rows, starts, stops))
    return Runs(labels.shape, *joined), np.concatenate(values)


def connected(runs: Runs, values: np.ndarray) -> np.ndarray:
    """Find the first run of the face-connected component that each run belongs to.

    Args:
        values: (runs,) label of each; only runs of one label are connected.

    Returns:
        (runs,) index of the component's first run.
    """
    one, other = _touching(runs)
    same = values[one] == values[other]
    one, other = one[same], other[same]
    roots = np.arange(len(runs))
    while len(one):
        high, low = np.maximum(roots[one], roots[other]), np.minimum(roots[one], roots[other])
        np.minimum.at(roots, high, low)
        while not np.array_equal(further := roots[roots], roots):
            roots = further
        apart = roots[one] != roots[other]
        one, other = one[apart], other[apart]
    return roots


def _touching(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Pair each run with those in the next row and the next plane that it touches by a face."""
    _, height, width = runs.shape
    wide = np.int64(width + 1)  # so that the end of a row is not the start of the next
    first, last = runs.rows * wide + runs.starts, runs.rows * wide + runs.stops
    pairs = []
    for step, some in (
        (1, np.flatnonzero(runs.rows % height < height - 1)),
        (height, np.arange(len(runs))),
    ):
        low = np.searchsorted(last, first[some] + step * wide, side="right")
        high = np.searchsorted(first, last[some] + step * wide, side="left")
        counts = np.maximum(high - low, 0)
        before = np.cumsum(counts) - counts
        others = np.repeat(low - before, counts) + np.arange(counts.sum())
        pairs.append((np.repeat(some, counts), others))
    (one, other), (third, fourth) = pairs
    return np.concatenate([one, third]), np.concatenate([other, fourth])
