# SPDX-License-Identifier: Apache-2.0
"""Atomic writes of files and folders.

What is being written has an unpredictable name of its own beside the target, made exclusively:
nothing is written through a link, and two writers of one target do not meet. It is renamed to the
target in the end; a target that is a link is replaced, not followed.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STALE = 3600.0
"""Seconds without a write after which an unfinished file counts as left by a killed process."""

LONGEST_SUFFIX = 16

SWAPS = 5
"""Tries to put a folder in the place of another that somebody else is replacing too."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, with the same ending, to write to.

    At the end of the block the temporary file is flushed to the disk and renamed to `path`. If
    that or the block fails, the temporary file is removed and an older file at `path` stays whole.

    Raises:
        OSError: from the block, or the file cannot be made, flushed or renamed.
    """
    path = Path(path)
    temporary = _new_name(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a regular file, which is made if it does not exist; links are not followed.

    If the last line was cut off, as its writer was killed, it stays a line of its own.

    Raises:
        OSError: it cannot be written, or is a link, a pipe or a device.
    """
    with open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        start = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(start + line.encode() + b"\n")


def open_own(path: str | Path, flags: int) -> BinaryIO:
    """Open a file for reading and writing, unless it is a link, a pipe or a device.

    Args:
        flags: of `os.open`.

    Raises:
        OSError: it is one of those, or cannot be opened.
    """
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # those that this system knows
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o666)
    if os.path.islink(path) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "It is a link, a pipe or a device", str(path))
    return os.fdopen(descriptor, "rb+")


def read_regular(path: str | Path) -> bytes:
    """Read a file, unless it is a pipe or a device, which may never end.

    Raises:
        OSError: it is one of those, or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return Path(path).read_bytes()


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes its place at the end of the block.

    An older folder is moved aside before and removed after that; if the process is killed between,
    `recover` puts it back. If the block fails, the older folder stays as it was.

    Raises:
        OSError: from the block, or the folder cannot be made or renamed.
    """
    folder = Path(folder)
    recover(folder)
    temporary = _new_name(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(folder: str | Path) -> None:
    """Put back a folder whose replacement was interrupted; call it before reading the folder."""
    older = _aside(Path(folder))
    if not os.path.lexists(older):
        return
    with suppress(OSError):  # not ours to write, or another process is at it
        if os.path.lexists(folder):
            _remove(older)
        else:
            os.replace(older, folder)


def recover_all(parent: Path) -> None:
    """Put back all folders in `parent` whose replacement was interrupted."""
    for older in parent.glob(".*.old"):
        recover(parent / older.name[1 : -len(".old")])


def _swap(new: Path, folder: Path) -> None:
    older = _aside(folder)
    for tries_left in reversed(range(SWAPS)):
        try:
            if os.path.lexists(folder):
                os.replace(folder, older)
            os.replace(new, folder)
            break
        except OSError:
            recover(folder)
            if not tries_left:
                raise
    with suppress(OSError):
        _remove(older)


def _aside(folder: Path) -> Path:
    """Return the name to which the older folder is moved, the same for every process."""
    folder = Path(os.path.abspath(folder))
    return folder.parent / f".{folder.name}.old"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _new_name(path: Path) -> Path:
    """Return an unpredictable name; also remove what killed writers of `path` left."""
    start = f".part-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"
    for left in path.parent.glob(f"{start}*"):
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > STALE:
                _remove(left)
    suffix = "".join(path.suffixes[-2:])
    if len(suffix) > LONGEST_SUFFIX:
        suffix = ""
    return path.parent / f"{start}{secrets.token_hex(8)}{suffix}"
