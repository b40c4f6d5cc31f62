# SPDX-License-Identifier: Apache-2.0
"""SAMs so small that a test can run them on one core; random weights, none of them zero."""

from functools import partial

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from SAMRefineLib.sam.models import SamModel
from SAMRefineLib.sam.pixels import OFFICIAL, SRCSM
from SAMRefineLib.sam.small_sam import SmallSamConfig, build_small_sam

SMALL = SmallSamConfig(
    canvas=64, window=32, patch=4, embed_dim=12, depth=2, heads=2, prompt_dim=16, decoder_heads=2,
    decoder_mlp=24,
)  # fmt: skip
"""Canvases of 2 x 2 windows of 8 x 8 tokens."""

FOUR_TILES = SmallSamConfig(
    canvas=128, window=64, patch=4, embed_dim=8, depth=1, heads=1, prompt_dim=16, decoder_heads=2,
    decoder_mlp=16,
)  # fmt: skip
"""Canvases of 2 x 2 windows of 16 x 16 tokens, which hold four tiles of 64 pixels."""


def small_model(seed: int = 0) -> SamModel:
    """A small SAM of `SMALL`."""
    torch.manual_seed(seed)
    sam = _spread(build_small_sam(SMALL))
    return SamModel(sam, "tiny", "small", SRCSM, SMALL)


def official_model(seed: int = 0) -> SamModel:
    """SAM's own architecture in little: canvases of 96 pixels, 6 x 6 tokens, sees all of them."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=96,
            embed_dim=12,
            depth=2,
            num_heads=2,
            out_chans=16,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(16, (6, 6), (96, 96), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=2, embedding_dim=16, num_heads=2, mlp_dim=24),
            iou_head_hidden_dim=16,
        ),
    ).eval()
    return SamModel(_spread(sam), "tiny-official", "vit_b", OFFICIAL)


def _spread(sam: Sam) -> Sam:
    """Positions and biases start at 0, where they would hide faults."""
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return sam.requires_grad_(False)
