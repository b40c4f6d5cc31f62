# SPDX-License-Identifier: Apache-2.0
"""System calls of a child that change a folder, which may be cut off or fail as on a full disk.

The child is traced by `ptrace`, so that the writes of C++ and Rust libraries count as Python's own
do, in all threads. Linux on x86-64.
"""

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long

TRACE_ME, POKE_USER, CONTINUE, SYSCALL = 0, 6, 7, 24
SET_OPTIONS, GET_SYSCALL_INFO = 0x4200, 0x420E
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
"""Follow forks and threads, stop at the calls of the filter, and die with the tracer."""

FILTERED = 7
"""Event of a call that the filter lets stop."""

ALL_THREADS = 0x40000000
ORIG_RAX, RAX, RDX = 120, 80, 96
NO_CALL = 2**64 - 1
HERE = -100
"""In place of a folder's descriptor: the current folder."""

BY_DESCRIPTOR = {
    1: "write", 18: "pwrite", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    77: "ftruncate", 285: "fallocate", 296: "pwritev", 328: "pwritev2",
}  # fmt: skip
BY_PATH = {
    2: "open", 76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 87: "unlink",
}  # fmt: skip
BY_FOLDER = {257: "open", 258: "mkdir", 263: "unlink", 264: "rename", 316: "rename"}
"""Numbers of the calls that change files, by what tells which file it is."""

WRITES = ("write", "pwrite", "writev", "sendfile", "fallocate", "pwritev", "pwritev2")
NEEDS_SPACE = (*WRITES, "open", "mkdir", "creat")
"""Calls that a full disk refuses."""

CREATES, CHANGES = 0o100, 0o103
"""Flags of `open` that make a file, and that make or change one."""


@dataclass(frozen=True)
class Step:
    """A system call that is about to change a folder.

    Attributes:
        number: of the steps of the run so far, from 1.
        name: of the call.
        path: of the file.
        size: bytes that a write is asked to write; 0 of other calls.
        creates: whether a file or folder would be made.
    """

    number: int
    name: str
    path: str
    size: int = 0
    creates: bool = False


def go_on(step: Step) -> str:
    """Let every step be."""
    return "go"


def cut_off(number: int, half: bool = False) -> Callable[[Step], str]:
    """Return what lets a run die before a step, or in the middle of it if it is a write."""

    def decide(step: Step) -> str:
        if step.number != number:
            return "go"
        return "half" if half and step.name == "write" and step.size > 1 else "kill"

    return decide


def full_from(number: int) -> Callable[[Step], str]:
    """Return what makes the disk full before a step, for good."""

    def decide(step: Step) -> str:
        grows = step.name in WRITES or step.creates
        return "full" if step.number >= number and grows else "go"

    return decide


