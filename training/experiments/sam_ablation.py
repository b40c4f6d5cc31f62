# SPDX-License-Identifier: Apache-2.0
"""The ablation of the SAM paper on CT→MR and MR→CT, behind BENCHMARKS.md.

    python -m srcsm_training.experiments.sam_ablation --data ../shared/data   run what is missing
    python -m srcsm_training.experiments.sam_ablation --data ../shared/data --only ct_plain \\
        --cases 'mr_0[1-3]'
    python -m srcsm_training.experiments.sam_ablation --report           print the tables
    python -m srcsm_training.experiments.sam_ablation --report --write   into BENCHMARKS.md

Coarse masks come from the shipped networks and from the plain ones of
``training/experiments/ablation.py`` (``--runs``), with source matching. No SAM here has seen its
target. Scores are written to ``training/experiments/results`` case by case; a case that is there is
skipped, and --force scores it again.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.acceptance import ACCEPT_ALL, DEFAULT_ACCEPTANCE
from SAMRefineLib.refine.box_selection import choose_prompts
from SAMRefineLib.refine.refiner import OrganPrompt, Refiner
from SAMRefineLib.sam.embeddings import EmbeddingCache
from SAMRefineLib.sam.models import SamModel, load_sam
from SAMRefineLib.sam.prediction import MosaicMode
from srcsm_training.data.dataset import Case, Dataset, choose_cases, read_case, read_dataset
from srcsm_training.experiments import reports
from srcsm_training.experiments.reports import (
    CT,
    DATA,
    MR,
    ORGANS,
    REPOSITORY,
    results_file,
    say_how_to_repeat,
    show_report,
    write_results,
)
from srcsm_training.sam.layout import organ_boxes
from SRCSMSegmenterLib.components import dice, keep_largest_component
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder

THETA1 = 0.75
THETAS = (0.5, 0.75, 0.9)
MOSAICS: tuple[MosaicMode, ...] = ("crops", "slices", "off")
PAPER = ("whole", "unfiltered", "filtered", "true")
KINDS = {
    "whole": "SAM, whole image as box",
    "unfiltered": "SAM, unfiltered boxes",
    "filtered": "SAM, filtered boxes",
    "true": "SAM, true boxes",
    "guess": "SAM, filtered boxes and the coarse mask",
    "refine": "`srcsm segment --refine`",
}
"""What SAM is given. The first four are the paper's: SAM's masks and nothing else. "guess" gives
SAM the coarse mask as a mask prompt beside the box; "refine" chooses the boxes and falls back to
the coarse mask."""

ALONE = {"coarse": "network alone", "pieces": "`srcsm segment`, largest pieces"}

IN_ALL_MOSAICS = ("filtered", "true", "refine")
"""Kinds that are scored in all mosaics; the others are scored with crops alone."""


@dataclass(frozen=True)
class Run:
    """A coarse network and a SAM of one source, on the cases of the other modality.

    Attributes:
        coarse: a shipped model's name, or the name of a run of
            ``training/experiments/ablation.py``.
        sam: a shipped SAM's name.
    """

    name: str
    title: str
    coarse: str
    sam: str
    target: str


RUNS = (
    Run("ct_shipped", "CT→MR, abdomen-ct", "abdomen-ct", "sam-small-ct", MR),
    Run("ct_plain", "CT→MR, plain", "ct_off", "sam-small-ct", MR),
    Run("mr_shipped", "MR→CT, abdomen-mr", "abdomen-mr", "sam-small-mr", CT),
    Run("mr_plain", "MR→CT, plain", "mr_off", "sam-small-mr", CT),
)


def execute(
    run: Run,
    data: Path,
    runs: Path,
    results: Path,
    sam: str | None,
    cases: Sequence[str],
    mosaics: Sequence[MosaicMode] = MOSAICS,
    force: bool = False,
) -> None:
    """Score the missing cases; each is written as soon as it is done.

    Args:
        data: folder of the datasets.
        runs: folder of the runs of ``training/experiments/ablation.py``.
        results: folder of the scores.
        sam: another SAM, such as one with a fine-tuned decoder; its name becomes part of the name
            of the scores' file.
        cases: shell patterns of the cases' names.
        force: score again the cases that have scores.

    Raises:
        SystemExit: the file holds scores of another SAM or of another coarse network.
    """
    shipped = shipped_models_folder() / run.coarse
    coarse = load_bundle(shipped if shipped.is_dir() else runs / run.coarse / "model")
    model = load_sam(sam or run.sam, device="cpu")
    name = run_name(run, model.name if sam else "")
    path = results_file(name, results)
    dataset = choose_cases(read_dataset(data / run.target), cases)
    table, scored = read_scores(path), False
    if len(table) and (table["sam"] != identity(model)).any():
        raise SystemExit(f"{path} holds scores of another SAM; move it away first.")
    if len(table) and (table["coarse"] != coarse.identity[:8]).any():
        raise SystemExit(f"{path} holds scores of another coarse network; move it away first.")
    for case, mosaic in itertools.product(dataset.cases, mosaics):
        done = set()
        if len(table):
            of_case = (table["case"] == case.name) & (table["mosaic"] == mosaic)
            if force:
                table = table[~of_case]
            else:
                done = set(table["kind"][of_case])
        kinds = [k for k in (KINDS if mosaic == "crops" else IN_ALL_MOSAICS) if k not in done]
        if not kinds:
            continue
        started, scored = time.perf_counter(), True
        rows = score_case(case, coarse, model, dataset, mosaic, kinds)
        made_by = {"sam": identity(model), "coarse": coarse.identity[:8]}
        table = pd.concat([table, pd.DataFrame(rows).assign(**made_by)])
        write_results(name, table.round(4), results)
        seconds = time.perf_counter() - started
        print(f"{run.name} {case.name} {mosaic}: {seconds:.0f} s", flush=True)
    if not scored:
        say_how_to_repeat(name, path)


def score_case(
    case: Case,
    coarse: ModelBundle,
    model: SamModel,
    dataset: Dataset,
    mosaic: MosaicMode,
    kinds: Sequence[str],
) -> list[dict]:
    """Return a row for each label, kind and θ2, and two rows for the coarse masks alone."""
    modality, labels = dataset.modality, dataset.labels
    volume, label_map = read_case(case)
    truth = label_map.array
    segmentation = segment(
        volume,
        coarse,
        modality=modality,
        source_matching=True,
        device="cpu",
        keep_largest=False,
    )
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    organs = [
        CoarseOrgan(name, v, segmentation.probabilities.whole(v)) for name, v in labels.items()
    ]
    cache = EmbeddingCache()
    settings = {"modality": modality, "mosaic": mosaic, "cache": cache}

    def prompts(kind: str) -> list[OrganPrompt]:
        if kind == "refine":
            return choose_prompts(Refiner(volume, grid, model, **settings), organs)
        boxes = "filtered" if kind == "guess" else kind
        return [
            OrganPrompt(
                KeyFrames(
                    organ.name,
                    organ.label,
                    grid,
                    organ_boxes(boxes, organ.mask, truth == organ.label, grid, THETA1),
                ),
                None if kind in PAPER else organ.mask,
            )
            for organ in organs
        ]

    alone = {"mosaic": mosaic}
    rows = scores(case.name, segmentation.labels.array, truth, labels, kind="coarse", **alone)
    keep_largest_component(segmentation.labels.array, segmentation.confidence())
    rows += scores(case.name, segmentation.labels.array, truth, labels, kind="pieces", **alone)
    for kind in kinds:
        refiner = Refiner(volume, grid, model, **settings)
        given = prompts(kind)
        for theta2 in THETAS:
            acceptance = DEFAULT_ACCEPTANCE if kind == "refine" else ACCEPT_ALL
            result = refiner.refine(given, mask_threshold=theta2, acceptance=acceptance)
            setting = {"kind": kind, "mosaic": mosaic, "theta2": theta2}
            kept = {report.name: len(report.kept) for report in result.reports}
            large = {organ.frames.name: not organ.mask_prompt for organ in given}
            for row in scores(case.name, result.labels.array, truth, labels, **setting):
                name = row["label"]
                rows.append(row | {"kept": kept[name], "large": large[name]})
    return rows


def scores(
    case: str, prediction: np.ndarray, truth: np.ndarray, labels: dict[str, int], **setting: object
) -> list[dict]:
    """Return a row with the Dice of each label, NaN if neither label map has it.

    Args:
        prediction, truth: (K, J, I) labels.
        labels: name -> label.
        setting: further columns.
    """
    rows = []
    for name, label in labels.items():
        overlap = dice(prediction == label, truth == label, empty=np.nan)
        rows.append({"case": case, "label": name, **setting, "dice": overlap})
    return rows


def identity(model: SamModel) -> str:
    """Return the name of a SAM, and what its decoder was trained on."""
    tuned = model.training.get("config", {}).get("boxes")
    boxes = f"fine-tuned on {tuned} boxes" if isinstance(tuned, str) else "not fine-tuned"
    return f"{model.name} {model.identity[:8]}, decoder {boxes}"


def run_name(run: Run, sam: str = "") -> str:
    """Return the name of a run's scores, with that of another SAM."""
    return f"sam_{run.name}{f'_{sam}' if sam else ''}"


