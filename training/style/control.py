# SPDX-License-Identifier: Apache-2.0
"""The ControlNet that makes pictures follow masks (Chen et al. 2025).

It starts as a copy of the tuned U-Net's encoder and learns with that U-Net frozen: as the U-Net
already draws the source's style, what is left to learn is the layout. Masks are shown to it in
colours, one per label.

The folder of the run:

model.json     the record: base, tuning, slices, labels and their colours, SHA-256 of the weights
controlnet/    the ControlNet in diffusers format
previews/      a column per slice: its mask, the slice, a picture drawn from the mask
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import nn

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.accelerator import Computing, accelerator_for
from ..engine.config import to_dict
from ..engine.limits import Limits
from ..engine.run_folder import Run
from .base import (
    CONDITION_CHANNELS,
    BaseModel,
    check_base,
    load_base,
    read_record,
    save_model,
    write_record,
)
from .config import ControlConfig, SamplingConfig, StyleConfig
from .diffusion import (
    Latents,
    Noisy,
    encode_prompts,
    frozen_dtype,
    generate,
    noisy_latents,
    place_frozen,
    sheet,
    steered,
)
from .prompts import read_prompts
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    manifest_sha256,
    read_picture,
    read_slices,
    write_picture,
)
from .stage import fit_stage, open_stage
from .tune import load_tuned
from .weights import check_weights, load_network, weights_sha256


def train_control(
    slices_folder: Path,
    base_name: str,
    run_folder: Path,
    config: StyleConfig,
    *,
    tuned: Path | None,
    device: str = "auto",
    download: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Train the ControlNet, or resume a training.

    Args:
        base_name, download: see `load_base`.
        tuned: run folder of the tuning; None trains on the base's own U-Net, which the paper's
            ablation compares with.

    Raises:
        DatasetError, ConfigError, BundleError, DeviceError, TrainingError, CheckpointError,
        StyleError.
    """
    recipe = config.control
    slices = read_slices(slices_folder)
    computing = accelerator_for(device, recipe.precision, "control", slices.size**2)
    prompt = read_prompts(config.prompts).instance
    tell = computing.introduce(limits.say)
    base = load_base(base_name, download=download, say=tell)
    base.check_size(slices.size)
    unet, tuning = load_tuned(tuned, base) if tuned else (base.unet, {"weights": ""})
    identity = {
        "stage": "control",
        "settings": to_dict(recipe),
        "seed": config.seed,
        "prompt": prompt,
        "base": base.identity,
        "tuned": tuning["weights"],
        "slices": manifest_sha256(slices),
    }
    run = open_stage(run_folder, config, recipe, computing, identity=identity, tell=tell)
    place_frozen(base, run.accelerator.device, computing.precision)
    control = _copy_of_encoder(base, unet, recipe, computing, config.seed)
    steering = _Steering(run, slices, replace(base, unet=unet), control, prompt, config.sampling)
    tell(f"Training a ControlNet on {len(steering.kept)} slices of {slices.name}.")
    progress = fit_stage(
        run,
        control,
        draw=steering.draw,
        loss=steering.loss,
        preview=steering.preview,
        limits=limits,
    )
    if progress.finished and run.main:
        save_model(control.save_pretrained, run.folder / "controlnet")
        record = {
            **identity,
            "base": base.record(),
            "size": slices.size,
            "colours": steering.colours,
            "weights": weights_sha256([_weight_file(run.folder)]),
        }
        write_record(run.folder, record)
    run.accelerator.wait_for_everyone()
    return StageResult(progress.step, recipe.steps, run.folder if progress.finished else None)


class Shown(NamedTuple):
    """A batch: noisy latents, prompts and masks.

    Attributes:
        prompts: (N, tokens, channels).
        masks: (N, 3, rows, columns) in colours.
    """

    noisy: Noisy
    prompts: torch.Tensor
    masks: torch.Tensor


