# SPDX-License-Identifier: Apache-2.0
"""A training run from a dataset to a model bundle, and the folder that it writes.

config.yaml               the full configuration
environment.json          versions, git state, command, device, precision, dataset, cases
source_histogram.json     for source matching
signature.json            name, author and terms of the model that were given
checkpoints/last.pt       the state to resume from
curve.csv, curve.png      loss and validation Dice
tensorboard/              curve, previews and configuration, unless another logger is chosen
previews/                 augmented slices or pairs of views; validation slices and the worst one
model/                    the bundle, once the training is finished
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle, save_bundle
from SRCSMSegmenterLib.models.catalogue import find_model
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.organ_positions import learn_offsets
from SRCSMSegmenterLib.schema import nearest

from ..data.cases import PreparedCase, airless_outputs, organ_centroids
from ..engine.accelerator import Computing, accelerator_for
from ..engine.config import reading_start
from ..engine.limits import Limits
from ..engine.loggers import Logger, check_logger, open_logger
from ..engine.progress import Progress
from ..engine.run_folder import (
    Run,
    RunResult,
    open_case_run,
    write_text,
)
from ..engine.source_domain import Source, intensity_rule, open_source
from . import pairs, previews, training
from .config import TrainingConfig
from .export import Signature, kept_signature, make_bundle, model_card
from .restyled import RestyledSet, open_restyled


def run_training(
    dataset_folder: Path,
    config: TrainingConfig,
    run_folder: Path,
    *,
    signature: Signature = Signature(),  # noqa: B008 - frozen
    device: str = "auto",
    cache: Path | None = None,
    extend: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> RunResult:
    """Check the dataset, prepare its cases, train (or resume), and export the network.

    Args:
        dataset_folder: an nnU-Net raw dataset, or a packed one.
        run_folder: made if it does not exist; a stopped run in it is resumed.
        signature: of the exported network; its name is the run folder's by default. What is not
            given is that of an earlier call for the run.
        device: see `resolve_device`; left to `accelerate launch` if that started the process.
        cache: folder of the preprocessed cases.
        extend: a training in the run folder goes on to the larger `optimisation.steps`.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, TrainingError, CheckpointError,
        BundleError.
    """
    check_logger(limits.logger)
    computing = make_accelerator(device, config)
    tell = computing.introduce(limits.say)
    source = open_source(dataset_folder, config.data, tell, check=computing.main)
    rule = intensity_rule(config.data, source)
    order = label_order(source.dataset.labels, config.data.outputs)
    labels = list(config.data.outputs or source.dataset.labels)
    config = completed(config, rule, labels)
    start = start_weights(config, labels) if config.start else None
    if config.pairs.use and config.pairs.styled:
        source.require_scans("A training with pairs.styled")
    restyled = open_restyled(config, source.dataset, source.training)
    run = open_case_run(
        run_folder,
        config,
        computing,
        source,
        tell=tell,
        labels=labels,
        also=[one.name for one in restyled],
        extend=extend,
    )
    if run.main and run.checkpoint is None:
        histogram = json.dumps(source.histogram(rule).to_dict())
        write_text(run.folder / "source_histogram.json", histogram)
    if run.main:
        signature = kept_signature(run.folder, signature)
    cases = _prepared(run, source, rule, order, cache)

    with open_logger(run, limits.logger) as logger:
        if run.main:
            _preview_training(run, cases[0], restyled, rule, logger)

        def report(progress: Progress) -> None:
            logger.log(progress)
            limits.report(progress)

        train = partial(pairs.train, restyled=restyled) if config.pairs.use else training.train
        progress, weights = train(
            run,
            rule,
            *cases,
            start=start,
            preview=partial(_preview_validation, run, cases[1], rule, logger),
            limits=replace(limits, report=report),
        )

    def save(folder: Path) -> None:
        signed = replace(signature, name=signature.name or own_name(run.folder))
        bundle = make_bundle(signed, run, source, rule, progress, weights)
        bundle = _with_anatomy(bundle, cases[0], rule, labels)
        save_bundle(folder, bundle, model_card(bundle))

    return run.end(progress, run.folder / "model", save)


def _with_anatomy(
    bundle: ModelBundle, cases: Sequence[PreparedCase], rule: IntensityRule, labels: Sequence[str]
) -> ModelBundle:
    """Add what the training cases show: the labels without air, and where each organ lies."""
    airless = tuple(labels[value - 1] for value in airless_outputs(cases, rule, len(labels)))
    return replace(
        bundle,
        description=replace(bundle.description, airless=airless),
        offsets=learn_offsets(organ_centroids(cases, len(labels))),
    )


def completed(config: TrainingConfig, rule: IntensityRule, labels: Sequence[str]) -> TrainingConfig:
    """Fill in what the source decides: the number of outputs, and the CT window."""
    config = replace(config, network=replace(config.network, classes=len(labels) + 1))
    if rule.modality == "CT":
        config = replace(config, data=replace(config.data, window=rule.window))
    return config


def _prepared(
    run: Run, source: Source, rule: IntensityRule, order: tuple[int, ...], cache: Path | None
) -> tuple[list[PreparedCase], list[PreparedCase]]:
    """Prepare the training and the validation cases."""
    config, count = run.config, len(source.training)
    run.tell(f"Preparing {count} training and {len(source.validation)} validation cases ...")
    with run.accelerator.main_process_first():
        prepared = source.prepared(
            rule, config.data.smoothing, config.grid, cache, order, len(run.labels)
        )
    resident = [_resident(case, run.accelerator, len(prepared)) for case in prepared[:count]]
    return resident, prepared[count:]


def _preview_training(
    run: Run,
    cases: Sequence[PreparedCase],
    restyled: Sequence[RestyledSet],
    rule: IntensityRule,
    logger: Logger,
) -> None:
    """Write and log pictures of augmented windows and of pairs."""
    folder, config = run.folder / "previews", run.config
    paths = [folder / "augmentation.png"]
    previews.augmentation_preview(paths[0], cases, config, rule)
    if config.pairs.use:
        paths.append(folder / "pairs.png")
        previews.pairs_preview(paths[1], cases, restyled, config, rule)
    for path in paths:
        logger.picture(path, 0)


def _preview_validation(
    run: Run,
    cases: Sequence[PreparedCase],
    rule: IntensityRule,
    logger: Logger,
    network: UNet,
    progress: Progress,
) -> None:
    """Write and log pictures of the first validation case and of the worst validation slice."""
    if not run.main:
        return
    folder = run.folder / "previews"
    paths = [folder / f"{kind}_{progress.step:06d}.png" for kind in ("validation", "worst")]
    previews.validation_preview(paths[0], network, cases[0], run.config, rule)
    previews.worst_preview(paths[1], network, cases, run.config, rule)
    for path in paths:
        logger.picture(path, progress.step)


def label_order(labels: dict[str, int], outputs: Sequence[str]) -> tuple[int, ...]:
    """Order the label values of a dataset: background, the outputs, and all others behind them.

    Args:
        labels: name -> value of the dataset.
        outputs: names in the order that the network gives them; () takes all as they are.

    Raises:
        ConfigError: a name that the dataset lacks, or one twice.
    """
    for name in outputs:
        if name not in labels:
            raise ConfigError(f'data.outputs: no label "{name}"{nearest(name, labels)}.')
    if len(set(outputs)) < len(outputs):
        raise ConfigError(f"data.outputs names a label twice: {', '.join(outputs)}.")
    others = [name for name in labels if name not in outputs]
    return (0, *(labels[name] for name in (*outputs, *others)))


def start_weights(config: TrainingConfig, labels: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read the weights that a training starts from, and fit their head to other outputs.

    The head's outputs are matched by the names of their labels; a label that the trained network
    lacks keeps random weights.

    Args:
        labels: of the outputs, in their order.

    Raises:
        ConfigError: `config.start` names no trained network, or one of another shape.
    """
    with reading_start():
        bundle = load_bundle(find_model(config.start))
    wanted = replace(config.network, classes=bundle.network.classes, dropout=bundle.network.dropout)
    if bundle.network != wanted:
        raise ConfigError(
            f"start: the network of {config.start} has another shape, {bundle.network}, than "
            f"{wanted}."
        )
    torch.manual_seed(config.seed)
    weights = UNet(config.network).state_dict()
    known = {"background": 0} | {label.name: label.value for label in bundle.description.labels}
    rows = [known.get(name) for name in ("background", *labels)]
    for name, value in bundle.weights.items():
        if name.startswith("head."):
            outputs = value.float().unflatten(0, (bundle.network.classes, -1))
            head = weights[name].unflatten(0, (len(rows), -1))
            for row, old in enumerate(rows):
                if old is not None:
                    head[row] = outputs[old]
        else:
            weights[name] = value.float()
    return weights


def make_accelerator(device: str, config: TrainingConfig) -> Computing:
    """Make the accelerator of a training; see `accelerator_for`.

    Raises:
        DeviceError: unknown or absent.
        ConfigError: a precision that the device cannot train in.
    """
    (i, j, slices), (stem_i, stem_j, _) = config.grid.size, config.network.stem
    plane = math.inf if slices == 1 else (i // stem_i) * (j // stem_j)
    return accelerator_for(device, config.optimisation.precision, plane=plane)


def _resident(case: PreparedCase, accelerator: Accelerator, cases: int) -> PreparedCase:
    """Move the case to GPU memory if all cases together take under a quarter of what is free."""
    if accelerator.device.type != "cuda":
        return case
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    size = case.image.nbytes + case.labels.nbytes
    if size * cases > free / 4:
        return case
    return replace(
        case, image=case.image.to(accelerator.device), labels=case.labels.to(accelerator.device)
    )
