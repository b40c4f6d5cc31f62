# SPDX-License-Identifier: Apache-2.0
"""Boxes around coarse masks, slice by slice, and what of a mask is certain."""

import math

import numpy as np
import pytest
from geometries import oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.coarse import (
    CoarseMask,
    boxes_from_coarse,
    boxes_from_patch,
    certain_share,
    checked_probabilities,
    coarse_probability,
    filter_stack,
    is_uncertain,
    patch_slices_without_box,
    slices_without_box,
)
from SAMRefineLib.boxes.patches import Patch
from SRCSMSegmenterLib.errors import PromptError

few = settings(max_examples=40, deadline=None)


def grid_of(shape, axis=2) -> SliceGrid:
    """A grid for arrays of `shape` (K, J, I)."""
    return SliceGrid(oblique_left_handed(shape[::-1]), axis)


def filtered(mask, grid, probability=None, *, in_slices=True) -> np.ndarray:
    """A mask, bool (K, J, I), after the paper's filter."""
    kept = mask.copy()
    weights = None if probability is None else grid.stack(probability)
    filter_stack(grid.stack(kept), weights, in_volume=True, in_slices=in_slices)
    return kept


@st.composite
def masks(draw, max_side=6):
    """A bool (K, J, I) mask with some pieces, and an axis."""
    shape = draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=max_side))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.random(shape) < draw(st.sampled_from((0.1, 0.4, 0.7))), draw(st.integers(0, 2))


@few
@given(masks())
def test_an_unfiltered_box_holds_exactly_the_mask_of_its_slice(drawn):
    mask, axis = drawn
    grid = grid_of(mask.shape, axis)
    boxes = boxes_from_coarse(mask, grid, in_volume=False, in_slices=False)
    assert list(boxes) == sorted(boxes)
    for n in range(grid.count):
        rows, columns = np.nonzero(grid.slice_of(mask, n))
        if len(rows) == 0:
            assert n not in boxes
        else:
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert boxes[n].edges == expected


@few
@given(masks(), st.booleans())
def test_the_filter_keeps_one_piece_and_none_is_larger(drawn, in_slices):
    mask, axis = drawn
    grid = grid_of(mask.shape, axis)
    before = mask.copy()
    kept = filtered(mask, grid, in_slices=in_slices)
    np.testing.assert_array_equal(mask, before)
    assert not (kept & ~mask).any()

    pairs = [] if in_slices else [(mask, kept)]
    if in_slices:
        whole = filtered(mask, grid, in_slices=False)
        pairs += zip(grid.stack(whole), grid.stack(kept), strict=True)
    for pieces, piece in pairs:
        assert ndimage.label(piece)[1] == min(1, pieces.sum())
        assert piece.sum() == max(np.bincount(ndimage.label(pieces)[0].ravel())[1:], default=0)


@few
@given(masks())
def test_the_papers_filter_keeps_the_largest_piece_of_each_slice(drawn):
    mask, axis = drawn
    grid = grid_of(mask.shape, axis)
    boxes = boxes_from_coarse(mask, grid, in_volume=False)
    for slice_index, image in enumerate(grid.stack(mask)):
        alone = filtered(image[None], grid_of((1, *image.shape)))
        rows, columns = np.nonzero(alone[0])
        if len(rows) == 0:
            assert slice_index not in boxes
        else:
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert boxes[slice_index].edges == expected


@few
@given(masks(), st.sampled_from([0.0, 0.5, 0.75]))
def test_a_block_of_a_mask_has_the_boxes_of_the_whole(drawn, confidence):
    mask, axis = drawn
    grid = grid_of(mask.shape, axis)
    coarse = np.where(mask, np.linspace(0.5, 1, mask.size).reshape(mask.shape), 0)
    expected = boxes_from_coarse(coarse, grid, confidence)
    block = Patch.of(mask).block
    patch = Patch(tuple(part.start for part in block), coarse[block])
    assert boxes_from_patch(patch, grid, confidence) == expected


def two_organs_and_a_speck() -> np.ndarray:
    """(K, J, I): a piece in slices 0 to 2, a larger one in 2 to 4 which is two in slice 4."""
    mask = np.zeros((5, 8, 12), bool)
    mask[0:3, 0:2, 0:3] = True
    mask[2:5, 4:8, 5:8] = True
    mask[3, 7, 8:12] = mask[4, 7, 10:12] = True
    return mask


