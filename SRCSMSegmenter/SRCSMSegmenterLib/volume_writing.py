# SPDX-License-Identifier: Apache-2.0
"""Writers of NIfTI, NRRD and MetaImage files; `volume_io` checks what is written.

They are written here as ITK reports success on a full disk.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .atomic import atomic_write
from .endings import LABELS, SEGMENTATION, WRITABLE, ending
from .errors import VolumeError
from .geometry import Geometry, Volume
from .terminology import Segment, readable, terminology_entry
from .texts import UNSHOWN

FLIP_XY = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS <-> RAS."""

NIFTI_TYPES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "float64": 64,
    "int8": 256,
    "uint16": 512,
    "uint32": 768,
    "int64": 1024,
    "uint64": 1280,
}
"""NIfTI datatype by numpy name; NRRD knows the same names but for the two floats."""

_NRRD_FLOATS = {"float32": "float", "float64": "double"}

META_TYPES = {
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "int32": "MET_INT",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
    "int8": "MET_CHAR",
    "uint16": "MET_USHORT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "uint64": "MET_ULONG_LONG",
}
"""MetaImage's name of each numpy type."""

ZLIB, GZIP = zlib.MAX_WBITS, zlib.MAX_WBITS | 16
"""Forms of a compressed stream, as zlib tells them apart."""

LEVEL = 4
"""Level for scans; twice as fast as 6, files some percent larger."""


def write(path: Path, volume: Volume, fields: dict[str, str]) -> None:
    """Write a volume, complete or not at all, in the format of the ending of `path`.

    Args:
        fields: key -> value, of an NRRD file.

    Raises:
        VolumeError: unknown ending, or the file cannot be written.
    """
    suffix = ending(path)
    if suffix not in LABELS:
        raise VolumeError(f"{path} cannot be written: end it with one of {', '.join(WRITABLE)}.")
    for text in fields.values():
        if UNSHOWN.search(text):
            raise VolumeError(
                f"{path} could not be written: the name {text!r} has line breaks or other signs "
                "that end a line of its header; rename the label."
            )
    with _writing(path) as temporary:
        if suffix in (".nrrd", SEGMENTATION):
            _write_nrrd(temporary, volume, fields)
        elif suffix == ".mha":
            _write_meta(temporary, volume)
        else:
            _write_nifti(temporary, [volume])


def write_nifti_frames(path: Path, volumes: Sequence[Volume], interval: float) -> None:
    """Write volumes of one grid and voxel type as a 4-D NIfTI file, complete or not at all.

    Args:
        interval: seconds from one to the next, 0 if unknown.

    Raises:
        VolumeError: the ending is neither .nii nor .nii.gz, or the file cannot be written.
    """
    if ending(path) not in (".nii", ".nii.gz"):
        raise VolumeError(
            f"{path} cannot hold {len(volumes)} volumes; end it with .nii.gz or .nii."
        )
    with _writing(path) as temporary:
        _write_nifti(temporary, volumes, interval)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes `path`; turn errors into one sentence."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise VolumeError(
            f"{path} could not be written ({reason(error)}); check that its folder exists, may "
            "be written to and has space."
        ) from error


def _write_meta(path: Path, volume: Volume) -> None:
    """Write MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation), compressed."""
    affine, spacing = FLIP_XY @ volume.geometry.affine, volume.geometry.spacing
    direction = affine[:3, :3] / spacing

    def vector(values: np.ndarray) -> str:
        return " ".join(repr(float(x)) for x in values)

    begin = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        "CompressedDataSize = ",
    ]
    end = [
        f"TransformMatrix = {vector(direction.T.ravel())}",
        f"Offset = {vector(affine[:3, 3])}",
        f"ElementSpacing = {vector(spacing)}",
        f"DimSize = {' '.join(map(str, volume.geometry.size))}",
        f"ElementType = {META_TYPES[volume.array.dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    with open(path, "wb") as file:
        file.write("\n".join(begin).encode())
        length_at = file.tell()
        file.write("\n".join([f"{0:020}", *end, ""]).encode())  # the length is known at the end
        start = file.tell()
        with _packed(file, volume.array.dtype, ZLIB) as stream:
            _write_planes(stream, volume.array)
        length = file.tell() - start
        file.seek(length_at)
        file.write(f"{length:020}".encode())


def _write_nifti(path: Path, volumes: Sequence[Volume], interval: float = 0.0) -> None:
    """Write one or several volumes of one grid as NIfTI-1.

    The affine is written as sform and, unless its axes are sheared, as qform too:
    https://nifti.nimh.nih.gov/nifti-1; both codes are 1, "scanner anatomical".
    """
    geometry, count = volumes[0].geometry, len(volumes)
    dtype = volumes[0].array.dtype
    direction = geometry.direction.copy()
    handedness = np.sign(np.linalg.det(direction))
    direction[:, 2] *= handedness  # a quaternion cannot reflect; pixdim[0] does
    rigid = np.abs(direction.T @ direction - np.eye(3)).max() < 5e-5  # ITK: sform up to 1e-4
    quaternion = _quaternion(direction)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3 + (count > 1), *geometry.size, count, 1, 1, 1)
    struct.pack_into("<2h", header, 70, NIFTI_TYPES[dtype.name], 8 * dtype.itemsize)
    struct.pack_into("<5f", header, 76, handedness, *geometry.spacing, interval)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # data offset, slope, intercept
    header[123] = 2 + 8 * (count > 1)  # millimetres and seconds
    struct.pack_into("<2h", header, 252, int(rigid), 1)
    struct.pack_into("<6f", header, 256, *quaternion, *geometry.affine[:3, 3])
    struct.pack_into("<12f", header, 280, *geometry.affine[:3].ravel())
    header[344:348] = b"n+1\0"
    packed = ending(path) == ".nii.gz"
    with (
        open(path, "wb") as file,
        _packed(file, dtype) if packed else nullcontext(file) as stream,
    ):
        stream.write(header)
        for volume in volumes:
            _write_planes(stream, volume.array)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return x, y and z of a rotation's unit quaternion, w being 0 or more.

    It is the eigenvector of the largest eigenvalue of a matrix made of the rotation's elements
    (Bar-Itzhack 2000), which also holds near half turns. scipy's would double the time to import.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]  # of the lower triangle
    return np.array([x, y, z]) * (-1 if w < 0 else 1)


