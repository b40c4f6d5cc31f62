# SPDX-License-Identifier: Apache-2.0
"""A worker of this machine behind a socket, for clients on this and other machines.

Behind the socket is the same child process that a client has on its own machine, so that a crash
or a cancelled task ends that child alone. All clients share it; their jobs are done in order.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from queue import Empty, SimpleQueue

from .client import Job, Worker
from .protocol import (
    NONE,
    PROTOCOL,
    Arrays,
    CorruptMessageError,
    Message,
    SocketChannel,
    refusal,
)

SECONDS_TO_AUTHENTICATE = 10.0
SECONDS_TO_RECOVER = 0.1

MOST_STRANGERS = 64
"""Clients that may be about to prove the token at a time; others are hung up on."""


class Server:
    """A server between the clients' sockets and one worker.

    One thread accepts clients; two more per client receive and send. Only the thread of `serve`
    uses the worker.

    Args:
        listening: socket that accepts clients.
        token: secret that a client has to know.
        worker: worker that does the jobs.
        log: called with lines for the user of this machine.
    """

    def __init__(
        self, listening: socket.socket, token: str, worker: Worker, log: Callable[[str], None]
    ) -> None:
        self._listening, self._token, self._worker, self._log = listening, token, worker, log
        self._strangers = threading.Semaphore(MOST_STRANGERS)
        self._received: SimpleQueue[tuple[Client, Message | None, Arrays]] = SimpleQueue()

    def serve(self) -> None:
        """Pass requests and cancels on to the worker, and its messages back; never return."""
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            with suppress(Empty):
                self._handle(*self._received.get(timeout=0.02))
            self._worker.pump()

    def _accept(self) -> None:
        while self._listening.fileno() != -1:
            try:
                connected, _ = self._listening.accept()
            except OSError:  # too many open files, for example
                time.sleep(SECONDS_TO_RECOVER)
                continue
            if not self._strangers.acquire(blocking=False):
                connected.close()
                continue
            try:
                threading.Thread(target=self._receive, args=(connected,), daemon=True).start()
            except RuntimeError:  # too many threads
                self._strangers.release()
                connected.close()

    def _receive(self, connected: socket.socket) -> None:
        """Authenticate a client and receive its messages; the body of its thread."""
        try:
            channel = self._authenticated(connected)
        except (AuthenticationError, EOFError, OSError, RuntimeError):
            self._log("srcsm worker: a client without the token was refused.")
            connected.close()
            return
        finally:
            self._strangers.release()
        client = Client(channel)
        client.tell({"hello": {"protocol": PROTOCOL}})
        try:
            while True:
                try:
                    self._received.put((client, *channel.receive()))
                except CorruptMessageError as error:
                    client.tell(refusal(error))
        except (EOFError, OSError):
            self._received.put((client, None, {}))

    def _authenticated(self, connected: socket.socket) -> SocketChannel:
        channel = SocketChannel(connected)
        timer = threading.Timer(SECONDS_TO_AUTHENTICATE, channel.close)
        timer.start()
        try:
            channel.authenticate(self._token, listens=True)
        except BaseException:
            channel.close()
            raise
        finally:
            timer.cancel()
        return channel

    def _handle(self, client: "Client", message: Message | None, arrays: Arrays) -> None:
        if message is None:
            client.leave()
        elif "cancel" in message:
            client.cancel(message["cancel"])
        else:
            client.begin(self._worker, message, arrays)


class Client:
    """A connected client, and its jobs under the numbers it gave them."""

    def __init__(self, channel: SocketChannel) -> None:
        self._jobs: dict[int, Job] = {}
        self._channel = channel
        self._outgoing: SimpleQueue[tuple[Message, Arrays] | None] = SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def tell(self, message: Message, arrays: Arrays = NONE) -> None:
        """Send a message after the earlier ones."""
        self._outgoing.put((message, arrays))

    def begin(self, worker: Worker, message: Message, arrays: Arrays) -> None:
        """Queue a request of the client."""
        number, parameters = message.get("id"), message.get("parameters", {})
        if type(number) is not int or not isinstance(parameters, dict):
            self.tell(refusal(CorruptMessageError("a request has an id and parameters")))
            return
        if number in self._jobs:
            self.tell(refusal(CorruptMessageError(f"request {number} is not finished", number)))
            return

        def done(job: Job) -> None:
            self._jobs.pop(number, None)
            if job.reply is None:
                self.tell({"id": number, "error": vars(job.error)})
            else:
                self.tell({"id": number, "reply": job.reply.values}, job.reply.arrays)

        self._jobs[number] = worker.submit(
            message.get("task"),
            parameters,
            arrays,
            progress=lambda *value: self.tell({"id": number, "progress": value}),
            log=lambda line: self.tell({"id": number, "log": line}),
            done=done,
        )

    def cancel(self, number: int) -> None:
        """Cancel a job, unless it has ended already."""
        for key, job in list(self._jobs.items()):
            if key == number:
                job.cancel()

    def leave(self) -> None:
        """Close the connection and cancel the unfinished jobs."""
        for job in list(self._jobs.values()):
            job.cancel()
        self._outgoing.put(None)
        self._channel.close()

    def _send(self) -> None:
        with suppress(OSError):  # the receiving thread notices it too
            while waiting := self._outgoing.get():
                self._channel.send(*waiting)
                del waiting  # frees its arrays before the next message
