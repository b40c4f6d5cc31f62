# SPDX-License-Identifier: Apache-2.0
"""How fast it is, as ratios measured in one run (`make bench`).

    python training/bench.py                   every section, as Markdown tables
    python training/bench.py --only sm src     some of them
    python training/bench.py --json            the same for a program

sm        source matching against the literal definition
src       one call of semantic-aware random convolution against networks and labels one by one
step      a training step with random convolution against one without
segment   `srcsm segment` from process start against the same in a warm process
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional as F

from srcsm_training.cases import prepare_cases
from srcsm_training.cli import main as srcsm
from srcsm_training.config import TrainingConfig, with_overrides
from srcsm_training.dataset import read_dataset
from srcsm_training.loop import Progress, train
from srcsm_training.phantom import write_dataset
from srcsm_training.presets import preset
from srcsm_training.random_convolution import SLOPE, draw, random_convolution
from srcsm_training.run import make_accelerator
from SRCSMSegmenterLib import source_matching
from SRCSMSegmenterLib.bundle import (
    Description,
    ModelBundle,
    is_bundle,
    save_bundle,
    shipped_models_folder,
)
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.source_matching import SourceHistogram
from SRCSMSegmenterLib.terminology import segment_for

REPOSITORY = Path(__file__).resolve().parents[1]
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
SOFT_TISSUE = IntensityRule("CT", window=(-125, 275))
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """Seconds that the same work takes in two ways; None where one of them has no such part."""

    what: str
    first: float | None
    second: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as long the first takes."""
        return self.first / self.second if self.first and self.second else None


@dataclass(frozen=True)
class Table:
    """One section; `columns` names the two ways."""

    title: str
    columns: tuple[str, str]
    rows: tuple[Row, ...]


# Source matching


