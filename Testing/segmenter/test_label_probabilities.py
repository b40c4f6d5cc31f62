# SPDX-License-Identifier: Apache-2.0
"""Probabilities that are interpolated when asked for, and only where a label is plausible."""

import numpy as np
import pytest
import torch

from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.label_probabilities import LabelProbabilities

COARSE = GridSpec((12, 12, 12), (5.0, 5.0, 5.0)).placed(np.zeros(3), np.eye(3))
FINE = GridSpec((60, 60, 60), (1.0, 1.0, 1.0)).placed(np.zeros(3), np.eye(3))


@pytest.fixture
def known():
    """Background and one small label, the other one nowhere plausible."""
    probabilities = torch.full((3, *COARSE.shape), 0.05)
    probabilities[1] = 0
    probabilities[1, 4, 5, 6] = 0.9
    probabilities[0] = 1 - probabilities[1:].sum(0)
    return LabelProbabilities.of(probabilities, torch.ones(COARSE.shape), COARSE, FINE)


def test_a_small_label_has_a_small_box():
    probabilities = torch.zeros(2, *COARSE.shape)
    probabilities[1, 4, 5, 6] = 0.9
    known = LabelProbabilities.of(probabilities, torch.ones(COARSE.shape), COARSE, FINE)
    (k, j, i) = known.boxes[1]
    # Voxel 6 of 5 mm has its middle at 2.5 mm, which is between 31 and 32 of 1 mm; ± 5 mm.
    assert (i.start, i.stop) == (27, 38)
    assert (j.start, j.stop) == (22, 33)
    assert (k.start, k.stop) == (17, 28)


def test_in_some_planes_a_label_has_a_box_around_what_is_plausible_there_alone():
    probabilities = torch.zeros(2, *COARSE.shape)
    probabilities[1, 2, 3, 4] = probabilities[1, 9, 8, 7] = 0.9
    known = LabelProbabilities.of(probabilities, torch.ones(COARSE.shape), COARSE, FINE)
    low, high = known.boxes_in(slice(8, 14))[1], known.boxes_in(slice(44, 50))[1]
    assert low == (slice(8, 14), slice(12, 23), slice(17, 28))
    assert high == (slice(44, 50), slice(37, 48), slice(32, 43))
    assert known.boxes_in(slice(26, 32)) == {}
    assert known.boxes[1] == (slice(7, 53), slice(12, 48), slice(17, 43))


def test_a_block_holds_what_is_plausible_of_a_label_and_no_more(known):
    block = known.block(1)
    assert block.first == (17, 22, 27)
    assert block.values.shape == (11, 11, 11)
    whole = known.whole(1)
    assert whole.dtype == np.float16
    assert np.unravel_index(whole.argmax(), whole.shape) == (22, 27, 32)
    assert whole[22, 27, 32] == pytest.approx(0.9, abs=1e-3)
    assert whole.sum(dtype=float) == pytest.approx(0.9 * 5**3, rel=0.02)


def test_a_label_that_is_nowhere_plausible_has_an_empty_block(known):
    assert known.block(2).values.size == 0
    assert not known.whole(2).any()


def test_only_the_coarse_voxels_around_a_label_are_kept(known):
    assert known._crops[1].weighted.numel() <= 5**3


def test_of_a_mirrored_scan_blocks_and_confidence_are_mirrored(known):
    mirrored = known.mirror()
    labels = np.zeros(FINE.shape, np.uint8)
    labels[20:24, 25:29, 30:34] = 1
    np.testing.assert_array_equal(mirrored.whole(1), known.whole(1)[::-1])
    np.testing.assert_array_equal(mirrored.confidence(labels[::-1]), known.confidence(labels)[::-1])


def test_confidence_is_that_of_the_label_and_one_minus_it_if_it_was_relabelled(known):
    labels = np.zeros(FINE.shape, np.uint8)
    labels[22, 27, 32] = 1
    sure, chance = known.confidence(labels), known.whole(1).astype(float)
    assert sure[22, 27, 32] == pytest.approx(chance[22, 27, 32], abs=1e-3)
    # Its neighbour was the label's too, but for its relabelling; far off it is background.
    assert chance[22, 27, 31] > 0.5
    assert sure[22, 27, 31] == pytest.approx(1 - chance[22, 27, 31], abs=1e-3)
    assert sure[0, 0, 0] == pytest.approx(0.95, abs=1e-3)
