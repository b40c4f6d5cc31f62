# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield another name beside `path`, of the same ending, to write to.

    At the end of the block what was written is flushed to the disk and renamed to `path`. Where
    the block or that fails, it is removed, and a file that was at `path` before is still whole.
    What a killed process leaves behind is written over by the next one.

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
