# SPDX-License-Identifier: Apache-2.0
"""Placement of a network's windows over a scan."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .geometry import Geometry, GridSpec


@dataclass(frozen=True, eq=False)
class Extent:
    """A box along a network grid's axes.

    Attributes:
        low, high: (3,) mm along the grid's I, J and K axes.
        directions: 3x3, columns are the unit vectors of those axes in RAS.
    """

    low: np.ndarray
    high: np.ndarray
    directions: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        """(3,) RAS mm of the middle."""
        return self.directions @ ((self.low + self.high) / 2)


def otsu_threshold(array: np.ndarray) -> float:
    """Compute Otsu's threshold on a histogram of 256 bins; `array` may have any shape.

    All voxels of an array without contrast, but for rounding, lie above its threshold.
    """
    low, high = float(array.min()), float(array.max())
    if high - low <= max(1e-5 * abs(low), 1e-5 * abs(high), 1e-30):
        return low - 0.5
    counts, edges = np.histogram(array, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.argmax(np.nan_to_num(between))])


def scan_extent(scan: Geometry, grid: GridSpec) -> Extent:
    """Compute the scan's own bounding box along the grid's axes, voxel faces included."""
    directions = grid.directions_over(scan)
    faces = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in scan.size))))
    along = scan.to_ras(faces) @ directions
    return Extent(along.min(0), along.max(0), directions)


def thin_scan_doubts(scan: Geometry, grid: GridSpec) -> list[str]:
    """Tell in a sentence if the scan fills less than half of a window in some direction.

    The middle 62 mm of an MR, half of the window of `abdomen-ct`, were enough for its liver in one
    scan (Dice 0.93) and not in another (0.40); the whole scan was in both.
    """
    extent = scan_extent(scan, grid)
    seen, window = extent.high - extent.low, np.multiply(grid.size, grid.spacing)
    axis = int(np.argmin(np.where(np.array(grid.size) > 1, seen / window, np.inf)))
    if grid.size[axis] == 1 or seen[axis] >= window[axis] / 2:
        return []
    return [
        f"The scan measures only {seen[axis]:.0f} mm in one direction; the network sees "
        f"{window[axis]:.0f} mm at once. Organs may be missing or wrong: check the labels."
    ]


def body_extent(array: np.ndarray, scan: Geometry, grid: GridSpec) -> Extent:
    """Estimate the body's bounding box along the grid's axes.

    The body is what lies above Otsu's threshold, less the outermost hundredth of its voxels on
    each side of each axis, so that a table or an arm does not move the centre. If the body comes
    within a twentieth of the scan's face, as at the head and feet sides, the face is its end.

    Args:
        array: (K, J, I) intensities, scaled (`intensity.scale`) and smoothed.
    """
    k, j, i = body_steps(array.shape)
    return sampled_body_extent(array[::k, ::j, ::i], scan, grid)


def body_steps(shape: Sequence[int]) -> list[int]:
    """Choose along which voxels of a scan's axes the body is looked for: every n-th one."""
    return [max(1, n // 96) for n in shape]


def sampled_body_extent(coarse: np.ndarray, scan: Geometry, grid: GridSpec) -> Extent:
    """Find the body's bounding box, see `body_extent`, from every n-th voxel of a scan.

    Args:
        coarse: (K', J', I') intensities at the multiples of `body_steps(scan.shape)`.
    """
    whole = scan_extent(scan, grid)
    kji = np.argwhere(coarse > otsu_threshold(coarse)) * body_steps(scan.shape)
    if len(kji) == 0:
        return whole
    along = scan.to_ras(kji[:, ::-1]) @ whole.directions
    low, high = np.percentile(along, (1, 99), axis=0)
    near = (whole.high - whole.low) / 20
    return Extent(
        np.where(low - whole.low < near, whole.low, low),
        np.where(whole.high - high < near, whole.high, high),
        whole.directions,
    )


def centre_range(body: Extent, scan: Extent, grid: GridSpec) -> tuple[np.ndarray, np.ndarray]:
    """Compute the range of a window's centre along the grid's axes.

    Along an axis on which the body fits into the field of view, the range is the body's centre
    alone; along the others, the window's faces stay within the scan.

    Returns:
        (3,) low and (3,) high ends in mm.
    """
    middle = (body.low + body.high) / 2
    fits = body.high - body.low <= grid.extent
    low = np.where(fits, middle, scan.low + grid.extent / 2)
    high = np.where(fits, middle, scan.high - grid.extent / 2)
    return low, high


def covering_centres(
    body: Extent, scan: Extent, grid: GridSpec, overlap: float = 0.5
) -> list[np.ndarray]:
    """List centres (RAS mm) of windows that cover a scan, neighbours sharing `overlap` or more."""
    low, high = centre_range(body, scan, grid)
    counts = np.ceil((high - low) / (grid.extent * (1 - overlap)) - 1e-9).astype(int) + 1
    axes = [np.linspace(*ends) for ends in zip(low, high, counts, strict=True)]
    return [body.directions @ np.array(ijk) for ijk in itertools.product(*axes)]


def covering_grid(
    body: Extent, scan: Extent, grid: GridSpec, overlap: float = 0.5
) -> tuple[Geometry, list[tuple[int, int, int]]]:
    """Lay one grid of the network's spacing over a scan, and windows over the grid.

    The windows are those of `covering_centres`, moved by less than a voxel so that all lie on one
    grid.

    Returns:
        The grid, and the first index (i, j, k) of each window of `grid.size` on it.
    """
    low, high = centre_range(body, scan, grid)
    beyond = np.ceil((high - low) / np.array(grid.spacing) - 1e-9).astype(int)
    whole = replace(grid, size=tuple(np.array(grid.size) + beyond))
    middle = body.directions @ ((low + high) / 2)
    return whole.placed(middle, body.directions), window_starts(whole.size, grid.size, overlap)


def window_starts(
    total: Sequence[int], size: Sequence[int], overlap: float
) -> list[tuple[int, int, int]]:
    """List the first indices of evenly spread windows that cover `total`.

    All triples have one order, (i, j, k) or (k, j, i). Neighbours share the fraction `overlap` of a
    window or more, up to rounding to whole voxels, which leaves no gap.
    """
    axes = []
    for n, m in zip(total, size, strict=True):
        windows = int(np.ceil((n - m) / (m * (1 - overlap)) - 1e-9)) + 1
        starts = np.rint(np.linspace(0, n - m, windows)).astype(int)
        axes.append(np.unique(starts).tolist())  # windows of one voxel cannot overlap
    return list(itertools.product(*axes))
