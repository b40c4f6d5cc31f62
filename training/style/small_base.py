# SPDX-License-Identifier: Apache-2.0
"""The networks of a small base model, and its folder as a diffusers pipeline."""

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from .base import BaseModel, save_model
from .config import SmallBaseConfig
from .prompts import Prompts
from .slices import SliceSet, manifest_sha256, write_bytes
from .tokenizer import make_tokenizer

LICENCE = "terms of the slices it was trained on; research use only"

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
"""Stable Diffusion's schedule, mended."""


class Autoencoding(nn.Module):
    """An autoencoder with the noise of its latents as an input, for training."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, pictures: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pictures (N, 3, h, w) and noise for the latents to (N, 3, h, w) and nats (N,)."""
        latents = self.vae.encode(pictures).latent_dist
        return self.vae.decode(latents.mean + latents.std * noise).sample, latents.kl()


class Prompted(nn.Module):
    """Text encoder and U-Net as one network."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Map noisy latents (N, C, h, w), times (N,) and tokens (N, n) to velocity (N, C, h, w)."""
        return self.unet(noisy, times, self.text_encoder(ids)[0]).sample


def build_base(config: SmallBaseConfig, prompts: Prompts, size: int) -> BaseModel:
    """Build the networks with random weights, drawn from torch's generator, on the CPU."""
    first, second = config.autoencoder, config.denoiser
    levels, deep = len(first.channels), len(second.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=first.channels,
        layers_per_block=1,
        norm_num_groups=math.gcd(*first.channels, 8),
        sample_size=size,
        mid_block_add_attention=False,
    )
    tokenizer = make_tokenizer(prompts, second.vocabulary, second.text_length)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=second.text_width,
            intermediate_size=4 * second.text_width,
            num_hidden_layers=second.text_layers,
            num_attention_heads=second.heads,
            max_position_embeddings=second.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    plain = deep - second.attention
    unet = UNet2DConditionModel(
        sample_size=size // 2 ** (levels - 1),
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * second.attention,
        up_block_types=("CrossAttnUpBlock2D",) * second.attention + ("UpBlock2D",) * plain,
        block_out_channels=second.channels,
        layers_per_block=1,
        norm_num_groups=math.gcd(*second.channels, 8),
        cross_attention_dim=second.text_width,
        attention_head_dim=second.heads,  # their name for the number of heads
    )
    scheduler = dict(DDIMScheduler(**NOISE).config)
    return BaseModel("small", vae, unet, text_encoder, tokenizer, scheduler, LICENCE, {})


def save_base(base: BaseModel, folder: Path, sets: Sequence[SliceSet], prompts: Prompts) -> None:
    """Write the folder of a diffusers pipeline; model_index.json, which makes it one, is last.

    Raises:
        StyleError: it cannot be written.
    """
    (folder / "model_index.json").unlink(missing_ok=True)
    scheduler = DDIMScheduler.from_config(base.scheduler)
    parts = {
        "vae": base.vae,
        "unet": base.unet,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "scheduler": scheduler,
    }
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": version("diffusers")}
    for part, model in parts.items():
        save_model(model.save_pretrained, folder / part)
        library = "transformers" if part in ("text_encoder", "tokenizer") else "diffusers"
        index[part] = [library, type(model).__name__]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    write_bytes(folder / "README.md", _card(base, sets, prompts).encode())
    write_bytes(folder / "model_index.json", json.dumps(index, indent=1).encode())


def _card(base: BaseModel, sets: Sequence[SliceSet], prompts: Prompts) -> str:
    lines, size = [], base.unet.config.sample_size * base.factor
    for s in sets:
        styles = ", ".join(sorted({one.style for one in s.kept()}))
        digest = manifest_sha256(s)
        lines.append(f"- {s.name}: {len(s.kept())} slices, styles {styles}; manifest {digest}")
    asked = [f"- {style}: {'; '.join(ways)}" for style, ways in prompts.styles.items()]
    return "\n".join(
        [
            "---",
            "license: other",
            f"license_name: {LICENCE}",
            "---",
            "# A small base model for style intervention",
            "",
            f"Pictures of {size} pixels. Research use only, not for diagnosis. Trained on:",
            "",
            *lines,
            "",
            "Prompts:",
            "",
            *asked,
            "",
        ]
    )
