# SPDX-License-Identifier: Apache-2.0
"""The Style Swap ablation: which U-Net a ControlNet learns on, and which one draws.

    python -m srcsm_training.experiments.swap_ablation --domain phantom
        run what is missing, stage by stage
    python -m srcsm_training.experiments.swap_ablation --domain real --data ../shared/data
    python -m srcsm_training.experiments.swap_ablation --report           print the table
    python -m srcsm_training.experiments.swap_ablation --report --write   into BENCHMARKS.md

The ControlNet is trained on the base's own U-Net or on the tuned one, and then steers either. This
gives four sets of pictures with the same prompts and seeds, from one base, each measured by `srcsm
style check`. One of the four, tuned and then original, is the method: style_ablation.py trains on
its pictures, which show all slices; the other sets show every fifth slice. One base serves both
domains; it learns from phantom patients of its own in four modalities, and from the real CT if it
is there. A domain is skipped if its numbers are already in ``training/experiments/results``;
--force runs the stages that RUNS lacks, and writes the numbers again. Folders, all in RUNS:

    data/                   the phantom's datasets
    base-slices/, base/     what the base learns from, and the base
    DOMAIN/slices/          the source's slices; styled/abdomen/ in it is the method's set
    DOMAIN/tuned/, DOMAIN/control/, DOMAIN/control-untuned/
    DOMAIN/swaps/           the other three sets
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from srcsm_training.experiments import reports
from srcsm_training.experiments.reports import (
    CT,
    DATA,
    REPOSITORY,
    read_results,
    results_file,
    say_how_to_repeat,
    show_report,
    write_results,
)
from srcsm_training.experiments.style_ablation import DATASETS, PHANTOMS, write_phantoms
from srcsm_training.style.slices import MANIFEST, read_manifest

CONFIG = REPOSITORY / "training" / "configs" / "style_tiny.yaml"

METHOD = "tuned-original"

VARIANTS = {
    METHOD: ("tuned", "original"),
    "tuned-tuned": ("tuned", "tuned"),
    "untuned-original": ("untuned", "original"),
    "untuned-tuned": ("untuned", "tuned"),
}
"""U-Net that the ControlNet learnt on, and U-Net that draws. The method's set is made first, so
that trainings on it can begin before the other sets are there."""

CHECK = "check.json"

EVERY = 5
"""Sets that nothing is trained on show every n-th slice."""


@dataclass(frozen=True)
class Stage:
    """One call of `srcsm style`.

    Attributes:
        arguments: arguments after "srcsm style".
        result: file that exists once the stage is finished; a manifest must also say so.
    """

    arguments: tuple[str, ...]
    result: Path

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        if not self.result.exists():
            return False
        return self.result.name != MANIFEST or read_manifest(self.result.parent).complete


def stages(
    domain: str, data: Path, runs: Path, config: Path = CONFIG, device: str = "cpu"
) -> Iterator[Stage]:
    """Yield all stages of a domain, in order."""

    def stage(action: str, *arguments: object, out: Path, result: str, on: bool = True) -> Stage:
        given = ("--config", config, "--out", out, *(("--device", device) if on else ()))
        return Stage((action, *map(str, (*arguments, *given))), out / result)

    def prepared(dataset: Path, out: Path) -> Stage:
        return stage("prepare", "--data", dataset, out=out, result=MANIFEST, on=False)

    folder, base, base_slices = runs / domain, runs / "base", runs / "base-slices"
    taught = [base_slices]
    if (data / CT).is_dir():
        taught.append(runs / "real" / "slices")
        yield prepared(data / CT, taught[-1])
    if domain == "phantom":
        yield prepared(runs / "data" / DATASETS[domain][0], folder / "slices")
    yield stage("phantom", out=base_slices, result=MANIFEST, on=False)
    yield stage("base", "--slices", *taught, out=base, result="model_index.json")
    given = ("--slices", folder / "slices", "--base", base)
    tuned = ("--tuned", folder / "tuned")
    yield stage("tune", *given, out=folder / "tuned", result="model.json")
    for variant, (taught_on, drawn_with) in VARIANTS.items():
        out, learnt = swapped(folder, variant), taught_on == "tuned"
        control = folder / ("control" if learnt else "control-untuned")
        yield stage("control", *given, *(tuned if learnt else ()), out=control, result="model.json")
        steered = ("--control", control, *(tuned if drawn_with == "tuned" else ()))
        some = () if variant == METHOD else ("--set", f"swap.every={EVERY}")
        yield stage("swap", *given, *steered, *some, out=out, result=MANIFEST)
        yield stage("check", "--slices", out, out=out, result=CHECK)


def swapped(folder: Path, variant: str) -> Path:
    """Return the folder of a variant's pictures, in the domain's `folder`."""
    return folder / ("slices/styled/abdomen" if variant == METHOD else f"swaps/{variant}")


def launch(arguments: Sequence[str]) -> int:
    """Run `srcsm style` in a process of its own, which alone handles Ctrl-C and stops cleanly."""
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        command = [sys.executable, "-m", "srcsm_training", "style", *arguments]
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, previous)


def collect(folder: Path) -> pd.DataFrame:
    """Collect the numbers of `style check` of a domain's sets, a row per set and style."""
    rows = []
    for variant in VARIANTS:
        checked = swapped(folder, variant) / CHECK
        if not checked.exists():
            continue
        report = json.loads(checked.read_text("utf-8"))
        for style, numbers in report["styles"].items():
            others = [d for d in numbers["between_styles"].values() if d is not None]
            rows.append(
                {
                    "variant": variant,
                    "style": style,
                    "slices": numbers["slices"],
                    "kept": numbers["kept"],
                    "moved": numbers["moved"],
                    "moved_over_all": numbers["moved_over_all"],
                    "nearest_style": min(others, default=None),
                    "edges": numbers["edges"],
                    "source_edges": numbers["source_edges"],
                    "within_source": report["within_source"],
                }
            )
    return pd.DataFrame(rows)


