# SPDX-License-Identifier: Apache-2.0
"""Writers of NIfTI, NRRD and MetaImage files; `volume_io` checks what is written.

On a full disk ITK reports success for NIfTI and for the end of an NRRD, so those are written here.
"""

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from .atomic import atomic_write
from .endings import LABELS, SEGMENTATION, WRITABLE, ending
from .errors import VolumeError
from .geometry import Geometry, Volume
from .terminology import Segment, readable, terminology_entry

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

_GZIP_LEVEL = 4  # twice as fast as 6, files some percent larger


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
    with _writing(path) as temporary:
        if suffix in (".nrrd", SEGMENTATION):
            _write_nrrd(temporary, volume, fields)
        elif suffix == ".mha":
            _write_itk(temporary, volume)
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
    except (OSError, RuntimeError) as error:
        raise VolumeError(
            f"{path} could not be written ({reason(error)}); check that its folder exists, may "
            "be written to and has space."
        ) from error


def _write_itk(path: Path, volume: Volume) -> None:
    affine = FLIP_XY @ volume.geometry.affine
    native = volume.array.dtype.newbyteorder("=")
    image = sitk.GetImageFromArray(volume.array.astype(native, copy=False))
    image.SetSpacing(volume.geometry.spacing.tolist())
    image.SetDirection((affine[:3, :3] / volume.geometry.spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _write_nifti(path: Path, volumes: Sequence[Volume], interval: float = 0.0) -> None:
    """Write one or several volumes of one grid as NIfTI-1.

    The affine is written as sform and, unless its axes are sheared, as qform too:
    https://nifti.nimh.nih.gov/nifti-1; both codes are 1, "scanner anatomical".
    """
    geometry, count = volumes[0].geometry, len(volumes)
    data = [_little_endian(volume.array) for volume in volumes]
    direction = geometry.direction.copy()
    handedness = np.sign(np.linalg.det(direction))
    direction[:, 2] *= handedness  # a quaternion cannot reflect; pixdim[0] does
    rigid = np.abs(direction.T @ direction - np.eye(3)).max() < 5e-5  # ITK: sform up to 1e-4
    quaternion = Rotation.from_matrix(direction).as_quat(canonical=True)[:3]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3 + (count > 1), *geometry.size, count, 1, 1, 1)
    struct.pack_into("<2h", header, 70, NIFTI_TYPES[data[0].dtype.name], 8 * data[0].itemsize)
    struct.pack_into("<5f", header, 76, handedness, *geometry.spacing, interval)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # data offset, slope, intercept
    header[123] = 2 + 8 * (count > 1)  # millimetres and seconds
    struct.pack_into("<2h", header, 252, int(rigid), 1)
    struct.pack_into("<6f", header, 256, *quaternion, *geometry.affine[:3, 3])
    struct.pack_into("<12f", header, 280, *geometry.affine[:3].ravel())
    header[344:348] = b"n+1\0"
    with open(path, "wb") as file:
        if ending(path) == ".nii.gz":
            with _gzipped(file) as stream:
                stream.write(header)
                stream.writelines(data)
        else:
            file.write(header)
            file.writelines(data)


def _write_nrrd(path: Path, volume: Volume, fields: dict[str, str]) -> None:
    """Write NRRD (https://teem.sourceforge.net/nrrd/format.html), `fields` as key:=value."""
    data = _little_endian(volume.array)
    affine = FLIP_XY @ volume.geometry.affine

    def vector(values: np.ndarray) -> str:
        return f"({','.join(repr(float(x)) for x in values)})"

    lines = [
        "NRRD0005",
        f"type: {_NRRD_FLOATS.get(data.dtype.name, data.dtype.name)}",
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
        with _gzipped(file) as stream:
            stream.write(data)


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


def _little_endian(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _gzipped(file: BinaryIO) -> gzip.GzipFile:
    # No name and no time inside: the same volume gives the same bytes.
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)


def reason(error: Exception) -> str:
    """Return the message without the trace of C++ locations that ITK puts in front."""
    strerror = getattr(error, "strerror", None)
    return strerror or str(error).strip().splitlines()[-1].strip().rstrip(".")
