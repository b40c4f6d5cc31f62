# SPDX-License-Identifier: Apache-2.0
"""Volumes and label maps on disk: NIfTI, NRRD, MetaImage, DICOM series, Slicer's .seg.nrrd.

Files are read without ITK, which takes damaged voxels for whole ones, dies of some headers, hangs
on others, and reads for A.nii.gz the voxels of A.nii if both exist (ITK issue 2243).
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .endings import READABLE, SEGMENTATION, ending
from .errors import VolumeError
from .geometry import Geometry, Volume, require_patient_scale
from .reading import metaimage, nifti, nrrd
from .reading.stored import StoredVolume
from .terminology import Segment
from .texts import shown
from .volume_writing import NIFTI_TYPES, reason, slicer_fields, write, write_nifti_frames

LOCATE: dict[str, Callable[[Path], StoredVolume]] = {
    ".nii": nifti.locate,
    ".nii.gz": nifti.locate,
    ".nrrd": nrrd.locate,
    ".nhdr": nrrd.locate,
    SEGMENTATION: nrrd.locate,
    ".mha": metaimage.locate,
    ".mhd": metaimage.locate,
    ".hdr": nifti.locate,
}
"""The function that reads the header of each format."""

HIGHEST_LABEL = 65535

MALFORMED = (
    OSError, ValueError, ArithmeticError, RuntimeError, LookupError, TypeError, AttributeError,
    struct.error,
)  # fmt: skip
"""What parsers raise for headers that are damaged or of another format."""


def read_volume(path: str | Path, series_uid: str | None = None) -> Volume:
    """Read a scan.

    Args:
        path: a .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd or .hdr file, or a folder with the files
            of a DICOM series.
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
        if not path.is_dir():
            return _locate(path).load()
        from .reading.dicom import read_series

        with warnings.catch_warnings():
            # Of odd values in fields that are not needed; those that are needed are checked.
            warnings.filterwarnings("ignore", module="pydicom")
            volume = read_series(path, series_uid)
        require_patient_scale(volume.geometry)
        return volume


@dataclass(frozen=True, eq=False)
class Frames:
    """Volumes on one grid that a file holds, one after another in time; often a single one.

    Attributes:
        interval: seconds from one to the next, 0 if unknown.
    """

    volumes: tuple[Volume, ...]
    interval: float = 0.0


