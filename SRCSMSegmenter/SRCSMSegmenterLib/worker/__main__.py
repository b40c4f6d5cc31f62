# SPDX-License-Identifier: Apache-2.0
"""The worker process: ``python -m SRCSMSegmenterLib.worker --tasks MODULE... --folder FOLDER``.

Started by `connections.Child`, for `client.Worker`. Requests come through standard input and are
done one after the other; progress and replies go through standard output. The process ends when its
standard input does.
"""

import argparse
import faulthandler
import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from ..errors import Cancelled
from .connections import remove_private_folder
from .protocol import (
    PROTOCOL,
    Channel,
    CorruptMessageError,
    FileChannel,
    Message,
    RequestError,
    WorkerError,
    as_worker_error,
    refusal,
)
from .tasks import Context, Models, Task

SECONDS_BETWEEN_PROGRESS = 0.05

Request = tuple[Message, dict[str, np.ndarray]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve requests until the client hangs up."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--tasks", action="append", default=[], metavar="MODULE")
    parser.add_argument("--folder", type=Path, required=True, help="for arrays; removed at the end")
    options = parser.parse_args(arguments)
    # Libraries print to the log, and must not read our requests.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    faulthandler.enable()

    tasks, broken = load_tasks(options.tasks)
    channel = FileChannel(requests, replies, options.folder)
    channel.send({"hello": {"protocol": PROTOCOL, "tasks": sorted(tasks)}})
    waiting: SimpleQueue[Request] = SimpleQueue()
    unwanted: set[int] = set()

    def end() -> None:
        remove_private_folder(options.folder)
        os._exit(0)  # in the middle of whatever the task does

    threading.Thread(target=read, args=(channel, waiting, unwanted, end), daemon=True).start()
    models = Models()
    try:
        while True:
            answer(channel, *waiting.get(), tasks, broken, unwanted, models)
    finally:
        end()


def load_tasks(modules: Sequence[str]) -> tuple[dict[str, Task], dict[str, WorkerError]]:
    """Import the tasks of all modules; also return the errors of those that fail to import."""
    tasks: dict[str, Task] = {}
    broken: dict[str, WorkerError] = {}
    for module in modules:
        try:
            tasks |= importlib.import_module(module).TASKS
        except Exception as error:
            broken[module] = as_worker_error(error)
    return tasks, broken


def read(
    channel: Channel,
    waiting: SimpleQueue[Request],
    unwanted: set[int],
    end: Callable[[], None],
) -> None:
    """Receive requests, also while a task runs; the body of a thread."""
    try:
        while True:
            try:
                message, arrays = channel.receive()
                if type(cancelled := message.get("cancel")) is int:
                    unwanted.add(cancelled)
                elif type(message.get("id")) is int:
                    waiting.put((message, arrays))
                else:
                    raise CorruptMessageError("it has no id")
                del message, arrays  # or they stay until the next
            except CorruptMessageError as error:
                channel.send(refusal(error))
    finally:
        end()


def answer(
    channel: Channel,
    request: Message,
    arrays: dict[str, np.ndarray],
    tasks: dict[str, Task],
    broken: dict[str, WorkerError],
    unwanted: set[int],
    models: Models,
) -> None:
    """Do one request and send its reply or error."""
    number = request["id"]
    context = Context(
        ThrottledProgress(partial(_send, channel, number, "progress")),
        lambda: number in unwanted,
        partial(_send, channel, number, "log"),
        models,
    )
    try:
        if context.cancelled():
            raise Cancelled("Cancelled before it began.")
        task = find_task(request.get("task"), tasks, broken)
        if not isinstance(parameters := request.get("parameters", {}), dict):
            raise RequestError("The parameters of a request should be keys and values.")
        reply, results = task(parameters, arrays, context)
        channel.send({"id": number, "reply": reply}, results, context.cancelled)
    except BaseException as error:  # SystemExit, too, ends only the task
        channel.send({"id": number, "error": vars(as_worker_error(error))})
    unwanted.discard(number)


def find_task(name: str, tasks: dict[str, Task], broken: dict[str, WorkerError]) -> Task:
    """Look up the task of a name.

    Raises:
        WorkerError: there is none; it may be in a module that cannot be imported.
    """
    if isinstance(name, str) and name in tasks:
        return tasks[name]
    raise WorkerError(
        "UnknownTask",
        f"The worker has no task {name!r}; it has {', '.join(sorted(tasks)) or 'none'}.",
        " ".join(f"{module}: {error.sentence}" for module, error in broken.items()),
        "\n".join(error.details for error in broken.values()),
    )


class ThrottledProgress:
    """Sender of a task's progress, at most every `SECONDS_BETWEEN_PROGRESS` within a stage."""

    def __init__(self, send: Callable[[list], None]) -> None:
        self._send = send
        self._stage, self._next = "", 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage != self._stage or fraction >= 1 or now >= self._next:
            self._stage, self._next = stage, now + SECONDS_BETWEEN_PROGRESS
            self._send([stage, fraction])


def _send(channel: Channel, number: int, kind: str, value: object) -> None:
    channel.send({"id": number, kind: value})


if __name__ == "__main__":
    main()
