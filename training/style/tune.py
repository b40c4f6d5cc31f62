# SPDX-License-Identifier: Apache-2.0
"""Instance tuning: the base's U-Net learns to draw the source's slices (Chen et al. 2025).

The folder of the run:

model.json     the record: base, slices, prompt, SHA-256 of the weights
unet/          the tuned U-Net in diffusers format, or
lora/          low-rank updates, pytorch_lora_weights.safetensors
previews/      slices of the source above pictures drawn for the instance prompt
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from ..engine.accelerator import Computing, accelerator_for
from ..engine.config import to_dict
from ..engine.limits import Limits
from ..engine.run_folder import Run
from .base import (
    BaseModel,
    check_base,
    load_base,
    read_record,
    save_model,
    write_record,
)
from .config import SamplingConfig, StyleConfig, TuneConfig
from .diffusion import (
    Latents,
    Noisy,
    encode_prompts,
    frozen_dtype,
    generate,
    noisy_latents,
    place_frozen,
    sheet,
)
from .prompts import read_prompts
from .slices import (
    SliceSet,
    StageResult,
    manifest_sha256,
    read_picture,
    read_slices,
    write_picture,
)
from .stage import fit_stage, open_stage
from .weights import check_weights, load_network, weights_sha256

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
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Tune the U-Net, or resume a tuning.

    Args:
        base_name, download: see `load_base`.

    Raises:
        DatasetError, ConfigError, BundleError, DeviceError, TrainingError, CheckpointError,
        StyleError.
    """
    recipe = config.tune
    computing = accelerator_for(device, recipe.precision, "tune")
    slices = read_slices(slices_folder)
    prompt = read_prompts(config.prompts).instance
    tell = computing.introduce(limits.say)
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
    run = open_stage(run_folder, config, recipe, computing, identity=identity, tell=tell)
    place_frozen(base, run.accelerator.device, computing.precision)
    unet = _trainable(base, recipe, computing, config.seed)
    tuning = _Tuning(run, slices, base, unet, prompt, config.sampling)
    tell(f"Tuning on {len(tuning.kept)} slices of {slices.name}.")
    progress = fit_stage(
        run, unet, draw=tuning.draw, loss=tuning.loss, preview=tuning.preview, limits=limits
    )
    if progress.finished and run.main:
        _save(unet, run.folder, {**identity, "base": base.record()})
    run.accelerator.wait_for_everyone()
    return StageResult(progress.step, recipe.steps, run.folder if progress.finished else None)


class _Tuning:
    """Batches, loss and previews of a tuning."""

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        base: BaseModel,
        unet: UNet2DConditionModel,
        prompt: str,
        sampling: SamplingConfig,
    ) -> None:
        self.kept = slices.kept()
        self._run, self._slices, self._base, self._unet = run, slices, base, unet
        self._prompt, self._sampling = prompt, sampling
        self._latents = Latents(slices, [s.image for s in self.kept], base)
        self._text = encode_prompts(base, [prompt])
        self._scheduler = DDPMScheduler.from_config(base.scheduler)

    def draw(self, generator: torch.Generator) -> Noisy:
        """Draw slices, evenly, and their noise."""
        batch = self._run.config.optimisation.batch
        chosen = torch.randint(len(self.kept), (batch,), generator=generator).tolist()
        latents = self._latents.draw(chosen, generator)
        return noisy_latents(latents, self._scheduler, generator)

    def loss(self, model: nn.Module, batch: Noisy) -> torch.Tensor:
        """Compute the squared error of what the U-Net predicts."""
        with self._run.accelerator.autocast():
            text = self._text.expand(len(batch.latents), -1, -1)
            predicted = model(batch.latents, batch.times, text).sample
        return nn.functional.mse_loss(predicted.float(), batch.target)

    def preview(self, step: int) -> None:
        """Draw pictures for the instance prompt, below slices of the source."""
        prompts, size = [self._prompt] * 4, self._slices.size
        with self._run.accelerator.autocast():
            drawn = generate(self._base, self._unet, prompts, range(4), size, self._sampling)
        shown = self.kept[:: max(1, len(self.kept) // 4)][:4]
        real = [read_picture(self._slices, s.image) for s in shown]
        path = self._run.folder / "previews" / f"step_{step:06d}.png"
        write_picture(path, sheet(len(real), [*real, *drawn[: len(real)]]))


def _trainable(
    base: BaseModel, recipe: TuneConfig, computing: Computing, seed: int
) -> UNet2DConditionModel:
    """Move the base's U-Net to the device, and turn on the gradients of what is trained."""
    device = computing.accelerator.device
    unet = base.unet.to(device)
    if recipe.lora:
        unet.to(dtype=frozen_dtype(computing.precision, device))
        _add_lora(unet, recipe.lora, seed)
    else:
        unet.requires_grad_(True)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def load_tuned(run_folder: Path, base: BaseModel) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """Load the U-Net of a tuning, on the CPU in full precision, and its record.

    Args:
        base: the same that was tuned; stays as it is.

    Raises:
        BundleError: no finished tuning, of another base, or its weights changed.
    """
    record = read_record(run_folder, "tune")
    check_base(base, record, run_folder)
    weights = _weight_file(run_folder, record)
    check_weights([weights], record)
    if not record["settings"]["lora"]:
        name = str(run_folder)
        return load_network(UNet2DConditionModel, weights.parent, [weights], name), record
    unet = UNet2DConditionModel.from_config(base.unet.config)
    unet.load_state_dict(base.unet.state_dict())
    unet.load_lora_adapter(
        run_folder / "lora", prefix=None, local_files_only=True, use_safetensors=True
    )
    unet.fuse_lora()
    unet.unload_lora()
    return unet.eval().requires_grad_(False), record


def _add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Add updates of rank `rank`, in full precision, which start at zero."""
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