def test_volume_first_then_slices():
    mask = two_organs_and_a_speck()
    grid = grid_of(mask.shape)
    small, large, wide = Box(0, 0, 3, 2), Box(5, 4, 8, 8), Box(5, 4, 12, 8)
    assert boxes_from_coarse(mask, grid) == {2: large, 3: wide, 4: large}
    assert boxes_from_coarse(mask, grid, in_slices=False) == {2: large, 3: wide, 4: wide}
    assert boxes_from_coarse(mask, grid, in_volume=False) == {
        **{0: small, 1: small},
        **{2: large, 3: wide, 4: large},
    }
    assert boxes_from_coarse(mask, grid, in_volume=False, in_slices=False)[2] == Box(0, 0, 8, 8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sure_voxels_weigh_more(axis):
    probability = np.zeros((4, 6, 7), np.float16)
    probability[:2, :3, :3] = 0.55  # a large piece, hardly likelier than not
    probability[2:, 4:, 4:] = 0.95
    grid, small = grid_of(probability.shape, axis), probability > 0.9
    kept = filtered(probability > 0.5, grid, probability)
    np.testing.assert_array_equal(kept, small)
    assert boxes_from_coarse(probability, grid, 0.5) == boxes_from_coarse(small, grid)
    np.testing.assert_array_equal(CoarseMask(probability, grid).component(3), grid.stack(small)[3])
    assert not (filtered(probability > 0.5, grid) & small).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("threshold", [None, 0.4, 2])
def test_a_coarse_mask_shows_in_every_slice_what_a_search_of_the_volume_finds(axis, threshold):
    probability = np.zeros((7, 8, 9), np.float16)
    probability[2:5, 1:4, 3:6] = np.random.default_rng(0).random((3, 3, 3))
    probability[5, 6, 7] = 0.9
    given = probability if threshold is None else probability > threshold
    grid = grid_of(given.shape, axis)
    mask, coarse = given >= 0.5, CoarseMask(given, grid)
    expected = filtered(mask, grid, given.astype(np.float16), in_slices=False)
    shown = [coarse.component(k) for k in range(grid.count)]
    np.testing.assert_array_equal(shown, grid.stack(expected))
    counts = grid.stack(mask).sum(axis=(1, 2))
    assert coarse.voxels == {k: n for k, n in enumerate(counts.tolist()) if n}


def test_pixels_that_touch_by_a_corner_are_two_pieces():
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 1:3, 1:3] = mask[0, 3, 3] = True
    assert boxes_from_coarse(mask, grid_of(mask.shape)) == {0: Box(1, 1, 3, 3)}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_only_what_is_above_the_threshold_counts(dtype):
    probability = np.zeros((2, 6, 9), dtype)
    probability[0, 1:5, 2:8] = 0.75
    probability[0, 2:4, 3:7] = 0.76
    grid = grid_of(probability.shape)
    assert boxes_from_coarse(probability, grid) == {0: Box(3, 2, 7, 4)}
    assert boxes_from_coarse(probability, grid, box_confidence=0.5) == {0: Box(2, 1, 8, 5)}
    assert boxes_from_coarse(probability, grid, box_confidence=0.8) == {}


def test_slices_that_lost_their_organ_are_named():
    probability = np.zeros((6, 6, 9), np.float32)
    probability[1, 1:3, 1:3] = 0.6  # unsure
    probability[2, 1:5, 1:5] = 0.9
    probability[4, 1:3, 1:3] = 0.9  # not part of the largest piece
    probability[5] = 0.4  # not shown at all
    grid = grid_of(probability.shape)
    boxes = boxes_from_coarse(probability, grid)
    assert list(boxes) == [2]
    assert slices_without_box(probability, grid, boxes) == [1, 4]
    assert slices_without_box(probability > 0.5, grid, boxes) == [1, 4]
    nothing = np.zeros(grid.geometry.shape, bool)
    assert (boxes_from_coarse(nothing, grid), slices_without_box(nothing, grid, {})) == ({}, [])


def test_a_shrunk_box_reaches_to_the_end_of_its_last_pixel():
    probability = np.zeros((1, 12, 16), np.float32)
    probability[0, 4:8, 8:12] = 1
    assert boxes_from_coarse(probability, grid_of(probability.shape), shrink=4) == {
        0: Box(8, 4, 12, 8)
    }


