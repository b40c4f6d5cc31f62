# SPDX-License-Identifier: Apache-2.0
"""Smoothing and resampling between grids, on the device of the given tensors."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .geometry import Geometry

CACHED_VOXELS = 1 << 17
"""Voxels smoothed at a time."""


def smooth_voxels(x: torch.Tensor, sigma: float = 1.0, radius: int = 2) -> torch.Tensor:
    """Smooth by a Gaussian of `sigma` voxels, 2 * radius + 1 taps per axis, border replicated.

    Args:
        x: (N, C, *spatial) float32 with two or three spatial axes.
    """
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    for axis in range(2, x.dim()):
        x = _smoothed(x, axis, weights)
    return x


def _smoothed(x: torch.Tensor, axis: int, taps: torch.Tensor) -> torch.Tensor:
    """Filter one axis by an odd number of taps, border replicated."""
    first, *others = taps.tolist()
    radius, length = len(others) // 2, x.shape[axis]
    replicated = torch.arange(-radius, length + radius, device=x.device).clamp(0, length - 1)
    smoothed = torch.empty_like(x)
    # Blocks that stay in a core's cache are smoothed seven times as fast.
    across = 0 if axis else 1
    voxels = CACHED_VOXELS if x.device.type == "cpu" else x.numel()
    block = max(1, math.ceil(voxels * x.shape[across] / max(1, x.numel())))
    pieces = zip(x.split(block, across), smoothed.split(block, across), strict=True)
    for piece, out in pieces:
        padded = piece.index_select(axis, replicated)
        torch.mul(padded.narrow(axis, 0, length), first, out=out)
        for tap, weight in enumerate(others, start=1):
            out.add_(padded.narrow(axis, tap, length), alpha=weight)
    return smoothed


def gaussian_taps(spacing: float, sigma: float) -> torch.Tensor:
    """Compute the weights of a Gaussian of `sigma` mm at the voxels of an axis, cut at 3 sigma.

    Returns:
        (2 * radius + 1,) float64 that sum to 1; a single 1 if no neighbour counts.
    """
    radius = math.ceil(3 * sigma / spacing - 0.5) if sigma > 0 else 0
    if radius == 0:
        return torch.ones(1, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64) * float(spacing)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def smooth_mm(x: torch.Tensor, spacing: np.ndarray, sigma: float) -> torch.Tensor:
    """Smooth by a Gaussian of `sigma` mm on the volume's own grid, cut at 3 sigma.

    The border is replicated.

    Args:
        x: (K, J, I) float32.
        spacing: mm along (I, J, K).
    """
    for axis, step in enumerate(spacing[::-1]):
        taps = gaussian_taps(step, sigma)
        x = _smoothed(x, axis, taps) if len(taps) > 1 else x
    return x


def index_map(target: Geometry, source: Geometry) -> np.ndarray:
    """Compute the 4x4 from voxel indices (i, j, k) of `target` to continuous ones of `source`."""
    return source.inverse @ target.affine


def points(
    matrix: np.ndarray, size: tuple[int, int, int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Apply `matrix` to every index (i, j, k) of a grid of `size`: (K, J, I, 3) float32."""
    matrix = torch.as_tensor(matrix, dtype=torch.float32, device=device)
    i, j, k = (torch.arange(n, device=device, dtype=torch.float32) for n in size)
    return (
        k[:, None, None, None] * matrix[:3, 2]
        + j[:, None, None] * matrix[:3, 1]
        + (i[:, None] * matrix[:3, 0] + matrix[:3, 3])
    )


@dataclass(frozen=True, eq=False)
class Lookup:
    """Places of points in a volume: computed once, used for an image and its labels.

    Attributes:
        part: slices of (K, J, I) that hold all the voxels the points touch.
        grid: (slabs, ...) the points in `torch.nn.functional.grid_sample`'s coordinates of `part`.
        inside: (K', J', I') False beyond the outer faces of the outer voxels.
    """

    part: tuple[slice, slice, slice]
    grid: torch.Tensor
    inside: torch.Tensor


def look_up(positions: torch.Tensor, shape: tuple[int, int, int]) -> Lookup:
    """Prepare sampling a volume of `shape` (K, J, I) at (K', J', I', 3) indices (i, j, k)."""
    size = torch.tensor(tuple(shape)[::-1], device=positions.device, dtype=positions.dtype)
    inside = torch.ones_like(positions[..., 0], dtype=torch.bool)
    for axis in range(3):
        along = positions[..., axis]
        inside &= (along > -0.5) & (along < size[axis] - 0.5)
    low = torch.stack([positions[..., a].min() for a in range(3)]).floor().clamp(min=0)
    low = low.minimum(size - 1)
    high = torch.stack([positions[..., a].max() for a in range(3)]).ceil() + 1
    high = high.maximum(low + 1).minimum(size)
    grid = positions * (2 / (high - low)) + ((1 - 2 * low) / (high - low) - 1)
    # CPU grid_sample is parallel over the batch alone, so the points are dealt out in slabs.
    slabs = math.gcd(len(grid), 8) if positions.device.type == "cpu" else 1
    starts, ends = low.long().tolist(), high.long().tolist()
    part = tuple(slice(a, b) for a, b in zip(starts[::-1], ends[::-1], strict=True))
    return Lookup(part, grid.reshape(slabs, -1, *grid.shape[1:]), inside)


