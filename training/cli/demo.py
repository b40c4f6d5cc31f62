# SPDX-License-Identifier: Apache-2.0
"""``srcsm demo``."""

import argparse
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments as options
from .console import progress_display, say
from .outputs import report_os_errors, report_volume_errors

if TYPE_CHECKING:
    from ..engine.progress import Progress


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "demo",
        "train on a phantom's CT, segment its MR, and show what SRC, SM and SAM bring",
        "If it is stopped, the same command resumes it.",
        "  srcsm demo\n  srcsm demo --minutes 15 -o somewhere/else",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="folder of all that is made (default: demo-output)",
    )
    time = parser.add_mutually_exclusive_group()
    time.add_argument(
        "--minutes",
        type=float,
        default=6.0,
        metavar="M",
        help="time for all of it; the trainings get as many steps as fit (default: 6)",
    )
    time.add_argument(
        "--steps",
        type=options.positive,
        metavar="N",
        help="steps of each training, whatever the time",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    import pandas as pd

    from ..demo import run_demo
    from ..engine.estimate import duration
    from ..evaluation.tables import markdown_table

    displays = ExitStack()
    shown = {}

    def tell(line: str) -> None:
        displays.close()  # a line would break a bar that is still open
        say(line)

    def bar(title: str, progress: "Progress", steps: int, seconds_left: float) -> None:
        if title not in shown:
            shown[title] = displays.enter_context(progress_display(title))
        note = f"loss {progress.loss:.3f}"
        if not math.isnan(seconds_left):
            note += f", {duration(seconds_left)} left in all"
        shown[title](progress.step, steps, note)

    with report_os_errors(arguments.output), report_volume_errors(), displays:
        dice = run_demo(arguments.output, arguments.minutes, tell, bar, arguments.steps)
    rows = [{"training": variant, **values} for variant, values in dice.items()]
    print("Dice on the phantom's MR after training on its CT:\n")
    print(markdown_table(pd.DataFrame(rows).round(3)))
    print(f"\nLabels for Slicer: {arguments.output / 'labels'}")
    print(f"Overview: {arguments.output / 'overview.png'}")
    return 0
