# SPDX-License-Identifier: Apache-2.0
"""A base model of our own, small enough to be trained on a processor, on slices in several styles.

The same kinds of parts as Stable Diffusion 1.x, smaller, in the same folder layout, so everything
else reads it like any other base: an autoencoder, a U-Net that looks at the prompt, a CLIP text
encoder with a vocabulary made from the prompts files. Text encoder and U-Net learn together. The
noise has no signal left at its last step, and the U-Net predicts velocity (Lin et al., "Common
diffusion noise schedules and sample steps are flawed", WACV 2024): else all pictures would be
equally bright on average, and brightness is half of a style.

Its folder keeps, beside the parts, training/: checkpoints, curves and previews.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from SRCSMSegmenterLib.errors import ConfigError, DatasetError

from ..engine.accelerator import accelerator_for
from ..engine.config import to_dict
from ..engine.run_folder import write_environment
from .base import BaseModel, save_model
from .config import (
    AutoencoderConfig,
    DenoiserConfig,
    SamplingConfig,
    SmallBaseConfig,
    StyleConfig,
)
from .diffusion import (
    Latents,
    StageProgress,
    as_input,
    as_pictures,
    encode_pictures,
    fit,
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
    write_bytes,
    write_picture,
)

START, END = "<|startoftext|>", "<|endoftext|>"

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
    """An autoencoder as it is trained: pictures and noise in, pictures and divergence out."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, pictures: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, h, w) and noise of the latents' shape -> (N, 3, h, w), and nats per sample."""
        found = self.vae.encode(pictures).latent_dist
        return self.vae.decode(found.mean + found.std * noise).sample, found.kl()


class Prompted(nn.Module):
    """Text encoder and U-Net as one network."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Noisy latents (N, C, h, w), times (N,) and tokens (N, n) -> velocity (N, C, h, w)."""
        return self.unet(noisy, times, self.text_encoder(ids)[0]).sample


