# SPDX-License-Identifier: Apache-2.0
"""The training loop, `fit`: read it top to bottom. `train` puts the engine's network into it.

Every random draw of a step is a function of (seed, step, process), so nothing but the step has to
be remembered to go on after a stop exactly as if there had been none.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from SRCSMSegmenterLib.errors import SRCSMError
from SRCSMSegmenterLib.field_of_view import covering_centres, scan_extent
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample

from ..augment.degradation import degraded
from ..augment.regions import random_looks
from ..augment.spatial import augmented_intensities, augmented_window, cropped, draw_spatial
from ..data.cases import PreparedCase, draw_window
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint, without_precision
from .config import OptimisationConfig, Recipe, TrainingConfig, to_dict
from .losses import segmentation_loss

SCORES = ("dice", "randomised")
"""Dice of the validation cases as they are, and under random looks."""

Batch = Any
"""Whatever `draw` gives and `loss` takes."""


COSINES = {"cosine": (100, 0.0), "icm": (10, 1e-6)}
"""Schedule -> how many times as long as its warm-up it is, and its last learning rate."""


class TrainingError(SRCSMError):
    """The training cannot go on."""


class FitConfig(Protocol):
    """What `fit` reads of a configuration; a checkpoint is known by all of it."""

    optimisation: Recipe
    seed: int
    checkpoint_minutes: float
    validate_every: int


class Named(Protocol):
    """A case."""

    name: str


@dataclass
class Progress:
    """The state of a training, all of it plain numbers.

    Attributes:
        step: optimiser steps done.
        gradient_norm: running mean of the clipped gradient norm.
        best_dice: best mean of the validation scores so far, or -1.
        loss: running mean of the loss, for the display.
        curve: one row per log entry: step, loss, learning rate, gradient norm, seconds per step,
            and the validation's scores per label.
        waited: validations since the best one.
        finished: at the last step, or out of patience.
    """

    step: int
    gradient_norm: float
    best_dice: float = -1.0
    loss: float = math.nan
    curve: list[dict] | None = None
    waited: int = 0
    finished: bool = False


def train(
    config: TrainingConfig,
    rule: IntensityRule,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    run_folder: Path,
    *,
    accelerator: Accelerator,
    start: dict[str, torch.Tensor] | None = None,
    **arguments: Any,  # noqa: ANN401 - of `fit`
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Train the engine's network until its last step; see `fit` for what else it takes and gives.

    Args:
        config: with the grid, the network (its classes set) and the recipe.
        rule: the source's intensity rule.
        training, validation: cases from `prepare_cases`; validation may be empty.
        run_folder: checkpoints go to its ``checkpoints`` folder.
        start: weights of the network at the first step; None: random ones.

    Raises:
        TrainingError: the loss stays NaN however often SRC is redrawn.
        CheckpointError: the run folder holds a checkpoint of another training.
    """
    recipe, device = config.optimisation, accelerator.device
    torch.manual_seed(config.seed)
    network = UNet(config.network).to(device)
    if start:
        network.load_state_dict(start)
    optimiser = make_optimiser(recipe, network, network.kernels())

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        images, labels = batch
        with accelerator.autocast():
            looks = random_looks(
                images, labels, config.random_convolution, config.regions, generator
            )
            looks = degraded(looks, config.degradation, generator)
        targets = output_labels(labels, config.network.classes)
        return segmentation_loss(model(looks), targets, recipe.dice, recipe.cross_entropy)

    return fit(
        config,
        network,
        optimiser,
        run_folder,
        training,
        validation,
        draw=lambda generator: draw_batch(training, config, rule, generator, device),
        loss=loss,
        validate=lambda average: validation_scores(average, validation, config, rule, accelerator),
        accelerator=accelerator,
        **arguments,
    )


def mean_score(row: dict) -> float:
    """Average the scores of a validation, a row of `Progress.curve`, over labels and kinds."""
    return float(np.mean([np.nanmean(row[kind]) for kind in SCORES if kind in row]))


