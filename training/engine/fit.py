# SPDX-License-Identifier: Apache-2.0
"""The training loop of all networks: `fit`, to be read from top to bottom.

Every random draw of a step is a function of (seed, step, process), so a stopped training needs
nothing but its step and its state to go on exactly as if it had not been stopped.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from SRCSMSegmenterLib.errors import SRCSMError

from .checkpoint import CheckpointError
from .config import SCHEDULES, StepsConfig
from .limits import Limits
from .progress import Progress, mean_score
from .run_folder import Run

Batch = Any
"""Whatever `draw` returns and `loss` takes."""

Losses = torch.Tensor | Mapping[str, torch.Tensor]
"""A loss, or the parts by name whose sum it is."""

LOG_EVERY = 50
"""Most steps between two rows of the curve; of a short training, 1 % of its steps."""

MOST_SKIPPED = 100
"""Steps in a row that a training may skip because their gradient is not finite."""


class TrainingError(SRCSMError):
    """A training that cannot go on."""


def fit(
    run: Run,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[[nn.Module, Batch, torch.Generator], Losses],
    validate: Callable[[nn.Module], dict[str, list[float]]] | None = None,
    preview: Callable[[nn.Module, Progress], None] = lambda network, progress: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Progress:
    """Train until the last step or a limit, resuming from the checkpoint of the run.

    When it returns, the network holds the weights to keep, in evaluation mode: those of the best
    validation if there are validations, else the averaged ones, or the last ones if the recipe has
    no average.

    Args:
        network: on the accelerator's device; its parameters that require gradients are trained,
            averaged and saved.
        optimiser: of those parameters.
        draw: returns the batch of a forward pass, from the step's generator.
        loss: called as loss(model, batch, generator); it applies random convolution. The curve
            shows its parts one by one. Called again if the loss is not finite, at most
            `nan_redraws` times.
        validate: returns one or all of `SCORES`, Dice per label of the averaged network; the best
            weights are those with the highest `mean_score`.
        preview: called after every validation, or when one would be due, with the averaged network,
            on every process.

    Raises:
        TrainingError: the loss or the gradient stays not finite.
        CheckpointError: the checkpoint cannot be written.
    """
    config, recipe, accelerator = run.config, run.config.optimisation, run.accelerator
    model, optimiser = accelerator.prepare(network, optimiser)
    state = State.of(network, optimiser, accelerator.scaler, recipe)
    state.load(run.take_checkpoint())
    progress = state.progress
    time_is_up, saved = limits.start(), time.monotonic()

    def show() -> None:
        run.write_curve(progress)
        with state.averaged():
            preview(network, progress)

    def is_due_now() -> bool:
        return progress.finished or is_due(progress.step, config.validate_every)

    if progress.step and is_due_now():
        show()  # the process may have been killed before it could
    model.train()
    laps: list[float] = []
    while not progress.finished:
        started = time.monotonic()
        generator = seeded(config.seed, progress.step, accelerator.process_index)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, progress.step)
        losses = add_gradients(run, model, draw, loss, generator, progress.step)
        take_step(state, recipe, accelerator)
        state.update_average(recipe.ema)
        progress.count_step(losses, recipe.steps)
        laps.append(time.monotonic() - started)

        due = is_due_now()
        if due or is_due(progress.step, log_every(recipe.steps)):
            row = log_row(progress, recipe, sum(laps) / len(laps))
            laps.clear()
            if due and validate:
                with state.averaged():
                    row |= validate(network)
                    if progress.count_validation(mean_score(row), recipe.patience):
                        state.best = copied(trained_state(network))
            progress.curve.append(row)
        limits.report(progress)

        stopping = any_process(accelerator, time_is_up())
        unsaved = time.monotonic() - saved
        if progress.finished or stopping or unsaved > 60 * config.checkpoint_minutes:
            run.save(state.to_checkpoint())
            saved = time.monotonic()
        if due:
            show()
        if stopping:
            break
    accelerator.wait_for_everyone()
    state.load_final_weights()
    return progress


@dataclass(eq=False)
class State:
    """The state of a training: everything that a checkpoint holds.

    Attributes:
        average: running average of the trained parameters by name; empty without an average.
        best: weights of the best validation by name; empty before the first one.
        skipped: steps in a row up to now whose gradient was not finite.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    average: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    progress: Progress
    skipped: int = 0

    @classmethod
    def of(
        cls,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        recipe: StepsConfig,
    ) -> "State":
        """Make the state before the first step."""
        average = copied(trained_parameters(network)) if recipe.ema else {}
        progress = Progress(step=0, gradient_norm=recipe.clip_start)
        return cls(network, optimiser, scaler, average, {}, progress)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return tensors and plain values, ready for `save_checkpoint`."""
        return {
            "network": trained_state(self.network),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "best": self.best,
            "progress": vars(self.progress),
        }

    @torch.no_grad()
    def load(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from what `to_checkpoint` returned; None: from the beginning.

        Raises:
            CheckpointError: it holds something else.
        """
        if checkpoint is None:
            return
        try:
            self._load(checkpoint)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"The checkpoint does not hold the state of this training ({error}); delete "
                "checkpoints/last.pt to start this run anew."
            ) from error

    def _load(self, checkpoint: dict[str, Any]) -> None:
        trained = trained_state(self.network).keys()
        for kept in (checkpoint["network"], checkpoint["best"] or checkpoint["network"]):
            if kept.keys() != trained:  # a frozen network's other weights are left out
                raise ValueError("other weights than those of the network")
        if checkpoint["average"].keys() != self.average.keys():
            raise ValueError("an average of other weights")
        progress = Progress(**checkpoint["progress"])
        if type(progress.step) is not int or progress.step < 0:
            raise ValueError(f"{progress.step!r} steps")
        self.network.load_state_dict(checkpoint["network"], strict=False)
        for name, average in self.average.items():
            average.copy_(checkpoint["average"][name])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        if checkpoint["scaler"] and self.scaler:
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.best, self.progress = checkpoint["best"], progress

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the weights of the step that was just taken."""
        if self.average:
            # The first averages forget faster, or they would remember the random start.
            decay = min(decay, (1 + self.progress.step) / (10 + self.progress.step))
            weights = list(trained_parameters(self.network).values())
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network its averaged weights for a while, in evaluation mode, no gradients."""
        self._exchange()
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train()
            self._exchange()

    def load_final_weights(self) -> None:
        """Give the network the weights to keep: the best, the averaged or the last ones."""
        if self.best:
            self.network.load_state_dict(self.best, strict=False)
        else:
            self._exchange()
        self.network.eval()

    def _exchange(self) -> None:
        parameters = trained_parameters(self.network)
        for name, average in self.average.items():
            parameters[name].data, self.average[name] = average, parameters[name].data


