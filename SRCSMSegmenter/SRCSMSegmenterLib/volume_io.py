# SPDX-License-Identifier: Apache-2.0
"""Volumes and label maps on disk: NIfTI, NRRD, MetaImage, DICOM series, Slicer's .seg.nrrd.

ITK does most of the work; its axes are LPS, ours RAS. NIfTI is read here, as ITK reads truncated
files without an error, and for A.nii.gz the voxels of A.nii if both exist (ITK issue 2243).
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import SimpleITK as sitk

from .endings import READABLE, SEGMENTATION, ending
from .errors import VolumeError
from .geometry import Geometry, Volume
from .terminology import Segment
from .volume_writing import FLIP_XY, NIFTI_TYPES, reason, slicer_fields, write


def read_volume(path: str | Path, series_uid: str | None = None) -> Volume:
    """Read a scan.

    Args:
        path: a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or a folder with the files of a
            DICOM series.
        series_uid: which series to read, if a DICOM folder holds several.

    Returns:
        The array, (K, J, I), in the type the file has (rescaled if the file says so), on its grid.

    Raises:
        VolumeError: missing, empty, truncated, unreadable; 2-D, 4-D, several values a voxel; a
            DICOM folder without a series, with several and no `series_uid`, or with a missing
            slice.
    """
    path = Path(path)
    with _reading(path):
        if path.is_dir():
            return _read_dicom(path, series_uid)
        suffix = ending(path)
        if suffix not in (*READABLE, SEGMENTATION):
            raise VolumeError(
                f"{path} is not of a known format: give one of {', '.join(READABLE)} or a folder "
                "with a DICOM series."
            )
        if path.stat().st_size == 0:
            raise VolumeError(f"{path} is empty; copy or export it again.")
        if suffix.startswith(".nii"):
            return _read_nifti(path)
        return _read_itk(path)


def read_labels(path: str | Path) -> Volume:
    """Read a label map; like `read_volume`, but the array, (K, J, I), is of an integer type.

    Raises:
        VolumeError: as `read_volume`, or a value is not a whole number.
    """
    volume = read_volume(path)
    if np.issubdtype(volume.array.dtype, np.integer):
        return volume
    labels = np.zeros(volume.array.shape, np.int32)
    # Scaled NIfTI files hold 2.0000001 for 2.
    whole = np.abs(volume.array) < 2**31
    labels[whole] = np.rint(volume.array[whole])
    if not whole.all() or np.abs(volume.array - labels).max() > 1e-4:
        raise VolumeError(f"{path} is no label map: it has values that are not whole numbers.")
    return Volume(labels, volume.geometry)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a scan as .nii, .nii.gz, .nrrd or .mha, chosen by the ending of `path`.

    The file appears at once and complete, or not at all; an older one of that name is replaced.

    Raises:
        VolumeError: unknown ending, folder missing or not writable, disk full, a voxel type that
            no format has (bool, float16).
    """
    path = Path(path)
    if ending(path) == SEGMENTATION:
        raise VolumeError(f"{path} would be a segmentation; write a scan as .nrrd or .nii.gz.")
    if volume.array.dtype.name not in NIFTI_TYPES:
        raise VolumeError(f"{path} was not written: no format holds {volume.array.dtype} voxels.")
    write(path, volume, {})


def write_labels(path: str | Path, volume: Volume, segments: Sequence[Segment]) -> None:
    """Write a label map, 0 being background, with 8 or 16 bits a voxel as its values need.

    The ending of `path` chooses the format: .nii, .nii.gz, .nrrd, .mha; or .seg.nrrd, Slicer's
    segmentation file, the only one that carries the names, colours and terms of `segments`.
    Appears at once and complete, like `write_volume`.

    Raises:
        VolumeError: as `write_volume`, or a value of the array is none of `segments`, negative,
            above 65535 or not an integer.
    """
    path = Path(path)
    array = volume.array
    if not np.issubdtype(array.dtype, np.integer):
        raise VolumeError(f"{path} was not written: labels are integers, not {array.dtype}.")
    present = np.unique(array)
    unknown = np.setdiff1d(present, [0, *(segment.value for segment in segments)])
    if unknown.size:
        raise VolumeError(f"{path} was not written: no segment has the value {unknown[0]}.")
    if present[0] < 0 or present[-1] > 65535:
        raise VolumeError(f"{path} was not written: label values go from 0 to 65535.")
    labels = Volume(array.astype(np.uint8 if present[-1] < 256 else np.uint16), volume.geometry)
    fields = slicer_fields(labels.geometry, segments) if ending(path) == SEGMENTATION else {}
    write(path, labels, fields)


