# SPDX-License-Identifier: Apache-2.0
"""The tables of the SAM paper: each domain the only source once (Wang et al.).

    python -m srcsm_training.experiments.published --setting prostate-six-sites-sam --data ROOT \\
        --sam sam_vit_b_01ec64.pth --backbone resnet50-11ad3fa6.pth

For each source and seed, a DeepLab is trained, and a SAM's mask decoder for each kind of box, as
the paper does: filtered boxes are the method, the others its ablation. All other domains are
scored, by each decoder with its own kind of box at each theta 2, and by the DeepLab alone. Boxes
are not moved at test time, and Dice is per case, not per canvas of four slices.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.acceptance import ACCEPT_ALL
from SAMRefineLib.refine.refiner import OrganPrompt, Refiner
from SAMRefineLib.sam.models import SamModel, load_sam
from srcsm_training.data.dataset import Case, Dataset, read_case, read_dataset
from srcsm_training.engine.limits import Limits
from srcsm_training.evaluation.tables import markdown_table
from srcsm_training.sam.decoder import DecoderConfig, run_decoder_training
from srcsm_training.sam.deeplab_config import DeepLabConfig
from srcsm_training.sam.layout import BOX_KINDS, CoarseNetwork, organ_boxes
from srcsm_training.segmentation.published import Setting
from SRCSMSegmenterLib.errors import ConfigError, DatasetError

from .reports import chosen_runs, missing_runs, read_results, show_report, write_results
from .sam_ablation import KINDS, THETA1, THETAS, scores

COARSE = DeepLabConfig()
DECODER = DecoderConfig(mosaic="slices", theta1=THETA1)
"""Configurations of the coarse network and of the decoders; the paper's but for their length."""

ALONE = "coarse"
"""Kind of the coarse network's own masks."""

MASK = 0.5
"""Probability from which a voxel is in a mask of the coarse network alone."""


