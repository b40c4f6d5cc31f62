# SPDX-License-Identifier: Apache-2.0
"""DICOM series, of a file for each slice or of Enhanced multi-frame files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from ..geometry import Geometry, Volume
from ..texts import shown
from ..volume_writing import FLIP_XY
from .dicom_files import DicomFile, Frame, Unusable, frames_of, scan_folder
from .dicom_pixels import read_frames

UNEVEN = 0.1
"""Largest distance of a slice from its place in an even stack, in parts of the slices' distance."""

SAME_PLACE = 0.01
"""Largest distance of two slices of one place, mm."""

ONE_IN_A_SERIES = ("PatientID", "StudyInstanceUID", "Modality", "FrameOfReferenceUID")


def read_series(folder: Path, series_uid: str | None = None) -> Volume:
    """Read the series of a folder, or the one that is named (`find_series`).

    Returns:
        The volume, its slices in the order of their positions along the normal of their rows and
        columns, so that the grid is right-handed.

    Raises:
        VolumeError: no series, several and no `series_uid`, slices that are missing, damaged, there
            twice or no part of one evenly spaced stack.
    """
    files, uid = find_series(folder, series_uid)
    _require_one_scan(folder, files)
    frames = [frame for file in files for frame in frames_of(file)]
    order = _sorted(folder, files, frames)
    first = frames[order[0]]
    sorted_frames = [frames[n] for n in order]
    remarks = []
    if len(order) > 1:
        step = _step(folder, uid, np.array([frame.position for frame in sorted_frames]))
    else:
        thickness = first.thickness or 1.0
        step = np.cross(first.orientation[:3], first.orientation[3:]) * thickness
        if first.thickness is None:
            remarks.append("Its only slice does not say how thick it is; 1 mm is assumed.")
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    rows, columns = files[0].shape
    geometry = Geometry((columns, rows, len(order)), FLIP_XY @ affine)

    if len(files) == len(frames):
        stored, told = read_frames([files[n] for n in order])
    else:
        stored, told = read_frames(files)
        stored = stored[order]
    remarks += told
    rescales = {frame.rescale for frame in frames}
    if len(rescales) > 1:
        if None in rescales:
            raise VolumeError(f"{folder}: some slices say how to rescale them, others do not.")
        remarks.append(f"Its slices are rescaled in {len(rescales)} different ways.")
    modality = str(files[0].header.get("Modality") or "")
    if modality not in ("CT", "MR", ""):
        remarks.append(f"DICOM says {modality}; the networks know CT and MR.")
    known = modality if modality in ("CT", "MR") else None
    return Volume(_rescaled(stored, sorted_frames), geometry, known, tuple(remarks))


def find_series(folder: Path, series_uid: str | None = None) -> tuple[list[DicomFile], str]:
    """Find the files of the only series of a folder, or of the one that is named.

    Args:
        series_uid: UID of the series, or its description if no other series has the same.

    Returns:
        The files, in no order, and the UID.

    Raises:
        VolumeError: no series; several, which are listed with their descriptions and studies, and
            none of them is named; files that are damaged.
    """
    files, unusable = scan_folder(folder)
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        series.setdefault(file.series, []).append(file)
    if not series:
        if unusable:
            _refuse_unusable(unusable)
        raise VolumeError(f"{folder} holds no DICOM series; give the folder of its files itself.")
    if series_uid is None and len(series) > 1:
        raise VolumeError(
            f"{folder} holds {len(series)} DICOM series; choose one by its series UID:"
            + _listing(series)
        )
    named = [uid for uid, members in series.items() if members[0].description == series_uid]
    if len(named) > 1:
        raise VolumeError(
            f'{folder} holds {len(named)} series called "{series_uid}"; choose one by its UID:'
            + _listing({uid: series[uid] for uid in named})
        )
    series_uid = named[0] if named else series_uid
    uid = series_uid or next(iter(series))
    if uid not in series:
        raise VolumeError(f"{folder} holds no series {uid}, but:{_listing(series)}")
    # A file of a series of its own may be a slice whose UID is damaged.
    damaged = [f for f in unusable if series_uid is None or f.series in (uid, None)]
    if damaged:
        _refuse_unusable(damaged)
    return series[uid], uid


