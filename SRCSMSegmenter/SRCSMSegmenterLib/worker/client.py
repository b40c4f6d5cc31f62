# SPDX-License-Identifier: Apache-2.0
"""Client of a worker: starts it when it is first needed, sends jobs, receives results.

    worker = Worker(["SRCSMSegmenterLib.worker.tasks"])
    job = worker.submit("segment", {"model": "abdomen-ct", ...}, {"image": array}, done=show)
    ...                              # a timer calls worker.pump(), from which `show` is called
    reply = job.wait()               # or, if nothing else has to go on
    worker.stop()

Jobs are done one after the other, in order. Only `Job.wait` and `Worker.stop` wait for the worker.
All methods are called from one thread, on which the callbacks are called too.
"""

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..errors import Cancelled
from .connections import Child, Remote
from .protocol import (
    NONE,
    REPORT,
    Arrays,
    Channel,
    CorruptMessageError,
    Message,
    WorkerError,
    as_worker_error,
)

GRACE = 0.8
"""Default seconds that a cancelled task has to stop before the worker is killed."""

LOG_LINES = 1000

ERROR_KEYS = {"kind", "sentence", "remedy", "details"}


@dataclass(frozen=True, eq=False)
class Reply:
    """Reply of a task: plain values, and arrays mapped from files (copy on write)."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Callbacks:
    """Functions that tell how a job goes; see `Worker.submit`."""

    progress: Callable[[str, float], None]
    log: Callable[[str], None]
    done: Callable[["Job"], None]


class Job:
    """A task that was submitted.

    Attributes:
        task: its name.
        state: "queued", "running", "done", "failed" or "cancelled".
        stage, fraction: the last progress, such as "network", 0.4; "start" until the first.
        reply: set when it is done.
        error: set when it failed or was cancelled (kind "Cancelled").
    """

    def __init__(
        self,
        worker: "Worker",
        number: int,
        task: str,
        parameters: Mapping[str, Any],
        arrays: Arrays | Callable[[], Arrays],
        callbacks: Callbacks,
        grace: float,
    ) -> None:
        """See `Worker.submit`."""
        self.task, self.state = task, "queued"
        self.stage, self.fraction = "start", 0.0
        self.reply: Reply | None = None
        self.error: WorkerError | None = None
        self._worker, self._number = worker, number
        self._request = ({"id": number, "task": task, "parameters": dict(parameters)}, arrays)
        self._callbacks, self._grace = callbacks, grace
        self._unwanted = threading.Event()
        self._deadline = float("inf")

    @property
    def finished(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Cancel the job; the worker is killed if the task does not stop in the job's grace."""
        self._worker._cancel(self)

    def poll(self) -> bool:
        """Pump once; tell whether the job is finished."""
        self._worker.pump()
        return self.finished

    def wait(self, seconds: float = float("inf")) -> Reply:
        """Pump until the job is finished.

        Raises:
            WorkerError: it failed or was cancelled.
            TimeoutError: it was not finished in that time.
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
    """A worker process, started with the first job, and again if it ended.

    Attributes:
        log: the last lines that the worker and its libraries printed.
        lost: callback, called from `pump` and `stop` when the process has ended, and all that it
            had loaded and cached is lost.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("SRCSMSegmenterLib.worker.tasks",),
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        address: str | None = None,
        token: str = "",
        grace: float = GRACE,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Prepare the worker without starting it.

        Args:
            tasks: modules with a table TASKS (see `tasks`), importable here.
            command: a Python; None takes PythonSlicer, if there is one, else this Python.
            environment: of the worker; None for that of this process. In Slicer, give
                `slicer.util.startupEnvironment()`.
            folder: parent of the private folder for arrays; None for the system's.
            address: "host:port" of a worker started elsewhere by ``srcsm worker --listen``, in
                place of a child process; then the four arguments above have no effect.
            token: that of the remote worker.
            grace: default of `submit`.
            log: called from `pump` with every line the worker's process prints.
        """
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._on_log, self._grace = log, grace
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._events: SimpleQueue[tuple[Job, str, Any]] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._connection: Child | Remote | None = None
        self._submitted = 0
        self._loss = False
        self.lost: Callable[[], None] = lambda: None
        if address is None:
            python = command or [shutil.which("PythonSlicer") or sys.executable]
            self._connect = partial(Child, python, tasks, environment, folder, self._lines)
        else:
            self._connect = partial(Remote, address, token)

    def submit(
        self,
        task: str,
        parameters: Mapping[str, Any] = NONE,
        arrays: Arrays | Callable[[], Arrays] = NONE,
        *,
        progress: Callable[[str, float], None] = lambda stage, fraction: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[Job], None] = lambda job: None,
        grace: float | None = None,
    ) -> Job:
        """Queue a task.

        Args:
            parameters: plain JSON values.
            arrays: numbers of any shape; another thread reads them until the job runs, so do not
                write into them before the first progress. Or a function that computes them, which
                that thread calls.
            progress: called with the stage and the fraction of the whole that is done.
            log: called with the task's messages, line by line.
            done: called once, when the job is done, failed or cancelled.
            grace: seconds that the task has to stop when it is cancelled; None takes the worker's.
                Then the worker is killed, and what it has loaded and cached is lost.
        """
        self._submitted += 1
        grace = self._grace if grace is None else grace
        callbacks = Callbacks(progress, log, done)
        job = Job(self, self._submitted, task, parameters, arrays, callbacks, grace)
        self._waiting.append(job)
        self._start_next()
        return job

    def pump(self, seconds: float = 0.0) -> None:
        """Call the callbacks, end what was cancelled, start the next job.

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
            self._finish(self._current, error=cancelled())
        self._start_next()
        self._tell_loss()

    def stop(self) -> None:
        """End the worker and cancel its jobs; a new job starts it again."""
        left = [job for job in (self._current, *self._waiting) if job]
        self._waiting.clear()
        for job in left:
            job._unwanted.set()
        self.pump()  # the thread may have connected just now
        self._disconnect()
        for job in left:
            if not job.finished:
                self._finish(job, error=cancelled())
        self._tell_loss()

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

    def _carry(self, job: Job, connection: "Child | Remote | None") -> None:
        """Send a job and receive its progress and reply; the body of the job's own thread."""
        try:
            if connection is None:
                connection = self._connect()
                self._events.put((job, "connected", connection))
                if job._unwanted.is_set():  # and perhaps nobody pumps any more
                    connection.close()
                    raise Cancelled
                try:
                    connection.handshake()
                except WorkerError:
                    connection.close()
                    raise
            message, arrays = job._request
            job._request = None  # or the arrays stay for as long as the job
            arrays = arrays() if callable(arrays) else arrays
            connection.channel.send(message, arrays, job._unwanted.is_set)
            del message, arrays
            while True:
                message, arrays = connection.channel.receive()
                if not _is_answer(message):
                    raise CorruptMessageError("it is of another form")
                if message.get("id") not in (job._number, None):
                    if message.keys() & {"reply", "error"}:
                        raise CorruptMessageError("it is that of another job")
                    continue  # a thread of an earlier task may still have something to say
                if "reply" in message:
                    self._events.put((job, "reply", Reply(message["reply"], arrays)))
                    return
                if "error" in message:
                    raise WorkerError(**message["error"])
                for kind in ("progress", "log"):
                    if kind in message:
                        self._events.put((job, kind, message[kind]))
        except Cancelled:
            self._events.put((job, "error", cancelled()))
        except (EOFError, ConnectionError):
            error = connection.exit_error()
            connection.close()
            self._events.put((job, "error", error))
        except CorruptMessageError as error:
            connection.close()
            sentence = f"The worker's answer cannot be read ({error})."
            self._events.put((job, "error", WorkerError("CorruptMessage", sentence, REPORT)))
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
            job._callbacks.progress(*value)
        elif kind == "log":
            job._callbacks.log(value)
        elif job._unwanted.is_set():
            self._finish(job, error=cancelled())
        elif kind == "reply":
            self._finish(job, reply=value)
        else:
            self._finish(job, error=value)

    def _cancel(self, job: Job) -> None:
        if job.finished or job._unwanted.is_set():
            return
        job._unwanted.set()
        if job is self._current:
            job._deadline = time.monotonic() + job._grace
            self._send_cancel(job)
        else:
            self._waiting.remove(job)
            self._events.put((job, "error", cancelled()))

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
            self._loss = True

    def _tell_loss(self) -> None:
        if self._loss:
            self._loss = False
            self.lost()

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
        job._callbacks.done(job)


def _is_answer(message: Message) -> bool:
    """Tell whether a message about a job holds values of the right types."""
    if "progress" in message:
        told = message["progress"]
        if not (isinstance(told, list) and len(told) == 2 and isinstance(told[0], str)):
            return False
        if type(told[1]) not in (int, float):
            return False
    if "error" in message:
        error = message["error"]
        texts = isinstance(error, dict) and all(isinstance(text, str) for text in error.values())
        if not texts or not {"kind", "sentence"} <= error.keys() <= ERROR_KEYS:
            return False
    kinds = {"reply": dict, "log": str}
    return all(isinstance(message[key], kind) for key, kind in kinds.items() if key in message)


def cancelled() -> WorkerError:
    """Return the error of work that the user cancelled."""
    return WorkerError("Cancelled", "The work was cancelled; nothing was changed.")
