# SPDX-License-Identifier: Apache-2.0
"""NIfTI-1 in one file (https://nifti.nimh.nih.gov/nifti-1).

Where a header leaves a choice, such as that between its two forms, ITK's is followed, so that a
file lies here where Slicer shows it.
"""

import io
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import VolumeError
from ..geometry import Geometry
from ..volume_writing import FLIP_XY, NIFTI_TYPES
from .stored import Inflated, StoredVolume, open_regular, refuse_several_values, require_three_axes

HEADER = 348
FIRST_VOXEL = 352

MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Of a metre and of a micrometre, by the code of the unit; all others are taken for millimetres."""

SECONDS = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
"""Of each unit of time by its code, 0 being none; the fourth axis of other units is not time."""


class _Form(NamedTuple):
    """One of the two ways in which a header says where the voxels lie.

    Attributes:
        code: 0 if the header does not use it, 1 for the scanner's space.
        affine: 4x4, voxel -> RAS, in the header's unit; None if its numbers make no grid.
    """

    name: str
    code: int
    affine: np.ndarray | None


class StoredFrames(NamedTuple):
    """The volumes of a 4-D file, one or more.

    Attributes:
        volumes: all of them as one whose slices follow each other.
        count: number of volumes.
        interval: seconds from one to the next, 0 if the file does not say.
    """

    volumes: StoredVolume
    count: int
    interval: float


def locate(path: Path) -> StoredVolume:
    """Read the header of a .nii or .nii.gz file that holds one volume.

    Raises:
        VolumeError: no NIfTI-1 file; 2-D, 4-D, several values a voxel; no usable geometry.
        OSError, EOFError, zlib.error, ValueError: unreadable, or damaged.
    """
    stored, count, _ = locate_frames(path)
    if count > 1:
        size = stored.geometry.size
        require_three_axes(path, [*size[:2], size[2] // count, count])
    return stored


def locate_frames(path: Path) -> StoredFrames:
    """Read the header of a .nii or .nii.gz file that holds one volume or several.

    Raises:
        VolumeError: as `locate`, but for 4-D.
        OSError, EOFError, zlib.error, ValueError: unreadable, or damaged.
    """
    with open_regular(path) as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        raw = (io.BufferedReader(Inflated(file)) if compressed else file).read(HEADER)
    if len(raw) < HEADER:
        raise VolumeError(f"{path} is truncated: it ends within its header.")
    order = "<" if raw[:4] == struct.pack("<i", HEADER) else ">"
    if struct.unpack_from(f"{order}i", raw)[0] != HEADER or raw[344:347] != b"n+1":
        raise VolumeError(f"{path} is not a NIfTI-1 file; convert it, or write it again.")

    rank, *dims = struct.unpack_from(f"{order}8h", raw, 40)
    if not 1 <= rank <= 7:
        raise VolumeError(f"{path} has a header with {rank} dimensions; write it again.")
    size = dims[:rank]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    datatype = struct.unpack_from(f"{order}h", raw, 70)[0]
    names = {code: name for name, code in NIFTI_TYPES.items()}
    if datatype not in names or math.prod(size[4:]) > 1:  # the fifth axis is that of vectors
        refuse_several_values(path)
    count = size.pop() if len(size) == 4 else 1
    require_three_axes(path, size)
    if count < 1:
        raise VolumeError(f"{path} has a header with {count} volumes; write it again.")
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    offset = _first_voxel(path, offset)
    if not math.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    elif not math.isfinite(intercept):
        raise VolumeError(f"{path} has a header whose intercept is no number; write it again.")
    geometry, remarks = _geometry(path, raw, order, size)
    volumes = StoredVolume(
        Geometry((*size[:2], size[2] * count), geometry.affine),
        np.dtype(names[datatype]).newbyteorder(order),
        path,
        start=0 if compressed else offset,
        packing="deflate" if compressed else "raw",
        skip=offset if compressed else 0,
        slope=slope,
        intercept=intercept,
        remarks=remarks,
    )
    interval = struct.unpack_from(f"{order}f", raw, 92)[0] * SECONDS.get(raw[123] & 56, 0.0)
    known = count > 1 and math.isfinite(interval) and interval > 0
    return StoredFrames(volumes, count, interval if known else 0.0)


def _first_voxel(path: Path, offset: float) -> int:
    if not FIRST_VOXEL <= offset < 2**40 or offset != int(offset):
        raise VolumeError(
            f"{path} says that its voxels begin at byte {offset:g}, which is within its header or "
            "no place at all; write it again."
        )
    return int(offset)


def _geometry(
    path: Path, raw: bytes, order: str, size: list[int]
) -> tuple[Geometry, tuple[str, ...]]:
    """Return the grid, and what the user should know of how it was found."""
    pixdim = np.array(struct.unpack_from(f"{order}8f", raw, 76), float)
    q_code, s_code = struct.unpack_from(f"{order}2h", raw, 252)
    edges = np.abs(pixdim[1:4])
    if not (np.isfinite(edges) & (edges > 0)).all():
        edges = None
    qform = _Form("qform", q_code, _quaternion_affine(raw, order, pixdim[0], edges))
    sform = _Form("sform", s_code, _grid_affine(struct.unpack_from(f"{order}12f", raw, 280)))
    unusable = [f for f in (qform, sform) if f.code and f.affine is None]
    usable = [f for f in (qform, sform) if f.code and f.affine is not None]
    if not usable:
        if unusable or edges is None:
            raise VolumeError(
                f"{path} has a header whose numbers make no grid (NaN, 0, or no rotation); write "
                "it again."
            )
        affine = FLIP_XY @ np.diag([*edges, 1.0])
        remarks = [
            "Its header says nothing of its orientation (qform and sform are 0); the first axis is "
            "taken for right to left, the second for anterior to posterior, as Slicer does."
        ]
    else:
        form = _choice(qform, sform) if len(usable) == 2 else usable[0]
        affine = form.affine.copy()
        if form is sform and edges is not None and _orthogonal(affine):
            affine[:3, :3] *= edges / np.linalg.norm(affine[:3, :3], axis=0)  # as ITK
        remarks = [_disagreement(affine, size, form, f) for f in usable]
        remarks += [f"Its {f.name} makes no grid; its {form.name} was followed." for f in unusable]
    affine[:3] *= MILLIMETRES.get(raw[123] & 7, 1.0)
    return Geometry(tuple(size), affine), tuple(filter(None, remarks))


def _choice(qform: _Form, sform: _Form) -> _Form:
    """Choose as ITK does: the sform if it is the scanner's or the same, and has no shear."""
    same = all(
        np.allclose(a, b, rtol=0, atol=1e-4)
        for a, b in zip(_parts(qform.affine), _parts(sform.affine), strict=True)
    )
    return sform if _orthogonal(sform.affine) and (sform.code == 1 or same) else qform


