# SPDX-License-Identifier: Apache-2.0
"""Training of a stage: its run, and `engine.fit` with the optimiser that all stages share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..engine.accelerator import Computing
from ..engine.fit import Batch, fit
from ..engine.limits import Limits
from ..engine.progress import Progress
from ..engine.run_folder import Run, open_run
from .config import StageConfig, StyleConfig


@dataclass(frozen=True)
class StageFit:
    """The settings that `fit` reads; see `run_folder.FitConfig`."""

    optimisation: StageConfig
    seed: int
    checkpoint_minutes: float
    validate_every: int


def open_stage(
    folder: Path,
    config: StyleConfig,
    recipe: StageConfig,
    computing: Computing,
    *,
    identity: dict[str, Any],
    tell: Callable[[str], None],
) -> Run:
    """Open the run of a stage.

    Args:
        identity: plain values that must be equal for a checkpoint to be resumed.

    Raises:
        CheckpointError: see `open_run`.
    """
    settings = StageFit(recipe, config.seed, config.checkpoint_minutes, recipe.preview_every)
    return open_run(folder, settings, computing, identity=identity, tell=tell)


def fit_stage(
    run: Run,
    network: nn.Module,
    *,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    preview: Callable[[int], None],
    limits: Limits,
) -> Progress:
    """Train the parameters of a network that require gradients by AdamW; see `fit`.

    Args:
        run: of `open_stage`.
        loss: draws nothing.
        preview: called with the step on the main process; the network has the weights to keep then.

    Raises:
        TrainingError, CheckpointError: see `fit`.
    """
    recipe = run.config.optimisation
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )

    def show(network: nn.Module, progress: Progress) -> None:
        if run.main:
            preview(progress.step)

    with attention_kernel(run.accelerator.device):
        return fit(
            run,
            network,
            optimiser,
            draw=draw,
            loss=lambda model, batch, generator: loss(model, batch),
            preview=show,
            limits=limits,
        )


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Choose the kernel of a training's attention.

    On a processor the backward pass of PyTorch's own choice takes a third of a small U-Net's step.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
