# SPDX-License-Identifier: Apache-2.0
"""The pixels of DICOM files, as they are stored; compressed ones are decoded by GDCM.

GDCM sees nothing of a file but its pixels, and runs in a process of its own: a damaged file may end
that process, and what GDCM says on standard error is passed on.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from ..errors import VolumeError
from .dicom_files import DicomFile
from .stored import open_regular, refuse_several_values

DECODER = Path(__file__).with_name("decode.py")

ALIKE = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"
)  # fmt: skip
"""What has to be the same of all files of a volume."""


def read_frames(files: Sequence[DicomFile]) -> tuple[np.ndarray, list[str]]:
    """Read all frames of files that are alike, in their order.

    Returns:
        (frames, rows, columns) as stored, in native byte order; and remarks, a sentence each.

    Raises:
        VolumeError: files that are not alike, colours, or damaged pixels.
    """
    first = files[0]
    _require_stored_bits(first)
    for file in files:
        if file.header.get("SamplesPerPixel", 1) != 1 or not str(
            file.header.get("PhotometricInterpretation", "MONOCHROME2")
        ).startswith("MONOCHROME"):
            refuse_several_values(file.path)
        if file.header.get("PhotometricInterpretation") == "MONOCHROME1":
            raise VolumeError(
                f"{file.path} is inverted (MONOCHROME1), which programs read differently; export "
                "it as MONOCHROME2."
            )
        different = [k for k in ALIKE if file.header.get(k) != first.header.get(k)]
        if different or file.syntax != first.syntax:
            raise VolumeError(
                f"{file.path} differs from {first.path.name} in its "
                f"{', '.join(different) or 'compression'}; they are no slices of one volume."
            )
    kind = "i" if first.header.get("PixelRepresentation") else "u"
    dtype = np.dtype(f"{kind}{first.header.BitsAllocated // 8}")
    frames = np.empty((sum(file.count for file in files), *first.shape), dtype)
    if first.length == 0xFFFFFFFF:
        said = _decode(files, frames).splitlines()[-1:]
        told = [f"The decoder of its pixels said: {line.strip()}." for line in said]
        return frames, told + _take_stored_bits(first, frames)
    if first.syntax == ExplicitVRBigEndian:
        frames = frames.view(dtype.newbyteorder(">"))
    done = 0
    for file in files:
        _read_raw(file, frames[done : done + file.count])
        done += file.count
    if not frames.dtype.isnative:
        frames = frames.byteswap(inplace=True).view(dtype)
    return frames, _take_stored_bits(first, frames)


def _require_stored_bits(file: DicomFile) -> None:
    """Check that the bits of a value are the lowest ones of a pixel, as the standard wants it.

    Raises:
        VolumeError: they are not.
    """
    allocated, stored = _bits(file)
    high = file.header.get("HighBit")
    if not 0 < stored <= allocated or high not in (None, stored - 1):
        raise VolumeError(
            f"{file.path} has values of {stored} bits up to bit {high} in pixels of {allocated} "
            "bits, which programs read differently; export it again."
        )


def _take_stored_bits(file: DicomFile, frames: np.ndarray) -> list[str]:
    """Reduce pixels to the bits of their values, in place; return a remark if others were used.

    The sign of negative values may not be extended, and other bits may hold overlays.
    """
    allocated, stored = _bits(file)
    unused, limits = allocated - stored, np.iinfo(frames.dtype)
    changed = False
    for frame in frames:
        if frame.min() < limits.min >> unused or frame.max() > limits.max >> unused:
            frame <<= unused
            frame >>= unused
            changed = True
    return [f"Only {stored} of the {allocated} bits of its pixels hold values."] * changed


def _bits(file: DicomFile) -> tuple[int, int]:
    """Return the number of bits of a pixel, and of its value."""
    allocated = int(file.header.BitsAllocated)
    return allocated, int(file.header.get("BitsStored") or allocated)


def _read_raw(file: DicomFile, frames: np.ndarray) -> None:
    extra = file.length - frames.nbytes
    if not 0 <= extra < frames.itemsize * file.shape[1]:
        raise VolumeError(
            f"{file.path} has {file.length} bytes of pixels, its header says {frames.nbytes}; copy "
            "or export it again."
        )
    with open_regular(file.path) as stream:
        stream.seek(file.start)
        if stream.readinto(memoryview(frames.reshape(-1)).cast("B")) != frames.nbytes:
            raise VolumeError(f"{file.path} is cut off; copy it again.")


def _decode(files: Sequence[DicomFile], frames: np.ndarray) -> str:
    """Decode compressed frames into an array; return what the decoder said."""
    with tempfile.TemporaryDirectory(prefix="srcsm-") as folder:
        bare, errors = Path(folder) / "frames.dcm", Path(folder) / "errors"
        _write_bare(files, len(frames), bare)
        with open(errors, "wb") as stderr:
            command = [sys.executable, "-P", str(DECODER), str(bare)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
            with child, child.stdout as stream:
                count = stream.readinto(memoryview(frames.reshape(-1)).cast("B"))
                whole = count == frames.nbytes and not stream.read(1)
        said = errors.read_text(errors="replace").strip()
    if not whole or child.returncode:
        reason = said.splitlines()[-1].strip() if said else f"exit code {child.returncode}"
        raise VolumeError(
            f"{files[0].path.parent}: the compressed pixels cannot be decoded ({reason}); copy or "
            "export the series again."
        )
    return said


def _write_bare(files: Sequence[DicomFile], count: int, path: Path) -> None:
    """Write a file with nothing but the pixels of `files`, as they are compressed."""
    header = files[0].header
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = files[0].syntax
    bare.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    bare.SOPInstanceUID = "1.2.3"
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.NumberOfFrames = count
    for keyword in ALIKE:
        setattr(bare, keyword, header[keyword].value)
    bare.PixelData = encapsulate(list(_packed(files)), has_bot=False)
    bare["PixelData"].VR = "OB"
    dcmwrite(path, bare, enforce_file_format=True)


def _packed(files: Sequence[DicomFile]) -> Iterator[bytes]:
    for file in files:
        try:
            pixels = dcmread(file.path, specific_tags=["PixelData"], force=True).PixelData
            packed = list(generate_frames(pixels, number_of_frames=file.count))
        except Exception as error:  # pydicom raises errors of many kinds for damaged files
            raise VolumeError(f"{file.path} is cut off or damaged ({error}).") from error
        if len(packed) != file.count:
            raise VolumeError(f"{file.path} has {len(packed)} of {file.count} frames.")
        yield from packed