def _disagreement(affine: np.ndarray, size: list[int], followed: _Form, form: _Form) -> str:
    """Word by how much a form differs from the grid that is used; "" up to a voxel."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(size) - 1
    offset = (corners @ (form.affine - affine).T)[:, :3]
    voxels = np.abs(offset @ np.linalg.inv(affine[:3, :3]).T).max()
    if voxels <= 1:
        return ""
    distance = np.linalg.norm(offset, axis=1).max()
    taken, left = (followed.name, form.name) if form is not followed else ("voxel size", form.name)
    return (
        f"Its header contradicts itself: by its {left} it would lie up to {distance:.3g} mm away; "
        f"its {taken} was followed, as in Slicer."
    )


def _quaternion_affine(
    raw: bytes, order: str, handedness: float, edges: np.ndarray | None
) -> np.ndarray | None:
    """Return the affine of the qform; None without voxel sizes or if it is no rotation."""
    b, c, d, *origin = struct.unpack_from(f"{order}6f", raw, 256)
    rest = 1.0 - (b * b + c * c + d * d)
    if edges is None or not rest > -1e-3:
        return None
    a = math.sqrt(max(rest, 0.0))
    b, c, d = (x / math.sqrt(a * a + b * b + c * c + d * d) for x in (b, c, d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    rotation[:, 2] *= -1 if handedness < 0 else 1
    return _grid_affine(np.column_stack([rotation * edges, origin]))


def _grid_affine(rows: tuple[float, ...] | np.ndarray) -> np.ndarray | None:
    """Complete the first three rows of an affine; None if they make no grid."""
    affine = np.eye(4)
    affine[:3] = np.reshape(rows, (3, 4))
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not edges.all():
        return None
    return affine if abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-6 else None


def _parts(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split an affine into its unit axes, their lengths, and the origin."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, :3] / edges, edges, affine[:3, 3]


def _orthogonal(affine: np.ndarray) -> bool:
    axes, _, _ = _parts(affine)
    return bool(np.abs(axes @ axes.T - np.eye(3)).max() <= 1e-4)
