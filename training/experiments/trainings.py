# SPDX-License-Identifier: Apache-2.0
"""Trainings of an ablation: run side by side, scored, and put into rows of a table."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from srcsm_training.engine.allocator import keep_freed_memory

from .reports import missing_runs, write_results

if TYPE_CHECKING:
    from srcsm_training.data.dataset import Dataset
    from srcsm_training.evaluation.evaluate import Scoring
    from srcsm_training.segmentation.config import TrainingConfig
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.models.bundle import ModelBundle

PIECES = ("all", "one")
"""Components of every label that are scored."""


@dataclass(frozen=True)
class Run:
    """One training and its targets.

    Attributes:
        preset, source, targets: names of the preset and of the datasets.
        mode: mode of random convolution.
        cases, test_cases: shell patterns of the cases to train and to test on.
        fold: "n/k" trains on all cases but every k-th from the n-th on, and tests on those.
        settings: further settings, key=value.
        label_map: the network's label for each of the targets', as --map-labels takes it.
        one_piece: score once more with one component of every label, chosen by size and position.
        cut_to_labels: the targets are cut to the slices with labels, see `Scoring`.
        training: name of the training, if runs share one; the run's by default.
    """

    name: str
    preset: str
    source: str
    mode: str
    targets: tuple[str, ...]
    cases: tuple[str, ...] = ("*",)
    fold: str = ""
    seed: int = 0
    settings: tuple[str, ...] = ()
    label_map: str = ""
    one_piece: bool = False
    cut_to_labels: bool = False
    test_cases: tuple[str, ...] = ("*",)
    training: str = ""


def add_options(parser: argparse.ArgumentParser, steps: int | None) -> None:
    """Add the options of trainings; `steps` None takes those of the preset."""
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--steps", type=int, default=steps, help="of each training")


def run_missing(
    runs: Sequence[Run],
    arguments: argparse.Namespace,
    data: Path,
    module: str,
    options: Sequence[str] = (),
) -> int:
    """Run the trainings without scores, each in a process of its own if there are several.

    Args:
        data: folder of the datasets.
        module: the experiment, which a process runs with --only NAME.
        options: further options for it.

    Returns:
        The highest exit code.
    """
    missing = missing_runs([run.name for run in runs], arguments)
    if len(missing) == 1:
        (run,) = (run for run in runs if run.name in missing)
        execute(run, data, arguments)
        return 0

    def launch(name: str) -> int:
        command = [sys.executable, "-m", module, *options, "--only", name, "--data", str(data)]
        command += ["--runs", str(arguments.runs), "--results", str(arguments.results)]
        command += ["--jobs", str(arguments.jobs)]
        command += ["--steps", str(arguments.steps)] if arguments.steps else []
        command += ["--force"] if arguments.force else []
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return max(pool.map(launch, missing), default=0)


def execute(run: Run, data: Path, arguments: argparse.Namespace) -> None:
    """Train and evaluate one run, and write its scores; a stopped training is resumed.

    Args:
        data: folder of the datasets.
        arguments: runs, results, jobs and steps.
    """
    import torch

    from srcsm_training.data.dataset import choose_cases, read_dataset
    from srcsm_training.engine.limits import Limits
    from srcsm_training.evaluation.evaluate import Scoring
    from srcsm_training.segmentation.run import run_training
    from SRCSMSegmenterLib.models.bundle import load_bundle

    keep_freed_memory()
    torch.set_num_threads(2 // arguments.jobs or 1)
    folder = arguments.runs / (run.training or run.name)
    datasets = [choose_cases(read_dataset(data / target), run.test_cases) for target in run.targets]
    label_maps = _label_maps(run, read_dataset(data / run.source), datasets)
    result = run_training(
        data / run.source,
        _configuration(run, arguments.steps),
        folder,
        limits=Limits(
            report=lambda state: state.step % 100 or print(f"{run.name}: {state.step}", flush=True)
        ),
    )
    bundle = load_bundle(result.model)
    if run.fold:
        environment = json.loads((folder / "environment.json").read_text("utf-8"))
        held_out = environment["validation_cases"]
        datasets = [
            replace(d, cases=tuple(c for c in d.cases if c.name in held_out)) for d in datasets
        ]
    settings = ("off",) if run.fold else ("off", "on")
    tables = [
        _scores(
            run,
            bundle,
            dataset,
            folder / "evaluation" / (run.name if run.training else ""),
            settings,
            pieces,
            Scoring(label_maps[dataset.name], run.cut_to_labels, worst=2),
        )
        for dataset in datasets
        for pieces in (PIECES if run.one_piece else PIECES[:1])
    ]
    table = pd.concat(tables).drop(columns="seconds").round(4)
    write_results(run.name, table, arguments.results)


def score_row(
    title: str,
    setting: str,
    table: pd.DataFrame | None,
    labels: Sequence[str],
    pieces: str = PIECES[0],
) -> str:
    """Format a row of Markdown: mean Dice of every label and of all, and ASSD.

    Args:
        setting: of source matching, "on" or "off".
        table: scores of a run; None gives dashes.
        pieces: one of `PIECES`; older scores are of all pieces.
    """
    if table is None:
        return f"| {title} | {setting} |" + " – |" * (len(labels) + 2)
    if "pieces" in table:
        table = table[table["pieces"] == pieces]
    table = table[table["source_matching"] == setting]
    dice = table.groupby("label")["dice"].mean()
    cells = [f"{dice[label]:.3f}" for label in labels]
    assd = table.groupby("label")["assd"].mean().mean()
    cells += [f"{dice.mean():.3f}", f"{assd:.1f}"]
    return f"| {title} | {setting} | {' | '.join(cells)} |"


def _configuration(run: Run, steps: int | None) -> "TrainingConfig":
    from srcsm_training.engine.config import with_overrides
    from srcsm_training.segmentation.presets import preset

    fold, folds = map(int, run.fold.split("/")) if run.fold else (0, 0)
    return with_overrides(
        preset(run.preset),
        [
            *([f"optimisation.steps={steps}"] if steps else []),
            f"random_convolution={json.dumps(run.mode)}",
            f"data.cases={json.dumps(run.cases)}",
            f"data.folds={folds}",
            f"data.fold={fold}",
            f"seed={run.seed}",
            "validate_every=0",
            *run.settings,
        ],
    )


def _label_maps(
    run: Run, source: "Dataset", targets: Sequence["Dataset"]
) -> dict[str, dict[int, int] | None]:
    """Find what the source's labels are in every target, before hours of training.

    Raises:
        DatasetError: names do not tell, and the run has no label map.
    """
    from srcsm_training.cli.label_maps import label_map_for
    from srcsm_training.evaluation.evaluate import parse_label_map

    given = parse_label_map(run.label_map) if run.label_map else None
    named = {label: name for name, label in source.labels.items()}
    label_maps = {}
    for target in targets:
        label_maps[target.name], told = label_map_for(source.name, named, target, given)
        if told:
            print(told, flush=True)
    return label_maps


def _scores(
    run: Run,
    bundle: "ModelBundle",
    dataset: "Dataset",
    output: Path,
    settings: Sequence[str],
    pieces: str,
    scoring: "Scoring",
) -> pd.DataFrame:
    """Score the network's labels with the given settings of SM, all pieces or one of each."""
    from srcsm_training.evaluation.evaluate import evaluate
    from SRCSMSegmenterLib.inference import segment

    def network(volume: "Volume", matching: bool) -> "Volume":
        return segment(
            volume,
            bundle,
            modality=dataset.modality,
            source_matching=matching,
            device="cpu",
            keep_largest=pieces != PIECES[0],
        ).labels

    folder = output / dataset.name / (pieces if run.one_piece else "")
    table = evaluate(network, [dataset], folder, settings, scoring)
    return table.assign(pieces=pieces) if run.one_piece else table
