# SPDX-License-Identifier: Apache-2.0
"""Scans cut to their labels: which slices, and that every voxel stays where it was."""

import numpy as np
import pytest

from srcsm_training.evaluation.cut import cut, labelled_slab
from SRCSMSegmenterLib.geometry import Geometry, Volume

AFFINES = {
    2: np.diag([-1.0, -1.5, 4.0, 1.0]),
    0: np.array([[0, 0, 1, 5], [0, 1, 0, -3], [-4.0, 0, 0, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("axis", AFFINES)
def test_the_slices_that_the_labels_span_are_kept_in_their_place(axis):
    geometry = Geometry((7, 6, 8), AFFINES[axis])
    array = np.zeros(geometry.shape, np.uint8)
    where = [slice(None)] * 3
    for index, label in ((2, 1), (4, 2), (5, 9)):
        where[2 - axis] = index
        array[tuple(where)] = label
    truth = Volume(array, geometry)
    slab = labelled_slab(truth, {"liver": 1, "spleen": 2})
    assert slab == (axis, range(2, 5))
    part = cut(truth, slab)
    assert part.geometry.size[axis] == 3
    index = np.zeros(3)
    index[axis] = 1
    kept = index.copy()
    kept[axis] = 3
    np.testing.assert_allclose(part.geometry.to_ras(index), geometry.to_ras(kept))
    np.testing.assert_array_equal(part.array, array.take([2, 3, 4], axis=2 - axis))


def test_a_scan_without_the_labels_has_no_such_slices():
    truth = Volume(np.full((4, 3, 2), 9, np.uint8), Geometry((2, 3, 4), np.eye(4)))
    assert labelled_slab(truth, {"liver": 1}) is None