def read_frames(path: str | Path, series_uid: str | None = None) -> Frames:
    """Read a scan, or the scans of a 4-D NIfTI file, each as a volume of its own.

    Raises:
        VolumeError: as `read_volume`, but for 4-D NIfTI files.
    """
    path = Path(path)
    if path.is_dir() or LOCATE.get(ending(path)) is not nifti.locate:
        return Frames((read_volume(path, series_uid),))
    with _reading(path):
        _require_content(path)
        stored, count, interval = nifti.locate_frames(path)
        size, affine = stored.geometry.size, stored.geometry.affine
        geometry = Geometry((*size[:2], size[2] // count), affine)
        require_patient_scale(geometry)
        joined = stored.load()
    volumes = (
        replace(joined, array=array, geometry=geometry) for array in np.split(joined.array, count)
    )
    return Frames(tuple(volumes), interval)


def read_geometry(path: str | Path) -> Geometry:
    """Read the grid of a file from its header.

    Raises:
        VolumeError: as `read_volume`, but for what only the voxels tell.
    """
    with _reading(Path(path)):
        return _locate(Path(path)).geometry


def read_labels(path: str | Path) -> Volume:
    """Read a label map; like `read_volume`, but the array, (K, J, I), is of an integer type.

    Raises:
        VolumeError: as `read_volume`, or a value is not a whole number.
    """
    volume = read_volume(path)
    array = volume.array
    if not np.issubdtype(array.dtype, np.integer):
        labels = np.zeros(array.shape, np.int32)
        # Scaled NIfTI files hold 2.0000001 for 2.
        whole = np.abs(array) < 2**31
        labels[whole] = np.rint(array[whole])
        if not whole.all() or np.abs(array - labels).max() > 1e-4:
            raise VolumeError(f"{path} is no label map: it has values that are not whole numbers.")
        array = labels
    lowest, highest = array.min(), array.max()
    if lowest < 0 or highest > HIGHEST_LABEL:
        raise VolumeError(
            f"{path} is no label map: it has the label {lowest if lowest < 0 else highest}; labels "
            f"go from 0 to {HIGHEST_LABEL}."
        )
    return replace(volume, array=array)


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
    labels = Volume(_small_labels(path, volume.array, segments), volume.geometry)
    fields = slicer_fields(labels.geometry, segments) if ending(path) == SEGMENTATION else {}
    write(path, labels, fields)


def write_frames(path: str | Path, frames: Frames) -> None:
    """Write the scans of one or several moments; several as 4-D NIfTI.

    Raises:
        VolumeError: as `write_volume`, or several for a file that is no NIfTI.
    """
    if len(frames.volumes) == 1:
        write_volume(path, frames.volumes[0])
    else:
        write_nifti_frames(Path(path), frames.volumes, frames.interval)


def write_label_frames(path: str | Path, frames: Frames, segments: Sequence[Segment]) -> None:
    """Write the label maps of one or several moments; several as 4-D NIfTI.

    Raises:
        VolumeError: as `write_labels`, or several for a file that is no NIfTI.
    """
    if len(frames.volumes) == 1:
        write_labels(path, frames.volumes[0], segments)
        return
    path, (first, *_) = Path(path), frames.volumes
    joined = _small_labels(path, np.stack([v.array for v in frames.volumes]), segments)
    volumes = [Volume(array, first.geometry) for array in joined]
    write_nifti_frames(path, volumes, frames.interval)


def _small_labels(path: Path, array: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Check labels and return them with 8 or 16 bits."""
    if not np.issubdtype(array.dtype, np.integer):
        raise VolumeError(f"{path} was not written: labels are integers, not {array.dtype}.")
    present = _present(array)
    unknown = np.setdiff1d(present, [0, *(segment.value for segment in segments)])
    if unknown.size:
        raise VolumeError(f"{path} was not written: no segment has the value {unknown[0]}.")
    if present[0] < 0 or present[-1] > HIGHEST_LABEL:
        raise VolumeError(f"{path} was not written: labels go from 0 to {HIGHEST_LABEL}.")
    return array.astype(np.uint8 if present[-1] < 256 else np.uint16, copy=False)


def _present(array: np.ndarray) -> np.ndarray:
    """Return 0 and the other values that occur in a label map, (..., J, I), ascending."""
    present = {0}
    for plane in array.reshape(-1, *array.shape[-2:]):
        labelled = plane[plane != 0]  # few voxels are, and only those are sorted
        if labelled.size:
            present.update(np.unique(labelled).tolist())
    return np.array(sorted(present))


def _locate(path: Path) -> StoredVolume:
    suffix = ending(path)
    if suffix not in LOCATE:
        path.stat()  # a missing file is told as such
        if path.suffix.lower() == ".img":
            raise VolumeError(f"{path} holds voxels alone; give the .hdr file beside it.")
        raise VolumeError(
            f"{path} is not of a known format: give one of {', '.join(READABLE)} or a folder "
            "with a DICOM series."
        )
    _require_content(path)
    stored = LOCATE[suffix](path)
    require_patient_scale(stored.geometry)
    return stored


def _require_content(path: Path) -> None:
    if path.stat().st_size == 0 and path.is_file():
        raise VolumeError(f"{path} is empty; copy or export it again.")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of parsers, unpackers and the system into one sentence."""
    try:
        with np.errstate(all="ignore"):  # numbers of damaged headers overflow
            yield
    except VolumeError as error:
        if str(path) in str(error):
            raise
        raise VolumeError(f"{path}: {error}") from error  # Geometry does not know the file
    except FileNotFoundError as error:
        name = shown(error.filename or path)
        raise VolumeError(f"There is no file or folder {name}.") from error
    except MemoryError as error:
        raise VolumeError(f"{path} does not fit into memory; crop it or free some.") from error
    except KeyError as error:
        raise VolumeError(
            f"{path} is damaged or no scan: its header lacks {error}; export it again."
        ) from error
    except (EOFError, zlib.error) as error:
        what = str(error).rpartition(": ")[2]
        raise VolumeError(f"{path} is damaged ({what}); copy it again.") from error
    except MALFORMED as error:
        raise VolumeError(
            f"{path} cannot be read, it may be damaged or of another format than its name says "
            f"({reason(error)})."
        ) from error
