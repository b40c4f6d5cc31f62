# SPDX-License-Identifier: Apache-2.0
"""Background jobs: their order, and which embeddings need not be computed again."""

from dataclasses import replace

import numpy as np
import pytest

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import OrganState
from SAMRefineLib.refine.schedule import NEAR, BackgroundJob, Schedule, View
from SRCSMSegmenterLib.geometry import Geometry

GRID = SliceGrid(Geometry((64, 64, 40), np.diag([1.0, 1.0, 3.0, 1.0])), 2)
BOX = Box(10, 10, 30, 30)
LIVER, SPLEEN, KIDNEY = (
    OrganState(KeyFrames(name, value, GRID, dict.fromkeys(slices, BOX)), name)
    for value, (name, slices) in enumerate(
        {"liver": range(5, 25), "spleen": range(20, 30), "kidney": range(1, 4)}.items(), start=1
    )
)
ORGANS = (LIVER, SPLEEN, KIDNEY)


def rest(schedule, organs=ORGANS):
    found = []
    while (redraw := schedule.next_redraw(organs)) is not None:
        found.append((redraw[0].name, redraw[1]))
    return found


def test_shown_slices_come_first_the_last_edited_before_all_and_whole_organs_after_them():
    schedule = Schedule()
    assert not schedule
    assert not schedule.urgent
    schedule.redraw(LIVER, 22)
    schedule.redraw(SPLEEN, 22)
    assert schedule.urgent
    assert rest(schedule) == [("spleen", 22), ("liver", 22), ("liver", None), ("spleen", None)]
    assert not schedule


def test_another_edit_of_an_organ_takes_the_place_of_the_one_before():
    schedule = Schedule()
    schedule.redraw(LIVER, 10)
    schedule.redraw(LIVER, 12)
    assert rest(schedule) == [("liver", 12), ("liver", None)]


def test_a_slice_without_a_box_is_not_redrawn_but_the_organ_is():
    schedule = Schedule()
    schedule.redraw(LIVER, 30)
    assert not schedule.urgent
    assert rest(schedule) == [("liver", None)]


def test_organs_and_slices_that_are_gone_meanwhile_are_passed_over():
    schedule = Schedule()
    schedule.redraw(LIVER, 22)
    schedule.redraw(SPLEEN, 22)
    without = replace(LIVER, frames=LIVER.frames.switch_off(22))
    assert rest(schedule, (without,)) == [("liver", None)]


def test_what_makes_way_comes_again_once_and_embeddings_do_not():
    schedule = Schedule()
    schedule.postpone(BackgroundJob("embed", 1))
    assert not schedule
    schedule.postpone(BackgroundJob("redraw", 1))
    schedule.postpone(BackgroundJob("redraw", 1))
    assert rest(schedule) == [("liver", None)]


@pytest.mark.parametrize(
    ("active", "n", "first"), [(2, 2, SPLEEN), (None, 2, KIDNEY), (9, 26, SPLEEN)]
)
def test_the_active_organ_is_embedded_first_then_what_is_nearest(active, n, first):
    schedule, view = Schedule(), View(n, active, apart=False)
    order = []
    while (organ := schedule.next_embedding(ORGANS, view)) is not None:
        order.append(organ)
        schedule.embedded(organ, view.wanted(organ))
    assert order[0] is first
    assert set(schedule.embeddings(ORGANS, view).values()) == {True}
    assert sorted(organ.label for organ in order) == [1, 2, 3]


def test_organs_that_are_left_alone_are_not_looked_at_unless_one_is_worked_on():
    left = frozenset({1, 2})
    assert Schedule().embeddings(ORGANS, View(2, None, False, left)) == {3: False}
    assert Schedule().embeddings(ORGANS, View(2, 1, False, left)) == {1: False, 3: False}


def test_slices_with_embeddings_of_their_own_are_wanted_near_the_shown_one_and_add_up():
    schedule, view = Schedule(), View(12, 1, apart=True)
    assert view.wanted(LIVER) == set(range(12 - NEAR, 12 + NEAR + 1))
    assert schedule.embeddings(ORGANS, view) == {1: False}
    schedule.embedded(LIVER, view.wanted(LIVER))
    assert schedule.next_embedding(ORGANS, view) is None
    further = View(15, 1, apart=True)
    assert schedule.next_embedding(ORGANS, further) is LIVER
    schedule.embedded(LIVER, further.wanted(LIVER))
    assert schedule.embeddings(ORGANS, view) == {1: True}
    assert schedule.embeddings([replace(LIVER, enabled=False)], view) == {}


def test_moved_boxes_want_other_embeddings_and_so_does_another_sam():
    schedule, view = Schedule(), View(10, 1, apart=False)
    schedule.embedded(LIVER, view.wanted(LIVER))
    moved = LIVER.with_box(10, Box(0, 0, 9, 9))
    assert schedule.embeddings([moved], view) == {1: False}
    assert schedule.embeddings([LIVER], view) == {1: True}
    schedule.embedded(moved, frozenset({10}))
    assert schedule.embeddings([moved], view) == {1: False}  # the earlier ones are of other boxes
    schedule.embedded(moved, view.wanted(moved))
    schedule.forget_embeddings()
    assert schedule.next_embedding([moved], view) is moved
