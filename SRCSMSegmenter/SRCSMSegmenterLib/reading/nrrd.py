# SPDX-License-Identifier: Apache-2.0
"""NRRD files (https://teem.sourceforge.net/nrrd/format.html), Slicer's .seg.nrrd among them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..endings import SEGMENTATION, ending
from ..errors import VolumeError
from ..geometry import Geometry
from ..volume_writing import FLIP_XY
from .stored import (
    StoredVolume,
    detached,
    open_regular,
    refuse_several_values,
    require_millimetres,
    require_three_axes,
)

LONGEST_HEADER = 1 << 24

TYPES = {
    "int8": ("signed char", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16_t"),
    "int32": ("int", "signed int", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32_t"),
    "int64": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64_t",
    ),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
"""numpy's name of each type -> others that a header may use."""

PACKINGS = {
    "raw": "raw",
    "gzip": "deflate",
    "gz": "deflate",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "ascii": "text",
    "text": "text",
    "txt": "text",
}

FIELDS = (
    "axis maxs", "axis mins", "block size", "byte skip", "centerings", "centers", "content",
    "data file", "dimension", "encoding", "endian", "kinds", "labels", "line skip", "max",
    "measurement frame", "min", "number", "old max", "old min", "sample units", "sizes", "space",
    "space dimension", "space directions", "space origin", "space units", "spacings",
    "thicknesses", "type", "units",
)  # fmt: skip
"""All fields of the format; a line of another name is damaged."""

ALIASES = {
    "blocksize": "block size",
    "oldmax": "old max",
    "oldmin": "old min",
    "sampleunits": "sample units",
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
}

SPACES = {
    "left-posterior-superior": np.eye(4),
    "lps": np.eye(4),
    "right-anterior-superior": FLIP_XY,
    "ras": FLIP_XY,
}
"""Each space -> what turns it into LPS."""

LIKE_LPS = ("scanner-xyz", "3d-right-handed", "3d-left-handed", "")
"""Spaces that say nothing of the patient; ITK, and so Slicer, takes them for LPS."""

NO_VALUE_AXES = ("domain", "space", "time", "???", "none", "")
"""Kinds of axes along which the volume extends; all others hold several values of a voxel."""


def locate(path: Path) -> StoredVolume:
    """Read the header of a .nrrd or .nhdr file.

    Raises:
        VolumeError: damaged, of an unknown type, space or encoding; 2-D, 4-D, several values a
            voxel, overlapping segments; voxels outside the header's folder.
        OSError, ValueError, KeyError: unreadable, or damaged.
    """
    fields, keys, start = _header(path)
    for name in ("space units", "units"):
        require_millimetres(path, re.findall(r'"([^"]*)"', fields.get(name, "")))
    size, axes, has_spacing = _axes(path, fields, keys)
    if "space directions" in fields and not {"space", "space dimension"} & fields.keys():
        raise VolumeError(f"{path} has space directions, but names no space; export it again.")
    space = fields.get("space", "").lower()
    if space not in SPACES and space not in LIKE_LPS:
        raise VolumeError(
            f"{path} is in the space {space!r}, which programs read differently; write it in "
            "left-posterior-superior."
        )
    affine = np.eye(4)
    affine[:3, :3] = axes
    if "space origin" in fields:
        (affine[:3, 3],) = _vectors(fields["space origin"])
    geometry = Geometry(size, FLIP_XY @ SPACES.get(space, np.eye(4)) @ affine)

    dtype, packing = _dtype(path, fields), PACKINGS.get(fields["encoding"].lower())
    if packing is None:
        raise VolumeError(f"{path} has the encoding {fields['encoding']!r}; write it as gzip.")
    remarks = []
    if not has_spacing:
        remarks.append("Its header says nothing of its spacing; 1 mm is assumed.")
    if space not in SPACES:
        remarks.append(
            "Its header does not say how it lies in the patient; "
            "left-posterior-superior is assumed, as in Slicer."
        )
    file = path
    if "data file" in fields:
        file, start = detached(path, fields["data file"]), 0
    start += _length_of_lines(file, start, int(fields.get("line skip", 0)))
    skip = int(fields.get("byte skip", 0))
    stored = StoredVolume(geometry, dtype, file, start, packing, remarks=tuple(remarks))
    return _skipped(stored, skip)


def segment_names(path: Path) -> dict[int, str]:
    """Read the name of each label from a .seg.nrrd file; return {} for other files.

    Raises:
        VolumeError: no NRRD file.
        OSError, ValueError: unreadable, or damaged.
    """
    if ending(path) != SEGMENTATION:
        return {}
    keys = _header(path)[1]
    names = {}
    while f"Segment{len(names)}_LabelValue" in keys:
        number = len(names)
        label = int(keys[f"Segment{number}_LabelValue"])
        names[label] = keys.get(f"Segment{number}_Name", f"label {label}")
    return names


