# SPDX-License-Identifier: Apache-2.0
"""Smoothing and resampling of a whole scan in one step: one banded matrix per axis.

The network's grid is several times coarser than a scan. If their axes are parallel, smoothing by a
Gaussian and linear interpolation are a matrix per axis, and the axis that shrinks most goes first,
so that nearly all voxels of the scan are read once and not written at all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .geometry import Geometry
from .resampling import gaussian_taps, index_map, look_up, parallel_axes, points, sample, smooth_mm

BLOCK_VOXELS = 1 << 20
"""Voxels of the scan that are converted and multiplied at a time."""

BAND = 64
"""Voxels along the first axis that a block spans at least: neighbouring bands overlap."""


def smoothing_rows(length: int, spacing: float, sigma: float, positions: np.ndarray) -> np.ndarray:
    """Make the matrix that smooths an axis and interpolates it linearly, border replicated.

    Args:
        length: voxels of the axis.
        spacing: mm.
        sigma: of the Gaussian, mm, cut at 3 sigma (see `resampling.smooth_mm`); 0: none.
        positions: (n,) continuous indices on the axis; beyond it the border counts.

    Returns:
        (n, length) float32.
    """
    weights = gaussian_taps(spacing, sigma).numpy()
    offsets = np.arange(len(weights)) - len(weights) // 2
    last = length - 1
    clipped = np.clip(positions, 0, last)
    low = np.floor(clipped).astype(int)
    share = clipped - low
    rows = np.zeros((len(positions), length))
    for corner, part in ((low, 1 - share), (np.minimum(low + 1, last), share)):
        columns = np.clip(corner[:, None] + offsets, 0, last)
        np.add.at(rows, (np.arange(len(rows))[:, None], columns), part[:, None] * weights)
    return rows.astype(np.float32)


def multiplied(
    array: np.ndarray, convert: Callable[[np.ndarray], np.ndarray], rows: Sequence[np.ndarray]
) -> torch.Tensor:
    """Apply a matrix to each axis of a scan.

    Args:
        array: (K, J, I) voxels of any dtype.
        convert: makes float32 of any block of them.
        rows: for K, J and I: (K', K), (J', J) and (I', I) float32, each row with its weights close
            together.

    Returns:
        (K', J', I') float32.
    """
    first, *others = sorted(range(3), key=lambda axis: len(rows[axis]) / array.shape[axis])
    x = _first_axis(np.moveaxis(array, first, 0), convert, rows[first]).movedim(0, first)
    for axis in others:
        x = torch.tensordot(x, torch.from_numpy(rows[axis]), ([axis], [1])).movedim(-1, axis)
    return x.contiguous()


def _first_axis(
    array: np.ndarray, convert: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
) -> torch.Tensor:
    """Apply `rows` (n, L) to the leading axis of `array` (L, A, B): (n, A, B) float32."""
    length, width, depth = array.shape
    weights = torch.from_numpy(rows)
    out = torch.empty(len(rows), width, depth)

    def blocks() -> Iterator[tuple[slice, slice, slice]]:
        together = max(8, math.ceil(BAND * len(rows) / length))
        for start in range(0, len(rows), together):
            some = slice(start, start + together)
            columns = np.flatnonzero(rows[some].any(0))
            band = slice(int(columns[0]), int(columns[-1]) + 1)
            wide = max(1, BLOCK_VOXELS // ((band.stop - band.start) * depth))
            for left in range(0, width, wide):
                yield some, band, slice(left, left + wide)

    def multiply(block: tuple[slice, slice, slice]) -> None:
        some, band, part = block
        x = torch.from_numpy(convert(array[band, part]))
        product = weights[some, band] @ x.reshape(len(x), -1)
        out[some, part] = product.view(len(product), -1, depth)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(multiply, blocks()):
            pass
    return out


def sample_smoothed(
    array: np.ndarray,
    convert: Callable[[np.ndarray], np.ndarray],
    scan: Geometry,
    sigma: float,
    target: Geometry,
) -> torch.Tensor:
    """Smooth a scan on its own grid and interpolate it linearly at the voxels of another grid.

    The border of the scan is replicated beyond it.

    Args:
        array: (K, J, I) voxels of any dtype on `scan`.
        convert: makes float32 of any block of them.
        sigma: of the Gaussian, mm.

    Returns:
        (K', J', I') float32 on `target`.
    """
    matrix = index_map(target, scan)
    along = parallel_axes(matrix, target.size)
    if along is None:
        smoothed = smooth_mm(torch.from_numpy(convert(array)), scan.spacing, sigma)
        last = torch.tensor(scan.size, dtype=torch.float32) - 1
        where = points(matrix, target.size).clamp(min=torch.zeros(3)).minimum(last)
        return sample(smoothed[None], look_up(where, scan.shape))[0]
    rows: list[np.ndarray] = [np.empty(0)] * 3
    for axis, source in enumerate(along):
        positions = matrix[source, axis] * np.arange(target.size[axis]) + matrix[source, 3]
        rows[2 - source] = smoothing_rows(scan.size[source], scan.spacing[source], sigma, positions)
    x = multiplied(array, convert, rows)
    return x.permute(*(2 - along[::-1]).tolist())