@dataclass(frozen=True)
class Run:
    """The networks of one source and seed, and their targets."""

    name: str
    source: str
    targets: tuple[str, ...]
    seed: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the settings with a SAM."""
    parser.add_argument(
        "--sam",
        default="sam-small-mr",
        metavar="NAME_OR_PATH",
        help="of the settings with a SAM: whose decoder is fine-tuned, such as the paper's "
        "sam_vit_b_01ec64.pth (default: sam-small-mr)",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="of the settings with a SAM: torchvision's resnet50-*.pth (default: from nothing)",
    )


def main(arguments: argparse.Namespace, setting: Setting) -> int:
    """Train and score what is missing, and report.

    Args:
        arguments: of ``published.py``.

    Raises:
        ConfigError: options of the other settings.
    """
    if arguments.cut_to_labels or arguments.set or arguments.preset:
        raise ConfigError("--cut-to-labels, --set and --preset are not for settings with a SAM.")
    mark = f"_{arguments.steps}-steps" if arguments.steps else ""
    runs = runs_of(arguments.setting, setting, arguments.seeds, mark)
    if not arguments.report:
        chosen = chosen_runs(runs, arguments.only)
        missing = missing_runs([run.name for run in chosen], arguments)
        for run in chosen:
            if run.name in missing:
                execute(run, arguments)
    if not arguments.only:
        text = report(runs, setting, arguments.results)
        show_report(f"published-{arguments.setting}", text, arguments)
    return 0


def runs_of(name: str, setting: Setting, seeds: Sequence[int], mark: str = "") -> list[Run]:
    """List the runs of a setting: every source and seed.

    Args:
        mark: end of the names, of trainings of another length.
    """
    return [
        Run(f"published_{name}_{source}_{seed}{mark}", source, setting.targets_of(source), seed)
        for source in setting.sources
        for seed in seeds
    ]


def execute(run: Run, arguments: argparse.Namespace) -> None:
    """Train the networks of a run, or resume, and score its targets.

    Args:
        arguments: data, runs, results, steps, sam and backbone.

    Raises:
        DatasetError: a target has other labels than the source.
    """
    from srcsm_training.sam import deeplab

    source, folder = arguments.data / run.source, arguments.runs / run.name
    targets = [read_dataset(arguments.data / target) for target in run.targets]
    labels = read_dataset(source).labels
    if other := [target.name for target in targets if target.labels != labels]:
        raise DatasetError(f"{', '.join(other)}: other labels than those of {run.source}.")

    def limits(what: str) -> Limits:
        def report(state: object) -> None:
            if state.step % 100 == 0:
                print(f"{run.name}, {what}: {state.step}", flush=True)

        return Limits(report=report)

    config = _configured(COARSE, run.seed, arguments.steps)
    trained = deeplab.run_training(
        source, config, folder / ALONE, backbone=arguments.backbone, limits=limits(ALONE)
    )
    coarse = deeplab.as_coarse_network(trained.model)
    sams = {}
    for kind in BOX_KINDS:
        config = _configured(replace(DECODER, boxes=kind), run.seed, arguments.steps)
        sam = load_sam(arguments.sam)
        result = run_decoder_training(
            source, config, sam, coarse, folder / kind, limits=limits(f"{kind} boxes")
        )
        sams[kind] = load_sam(result.model)
    rows = []
    for target in targets:
        for case in target.cases:
            rows += score_case(case, target, coarse, sams)
            print(f"{run.name}: {target.name} {case.name}", flush=True)
    write_results(run.name, pd.DataFrame(rows).round(4), arguments.results)


def _configured(
    config: DeepLabConfig | DecoderConfig, seed: int, steps: int | None
) -> DeepLabConfig | DecoderConfig:
    recipe = config.optimisation
    return replace(
        config, seed=seed, optimisation=replace(recipe, steps=steps) if steps else recipe
    )


def score_case(
    case: Case, dataset: Dataset, coarse: CoarseNetwork, sams: dict[str, SamModel]
) -> list[dict]:
    """Return a row for each label of the coarse network alone, and for each kind and theta 2.

    Args:
        sams: kind of box -> the SAM that was fine-tuned on it.
    """
    volume, label_map = read_case(case)
    truth = label_map.array
    probability = coarse.predict(volume, dataset.modality)
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    found = np.zeros_like(truth)
    best = np.full(truth.shape, MASK, np.float32)
    for label in coarse.labels.values():
        sure = probability(label)
        found[sure >= best] = label
        best = np.maximum(best, sure)
    given = {"dataset": dataset.name}
    rows = scores(case.name, found, truth, dataset.labels, kind=ALONE, theta2=np.nan, **given)
    for kind, sam in sams.items():
        prompts = []
        for name, label in coarse.labels.items():
            boxes = organ_boxes(kind, probability(label), truth == label, grid, THETA1)
            prompts.append(OrganPrompt(KeyFrames(name, label, grid, boxes), None))
        refiner = Refiner(volume, grid, sam, modality=dataset.modality, mosaic=DECODER.mosaic)
        for theta2 in THETAS:
            result = refiner.refine(prompts, mask_threshold=theta2, acceptance=ACCEPT_ALL)
            setting = {"kind": kind, "theta2": theta2, **given}
            rows += scores(case.name, result.labels.array, truth, dataset.labels, **setting)
    return rows


def report(runs: Sequence[Run], setting: Setting, results: Path) -> str:
    """Format the tables: a column per source, over labels and the cases of all its targets.

    Runs without scores are left out, and named.
    """
    tables = {run: read_results(run.name, results) for run in runs}
    absent = [run.name for run, table in tables.items() if table is None]
    lines = [f"No scores: {', '.join(absent)}", ""] if absent else []
    parts = [
        table.assign(source=run.source, seed=run.seed)
        for run, table in tables.items()
        if table is not None
    ]
    if not parts:
        return "\n".join(lines)
    scored = pd.concat(parts).assign(theta2=lambda table: table["theta2"].fillna(THETAS[0]))
    # Every label of a case counts once, then every case, then every seed.
    means = scored.groupby(["kind", "theta2", "source", "seed", "dataset", "case"])["dice"].mean()
    means = means.groupby(["kind", "theta2", "source", "seed"]).mean()
    table = means.groupby(["kind", "theta2", "source"]).mean().unstack("source")
    table["mean"] = table.mean(axis=1)
    titles = {ALONE: "coarse network alone", **KINDS}
    order = [(kind, theta) for kind in (ALONE, *BOX_KINDS) for theta in THETAS]
    table = (100 * table).round(2).reindex([row for row in order if row in table.index])
    table = table.reset_index()
    table["kind"] = table["kind"].map(titles)
    lines += ["Dice in %, mean over labels and cases of all targets, by source", ""]
    lines += [markdown_table(table), "", f"Published: {setting.numbers}"]
    return "\n".join(lines)