def output_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Call labels that are regions only, from `classes` on, background."""
    return labels.masked_fill(labels >= classes, 0)


def make_optimiser(
    recipe: OptimisationConfig, network: nn.Module, kernels: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """Adam with L2 on the kernels, or AdamW with weight decay on all parameters."""
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
        )
    others = [p for p in network.parameters() if not any(p is kernel for kernel in kernels)]
    return torch.optim.Adam(
        [{"params": kernels, "weight_decay": recipe.l2}, {"params": others}],
        lr=recipe.learning_rate,
    )


def fit(
    config: FitConfig,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_folder: Path,
    training: Sequence[Named],
    validation: Sequence[Named],
    *,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[[nn.Module, Batch, torch.Generator], torch.Tensor],
    validate: Callable[[nn.Module], dict[str, list[float]]],
    accelerator: Accelerator,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    validated: Callable[[nn.Module, Progress], None] = lambda average, progress: None,
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Train until the last step, `max_minutes` or `stop_requested`, resuming where a run stopped.

    Args:
        config: recipe, seed, and when to validate and to save.
        network: on the accelerator's device; what is trained, averaged and saved.
        optimiser: of its parameters.
        run_folder: checkpoints go to its ``checkpoints`` folder.
        training, validation: cases, whose names a checkpoint is known by.
        draw: what a step sees, before random convolution, from the step's generator.
        loss: of a batch, random convolution included; drawn again where it is not finite.
        validate: one or all of `SCORES`, Dice per label of the averaged network; the best weights
            are those with the best `mean_score`. Not asked without validation cases.
        report: called after every step on every process.
        validated: called after every validation with the averaged network, on every process.

    Returns:
        The progress, and the averaged weights: of the best validation when there are validations,
        else of the last step.

    Raises:
        TrainingError: the loss stays NaN however often random convolution is redrawn.
        CheckpointError: the run folder holds a checkpoint of another training.
    """
    recipe = config.optimisation
    device, started = accelerator.device, time.monotonic()
    average = copy.deepcopy(network).eval().requires_grad_(False)
    progress = Progress(step=0, gradient_norm=recipe.clip_start, curve=[])
    best_weights = average.state_dict()

    state = state_to_resume(run_folder, config, training, validation)
    if state:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        best_weights = {name: value.to(device) for name, value in state["best"].items()}
        progress = Progress(**state["progress"])

    model, optimiser = accelerator.prepare(network, optimiser)
    if state and state["scaler"] and accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                _checkpoint(run_folder),
                {
                    "config": _identity(config),
                    "cases": _names(training, validation),
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "best": best_weights,
                    "progress": vars(progress),
                },
            )

    saved = time.monotonic()
    unusable = 0
    parameters = list(network.parameters())
    model.train()
    while not progress.finished:
        step_started = time.monotonic()
        generator = seeded(config.seed, progress.step, accelerator.process_index)
        batch = draw(generator)
        for _ in range(recipe.nan_redraws + 1):
            value = loss(model, batch, generator)
            # All processes together, as some losses need all of them.
            if not any_process(accelerator, not torch.isfinite(value)):
                break
        else:
            raise TrainingError(
                f"The loss is NaN at step {progress.step} after {recipe.nan_redraws} redraws of "
                "the random convolution; lower optimisation.learning_rate."
            )

        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, progress.step)
        accelerator.backward(value)
        accelerator.unscale_gradients()
        limit = recipe.clip_factor * progress.gradient_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        unusable = 0 if math.isfinite(norm) else unusable + 1
        if unusable > recipe.nan_redraws:
            raise TrainingError(
                f"The gradient was not finite in the {unusable} steps up to step {progress.step}: "
                "nothing is learnt; try optimisation.precision=fp32."
            )
        if math.isfinite(norm):
            progress.gradient_norm += recipe.clip_rate * (min(norm, limit) - progress.gradient_norm)
        # Other steps would spoil the weights; the scaler of fp16 skips them itself, and learns.
        if math.isfinite(norm) or accelerator.scaler:
            optimiser.step()
        optimiser.zero_grad()
        _update_average(average, network, recipe.ema, progress.step)

        progress.step += 1
        value = float(value.detach())
        progress.loss = value if math.isnan(progress.loss) else 0.99 * progress.loss + 0.01 * value
        progress.finished = progress.step == recipe.steps
        due = progress.finished or _due(progress.step, config.validate_every)
        if due or progress.step % 50 == 0:
            row = {
                "step": progress.step,
                "loss": progress.loss,
                "learning_rate": learning_rate(recipe, progress.step - 1),
                "gradient_norm": progress.gradient_norm,
                "seconds": time.monotonic() - step_started,
            }
            if validation and due:
                row |= validate(average)
                mean = mean_score(row)
                progress.waited += 1
                if mean > progress.best_dice:
                    progress.best_dice, progress.waited = mean, 0
                    best_weights = copy.deepcopy(average.state_dict())
                progress.finished |= progress.waited == recipe.patience > 0
            progress.curve.append(row)
            if "dice" in row:
                validated(average, progress)
        report(progress)

        late = time.monotonic() - started > max_minutes * 60
        stopping = any_process(accelerator, late or stop_requested())
        unsaved = time.monotonic() - saved
        if progress.finished or stopping or unsaved > config.checkpoint_minutes * 60:
            save()
            saved = time.monotonic()
        if stopping:
            break
    accelerator.wait_for_everyone()
    return progress, best_weights if validation else average.state_dict()


def state_to_resume(
    run_folder: Path,
    config: FitConfig,
    training: Sequence[Named],
    validation: Sequence[Named],
) -> dict | None:
    """The last checkpoint of a run folder, or None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is of another configuration or of other cases.
    """
    path = _checkpoint(run_folder)
    if not path.exists():
        return None
    state = load_checkpoint(path)
    for what, key, wanted in (
        ("another configuration", "config", _identity(config)),
        ("other cases", "cases", _names(training, validation)),
    ):
        if without_precision(state.get(key, wanted)) != without_precision(wanted):
            raise CheckpointError(
                f"{path} belongs to a training with {what}; choose another run folder, or give "
                "the same dataset and options to resume."
            )
    return state


