# SPDX-License-Identifier: Apache-2.0
"""The state of a session as text, and the texts of older versions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from geometries import oblique_left_handed

from SAMRefineLib.boxes.boxes import Box, Box3D, PointPrompt, SliceGrid
from SAMRefineLib.boxes.dragging import dragged
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import OrganState, Report, Settings
from SAMRefineLib.refine.saved_state import SavedState, state_from_json, state_to_json
from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

GRID = SliceGrid(oblique_left_handed((40, 30, 20)), 2)


def frames():
    """Slices 5 to 10; the organ narrows towards the last."""
    return KeyFrames("liver", 3, GRID, {n: Box(10, 8, 30 - n, 20) for n in range(5, 11)})


def test_everything_comes_back_from_its_text():
    report = Report(6, {7: "SAM is unsure"}, 0.75, 100, 90, None)
    first = OrganState(
        dragged(frames(), Box3D((10, 8, 5), (28, 20, 10))).edit(8, Box(3, 3, 9, 9)),
        "Segment_1",
        (0.25, 0.5, 0.75),
        True,
        {8: (PointPrompt(3.5, 4.25, True), PointPrompt(5.0, 6.0, False))},
        shown=False,
        enabled=False,
        kept=True,
        changed=False,
        report=report,
    )
    second = OrganState(replace(frames(), name="spleen", label=9), "Segment_2")
    settings = Settings("mine", "medsam", "MR", "off", 0.6, True, "cpu", "overlap")
    state = SavedState((first, second), GRID, settings, 11)
    text = state_to_json(state)
    assert state_from_json(text) == state
    old = text.replace('"mask_threshold"', '"threshold"')
    assert old != text
    assert state_from_json(old) == state
    empty = SavedState((), GRID, Settings(), 0)
    assert state_from_json(state_to_json(empty)) == empty


def test_the_grid_is_written_once_and_boxes_are_no_text_within_the_text():
    text = state_to_json(SavedState((OrganState(frames(), "liver"),), GRID, Settings(), 3))
    assert text.count('"affine"') == 1
    (organ,) = json.loads(text)["organs"]
    assert organ["boxes"]["automatic"]["7"] == [10, 8, 23, 20]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 2', '"version": 7'),
        ('"srcsm-refinement"', '"something"'),
        ('"organs": [', '"organs": [{}, '),
        ('"mask_threshold": 0.5', '"surprise": 0.5'),
        ("{", ""),
    ],
)
def test_other_text_is_refused(old, new):
    text = state_to_json(SavedState((OrganState(frames(), "liver"),), GRID, Settings(), 3))
    assert old in text
    with pytest.raises(PromptError, match="The scene"):
        state_from_json(text.replace(old, new, 1), "The scene")


VERSION_1 = Path(__file__).with_name("scene_version_1.json").read_text()
OLD_GRID = SliceGrid(
    Geometry((6, 5, 4), np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])),
    2,
)


def test_a_scene_of_version_1_is_read():
    """Boxes as a text within the text, the grid twice, and points called hints."""
    boxes = KeyFrames("liver", 3, OLD_GRID, {1: Box(1, 1, 4, 4)})
    organ = OrganState(
        boxes.edit(2, Box(0.5, 1, 3, 4)).switch_off(1),
        "Segment_1",
        (0.25, 0.5, 0.75),
        True,
        {2: (PointPrompt(1.5, 2.25, True),)},
        kept=True,
        changed=False,
        report=Report(6, {2: "SAM is unsure"}, 0.75, 100, 90, None),
    )
    settings = Settings(mask_threshold=0.6)
    assert state_from_json(VERSION_1) == SavedState((organ,), OLD_GRID, settings, 7)


def test_a_scene_of_version_1_without_organs_is_read():
    content = json.loads(VERSION_1) | {"boxes": None, "organs": []}
    assert state_from_json(json.dumps(content)).organs == ()


def test_boxes_of_version_1_on_another_grid_are_refused():
    content = json.loads(VERSION_1)
    content["grid"]["axis"] = 1
    with pytest.raises(PromptError, match="another grid"):
        state_from_json(json.dumps(content))
