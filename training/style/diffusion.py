# SPDX-License-Identifier: Apache-2.0
"""What the stages share: the training loop, noise, latents, prompts, and the sampler.

Every random draw of a step is a function of (seed, step, process), as in the engine's loop.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from SRCSMSegmenterLib.devices import DTYPES

from ..engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, without_precision
from ..engine.fit import TrainingError, any_process, learning_rate, seeded
from .base import BaseModel
from .config import SamplingConfig, StageConfig
from .slices import SliceSet, read_picture, write_bytes


@dataclass
class StageProgress:
    """The state of a training, plain numbers.

    Attributes:
        step: optimiser steps done.
        loss: running mean of the loss.
        curve: one row per 50 steps: step, loss, learning_rate, seconds.
    """

    step: int = 0
    loss: float = math.nan
    curve: list[dict[str, float]] = field(default_factory=list)


def fit(
    recipe: StageConfig,
    model: nn.Module,
    run_folder: Path,
    *,
    seed: int,
    identity: dict[str, Any],
    loss: Callable[[nn.Module, torch.Generator], torch.Tensor],
    preview: Callable[[int], None],
    accelerator: Accelerator,
    checkpoint_minutes: float,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    report: Callable[[StageProgress], None] = lambda progress: None,
) -> StageProgress:
    """Train what requires gradients in `model`, resuming where a run stopped.

    When it returns finished, the model's weights are those to keep: the averaged ones where the
    recipe asks for an average.

    Args:
        model: on the accelerator's device.
        run_folder: gets checkpoints/last.pt and curve.csv.
        identity: what must be equal for a checkpoint to be resumed; plain values.
        loss: called as loss(model, generator) with what stands for the model on many processes.
        preview: called with the step on the main process, with the weights to keep in the model.
        report: called after every step.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the folder holds a checkpoint of another training, or cannot be written.
    """
    started = saved = time.monotonic()
    checkpoint = run_folder / "checkpoints" / "last.pt"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    progress = StageProgress()
    average = {name: p.detach().clone() for name, p in trained.items()} if recipe.ema else {}
    state = _state_to_resume(checkpoint, identity)
    if state:
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state["parameters"][name])
            for name, p in average.items():
                p.copy_(state["average"][name])
        optimiser.load_state_dict(state["optimiser"])
        progress = StageProgress(**state["progress"])
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    if state and state["scaler"] and accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    del state

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                checkpoint,
                {
                    "identity": identity,
                    "parameters": {name: p.detach() for name, p in trained.items()},
                    "average": average,
                    "optimiser": optimiser.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "progress": vars(progress),
                },
            )
            _write_curve(run_folder / "curve.csv", progress.curve)

    def show() -> None:
        if accelerator.is_main_process:
            with torch.no_grad(), _kept_weights(trained, average):
                preview(progress.step)

    wrapped.train()
    while progress.step < recipe.steps:
        step_started = time.monotonic()
        generator = seeded(seed, progress.step, accelerator.process_index)
        mean = 0.0
        for part in range(recipe.accumulation):
            last = part == recipe.accumulation - 1
            together = nullcontext() if last else accelerator.no_sync(wrapped)
            with together, _attention(accelerator.device):
                value = loss(wrapped, generator) / recipe.accumulation
                accelerator.backward(value)
            mean += float(value.detach())
        if not math.isfinite(mean):
            raise TrainingError(
                f"The loss is not finite at step {progress.step}; lower the learning rate or "
                "choose precision bf16 or fp32, and the same command goes on from the last "
                "checkpoint."
            )
        accelerator.clip_grad_norm_(parameters, recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, progress.step)
        optimiser.step()
        optimiser.zero_grad()
        if average:
            # The first averages forget faster, or they would remember the start.
            decay = min(recipe.ema, (1 + progress.step) / (10 + progress.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), parameters, 1 - decay)

        progress.step += 1
        start = math.isnan(progress.loss)
        progress.loss = mean if start else 0.99 * progress.loss + 0.01 * mean
        finished = progress.step == recipe.steps
        if finished or progress.step % 50 == 0:
            progress.curve.append(
                {
                    "step": progress.step,
                    "loss": progress.loss,
                    "learning_rate": learning_rate(recipe, progress.step - 1),
                    "seconds": time.monotonic() - step_started,
                }
            )
        report(progress)
        late = time.monotonic() - started > max_minutes * 60
        stopping = any_process(accelerator, late or stop_requested())
        if finished or stopping or time.monotonic() - saved > checkpoint_minutes * 60:
            save()
            saved = time.monotonic()
        if finished or (recipe.preview_every and progress.step % recipe.preview_every == 0):
            show()
        if stopping:
            break
    accelerator.wait_for_everyone()
    if progress.step == recipe.steps:
        with torch.no_grad():
            for name, kept in average.items():
                trained[name].copy_(kept)
        model.eval()
    return progress


def noisy_latents(
    latents: torch.Tensor, scheduler: DDPMScheduler, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Diffuse latents to random times.

    Args:
        latents: (N, C, h, w).
        generator: on the CPU, so that every device draws the same.

    Returns:
        Noisy latents, times (N,) int64, and what the network has to predict of them.
    """
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device)
    times = torch.randint(
        scheduler.config.num_train_timesteps, (len(latents),), generator=generator
    )
    times = times.to(device)
    noisy = scheduler.add_noise(latents, noise, times)
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, times, scheduler.get_velocity(latents, noise, times)
    return noisy, times, noise


