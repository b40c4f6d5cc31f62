# SPDX-License-Identifier: Apache-2.0
"""Time of source matching, random convolution and a training step, compared with plain versions."""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional as F

from srcsm_training.augment.random_convolution import random_convolution
from srcsm_training.augment.random_networks import draw
from srcsm_training.benchmarks.timing import (
    ORGANS,
    Row,
    Table,
    compared,
    comparison,
    elapsed,
    median_elapsed,
    times,
)
from srcsm_training.data.cases import prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.data.phantom import write_dataset
from srcsm_training.engine.config import with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.progress import Progress
from srcsm_training.engine.run_folder import case_identity, open_run
from srcsm_training.experiments.reports import REPOSITORY
from srcsm_training.segmentation.config import TrainingConfig
from srcsm_training.segmentation.presets import preset
from srcsm_training.segmentation.run import make_accelerator
from srcsm_training.segmentation.training import train
from SRCSMSegmenterLib import source_matching
from SRCSMSegmenterLib.intensity import IntensityRule

SOFT_TISSUE = IntensityRule("CT", window=(-125, 275))
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


# Source matching


def source_matching_table(size: int = 160, large: tuple[int, int, int] = (200, 512, 512)) -> Table:
    """Compare source matching with its literal definition, from MR to CT of `size` cubed voxels.

    The images are noise, so that no cache helps the lookups.

    Args:
        large: shape (K, J, I) of a larger image, on which only ours is measured.
    """
    literal = literal_source_matching()
    rng = np.random.default_rng(0)
    rule, shape = IntensityRule("MR"), (size,) * 3
    raw = rng.gamma(2, 150, shape).astype(np.int16)
    target = source_matching.to_integers(raw, rule)
    images = [np.rint(rng.normal(40, 120, shape)).clip(*SOFT_TISSUE.window).astype(np.int32)]
    source = source_matching.fit(images)
    counts = dict(zip(source.values.tolist(), source.counts.tolist(), strict=True))

    def row(part: str, slow: Callable[[], object], fast: Callable[[], object]) -> Row:
        return comparison(f"{part}, {times(shape)}", elapsed(slow), median_elapsed(fast))

    fit = row("fit", lambda: literal.fit(images), lambda: source_matching.fit(images))
    integers = row(
        "to_integers",
        lambda: literal.to_integers(raw, rule),
        lambda: source_matching.to_integers(raw, rule),
    )
    match = row(
        "match",
        lambda: literal.match(target, source.minimum, counts),
        lambda: source_matching.match(target, source),
    )
    both = comparison(
        f"match_to_source = to_integers + match, {times(shape)}",
        integers.values[0] + match.values[0],
        median_elapsed(lambda: source_matching.match_to_source(raw, rule, source)),
    )
    big = np.resize(raw, large)
    seconds = median_elapsed(lambda: source_matching.match_to_source(big, rule, source))
    absolute = comparison(f"match_to_source, {times(large)}", None, seconds)
    columns = compared("literal definition", "ours")
    return Table("Source matching, one core", columns, (both, integers, match, fit, absolute))


def literal_source_matching() -> ModuleType:
    """Import the literal definition from the tests."""
    path = REPOSITORY / "Testing" / "helpers" / "literal_source_matching.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Semantic-aware random convolution


def random_convolution_table(
    device: torch.device,
    shape: tuple[int, int, int] = (160, 128, 160),
    classes: int = 5,
    draws: int = 3,
) -> Table:
    """Compare one call with `looped_random_convolution`, by medians over draws.

    Args:
        shape: (K, J, I) of the image.
    """
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(shape[1], device=device) * classes // shape[1]
    labels = labels[:, None].expand(1, *shape).contiguous()

    def seconds(convolve: Callable, precision: torch.dtype, seed: int) -> float:
        def call() -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            with torch.autocast(device.type, precision, precision != torch.float32):
                return convolve(image, labels, generator=generator)

        return elapsed(call, device)

    ours = partial(random_convolution, mode="smoothed")
    rows = []
    for name, precision in PRECISIONS.items():
        both = [
            [seconds(f, precision, seed) for f in (looped_random_convolution, ours)]
            for seed in range(draws + 1)
        ]
        # The first draw warms up.
        medians = map(statistics.median, zip(*both[1:], strict=True))
        rows.append(comparison(f"one call, {name}", *medians))
    title = f"SRC, smoothed: {classes} labels, {times(shape)}, {device}"
    return Table(title, compared("separate networks in loops", "ours"), tuple(rows))


