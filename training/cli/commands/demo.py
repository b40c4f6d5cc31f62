# SPDX-License-Identifier: Apache-2.0
"""``srcsm demo``."""

import argparse
from contextlib import ExitStack

import pandas as pd

from ...demo import run_demo
from ...engine.progress import Progress
from ...evaluation.evaluate import markdown_table
from ...segmentation.presets import preset
from ..console import making, progress_display, say, writing


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    steps = arguments.steps or preset("abdomen-tiny").optimisation.steps
    displays = ExitStack()
    shown = {}

    def tell(line: str) -> None:
        displays.close()  # a line would break a bar that is still open
        say(line)

    def bar(title: str, progress: Progress) -> None:
        if title not in shown:
            shown[title] = displays.enter_context(progress_display(title))
        shown[title](progress.step, steps, f"loss {progress.loss:.3f}")

    with making(arguments.output), writing(), displays:
        dice = run_demo(arguments.output, tell, bar, steps)
    rows = [{"training": variant, **values} for variant, values in dice.items()]
    print("Dice on the phantom's MR after training on its CT:\n")
    print(markdown_table(pd.DataFrame(rows).round(3)))
    print(f"\nLabels for Slicer: {arguments.output / 'labels'}")
    print(f"Overview: {arguments.output / 'overview.png'}")
    return 0