@dataclass
class Tracer:
    """Tracer of one child.

    Attributes:
        folder: whose changes count.
        decide: returns for a step "go", "kill", "half" (write half of it, then die) or "full".
        steps: that were seen.
    """

    folder: Path
    decide: Callable[[Step], str] = go_on
    steps: list[Step] = field(default_factory=list)

    def run(self, body: Callable[[], int]) -> int:
        """Run a function in a child; return its exit code, negative for a signal."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                LIBC.ptrace(TRACE_ME, 0, 0, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
                _stop_at_changes()
                code = body()
            finally:
                os._exit(code)
        os.waitpid(child, 0)
        LIBC.ptrace(SET_OPTIONS, child, 0, OPTIONS)
        LIBC.ptrace(CONTINUE, child, 0, 0)
        while True:
            thread, status = os.waitpid(-child, ALL_THREADS)
            if not os.WIFSTOPPED(status):
                if thread == child:
                    return os.waitstatus_to_exitcode(status)
                continue
            number, resume = os.WSTOPSIG(status), CONTINUE
            if status >> 16 == FILTERED:
                resume, number = self._at_call(child, thread), 0
            elif number == signal.SIGTRAP | 0x80:  # half of a write is written
                os.kill(child, signal.SIGKILL)
            elif status >> 16 or number in (signal.SIGSTOP, signal.SIGTRAP):
                number = 0  # a thread or process begins
            LIBC.ptrace(resume, thread, 0, number & 0x7F)

    def _at_call(self, child: int, thread: int) -> int:
        """Decide on a call; return how the thread goes on."""
        info = ctypes.create_string_buffer(88)
        if LIBC.ptrace(GET_SYSCALL_INFO, thread, len(info), ctypes.addressof(info)) < 0:
            return CONTINUE  # it is dead by now
        step = self._step(thread, *struct.unpack_from("<7Q", info.raw, 24))
        if step is None:
            return CONTINUE
        self.steps.append(step)
        decision = self.decide(step)
        if decision == "kill":
            os.kill(child, signal.SIGKILL)
        elif decision == "half":
            LIBC.ptrace(POKE_USER, thread, RDX, step.size // 2)
            return SYSCALL
        elif decision == "full":
            LIBC.ptrace(POKE_USER, thread, ORIG_RAX, NO_CALL)
            LIBC.ptrace(POKE_USER, thread, RAX, -errno.ENOSPC & NO_CALL)
        return CONTINUE

    def _step(self, thread: int, call: int, *values: int) -> Step | None:
        """Tell what a call does to the folder; None if nothing."""
        if call in BY_DESCRIPTOR:
            name, path = BY_DESCRIPTOR[call], _link(f"/proc/{thread}/fd/{values[0]}")
        elif call in BY_PATH:
            name, path = BY_PATH[call], _path(thread, HERE, values[0])
        elif call in BY_FOLDER:
            name, path = BY_FOLDER[call], _path(thread, values[0], values[1])
        else:
            return None
        if not path.startswith(f"{self.folder}/"):
            return None
        flags = values[2 if call in BY_FOLDER else 1] if name == "open" else 0
        if name == "open" and not flags & CHANGES:
            return None
        creates = name in ("mkdir", "creat") or bool(flags & CREATES)
        size = values[2] if name in ("write", "pwrite") else 0
        return Step(len(self.steps) + 1, name, path, size, creates)


def _stop_at_changes() -> None:
    """Let this process, and its threads and children, stop for its tracer before a change.

    Other calls go on unseen (a filter of `seccomp`), so that a busy machine is no slower for it.
    """
    allow, trace = (
        struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000),
        struct.pack("<HBBI", 0x06, 0, 0, 0x7FF00000),
    )
    program = struct.pack("<HBBI", 0x20, 0, 0, 0)  # load the call's number
    for call, flags in ((2, 24), (257, 32)):  # where the low half of the flags is
        program += struct.pack("<HBBI", 0x15, 0, 4, call)
        program += struct.pack("<HBBI", 0x20, 0, 0, flags)
        program += struct.pack("<HBBI", 0x45, 0, 1, CHANGES) + trace + allow
    for call in {*BY_DESCRIPTOR, *BY_PATH, *BY_FOLDER} - {2, 257}:
        program += struct.pack("<HBBI", 0x15, 0, 1, call) + trace
    program += allow
    code = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, pointer, 0, 0):
        raise OSError(ctypes.get_errno(), "The system calls cannot be filtered")


def _path(thread: int, folder: int, address: int) -> str:
    """Read a path that a thread names, absolute."""
    content = b""
    try:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            while b"\0" not in content and len(content) < 8192:
                memory.seek(address + len(content))
                rest = 4096 - (address + len(content)) % 4096
                content += memory.read(rest)
    except OSError:
        return ""
    text = os.fsdecode(content.partition(b"\0")[0])
    number = ctypes.c_int(folder & 0xFFFFFFFF).value
    base = "cwd" if number == HERE else f"fd/{number}"
    return os.path.normpath(os.path.join(_link(f"/proc/{thread}/{base}"), text))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
