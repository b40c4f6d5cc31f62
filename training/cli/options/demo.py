# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm demo``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "demo",
        "train on a phantom's CT, segment its MR, and show what SRC, SM and SAM bring",
        "One that was stopped goes on where it was.",
        "  srcsm demo\n  srcsm demo --minutes 15 -o somewhere/else",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="for all that is made (default: demo-output)",
    )
    time = parser.add_mutually_exclusive_group()
    time.add_argument(
        "--minutes",
        type=float,
        default=6.0,
        metavar="M",
        help="for all of it; the trainings get as many steps as fit (default: 6)",
    )
    time.add_argument(
        "--steps", type=arguments.positive, metavar="N", help="of each training, whatever the time"
    )
