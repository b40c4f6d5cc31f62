# SPDX-License-Identifier: Apache-2.0
"""Decoding on a tile and on the whole canvas are told apart, and each is what it says."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny_sam import FOUR_TILES

from SAMRefineLib.sam.models import SamModel, build_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from srcsm_training.data.dataset import read_dataset
from srcsm_training.experiments import tile_decoding
from srcsm_training.sam.decoder import embed


@pytest.fixture
def model():
    torch.manual_seed(2)
    return SamModel(
        build_sam("small", FOUR_TILES).requires_grad_(False), "tiny", "small", SRCSM, FOUR_TILES
    )


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "data", cases=1)


def test_a_tile_that_is_the_canvas_is_decoded_alike(model, data):
    scan = tile_decoding.lay_out(read_dataset(data).cases[0], model, "CT", [1, 2])
    embeddings = embed([scan], model)
    last = [example for example in scan.examples if scan.tile(example).x > 0][-1]
    tile = scan.tile(last)
    embedding = embeddings[id(scan), last.mosaic, tile.canvas]
    edges = np.array([[10.0, 12.5], [40.0, 33.0]])
    one = tile_decoding.on_tile(model, embedding, tile, edges)
    other = tile_decoding.on_canvas(model, embedding, tile, edges)
    assert one.shape == other.shape == (56, 64)  # as high as the slice
    assert not torch.allclose(one, other, atol=1e-3)
    whole = replace(tile, x=0, y=0, width=128, height=128)
    one, other = (
        f(model, embedding, whole, edges) for f in (tile_decoding.on_tile, tile_decoding.on_canvas)
    )
    torch.testing.assert_close(one, other)


def test_both_are_scored_for_every_box(model, data, tmp_path, capsys):
    save_sam(tmp_path / "sam", model, "card", "licence")
    assert tile_decoding.main(["--data", str(data), "--sam", str(tmp_path / "sam")]) == 0
    tile, canvas = capsys.readouterr().out.splitlines()
    assert tile.startswith("decoded on the tile: Dice 0.")
    assert canvas.startswith("decoded on the canvas: Dice 0.")
    assert tile.split(", ")[1] == canvas.split(", ")[1]
    assert int(tile.split(", ")[1].split()[0]) > 10
