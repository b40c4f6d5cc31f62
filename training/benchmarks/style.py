# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of every stage of a style intervention.

    python -m srcsm_training.benchmarks.style   measured here, with a small base of our own
    python -m srcsm_training.benchmarks.style --base FOLDER --config FILE.yaml --device cuda
    python -m srcsm_training.benchmarks.style --computed   Stable Diffusion 1.x on a GPU of 24 GB

Every stage runs some steps at the sizes of its configuration in a process of its own, on phantom
slices and one core or a GPU. Seconds on a core are seconds of its work; memory is the most that the
process held, or on a GPU its tensors. `style_computed` explains --computed.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from srcsm_training.benchmarks.timing import Row, Table, markdown
from srcsm_training.data.phantom import write_dataset
from srcsm_training.engine.config import read_yaml, with_overrides
from srcsm_training.engine.estimate import peak_memory
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.machine import machine
from srcsm_training.experiments.reports import REPOSITORY
from srcsm_training.segmentation.presets import preset
from srcsm_training.segmentation.run import run_training
from srcsm_training.style.check import check
from srcsm_training.style.config import StyleConfig
from srcsm_training.style.control import train_control
from srcsm_training.style.phantom_slices import write_phantom_slices
from srcsm_training.style.prepare import prepare
from srcsm_training.style.slices import read_manifest
from srcsm_training.style.small import train_base
from srcsm_training.style.swap import SwapModels, swap
from srcsm_training.style.tune import tune
from SRCSMSegmenterLib.devices import resolve_device

GiB = 2**30


@dataclass(frozen=True)
class Place:
    """Place where a stage is measured.

    Attributes:
        folder: results of the earlier stages.
        base: folder of the base model.
    """

    folder: Path
    base: str
    config: StyleConfig
    device: str

    def clock(self) -> float:
        """Return seconds; on a CPU, of one core's work, which other programs do not prolong."""
        return time.process_time() if self.device == "cpu" else time.perf_counter()


def measured(config: StyleConfig, base: str | None, device: str, folder: Path) -> Table:
    """Measure every stage, one after the other.

    Args:
        base: base model; None trains a small one.
        folder: for the stages' results.
    """
    steps, recipe = 8, config
    short = [f"{s}.steps={steps}" for s in ("tune", "control")]
    short += [f"base.{s}.steps={steps}" for s in ("autoencoder", "denoiser")]
    short += ["phantom.patients=4", "prepare.every=4", "swap.per_slice=0"]
    place = Place(folder, base or str(folder / "base"), with_overrides(config, short), device)
    rows = []

    def row(what: str, measure: Callable, times: int | None) -> None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, memory = pool.submit(_with_memory, measure, place).result()
        rows.append(Row(what, (seconds, times and seconds * times / 60, memory)))

    write_dataset(folder / "data", "CT", 1, seed=0)
    row("prepare, a slice", prepare_seconds, 1000)
    row("phantom, a picture", phantom_seconds, 1000)
    if not base:
        for name, part, measure in (
            ("autoencoder", recipe.base.autoencoder, autoencoder_seconds),
            ("denoiser", recipe.base.denoiser, denoiser_seconds),
        ):
            row(f"base, {name}, a step of {part.batch}", measure, part.steps)
    for name, part, measure in (
        ("tune", recipe.tune, tune_seconds),
        ("control", recipe.control, control_seconds),
    ):
        row(f"{name}, a step of {part.batch * part.accumulation}", measure, part.steps)
    row(f"swap, a picture, {recipe.swap.batch} together", swap_seconds, 1000)
    row("check, a picture", check_seconds, 1000)
    name = pairs_preset(device)
    recipe = preset(name).optimisation
    row(f"train on pairs, {name}, a step of 2 × {recipe.batch}", pairs_seconds, recipe.steps)
    columns = ("seconds", "minutes of the recipe, or for 1000 pictures", "memory, GiB")
    return Table(f"Style intervention, {config.size} pixels, {device}", columns, tuple(rows))


