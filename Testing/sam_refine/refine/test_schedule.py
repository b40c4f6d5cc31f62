# SPDX-License-Identifier: Apache-2.0
"""What a session has done unasked: in which order, and what it need not ask for again."""

from dataclasses import replace

import numpy as np
import pytest

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import Organ
from SAMRefineLib.refine.schedule import NEAR, Agenda, Errand, View
from SRCSMSegmenterLib.geometry import Geometry

GRID = SliceGrid(Geometry((64, 64, 40), np.diag([1.0, 1.0, 3.0, 1.0])), 2)
BOX = Box(10, 10, 30, 30)
LIVER, SPLEEN, KIDNEY = (
    Organ(KeyFrames(name, value, GRID, dict.fromkeys(slices, BOX)), name)
    for value, (name, slices) in enumerate(
        {"liver": range(5, 25), "spleen": range(20, 30), "kidney": range(1, 4)}.items(), start=1
    )
)
ORGANS = (LIVER, SPLEEN, KIDNEY)


def rest(agenda, organs=ORGANS):
    found = []
    while (errand := agenda.next_redraw(organs)) is not None:
        found.append((errand[0].name, errand[1]))
    return found


def test_shown_slices_come_first_the_last_edited_before_all_and_whole_organs_after_them():
    agenda = Agenda()
    assert not agenda
    assert not agenda.urgent
    agenda.redraw(LIVER, 22)
    agenda.redraw(SPLEEN, 22)
    assert agenda.urgent
    assert rest(agenda) == [("spleen", 22), ("liver", 22), ("liver", None), ("spleen", None)]
    assert not agenda


def test_another_edit_of_an_organ_takes_the_place_of_the_one_before():
    agenda = Agenda()
    agenda.redraw(LIVER, 10)
    agenda.redraw(LIVER, 12)
    assert rest(agenda) == [("liver", 12), ("liver", None)]


def test_a_slice_without_a_box_is_not_redrawn_but_the_organ_is():
    agenda = Agenda()
    agenda.redraw(LIVER, 30)
    assert not agenda.urgent
    assert rest(agenda) == [("liver", None)]


def test_organs_and_slices_that_are_gone_meanwhile_are_passed_over():
    agenda = Agenda()
    agenda.redraw(LIVER, 22)
    agenda.redraw(SPLEEN, 22)
    without = replace(LIVER, frames=LIVER.frames.switch_off(22))
    assert rest(agenda, (without,)) == [("liver", None)]


def test_what_makes_way_comes_again_once_and_embeddings_do_not():
    agenda = Agenda()
    agenda.put_off(Errand("embed", 1))
    assert not agenda
    agenda.put_off(Errand("redraw", 1))
    agenda.put_off(Errand("redraw", 1))
    assert rest(agenda) == [("liver", None)]


@pytest.mark.parametrize(
    ("active", "n", "first"), [(2, 2, SPLEEN), (None, 2, KIDNEY), (9, 26, SPLEEN)]
)
def test_the_active_organ_is_embedded_first_then_what_is_nearest(active, n, first):
    agenda, view = Agenda(), View(n, active, apart=False)
    order = []
    while (organ := agenda.next_embedding(ORGANS, view)) is not None:
        order.append(organ)
        agenda.embedded(organ, view.wanted(organ))
    assert order[0] is first
    assert set(agenda.embeddings(ORGANS, view).values()) == {True}
    assert sorted(organ.value for organ in order) == [1, 2, 3]


def test_slices_with_embeddings_of_their_own_are_wanted_near_the_shown_one_and_add_up():
    agenda, view = Agenda(), View(12, 1, apart=True)
    assert view.wanted(LIVER) == set(range(12 - NEAR, 12 + NEAR + 1))
    assert agenda.embeddings(ORGANS, view) == {1: False}
    agenda.embedded(LIVER, view.wanted(LIVER))
    assert agenda.next_embedding(ORGANS, view) is None
    further = View(15, 1, apart=True)
    assert agenda.next_embedding(ORGANS, further) is LIVER
    agenda.embedded(LIVER, further.wanted(LIVER))
    assert agenda.embeddings(ORGANS, view) == {1: True}
    assert agenda.embeddings([replace(LIVER, enabled=False)], view) == {}


def test_moved_boxes_want_other_embeddings_and_so_does_another_sam():
    agenda, view = Agenda(), View(10, 1, apart=False)
    agenda.embedded(LIVER, view.wanted(LIVER))
    moved = LIVER.with_box(10, Box(0, 0, 9, 9))
    assert agenda.embeddings([moved], view) == {1: False}
    assert agenda.embeddings([LIVER], view) == {1: True}
    agenda.embedded(moved, frozenset({10}))
    assert agenda.embeddings([moved], view) == {1: False}  # the earlier ones are of other boxes
    agenda.embedded(moved, view.wanted(moved))
    agenda.forget_embeddings()
    assert agenda.next_embedding([moved], view) is moved
