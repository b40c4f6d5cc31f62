# SPDX-License-Identifier: Apache-2.0
"""The files of DICOM series: their headers, and the frames that each of them holds."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from ..errors import VolumeError
from ..texts import shown
from .stored import open_regular

PIXEL_DATA = 0x7FE00010
PIXELS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)

KEYWORDS = (
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesDescription",
    "StudyInstanceUID",
    "StudyDescription",
    "StudyDate",
    "PatientID",
    "FrameOfReferenceUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
TAGS = [Tag(keyword) for keyword in KEYWORDS]

POSITIVE = ("PixelSpacing",)
LARGEST_NUMBER = 1e30
"""What positions, spacings and rescaling are below, or damaged."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A slice as DICOM describes it.

    Attributes:
        position: (3,) LPS mm of the middle of its first pixel.
        orientation: (6,) unit vectors along its rows and down its columns.
        spacing: mm between its rows, and between its columns.
        thickness: mm, None if the file does not say.
        rescale: slope and intercept of the intensities; None: they are stored as they are.
    """

    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    thickness: float | None
    rescale: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file with pixels.

    Attributes:
        header: the elements of `KEYWORDS`.
        syntax: transfer syntax.
        start, length: bytes before the pixels, and of the pixels; length is 2**32 - 1 if they are
            compressed.
    """

    path: Path
    header: Dataset
    syntax: UID
    start: int
    length: int

    @property
    def series(self) -> str:
        """The UID of its series."""
        return str(self.header.SeriesInstanceUID)

    @property
    def count(self) -> int:
        """Number of frames."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def description(self) -> str:
        """The name of its series, printable."""
        return self._text("SeriesDescription") or "no description"

    @property
    def study(self) -> str:
        """The name and date of its study, printable."""
        name = self._text("StudyDescription") or "without a description"
        date = self._text("StudyDate")
        return f"{name}, {date}" if date else name

    def _text(self, keyword: str) -> str:
        text = str(self.header.get(keyword) or "").strip().encode(errors="replace").decode()
        return "".join(letter if letter.isprintable() else " " for letter in text)


@dataclass(frozen=True)
class Unusable:
    """A file that may belong to a series, but cannot be used.

    Attributes:
        series: UID of its series, None if unknown.
        why: what is wrong with it, the end of a sentence.
    """

    path: Path
    series: str | None
    why: str


def scan_folder(folder: Path) -> tuple[list[DicomFile], list[Unusable]]:
    """Read the headers of the DICOM images in a folder; names that begin with a dot are left out.

    Returns:
        The images, and files that look as if they should have been some.
    """
    files: list[DicomFile] = []
    unusable: list[Unusable] = []
    for path in sorted(Path(entry.path) for entry in os.scandir(folder)):
        if path.name.startswith(".") or not path.is_file():
            continue
        match read_file(path):
            case DicomFile() as file:
                files.append(file)
            case Unusable() as file:
                unusable.append(file)
    kinds = {_suffix(file.path) for file in files}
    return files, [file for file in unusable if file.series or _suffix(file.path) in kinds]


def read_file(path: Path) -> DicomFile | Unusable | None:
    """Read a header up to the pixels; None if the file is no DICOM image."""
    place: list[int] = []
    with open_regular(path) as file:
        start = file.peek(4096)[:4096]
        if not start:
            return Unusable(path, None, "is empty")
        marked = start[128:132] == b"DICM"
        if DeflatedExplicitVRLittleEndian.encode() in start[132:]:
            return Unusable(path, None, "is compressed as a whole (deflated), which is not read")

        def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
            if tag in PIXELS:
                place.extend((tag, file.tell(), length))
            return tag in PIXELS

        try:
            header = read_partial(file, at_pixels, specific_tags=TAGS, force=True)
            series = str(header.get("SeriesInstanceUID") or "") or None
            kind = UID(str(header.get("SOPClassUID") or ""))
        except Exception:  # pydicom raises errors of many kinds for damaged files
            header, series, kind = Dataset(), None, UID("")
        size = os.fstat(file.fileno()).st_size
    if series is None:
        damaged = marked or not start.strip(b"\0") or path.suffix
        return Unusable(path, None, "is damaged, cut off or no DICOM file") if damaged else None
    if not place and "Rows" not in header and _is_no_image(kind):
        return None
    if not place or (place[2] != 0xFFFFFFFF and place[1] + place[2] > size):
        return Unusable(path, series, "is cut off")
    if not (header.get("Rows") and header.get("Columns")):
        return Unusable(path, series, "does not say how many rows and columns it has")
    if place[0] != PIXEL_DATA or header.get("BitsAllocated") not in (8, 16, 32):
        return Unusable(path, series, "does not have integers of 8, 16 or 32 bits as pixels")
    return DicomFile(path, header, header.file_meta.get("TransferSyntaxUID"), *place[1:])


def _is_no_image(kind: UID) -> bool:
    """Tell whether a class of objects has no pixels: reports, structures, private ones."""
    if not kind.is_valid:
        return False  # of a damaged file
    return kind.is_private or (kind.name != kind and "Image Storage" not in kind.name)


def _suffix(path: Path) -> str:
    """Return the ending of a file's name; "" if it is a number, as in names that are UIDs."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def frames_of(file: DicomFile) -> Iterator[Frame]:
    """Describe the frames of a file, in its order.

    Raises:
        VolumeError: it does not say where a frame lies, or how large its pixels are.
    """
    header = file.header
    groups = header.get("PerFrameFunctionalGroupsSequence")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if groups is None:
        if file.count > 1:
            raise VolumeError(f"{file.path} has {file.count} frames, but not where they lie.")
        yield _frame(file.path, [header])
        return
    if len(groups) != file.count:
        raise VolumeError(
            f"{file.path} has {file.count} frames, but describes {len(groups)} of them."
        )
    for group in groups:
        items = [item[0] for part in (group, shared) for item in _sequences(part)]
        yield _frame(file.path, [*items, header])


