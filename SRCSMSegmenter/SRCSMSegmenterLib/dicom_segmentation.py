# SPDX-License-Identifier: Apache-2.0
"""DICOM Segmentation objects: label maps of a DICOM series, written and read by highdicom.

A segment of the object is a label: segment 1 is label 1, and so on. Empty slices are left out, so a
grid that is read may have fewer slices than the series.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .atomic import atomic_write
from .errors import VolumeError
from .geometry import Geometry, Volume
from .terminology import Code, Segment
from .volume_writing import FLIP_XY, reason

if TYPE_CHECKING:
    import highdicom
    from pydicom import Dataset

SERIES_NUMBER = 900
"""Number of the series of a segmentation, above those that scanners give."""


SHEARED = 1e-3
"""Cosine between axes of a grid above which it counts as sheared."""

REQUIRED = ("FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""Attributes that a source has to have."""


@dataclass(frozen=True)
class Algorithm:
    """The network that found the segments, as the object names it.

    Attributes:
        parameters: what was asked of it, name -> value.
    """

    name: str
    version: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def source_headers(
    folder: Path | str, series_uid: str | None, geometry: Geometry
) -> list["Dataset"]:
    """Read the headers of a series that a segmentation is going to reference.

    Args:
        series_uid: see `reading.dicom.find_series`.
        geometry: grid of the series.

    Raises:
        VolumeError: no segmentation can reference the series, or see `find_series`.
    """
    from pydicom import dcmread

    from .reading.dicom import find_series

    files, _ = find_series(Path(folder), series_uid)
    sources = [dcmread(file.path, stop_before_pixels=True, force=True) for file in files]
    for keyword in REQUIRED:
        if any(not source.get(keyword) for source in sources):
            raise VolumeError(
                f"{folder} lacks {keyword}, which a DICOM segmentation names; write .seg.nrrd."
            )
    if np.abs(geometry.direction.T @ geometry.direction - np.eye(3)).max() > SHEARED:
        raise VolumeError(
            f"{folder} has a tilted gantry, and a DICOM segmentation cannot be sheared; write "
            ".seg.nrrd."
        )
    if len(sources) > 1 and any("NumberOfFrames" in source for source in sources):
        raise VolumeError(
            f"{folder} has several multi-frame files; a DICOM segmentation references one. Write "
            ".seg.nrrd."
        )
    return sources


def write_segmentation(
    path: Path | str,
    labels: Volume,
    segments: Sequence[Segment],
    sources: Sequence["Dataset"],
    algorithm: Algorithm,
) -> None:
    """Write a label map as a binary DICOM Segmentation object that references its source.

    The file appears complete or not at all; an older one of that name is replaced.

    Args:
        labels: on the grid of the source series, (K, J, I).
        segments: those of the labels 1, 2, 3, ... without gaps.
        sources: the source series: its slices, or its one multi-frame image; no pixels.
        algorithm: which network made the labels.

    Raises:
        VolumeError: no voxel has a label, labels have gaps, the axes of the grid are sheared, the
            source lacks something that the standard requires.
        OSError: the file cannot be written.
    """
    import highdicom

    path = Path(path)
    segments = sorted(segments, key=lambda segment: segment.value)
    if [segment.value for segment in segments] != list(range(1, len(segments) + 1)):
        raise VolumeError(
            f"{path} was not written: a DICOM segmentation numbers its segments 1, 2, 3 without "
            "gaps; write .seg.nrrd, which keeps other labels."
        )
    if not labels.array.any():
        raise VolumeError(
            f"{path} was not written: no organ was found, and a DICOM segmentation cannot be empty."
        )
    dtype = np.uint8 if len(segments) < 256 else np.uint16
    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=_code(Code("123110", "Artificial Intelligence", "DCM")),
        version=algorithm.version,
        source="SRCSM",
        parameters=dict(algorithm.parameters) or None,
    )
    with _reported(path, "written"):
        grid = highdicom.Volume(
            labels.array.astype(dtype),
            _dicom_affine(labels.geometry),
            coordinate_system="PATIENT",
            frame_of_reference_uid=sources[0].FrameOfReferenceUID,
        )
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=grid,
            segmentation_type="BINARY",
            segment_descriptions=[_description(segment, identification) for segment in segments],
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="SRCSM contributors",
            manufacturer_model_name="SRCSM",
            software_versions=algorithm.version,
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description="Research use only, not for diagnosis",
            series_description=f"SRCSM {algorithm.name}"[:64],
        )
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)


def read_segmentation(path: Path | str) -> tuple[Volume, dict[int, str]]:
    """Read a DICOM Segmentation object.

    Returns:
        The label map, (K, J, I), on the part of the source's grid from the first to the last slice
        that is not empty; and label -> name of its segment.

    Raises:
        VolumeError: no DICOM segmentation, a fractional one, or one whose segments overlap.
    """
    import highdicom

    path = Path(path)
    if path.exists() and not is_dicom(path):
        raise VolumeError(f"{path} is not a DICOM file; export it again.")
    with _reported(path, "read"):
        segmentation = highdicom.seg.segread(path)
        if segmentation.segmentation_type.value == "FRACTIONAL":
            raise VolumeError(f"{path} holds fractions, not labels; give a binary segmentation.")
        grid = segmentation.get_volume(combine_segments=True)
        names = {
            number: segmentation.get_segment_description(number).segment_label
            for number in segmentation.segment_numbers
        }
    affine = FLIP_XY @ grid.affine[:, [2, 1, 0, 3]]
    return Volume(grid.array, Geometry(grid.array.shape[::-1], affine)), names


def is_dicom(path: Path | str) -> bool:
    """Tell whether a file is a DICOM file, whatever its name."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _dicom_affine(geometry: Geometry) -> np.ndarray:
    """Return the affine from array indices (k, j, i) to DICOM's coordinates, in mm."""
    return (FLIP_XY @ geometry.affine)[:, [2, 1, 0, 3]]


def _description(
    segment: Segment, algorithm: "highdicom.AlgorithmIdentificationSequence"
) -> "highdicom.seg.SegmentDescription":
    import highdicom

    terms = segment.terminology
    description = highdicom.seg.SegmentDescription(
        segment_number=segment.value,
        segment_label=segment.name[:64],
        segmented_property_category=_code(terms.category),
        segmented_property_type=_code(terms.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=segment.name[:64],
        display_color=highdicom.color.CIELabColor.from_rgb(*segment.color),
    )
    if terms.modifier:
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [_code(terms.modifier)]
    return description


def _code(code: Code) -> "highdicom.sr.CodedConcept":
    import highdicom

    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


@contextmanager
def _reported(path: Path, done: str) -> Iterator[None]:
    """Turn errors of highdicom, pydicom and of reading into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise VolumeError(f"There is no file or folder {path}.") from error
    except AttributeError as error:  # pydicom's, of an attribute that is not there
        raise VolumeError(
            f"{path} could not be {done} as DICOM: {error.name} is missing; export it again."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise VolumeError(f"{path} could not be {done} as DICOM: {reason(error)}.") from error