def sample(
    volume: torch.Tensor, lookup: Lookup, mode: str = "linear", outside: float = 0.0
) -> torch.Tensor:
    """Interpolate a volume at the points of a lookup.

    Args:
        volume: (C, K, J, I), any real dtype and device; only the part that is read moves to the
            points' device.
        mode: "linear" or "nearest".
        outside: value of points beyond the outer faces of the outer voxels.

    Returns:
        (C, K', J', I') float32.
    """
    k, j, i = lookup.part
    part = volume[:, k, j, i].to(lookup.grid.device).to(torch.float32)
    sampled = F.grid_sample(
        part.expand(len(lookup.grid), *part.shape),
        lookup.grid,
        mode="bilinear" if mode == "linear" else "nearest",
        padding_mode="border",
        align_corners=False,
    )
    sampled = sampled.transpose(0, 1).reshape(volume.shape[0], *lookup.inside.shape)
    return sampled.masked_fill_(~lookup.inside, outside)


def resample(
    volume: torch.Tensor, matrix: np.ndarray, size: tuple[int, int, int], outside: float = 0.0
) -> torch.Tensor:
    """Interpolate a volume linearly at every voxel of another grid.

    The same as `sample` at `points(matrix, size)`. If the axes of the two grids are parallel, it is
    done axis by axis, which is many times as fast on a CPU.

    Args:
        volume: (C, K, J, I) float32.
        matrix: `index_map(target, source)`.
        size: of the target, (I, J, K).
        outside: value of points beyond the outer faces of the outer voxels.

    Returns:
        (C, K', J', I') float32.
    """
    along = parallel_axes(matrix, size)
    if along is None:
        positions = points(matrix, size, volume.device)
        return sample(volume, look_up(positions, volume.shape[1:]), outside=outside)
    places = {}
    for target, source in enumerate(along.tolist()):
        positions = matrix[source, target] * np.arange(size[target]) + matrix[source, 3]
        places[target] = _Places.of(positions, volume.shape[3 - source], 3 - source)
        volume = places[target].narrowed(volume)
    for target in (2, 0, 1):  # thin slabs along K get thin at once; rows along J are contiguous
        volume = places[target].interpolated(volume, outside)
    return volume.permute(0, *(3 - along[::-1]).tolist())


def parallel_axes(matrix: np.ndarray, size: tuple[int, int, int]) -> np.ndarray | None:
    """Tell along which source axis each target axis runs, if all run along one.

    Args:
        matrix: `index_map(target, source)`.
        size: of the target, (I, J, K).

    Returns:
        (3,) source axes (0 is I) for the target's I, J, K; None if a voxel of the target is off by
        over a thousandth of a source voxel.
    """
    linear, last = matrix[:3, :3], np.array(size) - 1
    along = np.abs(linear).argmax(0)
    if sorted(along) != [0, 1, 2]:
        return None
    astray = np.abs(linear) @ last - np.abs(linear[along, range(3)] * last)[np.argsort(along)]
    return along if astray.max() <= 1e-3 else None


@dataclass(frozen=True, eq=False)
class _Places:
    """Places along an axis of (C, K, J, I), between which values are interpolated linearly.

    Attributes:
        first, stop: of the part of the axis that the places touch.
        positions: (n,) continuous indices within that part.
        outside: of the places, those beyond the outer faces of the axis.
    """

    axis: int
    first: int
    stop: int
    positions: np.ndarray
    outside: np.ndarray

    @classmethod
    def of(cls, positions: np.ndarray, length: int, axis: int) -> "_Places":
        """Take continuous indices on an axis of a length; beyond its ends these count."""
        within = np.clip(positions, 0, length - 1)
        first, stop = int(within.min()), min(int(within.max()) + 2, length)
        outside = (positions <= -0.5) | (positions >= length - 0.5)
        return cls(axis, first, stop, within - first, np.flatnonzero(outside))

    def narrowed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part of a volume that the places touch."""
        return x.narrow(self.axis, self.first, self.stop - self.first)

    def interpolated(self, x: torch.Tensor, outside: float) -> torch.Tensor:
        """Interpolate a narrowed volume."""
        if self.axis < 3 and x.device.type == "cpu":
            x = self._blended(x)
        else:
            weights = 1 - np.abs(self.positions[:, None] - np.arange(x.shape[self.axis]))
            matrix = torch.tensor(weights.clip(min=0), dtype=x.dtype, device=x.device)
            x = (x.movedim(self.axis, 3) @ matrix.T).movedim(3, self.axis)
        if len(self.outside):
            x.index_fill_(self.axis, torch.from_numpy(self.outside).to(x.device), outside)
        return x

    def _blended(self, x: torch.Tensor) -> torch.Tensor:
        """Interpolate along K or J on the CPU.

        Each row of the result is a weighted sum of two rows, which `embedding_bag` computes ten
        times as fast as a product by a matrix that is mostly 0.
        """
        outer, length, inner = x.shape[: self.axis], x.shape[self.axis], x.shape[self.axis + 1 :]
        low = np.floor(self.positions).astype(int)
        share = self.positions - low
        pairs = np.array((low, np.minimum(low + 1, length - 1))).T
        firsts = np.arange(outer.numel())[:, None, None] * length
        weights = np.array((1 - share, share), np.float32).T
        blended = F.embedding_bag(
            torch.from_numpy((firsts + pairs).reshape(-1, 2)),
            x.reshape(-1, inner.numel()),
            per_sample_weights=torch.from_numpy(np.tile(weights, (outer.numel(), 1))),
            mode="sum",
        )
        return blended.view(*outer, len(low), *inner)
