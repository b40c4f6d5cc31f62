# SPDX-License-Identifier: Apache-2.0
"""The ablation of SRC and SM behind BENCHMARKS.md: the same small budget for every variant.

    python -m srcsm_training.experiments.ablation --data ../shared/data
        run what is missing, 2 at a time
    python -m srcsm_training.experiments.ablation --data ../shared/data --only ct_smoothed
    python -m srcsm_training.experiments.ablation --report           print the tables
    python -m srcsm_training.experiments.ablation --report --write
        write them into BENCHMARKS.md, without the rows that have no scores

A stopped training resumes from its checkpoint. A run is skipped if its scores are already in
``training/experiments/results``; --force runs it again.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from . import reports, trainings
from .reports import CT, DATA, MR, ORGANS, REPOSITORY, read_results, show_report
from .trainings import Run, run_missing, score_row

STEPS = 2800
BSSFP, LGE, ACDC = "Dataset201_HeartBSSFP", "Dataset202_HeartLGE", "Dataset203_HeartACDC"
BSSFP_CASES = ("bssfp_1[1-9]", "bssfp_20")
CT13 = "Dataset103_AbdomenCT13"
"""The scans of `CT` with thirteen organs, the first four of them `ORGANS`."""

MODES = {"off": "plain", "global": "global", "hard": "SRC hard", "smoothed": "SRC smoothed"}
"""Titles of the modes of random convolution."""

REGIONS = {
    "regions": ("regions.share=0.75", "regions.affine=0"),
    "affine": ("regions.share=0.75",),
}
"""Settings of the trainings with regions: random convolution in all of them, or, in three of four,
a signed affine of their voxels."""

LADDER = (
    ("regions", "regions", "all"),
    ("affine", "regions + affine", "all"),
    ("affine", "regions + affine, chosen by position", "one"),
    ("thirteen", "regions + affine + thirteen organs", "all"),
    ("thirteen", "regions + affine + thirteen organs, chosen by position", "one"),
)
"""Rows of a source: the end of the run's name, the title, and one of `PIECES`."""

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
        Run(f"bssfp_{mode}", "heart-fast", BSSFP, mode, (LGE, ACDC), BSSFP_CASES)
        for mode in ("off", "smoothed")
    ),
    *(
        Run(f"within_{name}_{n}", "abdomen-fast", dataset, "off", (dataset,), fold=f"{n}/2")
        for (name, dataset), n in itertools.product((("mr", MR), ("ct", CT)), (0, 1))
    ),
    *(
        Run(
            f"{name}_{step}",
            preset,
            dataset,
            "smoothed",
            (target,),
            cases,
            settings=settings,
            one_piece=step == "affine",
        )
        for name, preset, dataset, target, cases in (
            ("ct", "abdomen-fast", CT, MR, ("*",)),
            ("mr", "abdomen-fast", MR, CT, ("*",)),
            ("bssfp", "heart-fast", BSSFP, LGE, BSSFP_CASES),
        )
        for step, settings in REGIONS.items()
    ),
    Run(
        "ct_thirteen",
        "abdomen-fast",
        CT13,
        "smoothed",
        (MR,),
        settings=REGIONS["affine"],
        label_map="1:1,2:2,3:3,4:4",
        one_piece=True,
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
        lines += ladder_rows(scores, source, arrow, ORGANS)
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
    lines += ladder_rows(scores, "bssfp", "bSSFP 11–20", chambers, " | LGE 1–10")
    return "\n".join(lines)


def ladder_rows(
    scores: Mapping[str, pd.DataFrame | None],
    source: str,
    title: str,
    labels: Sequence[str],
    target: str = "",
) -> list[str]:
    """Format the rows of `LADDER` for one source; steps that it has no run of are left out.

    Args:
        scores: of all runs, by name.
        title: begins the first cell of each row.
        target: further cells before the setting of source matching.
    """
    return [
        score_row(f"{title} {step}{target}", setting, scores[f"{source}_{run}"], labels, pieces)
        for run, step, pieces in LADDER
        if f"{source}_{run}" in scores
        for setting in ("off", "on")
    ]


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
