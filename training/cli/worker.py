# SPDX-License-Identifier: Apache-2.0
"""The command ``srcsm worker``: a worker of this machine behind a socket."""

import argparse
import importlib.util
import ipaddress
import os
import secrets
import socket
from pathlib import Path

from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .console import say
from .outputs import OutputError

TOKEN_VARIABLE = "SRCSM_WORKER_TOKEN"
SHORTEST_TOKEN = 16
TASKS = ("SRCSMSegmenterLib.worker.tasks", "SAMRefineLib.refine.tasks")


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "worker",
        "serve a worker of this machine, such as one with a GPU, to other machines",
        "Only clients that know the token are let in. The connection is not encrypted: listen on\n"
        "127.0.0.1, and let the clients connect through SSH, with\n"
        "ssh -L 7654:127.0.0.1:7654 this-machine on theirs. Ctrl-C ends the worker.",
        "  srcsm worker --listen 127.0.0.1:7654\n"
        "  srcsm worker --listen 7654 --token-file ~/.srcsm-token",
    )
    parser.add_argument(
        "--listen",
        required=True,
        metavar="[HOST:]PORT",
        help="address to listen on (default host: 127.0.0.1); port 0 takes a free port",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token (default: $SRCSM_WORKER_TOKEN, or a new token, which is shown)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from SRCSMSegmenterLib.worker.client import Worker
    from SRCSMSegmenterLib.worker.server import Server

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
            "srcsm: warning: others on the network can reach this worker and read what clients "
            "send to it; 127.0.0.1 and an SSH tunnel are safer."
        )
    say(f"srcsm worker listens on {host}:{listening.getsockname()[1]}; Ctrl-C ends it.")
    tasks = [name for name in TASKS if importlib.util.find_spec(name.partition(".")[0])]
    with listening, Worker(tasks, log=say) as worker:
        Server(listening, token, worker, say).serve()
    return 0


def parse_address(text: str) -> tuple[str, int]:
    """Read "PORT", "HOST:PORT" or "[HOST]:PORT"; the default host is 127.0.0.1.

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
    """Read the token from --token-file or $SRCSM_WORKER_TOKEN, or make one and show it.

    Raises:
        ConfigError: the token is too short to be safe, or the file cannot be read.
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
