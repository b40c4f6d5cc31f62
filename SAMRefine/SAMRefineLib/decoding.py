# SPDX-License-Identifier: Apache-2.0
"""SAM's decoder on tiles: many prompts at once, each on its own tile's part of an embedding.

segment_anything's own decoder takes one image and many prompts; here every prompt has an image,
so that a box on each of thirty slices is one call. On a tile's part of the embedding alone the
decoder is several times as fast as on the whole canvas.
"""

from dataclasses import dataclass

import torch

from .models import SamModel


@dataclass(frozen=True, eq=False)
class Prompts:
    """What to segment, one object for each of B tiles of the same size.

    Coordinates are edge coordinates in canvas pixels from the tile's corner: pixel n covers n to
    n + 1. All tensors are float32.

    Attributes:
        boxes: (B, 4) as x0, y0, x1, y1.
        points: (B, N, 2) as x, y.
        point_labels: (B, N), 1 for points in the object, 0 outside it, -1 for none (where one
            object has fewer points than another).
        masks: (B, 1, 4h, 4w) logits of a first guess, 4 x 4 for each patch of the tile.
    """

    boxes: torch.Tensor
    points: torch.Tensor | None = None
    point_labels: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def decode(
    model: SamModel,
    embeddings: torch.Tensor,
    prompts: Prompts,
    corners: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks for prompts; gradients flow where they are on.

    Args:
        embeddings: (B, C, h, w), the part of the canvas's embedding under each prompt's tile
            (`Tile.patches`). All tiles of a call have one size.
        prompts: B of them.
        corners: (B, 2) x and y of the tiles on their canvases in pixels, multiples of the patch;
            None where tiles are whole canvases. A model with local positions pays no heed to it.

    Returns:
        Logits (B, 4h, 4w), 4 x 4 for each patch, and SAM's own estimate of each mask's IoU (B,);
        float32, on the model's device.
    """
    raise NotImplementedError
