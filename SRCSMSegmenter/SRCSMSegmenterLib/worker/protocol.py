# SPDX-License-Identifier: Apache-2.0
"""Wire protocol between worker and client: messages, arrays and errors.

A message is a JSON object. Its keys, in the order of a worker's life:

    worker   hello: {protocol, tasks}
    client   id, task, parameters, arrays          a request
    client   cancel: id
    worker   id, progress: [stage, fraction]
    worker   id, log: line
    worker   id, reply, arrays                     the end of a request, or
    worker   id, error: {kind, sentence, remedy, details}; the id is null if none could be read

Over the pipes of a child process a message is a line of UTF-8, and its arrays are .npy files in a
private folder, which the receiver maps into memory and unlinks. Over a socket a message is a frame
(`multiprocessing.connection`), and its arrays follow as frames of at most `BLOCK` bytes.
"""

import json
import os
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import numpy as np

from ..errors import Cancelled, SRCSMError
from .authentication import answer_challenge, deliver_challenge

PROTOCOL = 2
"""Raised whenever a message changes its meaning."""

BLOCK = 16 << 20
"""Bytes of an array that are written between two checks whether to stop."""

LONGEST_MESSAGE = 64 << 20
"""Bytes of a message over a socket, without its arrays."""

Message = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
NONE: Mapping[str, Any] = MappingProxyType({})

REMEDIES = {
    "VolumeError": "Check the input volume.",
    "SourceMatchingError": "Switch source matching off.",
    "BundleError": "Choose another model, or fetch this one anew.",
    "DeviceError": "Choose another device, or crop the volume.",
    "PromptError": "Correct the boxes.",
    "MemoryError": "Close other programs, or crop the volume, and try again.",
    "ModuleNotFoundError": "Install the missing package.",
    "OSError": "Check that the disk is there, writable and not full.",
    "WorkerDied": "Try again; the worker starts anew. If it is the memory, crop the volume.",
    "WorkerAbsent": "Check how the worker is started; the details tell what it said.",
    "Cancelled": "",
}
"""What to do about each kind of error."""

REPORT = "Try again; if it happens again, report it with the details."


@dataclass(eq=False)
class WorkerError(SRCSMError):
    """An error of a task or of the worker itself, in the form in which it is sent.

    Attributes:
        kind: the class of the error in the worker ("VolumeError", "Cancelled" ...), "WorkerDied"
            or "WorkerAbsent" (it did not start, or nothing answers at its address).
        sentence: what was wrong.
        remedy: what to do; may be empty.
        details: traceback or the last lines of the worker's log, for a report.
    """

    kind: str
    sentence: str
    remedy: str = ""
    details: str = ""

    def __post_init__(self) -> None:
        super().__init__(self.kind, self.sentence, self.remedy, self.details)

    def __str__(self) -> str:
        return self.sentence

    @property
    def told(self) -> str:
        """The text for the user: what was wrong, and what to do."""
        return f"{self.sentence} {self.remedy}".strip()


def as_worker_error(error: BaseException) -> WorkerError:
    """Convert an exception, with its traceback, to an error that users read."""
    if isinstance(error, WorkerError):
        return error
    kind, sentence = type(error).__name__, str(error)
    if isinstance(error, OSError) and not isinstance(error, SRCSMError):
        kind = "OSError"
        sentence = f"Cannot use {error.filename or 'a file'} ({error.strerror or error})."
    elif isinstance(error, ModuleNotFoundError):
        sentence = f"The package {error.name} is not installed."
    elif isinstance(error, MemoryError) or "out of memory" in sentence:
        kind, sentence = "MemoryError", "Memory ran out."
    elif not isinstance(error, SRCSMError):
        sentence = f"Unexpected {kind}: {sentence}"
    details = "".join(traceback.format_exception(error))
    return WorkerError(kind, sentence, REMEDIES.get(kind, REPORT), details)


class RequestError(SRCSMError):
    """Parameters or arrays of a request that are missing or odd."""


class CorruptMessageError(Exception):
    """A message that cannot be understood; `id` is that of its request, if it could be read."""

    def __init__(self, reason: str, id: int | None = None) -> None:
        super().__init__(reason)
        self.id = id


def refusal(error: CorruptMessageError) -> Message:
    """Make the reply to a request that cannot be read."""
    reply = WorkerError("CorruptMessage", f"The request cannot be read: {error}.", REPORT)
    return {"id": error.id, "error": vars(reply)}


