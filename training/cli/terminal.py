# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that end no work: closed, or unable to print a letter.

What a terminal would act on, such as an escape sequence in a file's name, is shown with escapes.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from SRCSMSegmenterLib.texts import shown_lines

GONE = (errno.EPIPE, errno.EBADF, errno.EINVAL)
"""Errors of a stream that nobody reads any more; Windows says EINVAL of a closed pipe."""


class Terminal:
    """A text stream whose writes do not fail; in all else it is the stream itself.

    Attributes:
        lost: why something could not be written, such as a full disk; None if nothing is lost
            that anybody reads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, as far as that is possible."""
        printable = shown_lines(text)
        try:
            with self._held_open():
                self._stream.write(printable)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            with self._held_open():
                self._stream.write(printable.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it is still open."""
        with self._held_open():
            self._stream.flush()

    @contextmanager
    def _held_open(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError:
            raise
        except (
            OSError,
            ValueError,
        ) as error:  # its reader is gone, it was closed, the disk is full
            if isinstance(error, OSError) and error.errno not in GONE:
                self.lost = error
            with suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())  # or flushing it at the exit would fail
                os.close(nothing)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextmanager
def lenient_output() -> Iterator[None]:
    """Let nothing that is printed in the block end it."""
    _open_the_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Terminal(stream or io.StringIO()) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_the_closed() -> None:
    """Open standard streams that were closed, or libraries would print into result files."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor < 3:
        os.set_inheritable(descriptor, True)
        descriptor = os.dup(descriptor)
    os.close(descriptor)
