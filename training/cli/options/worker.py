# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm worker``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "worker",
        "serve a worker of this machine, such as one with a GPU, to other machines",
        "A client proves to know the token; without it none is let in. What is sent is not\n"
        "encrypted: listen on 127.0.0.1 and let SSH bring the clients there, with\n"
        "ssh -L 7654:127.0.0.1:7654 this-machine on theirs. Ctrl-C ends it.",
        "  srcsm worker --listen 127.0.0.1:7654\n"
        "  srcsm worker --listen 7654 --token-file ~/.srcsm-token",
    )
    parser.add_argument(
        "--listen",
        required=True,
        metavar="[HOST:]PORT",
        help="where to; the host is 127.0.0.1 unless it is named; port 0: a free one",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="with the token (default: $SRCSM_WORKER_TOKEN, else one is made and shown)",
    )