def source_matching_table(size: int = 160, large: tuple[int, int, int] = (200, 512, 512)) -> Table:
    """CT source and MR target of `size` cubed against the definition; `large` (K, J, I) alone.

    The images are noise: no cache helps the lookups.
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
        return Row(f"{part}, {times(shape)}", elapsed(slow), median_elapsed(fast))

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
    both = Row(
        f"match_to_source = to_integers + match, {times(shape)}",
        integers.first + match.first,
        median_elapsed(lambda: source_matching.match_to_source(raw, rule, source)),
    )
    big = np.resize(raw, large)
    seconds = median_elapsed(lambda: source_matching.match_to_source(big, rule, source))
    absolute = Row(f"match_to_source, {times(large)}", None, seconds)
    columns = ("literal definition", "ours")
    return Table("Source matching, one core", columns, (both, integers, match, fit, absolute))


def literal_source_matching() -> ModuleType:
    """The definition as it reads; it lives with the tests."""
    path = REPOSITORY / "Testing" / "literal_source_matching.py"
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
    """One call on one image (K, J, I) against `looped_random_convolution`; medians over draws."""
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(shape[1], device=device) * classes // shape[1]
    labels = labels[:, None].expand(1, *shape).contiguous()

    def seconds(convolve: Callable, precision: torch.dtype, seed: int) -> float:
        def call() -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            with torch.autocast(device.type, precision, precision != torch.float32):
                return convolve(image, labels, classes, generator=generator)

        return elapsed(call, device)

    ours = partial(random_convolution, mode="smoothed")
    rows = []
    for name, precision in PRECISIONS.items():
        both = [
            [seconds(f, precision, seed) for f in (looped_random_convolution, ours)]
            for seed in range(draws + 1)
        ]
        # The first draw warms up.
        rows.append(Row(f"one call, {name}", *map(statistics.median, zip(*both[1:], strict=True))))
    title = f"SRC, smoothed: {classes} labels, {times(shape)}, {device}"
    return Table(title, ("separate networks in loops", "ours"), tuple(rows))


@torch.no_grad()
def looped_random_convolution(
    image: torch.Tensor, labels: torch.Tensor, classes: int, generator: torch.Generator
) -> torch.Tensor:
    """`random_convolution`, smoothed, as it reads in the paper: one label after the other.

    The same networks are drawn; a 1-wide kernel costs here what a 1-wide kernel costs.

    Args:
        image: (1, 1, K, J, I).
        labels: (1, K, J, I), all of 0 ... classes - 1 in it.
    """
    networks = draw(classes, 3, generator, "cpu")
    masks = smoothed_by_convolution(F.one_hot(labels, classes).movedim(-1, 1).float())
    result = torch.zeros_like(image)
    for label in range(classes):
        look = image
        for weights in networks.weights:
            kernel = narrowest(weights[label]).to(image.device)
            look = F.leaky_relu(F.conv3d(look, kernel, padding="same"), SLOPE)
        share = networks.blend[label].to(image.device)
        blended = share * look.float() + (1 - share) * image
        result += blended * (image.norm() / blended.norm()) * masks[:, label]
    return result


def narrowest(kernel: torch.Tensor) -> torch.Tensor:
    """A kernel (out, in, 3, 3, 3), or its middle (out, in, 1, 1, 1) where the rest is 0."""
    middle = kernel[..., 1:2, 1:2, 1:2]
    return middle if kernel.count_nonzero() == middle.count_nonzero() else kernel


def smoothed_by_convolution(masks: torch.Tensor) -> torch.Tensor:
    """(1, C, K, J, I) smoothed by a depthwise convolution: 5 taps an axis, sigma 1, replicated."""
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
    """Steps of the training loop with SRC and without; medians, the first `warm_up` left out."""
    accelerator = make_accelerator(str(device), config)

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
                ends.append(time.perf_counter())

            chosen = replace(config, random_convolution=mode)
            run = Path(folder) / mode
            train(chosen, rule, cases, [], run, accelerator=accelerator, report=report)
            return statistics.median(np.diff(ends[warm_up:]))

        row = Row("step", seconds("smoothed"), seconds("off"))
    share = 1 - row.second / row.first
    title = f"Training step, {title}, {config.optimisation.precision}, {device}"
    return Table(f"{title}; SRC takes {share:.0%} of it", ("with SRC", "without"), (row,))


# Segmentation


def segmentation_table(scan: Path, model: Path, device: torch.device) -> Table:
    """`srcsm segment` as its own process, and once more where it has run before."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "labels.seg.nrrd")
        arguments = ["segment", str(scan), "-o", output, "--model", str(model)]
        arguments += ["--device", str(device), "--json"]

        started = time.perf_counter()
        command = [
            sys.executable,
            "-c",
            "import srcsm_training.cli as c; raise SystemExit(c.main())",
        ]
        process = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)
        first = parts(process.stdout, time.perf_counter() - started)

        for _ in range(2):
            printed = io.StringIO()
            started = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                if code := srcsm(arguments):
                    raise RuntimeError(f"srcsm segment ended with {code}.")
            warm = parts(printed.getvalue(), time.perf_counter() - started)
    rows = tuple(Row(part, first[part], warm[part]) for part in first)
    title = f"srcsm segment, {scan.parents[1].name}/{scan.name}, model {model.name}, {device}"
    return Table(title, ("from process start", "warm"), rows)


def parts(printed: str | bytes, whole: float) -> dict[str, float]:
    """Where the time of a segmentation went, from what it printed as JSON."""
    (scan,) = json.loads(printed)["scans"]
    stages = scan["seconds"]
    return {"all": whole, "start, imports, model": whole - sum(stages.values()), **stages}


def a_scan(data: Path, folder: Path) -> Path:
    """A real MR of `data`, or a phantom's where there is none."""
    real = sorted((data / "Dataset102_AbdomenMR" / "imagesTr").glob("*.nii.gz"))
    if real:
        return real[0]
    write_dataset(folder, "MR", 1, seed=0)
    return next((folder / "imagesTr").iterdir())


