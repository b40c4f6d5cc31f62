# SPDX-License-Identifier: Apache-2.0
"""SAM's decoder on tiles: many prompts at once, each with its own tile's part of an embedding.

segment_anything's own decoder takes one image and many prompts. Here every prompt has its own
image, so that a box on each of thirty slices is one call, and the decoder sees only a tile's part
of the embedding, which is several times as fast as the whole canvas.
"""

from dataclasses import dataclass

import torch

from .models import SamModel


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts for one object on each of B tiles of the same size.

    Coordinates are edge coordinates in canvas pixels from the tile's corner: pixel n covers n to
    n + 1. All tensors are float32.

    Attributes:
        boxes: (B, 4) as x0, y0, x1, y1.
        points: (B, N, 2) as x, y.
        point_labels: (B, N), 1 for points in the object, 0 outside it, -1 for none (if one object
            has fewer points than another).
        masks: (B, 1, 4h, 4w) logits of mask prompts, 4 x 4 for each patch of the tile.
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
    """Decode masks for prompts; gradients flow if they are enabled.

    Args:
        embeddings: (B, C, h, w), the part of the canvas's embedding under each prompt's tile
            (`Tile.patches`). All tiles of a call have one size.
        prompts: B of them.
        corners: (B, 2) x and y of the tiles on their canvases in pixels, multiples of the patch;
            None if tiles are whole canvases. A model with local positions ignores it.

    Returns:
        Logits (B, 4h, 4w), 4 x 4 for each patch, and SAM's own estimate of each mask's IoU
        (B,); float32, on the model's device.
    """
    embeddings = embeddings.to(model.device, torch.float32)
    sparse, dense = _prompt_embeddings(model, prompts, corners, embeddings.shape[-2:])
    positions = _positions(model, corners, embeddings.shape[-2:])
    decoder = model.sam.mask_decoder
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([tokens.expand(len(sparse), -1, -1), sparse], 1)
    tokens, image = decoder.transformer(embeddings + dense, positions, tokens)
    image = decoder.output_upscaling(image.transpose(1, 2).reshape(embeddings.shape))
    # Token 0 predicts the IoU, token 1 the mask of an unambiguous prompt, the others alternatives.
    weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
    logits = torch.einsum("bc,bchw->bhw", weights, image)
    return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 0]


def _prompt_embeddings(
    model: SamModel, prompts: Prompts, corners: torch.Tensor | None, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sparse (B, tokens, C) and dense (B, C, h, w) embeddings of prompts."""
    # SAM counts coordinates from the middle of the first pixel.
    shift = torch.tensor(-0.5, device=model.device)
    if corners is not None and not model.local_positions:
        shift = shift + corners.to(model.device, torch.float32)[:, None]

    def on_canvas(coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates.to(model.device).unflatten(1, (-1, 2)) + shift

    points, masks = None, None
    if prompts.points is not None:
        xy = on_canvas(prompts.points.flatten(1))
        points = xy, prompts.point_labels.to(model.device)
    if prompts.masks is not None:
        masks = prompts.masks.to(model.device)
    encoder = model.sam.prompt_encoder
    sparse, dense = encoder(points, on_canvas(prompts.boxes).flatten(1), masks)
    if masks is None:  # one vector, repeated over a whole canvas
        dense = dense[..., :1, :1].expand(-1, -1, *size)
    return sparse, dense


def _positions(
    model: SamModel, corners: torch.Tensor | None, size: tuple[int, int]
) -> torch.Tensor:
    """Return the position embeddings of a tile's tokens, (B or 1, C, h, w)."""
    height, width = size
    canvas = model.sam.prompt_encoder.get_dense_pe()
    if corners is None or model.local_positions:
        return canvas[..., :height, :width]
    first = (corners // model.patch).long().tolist()
    return torch.cat([canvas[..., y : y + height, x : x + width] for x, y in first])