class Latents:
    """The images of slices as latents, encoded when first asked for and kept in memory.

    One at a time, so that neither batches nor stops change them. 512 pixels take 64 KiB a slice.
    """

    def __init__(self, slices: SliceSet, paths: Sequence[str], base: BaseModel) -> None:
        self._slices, self._paths, self._vae = slices, paths, base.vae
        self._known: dict[int, torch.Tensor] = {}

    def draw(self, chosen: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """(N, C, h, w) float32, drawn from the autoencoder's distribution, scaled as diffused."""
        moments = torch.stack([self._moments(n) for n in chosen]).float()
        mean, deviation = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        latents = (mean + deviation * noise) * self._vae.config.scaling_factor
        return latents.to(self._vae.device)

    @torch.no_grad()
    def _moments(self, n: int) -> torch.Tensor:
        if n not in self._known:
            picture = read_picture(self._slices, self._paths[n])
            found = encode_pictures(self._vae, picture[None])
            self._known[n] = torch.cat([found.mean, found.std], dim=1)[0].half().cpu()
        return self._known[n]


def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray) -> DiagonalGaussianDistribution:
    """(N, rows, columns) uint8 -> the distribution of their latents, not scaled."""
    return vae.encode(as_input(pictures).to(vae.device, vae.dtype)).latent_dist


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """(N, rows, columns) uint8 -> (N, 3, rows, columns) float32 in [-1, 1]."""
    grey = torch.from_numpy(pictures).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1)


