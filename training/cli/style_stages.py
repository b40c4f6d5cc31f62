# SPDX-License-Identifier: Apache-2.0
"""The style stages as functions of their options."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .runs import silence_libraries

if TYPE_CHECKING:
    from ..engine.limits import Limits
    from ..engine.progress import Progress
    from ..style.config import StyleConfig
    from ..style.slices import StageResult


@dataclass(frozen=True)
class Call:
    """One call of a stage.

    Attributes:
        arguments: options of the command line.
        out: folder for the stage's results.
        show: called as show(done, total, note).
    """

    arguments: argparse.Namespace
    config: "StyleConfig"
    out: Path
    show: Callable[[int, int, str], None]
    limits: "Limits"

    def reporting(self, steps: int) -> "Limits":
        """Return the limits of a training of `steps` steps, which shows its progress."""

        def report(state: "Progress") -> None:
            self.show(state.step, steps, f"loss {state.loss:.4f}")

        return replace(self.limits, report=report)


def prepare(call: Call) -> "StageResult":
    """Slice a dataset."""
    from ..style.prepare import prepare

    return prepare(
        call.arguments.data, call.out, call.config, progress=call.show, limits=call.limits
    )


def phantom(call: Call) -> "StageResult":
    """Make slices of phantoms."""
    from ..style.phantom_slices import write_phantom_slices

    return write_phantom_slices(call.out, call.config, progress=call.show, limits=call.limits)


def base(call: Call) -> "StageResult":
    """Train a small base."""
    from ..style.small import train_base

    silence_libraries()
    slices = call.arguments.slices
    if not slices:
        slices = [call.out / "phantom"]
        made = phantom(replace(call, out=slices[0]))
        if not made.finished:
            return made
    recipe = call.config.base
    total = recipe.autoencoder.steps + recipe.denoiser.steps
    return train_base(
        slices,
        call.out,
        call.config,
        device=call.arguments.device,
        limits=call.reporting(total),
    )


def tune(call: Call) -> "StageResult":
    """Tune a base's U-Net."""
    from ..style.tune import tune

    silence_libraries()
    return tune(
        call.arguments.slices,
        call.arguments.base,
        call.out,
        call.config,
        device=call.arguments.device,
        download=call.arguments.download,
        limits=call.reporting(call.config.tune.steps),
    )


def control(call: Call) -> "StageResult":
    """Train a ControlNet."""
    from ..style.control import train_control

    silence_libraries()
    return train_control(
        call.arguments.slices,
        call.arguments.base,
        call.out,
        call.config,
        tuned=call.arguments.tuned,
        device=call.arguments.device,
        download=call.arguments.download,
        limits=call.reporting(call.config.control.steps),
    )


def swap(call: Call) -> "StageResult":
    """Draw slices in other styles."""
    from ..style.swap import SwapModels, swap

    silence_libraries()
    given = call.arguments
    return swap(
        given.slices,
        SwapModels(given.base, given.control, given.tuned, given.download),
        call.out,
        call.config,
        device=given.device,
        progress=lambda done, total: call.show(done, total, "pictures"),
        limits=call.limits,
    )


def check(call: Call) -> "StageResult":
    """Check restyled slices."""
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    from ..style.check import check

    model = call.arguments.model
    return check(
        call.arguments.slices,
        call.config,
        out=call.out,
        network=load_bundle(find_model(model)) if model else None,
        device=call.arguments.device,
        progress=call.show,
        limits=call.limits,
    )


STAGES: dict[str, Callable[[Call], "StageResult"]] = {
    "prepare": prepare,
    "phantom": phantom,
    "base": base,
    "tune": tune,
    "control": control,
    "swap": swap,
    "check": check,
}
