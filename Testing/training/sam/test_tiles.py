# SPDX-License-Identifier: Apache-2.0
"""Tiles for a SAM's training: where they lie, what is an object, what becomes of its box."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from srcsm_training.data.cases import prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.sam.from_scratch import SLICES
from srcsm_training.sam.tiles import (
    BoxConfig,
    TileConfig,
    disturbed_boxes,
    draw_tiles,
    object_in_slice,
    place_tile,
    prompts_of,
    tight_boxes,
)
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.resampling import index_map

STILL = TileConfig(
    side=32,
    margin=(1.0, 1.0),
    pixel=0.0,
    whole_slices=0.0,
    smallest=1,
    rotation=0.0,
    tilt=0.0,
    axis_scale=0.0,
    elastic=0.0,
    shift=0.0,
    contrast=0.0,
)
"""Nothing is random but the object and the tile's orientation."""

EXACT = BoxConfig(exact=1.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tiny.write_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Tiny", cases=2)
    rule = IntensityRule("CT", window=(-125, 275))
    cache = tmp_path_factory.mktemp("cache")
    prepared = prepare_cases(read_dataset(folder).cases, rule, 0.0, SLICES, cache)
    return [replace(case, image=case.image / 300) for case in prepared]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(cases, tiles=STILL, boxes=EXACT, count=4, seed=0):
    return draw_tiles(cases, tiles, boxes, count, seeded(seed), "cpu")


def test_a_box_reaches_from_the_first_pixel_to_past_the_last():
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    masks[0, 2:5, 3:4] = True
    masks[1, 0, 0] = masks[1, 5, 8] = True
    assert tight_boxes(masks).tolist() == [[3, 2, 4, 5], [0, 0, 9, 6]]
    assert tight_boxes(masks[:0]).shape == (0, 4)


def test_the_object_of_a_voxel_is_its_label_in_its_slice(cases):
    case = cases[0]
    labels = np.zeros((3, 6, 8), np.uint8)
    labels[1, 2:4, 1:6] = 2
    labels[1, 5, 0] = 1
    labels[2] = 2  # another slice
    affine = np.diag([2.0, 3.0, 9.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    case = replace(
        case, labels=torch.from_numpy(labels)[None], geometry=Geometry((8, 6, 3), affine)
    )
    middle, extent = object_in_slice(case, np.array([4, 3, 1]))
    assert middle == pytest.approx([10 + 2 * 3, 20 + 3 * 2.5, 30 + 9])
    assert extent == pytest.approx(5 * 2.0)


def test_slices_lie_across_the_slice_axis(cases):
    labels = np.zeros((6, 3, 8), np.uint8)
    labels[1:4, 1, 2:4] = 1
    case = replace(
        cases[0],
        labels=torch.from_numpy(labels)[None],
        geometry=Geometry((8, 3, 6), np.diag([2.0, 9.0, 4.0, 1.0])),
    )
    middle, extent = object_in_slice(case, np.array([2, 1, 3]))
    assert middle == pytest.approx([2 * 2.5, 9, 4 * 2])
    assert extent == pytest.approx(3 * 4.0)


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("exchanged", [False, True])
def test_a_tile_lies_in_its_slice(mirrored, exchanged):
    """By hand: 4 x 4 pixels of 3 mm around index (5, 7, 2) of a left-handed scan of 1.5 mm."""
    scan = Geometry((20, 30, 5), np.diag([-1.5, 1.5, 6.0, 1.0]))
    tile = place_tile(scan, scan.to_ras([5, 7, 2]), 12.0, 4, mirrored, exchanged)
    corner = index_map(tile, scan) @ [0, 0, 0, 1]
    along_i = index_map(tile, scan) @ [1, 0, 0, 0]
    x, y = (3 if flip else -3 for flip in mirrored)
    assert corner[:3] == pytest.approx([5 + x, 7 + y, 2])
    step = 2.0 * (-1 if mirrored[exchanged] else 1)
    assert along_i[:3] == pytest.approx([0, step, 0] if exchanged else [step, 0, 0])
    assert tile.size == (4, 4, 1)


def test_a_tile_without_a_margin_fits_its_object(cases):
    tiles = drawn(cases, count=12)
    sizes = tiles.boxes[:, 2:] - tiles.boxes[:, :2]
    largest = torch.stack([sizes[tiles.owner == n].max() for n in range(12)])
    assert (largest >= 31).all()  # labels are smoothed
    assert tiles.images.shape == (12, 1, 32, 32)


def test_boxes_fit_masks_and_masks_fit_images(cases):
    """In the tiny CT the liver has 120 of 300 HU and the spleen 220, others less."""
    tiles = drawn(cases, replace(STILL, margin=(2.0, 2.0), rotation=0.3, smallest=100), count=12)
    assert {1, 2} == set(tiles.value.tolist())
    assert torch.equal(tiles.boxes, tight_boxes(tiles.masks))
    for owner, value, mask in zip(tiles.owner, tiles.value, tiles.masks, strict=True):
        seen = tiles.images[owner, 0][mask].median()
        assert 300 * float(seen) == pytest.approx({1: 120, 2: 220}[int(value)], abs=15)


def test_the_margin_is_the_tile_over_the_object(cases):
    tiles = drawn(cases, replace(STILL, margin=(2.0, 2.0)), count=12)
    sizes = tiles.boxes[:, 2:] - tiles.boxes[:, :2]
    largest = torch.stack([sizes[tiles.owner == n].max() for n in range(12)])
    assert ((largest - 16).abs() <= 3).sum() >= 9  # a neighbour may be larger, a scan smaller


def test_no_pixel_is_smaller_than_it_may_be(cases):
    fine, coarse = (drawn(cases[:1], replace(STILL, pixel=p), count=8) for p in (0.0, 2.0))
    assert coarse.masks.sum((1, 2)).float().mean() < fine.masks.sum((1, 2)).float().mean() / 1.5


def test_whole_slices_are_fewer_and_larger(cases):
    shapes = {
        tuple(drawn(cases, replace(STILL, whole_slices=1.0), count=8, seed=seed).images.shape)
        for seed in range(8)
    }
    assert shapes == {(2, 1, 64, 64), (1, 1, 128, 128)}


def test_small_pieces_are_no_prompts():
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[0, :2, :3] = 2
    labels[0, 7, 7] = 1
    labels[1, 3:5, 3:5] = 3
    owner, value = prompts_of(labels, 4)
    assert (owner.tolist(), value.tolist()) == ([0, 1], [2, 3])
    owner, value = prompts_of(labels, 1)
    assert (owner.tolist(), value.tolist()) == ([0, 0, 1], [1, 2, 3])
    owner, _ = prompts_of(labels * 0, 1)
    assert len(owner) == 0


BOXES = torch.tensor([[10.0, 20.0, 50.0, 40.0], [0.0, 5.0, 4.0, 64.0], [30.0, 30.0, 31.0, 31.0]])


@given(seed=st.integers(0, 2**30), error=st.floats(0, 1), jitter=st.floats(0, 1))
def test_a_disturbed_box_remains_a_box_in_its_tile(seed, error, jitter):
    config = BoxConfig(exact=0.2, jitter=jitter, error=error)
    moved = disturbed_boxes(BOXES, config, 64, seeded(seed))
    assert (moved >= 0).all()
    assert (moved <= 64).all()
    size, before = moved[:, 2:] - moved[:, :2], BOXES[:, 2:] - BOXES[:, :2]
    assert (size >= before / 3 - 1e-4).all()
    middle = (BOXES[:, 2:] + BOXES[:, :2]) / 2
    assert (moved[:, :2] < middle).all()
    assert (moved[:, 2:] > middle).all()


def test_exact_jittered_and_erring_boxes():
    boxes = BOXES[:1].repeat(4000, 1)
    assert torch.equal(disturbed_boxes(boxes, EXACT, 64, seeded()), boxes)
    config = BoxConfig(exact=0.2, jitter=0.1, error=0.05)
    outwards = disturbed_boxes(boxes, config, 100, seeded()) - boxes
    outwards *= torch.tensor([-1, -1, 1, 1])
    still = (outwards == 0).all(1)
    assert float(still.float().mean()) == pytest.approx(0.2, abs=0.03)
    out = (outwards >= 0).all(1) & (outwards <= 4).all(1) & ~still
    assert float(out.float().mean()) == pytest.approx(0.4 + 0.4 * 0.48**4, abs=0.03)
    either = outwards[(outwards < 0).any(1)]
    assert float(either.std()) == pytest.approx(2.0, abs=0.2)


def test_the_same_generator_draws_the_same(cases):
    random = TileConfig(side=32, smallest=1)
    first, again, other = (drawn(cases, random, BoxConfig(), seed=s) for s in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize(
    "change", [{"rotation": 0.3}, {"tilt": 0.3}, {"axis_scale": 0.3}, {"elastic": 0.2}]
)
def test_each_spatial_augmentation_moves_the_labels(cases, change):
    still = replace(STILL, margin=(1.5, 1.5))
    assert not torch.equal(
        drawn(cases, still).labels, drawn(cases, replace(still, **change)).labels
    )


@pytest.mark.parametrize("change", [{"shift": 0.3}, {"contrast": 0.3}])
def test_intensities_are_augmented_and_clipped(cases, change):
    plain, changed = drawn(cases), drawn(cases, replace(STILL, **change))
    assert torch.equal(plain.labels, changed.labels)
    assert not torch.equal(plain.images, changed.images)
    assert float(changed.images.min()) >= -1
    assert float(changed.images.max()) <= 1


def test_a_margin_of_less_than_the_object_is_refused():
    with pytest.raises(ConfigError, match="margin"):
        TileConfig(margin=(0.9, 2.0))


def test_a_batch_shows_an_object_however_often_it_must_be_drawn(cases):
    """Of single tiles, those whose objects are too small show none."""
    labels = torch.stack(
        [draw.labels[0] for draw in (drawn(cases, count=1, seed=n) for n in range(12))]
    )
    areas = torch.nn.functional.one_hot(labels.flatten(1))[..., 1:].sum(1)
    smallest = int(areas.amax(1).median()) + 1
    assert 0 < (areas >= smallest).any(1).sum() < 12
    for seed in range(12):
        assert len(drawn(cases, replace(STILL, smallest=smallest), count=1, seed=seed).boxes)
