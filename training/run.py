# SPDX-License-Identifier: Apache-2.0
"""A training run from a dataset to a model bundle, and everything its folder keeps.

config.yaml               the full configuration
environment.json          versions, git state, command, dataset, cases
source_histogram.json     for source matching
checkpoints/last.pt       the state to resume from
curve.csv, curve.png      loss and validation Dice
tensorboard/              the same as events
previews/                 augmented slices or pairs of views; validation slices, truth, prediction
model/                    the bundle, once the training is finished
"""

import csv
import fnmatch
import io
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

from SRCSMSegmenterLib.bundle import Description, ModelBundle, save_bundle
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.files import whole_file
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.source_matching import SourceHistogram, fit, to_integers
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import read_volume

from . import loop, pairs, pictures
from .cases import PreparedCase, default_cache, prepare_cases
from .config import CasesConfig, ScansConfig, TrainingConfig, to_dict, write_yaml
from .dataset import Case, Dataset, check_dataset, choose_cases, read_dataset

FULL_RANGE = (-1023.0, 1024.0)

LARGEST_BF16_PLANE = 8192
"""Voxels of a slice, behind the stem. The bfloat16 weight gradient of oneDNN 3.12 and 3.13 (torch
2.13 to 2.15) writes past its buffers on CPUs with AMX where slices are larger and windows are
thin, and the heap is damaged. With windows of one slice it is wrong on smaller ones too."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps done.
        finished: False where it was stopped; the same call resumes it.
        best_dice: best mean Dice on the validation cases, nan before the first validation.
        model: the bundle's folder, once finished.
    """

    steps: int
    finished: bool
    best_dice: float
    model: Path | None


def run_training(
    dataset_folder: Path,
    config: TrainingConfig,
    run_folder: Path,
    *,
    name: str | None = None,
    device: str = "auto",
    cache: Path | None = None,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
    progress: Callable[[loop.Progress], None] = lambda progress: None,
) -> RunResult:
    """Check the dataset, prepare its cases, train (or resume), and export the network.

    Args:
        dataset_folder: an nnU-Net raw dataset.
        run_folder: made where it does not exist; a stopped run in it is resumed.
        name: of the exported network; the run folder's by default.
        device: see `resolve_device`; left to `accelerate launch` where that started the process.
        cache: folder of the preprocessed cases.
        say: called on the main process with a line for the user.
        progress: called after every step.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, TrainingError, CheckpointError.
    """
    run_folder = Path(run_folder)
    accelerator = make_accelerator(device, config)
    main = accelerator.is_main_process
    tell = say if main else (lambda line: None)

    source = open_source(dataset_folder, config.data, tell, check=main)
    dataset, training, validation = source.dataset, source.training, source.validation
    rule = intensity_rule(config.data, source.modality, training)
    config = replace(config, network=replace(config.network, classes=len(dataset.labels) + 1))
    if rule.modality == "CT":
        config = replace(config, data=replace(config.data, window=rule.window))

    restyled = pairs.open_restyled(config, dataset, training)
    resumed = loop.state_to_resume(run_folder, config, (*training, *restyled), validation)
    tell(f"Preparing {len(training)} training and {len(validation)} validation cases ...")
    with accelerator.main_process_first():
        prepared = {
            case.name: case
            for case in prepare_cases(
                (*training, *validation),
                rule,
                config.data.smoothing,
                config.grid,
                cache or default_cache(),
            )
        }
    training_cases = [_resident(prepared[c.name], accelerator, len(prepared)) for c in training]
    validation_cases = [prepared[c.name] for c in validation]

    writer = None
    if main:
        write_run_folder(run_folder, config, source)
        if resumed is None:
            _write_source_histogram(run_folder, training, rule)
        pictures.augmentation_preview(
            run_folder / "previews" / "augmentation.png", training_cases, config, rule
        )
        if config.pairs.use:
            pictures.pairs_preview(
                run_folder / "previews" / "pairs.png", training_cases, restyled, config, rule
            )
        # What was logged after the checkpoint will be logged again.
        purge = resumed and resumed["progress"]["step"] + 1
        writer = SummaryWriter(run_folder / "tensorboard", purge_step=purge)

    labels = list(dataset.labels)

    def report(state: loop.Progress) -> None:
        if writer and state.curve and state.curve[-1]["step"] == state.step:
            row = curve_row(state.curve[-1], labels)
            for key, value in row.items():
                if key != "step" and value != "":
                    writer.add_scalar(key, value, state.step)
        progress(state)

    def validated(network: UNet, state: loop.Progress) -> None:
        if not main:
            return
        write_curve(run_folder, state.curve, labels)
        pictures.validation_preview(
            run_folder / "previews" / f"validation_{state.step:06d}.png",
            network,
            validation_cases[0],
            config,
            rule,
        )

    tell(
        f"Training on {accelerator.device} ({accelerator.num_processes} process"
        f"{'es' if accelerator.num_processes > 1 else ''}, {accelerator.mixed_precision})."
    )
    train = partial(pairs.train, restyled=restyled) if config.pairs.use else loop.train
    state, weights = train(
        config,
        rule,
        training_cases,
        validation_cases,
        run_folder,
        accelerator=accelerator,
        max_minutes=max_minutes,
        stop_requested=stop_requested,
        report=report,
        validated=validated,
    )
    finished = state.finished
    model = run_folder / "model" if finished else None
    if main:
        writer.close()
        write_curve(run_folder, state.curve, labels)
        if finished:
            bundle = _bundle(
                name or run_folder.resolve().name, config, dataset, rule, run_folder, state, weights
            )
            save_bundle(model, bundle, model_card(bundle))
    accelerator.wait_for_everyone()
    best = state.best_dice if state.best_dice >= 0 else math.nan
    return RunResult(state.step, finished, best, model)


