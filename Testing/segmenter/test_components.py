# SPDX-License-Identifier: Apache-2.0
"""Of every label, all but its largest piece are found."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from SRCSMSegmenterLib.components import dice, label_counts, label_means, smaller_components


def test_the_largest_piece_of_each_label_stays_and_the_others_are_marked():
    labels = np.zeros((4, 6, 9), np.uint8)
    labels[0, :2, :3] = 1  # 6 voxels
    labels[2, 4:, 2:7] = 1  # 10: stays
    labels[3, 0, 0] = 3  # 1
    labels[1:3, 0, 8] = 3  # 2: stays
    expected = np.zeros(labels.shape, bool)
    expected[0, :2, :3] = True
    expected[3, 0, 0] = True
    np.testing.assert_array_equal(smaller_components(labels), expected)


def test_pieces_that_touch_by_an_edge_alone_are_two():
    labels = np.zeros((1, 3, 4), np.uint8)
    labels[0, 0, :2] = labels[0, 1, 2] = 2
    assert np.argwhere(smaller_components(labels)).tolist() == [[0, 1, 2]]


def test_a_small_sure_piece_stays_and_a_large_doubtful_one_goes():
    labels = np.zeros((3, 4, 8), np.uint8)
    labels[0, :, :4] = 2  # 16 voxels of 0.6: 16 * 0.04
    labels[2, :2, 6:] = 2  # 4 of 0.9: 4 * 0.64
    confidence = np.where(labels == 2, 0.6, 1).astype(np.float16)
    confidence[2, :2, 6:] = 0.9
    smaller = smaller_components(labels, confidence)
    assert smaller[0, :, :4].all()
    assert smaller.sum() == 16
    assert smaller_components(labels).sum() == 4  # without the confidence the other one


def test_pieces_of_no_confidence_compare_by_their_voxels():
    labels = np.zeros((1, 2, 9), np.uint8)
    labels[0, 0, :2] = labels[0, 0, 4:9] = 1
    confidence = np.full(labels.shape, 0.3, np.float16)
    assert np.argwhere(smaller_components(labels, confidence)).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_an_empty_label_map_has_no_smaller_pieces():
    assert not smaller_components(np.zeros((2, 3, 4), np.uint8)).any()


@given(arrays.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)))
def test_no_smaller_piece_is_left_and_no_label_vanishes(labels):
    smaller = smaller_components(labels)
    kept = np.where(smaller, 0, labels)
    assert set(np.unique(kept)) | {0} == set(np.unique(labels)) | {0}
    assert not smaller_components(kept).any()
    assert not smaller[labels == 0].any()


def test_dice_of_two_masks_and_of_two_empty_ones():
    one, other, nothing = np.zeros((3, 2, 4, 5), bool)
    one[0, 0] = True  # 5 voxels
    other[0, :2, 2:] = True  # 6, of which 3 are shared
    assert dice(one, other, empty=0.5) == 2 * 3 / 11
    assert dice(one, one, empty=0.5) == 1
    assert dice(one, nothing, empty=0.5) == dice(nothing, one, empty=0.5) == 0
    assert dice(nothing, nothing, empty=1.0) == 1
    assert math.isnan(dice(nothing, nothing, empty=math.nan))


def test_voxels_of_labels_are_counted_and_their_values_averaged():
    labels = np.array([[[0, 2], [2, 0]], [[2, 5], [0, 0]]], np.uint8)
    values = np.array([[[9, 1], [2, 9]], [[6, 0.5], [9, 9]]], np.float16)
    assert label_counts(labels, 7).tolist() == [4, 0, 3, 0, 0, 1, 0]
    assert label_means(labels, values) == {2: 3.0, 5: 0.5}
    assert label_means(labels[:0], values[:0]) == {}
