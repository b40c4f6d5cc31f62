# SPDX-License-Identifier: Apache-2.0
"""Messages, progress and results on the terminal."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

SECONDS_BETWEEN_LINES = 30.0


def say(line: str) -> None:
    """Print a line for the user on standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Return False in all but the first of the processes that `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def print_json(content: Any) -> None:  # noqa: ANN401 - plain JSON values
    """Print results for programs."""
    print(json.dumps(content, indent=1))


@contextmanager
def progress_display(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield show(done, total, note), which draws a bar or, without a terminal, prints lines."""
    if not is_first_process():
        yield lambda done, total, note: None
        return
    bar = None
    last = time.monotonic()

    def show_bar(done: int, total: int, note: str) -> None:
        nonlocal bar
        if bar is None:
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            layout += "[{elapsed}<{remaining}{postfix}]"
            # A resumed training starts in the middle.
            bar = tqdm(desc=what, total=total, initial=max(0, done - 1), bar_format=layout)
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)

    def show_line(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {done} of {total}, {note}")

    try:
        yield show_bar if sys.stderr.isatty() else show_line
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def stage_display(what: str) -> Iterator[Callable[[str, float], None]]:
    """Yield show(stage, fraction), for work that reports a stage's name and a share from 0 to 1."""
    with progress_display(what) as show:
        yield lambda stage, fraction: show(round(100 * fraction), 100, stage)
