# SPDX-License-Identifier: Apache-2.0
"""Files and folders that commands write to."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from SRCSMSegmenterLib import endings
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError, VolumeError


class OutputError(SRCSMError):
    """A result that cannot be written."""


def output_files(
    scans: Sequence[Path],
    output: Path,
    ending: str = ".nii.gz",
    *,
    names: Sequence[str] = (),
    known: Sequence[str] = endings.LABELS,
    taken: Sequence[Path] = (),
) -> list[Path]:
    """Return the output file of each scan: `output`, or a file in the folder `output`.

    A file in the folder is named after its scan. Folders of files in it are created if they do not
    exist; the folder of a single file has to exist.

    Args:
        ending: ending of the files in a folder.
        names: of the files in a folder, without endings, if they are not named after the scans; a
            path leads into sub-folders.
        known: endings that the files may have.
        taken: other results; neither they nor the scans may be overwritten.

    Raises:
        ConfigError: unsupported ending, one file for several scans, or a file would be
            overwritten.
        OutputError: the folder cannot be written to.
    """
    check_name(output)
    if len(scans) > 1 and not output.is_dir() and _format(output) in known:
        raise ConfigError(
            f"{output} is the name of one file, and there are {len(scans)} scans; give a folder."
        )
    if len(scans) > 1 or output.is_dir() or not output.suffix:
        names = names or [endings.stem(scan) for scan in scans]
        files = [output / f"{name}{ending}" for name in names]
        with report_os_errors(output):
            for folder in {output, *(path.parent for path in files)}:
                folder.mkdir(parents=True, exist_ok=True)
    else:
        files = [output]
    if _format(files[0]) not in known:
        raise ConfigError(f"{output} needs one of the endings {', '.join(known)}.")
    used = {os.path.realpath(path) for path in (*scans, *taken)}
    for number, path in enumerate(files):
        if path in files[:number]:
            raise ConfigError(
                f"{scans[files.index(path)]} and {scans[number]} would both be written to {path}; "
                "give them one after another, with another output each, or rename one."
            )
        if os.path.realpath(path) in used:
            raise ConfigError(f"{path} would be overwritten; choose another output.")
        used.add(os.path.realpath(path))
        check_name(path)
    check_writable(files[0].parent)
    return files


def check_name(path: Path) -> None:
    """Check before the work that a disk takes a name, which may be too long.

    Raises:
        OutputError: it does not.
    """
    with report_os_errors(path), suppress(FileNotFoundError):
        path.lstat()


def _format(path: Path) -> str:
    return endings.ending(path) or path.suffix.lower()


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist, and check that it can be written to.

    Raises:
        OutputError: it cannot.
    """
    with report_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Check before the work, not after it, that a folder can be written to.

    Raises:
        OutputError: it cannot.
    """
    with report_os_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def report_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing to `path` into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write to {path} ({error.strerror}); choose another folder."
        ) from error


@contextmanager
def report_volume_errors() -> Iterator[None]:
    """Turn a VolumeError while writing into an OutputError: the scan is not at fault."""
    try:
        yield
    except VolumeError as error:
        raise OutputError(str(error)) from error
