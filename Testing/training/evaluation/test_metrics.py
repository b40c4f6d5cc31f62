# SPDX-License-Identifier: Apache-2.0
"""Dice and surface distances against values worked out by hand, MONAI and a brute force."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from srcsm_training.evaluation.metrics import TOLERANCE, score_case
from SRCSMSegmenterLib.errors import VolumeError

SPACING = np.array([1.0, 2.0, 5.0])  # I, J, K


def score(prediction, truth, spacing=SPACING):
    [result] = score_case("case", prediction, truth, spacing, {"organ": 1})
    return result


def labels(shape, *voxels):
    array = np.zeros(shape, np.uint8)
    for voxel in voxels:
        array[voxel] = 1
    return array


@pytest.mark.parametrize(("axis", "mm"), [(0, 5.0), (1, 2.0), (2, 1.0)])
def test_one_voxel_of_shift_costs_the_spacing_of_its_axis(axis, mm):
    other = [2, 3, 4]
    other[axis] += 1
    result = score(labels((6, 7, 8), (2, 3, 4)), labels((6, 7, 8), tuple(other)))
    assert (result.assd, result.hd95, result.distance_max) == (mm, mm, mm)
    assert result.dice == 0


def test_scores_of_a_line_are_those_worked_out_by_hand():
    # Truth: I = 0..3 of one line; prediction: I = 2..7; 1.5 mm a voxel. All voxels are surface.
    truth = labels((1, 1, 9), (0, 0, slice(0, 4)))
    prediction = labels((1, 1, 9), (0, 0, slice(2, 8)))
    result = score(prediction, truth, np.array([1.5, 1.0, 1.0]))
    forth = 1.5 * np.array([0, 0, 1, 2, 3, 4])  # prediction to truth
    # back, truth to prediction: 3, 1.5, 0, 0 mm
    assert result.dice == pytest.approx(2 * 2 / (4 + 6))
    assert result.surface_dice == pytest.approx((3 + 3) / 10)  # no further than 2 mm
    assert result.assd == pytest.approx((15 + 4.5) / 10)
    assert result.distance_median == pytest.approx(1.5)
    assert result.distance_max == pytest.approx(6)
    assert result.distance_sd == pytest.approx(np.std([*forth, 3, 1.5, 0, 0]))
    # 95 % of the way along six sorted values is index 4.75: 4.5 + 0.75 * 1.5, and the way back
    # gives 0.85 * 1.5 + 1.5 = 2.775; the larger counts.
    assert result.hd95 == pytest.approx(5.625)


def test_the_tolerance_of_the_surface_dice_includes_its_own_distance():
    truth = labels((1, 1, 9), (0, 0, slice(0, 4)))
    prediction = labels((1, 1, 9), (0, 0, slice(3, 7)))
    for voxels, share in ((0, 2 / 8), (1, 4 / 8), (3, 1.0)):
        # 0.1 mm a voxel: float32 makes three of them a little more than 0.3 mm.
        [result] = score_case("a", prediction, truth, np.full(3, 0.1), {"o": 1}, 0.1 * voxels)
        assert result.surface_dice == share


def test_hd95_takes_the_worse_direction():
    truth = labels((1, 1, 9), (0, 0, slice(2, 8)))
    prediction = labels((1, 1, 9), (0, 0, slice(0, 4)))
    assert score(prediction, truth, np.array([1.5, 1.0, 1.0])).hd95 == pytest.approx(5.625)


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_the_surface_of_a_single_slice_is_its_outline(flat):
    truth = np.zeros((9, 9), np.uint8)
    truth[1:8, 1:8] = 1
    ring = truth.copy()
    ring[4, 4] = 0  # its outline includes the hole's four neighbours, 2 pixels from the other's
    pair = (np.expand_dims(array, flat) for array in (ring, truth))
    spacing = np.insert([0.5, 0.5], 2 - flat, 30.0)
    [score] = score_case("x-ray", *pair, spacing, {"lung": 1})
    assert score.distance_max == 1.0
    assert score.assd == pytest.approx(4 * 1.0 / (24 + 24 + 4))
    assert score.dice == pytest.approx(96 / 97)


def test_inner_voxels_are_no_surface():
    shape = (5, 5, 5)
    solid = np.ones(shape, np.uint8)
    hollow = labels(shape, (slice(None),) * 3)
    hollow[2, 2, 2] = 0
    # Of the hollow cube, the six neighbours of the hole are surface, 1 voxel off the outer one.
    result = score(hollow, solid, np.ones(3))
    assert result.assd == pytest.approx(6 / (98 + 6 + 98))
    assert result.distance_max == 1


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    shape=st.tuples(*[st.integers(2, 7)] * 3),
)
def test_distances_equal_brute_force_and_monai(seed, spacing, shape):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    generator = np.random.default_rng(seed)
    one, other = (generator.random((2, *shape)) < 0.3).astype(np.uint8)
    one.flat[generator.integers(one.size)] = other.flat[generator.integers(other.size)] = 1
    result = score(one, other, np.array(spacing))

    def surface(array):
        padded = np.pad(array, 1)
        neighbours = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
        inner = np.all(neighbours, axis=0)[1:-1, 1:-1, 1:-1]
        return np.argwhere((array == 1) & ~inner) * np.array(spacing)[::-1]

    apart = cdist(surface(one), surface(other))
    pooled = np.concatenate([apart.min(1), apart.min(0)])
    assert result.assd == pytest.approx(pooled.mean(), rel=1e-5)
    assert result.distance_max == pytest.approx(pooled.max(), rel=1e-5)
    tensors = [torch.from_numpy(array)[None, None] for array in (one, other)]
    options = {"include_background": True, "spacing": spacing[::-1]}
    assd = compute_average_surface_distance(*tensors, symmetric=True, **options)
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, **options)
    overlap = compute_surface_dice(*tensors, [TOLERANCE], **options)
    assert result.surface_dice == pytest.approx(overlap.item(), rel=1e-4)
    assert result.assd == pytest.approx(assd.item(), rel=1e-4)
    assert result.hd95 == pytest.approx(hd95.item(), rel=1e-4)


def test_permuting_and_flipping_the_axes_changes_no_score():
    generator = np.random.default_rng(7)
    one, other = (generator.random((2, 5, 7, 9)) < 0.4).astype(np.uint8)
    before = score(one, other, SPACING)
    turned = [array.transpose(2, 0, 1)[:, ::-1] for array in (one, other)]
    after = score(*turned, SPACING[[1, 2, 0]])  # array axes (I, K, J)
    assert dataclasses.astuple(after)[3:] == pytest.approx(dataclasses.astuple(before)[3:])


def test_a_label_absent_in_one_scores_zero_and_in_both_nothing():
    prediction, truth = np.zeros((2, 3, 4, 5), np.uint8)
    truth[1, 1, 1:3] = 1
    truth[0, 0, 0] = prediction[0, 0, 0] = 2
    prediction[2, 2, 2] = 3
    names = {"spleen": 1, "liver": 2, "kidney": 3, "gut": 4}
    scores = score_case("c1", prediction, truth, SPACING, names)
    assert [(s.case, s.label, s.status) for s in scores] == [
        ("c1", "spleen", "missed"),
        ("c1", "liver", "scored"),
        ("c1", "kidney", "false positive"),
        ("c1", "gut", "absent"),
    ]
    np.testing.assert_equal([s.dice for s in scores], [0, 1, 0, np.nan])
    np.testing.assert_equal([s.surface_dice for s in scores], [0, 1, 0, np.nan])
    np.testing.assert_equal([s.assd for s in scores], [np.nan, 0, np.nan, np.nan])
    np.testing.assert_equal([s.hd95 for s in scores], [np.nan, 0, np.nan, np.nan])


def test_labels_that_nobody_asked_for_count_as_background():
    prediction, truth = np.full((2, 3, 4, 5), 9, np.uint8)
    truth[1, 1, 1:3] = prediction[1, 1, 1:3] = 1
    assert score(prediction, truth).dice == 1


def test_different_shapes_are_refused():
    with pytest.raises(VolumeError, match="differ in shape"):
        score(np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 6), np.uint8))