class _Steering:
    """Batches, loss and previews of a ControlNet on the frozen U-Net of `base`."""

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        base: BaseModel,
        control: ControlNetModel,
        prompt: str,
        sampling: SamplingConfig,
    ) -> None:
        self.kept = slices.kept()
        self.colours = palette(slices.labels)
        self._run, self._slices, self._base, self._control = run, slices, base, control
        self._prompt, self._sampling = prompt, sampling
        temperature = run.config.optimisation.rare_class_temperature
        self._weights = slice_weights(self.kept, temperature)
        self._latents = Latents(slices, [s.image for s in self.kept], base)
        self._text = encode_prompts(base, [prompt, ""])
        self._scheduler = DDPMScheduler.from_config(base.scheduler)

    def draw(self, generator: torch.Generator) -> Shown:
        """Draw slices, those with rare labels more often, their noise, and which get no prompt."""
        recipe = self._run.config.optimisation
        chosen = torch.multinomial(
            self._weights, recipe.batch, replacement=True, generator=generator
        ).tolist()
        silent = torch.rand(recipe.batch, generator=generator) < recipe.empty_prompts
        latents = self._latents.draw(chosen, generator)
        noisy = noisy_latents(latents, self._scheduler, generator)
        prompts = self._text[silent.long().to(self._text.device)]
        return Shown(noisy, prompts, self._masks([self.kept[n] for n in chosen]))

    def loss(self, model: nn.Module, batch: Shown) -> torch.Tensor:
        """Compute the squared error of what the steered U-Net predicts."""
        noisy = batch.noisy
        with self._run.accelerator.autocast():
            predicted = steered(
                self._base.unet, model, noisy.latents, noisy.times, batch.prompts, batch.masks
            )
        return nn.functional.mse_loss(predicted, noisy.target)

    def preview(self, step: int) -> None:
        """Draw pictures from masks, below the masks and their slices."""
        shown = self.kept[:: max(1, len(self.kept) // 4)][:4]
        asked, count = self._masks(shown), len(shown)
        with self._run.accelerator.autocast():
            drawn = generate(
                self._base,
                self._base.unet,
                [self._prompt] * count,
                range(count),
                self._slices.size,
                self._sampling,
                self._control,
                asked,
            )
        masks = (asked.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
        real = [read_picture(self._slices, s.image) for s in shown]
        path = self._run.folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(count, [*masks, *real, *drawn]))

    def _masks(self, chosen: Sequence[Slice]) -> torch.Tensor:
        masks = np.stack([read_picture(self._slices, s.mask) for s in chosen])
        shown = conditions(masks, self._slices.labels, self.colours)
        return shown.to(self._run.accelerator.device)


def _copy_of_encoder(
    base: BaseModel,
    unet: UNet2DConditionModel,
    recipe: ControlConfig,
    computing: Computing,
    seed: int,
) -> ControlNetModel:
    """Start a ControlNet from a U-Net, and put both on the device."""
    device = computing.accelerator.device
    torch.manual_seed(seed)
    control = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=CONDITION_CHANNELS[: base.factor.bit_length()]
    ).to(device)
    unet.to(device, frozen_dtype(computing.precision, device))
    if recipe.gradient_checkpointing:
        control.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return control


def load_control(run_folder: Path, base: BaseModel) -> tuple[ControlNetModel, dict[str, Any]]:
    """Load a trained ControlNet, on the CPU in full precision, and its record.

    Raises:
        BundleError: no finished training, of another base, or its weights changed.
    """
    record = read_record(run_folder, "control")
    check_base(base, record, run_folder)
    weights = _weight_file(run_folder)
    check_weights([weights], record)
    return load_network(ControlNetModel, weights.parent, [weights], str(run_folder)), record


def palette(labels: Mapping[str, int]) -> dict[str, list[int]]:
    """Choose an RGB for every label name: hues a golden angle apart, every other one darker."""
    colours = {}
    for number, name in enumerate(labels):
        hue, value = number * 0.381966 % 1, 1.0 if number % 2 == 0 else 0.7
        colours[name] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 1.0, value)]
    return colours


def conditions(
    masks: np.ndarray, labels: Mapping[str, int], colours: Mapping[str, Sequence[int]]
) -> torch.Tensor:
    """Show masks in colours; background is black.

    Args:
        masks: (N, rows, columns) uint8 label values.
        labels: name -> value in these masks.
        colours: name -> RGB, as the ControlNet learnt them.

    Returns:
        (N, 3, rows, columns) float32 in [0, 1].

    Raises:
        ConfigError: a mask shows a label that has no colour.
    """
    known = {value: colours[name] for name, value in labels.items() if name in colours}
    strange = sorted(set(np.unique(masks).tolist()) - known.keys() - {0})
    if strange:
        names = {value: name for name, value in labels.items()}
        shown = ", ".join(names.get(value, str(value)) for value in strange)
        raise ConfigError(
            f"Masks show labels that the ControlNet never saw: {shown}; train it on slices that "
            "have them, or take them out of the masks."
        )
    table = np.zeros((256, 3), np.float32)
    for value, colour in known.items():
        table[value] = np.array(colour) / 255
    return torch.from_numpy(table[masks]).permute(0, 3, 1, 2)


def slice_weights(slices: Sequence[Slice], temperature: float) -> torch.Tensor:
    """Compute the chance of each slice to be drawn, (slices,) float64, which sums to 1.

    A label is drawn with a weight of exp((1 - f) / temperature), f being its share of all labelled
    pixels, then a slice that shows it, evenly (rare-class sampling, Hoyer et al., DAFormer, CVPR
    2022). At temperature 0, or if no slice shows a label, all slices are equal.
    """
    counts: dict[str, int] = {}
    for s in slices:
        for name, pixels in s.pixels.items():
            counts[name] = counts.get(name, 0) + pixels
    if not counts or temperature == 0:
        return torch.full((len(slices),), 1 / len(slices), dtype=torch.float64)
    names = list(counts)
    share = torch.tensor([counts[n] for n in names], dtype=torch.float64) / sum(counts.values())
    labels = torch.softmax((1 - share) / temperature, dim=0)
    shows = torch.tensor([[n in s.pixels for s in slices] for n in names], dtype=torch.float64)
    return labels @ (shows / shows.sum(dim=1, keepdim=True))


def _weight_file(run_folder: Path) -> Path:
    return run_folder / "controlnet" / "diffusion_pytorch_model.safetensors"
