# SPDX-License-Identifier: Apache-2.0
"""The client of a worker: starts it when it is first needed, sends jobs, brings back results.

    worker = Worker(["SRCSMSegmenterLib.tasks"])
    job = worker.submit("segment", {"model": "abdomen-ct", ...}, {"image": array}, done=show)
    ...                              # a timer calls worker.pump(), from which `show` is called
    reply = job.wait()               # or, where nothing else has to go on
    worker.stop()

Jobs are done one after the other, in order. No method waits for the worker but `Job.wait` and
`Worker.stop`; all are called from one thread, which is the one that callbacks come from.
"""

import codecs
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from .errors import Cancelled
from .worker_protocol import (
    NONE,
    PROTOCOL,
    REMEDIES,
    REPORT,
    Arrays,
    Channel,
    CorruptMessageError,
    FileChannel,
    Message,
    SocketChannel,
    WorkerError,
    as_worker_error,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

GRACE = 0.8
"""Seconds a task has to notice that it was cancelled, before the worker is killed."""

LOG_LINES = 1000
LONGEST_LINE = 4000
DETAILS = 50
"""Last lines of the log that go with the news of a worker's death."""

CONNECT_SECONDS = 10.0

FOLDER_PREFIX = "srcsm-worker-"
YOUNG = 60.0
"""Seconds for which a private folder without a lock is taken for one that is being made."""


@dataclass(frozen=True, eq=False)
class Reply:
    """What a task returned: plain values, and arrays mapped from files (copy on write)."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Job:
    """A task that was submitted.

    Attributes:
        task: its name.
        state: "queued", "running", "done", "failed" or "cancelled".
        stage, fraction: the last progress, such as "network", 0.4; "start" until the first.
        reply: where it is done.
        error: where it failed or was cancelled (kind "Cancelled").
    """

    def __init__(
        self,
        worker: "Worker",
        number: int,
        task: str,
        parameters: Mapping[str, Any],
        arrays: Arrays,
        progress: Callable[[str, float], None],
        log: Callable[[str], None],
        done: Callable[["Job"], None],
    ) -> None:
        """See `Worker.submit`."""
        self.task, self.state = task, "queued"
        self.stage, self.fraction = "start", 0.0
        self.reply: Reply | None = None
        self.error: WorkerError | None = None
        self._worker, self._number = worker, number
        self._request = ({"id": number, "task": task, "parameters": dict(parameters)}, arrays)
        self._on_progress, self._on_log, self._on_done = progress, log, done
        self._unwanted = threading.Event()
        self._deadline = float("inf")

    @property
    def finished(self) -> bool:
        """True once it is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Stop it; it is "cancelled" within a second of pumping, also where the task is deaf."""
        self._worker._cancel(self)

    def poll(self) -> bool:
        """Pump once; True once it is finished."""
        self._worker.pump()
        return self.finished

    def wait(self, seconds: float = float("inf")) -> Reply:
        """Pump until it is finished.

        Raises:
            WorkerError: it failed or was cancelled.
            TimeoutError: it goes on.
        """
        end = time.monotonic() + seconds
        while not self.finished:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.task} still goes on after {seconds:g} s")
            self._worker.pump(0.05)
        if self.error is not None:
            raise self.error
        return self.reply


class Worker:
    """A worker process, started with the first job and again after its death.

    Attributes:
        log: the last lines of what the worker and its libraries printed.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("SRCSMSegmenterLib.tasks",),
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        address: str | None = None,
        token: str = "",
        grace: float = GRACE,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            tasks: modules with a table TASKS (see `tasks`), importable here.
            command: a Python; None takes PythonSlicer, where there is one, else this Python.
            environment: of the worker; None for that of this process. In Slicer, give
                `slicer.util.startupEnvironment()`.
            folder: where the private folder for arrays is made; None for the system's.
            address: "host:port" of a worker started elsewhere by ``srcsm worker --listen``, in
                place of a child process; `tasks`, `command`, `environment`, `folder` do not count.
            token: which that worker asks for.
            grace: seconds until a cancelled task is stopped by force.
            log: called from `pump` with every line the worker's process prints.
        """
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._on_log, self._grace = log, grace
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._events: SimpleQueue[tuple[Job, str, Any]] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._connection: _Child | _Remote | None = None
        self._submitted = 0
        if address is None:
            python = command or [shutil.which("PythonSlicer") or sys.executable]
            self._connect = partial(_Child, python, tasks, environment, folder, self._lines)
        else:
            self._connect = partial(_Remote, address, token)

    def submit(
        self,
        task: str,
        parameters: Mapping[str, Any] = NONE,
        arrays: Arrays = NONE,
        *,
        progress: Callable[[str, float], None] = lambda stage, fraction: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[Job], None] = lambda job: None,
    ) -> Job:
        """Queue a task.

        Args:
            parameters: plain JSON values.
            arrays: numbers; read by a thread of its own until the job runs, so do not write into
                them before the first progress.
            progress: called with the stage and the fraction of the whole that is done.
            log: called with what the task has to say, line by line.
            done: called once, when the job is finished, in whatever way.
        """
        self._submitted += 1
        job = Job(self, self._submitted, task, parameters, arrays, progress, log, done)
        self._waiting.append(job)
        self._start_next()
        return job

    def pump(self, seconds: float = 0.0) -> None:
        """Move on: call the callbacks, end what was cancelled, start the next job.

        Args:
            seconds: to wait for news, if there is none.
        """
        self._start_next()
        try:
            self._handle(*self._events.get(seconds > 0, seconds))
            while True:
                self._handle(*self._events.get_nowait())
        except Empty:
            pass
        while self._lines:
            line = self._lines.popleft()
            self.log.append(line)
            self._on_log(line)
        if self._current and time.monotonic() > self._current._deadline:
            self._disconnect()
            self._finish(self._current, error=_cancelled())
        self._start_next()

    def stop(self) -> None:
        """End the worker and cancel what is left; nothing of it stays. A new job starts it anew."""
        left = [job for job in (self._current, *self._waiting) if job]
        self._waiting.clear()
        for job in left:
            job._unwanted.set()
        self.pump()  # the thread may have connected just now
        self._disconnect()
        for job in left:
            if not job.finished:
                self._finish(job, error=_cancelled())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start_next(self) -> None:
        if self._current is not None:
            return
        if self._connection is not None and not self._connection.alive():
            self._disconnect()
        if self._waiting:
            job = self._current = self._waiting.popleft()
            job.state = "running"
            threading.Thread(target=self._carry, args=(job, self._connection), daemon=True).start()

    def _carry(self, job: Job, connection: "_Child | _Remote | None") -> None:
        """Bring a job to the worker and its news back; the body of the job's own thread."""
        try:
            if connection is None:
                connection = self._connect()
                self._events.put((job, "connected", connection))
                if job._unwanted.is_set():  # and perhaps nobody pumps any more
                    connection.close()
                    raise Cancelled
                try:
                    connection.greet()
                except WorkerError:
                    connection.close()
                    raise
            message, arrays = job._request
            job._request = None  # or the arrays stay for as long as the job
            connection.channel.send(message, arrays, job._unwanted.is_set)
            del message, arrays
            while True:
                message, arrays = connection.channel.receive()
                if "reply" in message:
                    self._events.put((job, "reply", Reply(message["reply"], arrays)))
                    return
                if "error" in message:
                    raise WorkerError(**message["error"])
                for kind in ("progress", "log"):
                    if kind in message:
                        self._events.put((job, kind, message[kind]))
        except Cancelled:
            self._events.put((job, "error", _cancelled()))
        except (EOFError, ConnectionError):
            error = connection.obituary()
            connection.close()
            self._events.put((job, "error", error))
        except CorruptMessageError as error:
            connection.close()
            told = f"The worker's answer cannot be read ({error})."
            self._events.put((job, "error", WorkerError("CorruptMessage", told, REPORT)))
        except Exception as error:
            self._events.put((job, "error", as_worker_error(error)))

    def _handle(self, job: Job, kind: str, value: Any) -> None:  # noqa: ANN401
        if kind == "connected":
            if job.finished:
                value.close()
                return
            self._connection = value
            if job._unwanted.is_set():
                self._send_cancel(job)
        elif job.finished:
            pass
        elif kind == "progress":
            job.stage, job.fraction = value
            job._on_progress(*value)
        elif kind == "log":
            job._on_log(value)
        elif job._unwanted.is_set():
            self._finish(job, error=_cancelled())
        elif kind == "reply":
            self._finish(job, reply=value)
        else:
            self._finish(job, error=value)

    def _cancel(self, job: Job) -> None:
        if job.finished or job._unwanted.is_set():
            return
        job._unwanted.set()
        if job is self._current:
            job._deadline = time.monotonic() + self._grace
            self._send_cancel(job)
        else:
            self._waiting.remove(job)
            self._events.put((job, "error", _cancelled()))

    def _send_cancel(self, job: Job) -> None:
        def send(channel: Channel) -> None:
            with suppress(OSError, ValueError):  # it may be closed by now
                channel.send({"cancel": job._number})

        if self._connection is not None:
            # From a thread of its own: a worker that hangs, or an upload, would hold up this one.
            threading.Thread(target=send, args=(self._connection.channel,), daemon=True).start()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _finish(
        self, job: Job, reply: Reply | None = None, error: WorkerError | None = None
    ) -> None:
        if job is self._current:
            self._current = None
        job.reply, job.error, job._request = reply, error, None
        if error is None:
            job.state, job.fraction = "done", 1.0
        else:
            job.state = "cancelled" if error.kind == "Cancelled" else "failed"
        job._on_done(job)


class _Child:
    """A worker that is a child of this process, in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        tasks: Sequence[str],
        environment: Mapping[str, str] | None,
        folder: Path | None,
        lines: deque[str],
    ) -> None:
        self._greeted = False
        self._tail: deque[str] = deque(maxlen=DETAILS)
        environment = _environment(os.environ if environment is None else environment, tasks)
        private, lock = _make_private_folder(Path(folder or tempfile.gettempdir()))
        options = [option for module in tasks for option in ("--tasks", module)]
        try:
            self._process = subprocess.Popen(
                [*command, "-m", f"{__package__}.worker", "--folder", str(private), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                **_SEPARATE,
            )
        except OSError as error:
            lock.close()
            shutil.rmtree(private, ignore_errors=True)
            raise WorkerError(
                "WorkerAbsent",
                f"The worker could not be started with {command[0]} ({error.strerror}).",
                REMEDIES["WorkerAbsent"],
            ) from error
        # Also where the program ends without a word; after kill -9 the child does it.
        self._end = weakref.finalize(self, _end, self._process, private, lock)
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stderr, self._tail, lines), daemon=True
        )
        self._listener.start()
        reader = io.BufferedReader(self._process.stdout)
        self.channel = FileChannel(reader, self._process.stdin, private)

    def greet(self) -> None:
        """Wait until it is ready.

        Raises:
            EOFError: it ended.
            WorkerError: it is of another version.
        """
        while not self._greeted:
            # What a launcher prints before Python starts is none of our business.
            with suppress(CorruptMessageError):
                message, _ = self.channel.receive()
                self._greeted = _is_hello(message)

    def alive(self) -> bool:
        return self._end.alive and self._process.poll() is None

    def close(self) -> None:
        """Kill it, and whatever it started, and remove its files."""
        self._end()

    def obituary(self) -> WorkerError:
        """Why it is no more, as far as can be told."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._listener.join(1)
        details = "\n".join(self._tail)
        code = self._process.returncode
        if not self._greeted:
            return WorkerError(
                "WorkerAbsent",
                f"The worker ended before it was ready (exit code {code}).",
                REMEDIES["WorkerAbsent"],
                details,
            )
        # The shell's way, and a launcher's, to tell of signal 9, kill.
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


class _Remote:
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

    def greet(self) -> None:
        """Prove the token and wait until it is ready; see `_Child.greet`."""
        try:
            self.channel.authenticate(self._token, listens=False)
        except AuthenticationError as error:
            raise WorkerError(
                "WorkerAbsent",
                f"The worker at {self._address} asks for another token.",
                "Give the token it was started with.",
            ) from error
        _is_hello(self.channel.receive()[0])

    def alive(self) -> bool:
        return self.channel.quiet()

    def close(self) -> None:
        """Hang up; the other end cancels what it does for us."""
        self.channel.close()

    def obituary(self) -> WorkerError:
        return WorkerError("WorkerDied", f"The worker at {self._address} hung up.", self._remedy())

    def _remedy(self) -> str:
        return f"See whether srcsm worker runs there, and the tunnel to {self._address}."


def _is_hello(message: Message) -> bool:
    """True for the first message of a worker.

    Raises:
        WorkerError: it is of another version.
    """
    if "hello" not in message:
        return False
    if (found := message["hello"]["protocol"]) != PROTOCOL:
        raise WorkerError(
            "WorkerAbsent",
            f"The worker speaks version {found} of the protocol, this program {PROTOCOL}.",
            "Install the same version of SRCSM on both sides.",
        )
    return True


def _cancelled() -> WorkerError:
    return WorkerError("Cancelled", "The work was cancelled; nothing was changed.")


_SEPARATE: dict[str, Any] = (
    # A group of its own can be killed as a whole, launcher included.
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


def _environment(base: Mapping[str, str], tasks: Sequence[str]) -> dict[str, str]:
    """The worker finds the modules where this process finds them, and prints UTF-8 at once."""
    paths = []
    for package in dict.fromkeys([__package__, *(module.partition(".")[0] for module in tasks)]):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        home = Path(spec.origin).parent
        paths.append(str(home.parent if spec.submodule_search_locations else home))
    inherited = [base["PYTHONPATH"]] if base.get("PYTHONPATH") else []
    return {
        **base,
        "PYTHONPATH": os.pathsep.join([*dict.fromkeys(paths), *inherited]),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _listen(stderr: BinaryIO, *logs: deque[str]) -> None:
    """Take in all that a worker prints, so that it never waits for a reader."""
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
    """Kill a worker with all its processes, and remove its folder."""
    if sys.platform == "win32":
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],
            creationflags=subprocess.CREATE_NO_WINDOW,
            capture_output=True,
        )
    else:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)
    # Not before: a thread may have been writing. Tells a worker that left the group, too.
    process.stdin.close()
    lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def _make_private_folder(parent: Path) -> tuple[Path, BinaryIO]:
    """A folder for this user alone, and the lock that tells others that it is in use.

    Those whose processes were killed are removed first.
    """
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > YOUNG and not _in_use(folder):
                shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    lock = (folder / "lock").open("wb")
    _try_lock(lock)
    return folder, lock


def _in_use(folder: Path) -> bool:
    try:
        with (folder / "lock").open("rb+") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False


def _try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed, or this process is gone; False where another has."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