class Channel(Protocol):
    """One end of the connection between worker and client; any thread may send."""

    def send(
        self, message: Message, arrays: Arrays = NONE, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Send a message.

        Args:
            arrays: numbers of any shape; sent without a copy of the whole.
            stopped: asked between blocks of them.

        Raises:
            Cancelled: `stopped` said so; the message was not sent.
            OSError: no room for the arrays, or nobody listens.
        """

    def receive(self) -> tuple[Message, dict[str, np.ndarray]]:
        """Wait for the next message.

        Raises:
            EOFError, OSError: the other end is gone.
            CorruptMessageError: not understood.
        """


class FileChannel:
    """A channel over two pipes; arrays are files in `folder`."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, folder: Path) -> None:
        """Open the channel; `writer` must be unbuffered."""
        self._reader, self._writer, self._folder = reader, writer, folder
        self._lock = threading.Lock()

    def send(
        self, message: Message, arrays: Arrays = NONE, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """See `Channel`."""
        files: dict[str, Path] = {}
        try:
            for name, array in arrays.items():
                files[name] = self._write(array, stopped)
            names = {name: path.name for name, path in files.items()}
            line = memoryview(json.dumps({**message, "arrays": names}).encode() + b"\n")
            with self._lock:
                while line:
                    line = line[self._writer.write(line) :]
        except BaseException:
            for path in files.values():
                path.unlink(missing_ok=True)
            raise

    def receive(self) -> tuple[Message, dict[str, np.ndarray]]:
        """See `Channel`."""
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        message = _parsed(line)
        try:
            names = message.pop("arrays", {})
            return message, {name: self._mapped(file) for name, file in names.items()}
        except Exception as error:  # numpy raises errors of many kinds for damaged files
            raise CorruptMessageError(f"arrays: {error}", _id(message)) from error

    def _write(self, array: np.ndarray, stopped: Callable[[], bool]) -> Path:
        descriptor, name = tempfile.mkstemp(suffix=".npy", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                header = {"descr": _described(array), "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in _blocks(array, stopped):
                    rest = memoryview(block)
                    while rest:
                        rest = rest[file.write(rest) :]
        except BaseException:
            Path(name).unlink()
            raise
        return Path(name)

    def _mapped(self, file: str) -> np.ndarray:
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no name of a file")
        path = self._folder / file
        # Writing into a copy-on-write map changes the map alone; torch warns of read-only arrays.
        array = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
        # A map outlives its file; on Windows the file stays until the folder is removed.
        with suppress(PermissionError):
            path.unlink()
        return array


class SocketChannel:
    """A channel over a socket; arrays are inline.

    A thread may wait in `receive` while another closes it.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        # Of its own descriptor, which is not closed, and given to others, under a waiting thread.
        self._connection = Connection(connected.dup().detach())
        self._lock = threading.Lock()

    def authenticate(self, token: str, *, listens: bool) -> None:
        """Prove to know the token, and have the other end prove it; the token is not sent.

        Raises:
            multiprocessing.AuthenticationError: one of the two does not know it.
            EOFError, OSError: the other end is gone.
        """
        steps = (deliver_challenge, answer_challenge)
        for step in steps if listens else reversed(steps):
            step(self._connection, token.encode())

    def send(
        self, message: Message, arrays: Arrays = NONE, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """See `Channel`; the channel is closed if sending stops among the arrays."""
        shapes = {name: [_described(array), array.shape] for name, array in arrays.items()}
        content = json.dumps({**message, "arrays": shapes}).encode()
        with self._lock:
            try:
                self._connection.send_bytes(content)
                for array in arrays.values():
                    for block in _blocks(array, stopped):
                        self._connection.send_bytes(block)
            except BaseException:
                self.close()
                raise

    def receive(self) -> tuple[Message, dict[str, np.ndarray]]:
        """See `Channel`."""
        message = _parsed(self._connection.recv_bytes(LONGEST_MESSAGE))
        try:
            shapes = message.pop("arrays", {}).items()
            arrays = {name: np.empty(shape, _number(descr)) for name, (descr, shape) in shapes}
        except Exception as error:  # numpy raises nearly anything for odd types and shapes
            raise CorruptMessageError(f"arrays: {error}", _id(message)) from error
        for array in arrays.values():
            target, done = array.reshape(-1).view(np.uint8), 0
            while done < len(target):
                block = np.frombuffer(self._connection.recv_bytes(BLOCK), np.uint8)
                if not 0 < len(block) <= len(target) - done:  # what follows cannot be understood
                    self.close()
                    raise ConnectionError("a block of another length than announced")
                target[done : done + len(block)] = block
                done += len(block)
        return message, arrays

    def quiet(self) -> bool:
        """Tell whether the other end is there and has sent nothing that was not received."""
        try:
            return not self._connection.poll()
        except OSError:
            return False

    def close(self) -> None:
        """Close the channel; `receive` at either end raises EOFError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _parsed(content: bytes) -> Message:
    try:
        message = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptMessageError(f"no JSON ({error})") from error
    if not isinstance(message, dict):
        raise CorruptMessageError(f"no JSON object, but {type(message).__name__}")
    return message


def _id(message: Message) -> int | None:
    id = message.get("id")
    return id if type(id) is int else None


def _described(array: np.ndarray) -> str:
    return _number(array.dtype.str).str


def _number(descr: str) -> np.dtype:
    dtype = np.dtype(descr)
    if dtype.kind not in "biuf":
        raise TypeError(f"an array of {dtype} does not travel; make it numbers")
    return dtype


def _blocks(array: np.ndarray, stopped: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Yield the array's bytes in C order, in pieces of at most `BLOCK`, copied only if needed."""
    if stopped():
        raise Cancelled("The user cancelled; nothing was sent.")
    if array.nbytes <= BLOCK:
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return
    rows = BLOCK // (array.nbytes // len(array))
    parts = (array[n : n + rows] for n in range(0, len(array), rows)) if rows else array
    for part in parts:
        yield from _blocks(part, stopped)
