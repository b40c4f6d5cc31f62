# SPDX-License-Identifier: Apache-2.0
"""NIfTI-1 and NIfTI-2, in one file or as a pair of .hdr and .img (https://nifti.nimh.nih.gov).

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

LAYOUTS: dict[int, dict[str, tuple[str, int]]] = {
    348: {
        "dim": ("8h", 40),
        "datatype": ("h", 70),
        "pixdim": ("8f", 76),
        "vox_offset": ("f", 108),
        "slope and intercept": ("2f", 112),
        "units": ("B", 123),
        "codes of qform and sform": ("2h", 252),
        "quaternion": ("6f", 256),
        "sform": ("12f", 280),
    },
    540: {
        "datatype": ("h", 12),
        "dim": ("8q", 16),
        "pixdim": ("8d", 104),
        "vox_offset": ("q", 168),
        "slope and intercept": ("2d", 176),
        "codes of qform and sform": ("2i", 344),
        "quaternion": ("6d", 352),
        "sform": ("12d", 400),
        "units": ("i", 500),
    },
}
"""Length of the header of NIfTI-1 and of NIfTI-2 -> format and place of its fields."""

MAGIC = {
    348: {b"n+1\0": False, b"ni1\0": True},
    540: {b"n+2\0\r\n\x1a\n": False, b"ni2\0\r\n\x1a\n": True},
}
"""Length of the header -> magic word -> whether the voxels lie in another file."""

MAGIC_PLACE = {348: 344, 540: 4}

MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Of a metre and of a micrometre, by the code of the unit; all others are taken for millimetres."""

MOST_STRETCHED = 4.0
"""Factor between a header's voxel sizes and its sform from which it is damaged."""

LARGEST_FACTOR = 1e30
"""Slope and intercept from which voxels are damaged, and float32 is soon exceeded."""

SECONDS = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
"""Of each unit of time by its code, 0 being none; the fourth axis of other units is not time."""


class _Form(NamedTuple):
    """One of the two ways in which a header says where the voxels lie.

    Attributes:
        code: 0 or less if the header does not use it, 1 for the scanner's space.
        affine: 4x4, voxel -> RAS, in the header's unit; None if its numbers make no grid.
    """

    name: str
    code: int
    affine: np.ndarray | None