def _header(path: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Return the fields (names in lower case), the key/value pairs, and the header's length."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    with open_regular(path) as file:
        if not re.fullmatch(rb"NRRD000\d\s*", file.readline(16)):
            raise VolumeError(f"{path} is not an NRRD file; convert it, or export it again.")
        while line := file.readline(LONGEST_HEADER - file.tell()).rstrip(b"\r\n"):
            if line.startswith(b"#"):
                continue
            name, equals, text = _parts(path, line.decode(errors="replace"))
            target = keys if equals else fields
            name = name if equals else ALIASES.get(name.lower(), name.lower())
            if not equals and name not in FIELDS:
                raise VolumeError(f"{path} has a header with an unknown field, {name[:60]!r}.")
            if name in target:
                raise VolumeError(f"{path} has a header that says {name!r} twice; export it again.")
            target[name] = text
        return fields, keys, file.tell()


def _parts(path: Path, line: str) -> tuple[str, str, str]:
    """Split "name: text" and "name:=text" into the name, "" or "=", and the text."""
    if not (match := re.fullmatch(r"([^:]+):(=?)\s*(.*?)\s*", line)):
        raise VolumeError(f"{path} has a header with a line that is no field: {line[:60]!r}.")
    return match[1], match[2], match[3]


def _axes(
    path: Path, fields: dict[str, str], keys: dict[str, str]
) -> tuple[tuple[int, ...], np.ndarray, bool]:
    """Return the size, the step of a voxel along each axis (3x3, columns), and whether it is said.

    A non-spatial axis of length 1 is passed over.
    """
    size = [int(n) for n in fields["sizes"].split()]
    count = len(size)
    if count != int(fields["dimension"]):
        raise VolumeError(f"{path} has {fields['dimension']} dimensions, but {count} sizes.")
    kinds = fields.get("kinds", "").lower().split() or [""] * count
    steps = _vectors(fields.get("space directions", " none" * count))
    spacings = [float(s) for s in fields.get("spacings", " nan" * count).split()]
    if not len(kinds) == len(steps) == len(spacings) == count:
        raise VolumeError(f"{path} has {count} sizes, but not as many kinds, directions, spacings.")
    spatial = [
        axis
        for axis in range(count)
        if kinds[axis] in NO_VALUE_AXES
        and (size[axis] != 1 or count == 3 or steps[axis] is not None)
    ]
    others = [axis for axis in range(count) if axis not in spatial and size[axis] != 1]
    if others:
        _refuse_other_axes(path, keys)
    require_three_axes(path, [size[axis] for axis in spatial])
    if "time" in (kinds[axis] for axis in spatial):
        raise VolumeError(f"{path} has an axis of time; give one volume, of one moment.")
    if {"axis mins", "axis maxs"} & fields.keys():
        raise VolumeError(f"{path} gives its place by axis mins; write it with space directions.")
    if "space directions" in fields:
        if any(steps[axis] is None or len(steps[axis]) != 3 for axis in spatial):
            raise VolumeError(f"{path} has space directions that are not three numbers an axis.")
        columns = np.array([steps[axis] for axis in spatial]).T
    else:
        columns = np.diag([1.0 if np.isnan(spacings[a]) else spacings[a] for a in spatial])
    said = "space directions" in fields or not np.isnan([spacings[a] for a in spatial]).any()
    return tuple(size[axis] for axis in spatial), columns, said


def _refuse_other_axes(path: Path, keys: dict[str, str]) -> NoReturn:
    """Refuse several values a voxel, and say so if they are the layers of a segmentation."""
    layers = {text for key, text in keys.items() if re.fullmatch(r"Segment\d+_Layer", key)}
    if len(layers) < 2:
        refuse_several_values(path)
    names = [text for key, text in keys.items() if re.fullmatch(r"Segment\d+_Name", key)]
    raise VolumeError(
        f"{path} has overlapping segments in {len(layers)} layers ({', '.join(names)}); export it "
        "from Slicer as a label map, in which each voxel has one label."
    )


def _vectors(text: str) -> list[tuple[float, ...] | None]:
    """Read "(1,0,0) none (0,0,2)"; None for none."""
    found = re.findall(r"none|\(([^()]*)\)", text)
    return [tuple(float(x) for x in inner.split(",")) if inner else None for inner in found]


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype:
    kind = " ".join(fields["type"].lower().split())
    name = next((n for n, others in TYPES.items() if kind == n or kind in others), None)
    if name is None:
        raise VolumeError(f"{path} has voxels of the type {kind!r}, which is no number's.")
    dtype = np.dtype(name)
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None and dtype.itemsize > 1 and PACKINGS.get(fields["encoding"].lower()) != "text":
        raise VolumeError(f"{path} does not say the order of its bytes (endian); export it again.")
    return dtype.newbyteorder(order or "=")


def _length_of_lines(path: Path, start: int, count: int) -> int:
    if count <= 0:
        return 0
    with open_regular(path) as file:
        file.seek(start)
        for _ in range(min(count, LONGEST_HEADER)):
            if not file.readline(LONGEST_HEADER):
                break
        return file.tell() - start


def _skipped(stored: StoredVolume, skip: int) -> StoredVolume:
    """Pass over `skip` bytes of the data; -1 takes the last ones of the file."""
    if skip > 0 or stored.packing != "raw":
        return replace(stored, skip=max(skip, 0))
    if skip == 0:
        return stored
    return replace(stored, start=max(stored.file.stat().st_size - stored.length, stored.start))
