# SPDX-License-Identifier: Apache-2.0
"""Probabilities stay as long as their segmentation, and leave nothing behind."""

import pytest
import slicer
from scene_cases import add_volume, some_result

from SRCSMSegmenterLib.scene.probabilities import (
    _STORE,
    PROBABILITIES,
    known_of,
    probabilities,
)
from SRCSMSegmenterLib.scene.results import place

pytestmark = pytest.mark.needs_slicer


def test_probabilities_live_as_long_as_the_segmentation(scene):
    node = add_volume()
    entries = _STORE._entries
    before = len(entries)
    result = some_result()
    change = place(result, node)
    assert dict(probabilities(change.segmentation)) == dict(result.probabilities)
    drawn = known_of(change.segmentation).drawn
    assert {name: each.label for name, each in drawn.items()} == {
        organ.name: organ.label for organ in result.organs
    }
    assert all(each.labels is result.labels.array for each in drawn.values())
    place(some_result(seed=2), node, change.segmentation)
    assert len(entries) == before + 1
    slicer.mrmlScene.RemoveNode(change.segmentation)
    assert len(entries) == before
    place(result, node)
    slicer.mrmlScene.Clear(0)
    assert len(entries) == before
    change = place(result, add_volume())
    change.undo()
    assert len(entries) == before


def test_a_result_without_probabilities_has_none(scene):
    change = place(some_result(probabilities={}), add_volume())
    assert probabilities(change.segmentation) == {}
    change.segmentation.SetAttribute(PROBABILITIES, "of another session")
    assert probabilities(change.segmentation) == {}
