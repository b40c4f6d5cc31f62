# SPDX-License-Identifier: Apache-2.0
"""Volumes that belong to one scan, but are stored on another grid than the scan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform

from .errors import VolumeError
from .geometry import Geometry, Volume


def on_grid(volume: Volume, grid: Geometry, path: Path) -> Volume:
    """Return a volume's voxels on a scan's grid, the nearest neighbours if it has another grid.

    Args:
        volume: label map, or another volume that was made of the scan; it may be stored mirrored,
            with other axes or another spacing.
        path: its file, for messages.

    Raises:
        VolumeError: it does not fill the same box in space, but for half a voxel. A part of it
            could be a crop, or a stack that has lost slices.
    """
    if volume.geometry.matches(grid):
        return volume
    if not (_holds(grid, volume.geometry) and _holds(volume.geometry, grid)):
        raise VolumeError(_difference(volume.geometry, grid, path))
    to_volume = volume.geometry.inverse @ grid.affine
    matrix = to_volume[:3, :3][::-1, ::-1]  # arrays are (K, J, I)
    array = affine_transform(
        volume.array,
        matrix,
        to_volume[:3, 3][::-1],
        output_shape=grid.shape,
        order=0,
        mode="grid-constant",
    )
    remark = "It is stored on another grid than its scan; the nearest voxels were taken."
    return replace(volume, array=array, geometry=grid, remarks=(*volume.remarks, remark))


def _difference(volume: Geometry, grid: Geometry, path: Path) -> str:
    centres = np.linalg.norm(volume.centre - grid.centre)
    return (
        f"{path} does not lie where its scan does: {_size(volume)}, the scan {_size(grid)}, their "
        f"middles {centres:.3g} mm apart; resample it to the scan's grid (nearest neighbour)."
    )


def _size(geometry: Geometry) -> str:
    size = " x ".join(map(str, geometry.size))
    return f"{size} voxels of {' x '.join(f'{s:.3g}' for s in geometry.spacing)} mm"


def _holds(outer: Geometry, inner: Geometry) -> bool:
    """Tell whether a grid's box holds another's, but for half a voxel of the coarser one."""
    to_outer = outer.inverse @ inner.affine
    ends = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in inner.size))).reshape(3, -1)
    corners = to_outer[:3, :3] @ ends + to_outer[:3, 3:]
    slack = 0.5 * np.maximum(1.0, np.abs(to_outer[:3, :3]).max(1)) + 1e-3
    size = np.array(outer.size)
    return bool(
        (corners.min(1) >= -0.5 - slack).all() and (corners.max(1) <= size - 0.5 + slack).all()
    )
