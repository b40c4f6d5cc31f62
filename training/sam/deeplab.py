# SPDX-License-Identifier: Apache-2.0
"""The coarse network of the SAM paper, DeepLabV3-ResNet-50 (Wang et al.).

Our own coarse network is the U-Net; this one completes the paper's pipeline. It sees slices
at 512 pixels, has a sigmoid for each label, and is trained with Dice + CE + BCE. The ImageNet
weights of its backbone come from a file, torchvision's resnet50-*.pth, or it starts from nothing.

    python -m srcsm_training.sam.deeplab train --data Dataset101_AbdomenCT --out runs/deeplab
    python -m srcsm_training.sam.deeplab predict scan.nii.gz \\
        --model runs/deeplab/model.safetensors \\
        -o organs.nii.gz --confidence sure.nii.gz
    srcsm boxes scan.nii.gz --coarse organs.nii.gz --coarse-confidence sure.nii.gz -o boxes.json
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.sam.pixels import EQUALISED, to_pixels
from srcsm_training.data.dataset import Case, as_bytes, read_case
from srcsm_training.engine.accelerator import accelerator_for
from srcsm_training.engine.fit import fit
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.progress import Progress, mean_dice
from srcsm_training.engine.run_folder import Run, RunResult, open_case_run
from srcsm_training.engine.source_domain import open_source
from srcsm_training.sam.deeplab_config import DeepLabConfig
from srcsm_training.sam.layout import CoarseNetwork
from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.models.hashed_folder import sha256


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of a case.

    Attributes:
        pixels: (slices, rows, columns) float16 from 0 to 1.
        labels: (slices, rows, columns) uint8.
    """

    name: str
    pixels: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, eq=False)
class Coarse:
    """A trained network.

    Attributes:
        labels: name -> value, 1, 2, ...; one channel each.
        size: pixels of the square that it sees.
        modality: of its source.
    """

    network: nn.Module
    labels: dict[str, int]
    size: int
    modality: str


def build(labels: int, backbone: Path | None = None) -> nn.Module:
    """Build the network with a channel for each of the foreground `labels`.

    Args:
        backbone: torchvision's file of ImageNet weights; None starts from nothing.

    Raises:
        BundleError: the file cannot be read, or holds other weights.
    """
    network = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=labels, aux_loss=False
    )
    if backbone:
        try:
            weights = torch.load(backbone, map_location="cpu", weights_only=True)
            kept = {name: value for name, value in weights.items() if not name.startswith("fc.")}
            network.backbone.load_state_dict(kept)
        except Exception as error:  # damaged bytes make torch raise nearly anything
            raise BundleError(
                f"{backbone} cannot be used as the backbone's weights; give torchvision's "
                f"resnet50 file ({error})."
            ) from error
    return network


