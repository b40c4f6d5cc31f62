# SPDX-License-Identifier: Apache-2.0
"""What pairs, contrast, restyled slices and SRC bring, behind BENCHMARKS.md. Resumable.

    python -m srcsm_training.experiments.style_ablation --domain phantom   run what is missing
    python -m srcsm_training.experiments.style_ablation --domain real --data ../shared/data \\
        --only real_icm
    python -m srcsm_training.experiments.style_ablation --report   the table into BENCHMARKS.md

The restyled slices of a domain, RUNS/DOMAIN/slices/styled/abdomen, and the phantom's datasets,
RUNS/data, are made before, by ``python -m srcsm_training.experiments.swap_ablation --domain
phantom``.

Every training sees as many pictures a step and has as many steps, whatever its number of views.
Scores go to ``training/experiments/results``; a run whose scores lie there is not run again.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from srcsm_training.experiments.ablation import Run, execute, score_row
from srcsm_training.experiments.reports import (
    CT,
    DATA,
    MR,
    REPOSITORY,
    RESULTS,
    read_results,
    write_report,
)

STEPS = 1000
PICTURES = 32
"""Of a step, all views counted."""

DATASETS = {"phantom": ("Dataset901_PhantomCT", "Dataset902_PhantomMR"), "real": (CT, MR)}
PHANTOMS = {"Dataset901_PhantomCT": ("CT", 16, 0), "Dataset902_PhantomMR": ("MR", 8, 1000)}
"""Modality, cases, and seed of the first: other patients than those of the small base."""

METHODS = {
    "plain": ("plain", 1, "off", ()),
    "pairs": ("ICM pairs without contrast", 2, "off", ("pairs.contrast=0",)),
    "icm": ("ICM pairs with contrast", 2, "off", ()),
    "src": ("SRC", 1, "smoothed", ()),
    "src_icm": ("SRC + ICM", 3, "smoothed", ()),
}
"""Title, views, random convolution and further settings."""


def runs_of(domain: str, runs: Path) -> list[Run]:
    """All trainings of a domain."""
    source, target = DATASETS[domain]
    styled = runs / domain / "slices" / "styled" / "abdomen"
    found = []
    for name, (_, views, mode, settings) in METHODS.items():
        batch = f"optimisation.batch={round(PICTURES / views)}"
        pairs = (
            ("pairs.use=true", f"pairs.styled=['{styled}']") if views > 1 else ("pairs.use=false",)
        )
        found.append(
            Run(
                f"{domain}_{name}",
                "icm-fast",
                source,
                mode,
                (target,),
                settings=(batch, *pairs, *settings),
            )
        )
    return found


def write_phantoms(data: Path) -> None:
    """The phantom's source and target."""
    from srcsm_training.data.phantom import write_dataset

    for name, (modality, cases, seed) in PHANTOMS.items():
        write_dataset(data / name, modality, cases, seed)


def report() -> str:
    """The table from the scores at hand; runs not done are dashes."""
    organs = ("liver", "right_kidney", "left_kidney", "spleen")
    lines = [
        "| CT→MR | SM | liver | right kidney | left kidney | spleen | mean Dice | ASSD mm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for domain in DATASETS:
        for name, (title, *_) in METHODS.items():
            scores = read_results(f"{domain}_{name}")
            lines += [
                score_row(f"{domain}: {title}", setting, scores, organs)
                for setting in ("off", "on")
            ]
    return "\n".join(lines)


def main() -> int:
    """Run, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", choices=tuple(DATASETS), default="phantom")
    parser.add_argument(
        "--data", type=Path, help="of the datasets (default: RUNS/data for phantom)"
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "style-ablation")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="such as phantom_icm")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        write_report("style-ablation", report())
        return 0
    at_hand = arguments.runs / "data" if arguments.domain == "phantom" else DATA
    data = arguments.data or at_hand
    runs = runs_of(arguments.domain, arguments.runs.resolve())
    if unknown := set(arguments.only or ()) - {run.name for run in runs}:
        parser.error(f"no run {unknown}; there are {', '.join(run.name for run in runs)}")
    chosen = [run for run in runs if not arguments.only or run.name in arguments.only]
    missing = [run for run in chosen if not (RESULTS / f"{run.name}.csv").exists()]
    if len(missing) == 1:
        threads = 2 // arguments.jobs or 1
        execute(missing[0], data, arguments.runs, threads, arguments.steps)
        return 0

    def launch(run: Run) -> int:
        command = [sys.executable, "-m", __spec__.name]
        command += ["--domain", arguments.domain, "--only", run.name]
        command += ["--data", str(data), "--runs", str(arguments.runs)]
        command += ["--jobs", str(arguments.jobs), "--steps", str(arguments.steps)]
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return max(pool.map(launch, missing), default=0)


if __name__ == "__main__":
    sys.exit(main())
