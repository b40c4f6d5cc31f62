# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that end no work: closed, or unable to print a letter.

What a terminal would act on, such as an escape sequence in a file's name, is shown with escapes.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from SRCSMSegmenterLib.texts import shown_lines


class Terminal:
    """A text stream whose writes do not fail; in all else it is the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

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
        except (OSError, ValueError):  # its reader is gone, or it was closed
            with suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())  # or flushing it at the exit would fail
                os.close(nothing)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


@contextmanager
def lenient_output() -> Iterator[None]:
    """Let nothing that is printed in the block end it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Terminal(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
