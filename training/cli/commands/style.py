# SPDX-License-Identifier: Apache-2.0
"""``srcsm style``: prepare, phantom, base, tune, control, swap, check."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from SRCSMSegmenterLib.errors import DeviceError, SRCSMError

from ...engine.config import configured, to_dict, write_yaml
from ...engine.limits import Limits
from ...style.config import StyleConfig
from ...style.slices import StageResult
from ..console import load_model, make_folder, progress_display, say, speaks
from . import INTERRUPTED
from .train import stop_on_signal


def run(arguments: argparse.Namespace) -> int:
    """Run a stage, or go on with it; a stop is no error, but Ctrl-C has its own exit code."""
    config = configured(StyleConfig(), arguments.config, arguments.set)
    if arguments.dry_run:
        print(yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None).rstrip())
        if arguments.action in MEASURED:
            _estimate(arguments, config)
        return 0
    out = arguments.out or arguments.slices
    if arguments.action == "swap" and not arguments.out:
        out = arguments.slices / "styled" / Path(config.prompts).stem
    if arguments.action != "check" or arguments.out:
        make_folder(out)
    display = progress_display(arguments.action)
    with stop_on_signal() as stop_requested, display as show, _memory():
        if speaks() and arguments.action not in ("prepare", "check"):
            write_yaml(out / "config.yaml", config)
        limits = Limits(arguments.max_minutes, stop_requested, say)
        result = STAGES[arguments.action](arguments, config, out, show, limits)
    if result.finished and speaks():
        print(out)
        say(NEXT[arguments.action].format(out=out))
    elif speaks():
        why = "Stopped" if stop_requested() else "Stopped by --max-minutes"
        say(
            f"{why} at {result.done} of {result.total}; what was made is kept, and the same "
            "command goes on."
        )
    return INTERRUPTED if stop_requested() and not result.finished else 0


def prepare(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.prepare import prepare

    return prepare(arguments.data, out, config, progress=show, limits=limits)


def phantom(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.phantom_slices import write_phantom_slices

    return write_phantom_slices(out, config, progress=show, limits=limits)


def base(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.small import train_base

    _quiet()
    total = config.base.autoencoder.steps + config.base.denoiser.steps
    return train_base(
        arguments.slices,
        out,
        config,
        device=arguments.device,
        limits=replace(limits, report=lambda p: show(p.step, total, f"loss {p.loss:.4f}")),
    )


def tune(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.tune import tune

    _quiet()
    return tune(
        arguments.slices,
        arguments.base,
        out,
        config,
        device=arguments.device,
        download=arguments.download,
        limits=replace(
            limits, report=lambda p: show(p.step, config.tune.steps, f"loss {p.loss:.4f}")
        ),
    )


def control(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.control import train_control

    _quiet()
    return train_control(
        arguments.slices,
        arguments.base,
        out,
        config,
        tuned=arguments.tuned,
        device=arguments.device,
        download=arguments.download,
        limits=replace(
            limits, report=lambda p: show(p.step, config.control.steps, f"loss {p.loss:.4f}")
        ),
    )


def swap(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.swap import SwapModels, swap

    _quiet()
    return swap(
        arguments.slices,
        SwapModels(arguments.base, arguments.control, arguments.tuned, arguments.download),
        out,
        config,
        device=arguments.device,
        progress=lambda done, total: show(done, total, "pictures"),
        limits=limits,
    )


def check(
    arguments: argparse.Namespace, config: StyleConfig, out: Path, show: Callable, limits: Limits
) -> StageResult:
    from ...style.check import check

    return check(
        arguments.slices,
        config,
        out=out,
        network=load_model(arguments.model) if arguments.model else None,
        device=arguments.device,
        progress=show,
        limits=limits,
    )


STAGES: dict[str, Callable[..., StageResult]] = {
    "prepare": prepare,
    "phantom": phantom,
    "base": base,
    "tune": tune,
    "control": control,
    "swap": swap,
    "check": check,
}

NEXT = {
    "prepare": "Next: srcsm style tune --slices {out} --out RUN",
    "phantom": "Next: srcsm style base --slices {out} --out BASE",
    "base": "Next: srcsm style tune --slices SLICES --base {out} --out RUN",
    "tune": "Next: srcsm style control --slices SLICES --tuned {out} --out RUN",
    "control": "Next: srcsm style swap --slices SLICES --control {out}",
    "swap": "Next: srcsm style check --slices {out}",
    "check": "Next: look at {out}/contact_sheet.png, then srcsm train --preset icm ... "
    "--set pairs.styled=[SLICES]",
}


MEASURED = ("base", "tune", "control", "swap")
"""Stages that take long."""


def _estimate(arguments: argparse.Namespace, config: StyleConfig) -> None:
    """Measure some steps of a stage and print what it takes, or say why that cannot be told."""
    from ...engine.estimate import WARM_UP, measure

    def estimate(config: StyleConfig, what: str, steps: int = 0, warm_up: int = WARM_UP) -> None:
        totals = [steps]

        def stage(out: Path, done: Callable[[int], None]) -> None:
            def show(step: int, total: int, note: str) -> None:
                totals.append(total)
                done(step)

            STAGES[arguments.action](arguments, config, out, show, Limits(say=say))

        with _memory():
            measured = measure(stage, warm_up)
        for line in measured.lines(steps or totals[-1], what):
            print(f"# {line}")

    say("Measuring some steps ...")
    try:
        if arguments.action != "base":
            estimate(config, arguments.action)
            return
        first, second = config.base.autoencoder, config.base.denoiser
        estimate(config, "autoencoder", first.steps)
        short = replace(config, base=replace(config.base, autoencoder=replace(first, steps=1)))
        estimate(short, "denoiser", second.steps, WARM_UP + 1)
    except SRCSMError as error:
        say(f"The time cannot be told: {error}")


def _quiet() -> None:
    """The libraries' own bars and hints would stand between our lines."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _memory() -> Iterator[None]:
    """Say what to do where the device's memory is too small."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "The device's memory is too small; lower batch (and raise accumulation), keep "
            "gradient_checkpointing on, choose precision fp16 or bf16, or tune with tune.lora=16."
        ) from error
