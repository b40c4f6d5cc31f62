# SPDX-License-Identifier: Apache-2.0
"""Prompts beside the box that a SAM is trained with: points and mask prompts."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from SAMRefineLib.sam.decoding import Prompts
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.resampling import smooth_voxels

from ..engine.keys import SHARE, Settings, key


@dataclass(frozen=True)
class PromptConfig(Settings):
    """Frequency of the prompts beside the box; all prompts of a batch are of one kind.

    Attributes:
        points: share of the batches with a point in the object and one outside it, either of them
            left out of half of the prompts.
        mask: share of the batches with a mask prompt.
    """

    points: float = key(0.15, SHARE, paper="0")
    mask: float = key(0.2, SHARE, paper="0")

    section: ClassVar[str] = "prompts."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points + self.mask > 1:
            raise ConfigError(
                f"prompts.points and prompts.mask are shares of all batches: {self.points:g} and "
                f"{self.mask:g} are more than 1 together."
            )


def draw_prompts(
    boxes: torch.Tensor,
    masks: torch.Tensor,
    config: PromptConfig,
    pixel: int,
    generator: torch.Generator,
) -> Prompts:
    """Draw what is given beside the boxes: points, a mask prompt or nothing.

    Args:
        boxes: (P, 4).
        masks: (P, side, side) bool.
        pixel: side in pixels of a mask prompt's pixel.
    """
    kind = float(torch.rand((), generator=generator))
    if kind < config.points:
        where, which = drawn_points(boxes, masks, generator)
        return Prompts(boxes, where, which)
    if kind < config.points + config.mask:
        return Prompts(boxes, masks=mask_prompts(masks, pixel, generator))
    return Prompts(boxes)


def drawn_points(
    boxes: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a point in each object and one in its box outside it, half of each kind left out.

    Args:
        boxes: (P, 4) edges x0, y0, x1, y1 in pixels.
        masks: (P, rows, columns) bool.

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


def mask_prompts(masks: torch.Tensor, pixel: int, generator: torch.Generator) -> torch.Tensor:
    """Draw mask prompts: the masks blurred, their outlines moved by a smooth random field.

    Args:
        masks: (P, rows, columns) bool.
        pixel: side in pixels of a mask prompt's pixel.

    Returns:
        Logits (P, 1, rows / pixel, columns / pixel).
    """
    small = F.avg_pool2d(masks[:, None].float(), pixel)
    side = small.shape[-1]
    blurred = smooth_voxels(small, sigma=side / 32, radius=side // 10)
    field = torch.randn(len(masks), 1, 8, 8, generator=generator).to(masks.device)
    field = F.interpolate(field, (side, side), mode="bicubic", align_corners=False)
    sure = 2 + 10 * torch.rand(len(masks), 1, 1, 1, generator=generator).to(masks.device)
    return sure * (2 * blurred - 1 + 0.4 * field)