def read_scores(path: Path) -> pd.DataFrame:
    """Read the scores of a run; return an empty table if there are none.

    The coarse masks are scored whenever a case is; each counts once.
    """
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path, dtype={"coarse": str})
    repeated = table["kind"].isin(list(ALONE)) & table.duplicated(["case", "label", "kind"])
    return table[~repeated]


def report(results: Path) -> str:
    """Format the tables of BENCHMARKS.md; runs without scores are dashes.

    Args:
        results: folder of the scores.
    """
    lines = [
        "| coarse network | given to SAM | mosaic | cases | θ2 0.5 | θ2 0.75 | θ2 0.9 | decoder |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    organs = [
        "| coarse network | masks | liver | right kidney | left kidney | spleen | mean |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in RUNS:
        others = sorted(results.glob(f"{run_name(run)}_*.csv"))
        for path in (results_file(run_name(run), results), *others):
            table = read_scores(path)
            lines += _rows(run, table)
            organs += _organ_rows(run, table)
    return "\n".join([*lines, "", *organs])


def _rows(run: Run, table: pd.DataFrame) -> list[str]:
    if table.empty:
        return [f"| {run.title} | – | – | – | – | – | – | – |"]
    title, cases = run.title, table["case"].nunique()
    decoder = table["sam"].iloc[0].partition("decoder ")[2]
    lines = []
    for kind, given in ALONE.items():
        alone = _mean(table[table["kind"] == kind])
        lines.append(f"| {title} | nothing: {given} | – | {cases} | {alone:.3f} | | | – |")
    for kind, given in KINDS.items():
        for mosaic in MOSAICS:
            part = table[(table["kind"] == kind) & (table["mosaic"] == mosaic)]
            if len(part):
                cells = [f"{_mean(part[part['theta2'] == theta]):.3f}" for theta in THETAS]
                cells = [mosaic, str(part["case"].nunique()), *cells, decoder]
                lines.append(f"| {title} | {given} | {' | '.join(cells)} |")
    return lines


def _organ_rows(run: Run, table: pd.DataFrame) -> list[str]:
    """Format a row per kind with the Dice of each organ, for crops and θ2 0.5."""
    if table.empty:
        return [f"| {run.title} | – | – | – | – | – | – |"]
    usual = (table["mosaic"] == "crops") & (table["theta2"] == THETAS[0])
    lines = []
    for kind, title in {**ALONE, **KINDS}.items():
        part = table[(table["kind"] == kind) & (usual | (kind in ALONE))]
        dice = part.groupby("label")["dice"].mean()
        cells = [f"{dice[label]:.3f}" for label in ORGANS] + [f"{_mean(part):.3f}"]
        lines.append(f"| {run.title} | {title} | {' | '.join(cells)} |")
    return lines


def _mean(table: pd.DataFrame) -> float:
    """Average Dice over the labels' means over cases."""
    return float(table.groupby("label")["dice"].mean().mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "ablation")
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS])
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--mosaics", nargs="+", choices=MOSAICS, default=list(MOSAICS))
    parser.add_argument("--sam", metavar="NAME_OR_FOLDER", help="instead of the shipped ones")
    parser.add_argument("--threads", type=int, default=1)
    reports.add_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.report:
        show_report("sam-ablation", report(arguments.results), arguments)
        return 0
    torch.set_num_threads(arguments.threads)
    for run in RUNS:
        if not arguments.only or run.name in arguments.only:
            execute(
                run,
                arguments.data,
                arguments.runs,
                arguments.results,
                arguments.sam,
                arguments.cases,
                arguments.mosaics,
                arguments.force,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