@dataclass(frozen=True)
class Source:
    """The domain that is trained on.

    Attributes:
        dataset: its chosen cases, training and validation.
        modality: what the configuration or else the dataset says, "CT" or "MR".
    """

    dataset: Dataset
    modality: str
    training: list[Case]
    validation: list[Case]


def open_source(
    dataset_folder: Path,
    data: CasesConfig,
    tell: Callable[[str], None] = lambda line: None,
    check: bool = True,
) -> Source:
    """Read a dataset, divide its cases, and open every volume to check it.

    Args:
        tell: called with a line for the user.
        check: open every volume; other processes leave that to the main one.

    Raises:
        DatasetError, ConfigError, VolumeError.
    """
    dataset = choose_cases(read_dataset(dataset_folder), data.cases)
    training, validation = split(dataset.cases, data)
    tell(f"Checking {len(dataset.cases)} cases of {dataset.name} ...")
    if check:
        for warning in check_dataset(dataset):
            tell(f"Warning: {warning}")
    modality = dataset.modality if data.modality == "auto" else data.modality
    return Source(dataset, modality, training, validation)


def write_run_folder(
    run_folder: Path,
    config: Any,  # noqa: ANN401 - any configuration dataclass
    source: Source,
) -> None:
    """config.yaml, and environment.json: versions, git state, command, dataset, cases."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_yaml(run_folder / "config.yaml", config)
    _write_environment(run_folder, source.dataset, source.training, source.validation)


def make_accelerator(device: str, config: TrainingConfig) -> Accelerator:
    """`accelerator_for` the engine's network.

    Raises:
        DeviceError: unknown or absent.
        ConfigError: a precision that the device cannot train in.
    """
    accelerator = accelerator_for(device, config.optimisation.precision)
    if accelerator.device.type == "cpu" and config.optimisation.precision == "bf16":
        (i, j, slices), (stem_i, stem_j, _) = config.grid.size, config.network.stem
        plane = (i // stem_i) * (j // stem_j)
        if plane > LARGEST_BF16_PLANE or slices == 1:
            raise ConfigError(
                f"A window of {config.grid.size} voxels cannot be trained in bf16 on a CPU (see "
                "LARGEST_BF16_PLANE in training/run.py); choose optimisation.precision=fp32."
            )
    return accelerator


def accelerator_for(device: str, precision: str) -> Accelerator:
    """An accelerator on the device asked for, or as `accelerate launch` or `torchrun` set it up.

    Args:
        precision: "fp32", "bf16" or "fp16".

    Raises:
        DeviceError: unknown or absent.
        ConfigError: fp16 on a CPU.
    """
    mixed = "no" if precision == "fp32" else precision
    launched = not {"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"}.isdisjoint(os.environ)
    if not launched:
        chosen = resolve_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(chosen)
        accelerator = Accelerator(mixed_precision=mixed, cpu=chosen.type == "cpu")
    else:
        accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu")
    if accelerator.device.type == "cpu" and mixed == "fp16":
        raise ConfigError("fp16 needs a GPU; choose optimisation.precision bf16 or fp32.")
    return accelerator


def split(cases: Sequence[Case], data: CasesConfig) -> tuple[list[Case], list[Case]]:
    """Training and validation cases, by the validation patterns or else by fold.

    Raises:
        ConfigError: nothing is left to train on, or a pattern matches no case.
    """
    if data.validation:
        held_out = _chosen(cases, data.validation)
        if not held_out:
            raise ConfigError(f"No case matches data.validation {data.validation}.")
    elif data.folds:
        held_out = tuple(cases[data.fold % data.folds :: data.folds])
    else:
        held_out = ()
    training = [case for case in cases if case not in held_out]
    if not training:
        raise ConfigError("No case is left to train on; check data.validation and data.folds.")
    return training, list(held_out)


def intensity_rule(data: ScansConfig, modality: str, training: Sequence[Case]) -> IntensityRule:
    """The source's rule; a CT window that is not given is the one all images are clipped to."""
    if modality != "CT":
        return IntensityRule(modality, maximum_percentile=data.maximum_percentile)
    if data.window:
        return IntensityRule("CT", window=data.window)
    limits = set()
    for case in training:
        array = read_volume(case.image).array
        limits.add((float(array.min()), float(array.max())))
        if len(limits) > 1:
            break
    clipped = len(limits) == 1 and len(training) > 1  # a lone case says nothing
    return IntensityRule("CT", window=limits.pop() if clipped else FULL_RANGE)


