# SPDX-License-Identifier: Apache-2.0
"""Time limits of a run, and what it reports to."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """The time limit of a run and what it reports to; no part of what decides its result.

    Attributes:
        max_minutes: time after which the run stops, with all that it made saved.
        stop_requested: called after every step, case or batch of pictures; True stops the run.
        say: called on the main process with a line for the user.
        logger: of a training's curves and pictures, one of `loggers.LOGGERS`.
        report: called with the `Progress` of a training after every step, on every process.
    """

    max_minutes: float = math.inf
    stop_requested: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = print
    report: Callable[[Any], None] = lambda progress: None
    logger: str = "tensorboard"

    def start(self) -> Callable[[], bool]:
        """Start the clock, and return a function that tells whether to stop."""
        started = time.monotonic()
        return lambda: time.monotonic() - started > 60 * self.max_minutes or self.stop_requested()