def as_pictures(output: torch.Tensor) -> np.ndarray:
    """(N, 3, rows, columns) of an autoencoder -> (N, rows, columns) uint8: the mean as grey."""
    grey = output.float().mean(dim=1)
    return ((grey + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def token_ids(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """(N, tokens) int64; what is too long is cut."""
    return base.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=base.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


@torch.no_grad()
def encode_prompts(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """(N, tokens, channels): what the U-Net attends to; each distinct prompt is encoded once."""
    distinct = list(dict.fromkeys(prompts))
    encoded = base.text_encoder(token_ids(base, distinct).to(base.text_encoder.device))[0]
    return encoded[[distinct.index(prompt) for prompt in prompts]]


@torch.no_grad()
def generate(
    base: BaseModel,
    unet: UNet2DConditionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: int,
    sampling: SamplingConfig,
    control: ControlNetModel | None = None,
    conditions: torch.Tensor | None = None,
) -> np.ndarray:
    """Draw pictures, each from its own seed whatever else is in the batch.

    Args:
        base: gives autoencoder, text encoder and noise; the U-Net may be another.
        prompts, seeds: one per picture.
        size: pixels.
        control, conditions: a ControlNet, and (N, 3, size, size) in [0, 1] for it.

    Returns:
        (N, size, size) uint8.
    """
    guided = sampling.guidance != 1
    text = encode_prompts(base, [*([""] * len(prompts) if guided else []), *prompts])
    shape = (base.vae.config.latent_channels, size // base.factor, size // base.factor)
    starts = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler)
    scheduler.set_timesteps(sampling.steps)
    latents = torch.stack(starts).to(unet.device) * scheduler.init_noise_sigma
    if control is not None:
        conditions = conditions.to(unet.device)
        conditions = torch.cat([conditions] * 2) if guided else conditions
    for time_step in scheduler.timesteps:
        seen = torch.cat([latents] * 2) if guided else latents
        if control is None:
            text = text.to(unet.dtype)
            predicted = unet(seen.to(unet.dtype), time_step, text).sample.float()
        else:
            predicted = steered(
                unet, control, seen, time_step, text, conditions, sampling.control_scale
            )
        if guided:
            plain, prompted = predicted.chunk(2)
            predicted = plain + sampling.guidance * (prompted - plain)
        latents = scheduler.step(predicted, time_step, latents).prev_sample
    latents = latents / base.vae.config.scaling_factor
    return as_pictures(base.vae.decode(latents.to(base.vae.dtype)).sample)


def steered(
    unet: UNet2DConditionModel,
    control: nn.Module,
    noisy: torch.Tensor,
    times: torch.Tensor,
    text: torch.Tensor,
    conditions: torch.Tensor,
    scale: float = 1.0,
) -> torch.Tensor:
    """What a U-Net predicts with a ControlNet's residuals added, float32.

    The two may be of different precision: one is trained, or none.
    """
    dtype = next(control.parameters()).dtype
    down, middle = control(
        noisy.to(dtype),
        times,
        text.to(dtype),
        conditions.to(dtype),
        conditioning_scale=scale,
        return_dict=False,
    )
    return unet(
        noisy.to(unet.dtype),
        times,
        text.to(unet.dtype),
        down_block_additional_residuals=[residual.to(unet.dtype) for residual in down],
        mid_block_additional_residual=middle.to(unet.dtype),
    ).sample.float()


def place_frozen(base: BaseModel, device: torch.device, precision: str) -> None:
    """Put what is not trained on the device: on a GPU the autoencoder at half size but for fp32.

    In bfloat16 an autoencoder loses what the eye sees; text is encoded rarely, so in full.
    """
    half = device.type == "cuda" and precision != "fp32"
    base.vae.to(device, torch.float16 if half else torch.float32)
    base.text_encoder.to(device)


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of weights that are read and not trained."""
    if device.type == "cpu":
        return torch.float32
    return DTYPES[precision]


def sheet(columns: int, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size, (rows, columns) or (rows, columns, 3) uint8, in a grid, as RGB."""
    colour = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pictures]
    rows = [np.hstack(colour[n : n + columns]) for n in range(0, len(colour), columns)]
    return np.vstack(rows)


def _attention(device: torch.device) -> AbstractContextManager:
    """The kernel of a training's attention. PyTorch chooses, but on a processor: there the backward
    pass of its choice takes a third of a small U-Net's step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@contextmanager
def _kept_weights(trained: dict[str, nn.Parameter], average: dict[str, torch.Tensor]):  # noqa: ANN202
    """The average in place of the trained weights, for a while."""

    def exchange() -> None:
        for name, kept in average.items():
            trained[name].data, average[name] = kept, trained[name].data

    exchange()
    try:
        yield
    finally:
        exchange()


def _state_to_resume(checkpoint: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not checkpoint.exists():
        return None
    state = load_checkpoint(checkpoint)
    old, identity = (without_precision(i) for i in (state.get("identity", {}), identity))
    if old != identity:
        changed = sorted(k for k in {*identity, *old} if identity.get(k) != old.get(k))
        raise CheckpointError(
            f"{checkpoint} belongs to a training with another {' and '.join(changed)}; choose "
            "another run folder, or give the same options to resume."
        )
    return state


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    if curve:
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(curve[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(curve)
        write_bytes(path, text.getvalue().encode())
