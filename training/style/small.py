# SPDX-License-Identifier: Apache-2.0
"""Training of a small base model, on a processor and on slices in several styles.

The base has the parts and the folder layout of Stable Diffusion 1.x, so that the other stages read
it like any other base: an autoencoder, a U-Net that attends to the prompt, and a CLIP text encoder
with a vocabulary made from the prompts file. Text encoder and U-Net are trained together. The noise
leaves no signal at its last step, and the U-Net predicts velocity (Lin et al., "Common diffusion
noise schedules and sample steps are flawed", WACV 2024): otherwise all pictures would be equally
bright on average, and brightness is half of a style.

Beside the parts, the folder keeps training/autoencoder and training/denoiser: checkpoints, curves,
environments and previews.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

from SRCSMSegmenterLib.errors import ConfigError, DatasetError

from ..engine.accelerator import accelerator_for
from ..engine.config import to_dict
from ..engine.limits import Limits
from ..engine.progress import Progress
from ..engine.run_folder import Run
from .base import BaseModel
from .config import SamplingConfig, StyleConfig
from .diffusion import (
    Latents,
    Noisy,
    as_input,
    as_pictures,
    encode_pictures,
    generate,
    noisy_latents,
    sheet,
    token_ids,
)
from .prompts import Prompts, read_prompts
from .slices import (
    SliceSet,
    StageResult,
    manifest_sha256,
    read_picture,
    read_slices,
    write_picture,
)
from .small_base import Autoencoding, Prompted, build_base, save_base
from .stage import fit_stage, open_stage


def train_base(
    slice_folders: Sequence[Path],
    folder: Path,
    config: StyleConfig,
    *,
    device: str = "auto",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Train the small base, or resume its training: first the autoencoder, then the rest.

    Args:
        slice_folders: sets of one size whose slices' styles all have prompts. Never give the
            target domain of an experiment.

    Raises:
        DatasetError, ConfigError, DeviceError, TrainingError, CheckpointError, StyleError.
    """
    started = time.monotonic()
    first, second = config.base.autoencoder, config.base.denoiser
    computing = accelerator_for(device, second.precision, "base", first.crop**2)
    sets = [read_slices(slice_folder) for slice_folder in slice_folders]
    prompts = read_prompts(config.prompts)
    slices = _together(sets)
    tell = computing.introduce(limits.say)
    for style in _by_style(slices):
        prompts.of(style)
    base = _new_base(config, prompts, slices.size, computing.accelerator.device)
    shared = {
        "seed": config.seed,
        "slices": [manifest_sha256(s) for s in sets],
        "autoencoder": to_dict(first),
    }
    opened = partial(open_stage, config=config, computing=computing, tell=tell)
    tell(f"Training on {len(slices.slices)} slices.")
    run = opened(folder / "training" / "autoencoder", recipe=first, identity=shared)
    total = first.steps + second.steps
    progress = _train_autoencoder(run, base, slices, limits)
    if not progress.finished:
        return StageResult(progress.step, total, None)
    _set_scale(base, slices)
    identity = {**shared, "denoiser": to_dict(second), "prompts": to_dict(prompts)}
    run = opened(folder / "training" / "denoiser", recipe=second, identity=identity)
    rest = replace(
        limits,
        max_minutes=limits.max_minutes - (time.monotonic() - started) / 60,
        report=lambda p: limits.report(replace(p, step=first.steps + p.step)),
    )
    progress = _train_denoiser(run, base, slices, prompts, config.sampling, rest)
    if progress.finished and computing.main:
        save_base(base, folder, sets, prompts)
    computing.accelerator.wait_for_everyone()
    done = first.steps + progress.step
    return StageResult(done, total, folder if progress.finished else None)


def _new_base(config: StyleConfig, prompts: Prompts, size: int, device: torch.device) -> BaseModel:
    """Build the networks with random weights on the device.

    Raises:
        ConfigError: they do not take pictures of `size` pixels.
    """
    torch.manual_seed(config.seed)
    base = build_base(config.base, prompts, size)
    base.check_size(size)
    for network in (base.vae, base.unet, base.text_encoder):
        network.to(device)
    return base


