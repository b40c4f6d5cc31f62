# SPDX-License-Identifier: Apache-2.0
"""``srcsm worker``: serve a worker of this machine over a socket.

Behind the socket is the same child process that a client has on its own machine, so that a crash
or a cancelled task ends that child alone. All clients share it; their jobs are done in order.
"""

import argparse
import importlib.util
import ipaddress
import os
import secrets
import socket
import threading
from contextlib import suppress
from multiprocessing import AuthenticationError
from queue import Empty, SimpleQueue

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.worker.client import Job, Worker
from SRCSMSegmenterLib.worker.protocol import (
    NONE,
    PROTOCOL,
    Arrays,
    CorruptMessageError,
    Message,
    SocketChannel,
    refusal,
)

from ..console import OutputError, say

TOKEN_VARIABLE = "SRCSM_WORKER_TOKEN"
SHORTEST_TOKEN = 16
SECONDS_TO_AUTHENTICATE = 10.0
TASKS = ("SRCSMSegmenterLib.worker.tasks", "SAMRefineLib.refine.tasks")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    host, port = parse_address(arguments.listen)
    token = read_token(arguments)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OutputError(
            f"Cannot listen on {arguments.listen} ({error.strerror}); choose another port."
        ) from error
    if not ipaddress.ip_address(host).is_loopback:
        say(
            "srcsm: warning: others on the network reach this worker, and what they send it can "
            "be read on the way; 127.0.0.1 and an SSH tunnel are safer."
        )
    say(f"srcsm worker listens on {host}:{listening.getsockname()[1]}; Ctrl-C ends it.")
    tasks = [name for name in TASKS if importlib.util.find_spec(name.partition(".")[0])]
    with listening, Worker(tasks, log=say) as worker:
        Server(listening, token, worker).serve()
    return 0


def parse_address(text: str) -> tuple[str, int]:
    """ "PORT", "HOST:PORT" or "[HOST]:PORT"; the host is 127.0.0.1 unless it is named.

    Raises:
        ConfigError: anything else.
    """
    host, _, port = text.rpartition(":")
    host = {"": "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise ConfigError(f"--listen needs an address such as 127.0.0.1:7654, not {text}.")
    return host, number


def read_token(arguments: argparse.Namespace) -> str:
    """From --token-file or $SRCSM_WORKER_TOKEN; else one is made and told the user.

    Raises:
        ConfigError: the token is so short that it can be guessed, or the file cannot be read.
    """
    if arguments.token_file:
        try:
            token = arguments.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Cannot read the token in {arguments.token_file}: {error}."
            ) from error
    elif TOKEN_VARIABLE in os.environ:
        token = os.environ[TOKEN_VARIABLE]
    else:
        token = secrets.token_urlsafe(24)
        say(f"Token for the clients: {token}")
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"The token needs {SHORTEST_TOKEN} characters or more.")
    return token


class Server:
    """Between the clients' sockets and one worker.

    A thread accepts clients, two for each client receive and send; the worker, which is used from
    one thread alone, is `serve`'s.
    """

    def __init__(self, listening: socket.socket, token: str, worker: Worker) -> None:
        self._listening, self._token, self._worker = listening, token, worker
        self._received: SimpleQueue[tuple[Client, Message | None, Arrays]] = SimpleQueue()

    def serve(self) -> None:
        """Pass on requests and cancels, and the news of them back; does not return."""
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            with suppress(Empty):
                self._handle(*self._received.get(timeout=0.02))
            self._worker.pump()

    def _accept(self) -> None:
        while True:
            connected, _ = self._listening.accept()
            threading.Thread(target=self._receive, args=(connected,), daemon=True).start()

    def _receive(self, connected: socket.socket) -> None:
        """Let a client in and take in what it wants; the body of its thread."""
        channel = SocketChannel(connected)
        doorkeeper = threading.Timer(SECONDS_TO_AUTHENTICATE, channel.close)
        doorkeeper.start()
        try:
            channel.authenticate(self._token, listens=True)
        except (AuthenticationError, EOFError, OSError):
            say("srcsm worker: a client without the token was refused.")
            channel.close()
            return
        finally:
            doorkeeper.cancel()
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

    def _handle(self, client: "Client", message: Message | None, arrays: Arrays) -> None:
        if message is None:
            client.leave()
        elif "cancel" in message:
            client.cancel(message["cancel"])
        else:
            client.begin(self._worker, message, arrays)


class Client:
    """One that is connected, and its jobs under the numbers it gave them."""

    def __init__(self, channel: SocketChannel) -> None:
        self._jobs: dict[int, Job] = {}
        self._channel = channel
        self._outgoing: SimpleQueue[tuple[Message, Arrays] | None] = SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def tell(self, message: Message, arrays: Arrays = NONE) -> None:
        """Send it, as soon as what went before is sent."""
        self._outgoing.put((message, arrays))

    def begin(self, worker: Worker, message: Message, arrays: Arrays) -> None:
        """Queue a request."""
        number, parameters = message.get("id"), message.get("parameters", {})
        if not isinstance(number, int) or not isinstance(parameters, dict):
            self.tell(refusal(CorruptMessageError("a request has an id and parameters")))
            return

        def done(job: Job) -> None:
            del self._jobs[number]
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
        """Cancel a job, unless it has come to its end already."""
        for key, job in self._jobs.items():
            if key == number:
                job.cancel()

    def leave(self) -> None:
        """Hang up and cancel what is not done."""
        for job in self._jobs.values():
            job.cancel()
        self._outgoing.put(None)
        self._channel.close()

    def _send(self) -> None:
        with suppress(OSError):  # who receives learns of it too
            while waiting := self._outgoing.get():
                self._channel.send(*waiting)
                del waiting  # or its arrays stay until the next