def _sequences(group: Dataset) -> list:
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    return [group[name].value for name in names if group.get(name)]


def _frame(path: Path, items: list[Dataset]) -> Frame:
    """Put a frame together from the items that describe it, the first one that has an element."""

    def numbers(keyword: str, count: int) -> np.ndarray | None:
        value = next((v for item in items if (v := item.get(keyword)) not in (None, "")), None)
        if value is None:
            return None
        array = np.array([float(x) for x in np.atleast_1d(value)])
        sensible = np.abs(array) < LARGEST_NUMBER
        if keyword in POSITIVE:
            sensible &= array > 0
        elif keyword == "RescaleSlope":
            sensible &= array != 0
        if array.shape != (count,) or not sensible.all():
            raise VolumeError(f"{path} has an impossible {keyword}: {shown(value)}.")
        return array

    position, orientation = (
        numbers("ImagePositionPatient", 3),
        numbers("ImageOrientationPatient", 6),
    )
    spacing = numbers("PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise VolumeError(
            f"{path}: a slice lacks its position, orientation or pixel spacing; export it again."
        )
    if np.abs(orientation.reshape(2, 3) @ orientation.reshape(2, 3).T - np.eye(2)).max() > 1e-2:
        raise VolumeError(f"{path}: the rows and columns of a slice are not perpendicular.")
    thickness = numbers("SliceThickness", 1)
    if thickness is None or thickness[0] <= 0:
        thickness = numbers("SpacingBetweenSlices", 1)
    slope, intercept = numbers("RescaleSlope", 1), numbers("RescaleIntercept", 1)
    if (slope is None) != (intercept is None):
        raise VolumeError(f"{path} has one of RescaleSlope and RescaleIntercept; export it again.")
    if slope is None and any(item.get("ModalityLUTSequence") for item in items):
        raise VolumeError(
            f"{path} gives its intensities by a table (Modality LUT), which is not read; export it "
            "with a rescale slope and intercept."
        )
    return Frame(
        position,
        orientation,
        spacing,
        None if thickness is None else math.fabs(thickness[0]),
        None if slope is None else (slope[0], intercept[0]),
    )
