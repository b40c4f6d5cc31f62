# SPDX-License-Identifier: Apache-2.0
"""Instance tuning: the base's U-Net learns to draw the source's slices (Chen et al. 2025).

What it makes, in the folder of the run:

model.json     what it is: base, slices, prompt, SHA-256 of the weights
unet/          the tuned U-Net in diffusers format, or
lora/          low-rank updates, pytorch_lora_weights.safetensors
previews/      above slices of the source, below pictures drawn for the instance prompt
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from ..engine.accelerator import accelerator_for
from ..engine.config import to_dict
from ..engine.run_folder import write_environment
from .base import (
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
)
from .prompts import read_prompts
from .slices import StageResult, manifest_sha256, read_picture, read_slices, write_picture

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""The layers that low-rank updates go to."""


def tune(
    slices_folder: Path,
    base_name: str,
    run_folder: Path,
    config: StyleConfig,
    *,
    device: str = "auto",
    download: bool = False,
    say: Any = print,  # noqa: ANN401
    **arguments: Any,  # noqa: ANN401 - max_minutes, stop_requested, report of `fit`
) -> StageResult:
    """Tune the U-Net, or resume a tuning.

    Raises:
        DatasetError, ConfigError, BundleError, DeviceError, TrainingError, CheckpointError,
        StyleError.
    """
    recipe = config.tune
    computing = accelerator_for(device, recipe.precision, "tune")
    accelerator = computing.accelerator
    tell = say if accelerator.is_main_process else (lambda line: None)
    slices = read_slices(slices_folder)
    prompt = read_prompts(config.prompts).instance
    computing.introduce(tell)
    base = load_base(base_name, download=download, say=tell)
    base.check_size(slices.size)
    identity = {
        "stage": "tune",
        "settings": to_dict(recipe),
        "seed": config.seed,
        "prompt": prompt,
        "base": base.identity,
        "slices": manifest_sha256(slices),
    }
    place_frozen(base, accelerator.device, computing.precision)
    unet = base.unet.to(accelerator.device)
    if recipe.lora:
        unet.to(dtype=frozen_dtype(computing.precision, accelerator.device))
        _add_lora(unet, recipe.lora, config.seed)
    else:
        unet.requires_grad_(True)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    kept = slices.kept()
    latents = Latents(slices, [s.image for s in kept], base)
    text = encode_prompts(base, [prompt])
    scheduler = DDPMScheduler.from_config(base.scheduler)

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(kept), (recipe.batch,), generator=generator).tolist()
        noisy, times, target = noisy_latents(latents.draw(chosen, generator), scheduler, generator)
        with accelerator.autocast():
            predicted = model(noisy, times, text.expand(len(noisy), -1, -1)).sample
        return nn.functional.mse_loss(predicted.float(), target)

    def preview(step: int) -> None:
        with accelerator.autocast():
            drawn = generate(base, unet, [prompt] * 4, range(4), slices.size, config.sampling)
        shown = kept[:: max(1, len(kept) // 4)][:4]
        real = [read_picture(slices, s.image) for s in shown]
        path = run_folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(len(real), [*real, *drawn[: len(real)]]))

    tell(f"Tuning on {len(kept)} slices of {slices.name}.")
    if accelerator.is_main_process:
        write_environment(run_folder, computing, tell)
    progress = fit(
        recipe,
        unet,
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
        _save(unet, run_folder, {**identity, "base": base.record()})
    accelerator.wait_for_everyone()
    return StageResult(progress.step, recipe.steps, run_folder if finished else None)


def load_tuned(run_folder: Path, base: BaseModel) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """The U-Net that a tuning made, on the CPU in full precision, and its record.

    Args:
        base: the same that was tuned; stays as it is.

    Raises:
        BundleError: no finished tuning, of another base, or its weights changed.
    """
    record = read_record(run_folder, "tune")
    check_base(base, record, run_folder)
    check_weights([_weight_file(run_folder, record)], record)
    if not record["settings"]["lora"]:
        unet = UNet2DConditionModel.from_pretrained(
            run_folder / "unet", local_files_only=True, use_safetensors=True
        )
        return unet.eval().requires_grad_(False), record
    unet = UNet2DConditionModel.from_config(base.unet.config)
    unet.load_state_dict(base.unet.state_dict())
    unet.load_lora_adapter(
        run_folder / "lora", prefix=None, local_files_only=True, use_safetensors=True
    )
    unet.fuse_lora()
    unet.unload_lora()
    return unet.eval().requires_grad_(False), record


def _add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Updates of rank `rank`, in full precision, start at zero."""
    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _weight_file(run_folder: Path, record: dict[str, Any]) -> Path:
    lora = run_folder / "lora" / "pytorch_lora_weights.safetensors"
    whole = run_folder / "unet" / "diffusion_pytorch_model.safetensors"
    return lora if record["settings"]["lora"] else whole


def _save(unet: UNet2DConditionModel, run_folder: Path, record: dict[str, Any]) -> None:
    file = _weight_file(run_folder, record)
    save = unet.save_lora_adapter if record["settings"]["lora"] else unet.save_pretrained
    save_model(save, file.parent)
    write_record(run_folder, {**record, "weights": weights_sha256([file])})
