# SPDX-License-Identifier: Apache-2.0
"""Atomic file writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`, with the same ending, to write to.

    At the end of the block the temporary file is flushed to the disk and renamed to `path`. If
    that or the block fails, the temporary file is removed and an older file at `path` stays whole.
    A temporary file that a killed process left behind is overwritten by the next one.

    Args:
        shared: other processes may be writing the same file, as in a cache.

    Raises:
        OSError: from the block, or the file cannot be flushed or renamed.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid() if shared else 'part'}.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