def test_shrinking_averages_and_ends_with_the_slice():
    probability = np.zeros((1, 6, 10), np.float32)
    probability[0, 0:4, 0:4] = 0.7  # a mean of 0.7: unsure
    probability[0, 4:6, 4:10] = 0.8  # blocks of 2 x 4 and 2 x 2 pixels
    probability[0, 0:4, 4:8] = np.kron([[0.9, 0.5], [1, 1]], np.ones((2, 2)))  # a mean of 0.85
    grid = grid_of(probability.shape)
    assert boxes_from_coarse(probability, grid, shrink=4) == {0: Box(4, 0, 10, 6)}


@few
@given(masks(max_side=4), st.integers(2, 4))
def test_shrinking_a_mask_of_whole_blocks_changes_nothing(drawn, shrink):
    mask, axis = drawn
    for side in {0, 1, 2} - {2 - axis}:
        mask = mask.repeat(shrink, side)
    grid = grid_of(mask.shape, axis)
    assert boxes_from_coarse(mask, grid, shrink=shrink) == boxes_from_coarse(mask, grid)


def test_impossible_options_and_arrays_are_refused():
    grid = grid_of((2, 6, 9))
    coarse = np.zeros((2, 6, 9))
    for confidence in (75, -0.1, 1.0, math.nan):
        with pytest.raises(PromptError, match="box confidence"):
            boxes_from_coarse(coarse, grid, confidence)
    with pytest.raises(PromptError, match="shrunk by 0"):
        boxes_from_coarse(coarse, grid, shrink=0)
    with pytest.raises(PromptError, match="does not fit"):
        boxes_from_coarse(coarse[:1], grid)


def test_a_volume_of_one_slice_has_a_box():
    mask = np.zeros((1, 6, 9), bool)
    mask[0, 2, 3:8] = True
    assert boxes_from_coarse(mask, grid_of(mask.shape)) == {0: Box(3, 2, 8, 3)}


def test_an_organ_is_uncertain_below_three_quarters_of_certain_voxels():
    probability = np.full((2, 2, 2), 0.8, np.float32)
    assert certain_share(probability) == 1
    probability[0, 0] = 0.6
    assert certain_share(probability) == 0.75
    assert not is_uncertain(probability)
    probability[0, 1, 0] = 0.75  # not greater
    assert is_uncertain(probability)
    probability[0] = 0.4  # not part of the mask
    assert certain_share(probability) == 1
    assert certain_share(np.ones((2, 2, 2), bool)) == 1
    assert certain_share(np.zeros((2, 2, 2), np.float32)) == 1


def test_an_organ_keeps_its_mask_whatever_its_probability():
    mask = np.array([[[True, True, True, False]]])
    probability = coarse_probability(mask, np.array([[[0.45, 0.9, 1.0004, 0.8]]]))
    assert probability.dtype == np.float16
    np.testing.assert_allclose(probability, [[[0.5, 0.9, 1, 0]]], atol=1e-3)


@pytest.mark.parametrize("odd", [45, 1.01, -0.01, np.nan, np.inf])
def test_what_is_no_probability_is_refused(odd):
    fine = np.array([[[0.0, 0.45, 1.0005]]])
    assert checked_probabilities(fine, "sure.nii") is fine
    fault = "goes from .*go from 0 to 1" if np.isfinite(odd) else "has values that are NaN"
    with pytest.raises(PromptError, match=rf"sure\.nii {fault}"):
        checked_probabilities(np.append(fine, odd), "sure.nii")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    axis=st.integers(0, 2),
    shrink=st.integers(1, 4),
    kept=st.sampled_from([(True, True), (True, False), (False, False)]),
)
def test_of_a_patch_shrunk_boxes_and_slices_without_one_are_those_of_the_whole(
    seed, axis, shrink, kept
):
    random = np.random.default_rng(seed)
    whole = np.zeros((7, 11, 13), np.float16)
    block = tuple(slice(*sorted(random.choice(n + 1, 2, replace=False))) for n in whole.shape)
    whole[block] = random.random(whole[block].shape)
    patch = Patch(tuple(int(part.start) for part in block), whole[block])
    grid = grid_of(whole.shape, axis)
    options = {"box_confidence": 0.6, "shrink": shrink, "in_volume": kept[0], "in_slices": kept[1]}
    expected = boxes_from_coarse(whole, grid, **options)
    assert boxes_from_patch(patch, grid, **options) == expected
    without = slices_without_box(whole, grid, expected)
    assert patch_slices_without_box(patch, grid, expected) == without