def curve_row(row: dict, labels: Sequence[str]) -> dict[str, float | str]:
    """One row of curve.csv; Dice is empty between validations."""
    dice = row.get("dice")
    values = [""] * len(labels) if dice is None else dice
    mean = "" if dice is None else float(np.nanmean(dice))
    keys = ("step", "loss", "learning_rate", "gradient_norm", "seconds")
    return {
        **{key: row[key] for key in keys},
        "dice": mean,
        **{f"dice_{label}": value for label, value in zip(labels, values, strict=True)},
    }


def write_curve(run_folder: Path, curve: Sequence[dict], labels: Sequence[str]) -> None:
    """curve.csv and curve.png."""
    rows = [curve_row(row, labels) for row in curve]
    if not rows:
        return
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _write(run_folder / "curve.csv", text.getvalue())
    pictures.curve_picture(run_folder / "curve.png", rows, labels)


def model_card(bundle: ModelBundle) -> str:
    """The model card of a freshly trained network, Markdown."""
    description, training = bundle.description, bundle.description.training
    dice = "\n".join(
        f"| {label} | {value:.3f} |" for label, value in training["validation_dice"].items()
    )
    return f"""# {description.name}

{description.task}.

**Research use only. Not for diagnosis.**

- Expects: {description.expects}
- Licence: {description.licence}
- Labels: {", ".join(f"{label.value} {label.name}" for label in description.labels)}

## Training

- Data: {training["dataset"]}, {training["training_cases"]} cases for training,
  {training["validation_cases"]} for validation
- Random convolution: {training["random_convolution"]}; steps: {training["steps"]}{_pairs(training)}
- Command: `{training["command"]}`

## Source validation

Dice on the network's grid, averaged weights, the best of all validations:

| label | Dice |
| --- | --- |
{dice}
"""


