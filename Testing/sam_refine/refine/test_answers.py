# SPDX-License-Identifier: Apache-2.0
"""What organs take over from SAM's answers, and what they keep."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from geometries import oblique_left_handed

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames, boxes_to_json
from SAMRefineLib.boxes.patches import packed
from SAMRefineLib.refine.answers import result_masks, with_choices, with_results
from SAMRefineLib.refine.client import Request
from SAMRefineLib.refine.organ_state import OrganState

GRID = SliceGrid(oblique_left_handed((5, 4, 3)), 2)
LIVER, SPLEEN = (
    OrganState(
        KeyFrames(name, label, GRID, {1: Box(0, 0, 2, 2)}), f"{name} segment", undecided=True
    )
    for label, name in enumerate(("liver", "spleen"), start=1)
)


def run_of(*organs, labels=None, chosen=None):
    reports = [
        {
            "label": organ.label, "boxes": 1, "kept": {"2": "SAM is unsure"}, "dice": 0.5,
            "voxels_before": 1, "voxels_after": 1, "predicted_iou": 0.5,
        }
        for organ in organs
    ]  # fmt: skip
    request = Request("refine", (), organs=organs)
    return SimpleNamespace(request=request, chosen=chosen, label_map=labels, reports=reports)


def test_chosen_boxes_are_taken_over_unless_the_organ_was_edited_meanwhile():
    large = [replace(o.frames, automatic={1: Box(0, 0, 4, 4)}) for o in (LIVER, SPLEEN)]
    chosen = {"boxes": boxes_to_json(large), "mask_prompt": [2], "keep_unboxed": [1]}
    edited = SPLEEN.with_box(2, Box(1, 1, 3, 3))
    now, asked = with_choices((LIVER, edited), run_of(LIVER, SPLEEN, chosen=chosen))
    assert [organ.frames for organ in asked] == large
    assert now[0] == asked[0]
    assert (now[0].undecided, now[0].mask_prompt, now[0].keep_unboxed) == (False, False, True)
    assert now[1] is edited


def test_without_a_choice_organs_stay():
    now, asked = with_choices((LIVER,), run_of(LIVER))
    assert now == (LIVER,)
    assert asked == [LIVER]


def test_results_of_organs_that_were_removed_are_dropped():
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 1, 1:3], labels[1, 3] = 1, 2
    refined, masks = with_results(
        (SPLEEN,), [LIVER, SPLEEN], run_of(LIVER, SPLEEN, labels=labels), None
    )
    (organ,) = refined
    assert list(masks) == ["spleen segment"]
    np.testing.assert_array_equal(masks["spleen segment"][1], labels[1] == 2)
    assert organ.result == {1: packed(labels[1] == 2)}
    assert organ.report.kept == {2: "SAM is unsure"}
    assert not organ.changed


def test_slices_of_an_unchanged_result_are_not_drawn_again():
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1:, 1, 1:3] = 1
    before = replace(LIVER, result={1: packed(labels[1] == 1)})
    refined, masks = with_results((before,), [before], run_of(before, labels=labels), None)
    assert list(masks["liver segment"]) == [2]
    assert list(refined[0].result) == [1, 2]
    kept = replace(before, kept=True)
    _, masks = with_results((kept,), [kept], run_of(kept, labels=labels), None)
    assert list(masks["liver segment"]) == [0, 1, 2]


def test_of_a_slice_that_alone_was_redrawn_the_rest_of_the_result_stays():
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[2, 0] = 1
    first = packed(np.ones((4, 5), bool))
    before = replace(LIVER, result={1: first})
    (organ,), masks = with_results((before,), [before], run_of(before, labels=labels), 2)
    assert list(masks["liver segment"]) == [2]
    assert organ.result == {1: first, 2: packed(labels[2] == 1)}
    assert organ.report is None


def test_a_result_is_unpacked_to_all_slices():
    mask = np.eye(4, 5, dtype=bool)
    masks = result_masks({1: packed(mask)}, GRID)
    assert [bool(masks[k].any()) for k in range(3)] == [False, True, False]
    np.testing.assert_array_equal(masks[1], mask)