# --- reading


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of ITK, zlib and the system into one sentence."""
    try:
        yield
    except VolumeError as error:
        if str(path) in str(error):
            raise
        raise VolumeError(f"{path}: {error}") from error  # Geometry does not know the file
    except FileNotFoundError as error:
        raise VolumeError(f"There is no file or folder {path}.") from error
    except (RuntimeError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise VolumeError(
            f"{path} cannot be read, it may be damaged or of another format than its name says "
            f"({reason(error)})."
        ) from error


def _read_itk(path: Path) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _check_three_axes(path, reader.GetSize())
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        _refuse_several_values(path)
    image = reader.Execute()
    return Volume(sitk.GetArrayFromImage(image), _geometry(image))


def _check_three_axes(path: Path, size: Sequence[int]) -> None:
    if len(size) != 3:
        raise VolumeError(
            f"{path} is {len(size)}-D ({' x '.join(map(str, size))}); give one volume of three "
            "axes."
        )


def _refuse_several_values(path: Path) -> NoReturn:
    raise VolumeError(
        f"{path} does not have one number a voxel (but colour, vectors or complex values); give a "
        "volume that has."
    )


def _geometry(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Geometry(image.GetSize(), FLIP_XY @ affine)


def _read_nifti(path: Path) -> Volume:
    """Read NIfTI-1 in one file: voxels by ourselves, geometry as ITK, and so Slicer, has it.

    ITK chooses between sform and qform, but refuses a file whose only affine is a sform with
    axes that are not quite orthogonal; then we follow the sform as it is.
    """
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if compressed else open(path, "rb") as file:
        raw = file.read()
    if len(raw) < 348:
        raise VolumeError(f"{path} is truncated: it ends within its header.")
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    if struct.unpack_from(f"{order}i", raw)[0] != 348 or raw[344:347] != b"n+1":
        raise VolumeError(f"{path} is not a NIfTI-1 file; convert it, or write it again.")

    rank, *dims = struct.unpack_from(f"{order}8h", raw, 40)
    shape = dims[:rank]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    datatype, bits = struct.unpack_from(f"{order}2h", raw, 70)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    names = {code: name for name, code in NIFTI_TYPES.items()}
    if datatype not in names or math.prod(shape[4:]) > 1:  # the fifth axis is that of vectors
        _refuse_several_values(path)
    _check_three_axes(path, shape)
    count = math.prod(shape)
    expected = int(offset) + count * bits // 8
    if len(raw) < expected:
        raise VolumeError(
            f"{path} is truncated: it has {len(raw)} of {expected} bytes; copy it again."
        )
    voxels = np.frombuffer(raw, np.dtype(names[datatype]).newbyteorder(order), count, int(offset))
    array = voxels.reshape(shape[::-1]).astype(names[datatype])
    if math.isfinite(slope) and slope and (slope, intercept) != (1.0, 0.0):
        array = array.astype(np.result_type(array, np.float32)) * slope + intercept

    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return Volume(array, _geometry(reader))
    except RuntimeError:
        if struct.unpack_from(f"{order}h", raw, 254)[0] <= 0:
            raise
    millimetres = {1: 1000.0, 3: 0.001}.get(raw[123] & 7, 1.0)
    affine = np.eye(4)
    affine[:3] = np.reshape(struct.unpack_from(f"{order}12f", raw, 280), (3, 4)) * millimetres
    return Volume(array, Geometry(shape, affine))


def _read_dicom(folder: Path, series_uid: str | None) -> Volume:
    uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in uids}
    if not files:
        raise VolumeError(f"{folder} holds no DICOM series; give the folder of its files itself.")
    if series_uid is None and len(files) > 1:
        listing = ", ".join(f"{uid} ({_describe(names)})" for uid, names in files.items())
        raise VolumeError(
            f"{folder} holds {len(files)} DICOM series; choose one by its series UID: {listing}."
        )
    uid = series_uid or uids[0]
    if uid not in files:
        raise VolumeError(f"{folder} holds no series {uid}, but {', '.join(uids)}.")
    if len(files[uid]) == 1:
        return _read_itk(Path(files[uid][0]))

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files[uid])
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    geometry = _geometry(image)
    # ITK averages over a missing slice and straightens a tilted gantry; the positions tell.
    try:
        positions = np.array(
            [
                [float(x) for x in reader.GetMetaData(k, "0020|0032").split("\\")]
                for k in range(len(files[uid]))
            ]
        )
    except RuntimeError as error:
        raise VolumeError(f"{folder}: a slice of series {uid} lacks its position.") from error
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    if not np.abs(positions - even).max() <= 0.1 * np.linalg.norm(step):
        raise VolumeError(
            f"{folder}: the slices of series {uid} are not evenly spaced; one may be missing or "
            "there twice."
        )
    affine = geometry.affine.copy()
    affine[:3, 2] = FLIP_XY[:3, :3] @ step
    return Volume(sitk.GetArrayFromImage(image), Geometry(geometry.size, affine))


def _describe(files: Sequence[str]) -> str:
    """Describe a series: its name in DICOM and the number of its files."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(files[0])
    reader.ReadImageInformation()
    named = reader.HasMetaDataKey("0008|103e")
    name = reader.GetMetaData("0008|103e").strip() if named else "no description"
    name = name.encode(errors="replace").decode()  # DICOM text may be of any encoding
    return f"{name}, {len(files)} files"
