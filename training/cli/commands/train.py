# SPDX-License-Identifier: Apache-2.0
"""``srcsm train``."""

import argparse
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from SRCSMSegmenterLib.errors import BundleError, ConfigError

from ...engine.config import configured, to_dict
from ...engine.estimate import measure_training
from ...engine.limits import Limits
from ...engine.run_folder import RunResult
from ...engine.source_domain import intensity_rule, open_source
from ...segmentation.config import TrainingConfig
from ...segmentation.presets import PRESETS, preset
from ...segmentation.restyled import open_restyled
from ...segmentation.run import run_training
from ..console import (
    OutputError,
    make_folder,
    progress_display,
    say,
    speaks,
)
from . import INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    """Train, or resume a training, and say how it ended."""
    if arguments.list_presets:
        print(presets_as_text())
        return 0
    needed = {"--data": arguments.data, "--preset": arguments.preset}
    if not arguments.dry_run:
        needed["--out"] = arguments.out
    if missing := [option for option, value in needed.items() if value is None]:
        raise ConfigError(f"srcsm train needs {' and '.join(missing)}; see srcsm train --help.")
    config = configured(preset(arguments.preset), arguments.config, arguments.set)
    if arguments.dry_run:
        print(dry_run(arguments.data, config, arguments.device, arguments.cache))
        return 0
    return run_to_end(
        arguments,
        config.optimisation.steps,
        partial(write_or_fail, arguments.data, config, arguments.out, cache=arguments.cache),
        "Network: {model}\nNext: srcsm segment SCAN --model {model} -o labels.nii.gz",
    )


def write_or_fail(*given: object, **settings: object) -> RunResult:
    """`run_training`, which reads no bundle: where one is at fault, it could not be written."""
    try:
        return run_training(*given, **settings)
    except BundleError as error:
        raise OutputError(str(error)) from error


def run_to_end(
    arguments: argparse.Namespace, steps: int, training: Callable[..., RunResult], done: str
) -> int:
    """Run a training; a stop is no error, but Ctrl-C has an exit code of its own.

    Args:
        arguments: out, name, device and max_minutes.
        training: called with name, device and limits.
        done: lines for the user, with the folder of the result for {model}.
    """
    make_folder(arguments.out)
    with stop_on_signal() as stop_requested, progress_display("training") as show:
        result = training(
            name=arguments.name,
            device=arguments.device,
            limits=Limits(
                arguments.max_minutes,
                stop_requested,
                say,
                report=lambda p: show(p.step, steps, f"loss {p.loss:.3f}"),
            ),
        )
    if result.finished:
        if speaks():
            dice = result.best_dice
            validated = "" if math.isnan(dice) else f", best validation Dice {dice:.3f}"
            print(f"Trained {result.steps} steps{validated}.")
            print(done.format(model=result.model))
        return 0
    why = "Stopped" if stop_requested() else "Stopped by --max-minutes"
    if speaks():
        say(
            f"{why} at step {result.steps} of {steps}; the checkpoint is saved, and the same "
            "command goes on from it."
        )
    return INTERRUPTED if stop_requested() else 0


def dry_run(
    folder: Path, config: TrainingConfig, device: str = "auto", cache: Path | None = None
) -> str:
    """Check the dataset and measure a few steps.

    Returns:
        The configuration as YAML, and as comments what goes where, and the time and memory that
        the training takes.
    """
    source = open_source(folder, config.data, say)
    dataset, training, validation = source.dataset, source.training, source.validation
    open_restyled(config, dataset, training)
    rule = intensity_rule(config.data, source.modality, training)
    config = replace(config, network=replace(config.network, classes=len(dataset.labels) + 1))
    say("Measuring some steps ...")
    estimate = measure_training(
        lambda config, out, **settings: run_training(folder, config, out, cache=cache, **settings),
        config,
        training,
        device,
    )
    lines = [
        f"# {dataset.name}: {', '.join(dataset.labels)}",
        f"# intensities: {rule}",
        f"# training: {', '.join(case.name for case in training)}",
        f"# validation: {', '.join(case.name for case in validation) or 'none'}",
        *(f"# {line}" for line in estimate.lines(config.optimisation.steps)),
        yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None).rstrip(),
    ]
    return "\n".join(lines)


def presets_as_text() -> str:
    """A line for each preset."""
    lines = [f"{'preset':<16} {'voxels':<16} {'spacing (mm)':<18} steps"]
    for name, config in PRESETS.items():
        size = " x ".join(map(str, config.grid.size))
        spacing = " x ".join(f"{value:g}" for value in config.grid.spacing)
        lines.append(f"{name:<16} {size:<16} {spacing:<18} {config.optimisation.steps}")
    return "\n".join(lines)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks for a stop, which the yielded function tells; again, it is one."""
    asked = False
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        restore()
        # print is not safe here: the signal may have come in the middle of another one.
        os.write(2, b"\nStopping after this step, with a checkpoint; again to stop at once.\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()
