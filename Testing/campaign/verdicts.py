# SPDX-License-Identifier: Apache-2.0
"""What became of a call that got damaged input, tried in a child process that may die."""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from srcsm_training.cli.failures import exit_code, sentence
from SRCSMSegmenterLib.reading.dicom_pixels import DECODER

SECONDS = 60
MEMORY = 4 << 30
"""Bytes of address space beyond what the child starts with."""

LONGEST = 2000
"""Characters of a message that counts as a sentence."""

CALLS = 250
"""Calls of one child. Forking a process that has loaded everything costs ten times a call."""

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
"""Audit events of input that reaches beyond its reader."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Verdict:
    """The end of one call.

    Attributes:
        outcome: "accepted", "refused", or a fault: "raw error", "unreadable message", "reached
            out", "died", "hangs".
        message: what the user is told, or how it ended.
        result: of an accepted call.
    """

    outcome: str
    message: str = ""
    result: Any = None


class Attempts:
    """Calls with one argument each, in a child with a limit of memory and time.

    The child serves several calls, and is replaced when it has died or was killed.
    """

    def __init__(self, call: Callable[[Any], Any], folder: Path | None = None) -> None:
        """Prepare calls.

        Args:
            call: gets a plain argument, and returns a plain result.
            folder: the only one in which it may write.
        """
        self.call, self.folder = call, folder
        self._child, self._left = 0, 0
        self._pipe: Connection | None = None

    def __call__(self, argument: Any = None) -> Verdict:
        """Make one call."""
        if not self._left:
            self.close()
            self._start()
        self._left -= 1
        try:
            self._pipe.send(argument)
            if self._pipe.poll(SECONDS):
                return Verdict(*self._pipe.recv())
            self._end()
            return Verdict("hangs", f"no end after {SECONDS} s")
        except (EOFError, OSError):
            code = os.waitstatus_to_exitcode(self._end())
            return Verdict("died", signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._end()

    def _start(self) -> None:
        self._pipe, other = Pipe()
        self._child, self._left = os.fork(), CALLS
        if self._child == 0:
            self._pipe.close()
            _serve(self.call, self.folder, other)
        other.close()

    def _end(self) -> int:
        """End the child, if it has not ended; return how it did."""
        os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        self._pipe.close()
        self._child = self._left = 0
        return status


def _serve(call: Callable[[Any], Any], folder: Path | None, pipe: Connection) -> None:
    """Answer calls until the pipe is closed, and leave without the parent's clean-up."""
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reached: list[str] = []
    if folder is not None:
        _watch(folder, reached)
    with contextlib.suppress(EOFError, OSError):
        while True:
            argument = pipe.recv()
            reached.clear()
            try:
                outcome = ("accepted", "", call(argument))
            except Exception as error:
                outcome = _of_error(error)
            pipe.send(("reached out", reached[0]) if reached else outcome)
    os._exit(0)


def _watch(folder: Path, reached: list[str]) -> None:
    """List the programs that are started, and the files that are written outside a folder."""
    home = f"{folder.resolve()}{os.sep}"

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            inside = isinstance(path, int) or os.path.abspath(os.fsdecode(path)).startswith(home)
            if flags & WRITING and not inside and os.fsdecode(path) != os.devnull:
                reached.append(f"wrote {os.fsdecode(path)}")
        elif event in PROGRAMS and not _decodes(event, arguments):
            reached.append(f"{event} {arguments}"[:LONGEST])

    sys.addaudithook(hook)


def _decodes(event: str, arguments: tuple) -> bool:
    """Tell whether a program is the decoder of DICOM pixels, a child of the product itself."""
    return event == "subprocess.Popen" and str(DECODER) in map(str, arguments[1])


def _of_error(error: Exception) -> tuple[str, str]:
    message = sentence(error)
    if exit_code(error) == 1:
        return "raw error", f"{type(error).__name__}: {error}"[:LONGEST]
    if len(message) > LONGEST or any(ord(c) < 32 and c not in "\n\t" for c in message):
        return "unreadable message", message[:LONGEST]
    return "refused", message
