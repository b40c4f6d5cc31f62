# SPDX-License-Identifier: Apache-2.0
"""Latent diffusion as all stages use it: noise, latents, prompts and the sampler."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from SRCSMSegmenterLib.devices import DTYPES
from SRCSMSegmenterLib.errors import ConfigError

from .base import BaseModel
from .config import SamplingConfig
from .slices import SliceSet, read_picture


class Noisy(NamedTuple):
    """Diffused latents and the target of their denoising.

    Attributes:
        latents: (N, C, h, w) with noise.
        times: (N,) int64.
        target: (N, C, h, w), the noise or the velocity.
    """

    latents: torch.Tensor
    times: torch.Tensor
    target: torch.Tensor


def noisy_latents(
    latents: torch.Tensor, scheduler: DDPMScheduler, generator: torch.Generator
) -> Noisy:
    """Diffuse latents to random times.

    Args:
        latents: (N, C, h, w).
        generator: on the CPU, so that every device draws the same.
    """
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device)
    times = torch.randint(
        scheduler.config.num_train_timesteps, (len(latents),), generator=generator
    )
    times = times.to(device)
    noisy = scheduler.add_noise(latents, noise, times)
    if scheduler.config.prediction_type == "v_prediction":
        return Noisy(noisy, times, scheduler.get_velocity(latents, noise, times))
    return Noisy(noisy, times, noise)


class Latents:
    """The latents of slices, encoded at their first use and kept in memory.

    Each slice is encoded alone, so that neither batches nor stops change it. A slice of 512 pixels
    takes 64 KiB.
    """

    def __init__(self, slices: SliceSet, paths: Sequence[str], base: BaseModel) -> None:
        self._slices, self._paths, self._vae = slices, paths, base.vae
        self._known: dict[int, torch.Tensor] = {}

    def draw(self, chosen: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Draw latents (N, C, h, w) float32 from the autoencoder's distribution, scaled.

        Args:
            chosen: N numbers of slices.
        """
        moments = torch.stack([self._moments(n) for n in chosen]).float()
        mean, deviation = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        latents = (mean + deviation * noise) * self._vae.config.scaling_factor
        return latents.to(self._vae.device)

    @torch.no_grad()
    def _moments(self, n: int) -> torch.Tensor:
        if n not in self._known:
            picture = read_picture(self._slices, self._paths[n])
            moments = encode_pictures(self._vae, picture[None])
            self._known[n] = torch.cat([moments.mean, moments.std], dim=1)[0].half().cpu()
        return self._known[n]


def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray) -> DiagonalGaussianDistribution:
    """Encode (N, rows, columns) uint8; return the distribution of the latents, not scaled."""
    return vae.encode(as_input(pictures).to(vae.device, vae.dtype)).latent_dist


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """Convert (N, rows, columns) uint8 to (N, 3, rows, columns) float32 in [-1, 1]."""
    grey = torch.from_numpy(pictures).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1)


def as_pictures(output: torch.Tensor) -> np.ndarray:
    """Convert (N, 3, rows, columns) in [-1, 1] to (N, rows, columns) uint8, the mean as grey."""
    grey = output.float().mean(dim=1)
    return ((grey + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def token_ids(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """Tokenise prompts: (N, tokens) int64.

    Raises:
        ConfigError: a prompt is longer than the text encoder takes.
    """
    most = min(base.tokenizer.model_max_length, base.text_encoder.config.max_position_embeddings)
    for prompt, tokens in zip(
        prompts, base.tokenizer(list(prompts), verbose=False).input_ids, strict=True
    ):
        if len(tokens) > most:
            kept = base.tokenizer.decode(tokens[: most - 1], skip_special_tokens=True)
            raise ConfigError(
                f'The prompt "{prompt}" has {len(tokens)} tokens, the text encoder takes {most}; '
                f'shorten it, all after "{kept}" would be lost.'
            )
    return base.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=most,
        return_tensors="pt",
    ).input_ids


@torch.no_grad()
def encode_prompts(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """Encode prompts for the U-Net, (N, tokens, channels); each distinct one is encoded once."""
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
    """Predict with a U-Net and a ControlNet's residuals, float32.

    The precisions of the two may differ, as only the ControlNet is trained.

    Args:
        noisy: (N, C, h, w).
        times: (N,), or one for all.
        text: (N, tokens, channels).
        conditions: (N, 3, rows, columns) in [0, 1].
        scale: factor on the residuals.

    Returns:
        (N, C, h, w).
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
    """Move the autoencoder and the text encoder to the device.

    bfloat16 visibly degrades the autoencoder, so on a GPU it runs in fp16, or in fp32 if asked for;
    the text encoder is used rarely and stays in fp32.
    """
    half = device.type == "cuda" and precision != "fp32"
    base.vae.to(device, torch.float16 if half else torch.float32)
    base.text_encoder.to(device)


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose the data type of weights that are not trained."""
    if device.type == "cpu":
        return torch.float32
    return DTYPES[precision]


def sheet(columns: int, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Lay pictures of one size, (rows, columns[, 3]) uint8, into a grid; return it as RGB."""
    colour = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pictures]
    rows = [np.hstack(colour[n : n + columns]) for n in range(0, len(colour), columns)]
    return np.vstack(rows)
