# SPDX-License-Identifier: Apache-2.0
"""The small SAM of this program, built of segment_anything's classes.

All attention of its encoder stays within windows of 128 pixels, so that a tile of a mosaic is
encoded independently of the others, and positions count from the tile's own corner. Patches of 8
pixels rather than 16 give masks at half the tile's resolution.
"""

from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from SRCSMSegmenterLib.errors import ConfigError

MOST = 4096
MOST_MLP = 64.0
"""Limits of the sizes of a small SAM, and of its `mlp_ratio`."""


@dataclass(frozen=True)
class SmallSamConfig:
    """Sizes of a small SAM.

    Attributes:
        canvas: side in pixels of a mosaic's canvas.
        window: side in pixels of the window that attention stays within.
        patch: side in pixels of a token of the encoder; a decoded mask has 4 x 4 pixels a patch.
        embed_dim, depth, heads, mlp_ratio: sizes of the encoder.
        prompt_dim: channels of the embedding and of the decoder.
        decoder_heads, decoder_mlp: sizes of the decoder's two layers.
    """

    canvas: int = 512
    window: int = 128
    patch: int = 8
    embed_dim: int = 192
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    prompt_dim: int = 128
    decoder_heads: int = 8
    decoder_mlp: int = 512

    def __post_init__(self) -> None:
        sizes = [size for name, size in vars(self).items() if name != "mlp_ratio"]
        if not 1 <= min(sizes) <= max(sizes) <= MOST or not 0 < self.mlp_ratio <= MOST_MLP:
            raise ConfigError(
                f"Sizes of a SAM are from 1 to {MOST}, mlp_ratio up to {MOST_MLP:g}: {self}."
            )
        if self.embed_dim * self.mlp_ratio < 1:
            raise ConfigError(f"mlp_ratio leaves no channel: {self}.")
        if self.window % self.patch or self.canvas % self.window:
            raise ConfigError(f"Patches must tile the window, and windows the canvas: {self}.")
        # The decoder's attention halves its channels; positions need sine and cosine.
        if self.embed_dim % self.heads or self.prompt_dim % (2 * self.decoder_heads):
            raise ConfigError(
                f"Heads must divide the channels (the decoder's, half of them): {self}."
            )


def build_small_sam(config: SmallSamConfig) -> Sam:
    """Build a small SAM with random weights, in evaluation mode.

    Run its encoder with `embeddings.encode`, which cuts canvases to windows.
    """
    tokens = config.canvas // config.patch
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=config.canvas,
            patch_size=config.patch,
            in_chans=1,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            out_chans=config.prompt_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_abs_pos=False,
            use_rel_pos=True,
            window_size=config.window // config.patch,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.prompt_dim,
            image_embedding_size=(tokens, tokens),
            input_image_size=(config.canvas, config.canvas),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=0,  # a box is not ambiguous
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=config.prompt_dim,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp,
            ),
            transformer_dim=config.prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=config.prompt_dim,
        ),
        pixel_mean=[0.0],
        pixel_std=[1.0],
    )
    # Positions are encoded over the canvas; a window spans as many periods as SAM's image does.
    positions = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    positions *= config.canvas / config.window
    return sam.eval()
