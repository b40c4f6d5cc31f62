# SPDX-License-Identifier: Apache-2.0
"""Training our small SAM from nothing on one domain.

All of it is trained: encoder, prompt encoder and decoder, with random convolution as the
augmentation that makes it useful on another modality. Prompts are boxes with a coarse network's
errors, at times with points or a first guess of the mask beside them. Its estimate of the mask's
IoU is trained too. The best weights are chosen by true boxes on validation cases of the source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import encode
from SAMRefineLib.sam.models import SMALL, SamModel, save_sam
from SAMRefineLib.sam.pixels import SRCSM, PixelRule, to_pixels
from SAMRefineLib.sam.small_sam import SmallSamConfig, build_small_sam
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample, smooth_voxels

from ..augment.random_convolution import MODES, random_convolution
from ..data.cases import PreparedCase, default_cache, prepare_cases
from ..engine import fit
from ..engine.accelerator import accelerator_for
from ..engine.config import Recipe, ScansConfig, one_of, to_dict
from ..engine.losses import mask_loss
from ..engine.run_folder import Run, RunResult, best_validation, dice_table, open_run
from ..engine.source_domain import intensity_rule
from .tiles import (
    BoxConfig,
    TileConfig,
    Tiles,
    draw_tiles,
    object_in_slice,
    place_tile,
    prompts_of,
    tight_boxes,
)

VALIDATION_MARGIN = 1.5
"""Side of a validation tile over the longer side of its object."""

VALIDATION_SLICES = 8
"""Of each label of each validation case, evenly spread over those that show it."""

LICENCE = "Weights under the terms of the training data; research use only.\n"

SLICES = GridSpec((1, 1, 1), (1.0, 1.0, 1.0), axes="slices")


@dataclass(frozen=True)
class PromptConfig:
    """What is given beside the box; one kind for all prompts of a batch.

    Attributes:
        points: share of the batches with a point in the object and one outside it, either of them
            left out at half of the prompts.
        mask: share of the batches with a first guess of the mask.
    """

    points: float = 0.15
    mask: float = 0.2


@dataclass(frozen=True)
class SamConfig:
    """Everything that decides the result of a training from nothing, beside the dataset.

    Attributes:
        random_convolution: "off", "global", "hard" or "smoothed".
        seed: every random draw of step s on process r is a function of (seed, s, r).
        checkpoint_minutes: time between two checkpoints.
        validate_every: steps between two validations; 0 validates at the end only.
    """

    network: SmallSamConfig = field(default_factory=SmallSamConfig)
    data: ScansConfig = field(default_factory=lambda: ScansConfig(folds=7, smoothing=0.0))
    tiles: TileConfig = field(default_factory=TileConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    optimisation: Recipe = field(
        default_factory=lambda: Recipe(
            steps=5000, batch=12, learning_rate=1e-3, schedule="cosine", l2=0.0
        )
    )
    random_convolution: str = "smoothed"
    seed: int = 0
    checkpoint_minutes: float = 5.0
    validate_every: int = 500

    def __post_init__(self) -> None:
        one_of("random_convolution", self.random_convolution, MODES)


class BoxSam(nn.Module):
    """A SAM as one function of images and prompts, which is what a training on many devices needs.

    Attributes:
        model: whose `sam` this module trains.
    """

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.model = model
        self.sam = model.sam

    def forward(
        self, images: torch.Tensor, owner: torch.Tensor, prompts: Prompts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (P, 4h, 4w), 4 x 4 per patch, and estimated IoU (P,).

        Args:
            images: (N, 1, side, side) pixels.
            owner: (P,) the image of each prompt.
        """
        return decode(self.model, encode(self.model, images[:, 0])[owner], prompts)


def run_sam_training(
    dataset_folder: Path,
    config: SamConfig,
    run_folder: Path,
    *,
    name: str | None = None,
    device: str = "auto",
    cache: Path | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[fit.Progress], None] = lambda progress: None,
    **limits: Any,  # noqa: ANN401 - max_minutes, stop_requested of `fit.fit`
) -> RunResult:
    """Check the dataset, prepare its cases, train (or resume), and export the SAM.

    Args:
        dataset_folder: an nnU-Net raw dataset.
        run_folder: made where it does not exist; a stopped run in it is resumed. The finished SAM
            is its folder ``model``.
        name: of the SAM; the run folder's by default.
        device, cache, say, progress: see `run.run_training`.

    Raises:
        DatasetError, ConfigError, DeviceError, VolumeError, TrainingError, CheckpointError.
    """
    computing = accelerator_for(device, config.optimisation.precision)
    accelerator = computing.accelerator
    run = open_run(dataset_folder, config.data, run_folder, computing, say)
    source = run.source
    fit.state_to_resume(run.folder, config, source.training, source.validation)
    rule = intensity_rule(config.data, source.modality, source.training)
    cases, count = (*source.training, *source.validation), len(source.training)
    run.tell(f"Preparing {count} training and {len(source.validation)} validation cases ...")
    with accelerator.main_process_first():
        scaled = prepare_cases(cases, rule, config.data.smoothing, SLICES, cache or default_cache())
    prepared = [with_pixels(case, SRCSM, source.modality) for case in scaled]

    run.begin(config)
    state, weights = train(
        config,
        prepared[:count],
        prepared[count:],
        len(run.labels) + 1,
        run.folder,
        accelerator=accelerator,
        report=progress,
        validated=lambda _, state: run.write_curve(state),
        **limits,
    )

    def save(folder: Path) -> None:
        network = new_network(config)
        network.load_state_dict(weights)
        called = name or run.folder.resolve().name
        model = replace(network.model, name=called, training=summary(config, run, state))
        save_sam(folder, model, sam_card(model), LICENCE)

    return run.end(state, run.folder / "model", save)


