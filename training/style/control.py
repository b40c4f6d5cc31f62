# SPDX-License-Identifier: Apache-2.0
"""A ControlNet that lays pictures out as masks say (Chen et al. 2025).

It starts as a copy of the tuned U-Net's encoder and learns with that U-Net frozen: as the U-Net
already draws the source's style, what is left to learn is the layout. Masks are shown to it in
colours, one per label.

What it makes, in the folder of the run:

model.json     what it is: base, tuning, slices, labels and their colours, SHA-256 of the weights
controlnet/    the ControlNet in diffusers format
previews/      a column per slice: its mask, the slice, a picture drawn from the mask
"""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler
from torch import nn

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.accelerator import accelerator_for
from ..engine.config import to_dict
from ..engine.run_folder import write_environment
from .base import (
    CONDITION_CHANNELS,
    BaseModel,
    check_base,
    check_weights,
    load_base,
    read_record,
    save_model,
    weights_sha256,
    write_record,
)
from .config import StyleConfig
from .diffusion import (
    Latents,
    encode_prompts,
    fit,
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
    StageResult,
    manifest_sha256,
    read_picture,
    read_slices,
    write_picture,
)
from .tune import load_tuned


def train_control(
    slices_folder: Path,
    base_name: str,
    run_folder: Path,
    config: StyleConfig,
    *,
    tuned: Path | None,
    device: str = "auto",
    download: bool = False,
    say: Any = print,  # noqa: ANN401
    **arguments: Any,  # noqa: ANN401 - max_minutes, stop_requested, report of `fit`
) -> StageResult:
    """Train the ControlNet, or resume a training.

    Args:
        tuned: run folder of the tuning; None trains on the base's own U-Net, which the paper's
            ablation compares with.

    Raises:
        DatasetError, ConfigError, BundleError, DeviceError, TrainingError, CheckpointError,
        StyleError.
    """
    recipe = config.control
    slices = read_slices(slices_folder)
    computing = accelerator_for(device, recipe.precision, "control", slices.size**2)
    accelerator = computing.accelerator
    tell = say if accelerator.is_main_process else (lambda line: None)
    prompt = read_prompts(config.prompts).instance
    computing.introduce(tell)
    base = load_base(base_name, download=download, say=tell)
    base.check_size(slices.size)
    unet, record = load_tuned(tuned, base) if tuned else (base.unet, {"weights": ""})
    kept = slices.kept()
    weights = slice_weights(kept, recipe.rare_class_temperature)
    colours = palette(slices.labels)
    identity = {
        "stage": "control",
        "settings": to_dict(recipe),
        "seed": config.seed,
        "prompt": prompt,
        "base": base.identity,
        "tuned": record["weights"],
        "slices": manifest_sha256(slices),
    }
    place_frozen(base, accelerator.device, computing.precision)
    torch.manual_seed(config.seed)
    control = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=CONDITION_CHANNELS[: base.factor.bit_length()]
    ).to(accelerator.device)
    unet.to(accelerator.device, frozen_dtype(computing.precision, accelerator.device))
    if recipe.gradient_checkpointing:
        control.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    latents = Latents(slices, [s.image for s in kept], base)
    text = encode_prompts(base, [prompt, ""])
    scheduler = DDPMScheduler.from_config(base.scheduler)

    def conditions_of(chosen: Sequence[Slice]) -> torch.Tensor:
        masks = np.stack([read_picture(slices, s.mask) for s in chosen])
        return conditions(masks, slices.labels, colours).to(accelerator.device)

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.multinomial(weights, recipe.batch, replacement=True, generator=generator)
        silent = torch.rand(recipe.batch, generator=generator) < recipe.empty_prompts
        noisy, times, target = noisy_latents(
            latents.draw(chosen.tolist(), generator), scheduler, generator
        )
        shown = conditions_of([kept[n] for n in chosen.tolist()])
        prompts = text[silent.long().to(text.device)]
        with accelerator.autocast():
            predicted = steered(unet, model, noisy, times, prompts, shown)
        return nn.functional.mse_loss(predicted, target)

    def preview(step: int) -> None:
        shown = kept[:: max(1, len(kept) // 4)][:4]
        asked = conditions_of(shown)
        with accelerator.autocast():
            drawn = generate(
                base, unet, [prompt] * len(shown), range(len(shown)), slices.size,
                config.sampling, control, asked,
            )  # fmt: skip
        masks = (asked.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
        real = [read_picture(slices, s.image) for s in shown]
        path = run_folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(len(shown), [*masks, *real, *drawn]))

    tell(f"Training a ControlNet on {len(kept)} slices of {slices.name}.")
    if accelerator.is_main_process:
        write_environment(run_folder, computing, tell)
    progress = fit(
        recipe,
        control,
        run_folder,
        seed=config.seed,
        identity=identity,
        loss=loss,
        preview=preview,
        accelerator=accelerator,
        checkpoint_minutes=config.checkpoint_minutes,
        **arguments,
    )
    finished = progress.step == recipe.steps
    if finished and accelerator.is_main_process:
        save_model(control.save_pretrained, run_folder / "controlnet")
        record = {
            **identity,
            "base": base.record(),
            "size": slices.size,
            "colours": colours,
            "weights": weights_sha256([_weight_file(run_folder)]),
        }
        write_record(run_folder, record)
    accelerator.wait_for_everyone()
    return StageResult(progress.step, recipe.steps, run_folder if finished else None)


def load_control(run_folder: Path, base: BaseModel) -> tuple[ControlNetModel, dict[str, Any]]:
    """A trained ControlNet, on the CPU in full precision, and its record.

    Raises:
        BundleError: no finished training, of another base, or its weights changed.
    """
    record = read_record(run_folder, "control")
    check_base(base, record, run_folder)
    check_weights([_weight_file(run_folder)], record)
    control = ControlNetModel.from_pretrained(
        run_folder / "controlnet", local_files_only=True, use_safetensors=True
    )
    return control.eval().requires_grad_(False), record


def palette(labels: Mapping[str, int]) -> dict[str, list[int]]:
    """Label name -> RGB: hues a golden angle apart, every other one darker; background is black."""
    colours = {}
    for number, name in enumerate(labels):
        hue, value = number * 0.381966 % 1, 1.0 if number % 2 == 0 else 0.7
        colours[name] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 1.0, value)]
    return colours


def conditions(
    masks: np.ndarray, labels: Mapping[str, int], colours: Mapping[str, Sequence[int]]
) -> torch.Tensor:
    """Masks in colours.

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
    """The chance of each slice to be drawn, float64, sums to 1.

    A label is drawn with a weight of exp((1 - f) / temperature), f being its share of all labelled
    pixels, then a slice that shows it, evenly (rare-class sampling, Hoyer et al., DAFormer, CVPR
    2022). At temperature 0, and where no slice shows a label, all slices are equal.
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
