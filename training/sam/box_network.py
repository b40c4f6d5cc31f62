# SPDX-License-Identifier: Apache-2.0
"""A SAM as one network of images and prompts, with its loss and its validation."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import encode
from SAMRefineLib.sam.models import SamModel
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample

from ..data.cases import PreparedCase
from ..engine.losses import mask_loss
from ..engine.progress import mean_dice
from .tiles import Tiles, object_in_slice, place_tile, prompts_of, tight_boxes

VALIDATION_MARGIN = 1.5
"""Side of a validation tile over the longer side of its object."""

VALIDATION_SLICES = 8
"""Of each label of each validation case, evenly spread over those that show it."""


class BoxSam(nn.Module):
    """A SAM as one function of images and prompts, as a training on many devices needs it.

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
        """Compute logits (P, 4h, 4w), 4 x 4 per patch, and estimated IoU (P,).

        Args:
            images: (N, 1, side, side) pixels.
            owner: (P,) the image of each prompt.
        """
        return decode(self.model, encode(self.model, images[:, 0])[owner], prompts)


def prompted_loss(logits: torch.Tensor, iou: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Compute `mask_loss` on the tile's pixels plus the squared error of the estimated IoU.

    Args:
        logits: (P, rows, columns) of any resolution.
        iou: (P,) estimated.
        masks: (P, side, side) bool.
    """
    logits = F.interpolate(
        logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    with torch.no_grad():
        predicted = logits > 0
        both = (predicted & masks).sum((1, 2))
        true_iou = both / (predicted | masks).sum((1, 2))
    return mask_loss(logits, masks) + F.mse_loss(iou.float(), true_iou)


def validation_tiles(case: PreparedCase, side: int) -> Tiles:
    """Cut tiles of a case's objects, with their true boxes and without augmentation.

    Args:
        side: pixels of a tile.
    """
    grid = SliceGrid(case.geometry, case.geometry.slice_axis)
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
    """Compute `mean_dice` of the foreground, given the true boxes and nothing else."""
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
            logits = F.interpolate(
                logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
            predicted = logits > 0
            value = tiles.value[part].to(device)
            both, either = (
                (predicted & masks).sum((1, 2)),
                predicted.sum((1, 2)) + masks.sum((1, 2)),
            )
            sums[index, 0].index_add_(0, value, both.float())
            sums[index, 1].index_add_(0, value, either.float())
    return mean_dice(sums, accelerator)[1:]