def run_training(
    dataset_folder: Path,
    config: DeepLabConfig,
    run_folder: Path,
    *,
    backbone: Path | None = None,
    name: str | None = None,
    device: str = "auto",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> RunResult:
    """Train, or resume; the finished network is the run's ``model.safetensors``.

    Args:
        backbone: see `build`.
        name: of the file, without its ending.
        run_folder, device: see `segmentation.run.run_training`.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, BundleError, TrainingError,
        CheckpointError.
    """
    computing = accelerator_for(device, config.optimisation.precision, plane=config.size**2)
    tell = computing.introduce(limits.say)
    source = open_source(dataset_folder, config.data, tell, check=computing.main)
    source.require_scans("The coarse network")
    run = open_case_run(run_folder, config, computing, source, tell=tell)
    training, validation = (
        [read_slices(case, source.modality) for case in cases]
        for cases in (source.training, source.validation)
    )
    torch.manual_seed(config.seed)
    network = build(len(run.labels), backbone).to(run.accelerator.device)
    progress = train(run, network, training, validation, limits)

    def save_best(path: Path) -> None:
        save(path, Coarse(network, source.dataset.labels, config.size, source.modality))

    return run.end(progress, run.folder / f"{name or 'model'}.safetensors", save_best)


def train(
    run: Run,
    network: nn.Module,
    training: Sequence[Slices],
    validation: Sequence[Slices],
    limits: Limits,
) -> Progress:
    """Train `network` until its last step or a limit.

    Args:
        run: of a `DeepLabConfig`.
        training, validation: cases; validation may be empty.

    Raises:
        TrainingError, CheckpointError: see `fit`.
    """
    config, accelerator = run.config, run.accelerator
    recipe, device = config.optimisation, accelerator.device
    optimiser = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
    )
    places = [(case, n) for case in training for n in range(len(case.pixels))]

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.randint(len(places), (recipe.batch,), generator=generator).tolist()
        pairs = [scaled(case, n, config.size) for case, n in (places[p] for p in order)]
        images, labels = (torch.stack(parts).to(device) for parts in zip(*pairs, strict=True))
        return images, labels

    def loss(
        model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        images, labels = batch
        with accelerator.autocast():
            logits = model(images)["out"]
        return coarse_loss(logits, labels)

    def validate(network: nn.Module) -> dict[str, list[float]]:
        return {"dice": validation_dice(network, validation, config, accelerator)}

    return fit(
        run,
        network,
        optimiser,
        draw=draw,
        loss=loss,
        validate=validate if validation else None,
        limits=limits,
    )


def coarse_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum Dice of the labels present, CE (background's logit is 0) and BCE of the sigmoids.

    Args:
        logits: (N, labels, rows, columns).
        labels: (N, rows, columns) int64.
    """
    logits = logits.float()
    true = F.one_hot(labels, logits.shape[1] + 1).permute(0, 3, 1, 2)[:, 1:].float()
    probabilities = logits.sigmoid()
    overlap = (probabilities * true).sum((2, 3))
    total = probabilities.square().sum((2, 3)) + true.sum((2, 3))
    present = true.any(3).any(2)
    dice = torch.where(present, 1 - 2 * overlap / total.clamp(min=1e-6), 0.0)
    background = torch.zeros_like(logits[:, :1])
    return (
        dice.sum() / present.sum().clamp(min=1)
        + F.cross_entropy(torch.cat([background, logits], 1), labels)
        + F.binary_cross_entropy_with_logits(logits, true)
    )


@torch.no_grad()
def validation_dice(
    network: nn.Module, cases: Sequence[Slices], config: DeepLabConfig, accelerator: Accelerator
) -> list[float]:
    """Compute `mean_dice` at the network's resolution."""
    device = accelerator.device
    channels = network.classifier[-1].out_channels
    sums = torch.zeros(len(cases), 2, channels, device=device)
    for index in range(accelerator.process_index, len(cases), accelerator.num_processes):
        for n in range(len(cases[index].pixels)):
            image, labels = scaled(cases[index], n, config.size)
            with accelerator.autocast():
                mask = network(image[None].to(device))["out"][0] > 0
            values = torch.arange(1, channels + 1, device=device)
            true = labels.to(device) == values[:, None, None]
            sums[index, 0] += (mask & true).sum((1, 2))
            sums[index, 1] += mask.sum((1, 2)) + true.sum((1, 2))
    return mean_dice(sums, accelerator)


@torch.no_grad()
def predict(volume: Volume, coarse: Coarse, modality: str | None = None) -> np.ndarray:
    """Predict the probability of each label, (labels, K, J, I) float16.

    Args:
        volume: raw intensities.
        modality: "CT" or "MR"; None: guessed from the intensities.
    """
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    pixels = torch.from_numpy(to_pixels(grid.stack(volume.array), EQUALISED, modality))
    device = next(coarse.network.parameters()).device
    probabilities = np.zeros((len(coarse.labels), *volume.array.shape), np.float16)
    for n, image in enumerate(pixels):
        shown = _resized(image[None, None], coarse.size).expand(-1, 3, -1, -1)
        sure = coarse.network(shown.to(device))["out"].float().sigmoid()
        sure = F.interpolate(sure, grid.shape, mode="bilinear", align_corners=False)[0]
        for stack, probability in zip(probabilities, sure.cpu().numpy(), strict=True):
            grid.stack(stack)[n] = probability
    return probabilities


def read_slices(case: Case, modality: str) -> Slices:
    """Read a case's slices as the network sees them."""
    volume, labels = read_case(case)
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    pixels = to_pixels(grid.stack(volume.array), EQUALISED, modality)
    stack = np.ascontiguousarray(grid.stack(as_bytes(case.labels, labels.array)))
    return Slices(case.name, torch.from_numpy(pixels).half(), torch.from_numpy(stack))


def scaled(case: Slices, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale slice n to the network's resolution: (3, size, size) float32, (size, size) int64."""
    image = _resized(case.pixels[n][None, None].float(), size)[0]
    labels = F.interpolate(case.labels[n][None, None].float(), (size, size), mode="nearest-exact")
    return image.expand(3, -1, -1), labels[0, 0].long()


def save(path: Path, coarse: Coarse) -> None:
    """Write weights and what belongs to them; the file appears complete or not at all."""
    about = {"labels": coarse.labels, "size": coarse.size, "modality": coarse.modality}
    with atomic_write(path) as temporary:
        save_file(coarse.network.state_dict(), temporary, {"deeplab": json.dumps(about)})


def load(path: Path, device: str = "auto") -> Coarse:
    """Read what `save` wrote.

    Raises:
        BundleError: unreadable, or no such network.
        DeviceError: unknown or absent device.
    """
    where = resolve_device(device)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["deeplab"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = build(len(about["labels"]))
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} is no DeepLab that was trained here ({error}).") from error
    return Coarse(network.eval().requires_grad_(False).to(where), **about)


def as_coarse_network(path: Path, device: str = "auto") -> CoarseNetwork:
    """Take a trained network as coarse network of a SAM.

    Raises:
        BundleError, DeviceError: see `load`.
    """
    coarse = load(path, device)

    def probabilities(volume: Volume, modality: str) -> Callable[[int], np.ndarray]:
        found = predict(volume, coarse, modality)
        channels = {label: n for n, label in enumerate(coarse.labels.values())}
        return lambda label: found[channels[label]]

    return CoarseNetwork(
        "DeepLabV3-ResNet-50", sha256(path.read_bytes()), coarse.labels, probabilities
    )


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


if __name__ == "__main__":
    from srcsm_training.cli.deeplab import main

    sys.exit(main(__doc__))
