# SPDX-License-Identifier: Apache-2.0
"""Smoothing, and moving arrays between grids; on the device of the tensors handed in."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .geometry import Geometry


def gaussian_matrix(
    length: int, sigma: float, radius: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(length, length) float32: row r holds the weights of a Gaussian around r, border replicated.

    Smoothing an axis is then one matrix product, the fastest way on CPU and GPU for the axes of a
    network's window.
    """
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).repeat(length, 1)
    columns = (torch.arange(length)[:, None] + offsets.long()).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, columns, weights)
    return matrix.to(device=device, dtype=torch.float32)


def smooth_voxels(x: torch.Tensor, sigma: float = 1.0, radius: int = 2) -> torch.Tensor:
    """Gaussian of `sigma` voxels, 2 * radius + 1 taps per axis, border replicated.

    Args:
        x: (N, C, *spatial) float32 with two or three spatial axes.
    """
    for axis in range(2, x.dim()):
        matrix = gaussian_matrix(x.shape[axis], sigma, radius, x.device)
        rows = x.flatten(axis + 1) if axis + 1 < x.dim() else x.unsqueeze(-1)
        x = (matrix @ rows if axis + 1 < x.dim() else x @ matrix.T).reshape(x.shape)
    return x


def smooth_mm(x: torch.Tensor, spacing: np.ndarray, sigma: float) -> torch.Tensor:
    """Gaussian of `sigma` mm on the volume's own grid, cut at 3 sigma, border replicated.

    Args:
        x: (K, J, I) float32.
        spacing: mm along (I, J, K).
    """
    volume = x[None, None]
    for axis, step in zip((2, 3, 4), spacing[::-1], strict=True):
        radius = math.ceil(3 * sigma / step - 0.5)
        if sigma <= 0 or radius == 0:
            continue
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64) * float(step)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        weights = (weights / weights.sum()).to(device=x.device, dtype=x.dtype)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = radius
        padded = F.pad(volume, padding, mode="replicate")
        length = volume.shape[axis]
        volume = sum(
            weight * padded.narrow(axis, tap, length) for tap, weight in enumerate(weights)
        )
    return volume[0, 0]


def index_map(target: Geometry, source: Geometry) -> np.ndarray:
    """4x4, voxel index (i, j, k) of `target` -> continuous voxel index (i, j, k) of `source`."""
    return source.inverse @ target.affine


def points(
    matrix: np.ndarray, size: tuple[int, int, int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(K, J, I, 3) float32: `matrix` applied to every index (i, j, k) of a grid of `size`."""
    matrix = torch.as_tensor(matrix, dtype=torch.float32, device=device)
    i, j, k = (torch.arange(n, device=device, dtype=torch.float32) for n in size)
    return (
        k[:, None, None, None] * matrix[:3, 2]
        + j[:, None, None] * matrix[:3, 1]
        + (i[:, None] * matrix[:3, 0] + matrix[:3, 3])
    )


@dataclass(frozen=True, eq=False)
class Lookup:
    """Where points fall in a volume: made once, used for an image and its labels.

    Attributes:
        part: slices of (K, J, I) that hold all the voxels the points touch.
        grid: (slabs, ...) the points in `torch.nn.functional.grid_sample`'s coordinates of `part`.
        inside: (K', J', I') False beyond the outer faces of the outer voxels.
    """

    part: tuple[slice, slice, slice]
    grid: torch.Tensor
    inside: torch.Tensor


def look_up(where: torch.Tensor, shape: tuple[int, int, int]) -> Lookup:
    """Prepare sampling a volume of `shape` (K, J, I) at (K', J', I', 3) indices (i, j, k)."""
    size = torch.tensor(tuple(shape)[::-1], device=where.device, dtype=where.dtype)
    inside = torch.ones_like(where[..., 0], dtype=torch.bool)
    for axis in range(3):
        along = where[..., axis]
        inside &= (along > -0.5) & (along < size[axis] - 0.5)
    low = torch.stack([where[..., a].min() for a in range(3)]).floor().clamp(min=0)
    low = low.minimum(size - 1)
    high = torch.stack([where[..., a].max() for a in range(3)]).ceil() + 1
    high = high.maximum(low + 1).minimum(size)
    grid = where * (2 / (high - low)) + ((1 - 2 * low) / (high - low) - 1)
    # CPU grid_sample is parallel over the batch alone, so the points are dealt out in slabs.
    slabs = math.gcd(len(grid), 8) if where.device.type == "cpu" else 1
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
