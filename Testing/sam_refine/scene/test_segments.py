# SPDX-License-Identifier: Apache-2.0
"""Segments as organs: what the network knew of them, and what the user drew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_cases import add_volume, draw
from slicer_scene_fixture import empty_scene

from SAMRefineLib.boxes.patches import Patch
from SAMRefineLib.scene.masks import any_patch, patches_in, read_layers
from SAMRefineLib.scene.segments import CoarseSegment
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene.probabilities import Drawn

pytestmark = pytest.mark.needs_slicer

SHAPE = (4, 5, 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_probabilities_agree_with_the_mask_and_lie_in_a_block(seed, drawn, likely):
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < drawn
    known = (rng.random(SHAPE) * (rng.random(SHAPE) < likely)).astype(np.float16)
    segment = CoarseSegment("liver", "liver", (1.0, 0.0, 0.0), known)
    inside = np.where(known < 0.2, np.float16(1), np.maximum(known, np.float16(0.5)))
    expected = np.where(mask, inside, np.where(known < 0.5, known, np.float16(0)))
    found = segment.probabilities(Patch.of(mask))
    if found.mask.dtype == bool:  # the network knows nothing of it
        assert not known.any()
        expected = mask
    np.testing.assert_array_equal(found.whole(SHAPE), expected)


def test_a_corrected_segment_has_no_probabilities_beside_it():
    """They would be taken for the network's, and counted against what the user drew."""
    known = np.full(SHAPE, 0.3, np.float16)
    known[1:3, 1:4, 1:4] = 0.9
    labels = np.where(known > 0.5, 2, 0).astype(np.uint8)
    segment = CoarseSegment("liver", "liver", (1.0, 0.0, 0.0), known, Drawn(labels, 2))
    network = segment.probabilities(Patch.of(labels == 2)).whole(SHAPE)
    np.testing.assert_array_equal(network, known)
    for box in (np.s_[1:3, 1:4, 1:3], np.s_[1:3, 1:4, 1:5], np.s_[0:0]):
        mask = np.zeros(SHAPE, bool)
        mask[box] = True
        found = segment.probabilities(Patch.of(mask)).whole(SHAPE)
        np.testing.assert_array_equal(found > 0, mask)


@pytest.mark.parametrize("mirrored", [False, True])
def test_segments_are_read_where_they_lie_on_either_hand(mirrored):
    import slicer

    geometry = Geometry(SHAPE[::-1], np.diag([1.0, 2.0, 3.0, 1.0]))
    masks = {}
    with empty_scene():
        volume = add_volume(geometry)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for name, box in (("liver", np.s_[1:3, 0:2, 4:6]), ("spleen", np.s_[0:4, 3:5, 0:2])):
            masks[name] = np.zeros(SHAPE, bool)
            masks[name][box] = True
            draw(node, name, masks[name], volume)
        turn = slice(None, None, -1) if mirrored else slice(None)
        found = patches_in(
            read_layers(node, [*masks, "none"], geometry.mirrored() if mirrored else geometry)
        )
        assert found.keys() == masks.keys()
        for name, patch in found.items():
            np.testing.assert_array_equal(patch.whole(SHAPE)[turn], masks[name])
            assert patch.mask.size == masks[name].sum()  # no more than the block is copied
            sampled = any_patch(node, name, volume)
            np.testing.assert_array_equal(sampled.whole(SHAPE), masks[name])
