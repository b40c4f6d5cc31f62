# SPDX-License-Identifier: Apache-2.0
"""Positions of organs, and the choice of pieces by them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.organ_positions import (
    FARTHEST,
    Offset,
    choose_pieces,
    keep_likeliest_component,
    learn_offsets,
)

ISOTROPIC = ((225.0, 0.0, 0.0), (0.0, 225.0, 0.0), (0.0, 0.0, 225.0))


def test_offsets_are_the_mean_and_the_covariance_of_the_scans():
    liver = np.array([[0.0, 0, 0], [10, 0, 0], [np.nan] * 3])
    spleen = np.array([[-100.0, 0, 20], [-110, 0, 40], [5, 5, 5]])
    (offset,) = learn_offsets(np.stack([liver, spleen], axis=1))
    assert (offset.start, offset.end, offset.mean) == (1, 2, (-110.0, 0.0, 30.0))
    # Two scans: (10, 0, -10) on either side of the mean, so 200 mm² along R and S.
    assert offset.covariance == ((425.0, 0.0, -200.0), (0.0, 225.0, 0.0), (-200.0, 0.0, 425.0))


def test_a_pair_that_one_scan_shows_has_no_offset():
    centroids = np.array([[[0.0, 0, 0], [1, 1, 1]], [[0, 0, 0], [np.nan] * 3]])
    assert learn_offsets(centroids) == ()


def test_a_larger_piece_in_the_wrong_place_loses_against_the_organs_own():
    offsets = (Offset(1, 2, (-100.0, 0.0, 0.0), ISOTROPIC),)
    chosen = choose_pieces(
        np.array([1, 2, 2]),
        np.array([1.0, 1.0, 0.4]),
        np.array([[0.0, 0, 0], [80, 0, 0], [-95, 0, 0]]),
        offsets,
    )
    assert chosen.tolist() == [0, 2]


def test_a_crumb_in_the_right_place_does_not_win_against_a_large_piece_a_little_off():
    offsets = (Offset(1, 2, (-100.0, 0.0, 0.0), ISOTROPIC),)
    chosen = choose_pieces(
        np.array([1, 2, 2]),
        np.array([1.0, 1.0, 0.02]),
        np.array([[0.0, 0, 0], [-75, 0, 0], [-100, 0, 0]]),
        offsets,
    )
    assert chosen.tolist() == [0, 1]


@st.composite
def scenes(draw):
    labels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7).map(sorted))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centroids = generator.normal(0, 60, (len(labels), 3))
    shares = generator.uniform(0.02, 1, len(labels))
    pairs = itertools.combinations(range(1, 5), 2)
    offsets = [Offset(a, b, tuple(generator.normal(0, 60, 3)), ISOTROPIC) for a, b in pairs]
    return np.array(labels), shares, centroids, offsets


def score(chosen, labels, shares, centroids, offsets):
    of = {labels[n]: n for n in chosen}
    total = sum(np.log(shares[n]) for n in chosen)
    for offset in offsets:
        if offset.start in of and offset.end in of:
            away = centroids[of[offset.end]] - centroids[of[offset.start]] - offset.mean
            squared = min((away**2).sum() / 225, FARTHEST**2)
            total -= 2 / (len(of) - 1) * squared / 2
    return total


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_the_chosen_pieces_are_the_best_combination_or_no_single_change_is_better(scene):
    labels = scene[0]
    chosen = choose_pieces(*scene)
    assert labels[chosen].tolist() == sorted(set(labels.tolist()))
    for n in range(len(chosen)):
        for other in np.flatnonzero(labels == labels[chosen[n]]):
            changed = chosen.copy()
            changed[n] = other
            assert score(changed, *scene) <= score(chosen, *scene) + 1e-9


def a_label_map():
    """A liver on the right, a spleen on the left, and a larger patch of flank labelled spleen."""
    labels = np.zeros((6, 20, 60), np.uint8)
    labels[1:5, 5:15, 40:58] = 1
    labels[2:4, 8:12, 4:8] = 2
    labels[1:5, 1:4, 45:58] = 2
    return labels


def all_alike(label, box):
    return np.full([part.stop - part.start for part in box], 0.9, np.float16)


def test_what_is_left_out_is_told():
    labels = a_label_map()
    geometry = Geometry((60, 20, 6), np.diag([4.0, 4, 4, 1]))
    offsets = (Offset(1, 2, (-174.0, 0.0, 0.0), ISOTROPIC),)
    kept = keep_likeliest_component(labels, all_alike, geometry, offsets)
    left_out = kept.left_out.pop(2)
    assert kept.left_out == {}
    assert left_out.box == (slice(1, 5), slice(1, 4), slice(45, 58))
    assert left_out.lengths.sum() == 4 * 3 * 13
    assert kept.smaller == (2,)
    assert np.count_nonzero(labels == 2) == 2 * 4 * 4
    assert (labels == 1).sum() == 4 * 10 * 18


def test_the_choice_does_not_depend_on_how_the_scan_is_stored():
    offsets = (Offset(1, 2, (-174.0, 0.0, 0.0), ISOTROPIC),)
    straight = a_label_map()
    keep_likeliest_component(
        straight, all_alike, Geometry((60, 20, 6), np.diag([4.0, 4, 4, 1])), offsets
    )
    flipped = a_label_map().transpose(2, 1, 0)[:, ::-1].copy()
    affine = np.array([[0.0, 0, 4, 0], [0, -4, 0, 76], [4, 0, 0, 0], [0, 0, 0, 1]])
    keep_likeliest_component(flipped, all_alike, Geometry((6, 20, 60), affine), offsets)
    np.testing.assert_array_equal(flipped[:, ::-1].transpose(2, 1, 0), straight)


def test_without_offsets_the_largest_component_stays():
    labels = a_label_map()
    kept = keep_likeliest_component(labels, all_alike, Geometry((60, 20, 6), np.eye(4)), ())
    assert {label: runs.lengths.sum() for label, runs in kept.left_out.items()} == {2: 2 * 4 * 4}
    assert kept.smaller == ()


def test_an_empty_label_map_stays_empty():
    labels = np.zeros((2, 3, 4), np.uint8)
    offsets = (Offset(1, 2, (0.0, 0.0, 0.0), ISOTROPIC),)
    kept = keep_likeliest_component(labels, all_alike, Geometry((4, 3, 2), np.eye(4)), offsets)
    assert kept.left_out == {}


@pytest.mark.parametrize(
    "covariance",
    [
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 2.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ((1.0, 0.0), (0.0, 1.0)),
    ],
)
def test_a_covariance_that_is_none_is_refused(covariance):
    with pytest.raises(BundleError, match="from label 1 to 2"):
        Offset(1, 2, (0.0, 0.0, 0.0), covariance)