class _Header(NamedTuple):
    """The content of a header.

    Attributes:
        order: "<" or ">", of its bytes.
        compressed: whether its file is.
        pair: whether the voxels lie in another file.
    """

    raw: bytes
    order: str
    compressed: bool
    pair: bool

    def field(self, name: str) -> tuple:
        """Return the numbers of a field."""
        kind, place = LAYOUTS[len(self.raw)][name]
        return struct.unpack_from(f"{self.order}{kind}", self.raw, place)


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
    """Read the header of a .nii, .nii.gz or .hdr file that holds one volume.

    Raises:
        VolumeError: no NIfTI file; 2-D, 4-D, several values a voxel; no usable geometry.
        OSError, EOFError, zlib.error, ValueError: unreadable, or damaged.
    """
    stored, count, _ = locate_frames(path)
    if count > 1:
        size = stored.geometry.size
        require_three_axes(path, [*size[:2], size[2] // count, count])
    return stored


def locate_frames(path: Path) -> StoredFrames:
    """Read the header of a .nii, .nii.gz or .hdr file that holds one volume or several.

    Raises:
        VolumeError: as `locate`, but for 4-D.
        OSError, EOFError, zlib.error, ValueError: unreadable, or damaged.
    """
    header = _header(path)
    rank, *dims = header.field("dim")
    if not 1 <= rank <= 7:
        raise VolumeError(f"{path} has a header with {rank} dimensions; write it again.")
    size = dims[:rank]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    (datatype,) = header.field("datatype")
    names = {code: name for name, code in NIFTI_TYPES.items()}
    if datatype not in names or math.prod(size[4:]) > 1:  # the fifth axis is that of vectors
        refuse_several_values(path)
    count = size.pop() if len(size) == 4 else 1
    require_three_axes(path, size)
    if count < 1:
        raise VolumeError(f"{path} has a header with {count} volumes; write it again.")
    slope, intercept = header.field("slope and intercept")
    if not math.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    elif not (abs(slope) < LARGEST_FACTOR and abs(intercept) < LARGEST_FACTOR):
        raise VolumeError(
            f"{path} has a header that rescales its voxels by {slope:g} and {intercept:g}; write "
            "it again."
        )
    geometry, remarks = _geometry(path, header, size)
    file = _voxel_file(path) if header.pair else path
    compressed = file.suffix.lower() == ".gz" if header.pair else header.compressed
    offset = _first_voxel(path, header)
    volumes = StoredVolume(
        Geometry((*size[:2], size[2] * count), geometry.affine),
        np.dtype(names[datatype]).newbyteorder(header.order),
        file,
        start=0 if compressed else offset,
        packing="deflate" if compressed else "raw",
        skip=offset if compressed else 0,
        slope=slope,
        intercept=intercept,
        remarks=remarks,
    )
    interval = header.field("pixdim")[4] * SECONDS.get(header.field("units")[0] & 56, 0.0)
    known = count > 1 and math.isfinite(interval) and interval > 0
    return StoredFrames(volumes, count, interval if known else 0.0)


def _header(path: Path) -> _Header:
    with open_regular(path) as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        raw = (io.BufferedReader(Inflated(file)) if compressed else file).read(max(LAYOUTS))
    order = next((order for order in "<>" if _length(raw, order) in LAYOUTS), None)
    if order is None and len(raw) >= min(LAYOUTS):
        raise VolumeError(f"{path} is not a NIfTI file; convert it, or write it again.")
    if order is None or len(raw) < _length(raw, order):
        raise VolumeError(f"{path} is truncated: it ends within its header.")
    length = _length(raw, order)
    word = raw[MAGIC_PLACE[length] :][: len(next(iter(MAGIC[length])))]
    pair = MAGIC[length].get(word)
    if pair is None and path.suffix.lower() == ".hdr":
        raise VolumeError(
            f"{path} is a header of Analyze 7.5, which does not say how the scan lies in the "
            "patient, or damaged; convert it to NIfTI."
        )
    if pair is None or (pair and path.suffix.lower() != ".hdr"):
        raise VolumeError(f"{path} is not a NIfTI file; convert it, or write it again.")
    return _Header(raw[:length], order, compressed, pair)


def _length(raw: bytes, order: str) -> int:
    """Return the length that a header announces, 0 if it is too short to."""
    return struct.unpack_from(f"{order}i", raw)[0] if len(raw) >= 4 else 0


def _voxel_file(header: Path) -> Path:
    """Return the file of the voxels beside a .hdr file."""
    names = (".img", ".img.gz", ".IMG")
    files = [header.with_suffix(name) for name in names]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise VolumeError(f"{header} has its voxels in {files[0].name}, which is missing.")
    return file


def _first_voxel(path: Path, header: _Header) -> int:
    (offset,) = header.field("vox_offset")
    first = 0 if header.pair else len(header.raw) + 4
    if not first <= offset < 2**40 or offset != int(offset):
        raise VolumeError(
            f"{path} says that its voxels begin at byte {offset:g}, which is within its header or "
            "no place at all; write it again."
        )
    return int(offset)


def _geometry(path: Path, header: _Header, size: list[int]) -> tuple[Geometry, tuple[str, ...]]:
    """Return the grid, and what the user should know of how it was found."""
    pixdim = np.array(header.field("pixdim"), float)
    q_code, s_code = header.field("codes of qform and sform")
    edges = np.abs(pixdim[1:4])
    if not (np.isfinite(edges) & (edges > 0)).all():
        edges = None
    qform = _Form("qform", q_code, _quaternion_affine(header, pixdim[0], edges))
    sform = _Form("sform", s_code, _grid_affine(header.field("sform")))
    unusable = [f for f in (qform, sform) if f.code > 0 and f.affine is None]
    usable = [f for f in (qform, sform) if f.code > 0 and f.affine is not None]
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
            factors = edges / np.linalg.norm(affine[:3, :3], axis=0)
            if max(factors.max(), 1 / factors.min()) > MOST_STRETCHED:
                raise VolumeError(
                    f"{path} has a header whose voxel sizes and sform differ {factors.max():.3g}- "
                    f"to {factors.min():.3g}-fold; write it again."
                )
            affine[:3, :3] *= factors  # as ITK
        remarks = [_disagreement(affine, size, form, f) for f in usable]
        remarks += [f"Its {f.name} makes no grid; its {form.name} was followed." for f in unusable]
    if (pixdim[1:4] < 0).any():
        remarks.append("Its header has negative voxel sizes; their amounts were taken.")
    affine[:3] *= MILLIMETRES.get(header.field("units")[0] & 7, 1.0)
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
    header: _Header, handedness: float, edges: np.ndarray | None
) -> np.ndarray | None:
    """Return the affine of the qform; None without voxel sizes or if it is no rotation."""
    b, c, d, *origin = header.field("quaternion")
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