def train(
    config: SamConfig,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    classes: int,
    run_folder: Path,
    *,
    accelerator: Accelerator,
    **arguments: Any,  # noqa: ANN401 - of `fit.fit`
) -> tuple[fit.Progress, dict[str, torch.Tensor]]:
    """Train a small SAM until its last step; see `fit.fit` for what else it takes and gives.

    Args:
        training, validation: cases in pixels (`with_pixels`); validation may be empty.
        classes: labels, background included.

    Returns:
        The progress, and the averaged weights of `BoxSam`.
    """
    device = accelerator.device
    torch.manual_seed(config.seed)
    network = new_network(config).to(device)
    recipe = config.optimisation
    optimiser = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
    )
    held_out = [validation_tiles(case, config.tiles.side) for case in validation]

    def draw(generator: torch.Generator) -> Tiles:
        return draw_tiles(
            training, config.tiles, config.boxes, classes, recipe.batch, generator, device
        )

    def loss(model: nn.Module, tiles: Tiles, generator: torch.Generator) -> torch.Tensor:
        looks = random_convolution(tiles.images, tiles.labels, config.random_convolution, generator)
        masks = tiles.masks
        prompts = draw_prompts(tiles.boxes, masks, config, generator)
        with accelerator.autocast():
            logits, iou = model(looks, tiles.owner, prompts)
        return prompted_loss(logits, iou, masks)

    return fit.fit(
        config,
        network,
        optimiser,
        run_folder,
        training,
        validation,
        draw=draw,
        loss=loss,
        validate=lambda average: {"dice": true_box_dice(average, held_out, classes, accelerator)},
        accelerator=accelerator,
        **arguments,
    )


def new_network(config: SamConfig) -> BoxSam:
    """A small SAM with random weights."""
    sam = build_small_sam(config.network)
    return BoxSam(SamModel(sam, "", SMALL, SRCSM, config.network))


def with_pixels(case: PreparedCase, rule: PixelRule, modality: str) -> PreparedCase:
    """The case with a SAM's pixels for intensities, float16."""
    grid = SliceGrid(case.geometry, case.geometry.coarsest_axis)
    pixels = to_pixels(grid.stack(case.image[0].numpy()), rule, modality)
    volume = np.moveaxis(pixels, 0, 2 - grid.axis)
    return replace(case, image=torch.from_numpy(np.ascontiguousarray(volume)).half()[None])


