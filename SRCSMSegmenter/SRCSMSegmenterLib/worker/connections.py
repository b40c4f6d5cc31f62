# SPDX-License-Identifier: Apache-2.0
"""Connections of a client to its worker: a child process, or a socket.

A child has a session of its own, a log that is always read, and a private folder for arrays. The
client removes the folder when it ends the child; the child removes it if the client was killed; the
next client removes it if both were.
"""

import codecs
import importlib.util
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, BinaryIO

from .protocol import (
    PROTOCOL,
    REMEDIES,
    CorruptMessageError,
    FileChannel,
    Message,
    SocketChannel,
    WorkerError,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LONGEST_LINE = 4000
DETAILS = 50
"""Last lines of the log that are part of the error if a worker ended."""

CONNECT_SECONDS = 10.0

FOLDER_PREFIX = "srcsm-worker-"
LOCK = "lock"
MARK = b"private folder of an srcsm worker"
"""The file in a private folder that is locked while it is in use, and what marks it as ours."""

YOUNG = 60.0
"""Seconds for which a private folder without a lock counts as one that is being made."""


class Child:
    """A worker that is a child of this process, in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        tasks: Sequence[str],
        environment: Mapping[str, str] | None,
        folder: Path | None,
        lines: deque[str],
    ) -> None:
        self._ready = False
        self._tail: deque[str] = deque(maxlen=DETAILS)
        environment = _environment(os.environ if environment is None else environment, tasks)
        private, lock = _make_private_folder(Path(folder or tempfile.gettempdir()).absolute())
        program = os.path.abspath(shutil.which(command[0]) or command[0])
        options = [option for module in tasks for option in ("--tasks", module)]
        options += ["--folder", str(private)]
        try:
            self._process = subprocess.Popen(
                [program, *command[1:], "-m", __package__, *options],
                cwd=private,  # or modules that lie in the current folder would be imported
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                **_SEPARATE,
            )
        except OSError as error:
            lock.close()
            remove_private_folder(private)
            raise WorkerError(
                "WorkerAbsent",
                f"The worker could not be started with {command[0]} ({error.strerror}).",
                REMEDIES["WorkerAbsent"],
            ) from error
        # Also runs at interpreter exit; after SIGKILL of the parent the child cleans up.
        self._end = weakref.finalize(self, _end, self._process, private, lock)
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stderr, self._tail, lines), daemon=True
        )
        self._listener.start()
        reader = io.BufferedReader(self._process.stdout)
        self.channel = FileChannel(reader, self._process.stdin, private)

    def handshake(self) -> None:
        """Wait until the worker is ready.

        Raises:
            EOFError: it ended.
            WorkerError: it is of another version.
        """
        while not self._ready:
            # Ignore what a launcher prints before Python starts.
            with suppress(CorruptMessageError):
                message, _ = self.channel.receive()
                self._ready = _is_handshake(message)

    def alive(self) -> bool:
        """Tell whether the worker can take a job."""
        return self._end.alive and self._process.poll() is None

    def close(self) -> None:
        """Kill the worker and all its child processes, and remove its files."""
        self._end()

    def exit_error(self) -> WorkerError:
        """Return an error that explains why the process exited."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._listener.join(1)
        details = "\n".join(self._tail)
        code = self._process.returncode
        if not self._ready:
            return WorkerError(
                "WorkerAbsent",
                f"The worker ended before it was ready (exit code {code}).",
                REMEDIES["WorkerAbsent"],
                details,
            )
        # Shells and launchers report signal 9, kill, as exit code 137.
        reason = (
            "it was killed, perhaps for want of memory"
            if code in (-9, 137)
            else f"exit code {code}"
        )
        return WorkerError(
            "WorkerDied",
            f"The worker ended in the middle of its work ({reason}).",
            REMEDIES["WorkerDied"],
            details,
        )


class Remote:
    """A worker that listens elsewhere (``srcsm worker --listen``)."""

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token
        host, _, port = address.rpartition(":")
        try:
            connected = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise WorkerError(
                "WorkerAbsent", f"No worker answers at {address} ({error}).", self._remedy()
            ) from error
        connected.settimeout(None)
        self.channel = SocketChannel(connected)

    def handshake(self) -> None:
        """Prove the token and wait until the worker is ready; see `Child.handshake`."""
        try:
            self.channel.authenticate(self._token, listens=False)
        except AuthenticationError as error:
            raise WorkerError(
                "WorkerAbsent",
                f"The worker at {self._address} asks for another token.",
                "Give the token it was started with.",
            ) from error
        _is_handshake(self.channel.receive()[0])

    def alive(self) -> bool:
        """Tell whether the worker can take a job."""
        return self.channel.quiet()

    def close(self) -> None:
        """Hang up; the other end cancels our jobs."""
        self.channel.close()

    def exit_error(self) -> WorkerError:
        """Return an error that says that the worker hung up."""
        return WorkerError("WorkerDied", f"The worker at {self._address} hung up.", self._remedy())

    def _remedy(self) -> str:
        return f"See whether srcsm worker runs there, and the tunnel to {self._address}."


def _is_handshake(message: Message) -> bool:
    """Tell whether a message is the first one of a worker.

    Raises:
        WorkerError: it is of another version.
    """
    if "hello" not in message:
        return False
    hello = message["hello"]
    if (version := hello.get("protocol") if isinstance(hello, dict) else None) != PROTOCOL:
        raise WorkerError(
            "WorkerAbsent",
            f"The worker speaks version {version} of the protocol, this program {PROTOCOL}.",
            "Install the same version of SRCSM on both sides.",
        )
    return True


_SEPARATE: dict[str, Any] = (
    # A group of its own can be killed as a whole, launcher included.
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


def _environment(base: Mapping[str, str], tasks: Sequence[str]) -> dict[str, str]:
    """Make a worker's environment: the modules of this process, and UTF-8 without buffering."""
    paths = []
    for package in dict.fromkeys(name.partition(".")[0] for name in (__package__, *tasks)):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        home = Path(spec.origin).parent
        paths.append(str(home.parent if spec.submodule_search_locations else home))
    inherited = filter(None, base.get("PYTHONPATH", "").split(os.pathsep))
    return {
        **base,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, *map(os.path.abspath, inherited)])),
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _listen(stderr: BinaryIO, *logs: deque[str]) -> None:
    """Read all that a worker prints, so that it never waits for a reader."""
    rest = ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := stderr.read(1 << 16):
        *lines, rest = (rest + decoder.decode(piece)).replace("\r", "\n").split("\n")
        rest = rest[-LONGEST_LINE:]
        for log in logs:
            log.extend(line[-LONGEST_LINE:] for line in lines if line)
    if rest:
        for log in logs:
            log.append(rest)