@torch.no_grad()
def looped_random_convolution(
    image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Compute `random_convolution`, smoothed, as in the paper: one label after the other.

    The same networks are drawn, and kernels of width 1 are computed as such.

    Args:
        image: (1, 1, K, J, I).
        labels: (1, K, J, I), with every label from 0 to n - 1.
    """
    classes = int(labels.max()) + 1
    networks = draw(classes, 3, generator, "cpu")
    masks = smoothed_by_convolution(F.one_hot(labels, classes).movedim(-1, 1).float())
    result = torch.zeros_like(image)
    for label in range(classes):
        response = image
        for weights in networks.weights:
            kernel = narrowest(weights[label]).to(image.device)
            response = F.leaky_relu(F.conv3d(response, kernel, padding="same"), networks.slope)
        share = networks.blend[label].to(image.device)
        blended = share * response.float() + (1 - share) * image
        result += blended * (image.norm() / blended.norm()) * masks[:, label]
    return result


def narrowest(kernel: torch.Tensor) -> torch.Tensor:
    """Return a kernel (out, in, 3, 3, 3), or its middle (out, in, 1, 1, 1) if the rest is 0."""
    middle = kernel[..., 1:2, 1:2, 1:2]
    return middle if kernel.count_nonzero() == middle.count_nonzero() else kernel


def smoothed_by_convolution(masks: torch.Tensor) -> torch.Tensor:
    """Smooth masks (1, C, K, J, I) by a depthwise convolution: 5 taps per axis, sigma 1."""
    channels = masks.shape[1]
    taps = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=masks.device) ** 2)
    taps = taps / taps.sum()
    kernel = torch.einsum("k,j,i->kji", taps, taps, taps).expand(channels, 1, 5, 5, 5)
    return F.conv3d(F.pad(masks, (2,) * 6, mode="replicate"), kernel, groups=channels)


# Training step


def training_step_table(
    title: str,
    config: TrainingConfig,
    dataset: Path,
    rule: IntensityRule,
    device: torch.device,
    warm_up: int = 3,
) -> Table:
    """Compare training steps with SRC and without, by medians after `warm_up` steps.

    On a CPU they are seconds of processor time, of which other programs take none.
    """
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    computing = make_accelerator(str(device), config)

    with tempfile.TemporaryDirectory() as folder:
        cases = [
            replace(case, image=case.image.to(device), labels=case.labels.to(device))
            for case in prepare_cases(
                read_dataset(dataset).cases,
                rule,
                config.data.smoothing,
                config.grid,
                Path(folder) / "cache",
            )
        ]

        def seconds(mode: str) -> float:
            ends = []

            def report(progress: Progress) -> None:
                ends.append(clock())

            chosen = replace(config, random_convolution=mode)
            identity = case_identity(chosen, [case.name for case in cases], [])
            run = open_run(
                Path(folder) / mode, chosen, computing, identity=identity, tell=lambda line: None
            )
            train(run, rule, cases, [], limits=Limits(report=report))
            return statistics.median(np.diff(ends[warm_up:]))

        with_src, without = seconds("smoothed"), seconds("off")
    share = 1 - without / with_src
    title = f"Training step, {title}, {computing.precision}, {device}"
    title += f", processor time, threads: {torch.get_num_threads()}" if on_cpu else ""
    columns, row = compared("with SRC", "without"), comparison("step", with_src, without)
    return Table(f"{title}; SRC takes {share:.0%} of it", columns, (row,))


def phantom_step_table(folder: Path, device: torch.device) -> Table:
    """Measure steps at full size: of the paper's preset on a GPU, of the fast one on a CPU."""
    name, steps = ("abdomen-paper", 40) if device.type == "cuda" else ("abdomen-fast", 14)
    overrides = [f"network.classes={len(ORGANS) + 1}", f"optimisation.steps={steps}"]
    config = with_overrides(preset(name), [*overrides, "validate_every=0"])
    write_dataset(folder / "ct", "CT", 1, seed=0)
    return training_step_table(name, config, folder / "ct", IntensityRule("CT"), device)
