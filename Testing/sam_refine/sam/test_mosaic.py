# SPDX-License-Identifier: Apache-2.0
"""Slices on canvases: nothing is lost, nothing overlaps, and masks come back where they were."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from SAMRefineLib.sam.mosaic import Mosaic, Tile, mask_from_tile, mask_to_tile, pack, place


def ellipse(shape, centre, radii):
    """Signed, about -1 at the middle, 0 on the rim; centre and radii are (x, y) in edge pixels."""
    rows, columns = np.indices(shape) + 0.5
    x, y = (columns - centre[0]) / radii[0], (rows - centre[1]) / radii[1]
    return (np.hypot(x, y) - 1).astype(np.float32)


def identity_model(mosaic: Mosaic, number: int, patch: int) -> torch.Tensor:
    """What a decoder that hands back its picture would give for one tile: 4 x 4 pixels a patch."""
    tile = mosaic.tiles[number]
    rows, columns = tile.patches(patch)
    canvas = torch.from_numpy(mosaic.canvas(tile.canvas))[None]
    return F.avg_pool2d(canvas, patch // 4)[0][
        4 * rows.start : 4 * rows.stop, 4 * columns.start : 4 * columns.stop
    ]


def shift(found, truth):
    """How far (x, y), in pixels, an ellipse has moved: least squares over its rim."""
    down, across = np.gradient(truth)
    rim = np.abs(truth) < 0.4
    slopes = np.stack([across[rim], down[rim]], axis=1)
    return np.linalg.lstsq(slopes, (truth - found)[rim], rcond=None)[0]


@pytest.mark.parametrize(
    ("size", "count", "canvases"),
    [(512, 4, 1), (512, 5, 2), (256, 16, 1), (256, 17, 2), (1024, 2, 2), (300, 9, 1)],
)
def test_canvases_of_1024_hold_four_slices_of_512_and_sixteen_of_256(size, count, canvases):
    slices = [np.full((size, size), n + 1, np.float32) for n in range(count)]
    mosaic = pack(slices, side=1024, step=16, at_least=256, at_most=1024)
    assert len(mosaic.members) == canvases
    assert all((tile.width, tile.height) == (size, size) for tile in mosaic.tiles)
    values = [set(np.unique(mosaic.canvas(n))) - {0} for n in range(canvases)]
    assert [len(found) for found in values] == [len(members) for members in mosaic.members]
    assert sum(mosaic.members, ()) == tuple(range(count))


def test_equal_slices_fill_canvases_row_by_row():
    assert place([(512, 512)] * 5, 1024, 16) == [
        (0, 0, 0),
        (0, 512, 0),
        (0, 0, 512),
        (0, 512, 512),
        (1, 0, 0),
    ]


def test_small_pieces_go_into_the_gaps_that_large_ones_leave():
    corners = place([(64, 64), (64, 64), (448, 512), (64, 384)], 512, 64)
    assert {canvas for canvas, _, _ in corners} == {0}
    assert corners[2] == (0, 0, 0)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 96), st.integers(1, 96)), max_size=40),
    step=st.sampled_from([1, 8, 16, 32]),
)
def test_packing_never_overlaps_nor_leaves_the_canvas_nor_the_lattice(sizes, step):
    corners = place(sizes, 96, step)
    painted: dict[int, np.ndarray] = {}
    for (canvas, x, y), (width, height) in zip(corners, sizes, strict=True):
        assert x % step == y % step == 0
        assert x + width <= 96
        assert y + height <= 96
        taken = painted.setdefault(canvas, np.zeros((96, 96), int))
        taken[y : y + height, x : x + width] += 1
    assert all(taken.max() == 1 for taken in painted.values())
    assert sorted(painted) == list(range(len(painted)))
    # First fit: two canvases could not both be less than half full of pieces that fit together.
    cells = [-(-w // step) * -(-h // step) for w, h in sizes]
    assert len(painted) <= 1 + 4 * sum(cells) / (96 // step) ** 2


def test_no_slices_make_no_canvas():
    assert pack([], side=64, step=16, at_least=16, at_most=64).members == ()


@pytest.mark.parametrize("patch", [8, 16])
def test_masks_come_back_on_the_slice_without_a_shift_from_every_tile(patch):
    """Seven ellipses, each somewhere else, on off-diagonal tiles and a partly filled canvas."""
    shape = (20 * patch, 12 * patch)
    truth = [((60.3 + 5 * n, 131.7 - 9 * n), (25.0 + n, 33.0 - 2 * n)) for n in range(7)]
    slices = [ellipse(shape, (x * patch / 16, y * patch / 16), r) for (x, y), r in truth]
    mosaic = pack(slices, side=64 * patch, step=patch, at_least=patch, at_most=64 * patch)
    assert {(t.x, t.y) for t in mosaic.tiles} >= {(12 * patch, 0), (0, 20 * patch)}
    for number, (_, radii) in enumerate(truth):
        found = mask_from_tile(
            identity_model(mosaic, number, patch), mosaic.tiles[number], patch
        ).numpy()
        assert found.shape == shape
        assert np.abs(shift(found, slices[number])).max() < 0.03
        assert (found < 0).sum() == pytest.approx(np.pi * radii[0] * radii[1], rel=0.03)


@pytest.mark.parametrize(
    ("shape", "at_least", "at_most"),
    [((90, 70), 256, 256), ((700, 400), 512, 512), ((130, 130), 250, 512), ((90, 33), 97, 512)],
)
def test_masks_of_scaled_slices_come_back_without_a_shift(shape, at_least, at_most):
    """Scaled up, down, and to sizes that are no multiple of the patch."""
    centre = np.array((0.61 * shape[1], 0.37 * shape[0]))
    radii = np.array((0.2 * shape[1], 0.22 * shape[0]))
    # A steep picture of something else first, so that the tile in question is off the diagonal.
    slices = [np.full(shape, 9, np.float32), ellipse(shape, centre, radii)]
    mosaic = pack(slices, side=512, step=8, at_least=at_least, at_most=at_most)
    found = mask_from_tile(identity_model(mosaic, 1, 8), mosaic.tiles[1], 8).numpy()
    assert found.shape == shape
    assert np.abs(shift(found, slices[1])).max() < 0.03
    assert ((found < 0) != (slices[1] < 0)).sum() < 0.03 * np.pi * radii.prod()


def test_a_crop_shows_only_its_rectangle_and_its_mask_belongs_there():
    image = ellipse((200, 180), (120.4, 61.8), (21, 13))
    crop = (90, 40, 154, 88)
    mosaic = pack(
        [image, image], side=512, step=8, at_least=128, at_most=128, sources=[(0, 0, 40, 40), crop]
    )
    tile = mosaic.tiles[1]
    assert (tile.width, tile.height, tile.scale) == (128, 96, (2, 2))
    found = mask_from_tile(identity_model(mosaic, 1, 8), tile, 8).numpy()
    assert found.shape == (48, 64)
    assert np.abs(shift(found, image[40:88, 90:154])).max() < 0.03


def test_logits_at_the_picture_s_own_resolution_come_back_exactly():
    random = np.random.default_rng(3)
    slices = [random.normal(size=(32, 48)).astype(np.float32) for _ in range(3)]
    mosaic = pack(slices, side=96, step=16, at_least=1, at_most=96)
    for number, image in enumerate(slices):
        rows, columns = mosaic.tiles[number].patches(16)
        canvas = torch.from_numpy(mosaic.canvas(mosaic.tiles[number].canvas))
        part = canvas[16 * rows.start : 16 * rows.stop, 16 * columns.start : 16 * columns.stop]
        assert torch.equal(mask_from_tile(part, mosaic.tiles[number], 16), torch.from_numpy(image))


def test_masks_of_several_boxes_come_back_together():
    tile = Tile(0, 8, 24, 13, 30, (2, 5, 15, 25))
    logits = torch.randn(3, 1, 16, 8)
    together = mask_from_tile(logits, tile, 8)
    assert together.shape == (3, 1, 20, 13)
    for n in range(3):
        torch.testing.assert_close(together[n, 0], mask_from_tile(logits[n, 0], tile, 8))


def test_a_mask_goes_onto_its_tile_as_sam_would_decode_it():
    """Two pixels of a patch of 8 are one value; patches reach beyond the tile, where there is 0."""
    mask = np.zeros((50, 60))
    mask[10:20, 30:50] = 0.75
    tile = Tile(2, 64, 32, 60, 50, (0, 0, 60, 50))
    found = mask_to_tile(mask, tile, 8)
    expected = np.zeros((28, 32), np.float32)
    expected[5:10, 15:25] = 0.75
    np.testing.assert_allclose(found.numpy(), expected)
    crop = Tile(0, 8, 8, 40, 20, (30, 10, 50, 20))
    found = mask_to_tile(mask > 0, crop, 8)
    assert found.shape == (12, 20)
    assert found[:10].min() == 1
    assert found[10:].max() == 0


def test_tiles_have_square_pixels():
    tall = pack(
        [np.zeros((30, 100), np.float32)], side=512, step=8, at_least=1, at_most=512, aspect=4.0
    )
    flat = pack(
        [np.zeros((100, 30), np.float32)], side=512, step=8, at_least=1, at_most=512, aspect=0.25
    )
    assert (tall.tiles[0].width, tall.tiles[0].height) == (100, 120)
    assert (flat.tiles[0].width, flat.tiles[0].height) == (120, 100)


def test_a_slice_larger_than_a_canvas_is_scaled_down():
    mosaic = pack([np.ones((1200, 600), np.float32)], side=512, step=8, at_least=64, at_most=512)
    tile = mosaic.tiles[0]
    assert (tile.width, tile.height) == (256, 512)
    assert mosaic.canvas(0)[:, :256].min() == pytest.approx(1)
    assert mosaic.canvas(0)[:, 256:].max() == 0


def test_what_no_slice_covers_has_the_fill():
    mosaic = pack([np.ones((20, 30), np.float32)], side=64, step=8, at_least=1, at_most=64, fill=-1)
    canvas = mosaic.canvas(0)
    assert (canvas == 1).sum() == 600
    assert (canvas == -1).sum() == 64 * 64 - 600


@given(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60), st.integers(1, 60)))
def test_coordinates_go_to_the_tile(rectangle):
    x0, y0, width, height = rectangle
    tile = Tile(3, 128, 64, 77, 50, (x0, y0, x0 + width, y0 + height))
    corners = np.array([[x0, y0], [x0 + width, y0 + height], [x0 + 0.25 * width, y0 + height]])
    expected = [[0, 0], [77, 50], [77 / 4, 50]]
    np.testing.assert_allclose(tile.to_tile(corners), expected, atol=1e-9)


def test_a_tile_s_patches_are_those_it_touches():
    assert Tile(0, 64, 16, 33, 16, (0, 0, 33, 16)).patches(16) == (slice(1, 2), slice(4, 7))


@pytest.mark.parametrize("limits", [(0, 10), (20, 10), (10, 80)])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ValueError, match="at_least"):
        pack([], side=64, step=16, at_least=limits[0], at_most=limits[1])