def _train_autoencoder(run: Run, base: BaseModel, slices: SliceSet, limits: Limits) -> Progress:
    """Train on random squares, by the absolute error of intensities and of their edges.

    Raises:
        ConfigError: squares that the autoencoder cannot halve as often as it does.
    """
    recipe, accelerator = run.config.optimisation, run.accelerator
    device, factor = accelerator.device, base.factor
    crop = min(recipe.crop, slices.size)
    if crop % factor:
        raise ConfigError(f"base.autoencoder.crop is a multiple of {factor}, not {crop}.")
    pictures = np.stack([read_picture(slices, s.image) for s in slices.slices])
    by_style = _by_style(slices)
    latents = (recipe.batch, base.vae.config.latent_channels, crop // factor, crop // factor)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = _drawn(by_style, recipe.batch, generator)
        corners = torch.randint(slices.size - crop + 1, (recipe.batch, 2), generator=generator)
        squares = [
            pictures[n, row : row + crop, column : column + crop]
            for n, (row, column) in zip(chosen, corners.tolist(), strict=True)
        ]
        noise = torch.randn(latents, generator=generator)
        return as_input(np.stack(squares)).to(device), noise.to(device)

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        true, noise = batch
        with accelerator.autocast():
            output, nats = model(true, noise)
        error = output.float() - true
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + edges + recipe.kl * nats.float().mean() / crop**2

    def preview(step: int) -> None:
        shown = pictures[[n for ns in by_style.values() for n in (ns[0], ns[len(ns) // 2])]]
        with accelerator.autocast():
            back = as_pictures(base.vae.decode(encode_pictures(base.vae, shown).mean).sample)
        path = run.folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(len(shown), [*shown, *back]))

    base.vae.requires_grad_(True)
    network = Autoencoding(base.vae)
    progress = fit_stage(run, network, draw=draw, loss=loss, preview=preview, limits=limits)
    base.vae.requires_grad_(False)
    return progress


def _train_denoiser(
    run: Run,
    base: BaseModel,
    slices: SliceSet,
    prompts: Prompts,
    sampling: SamplingConfig,
    limits: Limits,
) -> Progress:
    """Train on styles drawn evenly, then a slice of the style and a prompt that asks for it."""
    recipe, accelerator = run.config.optimisation, run.accelerator
    by_style = _by_style(slices)
    images = Latents(slices, [s.image for s in slices.slices], base)
    tokens = {style: token_ids(base, prompts.of(style)) for style in by_style}
    silent = token_ids(base, [""])[0]
    scheduler = DDPMScheduler.from_config(base.scheduler)

    def asked(n: int, generator: torch.Generator) -> torch.Tensor:
        chance, way = torch.rand(2, generator=generator).tolist()
        ways = tokens[slices.slices[n].style]
        return silent if chance < recipe.empty_prompts else ways[int(way * len(ways))]

    def draw(generator: torch.Generator) -> tuple[Noisy, torch.Tensor]:
        chosen = _drawn(by_style, recipe.batch, generator)
        ids = torch.stack([asked(n, generator) for n in chosen]).to(accelerator.device)
        return noisy_latents(images.draw(chosen, generator), scheduler, generator), ids

    def loss(model: nn.Module, batch: tuple[Noisy, torch.Tensor]) -> torch.Tensor:
        noisy, ids = batch
        with accelerator.autocast():
            predicted = model(noisy.latents, noisy.times, ids)
        return nn.functional.mse_loss(predicted.float(), noisy.target)

    def preview(step: int) -> None:
        rows = [[prompts.of(style)[0]] * 4 for style in by_style]
        with accelerator.autocast():
            drawn = [
                generate(base, base.unet, row, range(len(row)), slices.size, sampling)
                for row in rows
            ]
        path = run.folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(4, [picture for row in drawn for picture in row]))

    if recipe.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    network = Prompted(base.text_encoder, base.unet)
    return fit_stage(run, network, draw=draw, loss=loss, preview=preview, limits=limits)


@torch.no_grad()
def _set_scale(base: BaseModel, slices: SliceSet) -> None:
    """Scale latents to a standard deviation of 1, as noise has."""
    shown = slices.slices[:: max(1, len(slices.slices) // 64)]
    means = [encode_pictures(base.vae, read_picture(slices, s.image)[None]).mean for s in shown]
    deviation = torch.cat(means).std()
    base.vae.register_to_config(scaling_factor=1 / float(deviation))


def _together(sets: Sequence[SliceSet]) -> SliceSet:
    """Join all kept slices of all sets, by absolute paths.

    Raises:
        DatasetError: the sets are of different sizes.
    """
    if len({s.size for s in sets}) > 1:
        sizes = ", ".join(f"{s.folder}: {s.size}" for s in sets)
        raise DatasetError(f"The sets have slices of different sizes ({sizes}); prepare them anew.")
    slices = [
        replace(one, image=str((s.folder / one.image).resolve())) for s in sets for one in s.kept()
    ]
    return replace(sets[0], slices=tuple(slices))


def _by_style(slices: SliceSet) -> dict[str, list[int]]:
    """Group the numbers of the slices by style."""
    numbers: dict[str, list[int]] = {}
    for n, s in enumerate(slices.slices):
        numbers.setdefault(s.style, []).append(n)
    return numbers


def _drawn(by_style: dict[str, list[int]], count: int, generator: torch.Generator) -> list[int]:
    """Draw numbers of slices, each style as likely as another."""
    styles = list(by_style.values())
    draws = torch.rand((count, 2), generator=generator, dtype=torch.float64).tolist()
    chosen = [(styles[int(a * len(styles))], b) for a, b in draws]
    return [numbers[int(b * len(numbers))] for numbers, b in chosen]
