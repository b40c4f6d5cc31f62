# SPDX-License-Identifier: Apache-2.0
"""What pairs, contrast, restyled slices and SRC contribute, behind BENCHMARKS.md.

    python -m srcsm_training.experiments.style_ablation --domain phantom   run what is missing
    python -m srcsm_training.experiments.style_ablation --domain real --data ../shared/data \\
        --only real_icm
    python -m srcsm_training.experiments.style_ablation --report           print the table
    python -m srcsm_training.experiments.style_ablation --report --write   into BENCHMARKS.md

The restyled slices of a domain, RUNS/DOMAIN/slices/styled/abdomen, and the phantom's datasets,
RUNS/data, are made first, by ``python -m srcsm_training.experiments.swap_ablation --domain
phantom``.

Every training sees as many pictures per step and has as many steps, whatever its number of views.
A stopped training resumes from its checkpoint. A run is skipped if its scores are already in
``training/experiments/results``; --force runs it again.
"""

import argparse
import sys
from pathlib import Path

from . import reports, trainings
from .reports import CT, DATA, MR, ORGANS, REPOSITORY, read_results, show_report
from .trainings import Run, run_missing, score_row

STEPS = 1000
PICTURES = 32
"""Pictures per step, of all views together."""

DATASETS = {"phantom": ("Dataset901_PhantomCT", "Dataset902_PhantomMR"), "real": (CT, MR)}
PHANTOMS = {"Dataset901_PhantomCT": ("CT", 16, 0), "Dataset902_PhantomMR": ("MR", 8, 1000)}
"""Modality, cases, and seed of the first case; the small base has other patients."""

METHODS = {
    "plain": ("plain", 1, "off", ()),
    "pairs": ("ICM pairs without contrast", 2, "off", ("pairs.contrast=0",)),
    "icm": ("ICM pairs with contrast", 2, "off", ()),
    "src": ("SRC", 1, "smoothed", ()),
    "src_regions": ("SRC + regions", 1, "smoothed", ("regions.share=0.75",)),
    "src_icm": ("SRC + ICM", 3, "smoothed", ()),
}
"""Title, views, random convolution and further settings."""


def runs_of(domain: str, runs: Path) -> list[Run]:
    """Return all trainings of a domain."""
    source, target = DATASETS[domain]
    styled = runs / domain / "slices" / "styled" / "abdomen"
    domain_runs = []
    for name, (_, views, mode, settings) in METHODS.items():
        batch = f"optimisation.batch={round(PICTURES / views)}"
        pairs = (
            ("pairs.use=true", f"pairs.styled=['{styled}']") if views > 1 else ("pairs.use=false",)
        )
        domain_runs.append(
            Run(
                f"{domain}_{name}",
                "icm-fast",
                source,
                mode,
                (target,),
                settings=(batch, *pairs, *settings),
            )
        )
    return domain_runs


def write_phantoms(data: Path) -> None:
    """Write the phantom's source and target."""
    from srcsm_training.data.phantom import write_dataset

    for name, (modality, cases, seed) in PHANTOMS.items():
        write_dataset(data / name, modality, cases, seed)


def report(results: Path) -> str:
    """Format the table; runs without scores are dashes.

    Args:
        results: folder of the scores.
    """
    lines = [
        "| CT→MR | SM | liver | right kidney | left kidney | spleen | mean Dice | ASSD mm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for domain in DATASETS:
        for name, (title, *_) in METHODS.items():
            scores = read_results(f"{domain}_{name}", results)
            lines += [
                score_row(f"{domain}: {title}", setting, scores, ORGANS)
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
        "--data", type=Path, help="folder of the datasets (default: RUNS/data for phantom)"
    )
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "style-ablation")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="such as phantom_icm")
    trainings.add_options(parser, STEPS)
    reports.add_options(parser)
    arguments = parser.parse_args()
    if arguments.report:
        show_report("style-ablation", report(arguments.results), arguments)
        return 0
    at_hand = arguments.runs / "data" if arguments.domain == "phantom" else DATA
    data = arguments.data or at_hand
    runs = runs_of(arguments.domain, arguments.runs.resolve())
    if unknown := set(arguments.only or ()) - {run.name for run in runs}:
        parser.error(f"no run {unknown}; there are {', '.join(run.name for run in runs)}")
    chosen = [run for run in runs if not arguments.only or run.name in arguments.only]
    options = ("--domain", arguments.domain)
    return run_missing(chosen, arguments, data, __spec__.name, options)


if __name__ == "__main__":
    sys.exit(main())