def prepare_seconds(place: Place) -> float:
    started = place.clock()
    prepare(place.folder / "data", place.folder / "slices", place.config, limits=SILENT)
    made = read_manifest(place.folder / "slices").slices
    return (place.clock() - started) / len(made)


def phantom_seconds(place: Place) -> float:
    started = place.clock()
    write_phantom_slices(place.folder / "phantom", place.config)
    made = read_manifest(place.folder / "phantom").slices
    return (place.clock() - started) / len(made)


def autoencoder_seconds(place: Place) -> float:
    steps = place.config.base.autoencoder.steps
    return _base_step(place, lambda p: p.step <= steps, lambda p: p.step == steps)


def denoiser_seconds(place: Place) -> float:
    steps = place.config.base.autoencoder.steps
    return _base_step(place, lambda p: p.step > steps, lambda p: False)


def _base_step(place: Place, counts: Callable, stops: Callable) -> float:
    marks, stopping = [], []

    def report(progress: object) -> None:
        if counts(progress):
            marks.append(place.clock())
        if stops(progress):
            stopping.append(True)

    train_base(
        [place.folder / "phantom"],
        Path(place.base),
        place.config,
        device=place.device,
        limits=Limits(stop_requested=lambda: bool(stopping), say=_silent, report=report),
    )
    return _step(marks)


def tune_seconds(place: Place) -> float:
    marks = []
    tune(
        place.folder / "slices",
        place.base,
        place.folder / "tuned",
        place.config,
        device=place.device,
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def control_seconds(place: Place) -> float:
    marks = []
    train_control(
        place.folder / "slices",
        place.base,
        place.folder / "control",
        place.config,
        tuned=place.folder / "tuned",
        device=place.device,
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def swap_seconds(place: Place) -> float:
    marks = []
    swap(
        place.folder / "slices",
        SwapModels(place.base, place.folder / "control"),
        place.folder / "styled",
        place.config,
        device=place.device,
        progress=lambda done, total: marks.append((place.clock(), done)),
        limits=SILENT,
    )
    (start, before), (end, after) = marks[0], marks[-1]
    return (end - start) / (after - before)


def check_seconds(place: Place) -> float:
    started = place.clock()
    check(place.folder / "styled", place.config, limits=SILENT)
    made = read_manifest(place.folder / "styled").slices
    return (place.clock() - started) / len(made)


def pairs_seconds(place: Place) -> float:
    """Measure training on pairs with SRC views, which cost more than ready restyled slices."""
    marks = []
    overrides = ["optimisation.steps=8", "data.folds=0", "validate_every=0"]
    run_training(
        place.folder / "data",
        with_overrides(preset(pairs_preset(place.device)), overrides),
        place.folder / "pairs",
        device=place.device,
        cache=place.folder / "cache",
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def pairs_preset(device: str) -> str:
    """Return the preset to measure: on a GPU the published one."""
    return "icm" if device.startswith("cuda") else "icm-fast"


def _step(marks: Sequence[float]) -> float:
    """Return the median seconds between marks without the first ones, which warm up."""
    return statistics.median(np.diff(marks[2:]))


def _with_memory(measure: Callable[[Place], float], place: Place) -> tuple[float, float]:
    """Measure seconds, and the most memory in GiB."""
    if place.device == "cpu":
        torch.set_num_threads(1)
    seconds = measure(place)
    if place.device.startswith("cuda"):
        return seconds, torch.cuda.max_memory_allocated() / GiB
    return seconds, peak_memory() / GiB


def _silent(line: str) -> None:
    """Ignore a line for the user."""


SILENT = Limits(say=_silent)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or compute, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    small = REPOSITORY / "training" / "configs" / "style_tiny.yaml"
    parser.add_argument("--config", type=Path, default=small, help="configuration of the stages")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--base", help="folder of a base model (default: a small one of our own)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--computed", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.computed:
        from srcsm_training.benchmarks.style_computed import computed

        print(markdown(computed()))
        return 0
    device = resolve_device(arguments.device)
    config = with_overrides(read_yaml(arguments.config, StyleConfig()), arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        table = measured(config, arguments.base, str(device), Path(folder))
    print(f"{machine(device)}\n\n{markdown(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