def add_gradients(
    run: Run,
    model: nn.Module,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[[nn.Module, Batch, torch.Generator], Losses],
    generator: torch.Generator,
    step: int,
) -> dict[str, float]:
    """Add up the gradients of a step's forward passes, and return the means of their losses.

    Returns:
        "loss" and, if the loss has parts, "loss_" and the name of each.

    Raises:
        TrainingError: a loss stays not finite.
    """
    recipe, accelerator = run.config.optimisation, run.accelerator
    means: dict[str, float] = {}
    for part in range(1, recipe.accumulation + 1):
        batch = draw(generator)
        # Processes exchange the gradients of all passes in the last one.
        last = part == recipe.accumulation
        with nullcontext() if last else accelerator.no_sync(model):
            for _ in range(recipe.nan_redraws + 1):
                losses = loss(model, batch, generator)
                parts = losses if isinstance(losses, Mapping) else {}
                value = (sum(parts.values()) if parts else losses) / recipe.accumulation
                # All processes together, as some losses need all of them.
                if not any_process(accelerator, not torch.isfinite(value)):
                    break
            else:
                redraws = recipe.nan_redraws
                after = f" after {redraws} redraws of the random convolution" if redraws else ""
                raise TrainingError(
                    f"The loss is not finite at step {step}{after}; lower the learning rate or "
                    "choose precision fp32, and the same command goes on from the last checkpoint."
                )
            accelerator.backward(value)
        means["loss"] = means.get("loss", 0.0) + float(value.detach())
        for name, tensor in parts.items():
            share = float(tensor.detach()) / recipe.accumulation
            means[f"loss_{name}"] = means.get(f"loss_{name}", 0.0) + share
    return means


def take_step(state: State, recipe: StepsConfig, accelerator: Accelerator) -> None:
    """Clip the gradients, take an optimiser step with them, and forget them.

    A step whose gradient is not finite would spoil the weights and is skipped.

    Raises:
        TrainingError: too many steps in a row were skipped.
    """
    progress = state.progress
    accelerator.unscale_gradients(state.optimiser)
    limit = recipe.gradient_limit(progress.gradient_norm)
    parameters = list(trained_parameters(state.network).values())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    finite = math.isfinite(norm)
    if finite:
        progress.gradient_norm += recipe.clip_rate * (min(norm, limit) - progress.gradient_norm)
    # The scaler of fp16 skips such steps itself, and learns from them.
    if finite or state.scaler:
        state.optimiser.step()
    state.optimiser.zero_grad()
    state.skipped = 0 if finite else state.skipped + 1
    if state.skipped > MOST_SKIPPED:
        raise TrainingError(
            f"The gradient was not finite in the {state.skipped} steps up to step {progress.step}: "
            "nothing is learnt; try precision fp32."
        )


def log_every(steps: int) -> int:
    """Return the steps between two rows of the curve of a training of so many steps."""
    return min(LOG_EVERY, max(1, steps // 100))


def log_row(progress: Progress, recipe: StepsConfig, seconds: float) -> dict[str, Any]:
    """Return the row of the curve for the step that was just counted.

    Args:
        seconds: mean of the steps since the last row, without validations and previews.
    """
    return {
        "step": progress.step,
        "loss": progress.loss,
        **progress.parts,
        "learning_rate": learning_rate(recipe, progress.step - 1),
        "gradient_norm": progress.gradient_norm,
        "seconds": seconds,
    }


def learning_rate(recipe: StepsConfig, step: int) -> float:
    """Return the learning rate of a step."""
    if (cosine := SCHEDULES[recipe.schedule]) is None:
        return recipe.learning_rate
    part, lowest = cosine
    warm_up = max(1, recipe.steps // part)
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, recipe.steps - warm_up)
    return lowest + (recipe.learning_rate - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def trained_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that require gradients and all buffers, by name."""
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors by name, without their gradients."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def seeded(seed: int, step: int, process: int) -> torch.Generator:
    """Make the CPU generator of a step; also seed torch's own, which dropout uses."""
    state = np.random.SeedSequence((seed, step, process)).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0] >> 1))
    return torch.Generator().manual_seed(int(state[1] >> 1))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Tell whether the flag is set on any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def is_due(step: int, every: int) -> bool:
    """Tell whether an event of every so many steps is due after this one; never if 0."""
    return every > 0 and step % every == 0