def _end(process: subprocess.Popen, folder: Path, lock: BinaryIO) -> None:
    """Kill a worker with all its child processes, and remove its folder."""
    if sys.platform == "win32":
        # By its full path: of another name Windows would look in the current folder first.
        windows = os.environ.get("SYSTEMROOT", r"C:\Windows")
        subprocess.run(
            [rf"{windows}\System32\taskkill.exe", "/F", "/T", "/PID", str(process.pid)],
            creationflags=subprocess.CREATE_NO_WINDOW,
            capture_output=True,
        )
    else:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)
    # Not before: a thread may have been writing. This also ends a worker that left the group.
    process.stdin.close()
    lock.close()
    remove_private_folder(folder)


def _make_private_folder(parent: Path) -> tuple[Path, BinaryIO]:
    """Make a folder for this user alone, with a lock that marks it as in use.

    Folders whose processes were killed are removed first.
    """
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            old = time.time() - folder.lstat().st_mtime > YOUNG
            if old and _is_ours(folder) and not _in_use(folder):
                remove_private_folder(folder)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    lock = (folder / LOCK).open("xb")
    lock.write(MARK)
    lock.flush()
    _try_lock(lock)
    return folder, lock


def remove_private_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is one of `_make_private_folder`."""
    with suppress(OSError):
        if _is_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder is a worker's of this user; nobody else's files are even opened."""
    lock = folder / LOCK
    owners = {path.lstat().st_uid for path in (folder, lock)}
    if not (stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG(lock.lstat().st_mode)):
        return False
    if hasattr(os, "getuid") and owners != {os.getuid()}:
        return False
    with lock.open("rb") as file:
        return file.read(len(MARK) + 1) == MARK


def _in_use(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb+") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False


def _try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed or this process ends; False if another holds the lock."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
