# SPDX-License-Identifier: Apache-2.0
"""The small SAM: small enough, and made so that tiles do not see each other."""

import pytest
import torch
from tiny_sam import SMALL

from SAMRefineLib.models import SamModel, build_sam, save_sam
from SAMRefineLib.pixels import SRCSM
from SAMRefineLib.small_sam import SmallSamConfig, build_small_sam
from SRCSMSegmenterLib.errors import ConfigError


def test_the_shipped_size_fits_into_8_mb(tmp_path):
    config = SmallSamConfig()
    model = SamModel(build_small_sam(config), "sam-small-ct", "small", SRCSM, config)
    save_sam(tmp_path / "sam", model, "# Card\n", "Licence\n")
    assert sum(path.stat().st_size for path in (tmp_path / "sam").iterdir()) < 8_000_000


def test_its_sizes_are_those_of_the_config():
    sam = build_small_sam(SMALL)
    model = SamModel(sam, "tiny", "small", SRCSM, SMALL)
    assert (model.canvas, model.patch, model.window, model.step) == (64, 4, 32, 32)
    assert model.local_positions
    assert len(sam.image_encoder.blocks) == 2
    assert all(block.window_size == 8 for block in sam.image_encoder.blocks)
    assert all(block.attn.num_heads == 2 for block in sam.image_encoder.blocks)
    assert sam.image_encoder.blocks[0].mlp.lin1.out_features == 48
    assert [layer.mlp.lin1.out_features for layer in sam.mask_decoder.transformer.layers] == [
        24,
        24,
    ]
    assert not sam.training


def test_a_window_spans_the_waves_that_sams_image_does():
    torch.manual_seed(3)
    sam = build_small_sam(SMALL)
    window = sam.prompt_encoder.get_dense_pe()[0, :, :8, :8]
    # As over an image of one window, from whose middle SAM counts; ours is elsewhere.
    matrix = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix / 2
    edges = ((torch.arange(8) + 0.5) / 8 * 2 - 1) * 2 * torch.pi
    phase = edges[None, :, None] * matrix[0] + edges[:, None, None] * matrix[1]
    both = torch.complex(window[8:], window[:8]).permute(1, 2, 0)
    turned = both / torch.polar(torch.ones_like(phase), phase)
    assert torch.allclose(turned, turned[:1, :1].expand_as(turned), atol=1e-4)


def test_random_weights_differ_and_the_seed_decides_them():
    def drawn(seed):
        torch.manual_seed(seed)
        return build_sam("small", SMALL).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize(
    "sizes",
    [
        {"canvas": 500},
        {"window": 100},
        {"patch": 0},
        {"heads": 5},
        {"prompt_dim": 100},
        {"depth": 0},
    ],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ConfigError):
        SmallSamConfig(**sizes)
