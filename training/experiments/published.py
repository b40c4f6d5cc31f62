# SPDX-License-Identifier: Apache-2.0
"""Published settings, each domain the only source once, with seeds, tests and a table.

    python -m srcsm_training.experiments.published --setting prostate-six-sites --data ROOT
        train what is missing, plain and with SRC, and print the table
    python -m srcsm_training.experiments.published --setting cine --data ROOT --preset cine-fast
        the same with a recipe for two CPU cores
    python -m srcsm_training.experiments.published --setting cine --data ROOT --steps 5 --seeds 0
        five steps of each training, to see that everything is in place
    python -m srcsm_training.experiments.published --setting abdomen --data ROOT --cut-to-labels
        targets cut to the slices with labels, the protocol of most published numbers; the
        trainings are those of whole targets
    python -m srcsm_training.experiments.published --setting cine --report    print the table

`srcsm train --list-presets` lists the settings and their data, `srcsm prepare-data` makes the
datasets from the published downloads. A stopped training resumes from its checkpoint; a run is
skipped if its scores are already there. Trainings with other --steps or --set are runs of their own
with their own scores: give both to --report, too. The tables of SAM are those of
--setting prostate-six-sites-sam (published_sam.py).
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from srcsm_training.evaluation.report import cross_domain_table
from srcsm_training.evaluation.scores import read_scores
from srcsm_training.evaluation.significance import compare_methods
from srcsm_training.evaluation.tables import markdown_table
from srcsm_training.segmentation.published import SETTINGS, Setting

from . import published_sam, reports, trainings
from .reports import REPOSITORY, chosen_runs, in_sentences, results_file
from .trainings import Run, run_missing


@dataclass(frozen=True)
class Method:
    """A method that is compared.

    Attributes:
        mode: of random convolution.
        settings: further settings, key=value.
    """

    title: str
    mode: str
    settings: tuple[str, ...] = ()


METHODS = {
    # Without SRC, a network of pairs has no second view.
    "plain": Method("plain", "off", ("pairs.use=false",)),
    "src": Method("SRC", "smoothed"),
    "regions": Method("SRC + regions", "smoothed", ("regions.share=0.75",)),
}
"""The methods by name. The first of those that are run is what the others are compared with."""

STANDARD = ("plain", "src")


@dataclass(frozen=True)
class Series:
    """The runs of a setting: every source, method and seed.

    Attributes:
        name, setting: as in `SETTINGS`, or changed by options.
        methods: names among `METHODS`.
        changes: settings of all runs that differ from the preset's, key=value.
        cut: targets are cut to the slices with labels.
    """

    name: str
    setting: Setting
    seeds: tuple[int, ...]
    methods: tuple[str, ...] = STANDARD
    changes: tuple[str, ...] = ()
    cut: bool = False

    def runs(self) -> list[Run]:
        """List the runs, by source, method and seed."""
        return [
            self.run(source, method, seed)
            for source in self.setting.sources
            for method in self.methods
            for seed in self.seeds
        ]

    def run(self, source: str, method: str, seed: int) -> Run:
        """Describe one run; its training is shared with whole or cut targets."""
        setting = self.setting
        training = self._training(source, method, seed)
        return Run(
            f"published_{self.name}_{training}{'_cut' if self.cut else ''}",
            setting.preset,
            source,
            METHODS[method].mode,
            setting.targets_of(source),
            setting.cases,
            seed=seed,
            settings=(*METHODS[method].settings, *self.changes),
            label_map=setting.label_map,
            cut_to_labels=self.cut,
            test_cases=setting.test_cases,
            training=f"published_{setting.trained_as or self.name}_{training}",
        )

    def _training(self, source: str, method: str, seed: int) -> str:
        changes = "\n".join(sorted(self.changes)).encode()
        mark = f"_{hashlib.sha256(changes).hexdigest()[:8]}" if changes else ""
        return f"{self.setting.preset}_{source}_{method}_{seed}{mark}"


def report(series: Series, results: Path) -> str:
    """Format the table of a setting: a column per source, over the cases of all its targets.

    If the setting names its targets, each has a column of its own. Sources and seeds without all
    scores are left out, and named.
    """
    runs = series.runs()
    absent = [run.name for run in runs if not results_file(run.name, results).exists()]
    broken = {(run.source, run.seed) for run in runs if run.name in absent}
    whole = {(run.source, run.seed) for run in runs} - broken
    sources = series.setting.sources
    lines = [f"No scores: {', '.join(absent)}", ""] if absent else []
    lines += [f"Scans: {'cut to the slices with labels' if series.cut else 'whole'}", ""]
    if not whole:
        return "\n".join(lines)
    methods = {
        METHODS[name].title: [
            pd.concat([_scores(series.run(*of), series.setting, results) for of in of_seed])
            for seed in series.seeds
            if (of_seed := [(source, name, seed) for source in sources if (source, seed) in whole])
        ]
        for name in series.methods
    }
    columns = "by source and target" if series.setting.targets else "of all targets, by source"
    for metric, title in (("dice", "Dice"), ("assd", "ASSD in mm")):
        table = cross_domain_table(methods, metric).reset_index()
        lines += [f"{title}, mean over labels and cases {columns}", ""]
        lines += [markdown_table(table), ""]
    tests = compare_methods(methods).round(4)
    if len(tests):
        lines += ["Paired Wilcoxon test over cases, Dice", "", markdown_table(tests), ""]
    lines += [f"Published: {series.setting.numbers}"] if series.setting.numbers else []
    return "\n".join(lines)


def _scores(run: Run, setting: Setting, results: Path) -> pd.DataFrame:
    """Read the scores of a run, with its column of the table in the place of the dataset's name."""
    table = read_scores(results_file(run.name, results))
    if setting.targets:
        return table.assign(dataset=f"{run.source}→" + table["dataset"])
    return table.assign(dataset=run.source, case=table["dataset"] + "/" + table["case"])


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing and report."""
    arguments = parse(argv)
    return in_sentences(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    series = series_of(arguments)
    if series.setting.sam:
        return published_sam.main(arguments, series.setting)
    code = 0
    if not arguments.report:
        chosen = chosen_runs(series.runs(), arguments.only)
        options = _options(series, arguments)
        code = run_missing(chosen, arguments, arguments.data, __spec__.name, options)
    if not arguments.only:
        text = report(series, arguments.results)
        reports.show_report(f"published-{arguments.setting}", text, arguments)
    return code


def series_of(arguments: argparse.Namespace) -> Series:
    """Return the runs that the options describe."""
    setting = SETTINGS[arguments.setting]
    if arguments.preset:
        setting = replace(setting, preset=arguments.preset)
    if arguments.domains:
        setting = replace(setting, sources=tuple(arguments.domains), targets=())
    return Series(
        arguments.setting,
        setting,
        tuple(arguments.seeds),
        tuple(arguments.methods),
        (*arguments.set, *([f"optimisation.steps={arguments.steps}"] if arguments.steps else [])),
        arguments.cut_to_labels,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", required=True, choices=SETTINGS)
    parser.add_argument("--data", type=Path, default=reports.DATA, help="folder of the datasets")
    parser.add_argument("--preset", help="another recipe (default: the published one)")
    parser.add_argument("--domains", nargs="+", help="other datasets, each the source once")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=STANDARD,
        choices=METHODS,
        help="what to compare with the first of them (default: plain src)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of all trainings that differ from the preset's, as of srcsm train",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "published")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of runs")
    parser.add_argument(
        "--cut-to-labels", action="store_true", help="cut targets to the slices with labels"
    )
    published_sam.add_options(parser)
    trainings.add_options(parser, None)
    reports.add_options(parser)
    return parser.parse_args(argv)


def _options(series: Series, arguments: argparse.Namespace) -> list[str]:
    """Return the options with which a process of its own finds the same runs."""
    options = ["--setting", series.name, "--preset", series.setting.preset]
    options += ["--seeds", *map(str, series.seeds), "--methods", *series.methods]
    options += ["--domains", *arguments.domains] if arguments.domains else []
    options += ["--set", *arguments.set] if arguments.set else []
    options += ["--cut-to-labels"] if series.cut else []
    return options


if __name__ == "__main__":
    sys.exit(main())
