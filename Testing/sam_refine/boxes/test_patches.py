# SPDX-License-Identifier: Apache-2.0
"""Masks as the block that shows something, and packed to a few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import find_objects

from SAMRefineLib.boxes import patches
from SAMRefineLib.boxes.patches import (
    Patch,
    label_blocks,
    packed,
    packed_slices,
    shown_block,
    unpacked,
)


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
    assert packed_slices(masks.items()) == {5: packed(np.eye(2, dtype=bool))}


@settings(max_examples=40)
@given(
    arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)),
    st.sampled_from([1, 7, 1000]),
)
def test_one_pass_finds_the_block_of_every_label(labels, chunk):
    whole = [range(n) for n in labels.shape]
    expected = {
        label: tuple(range(n)[part] for n, part in zip(labels.shape, block, strict=True))
        for label, block in enumerate(find_objects(labels), start=1)
        if block is not None
    }
    for array, turn in ((labels, slice(None)), (labels[::-1], slice(None, None, -1))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patches, "CHUNK", chunk)
            blocks = label_blocks(array)
        assert blocks.keys() == expected.keys()
        for label, block in blocks.items():
            found = [axis[part] for axis, part in zip(whole, block, strict=True)]
            planes = whole[0][turn][block[0]]
            assert sorted(planes) == list(expected[label][0])
            assert found[1:] == list(expected[label][1:])


@settings(max_examples=30)
@given(
    arrays(np.float16, array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.sampled_from(
        [0.0, 0.25, 1.0])),
    st.sampled_from([1, 7, 1000]),
)  # fmt: skip
def test_probabilities_are_0_outside_their_block(probability, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CHUNK", chunk)
        block = shown_block(probability)
    expected = find_objects((probability > 0).astype(np.uint8))
    assert probability[block].size == (probability[expected[0]].size if expected else 0)
    assert (probability[block] > 0).sum() == (probability > 0).sum()
