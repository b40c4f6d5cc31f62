# SPDX-License-Identifier: Apache-2.0
"""Scans of a cohort: those that arguments and folders name, and the share of each process."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from SRCSMSegmenterLib.endings import READABLE, case_name, ending
from SRCSMSegmenterLib.errors import ConfigError

Item = TypeVar("Item")

DICOM_DIRECTORY = "DICOMDIR"
"""Name of the table of contents of a medium, which is a DICOM file without an image."""


@dataclass(frozen=True)
class FoundScan:
    """A scan that the command line names, itself or by a folder.

    Attributes:
        path: the scan's file, or the folder of its DICOM series.
        name: name of the scan's results without their endings; a path if the scan lies in a
            sub-folder of the folder that was named.
    """

    path: Path
    name: str


def find_scans(paths: Sequence[Path], results: Sequence[Path] = ()) -> list[FoundScan]:
    """Find the scans that paths name, in their order.

    A file is a scan, and so is a folder that holds DICOM files. Any other folder is searched, with
    its sub-folders, for both, and below a folder of DICOM files for more of them, but not among its
    own files; hidden files, .seg.nrrd files and `results` are passed over. A path
    without any scan counts as one, whose reading will tell what is wrong.

    Args:
        results: files or folders that results are written to.

    Raises:
        ConfigError: the results would lie among the scans of a folder that is searched.
    """
    scans = []
    written = {os.path.realpath(path) for path in results}
    for path in paths:
        inside = []
        if path.is_dir() and not _holds_dicom(path):
            if os.path.realpath(path) in written:
                raise ConfigError(
                    f"{path} is searched for scans; write the results to another folder."
                )
            inside = [_inside(path, found) for found in _search(path, set(written))]
        scans += inside or [FoundScan(path, case_name(path))]
    return scans


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Return every n-th item, the share of this process of n.

    `accelerate launch` and `torchrun` number the processes of all machines in RANK, out of
    WORLD_SIZE; a process that neither of them started has all items.
    """
    return items[process_number() :: int(os.environ.get("WORLD_SIZE", "1"))]


def process_number() -> int:
    """Return the number of this process among those that share the work, from 0."""
    return int(os.environ.get("RANK", "0"))


def own_device(name: str) -> str:
    """Resolve the name of a device; processes that share a machine take one of its GPUs each.

    Raises:
        DeviceError: see `devices.resolve_device`.
    """
    from SRCSMSegmenterLib.devices import available_devices, resolve_device

    device = str(resolve_device(name))
    if name in ("auto", "cuda") and device.startswith("cuda"):
        gpus = [device for device in available_devices() if device.startswith("cuda")]
        return gpus[int(os.environ.get("LOCAL_RANK", "0")) % len(gpus)]
    return device


def _inside(folder: Path, path: Path) -> FoundScan:
    """Name a scan that was found in a folder."""
    return FoundScan(path, (path.parent.relative_to(folder) / case_name(path)).as_posix())


def _search(folder: Path, passed_over: set[str]) -> Iterator[Path]:
    """Yield files and DICOM folders below a folder, each once even if links lead in a circle.

    A folder that cannot be searched is yielded too, as its reading will tell what is wrong.
    """
    passed_over.add(os.path.realpath(folder))
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        yield folder
        return
    for path in paths:
        if path.name.startswith(".") or os.path.realpath(path) in passed_over:
            continue
        if not path.is_dir():
            if ending(path) in READABLE:
                yield path
        else:
            series = _holds_dicom(path)
            if series:
                yield path
            below = _search(path, passed_over)
            yield from (f for f in below if not series or f.is_dir() or f.parent != path)


def _holds_dicom(folder: Path) -> bool:
    try:
        return any(_is_dicom(path) for path in folder.iterdir())
    except OSError:
        return False  # the search meets the same error


def _is_dicom(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do, with or without the preamble."""
    if path.name.startswith(".") or path.name.upper() == DICOM_DIRECTORY:
        return False
    if ending(path) or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00")
