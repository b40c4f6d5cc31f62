# SPDX-License-Identifier: Apache-2.0
"""Trainings as commands: progress, a clean stop, and the message at the end."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import DeviceError

from .console import INTERRUPTED, is_first_process, progress_display, say
from .outputs import make_folder

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.run_folder import RunResult


def run_to_end(
    training: Callable[["Limits"], "RunResult"],
    out: Path,
    steps: int,
    max_minutes: float,
    done: str,
) -> int:
    """Run a training and return the exit code: 0 at its end and after --max-minutes.

    Args:
        training: called with the limits of the run.
        out: folder of the run, created if it does not exist.
        steps: steps of the whole training.
        done: lines for the user, with {model} in place of the result's folder.
    """
    from ..engine.limits import Limits
    from ..engine.stopping import stop_on_signal

    make_folder(out)
    with stop_on_signal() as stop_requested, progress_display("training") as show:
        limits = Limits(
            max_minutes,
            stop_requested,
            say,
            lambda state: show(state.step, steps, f"loss {state.loss:.3f}"),
        )
        result = training(limits)
    if result.finished:
        if is_first_process():
            dice = result.best_dice
            validated = "" if math.isnan(dice) else f", best validation Dice {dice:.3f}"
            print(f"Trained {result.steps} steps{validated}.")
            print(done.format(model=result.model))
        return 0
    if is_first_process():
        why = "Stopped" if stop_requested() else "Stopped by --max-minutes"
        say(
            f"{why} at step {result.steps} of {steps}; the checkpoint is saved, and the same "
            "command resumes from it."
        )
    return INTERRUPTED if stop_requested() else 0


@contextmanager
def report_memory_errors() -> Iterator[None]:
    """Turn an out-of-memory error into a DeviceError that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "The device's memory is too small; lower batch (and raise accumulation), keep "
            "gradient_checkpointing on, choose precision fp16 or bf16, or tune with tune.lora=16."
        ) from error


def silence_libraries() -> None:
    """Turn off the bars and hints of diffusers and transformers, which would come between ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
