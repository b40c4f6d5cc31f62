# SPDX-License-Identifier: Apache-2.0
"""The small SAM: small enough, and made so that tiles do not see each other."""

from dataclasses import replace

import pytest
import torch
from tiny_sam import SMALL

from SAMRefineLib.sam.models import SamModel, build_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from SAMRefineLib.sam.small_sam import SmallSamConfig, build_small_sam
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


def test_positions_vary_within_a_window_as_sams_do_within_an_image():
    def positions(config):
        torch.manual_seed(3)
        return build_small_sam(config).prompt_encoder

    canvas, one_window = positions(SMALL), positions(replace(SMALL, canvas=32))
    corners = torch.tensor([[[0.0, 0.0], [32.0, 20.0]]])
    for encoder, side in ((canvas, 64), (one_window, 32)):
        assert encoder.input_image_size == (side, side)
    phases = [
        corners / side @ encoder.pe_layer.positional_encoding_gaussian_matrix
        for encoder, side in ((canvas, 64), (one_window, 32))
    ]
    assert torch.allclose(*phases)


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