def _pairs(training: dict) -> str:
    """A line of the model card for a training on pairs."""
    chosen = training["config"]["pairs"]
    if not chosen["use"]:
        return ""
    looks = "restyled by diffusion" if chosen["styled"] else "under random convolution"
    return f"\n- Pairs with slices {looks}; weight of contrast: {chosen['contrast']:g}"


def _bundle(
    name: str,
    config: TrainingConfig,
    dataset: Dataset,
    rule: IntensityRule,
    run_folder: Path,
    state: loop.Progress,
    weights: dict[str, torch.Tensor],
) -> ModelBundle:
    environment = json.loads((run_folder / "environment.json").read_text(encoding="utf-8"))
    histogram = json.loads((run_folder / "source_histogram.json").read_text(encoding="utf-8"))
    validations = [row for row in state.curve if row.get("dice")]
    best = max(validations, key=lambda row: np.nanmean(row["dice"])) if validations else None
    scores = zip(dataset.labels, best["dice"], strict=True) if best else ()
    organs = ", ".join(label.replace("_", " ") for label in dataset.labels)
    description = Description(
        name=name,
        task=f"Segments {organs}; trained on {rule.modality} alone, made for other modalities too",
        labels=tuple(segment_for(label, value) for label, value in dataset.labels.items()),
        rule=rule,
        grid=config.grid,
        smoothing=config.data.smoothing,
        expects=f"{_input_of(rule)}; other modalities with source matching on",
        licence="Weights under the terms of the training data; research use only",
        training={
            "dataset": dataset.name,
            "training_cases": len(environment["training_cases"]),
            "validation_cases": len(environment["validation_cases"]),
            "random_convolution": config.random_convolution,
            "steps": state.step,
            "command": environment["command"],
            # No number for a label that no validation case has.
            "validation_dice": {label: dice for label, dice in scores if not math.isnan(dice)},
            "config": to_dict(config),
        },
    )
    return ModelBundle(description, config.network, SourceHistogram.from_dict(histogram), weights)


def _input_of(rule: IntensityRule) -> str:
    if rule.modality == "MR":
        return "MR of the trained region, any scale of intensities"
    return f"CT in Hounsfield units, clipped to {rule.window[0]:g} to {rule.window[1]:g} HU"


def _resident(case: PreparedCase, accelerator: Accelerator, cases: int) -> PreparedCase:
    """The case in GPU memory where all cases together take under a quarter of what is free."""
    if accelerator.device.type != "cuda":
        return case
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    size = case.image.nbytes + case.labels.nbytes
    if size * cases > free / 4:
        return case
    return replace(
        case, image=case.image.to(accelerator.device), labels=case.labels.to(accelerator.device)
    )


def _chosen(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    return tuple(c for c in cases if any(fnmatch.fnmatchcase(c.name, p) for p in patterns))


def _write_source_histogram(
    run_folder: Path, training: Sequence[Case], rule: IntensityRule
) -> None:
    histogram = fit(to_integers(read_volume(case.image).array, rule) for case in training)
    _write(run_folder / "source_histogram.json", json.dumps(histogram.to_dict()))


def _write_environment(
    run_folder: Path, dataset: Dataset, training: Sequence[Case], validation: Sequence[Case]
) -> None:
    packages = ("torch", "numpy", "scipy", "SimpleITK", "monai", "accelerate", "safetensors")
    environment = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dataset": dataset.name,
        "training_cases": [case.name for case in training],
        "validation_cases": [case.name for case in validation],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version(package) for package in packages},
        "git": _git_state(),
    }
    _write(run_folder / "environment.json", json.dumps(environment, indent=2) + "\n")


def _git_state() -> dict[str, str | bool]:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