def report(results: Path) -> str:
    """Format the table; sets without numbers are dashes.

    Args:
        results: folder of the numbers.
    """
    lines = [
        "| domain | ControlNet learnt on | drawn with | style | moved | over all | nearest other "
        "style | edges | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for domain in DATASETS:
        table = read_results(f"swap_{domain}", results)
        for variant, (taught_on, drawn_with) in VARIANTS.items():
            title = f"| {domain} | {taught_on} | {drawn_with} |"
            rows = () if table is None else table[table["variant"] == variant]
            if not len(rows):
                lines.append(title + " – |" * 6)
                continue
            for row in rows.itertuples():
                numbers = (row.moved, row.moved_over_all, row.nearest_style, row.edges)
                cells = " | ".join("–" if pd.isna(n) else f"{n:.3f}" for n in numbers)
                lines.append(f"{title} {row.style} | {cells} | {row.kept / row.slices:.0%} |")
        if table is not None:
            first = table.iloc[0]
            lines.append(
                f"| {domain} | *source* | | | {first.within_source:.3f} | | | "
                f"{table['source_edges'].mean():.3f} | |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", choices=tuple(DATASETS), default="phantom")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real CT's dataset")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "style-ablation")
    parser.add_argument("--config", type=Path, default=CONFIG, help="configuration of all stages")
    parser.add_argument("--device", default="cpu", help="auto, cpu (default), cuda, cuda:N or mps")
    reports.add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.report:
        show_report("swap-ablation", report(arguments.results), arguments)
        return 0
    name = f"swap_{arguments.domain}"
    known = read_results(name, arguments.results)
    if known is not None and set(known["variant"]) == set(VARIANTS) and not arguments.force:
        say_how_to_repeat(name, results_file(name, arguments.results))
        return 0
    runs = arguments.runs.resolve()
    phantom = runs / "data" / next(iter(PHANTOMS)) / "dataset.json"
    if arguments.domain == "phantom" and not phantom.exists():
        write_phantoms(runs / "data")
    given = (arguments.domain, arguments.data, runs, arguments.config, arguments.device)
    for stage in stages(*given):
        if not stage.finished:
            print(f"srcsm style {' '.join(stage.arguments)}", flush=True)
            if code := launch(stage.arguments):
                return code
        if stage.result.name == CHECK:
            write_results(name, collect(runs / arguments.domain), arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
