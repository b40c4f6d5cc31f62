# SPDX-License-Identifier: Apache-2.0
"""The ablation of SRC and SM behind BENCHMARKS.md: the same small budget for every variant.

    python -m srcsm_training.experiments.ablation --data ../shared/data
        run what is missing, 2 at a time
    python -m srcsm_training.experiments.ablation --data ../shared/data --only ct_smoothed
    python -m srcsm_training.experiments.ablation --report           print the tables
    python -m srcsm_training.experiments.ablation --report --write   write them into BENCHMARKS.md

A stopped training resumes from its checkpoint. A run is skipped if its scores are already in
``training/experiments/results``; --force runs it again.
"""

import argparse
import itertools
import sys
from pathlib import Path

import pandas as pd

from . import reports, trainings
from .reports import CT, DATA, MR, ORGANS, REPOSITORY, read_results, show_report
from .trainings import Run, run_missing, score_row

STEPS = 2800
BSSFP, LGE, ACDC = "Dataset201_HeartBSSFP", "Dataset202_HeartLGE", "Dataset203_HeartACDC"
MODES = {"off": "plain", "global": "global", "hard": "SRC hard", "smoothed": "SRC smoothed"}
"""Titles of the modes of random convolution."""


RUNS = (
    *(Run(f"ct_{mode}", "abdomen-fast", CT, mode, (MR,)) for mode in MODES),
    *(Run(f"mr_{mode}", "abdomen-fast", MR, mode, (CT,)) for mode in MODES),
    Run(
        "ct_smoothed_fp32",
        "abdomen-fast",
        CT,
        "smoothed",
        (MR,),
        settings=("optimisation.precision=fp32",),
    ),
    *(
        Run(f"bssfp_{mode}", "heart-fast", BSSFP, mode, (LGE, ACDC), ("bssfp_1[1-9]", "bssfp_20"))
        for mode in ("off", "smoothed")
    ),
    *(
        Run(f"within_{name}_{n}", "abdomen-fast", dataset, "off", (dataset,), fold=f"{n}/2")
        for (name, dataset), n in itertools.product((("mr", MR), ("ct", CT)), (0, 1))
    ),
)


def report(results: Path) -> str:
    """Format the tables of BENCHMARKS.md; runs without scores are dashes.

    Args:
        results: folder of the scores.
    """
    scores = {run.name: read_results(run.name, results) for run in RUNS}
    lines = [
        "| training | SM | liver | right kidney | left kidney | spleen | mean Dice | ASSD mm |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for source, arrow in (("ct", "CT→MR"), ("mr", "MR→CT")):
        for mode, title in MODES.items():
            for setting in ("off", "on"):
                table = scores[f"{source}_{mode}"]
                lines.append(score_row(f"{arrow} {title}", setting, table, ORGANS))
    for setting in ("off", "on"):
        table = scores["ct_smoothed_fp32"]
        lines.append(score_row(f"CT→MR {MODES['smoothed']}, fp32", setting, table, ORGANS))
    for name, title in (("mr", "MR within"), ("ct", "CT within")):
        folds = [scores[f"within_{name}_{n}"] for n in (0, 1)]
        table = pd.concat(folds) if all(f is not None for f in folds) else None
        lines.append(score_row(f"{title} (2-fold), plain", "off", table, ORGANS))
    lines += [
        "",
        "| training | target | SM | myocardium | left ventricle | right ventricle "
        "| mean Dice | ASSD mm |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    chambers = ("myocardium", "left_ventricle", "right_ventricle")
    for mode in ("off", "smoothed"):
        for target, title in ((LGE, "LGE 1–10"), (ACDC, "ACDC")):
            for setting in ("off", "on"):
                table = scores[f"bssfp_{mode}"]
                part = None if table is None else table[table["dataset"] == target]
                row = score_row(f"bSSFP 11–20 {MODES[mode]} | {title}", setting, part, chambers)
                lines.append(row)
    return "\n".join(lines)


def main() -> int:
    """Run, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the datasets")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "ablation")
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS])
    trainings.add_options(parser, STEPS)
    reports.add_options(parser)
    arguments = parser.parse_args()
    if arguments.report:
        show_report("ablation", report(arguments.results), arguments)
        return 0
    chosen = [run for run in RUNS if not arguments.only or run.name in arguments.only]
    return run_missing(chosen, arguments, arguments.data, __spec__.name)


if __name__ == "__main__":
    sys.exit(main())
