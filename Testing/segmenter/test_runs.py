# SPDX-License-Identifier: Apache-2.0
"""Runs of voxels hold the same masks and components as arrays do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from SRCSMSegmenterLib import runs as module
from SRCSMSegmenterLib.blocks import whole_block
from SRCSMSegmenterLib.runs import connected, runs_of

LABELS = arrays.arrays(np.uint8, (5, 4, 6), elements=st.sampled_from([0, 0, 1, 2]))


@pytest.fixture
def labels():
    labels = np.zeros((4, 3, 6), np.uint8)
    labels[1, 0, :4] = 7
    labels[1, 2, 2:] = 7
    labels[2, 2, 5] = 9
    labels[2, 2, 4] = 7
    return labels


def test_neighbours_of_one_label_are_a_run_and_a_row_ends_it(labels):
    labels[1, 1, :2] = 9
    labels[1, 0, 4:] = 7  # to the end of the row before
    runs, values = runs_of(labels)
    assert values.tolist() == [7, 9, 7, 7, 9]
    assert runs.rows.tolist() == [3, 4, 5, 8, 8]
    assert runs.starts.tolist() == [0, 0, 2, 4, 5]
    assert runs.stops.tolist() == [6, 2, 6, 5, 6]


def test_a_box_a_mask_and_counts_are_those_of_the_array(labels):
    runs, values = runs_of(labels)
    sevens = runs[values == 7]
    assert sevens.box == (slice(1, 3), slice(0, 3), slice(0, 6))
    mask = np.zeros((2, 3, 6), bool)
    sevens.fill(mask, sevens.box, True)
    np.testing.assert_array_equal(mask, (labels == 7)[1:3])
    k, j, i = sevens.counts()
    assert (k.tolist(), j.tolist(), i.tolist()) == ([0, 8, 1, 0], [4, 0, 5], [1, 1, 2, 2, 2, 1])


def test_an_array_without_labels_has_no_runs():
    runs, values = runs_of(np.zeros((2, 3, 4), np.uint16))
    assert len(runs) == len(values) == len(connected(runs, values)) == 0


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, slab=st.sampled_from([1, 2, 16]))
def test_runs_are_the_labels_whatever_planes_are_looked_at_together(labels, slab):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLAB", slab)
        runs, values = runs_of(labels)
        slabs = list(runs.slabs())
    box = whole_block(labels.shape)
    painted = np.zeros(labels.size, np.uint8)
    painted[runs.voxels(box)] = np.repeat(values, runs.lengths)
    np.testing.assert_array_equal(painted.reshape(labels.shape), labels)
    filled = np.zeros(labels.shape, bool)
    runs.fill(filled, box, True)
    np.testing.assert_array_equal(filled, labels > 0)
    assert sum(len(runs[some]) for some in slabs) == len(runs)
    assert all(np.ptp(runs.rows[some] // labels.shape[1] // slab) == 0 for some in slabs)


@settings(max_examples=40, deadline=None)
@given(labels=LABELS)
def test_values_are_added_up_over_each_run(labels):
    runs, values = runs_of(labels)
    numbers = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    for label in np.unique(values):
        own = runs[values == label]
        expected = [
            numbers.reshape(-1, labels.shape[2])[row, start:stop].sum()
            for row, start, stop in zip(own.rows, own.starts, own.stops, strict=True)
        ]
        assert own.sums(numbers[own.box], own.box).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(labels=LABELS)
def test_components_are_those_of_scipy_in_the_order_of_the_array(labels):
    runs, values = runs_of(labels)
    roots = connected(runs, values)
    for label in (1, 2):
        own = np.flatnonzero(values == label)
        _, numbers = np.unique(roots[own], return_inverse=True)
        painted = np.zeros(labels.size, int)
        painted[runs[own].voxels(whole_block(labels.shape))] = np.repeat(
            numbers + 1, runs[own].lengths
        )
        expected, _ = ndimage.label(labels == label)
        np.testing.assert_array_equal(painted.reshape(labels.shape), expected)
