# SPDX-License-Identifier: Apache-2.0
"""Published settings, each domain the only source once, with seeds, tests and a table.

    python -m srcsm_training.experiments.published --setting prostate-six-sites --data ROOT
        train what is missing, plain and with SRC, and print the table
    python -m srcsm_training.experiments.published --setting cine --data ROOT --preset cine-fast
        the same with a recipe for two CPU cores
    python -m srcsm_training.experiments.published --setting abdomen --data ROOT --cut-to-labels
        targets cut to the slices with labels, the protocol of most published numbers
    python -m srcsm_training.experiments.published --setting cine --report    print the table

`srcsm train --list-presets` lists the settings and their data, `srcsm prepare-data` makes the
datasets from the published downloads. A stopped training resumes from its checkpoint; a run is
skipped if its scores are already there. The tables of SAM are those of
--setting prostate-six-sites-sam (published_sam.py).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from srcsm_training.evaluation.report import cross_domain_table
from srcsm_training.evaluation.scores import read_scores
from srcsm_training.evaluation.significance import compare_methods
from srcsm_training.evaluation.tables import markdown_table
from srcsm_training.segmentation.published import SETTINGS, Setting

from . import published_sam, reports, trainings
from .reports import REPOSITORY, results_file
from .trainings import Run, run_missing

MODES = {"off": "plain", "smoothed": "SRC"}
"""Modes of random convolution and their titles; the first is what the other is compared with."""


def runs_of(name: str, setting: Setting, seeds: Sequence[int], cut: bool = False) -> list[Run]:
    """List the trainings of a setting: every source, mode and seed."""
    return [
        Run(
            f"published_{name}_{setting.preset}_{source}_{mode}_{seed}{'_cut' if cut else ''}",
            setting.preset,
            source,
            mode,
            setting.targets_of(source),
            seed=seed,
            # Without SRC, a network of pairs has no second view.
            settings=("pairs.use=false",) if mode == "off" else (),
            label_map=setting.label_map,
            cut_to_labels=cut,
        )
        for source in setting.sources
        for mode in MODES
        for seed in seeds
    ]


def report(
    name: str, setting: Setting, seeds: Sequence[int], results: Path, cut: bool = False
) -> str:
    """Format the table of a setting: a column per source, over the cases of all its targets.

    Sources and seeds without all scores are left out, and named.
    """
    runs = runs_of(name, setting, seeds, cut)
    absent = [run.name for run in runs if not results_file(run.name, results).exists()]
    whole = [
        (source, seed)
        for source in setting.sources
        for seed in seeds
        if not any(run.name in absent for run in runs if (run.source, run.seed) == (source, seed))
    ]
    methods = {
        title: [
            pd.concat([_scores(run, results) for run in of_seed])
            for seed in seeds
            if (
                of_seed := [
                    run for run in runs
                    if (run.mode, run.seed) == (mode, seed) and (run.source, seed) in whole
                ]
            )
        ]
        for mode, title in MODES.items()
    }  # fmt: skip
    lines = [f"No scores: {', '.join(absent)}", ""] if absent else []
    lines += [f"Scans: {'cut to the slices with labels' if cut else 'whole'}", ""]
    if not whole:
        return "\n".join(lines)
    for metric, title in (("dice", "Dice"), ("assd", "ASSD in mm")):
        table = cross_domain_table(methods, metric).reset_index()
        lines += [f"{title}, mean over labels and cases of all targets, by source", ""]
        lines += [markdown_table(table), ""]
    tests = compare_methods(methods).round(4)
    lines += ["Paired Wilcoxon test over cases, Dice", "", markdown_table(tests), ""]
    lines += [f"Published: {setting.numbers}"] if setting.numbers else []
    return "\n".join(lines)


def _scores(run: Run, results: Path) -> pd.DataFrame:
    """Read the scores of a run as those of one dataset, its source, with all targets' cases."""
    table = read_scores(results_file(run.name, results))
    return table.assign(dataset=run.source, case=table["dataset"] + "/" + table["case"])


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", required=True, choices=SETTINGS)
    parser.add_argument("--data", type=Path, default=reports.DATA, help="folder of the datasets")
    parser.add_argument("--preset", help="another recipe (default: the published one)")
    parser.add_argument("--domains", nargs="+", help="other datasets, each the source once")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "published")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of runs")
    parser.add_argument(
        "--cut-to-labels", action="store_true", help="cut targets to the slices with labels"
    )
    published_sam.add_options(parser)
    trainings.add_options(parser, None)
    reports.add_options(parser)
    arguments = parser.parse_args(argv)
    setting = SETTINGS[arguments.setting]
    if arguments.preset:
        setting = replace(setting, preset=arguments.preset)
    if arguments.domains:
        setting = replace(setting, sources=tuple(arguments.domains), targets=())
    if setting.sam:
        return published_sam.main(arguments, setting)
    code = 0
    if not arguments.report:
        given = ["--setting", arguments.setting, "--seeds", *map(str, arguments.seeds)]
        given += ["--preset", setting.preset]
        given += ["--domains", *arguments.domains] if arguments.domains else []
        given += ["--cut-to-labels"] if arguments.cut_to_labels else []
        runs = runs_of(arguments.setting, setting, arguments.seeds, arguments.cut_to_labels)
        chosen = [run for run in runs if not arguments.only or run.name in arguments.only]
        code = run_missing(chosen, arguments, arguments.data, __spec__.name, given)
    if not arguments.only:
        cut = arguments.cut_to_labels
        text = report(arguments.setting, setting, arguments.seeds, arguments.results, cut)
        reports.show_report(f"published-{arguments.setting}", text, arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
