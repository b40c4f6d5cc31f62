# SPDX-License-Identifier: Apache-2.0
"""What became of a call that got damaged input, tried in a child process that may die."""

import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srcsm_training.cli.failures import exit_code, sentence

SECONDS = 60
MEMORY = 4 << 30
"""Bytes of address space beyond what the child starts with."""

LONGEST = 2000
"""Characters of a message that counts as a sentence."""


@dataclass(frozen=True)
class Verdict:
    """The end of one call.

    Attributes:
        outcome: "accepted", "refused", or a fault: "raw error", "unreadable message",
            "died", "hangs".
        message: what the user is told, or how it ended.
        result: of an accepted call.
    """

    outcome: str
    message: str = ""
    result: Any = None


def attempt(call: Callable[[], Any]) -> Verdict:
    """Call in a child with a limit of memory and time; its result must be plain."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _report(call, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content, end = b"", time.monotonic() + SECONDS
        while select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            block = os.read(pipe.fileno(), 1 << 16)
            if not block:
                break
            content += block
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Verdict("hangs", f"no end after {SECONDS} s")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Verdict("died", signal.Signals(os.WTERMSIG(status)).name)
    return Verdict(*pickle.loads(content))  # written by `_report`


def _report(call: Callable[[], Any], writer: int) -> None:
    """Call, write the outcome, and leave without the parent's clean-up."""
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        outcome = ("accepted", "", call())
    except Exception as error:
        outcome = _of_error(error)
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


def _of_error(error: Exception) -> tuple[str, str]:
    message = sentence(error)
    if exit_code(error) == 1:
        return "raw error", f"{type(error).__name__}: {error}"[:LONGEST]
    if len(message) > LONGEST or any(ord(c) < 32 and c not in "\n\t" for c in message):
        return "unreadable message", message[:LONGEST]
    return "refused", message