def _write_nrrd(path: Path, volume: Volume, fields: dict[str, str]) -> None:
    """Write NRRD (https://teem.sourceforge.net/nrrd/format.html), `fields` as key:=value."""
    dtype, affine = volume.array.dtype, FLIP_XY @ volume.geometry.affine

    def vector(values: np.ndarray) -> str:
        return f"({','.join(repr(float(x)) for x in values)})"

    lines = [
        "NRRD0005",
        f"type: {_NRRD_FLOATS.get(dtype.name, dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, volume.geometry.size))}",
        f"space directions: {' '.join(vector(axis) for axis in affine[:3, :3].T)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {vector(affine[:3, 3])}",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]
    with open(path, "wb") as file:
        file.write("\n".join([*lines, "", ""]).encode())
        with _packed(file, dtype) as stream:
            _write_planes(stream, volume.array)


def slicer_fields(geometry: Geometry, segments: Sequence[Segment]) -> dict[str, str]:
    """List the fields by which Slicer (vtkMRMLSegmentationStorageNode) reads a segmentation.

    All segments lie in one layer and span the whole grid: Slicer cuts a layer to the extent of
    its first segment.
    """
    extent = " ".join(f"0 {n - 1}" for n in geometry.size)
    reference = [*map(repr, geometry.affine.ravel().tolist()), *extent.split()]
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": f"Reference image geometry|{';'.join(reference)};|&",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, segment in enumerate(segments):
        fields |= {
            f"Segment{n}_ID": f"Segment_{segment.value}",
            f"Segment{n}_Name": readable(segment.name),
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{channel / 255:.6g}" for channel in segment.color),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_Extent": extent,
            f"Segment{n}_LabelValue": str(segment.value),
            f"Segment{n}_Layer": "0",
            f"Segment{n}_Tags": f"TerminologyEntry:{terminology_entry(segment)}|",
        }
    return fields


def _write_planes(stream: "BinaryIO | _Packed", array: np.ndarray) -> None:
    """Write (K, J, I) voxels, the lowest byte first; only a plane of them is copied."""
    little = array.dtype.newbyteorder("<")
    for plane in array:
        stream.write(np.ascontiguousarray(plane, little).data)


class _Packed:
    """A compressed stream in a file, without a name and a time: equal volumes give equal bytes."""

    def __init__(self, file: BinaryIO, strategy: int, form: int) -> None:
        self._file = file
        self._packer = zlib.compressobj(LEVEL, zlib.DEFLATED, form, zlib.DEF_MEM_LEVEL, strategy)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes."""
        self._file.write(self._packer.compress(data))

    def end(self) -> None:
        """Write what is left, and the checksum."""
        self._file.write(self._packer.flush())


@contextmanager
def _packed(file: BinaryIO, dtype: np.dtype, form: int = GZIP) -> Iterator[_Packed]:
    """Yield a stream to write voxels of a type to, in one of the two forms.

    Small integers without a sign are label maps, in which only runs repeat: to look for nothing
    else takes half the time, and files are smaller than by the search of `LEVEL`.
    """
    labels = dtype.kind == "u" and dtype.itemsize <= 2
    stream = _Packed(file, zlib.Z_RLE if labels else zlib.Z_DEFAULT_STRATEGY, form)
    yield stream
    stream.end()


def reason(error: Exception) -> str:
    """Return the message without the trace of C++ locations that ITK puts in front."""
    strerror = getattr(error, "strerror", None)
    return strerror or str(error).strip().splitlines()[-1].strip().rstrip(".")
