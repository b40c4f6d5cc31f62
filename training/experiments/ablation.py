# SPDX-License-Identifier: Apache-2.0
"""The ablation behind BENCHMARKS.md: the same small budget for every variant. Resumable.

    python -m srcsm_training.experiments.ablation --data ../shared/data
        run what is missing, 2 at a time
    python -m srcsm_training.experiments.ablation --data ../shared/data --only ct_smoothed
    python -m srcsm_training.experiments.ablation --report   write the tables into BENCHMARKS.md

A training that was stopped goes on from its checkpoint; one whose scores lie in
``training/experiments/results`` is not run again.
"""

import argparse
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from srcsm_training.experiments.reports import (
    CT,
    DATA,
    MR,
    REPOSITORY,
    RESULTS,
    read_results,
    write_report,
)

STEPS = 2800
BSSFP, LGE, ACDC = "Dataset201_HeartBSSFP", "Dataset202_HeartLGE", "Dataset203_HeartACDC"
MODES = {"off": "plain", "global": "global", "hard": "SRC hard", "smoothed": "SRC smoothed"}


@dataclass(frozen=True)
class Run:
    """One training and its targets.

    Attributes:
        mode: of random convolution.
        fold: "n/k" trains on all cases but every k-th from the n-th on, and tests on those.
        settings: further ones, key=value.
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


RUNS = (
    *(Run(f"ct_{mode}", "abdomen-fast", CT, mode, (MR,)) for mode in MODES),
    *(Run(f"mr_{mode}", "abdomen-fast", MR, mode, (CT,)) for mode in MODES),
    *(
        Run(f"bssfp_{mode}", "heart-fast", BSSFP, mode, (LGE, ACDC), ("bssfp_1[1-9]", "bssfp_20"))
        for mode in ("off", "smoothed")
    ),
    *(
        Run(f"within_{name}_{n}", "abdomen-fast", dataset, "off", (dataset,), fold=f"{n}/2")
        for (name, dataset), n in itertools.product((("mr", MR), ("ct", CT)), (0, 1))
    ),
)


def execute(run: Run, data: Path, runs: Path, threads: int, steps: int) -> None:
    """Train and evaluate one run; its scores go to ``training/experiments/results/NAME.csv``."""
    import torch

    from srcsm_training.data.dataset import read_dataset
    from srcsm_training.engine.config import with_overrides
    from srcsm_training.engine.limits import Limits
    from srcsm_training.evaluation.evaluate import evaluate
    from srcsm_training.segmentation.presets import preset
    from srcsm_training.segmentation.run import run_training
    from SRCSMSegmenterLib.atomic import atomic_write
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import segment
    from SRCSMSegmenterLib.models.bundle import load_bundle

    torch.set_num_threads(threads)
    fold, folds = map(int, run.fold.split("/")) if run.fold else (0, 0)
    config = with_overrides(
        preset(run.preset),
        [
            f"optimisation.steps={steps}",
            f"random_convolution={json.dumps(run.mode)}",
            f"data.cases={json.dumps(run.cases)}",
            f"data.folds={folds}",
            f"data.fold={fold}",
            f"seed={run.seed}",
            "validate_every=0",
            *run.settings,
        ],
    )
    result = run_training(
        data / run.source,
        config,
        runs / run.name,
        limits=Limits(
            report=lambda p: p.step % 100 or print(f"{run.name}: step {p.step}", flush=True)
        ),
    )
    bundle = load_bundle(result.model)
    held_out = json.loads((runs / run.name / "environment.json").read_text())["validation_cases"]
    datasets = [read_dataset(data / target) for target in run.targets]
    if run.fold:
        datasets = [
            replace(d, cases=tuple(c for c in d.cases if c.name in held_out)) for d in datasets
        ]
    modality = {d.name: d.modality for d in datasets}

    tables = []
    for dataset in datasets:

        def network(volume: Volume, matching: bool, dataset: str = dataset.name) -> Volume:
            found = segment(
                volume, bundle, modality=modality[dataset], source_matching=matching, device="cpu"
            )
            return found.labels

        settings = ("off",) if run.fold else ("off", "on")
        output = runs / run.name / "evaluation" / dataset.name
        tables.append(evaluate(network, [dataset], output, settings, worst=2))
    RESULTS.mkdir(exist_ok=True)
    table = pd.concat(tables).drop(columns="seconds").round(4)
    with atomic_write(RESULTS / f"{run.name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def report() -> str:
    """The tables of BENCHMARKS.md from the scores at hand; runs not done are dashes."""
    scores = {run.name: read_results(run.name) for run in RUNS}
    lines = [
        "| training | SM | liver | right kidney | left kidney | spleen | mean Dice | ASSD mm |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    organs = ("liver", "right_kidney", "left_kidney", "spleen")
    for source, arrow in (("ct", "CT→MR"), ("mr", "MR→CT")):
        for mode, title in MODES.items():
            for setting in ("off", "on"):
                table = scores[f"{source}_{mode}"]
                lines.append(score_row(f"{arrow} {title}", setting, table, organs))
    for name, title in (("mr", "MR within"), ("ct", "CT within")):
        folds = [scores[f"within_{name}_{n}"] for n in (0, 1)]
        table = pd.concat(folds) if all(f is not None for f in folds) else None
        lines.append(score_row(f"{title} (2-fold), plain", "off", table, organs))
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


def score_row(title: str, setting: str, table: pd.DataFrame | None, labels: tuple[str, ...]) -> str:
    """A row of Markdown: mean Dice of every label and of all, and ASSD; dashes without scores."""
    if table is None:
        return f"| {title} | {setting} |" + " – |" * (len(labels) + 2)
    table = table[table["source_matching"] == setting]
    dice = table.groupby("label")["dice"].mean()
    cells = [f"{dice[label]:.3f}" for label in labels]
    assd = table.groupby("label")["assd"].mean().mean()
    return (
        f"| {title} | {setting} | "
        + " | ".join([*cells, f"{dice.mean():.3f}", f"{assd:.1f}"])
        + " |"
    )


def main() -> int:
    """Run, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "ablation")
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS])
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a core each")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        write_report("ablation", report())
        return 0
    chosen = [r for r in RUNS if not arguments.only or r.name in arguments.only]
    missing = [r for r in chosen if not (RESULTS / f"{r.name}.csv").exists()]
    if len(missing) == 1:
        execute(
            missing[0], arguments.data, arguments.runs, 2 // arguments.jobs or 1, arguments.steps
        )
        return 0

    def launch(run: Run) -> int:
        command = [sys.executable, "-m", __spec__.name]
        command += ["--only", run.name, "--data", str(arguments.data)]
        command += ["--runs", str(arguments.runs), "--jobs", str(arguments.jobs)]
        return subprocess.run([*command, "--steps", str(arguments.steps)], check=False).returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return max(pool.map(launch, missing), default=0)


if __name__ == "__main__":
    sys.exit(main())