def draw_batch(
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented, normalised windows, before random convolution.

    Returns:
        Images (batch, 1, K, J, I) float32 and labels (batch, K, J, I) int64 on `device`.
    """
    images, labels = [], []
    for _ in range(config.optimisation.batch):
        case = cases[int(torch.randint(len(cases), (), generator=generator))]
        window = draw_window(case, config.grid, config.data.foreground, generator)
        draw = draw_spatial(config.augmentation, generator)
        image, label = augmented_window(
            case.image,
            case.labels,
            case.geometry,
            window,
            draw,
            case.outside,
            device,
        )
        image, label = cropped(image, label, case.outside, config.augmentation, generator)
        images.append(image)
        labels.append(label)
    windows = torch.stack(images)
    return augmented_intensities(windows, rule, config.augmentation, generator), torch.stack(labels)


def validation_scores(
    network: UNet,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    accelerator: Accelerator,
) -> dict[str, list[float]]:
    """Compute `validation_dice` and, if the training draws regions, "randomised" Dice as well.

    The weights that hold under random looks of the source hold on other domains, which the source
    as it is does not tell (PALETTE).
    """
    scores = {"dice": validation_dice(network, cases, config, rule, accelerator)}
    if config.regions.share and config.random_convolution != "off":
        scores["randomised"] = validation_dice(network, cases, config, rule, accelerator, True)
    return scores


@torch.no_grad()
def validation_dice(
    network: UNet,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    accelerator: Accelerator,
    randomised: bool = False,
) -> list[float]:
    """Compute `mean_dice` of the foreground on the network's grid, without augmentation.

    Args:
        randomised: every window gets random regions and looks, the same at every validation.
    """
    classes = config.network.classes
    everywhere = replace(config.regions, share=1.0)
    sums = torch.zeros(len(cases), 2, classes, device=accelerator.device)
    for index in range(accelerator.process_index, len(cases), accelerator.num_processes):
        generator = torch.Generator().manual_seed(index)
        for image, labels in case_windows(cases[index], config.grid, accelerator.device):
            image = normalise(image[None], rule)
            if randomised:
                mode = config.random_convolution
                image = random_looks(image, labels[None], mode, everywhere, generator)
            labels = output_labels(labels, classes)
            with accelerator.autocast():
                prediction = network(image)[0].argmax(0)
            for row, chosen in ((0, labels[prediction == labels]), (1, prediction), (1, labels)):
                sums[index, row] += torch.bincount(chosen.flatten(), minlength=classes)
    return mean_dice(sums, accelerator)[1:]


def mean_dice(sums: torch.Tensor, accelerator: Accelerator) -> list[float]:
    """Mean Dice per label over cases that were dealt out to the processes.

    Args:
        sums: (cases, 2, labels), 0 where another process has the case: size of the overlap, and of
            prediction and truth together.

    Returns:
        NaN where no case has the label.
    """
    overlap, total = accelerator.reduce(sums).unbind(1)
    return torch.where(total > 0, 2 * overlap / total, torch.nan).nanmean(0).tolist()


def case_windows(case: PreparedCase, grid: GridSpec, device: torch.device):  # noqa: ANN201
    """Yield (image (1, K, J, I), labels (K, J, I)) of the windows that cover a case."""
    scan = scan_extent(case.geometry, grid)
    for centre in covering_centres(case.body, scan, grid, overlap=0.0):
        window = grid.placed(centre, case.directions)
        where = points(index_map(window, case.geometry), window.size, device)
        lookup = look_up(where, case.geometry.shape)
        image = sample(case.image, lookup, outside=case.outside)
        yield image, sample(case.labels, lookup, mode="nearest").long()[0]


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    part, lowest = COSINES[recipe.schedule]
    warm_up = max(1, recipe.steps // part)
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, recipe.steps - warm_up)
    return lowest + (recipe.learning_rate - lowest) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    # The first averages forget faster, or they would remember the random start.
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def seeded(seed: int, step: int, process: int) -> torch.Generator:
    """The CPU generator of a step; also seeds torch's own, which dropout uses."""
    state = np.random.SeedSequence((seed, step, process)).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0] >> 1))
    return torch.Generator().manual_seed(int(state[1] >> 1))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checkpoint(run_folder: Path) -> Path:
    return Path(run_folder) / "checkpoints" / "last.pt"


def _names(*groups: Sequence[Named]) -> list[list[str]]:
    return [[case.name for case in group] for group in groups]


def _identity(config: FitConfig) -> dict:
    """What must be equal for a checkpoint to be resumed."""
    identity = to_dict(config)
    del identity["checkpoint_minutes"]
    return identity