def draw_prompts(
    boxes: torch.Tensor, masks: torch.Tensor, config: SamConfig, generator: torch.Generator
) -> Prompts:
    """Boxes, at times with points or a first guess of the mask.

    Args:
        boxes: (P, 4).
        masks: (P, side, side) bool.
    """
    kind = float(torch.rand((), generator=generator))
    if kind < config.prompts.points:
        where, which = drawn_points(boxes, masks, generator)
        return Prompts(boxes, where, which)
    if kind < config.prompts.points + config.prompts.mask:
        return Prompts(boxes, masks=guessed_masks(masks, config.network.patch // 4, generator))
    return Prompts(boxes)


def drawn_points(
    boxes: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A point in each object and one in its box outside it, either left out at half of them.

    Returns:
        (P, 2, 2) x and y of the middles of pixels; (P, 2) labels 1, 0 or, left out, -1.
    """
    device, masks, boxes = masks.device, masks.cpu(), boxes.cpu()
    middle = torch.arange(masks.shape[1]) + 0.5
    in_x = (middle > boxes[:, :1]) & (middle < boxes[:, 2:3])
    in_y = (middle > boxes[:, 1:2]) & (middle < boxes[:, 3:])
    outside = in_y[:, :, None] & in_x[:, None, :] & ~masks
    where, which = [], []
    for label, allowed in ((1, masks), (0, outside)):
        chances = allowed.flatten(1).float()
        given = torch.rand(len(masks), generator=generator) < 0.5
        given &= chances.any(1)
        chances[~given] = 1.0
        index = torch.multinomial(chances, 1, generator=generator)[:, 0]
        rows = torch.div(index, masks.shape[2], rounding_mode="floor")
        where.append(torch.stack([index % masks.shape[2], rows], 1) + 0.5)
        which.append(torch.where(given, label, -1))
    return torch.stack(where, 1).to(device), torch.stack(which, 1).float().to(device)


def guessed_masks(masks: torch.Tensor, pixel: int, generator: torch.Generator) -> torch.Tensor:
    """Logits (P, 1, rows, columns) of a coarse guess, one for `pixel` x `pixel` pixels.

    The mask is blurred, and its outline moved by a smooth random field.
    """
    small = F.avg_pool2d(masks[:, None].float(), pixel)
    side = small.shape[-1]
    blurred = smooth_voxels(small, sigma=side / 32, radius=side // 10)
    field = torch.randn(len(masks), 1, 8, 8, generator=generator).to(masks.device)
    field = F.interpolate(field, (side, side), mode="bicubic", align_corners=False)
    sure = 2 + 10 * torch.rand(len(masks), 1, 1, 1, generator=generator).to(masks.device)
    return sure * (2 * blurred - 1 + 0.4 * field)


def prompted_loss(logits: torch.Tensor, iou: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`mask_loss` on the tile's pixels, and the squared error of the estimated IoU.

    Args:
        logits: (P, rows, columns) of any resolution.
        iou: (P,) estimated.
        masks: (P, side, side) bool.
    """
    logits = F.interpolate(
        logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    with torch.no_grad():
        found = logits > 0
        both = (found & masks).sum((1, 2))
        true_iou = both / (found | masks).sum((1, 2))
    return mask_loss(logits, masks) + F.mse_loss(iou.float(), true_iou)


def validation_tiles(case: PreparedCase, side: int) -> Tiles:
    """Tiles of a case's objects without any augmentation, with their true boxes."""
    grid = SliceGrid(case.geometry, case.geometry.coarsest_axis)
    images, masks, values = [], [], []
    for voxels in case.foreground:
        slices = np.unique(voxels[:, grid.axis])
        chosen = np.linspace(0, len(slices) - 1, min(len(slices), VALIDATION_SLICES)).round()
        for n in slices[chosen.astype(int)]:
            voxel = voxels[voxels[:, grid.axis] == n][0]
            value = int(case.labels[0][tuple(voxel[::-1])])
            middle, extent = object_in_slice(case, voxel)
            window = place_tile(case.geometry, middle, VALIDATION_MARGIN * extent, side)
            lookup = look_up(
                points(index_map(window, case.geometry), window.size), case.geometry.shape
            )
            mask = sample(case.labels, lookup, mode="nearest")[0, 0] == value
            images.append(sample(case.image, lookup, outside=case.outside)[:, 0])
            masks.append(mask.long() * value)
            values.append(value)
    labels = torch.stack(masks)
    owner, value = prompts_of(labels, 1)
    boxes = tight_boxes(labels[owner] == value[:, None, None])
    return Tiles(torch.stack(images), labels, owner, value, boxes)


@torch.no_grad()
def true_box_dice(
    network: BoxSam, cases: Sequence[Tiles], classes: int, accelerator: Accelerator
) -> list[float]:
    """`fit.mean_dice` of the foreground, boxes and nothing else given."""
    device = accelerator.device
    sums = torch.zeros(len(cases), 2, classes, device=device)
    for index in range(accelerator.process_index, len(cases), accelerator.num_processes):
        tiles = cases[index]
        for part in torch.arange(len(tiles.boxes)).split(16):
            owner = tiles.owner[part]
            masks = tiles.masks[part].to(device)
            prompts = Prompts(tiles.boxes[part].to(device))
            with accelerator.autocast():
                logits, _ = network(
                    tiles.images[owner].to(device), torch.arange(len(part), device=device), prompts
                )
            found = F.interpolate(
                logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
            found = found > 0
            value = tiles.value[part].to(device)
            both, either = (found & masks).sum((1, 2)), found.sum((1, 2)) + masks.sum((1, 2))
            sums[index, 0].index_add_(0, value, both.float())
            sums[index, 1].index_add_(0, value, either.float())
    return fit.mean_dice(sums, accelerator)[1:]


def summary(config: object, run: Run, state: fit.Progress) -> dict:
    """What a SAM's folder tells of its training, plain JSON values."""
    return {
        "dataset": run.source.dataset.name,
        "modality": run.source.modality,
        "training_cases": len(run.source.training),
        "validation_cases": len(run.source.validation),
        "steps": state.step,
        "validation_dice": best_validation(state, run.labels),
        "config": to_dict(config),
    }


def sam_card(model: SamModel, licence: str = LICENCE) -> str:
    """The model card of a SAM, Markdown."""
    training = model.training
    return f"""# {model.name}

A SAM ({model.kind}) that outlines what a box surrounds, trained on {training["modality"]} alone.

**Research use only. Not for diagnosis.**

- Expects: slices of CT or MR, and boxes around organs
- Licence: {licence.strip()}

## Training

- Data: {training["dataset"]}, {training["training_cases"]} cases for training,
  {training["validation_cases"]} for validation
- Random convolution: {training["config"]["random_convolution"]}; steps: {training["steps"]}

## Source validation

Dice on tiles around the organs, the best of all validations:

{dice_table(training["validation_dice"])}
"""