def _listing(series: Mapping[str, Sequence[DicomFile]]) -> str:
    """List series by their studies, a line each; UID -> files."""
    lines, studies = [], {members[0].header.get("StudyInstanceUID") for members in series.values()}
    for uid, members in sorted(series.items(), key=lambda entry: entry[1][0].study):
        study = f" in study {members[0].study}" if len(studies) > 1 else ""
        files = "1 file" if len(members) == 1 else f"{len(members)} files"
        lines.append("\n- " + shown(f"{uid} ({members[0].description}, {files}){study}"))
    return "".join(lines)


def _refuse_unusable(files: Sequence[Unusable]) -> None:
    others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
    raise VolumeError(
        f"{files[0].path} {files[0].why}{others}; copy the series again, or remove what is none of "
        "its slices."
    )


def _require_one_scan(folder: Path, files: Sequence[DicomFile]) -> None:
    """Check that files of one series UID are of one scan.

    Raises:
        VolumeError: they are of several patients, modalities, or places that are not comparable.
    """
    for keyword in ONE_IN_A_SERIES:
        values = {str(file.header.get(keyword) or "") for file in files}
        if len(values) > 1:
            raise VolumeError(
                f"{folder}: the files of one series differ in their {keyword}; export the series "
                "again."
            )


def _sorted(folder: Path, files: Sequence[DicomFile], frames: Sequence[Frame]) -> list[int]:
    """Return the frames' numbers in the order of their positions.

    Raises:
        VolumeError: frames of several directions or pixel sizes, or several of one place.
    """
    first = frames[0]
    for frame in frames:
        if np.abs(frame.orientation - first.orientation).max() > 1e-3:
            raise VolumeError(
                f"{folder}: the slices do not lie in one direction (a localiser, or several "
                "stacks); export the stack alone."
            )
        if np.abs(frame.spacing / first.spacing - 1).max() > 1e-3:
            raise VolumeError(f"{folder}: the slices have pixels of different sizes.")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable").tolist()
    steps = np.linalg.norm(np.diff(positions[order], axis=0), axis=1)
    if len(order) > 1 and (steps <= SAME_PLACE).any():
        places = 1 + int((steps > SAME_PLACE).sum())
        what = f"{len(files)} files" if len(files) > 1 else f"{len(frames)} frames"
        raise VolumeError(
            f"{folder}: the series has {what} at {places} places, so it holds several volumes "
            "(echoes, phases or copies); export one of them."
        )
    return order


def _step(folder: Path, uid: str, positions: np.ndarray) -> np.ndarray:
    """Return the way from one slice to the next, LPS mm; a tilted gantry shears it."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    if not np.abs(positions - even).max() <= UNEVEN * np.linalg.norm(step):
        raise VolumeError(
            f"{folder}: the slices of series {uid} are not evenly spaced; one may be missing."
        )
    return step


def _rescaled(stored: np.ndarray, frames: Sequence[Frame]) -> np.ndarray:
    """Turn stored pixels into intensities, in the smallest type that holds them."""
    slopes, intercepts = np.array([frame.rescale or (1.0, 0.0) for frame in frames]).T
    slope, intercept = slopes[0], intercepts[0]
    same = (slopes == slope).all() and (intercepts == intercept).all()
    if same and slope == 1 and intercept == 0:
        return stored
    if same and slope.is_integer() and intercept.is_integer():
        ends = sorted(int(x) * int(slope) + int(intercept) for x in (stored.min(), stored.max()))
        kind = next(k for k in (np.int16, np.int32, np.int64) if _holds(k, ends))
        if stored.dtype == np.uint16 and kind is np.int16:
            stored = stored.view(np.int16)  # arithmetic is modulo 2**16 until the end
        values = stored.astype(kind, copy=False)
        values *= np.int64(slope).astype(kind)
        values += np.int64(intercept).astype(kind)
        return values
    values = stored.astype(np.result_type(stored, np.float32))
    values *= slopes[:, None, None].astype(values.dtype)
    values += intercepts[:, None, None].astype(values.dtype)
    return values


def _holds(kind: type, ends: Sequence[int]) -> bool:
    return np.iinfo(kind).min <= ends[0] and ends[-1] <= np.iinfo(kind).max
