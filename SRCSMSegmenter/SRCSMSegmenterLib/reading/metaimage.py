# SPDX-License-Identifier: Apache-2.0
"""MetaImage files (https://itk.org/Wiki/MetaIO/Documentation)."""

import math
import re
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from ..geometry import Geometry
from ..volume_writing import FLIP_XY, META_TYPES
from .stored import (
    StoredVolume,
    detached,
    open_regular,
    refuse_several_values,
    require_millimetres,
    require_three_axes,
)

LONGEST_HEADER = 1 << 20

TYPES = {name: dtype for dtype, name in META_TYPES.items()} | {
    "MET_LONG": "int32",
    "MET_ULONG": "uint32",
}

MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR"}

ORIGINS = ("Offset", "Position", "Origin")
MATRICES = ("TransformMatrix", "Rotation", "Orientation")
"""Names that a header may use for the same."""


def locate(path: Path) -> StoredVolume:
    """Read the header of a .mha or .mhd file.

    Raises:
        VolumeError: damaged, of an unknown type; 2-D, 4-D, several values a voxel; voxels in
            several files, or outside the header's folder.
        OSError, ValueError, KeyError: unreadable, or damaged.
    """
    fields, start = _header(path)
    size = [int(n) for n in fields["DimSize"].split()]
    if len(size) != int(fields["NDims"]):
        raise VolumeError(f"{path} has {fields['NDims']} dimensions, but {len(size)} sizes.")
    require_three_axes(path, size)
    require_millimetres(path, [fields.get("DistanceUnits", "")])
    kind = fields["ElementType"]
    if int(fields.get("ElementNumberOfChannels", 1)) != 1 or kind.endswith(("_ARRAY", "_MATRIX")):
        refuse_several_values(path)
    if kind not in TYPES:
        raise VolumeError(f"{path} has voxels of the type {kind!r}, which is no number's.")
    slope = float(fields.get("ElementToIntensityFunctionSlope", 1))
    intercept = float(fields.get("ElementToIntensityFunctionOffset", 0))
    if (slope, intercept) != (1, 0):
        raise VolumeError(
            f"{path} wants its voxels rescaled (ElementToIntensityFunctionSlope), which Slicer "
            "does not do; write the rescaled intensities."
        )
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if big else "<")
    packing = "deflate" if _true(fields, "CompressedData") else "raw"
    if not _true(fields, "BinaryData", "True"):
        packing = "text"
    file = path
    if fields["ElementDataFile"].upper() != "LOCAL":
        file = detached(path, fields["ElementDataFile"])
        start = int(fields.get("HeaderSize", 0))
        if start < 0:  # the voxels are the last bytes of the file
            start = max(file.stat().st_size - math.prod(size) * dtype.itemsize, 0)
    remarks = ()
    if not {"ElementSpacing", "ElementSize"} & fields.keys():
        remarks = ("Its header says nothing of its spacing; 1 mm is assumed.",)
    modality = MODALITIES.get(fields.get("Modality", ""))
    geometry = _geometry(path, fields, size)
    return StoredVolume(geometry, dtype, file, start, packing, modality=modality, remarks=remarks)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields and the header's length."""
    fields: dict[str, str] = {}
    with open_regular(path) as file:
        while "ElementDataFile" not in fields:
            line = file.readline(LONGEST_HEADER - file.tell()).decode(errors="replace")
            if not (match := re.fullmatch(r"\s*([A-Za-z]\w*)\s*[=:]\s*(.*?)\s*", line)):
                raise VolumeError(f"{path} is no MetaImage file, or damaged; export it again.")
            if match[1] in fields:
                raise VolumeError(f"{path} has a header that says {match[1]} twice.")
            fields[match[1]] = match[2]
        return fields, file.tell()


def _geometry(path: Path, fields: dict[str, str], size: list[int]) -> Geometry:
    for names in (ORIGINS, MATRICES):
        said = [name for name in names if name in fields]
        if len({tuple(_numbers(fields, (name,), "")) for name in said}) > 1:
            raise VolumeError(
                f"{path} has a header that contradicts itself: {' and '.join(said)} differ."
            )
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), "1 1 1")
    affine = np.eye(4)
    # A row of the matrix is an axis of the volume.
    affine[:3, :3] = _numbers(fields, MATRICES, "1 0 0 0 1 0 0 0 1").reshape(3, 3).T * spacing
    affine[:3, 3] = _numbers(fields, ORIGINS, "0 0 0")
    return Geometry(tuple(size), FLIP_XY @ affine)


def _numbers(fields: dict[str, str], names: tuple[str, ...], default: str) -> np.ndarray:
    text = next((fields[name] for name in names if name in fields), default)
    return np.array([float(x) for x in text.split()])


def _true(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).strip().lower() in ("true", "1", "t")
