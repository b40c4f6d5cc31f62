# SPDX-License-Identifier: Apache-2.0
"""Masks as the block that shows something, and packed to a few bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from SAMRefineLib.boxes.patches import Patch, packed, packed_slices, unpacked


def test_a_patch_is_the_mask_it_was_made_of():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2:4, 5] = mask[3, 3, 2] = True
    patch = Patch.of(mask)
    assert patch.mask.shape == (3, 2, 4)
    np.testing.assert_array_equal(patch.whole(mask.shape), mask)
    assert not Patch.of(np.zeros((2, 3, 4), bool)).whole((2, 3, 4)).any()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**81 - 1))
def test_packed_masks_are_unpacked(rows, columns, bits):
    flat = [bits >> n & 1 for n in range(rows * columns)]
    mask = np.array(flat, bool).reshape(rows, columns)
    found = unpacked(packed(mask), mask.shape)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask)
    assert packed(mask) == packed(mask.copy())


def test_slices_that_show_nothing_are_left_out():
    masks = {3: np.zeros((2, 2), bool), 5: np.eye(2, dtype=bool)}
    assert packed_slices(masks) == {5: packed(np.eye(2, dtype=bool))}
