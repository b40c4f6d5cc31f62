# SPDX-License-Identifier: Apache-2.0
"""Commands whose runs are disturbed, each of a second or two, and their inputs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import dicom_series
import numpy as np
import style_tiny
import threshold_network
import tiny
import tiny_sam
import yaml

from SAMRefineLib.sam.models import save_sam
from srcsm_training.cli.main import main
from srcsm_training.engine.config import to_dict
from srcsm_training.style.swap import SwapModels, swap
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.models.bundle import save_bundle
from SRCSMSegmenterLib.volume_io import write_volume

SCAN = "data/imagesTr/a_0000.nii.gz"


@dataclass(frozen=True)
class Command:
    """A command, and what may lie in its folder of outputs before it and while it runs.

    Attributes:
        line: arguments; {i} stands for the folder of inputs, {o} for that of outputs.
        final: how names of results begin that are there only if they are whole and the last word.
        other: arguments that replace others, {"old": "new"}, and give another result of the same
            names, which is there before a run; empty if only the command's own result can be.
    """

    line: str
    final: tuple[str, ...]
    other: tuple[tuple[str, str], ...] = ()

    def arguments(self, inputs: Path, outputs: Path, *, other: bool = False) -> list[str]:
        """Return the arguments of the command, or of the one whose result is there before."""
        line = self.line
        for old, new in self.other if other else ():
            line = line.replace(old, new)
        return [word.format(i=inputs, o=outputs) for word in line.split()]


MODEL = (("{i}/model", "{i}/another-model"),)
SEGMENT = f"segment {{i}}/{SCAN} --model {{i}}/model --device cpu --modality CT"
STYLE = "--config {i}/style.yaml"
TAUGHT = "--slices {i}/style/ct --base {i}/style/base --device cpu"

COMMANDS = {
    "segment": Command(f"{SEGMENT} -o {{o}}/labels.nii.gz", ("labels",), MODEL),
    "segment, all files": Command(
        f"{SEGMENT} -o {{o}}/labels.seg.nrrd --confidence {{o}}/confidence.mha "
        "--statistics {o}/statistics.csv --preview {o}/preview.png",
        ("labels", "confidence", "statistics", "preview"),
        MODEL,
    ),
    "segment to DICOM": Command(
        "segment {i}/series --model {i}/model --device cpu -o {o}/labels.dcm", ("labels",), MODEL
    ),
    "segment a cohort": Command(
        "segment {i}/data/imagesTr --model {i}/model --device cpu --modality CT -o {o}/labels "
        "--resume --statistics {o}/statistics",
        ("labels/a", "labels/b", "labels/c", "statistics"),
        MODEL,
    ),
    "segment --refine": Command(
        f"{SEGMENT} -o {{o}}/refined.nii.gz --refine --sam {{i}}/sam", ("refined",), MODEL
    ),
    "boxes": Command(
        f"boxes {{i}}/{SCAN} --modality CT --coarse {{i}}/coarse.nii.gz -o {{o}}/boxes.json "
        "--pictures {o}/pictures",
        ("boxes", "pictures"),
        (("--modality", "--shrink 3 --modality"),),
    ),
    "refine": Command(
        f"refine {{i}}/{SCAN} --modality CT --boxes {{i}}/boxes.json --sam {{i}}/sam --device cpu "
        "-o {o}/fine.seg.nrrd --confidence {o}/sure.nii.gz --pictures {o}/pictures",
        ("fine", "sure", "pictures"),
        (("--device", "--mask-threshold 0.3 --device"),),
    ),
    "match": Command(
        f"match {{i}}/{SCAN} --modality MR --model {{i}}/model -o {{o}}/matched.nii.gz",
        ("matched",),
        (("--modality MR", "--modality CT"),),
    ),
    "train": Command(
        "train --data {i}/data --cache {o}/cache --preset abdomen-tiny --config {i}/train.yaml "
        "--device cpu --out {o}/run",
        ("cache", "run/model"),
    ),
    "train-sam": Command(
        "train-sam --data {i}/data --cache {o}/cache --config {i}/sam.yaml --device cpu "
        "--out {o}/run",
        ("cache", "run/model"),
    ),
    "train-sam --sam": Command(
        "train-sam --data {i}/data --sam {i}/sam --coarse {i}/model --config {i}/decoder.yaml "
        "--device cpu --out {o}/run",
        ("run/model",),
    ),
    "evaluate": Command(
        "evaluate --data {i}/data --model {i}/model --worst 1 --source-matching off --device cpu "
        "--out {o}/scores",
        ("scores",),
        MODEL,
    ),
    "prepare-data": Command("prepare-data spider {i}/download {o}/datasets", ("datasets",)),
    "phantom": Command("phantom {o}/phantom --modality MR --cases 1", ("phantom",)),
    "style prepare": Command(
        f"style prepare --data {{i}}/data {STYLE} --out {{o}}/ct", ("ct/images", "ct/masks")
    ),
    "style phantom": Command(
        f"style phantom {STYLE} --out {{o}}/phantom", ("phantom/images", "phantom/masks")
    ),
    "style base": Command(
        f"style base --slices {{i}}/style/phantom --device cpu {STYLE} --out {{o}}/base",
        ("base/vae", "base/unet"),
    ),
    "style tune": Command(f"style tune {TAUGHT} {STYLE} --out {{o}}/tuned", ("tuned/unet",)),
    "style control": Command(
        f"style control {TAUGHT} --tuned {{i}}/style/tuned {STYLE} --out {{o}}/control",
        ("control/controlnet",),
    ),
    "style swap": Command(
        f"style swap {TAUGHT} --control {{i}}/style/control {STYLE} --out {{o}}/styled",
        ("styled/images",),
    ),
    "style check": Command(
        f"style check --slices {{i}}/style/styled {STYLE} --out {{o}}/report", ()
    ),
    "style run": Command(
        f"style run --data {{i}}/data --device cpu {STYLE} --out {{o}}/chain",
        ("chain/slices/images", "chain/slices/masks"),
    ),
}


def write_inputs(folder: Path) -> None:
    """Write what the commands read."""
    tiny.write_dataset(folder / "data")
    image, labels = tiny.phantom(0)
    geometry = Geometry(labels.shape[::-1], np.diag([-2.5, -2.0, 3.0, 1.0]))
    dicom_series.write_slices(folder / "series", Volume(image, geometry))
    shutil.copy(folder / "data/labelsTr/a.nii.gz", folder / "coarse.nii.gz")
    for part in ("images", "masks"):
        (folder / "download" / part).mkdir(parents=True)
        for case in range(2):
            array = image if part == "images" else np.minimum(labels, 1)
            write_volume(folder / f"download/{part}/{case}_t2.mha", Volume(array, geometry))
    for name, grid in (("model", 3.0), ("another-model", 6.0)):
        bundle = threshold_network.a_bundle(GridSpec((16, 16, 8), (grid, grid, 5.0)))
        save_bundle(folder / name, bundle, "# Card\n")
    save_sam(folder / "sam", tiny_sam.small_model(), "# Card\n", "Free\n")
    boxes = ["boxes", folder / SCAN, "--modality", "CT", "--coarse", folder / "coarse.nii.gz"]
    if main([*map(str, boxes), "-o", str(folder / "boxes.json")]):
        raise RuntimeError("The boxes could not be made.")
    _write_configurations(folder)


def write_style_inputs(folder: Path) -> None:
    """Write the slices and networks that the stages of a style intervention read."""
    chain = style_tiny.run_chain(folder / "style")
    models = SwapModels(str(chain.base), chain.control, None, False)
    limits = style_tiny.SILENT
    swap(
        chain.slices, models, folder / "style/styled", style_tiny.config(), device="cpu",
        limits=limits,
    )  # fmt: skip


def _write_configurations(folder: Path) -> None:
    recipe = {"steps": 6, "batch": 2, "learning_rate": 1e-3, "precision": "fp32"}
    scans = {"data": {"folds": 3}, "optimisation": recipe, "validate_every": 3}
    sizes = {
        "canvas": 128, "window": 32, "patch": 8, "embed_dim": 16, "depth": 1, "heads": 2,
        "prompt_dim": 16, "decoder_heads": 2, "decoder_mlp": 16,
    }  # fmt: skip
    tiles = {"side": 32, "whole_slices": 0.3, "smallest": 4}
    for name, content in (
        ("train", to_dict(tiny.config(steps=6)) | {"checkpoint_minutes": 0.0}),
        ("sam", scans | {"network": sizes, "tiles": tiles, "checkpoint_minutes": 0.0}),
        ("decoder", scans | {"checkpoint_minutes": 0.0}),
        ("style", style_tiny.SETTINGS | {"checkpoint_minutes": 0.0}),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