def train_base(
    slice_folders: Sequence[Path],
    folder: Path,
    config: StyleConfig,
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    report: Callable[[StageProgress], None] = lambda progress: None,
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
    accelerator = computing.accelerator
    tell = say if accelerator.is_main_process else (lambda line: None)
    sets = [read_slices(slice_folder) for slice_folder in slice_folders]
    prompts = read_prompts(config.prompts)
    slices = _together(sets)
    computing.introduce(tell)
    for style in _by_style(slices):
        prompts.of(style)
    torch.manual_seed(config.seed)
    base = build_base(config.base, prompts, slices.size)
    base.check_size(slices.size)
    base.vae.to(accelerator.device)
    base.unet.to(accelerator.device)
    base.text_encoder.to(accelerator.device)
    shared = {
        "seed": config.seed,
        "slices": [manifest_sha256(s) for s in sets],
        "autoencoder": to_dict(first),
    }
    total = first.steps + second.steps
    arguments = {
        "seed": config.seed,
        "accelerator": accelerator,
        "checkpoint_minutes": config.checkpoint_minutes,
        "stop_requested": stop_requested,
    }
    tell(f"Training on {len(slices.slices)} slices.")
    if accelerator.is_main_process:
        write_environment(folder / "training", computing, tell)
    progress = _train_autoencoder(
        base, slices, first, folder / "training" / "autoencoder",
        identity=shared, max_minutes=max_minutes, report=report, **arguments,
    )  # fmt: skip
    if progress.step < first.steps:
        return StageResult(progress.step, total, None)
    _set_scale(base, slices)
    progress = _train_denoiser(
        base, slices, prompts, second, config.sampling, folder / "training" / "denoiser",
        identity={**shared, "denoiser": to_dict(second), "prompts": to_dict(prompts)},
        max_minutes=max_minutes - (time.monotonic() - started) / 60,
        report=lambda p: report(replace(p, step=first.steps + p.step)),
        **arguments,
    )  # fmt: skip
    done = first.steps + progress.step
    if done == total and accelerator.is_main_process:
        save_base(base, folder, sets, prompts)
    accelerator.wait_for_everyone()
    return StageResult(done, total, folder if done == total else None)


def build_base(config: SmallBaseConfig, prompts: Prompts, size: int) -> BaseModel:
    """The networks with random weights, drawn from torch's generator, on the CPU."""
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


def make_tokenizer(prompts: Prompts, vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the words of the prompts and spells all others.

    Byte-pair encoding, learnt here: the library's own trainer breaks ties by chance, and a training
    that is resumed needs the same tokens again.

    Args:
        vocabulary: largest number of tokens; 514 are there before any is learnt.
        length: tokens of a prompt.
    """
    parts = CLIPTokenizer().backend_tokenizer
    texts = [prompts.instance, *(p for ways in prompts.styles.values() for p in ways)]
    words = Counter(
        (*word[:-1], word[-1] + "</w>")
        for text in texts
        for word, _ in parts.pre_tokenizer.pre_tokenize_str(parts.normalizer.normalize_str(text))
    )
    bytes_ = sorted(ByteLevel.alphabet())
    tokens = [START, END, *bytes_, *(byte + "</w>" for byte in bytes_)]
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        tokens.append(first + second)
        words = Counter({_merged(word, first, second): n for word, n in words.items()})
    numbers = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=length)


def save_base(base: BaseModel, folder: Path, sets: Sequence[SliceSet], prompts: Prompts) -> None:
    """Write the folder of a diffusers pipeline; without model_index.json it is none, so that is
    written last.

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


def _train_autoencoder(
    base: BaseModel,
    slices: SliceSet,
    recipe: AutoencoderConfig,
    run_folder: Path,
    accelerator: Accelerator,
    **arguments: Any,  # noqa: ANN401 - of `fit`
) -> StageProgress:
    """On random squares, with the absolute error of intensities and of their edges."""
    device, factor = accelerator.device, base.factor
    crop = min(recipe.crop, slices.size)
    if crop % factor:
        raise ConfigError(f"base.autoencoder.crop is a multiple of {factor}, not {crop}.")
    pictures = np.stack([read_picture(slices, s.image) for s in slices.slices])
    by_style = _by_style(slices)
    latents = (recipe.batch, base.vae.config.latent_channels, crop // factor, crop // factor)

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        chosen = _drawn(by_style, recipe.batch, generator)
        corners = torch.randint(slices.size - crop + 1, (recipe.batch, 2), generator=generator)
        squares = [
            pictures[n, row : row + crop, column : column + crop]
            for n, (row, column) in zip(chosen, corners.tolist(), strict=True)
        ]
        true = as_input(np.stack(squares)).to(device)
        with accelerator.autocast():
            output, nats = model(true, torch.randn(latents, generator=generator).to(device))
        error = output.float() - true
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + edges + recipe.kl * nats.float().mean() / crop**2

    def preview(step: int) -> None:
        shown = pictures[[n for ns in by_style.values() for n in (ns[0], ns[len(ns) // 2])]]
        with accelerator.autocast():
            back = as_pictures(base.vae.decode(encode_pictures(base.vae, shown).mean).sample)
        path = run_folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(len(shown), [*shown, *back]))

    base.vae.requires_grad_(True)
    progress = fit(
        recipe, Autoencoding(base.vae), run_folder,
        loss=loss, preview=preview, accelerator=accelerator, **arguments,
    )  # fmt: skip
    base.vae.eval().requires_grad_(False)
    return progress


def _train_denoiser(
    base: BaseModel,
    slices: SliceSet,
    prompts: Prompts,
    recipe: DenoiserConfig,
    sampling: SamplingConfig,
    run_folder: Path,
    accelerator: Accelerator,
    **arguments: Any,  # noqa: ANN401 - of `fit`
) -> StageProgress:
    """Styles are drawn evenly, then a slice of the style and a way to ask for it."""
    by_style = _by_style(slices)
    images = Latents(slices, [s.image for s in slices.slices], base)
    tokens = {style: token_ids(base, prompts.of(style)) for style in by_style}
    silent = token_ids(base, [""])[0]
    scheduler = DDPMScheduler.from_config(base.scheduler)

    def asked(n: int, generator: torch.Generator) -> torch.Tensor:
        chance, way = torch.rand(2, generator=generator).tolist()
        ways = tokens[slices.slices[n].style]
        return silent if chance < recipe.empty_prompts else ways[int(way * len(ways))]

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        chosen = _drawn(by_style, recipe.batch, generator)
        ids = torch.stack([asked(n, generator) for n in chosen]).to(accelerator.device)
        noisy, times, target = noisy_latents(images.draw(chosen, generator), scheduler, generator)
        with accelerator.autocast():
            predicted = model(noisy, times, ids)
        return nn.functional.mse_loss(predicted.float(), target)

    def preview(step: int) -> None:
        rows = [[prompts.of(style)[0]] * 4 for style in by_style]
        with accelerator.autocast():
            drawn = [
                generate(base, base.unet, row, range(len(row)), slices.size, sampling)
                for row in rows
            ]
        path = run_folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(4, [picture for row in drawn for picture in row]))

    if recipe.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    return fit(
        recipe,
        Prompted(base.text_encoder, base.unet),
        run_folder,
        loss=loss,
        preview=preview,
        accelerator=accelerator,
        **arguments,
    )


@torch.no_grad()
def _set_scale(base: BaseModel, slices: SliceSet) -> None:
    """Scale latents to a standard deviation of 1, as noise has."""
    shown = slices.slices[:: max(1, len(slices.slices) // 64)]
    found = [encode_pictures(base.vae, read_picture(slices, s.image)[None]).mean for s in shown]
    deviation = torch.cat(found).std()
    base.vae.register_to_config(scaling_factor=1 / float(deviation))


def _together(sets: Sequence[SliceSet]) -> SliceSet:
    """All kept slices of all sets, by absolute paths.

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
    """Style -> numbers of the slices that have it."""
    numbers: dict[str, list[int]] = {}
    for n, s in enumerate(slices.slices):
        numbers.setdefault(s.style, []).append(n)
    return numbers


def _drawn(by_style: dict[str, list[int]], count: int, generator: torch.Generator) -> list[int]:
    """Numbers of slices, each style as likely as another."""
    styles = list(by_style.values())
    draws = torch.rand((count, 2), generator=generator, dtype=torch.float64).tolist()
    chosen = [(styles[int(a * len(styles))], b) for a, b in draws]
    return [numbers[int(b * len(numbers))] for numbers, b in chosen]


def _merged(word: tuple[str, ...], first: str, second: str) -> tuple[str, ...]:
    """A word's symbols with every `first` followed by `second` as one symbol."""
    found, rest = [], list(word)
    while rest:
        symbol = rest.pop(0)
        if symbol == first and rest and rest[0] == second:
            symbol += rest.pop(0)
        found.append(symbol)
    return tuple(found)


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