def a_model(folder: Path) -> Path:
    """The shipped network, or one of its size with random weights."""
    shipped = shipped_models_folder() / "abdomen-ct"
    if is_bundle(shipped):
        return shipped
    config = with_overrides(preset("abdomen-fast"), [f"network.classes={len(ORGANS) + 1}"])
    description = Description(
        name=folder.name,
        task="Nothing: its weights are random",
        labels=tuple(segment_for(organ, n) for n, organ in enumerate(ORGANS, start=1)),
        rule=SOFT_TISSUE,
        grid=config.grid,
        smoothing=config.data.smoothing,
        expects="CT",
        licence="Apache-2.0",
    )
    lower, upper = map(int, SOFT_TISSUE.window)
    values = np.arange(lower + 1, upper)
    histogram = SourceHistogram(values, np.ones_like(values), lower)
    weights = UNet(config.network).state_dict()
    save_bundle(folder, ModelBundle(description, config.network, histogram, weights), "# Random\n")
    return folder


# What the sections share


def elapsed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of one call, the GPU's part included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def median_elapsed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of some calls after one to warm up."""
    return statistics.median([elapsed(work) for _ in range(repeats + 1)][1:])


def synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def times(shape: Sequence[int]) -> str:
    """A shape (K, J, I) as people write sizes, I first."""
    return " × ".join(map(str, reversed(shape)))


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"model name\s*: (.*)", cpuinfo.read_text("utf-8")) if cpuinfo.exists() else []
    )
    processor = names[0] if names else platform.processor()
    if device.type == "cuda":
        processor += f", {torch.cuda.get_device_name(device)}"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, device {device}"
    )


def markdown(table: Table) -> str:
    """A section for BENCHMARKS.md."""

    def cell(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds:.3g} s"

    lines = [f"**{table.title}**", ""]
    lines.append(f"| | {table.columns[0]} | {table.columns[1]} | ratio |")
    lines.append("| --- | --- | --- | --- |")
    for row in table.rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.3g}"
        lines.append(f"| {row.what} | {cell(row.first)} | {cell(row.second)} | {ratio} |")
    return "\n".join([*lines, ""])


def plain(table: Table) -> dict:
    """A section for JSON."""
    rows = [{**vars(row), "ratio": row.ratio} for row in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows}


def phantom_step_table(folder: Path, data: Path, device: torch.device) -> Table:
    """`training_step_table` at full size: the paper's preset on a GPU, the fast one on a CPU."""
    name, steps = ("abdomen-paper", 40) if device.type == "cuda" else ("abdomen-fast", 14)
    overrides = [f"network.classes={len(ORGANS) + 1}", f"optimisation.steps={steps}"]
    config = with_overrides(preset(name), [*overrides, "validate_every=0"])
    write_dataset(folder / "ct", "CT", 1, seed=0)
    return training_step_table(name, config, folder / "ct", IntensityRule("CT"), device)


def scan_table(folder: Path, data: Path, device: torch.device) -> Table:
    """`segmentation_table` of a real MR and the shipped network, as far as they are there."""
    scan, model = a_scan(data, folder / "phantom-mr"), a_model(folder / "random-weights")
    return segmentation_table(scan, model, device)


SECTIONS: dict[str, Callable[[Path, Path, torch.device], Table]] = {
    "sm": lambda folder, data, device: source_matching_table(),
    "src": lambda folder, data, device: random_convolution_table(device),
    "step": phantom_step_table,
    "segment": scan_table,
}
"""At full size, from a folder for temporary files, the development data, and a device."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    arguments = parser.parse_args(argv)
    device = resolve_device(arguments.device)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.json:
            print(f"{machine(device)}\n")
        for name in arguments.only:
            tables.append(SECTIONS[name](Path(folder), arguments.data, device))
            if not arguments.json:
                print(markdown(tables[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(device), "tables": [*map(plain, tables)]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
