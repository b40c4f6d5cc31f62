# SPDX-License-Identifier: Apache-2.0
"""``srcsm demo``."""

import argparse
import math
from contextlib import ExitStack

import pandas as pd

from ...demo import run_demo
from ...engine.estimate import duration
from ...engine.fit import Progress
from ...evaluation.evaluate import markdown_table
from ..console import making, progress_display, say, writing


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    displays = ExitStack()
    shown = {}

    def tell(line: str) -> None:
        displays.close()  # a line would break a bar that is still open
        say(line)

    def bar(title: str, progress: Progress, steps: int, seconds_left: float) -> None:
        if title not in shown:
            shown[title] = displays.enter_context(progress_display(title))
        note = f"loss {progress.loss:.3f}"
        if not math.isnan(seconds_left):
            note += f", {duration(seconds_left)} left in all"
        shown[title](progress.step, steps, note)

    with making(arguments.output), writing(), displays:
        dice = run_demo(arguments.output, arguments.minutes, tell, bar, arguments.steps)
    rows = [{"training": variant, **values} for variant, values in dice.items()]
    print("Dice on the phantom's MR after training on its CT:\n")
    print(markdown_table(pd.DataFrame(rows).round(3)))
    print(f"\nLabels for Slicer: {arguments.output / 'labels'}")
    print(f"Overview: {arguments.output / 'overview.png'}")
    return 0
