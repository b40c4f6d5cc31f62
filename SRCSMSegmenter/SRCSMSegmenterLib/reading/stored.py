# SPDX-License-Identifier: Apache-2.0
"""Voxels as a file stores them: where they lie, how they are packed, and how they are read.

No number of a header is believed: lengths are compared with those of the file before memory is
asked for, checksums are verified, and no more is unpacked than the header announces.
"""

import bz2
import io
import math
import os
import stat
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from ..errors import VolumeError
from ..geometry import Geometry, Volume

CHUNK = 1 << 18
"""Packed bytes that are read at a time."""

MOST_DENSE = 1032
"""Bytes that deflate makes of one, at most (https://zlib.net/zlib_tech.html)."""


OTHER_LENGTHS = (
    "m", "meter", "meters", "metre", "metres", "cm", "centimeter", "centimeters", "dm", "um", "µm",
    "micron", "microns", "micrometer", "micrometers", "nm", "nanometer", "in", "inch", "inches",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A volume as its header describes it.

    Attributes:
        dtype: of a stored voxel, with its byte order.
        file: that holds the voxels; another than the header's if they are detached.
        start: bytes of the file before the data.
        packing: "raw", "deflate" (gzip or zlib), "bzip2" or "text".
        skip: bytes of the unpacked data before the voxels.
        slope, intercept: intensity = slope * stored + intercept.
        modality, remarks: see `Volume`.
    """

    geometry: Geometry
    dtype: np.dtype
    file: Path
    start: int = 0
    packing: str = "raw"
    skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    modality: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Bytes of all voxels, unpacked."""
        return math.prod(self.geometry.size) * self.dtype.itemsize

    def load(self) -> Volume:
        """Read the voxels, in native byte order, rescaled if the header says so.

        Raises:
            VolumeError: truncated, longer than announced, or more than fits into memory.
            OSError, EOFError, zlib.error, ValueError: unreadable, or damaged.
        """
        with open_regular(self.file) as file:
            self._check_length(os.fstat(file.fileno()).st_size - self.start)
            file.seek(self.start)
            array = self._from_text(file) if self.packing == "text" else self._from_bytes(file)
        if (self.slope, self.intercept) != (1.0, 0.0):
            array = array.astype(np.result_type(array, np.float32))
            array *= self.slope
            array += self.intercept
        return Volume(array, self.geometry, self.modality, self.remarks)

    def _check_length(self, there: int) -> None:
        if self.length > _memory():
            raise VolumeError(
                f"{self.file} announces {self.length / 1e9:.3g} GB of voxels, more than this "
                "machine's memory; crop the volume, or correct its header."
            )
        densest = {"raw": 1, "deflate": MOST_DENSE}.get(self.packing, math.inf)
        if there * densest < self.length + self.skip:
            _refuse_truncated(self.file, there, self.length)

    def _from_bytes(self, file: BinaryIO) -> np.ndarray:
        stream = io.BufferedReader(_unpacked(file, self.packing), CHUNK)
        discard(stream, self.skip)
        array = np.empty(self.geometry.shape, self.dtype)
        target, done = memoryview(array.reshape(-1)).cast("B"), 0
        while done < self.length and (count := stream.readinto(target[done:])):
            done += count
        if done < self.length:
            _refuse_truncated(self.file, done, self.length)
        row = self.geometry.size[0] * self.dtype.itemsize
        if len(stream.read(row)) == row:  # reads to the end, and so verifies the checksum
            raise VolumeError(
                f"{self.file} holds more voxels than its header says, so one of both is wrong; "
                "copy or export it again."
            )
        if not array.dtype.isnative:
            array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
        return array

    def _from_text(self, file: BinaryIO) -> np.ndarray:
        words, convert = file.read().split(), int if self.dtype.kind in "iu" else float
        if len(words) != math.prod(self.geometry.size):
            raise VolumeError(
                f"{self.file} holds {len(words)} voxels, its header says "
                f"{math.prod(self.geometry.size)}; copy or export it again."
            )
        numbers = np.array([convert(word) for word in words], self.dtype.newbyteorder("="))
        return numbers.reshape(self.geometry.shape)


class Inflated(io.RawIOBase):
    """The bytes that a deflated file unpacks to; checksums are verified on the way.

    gzip members may follow each other; zeros after the last one are padding.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # tells gzip and zlib apart

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill as much of `target` as one step unpacks; return its length, 0 at the end.

        Raises:
            EOFError: the file ends before its data do.
            zlib.error: damaged.
        """
        while True:
            packed = self._rest or self._file.read(CHUNK)
            if self._unpacker.eof:
                if not packed:
                    return 0
                self._rest = packed = packed.lstrip(b"\0")
                if not packed:
                    continue
                self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
            elif not packed:
                raise EOFError("its compressed data end too early")
            unpacked = self._unpacker.decompress(packed, len(target))
            self._rest = self._unpacker.unused_data or self._unpacker.unconsumed_tail
            if unpacked:
                target[: len(unpacked)] = unpacked
                return len(unpacked)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; a pipe or device, which may never end, is refused.

    Raises:
        VolumeError: no regular file.
        OSError: missing or not readable.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise VolumeError(f"{path} is no regular file; give a copy of it.")
    return open(path, "rb")


def detached(header: Path, name: str) -> Path:
    """Return the file of a header's voxels, which lies in or below the header's folder.

    Raises:
        VolumeError: several files, or one that lies elsewhere.
    """
    if not name or name == "LIST" or name.startswith("LIST ") or "%" in name:
        raise VolumeError(f"{header} has its voxels in several files; export it as one file.")
    folder, file = header.parent, header.parent / name
    inside = Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
    if not (inside or Path(name).name == name) or "\0" in name:
        raise VolumeError(
            f"{header} has its voxels outside its folder, in {name!r}; put both into one folder."
        )
    return file


def discard(stream: BinaryIO, count: int) -> None:
    """Read `count` bytes, or to the end, and forget them."""
    while count > 0 and (length := len(stream.read(min(count, CHUNK)))):
        count -= length


def require_three_axes(path: Path, size: Sequence[int]) -> None:
    """Check that a volume has three axes.

    Raises:
        VolumeError: it has not.
    """
    if len(size) != 3:
        raise VolumeError(
            f"{path} is {len(size)}-D ({' x '.join(map(str, size[:9]))}); give one volume of three "
            "axes."
        )


def require_millimetres(path: Path, units: Iterable[str]) -> None:
    """Check that a header names no other unit of length, in which ITK, and so Slicer, believes mm.

    Raises:
        VolumeError: it does.
    """
    for unit in units:
        if unit.strip().lower() in OTHER_LENGTHS:
            raise VolumeError(
                f"{path} has its lengths in {unit.strip()}, which programs take for mm; write it "
                "in mm."
            )


def refuse_several_values(path: Path) -> NoReturn:
    """Raise the VolumeError for colours, vectors and complex numbers."""
    raise VolumeError(
        f"{path} does not have one number a voxel (but colour, vectors or complex values); give a "
        "volume that has."
    )


def _refuse_truncated(path: Path, there: int, needed: int) -> NoReturn:
    raise VolumeError(f"{path} is truncated: it has {there} of {needed} bytes; copy it again.")


def _unpacked(file: BinaryIO, packing: str) -> io.RawIOBase:
    if packing == "bzip2":
        return bz2.BZ2File(file)
    return Inflated(file) if packing == "deflate" else file.raw


def _memory() -> float:
    """Return the bytes of this machine's memory; infinite if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf
