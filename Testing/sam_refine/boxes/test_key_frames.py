# SPDX-License-Identifier: Apache-2.0
"""Automatic and edited boxes, and their file."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRefineLib.boxes.boxes import Box, Box3D, SliceGrid
from SAMRefineLib.boxes.key_frames import (
    FADE_MM,
    KeyFrames,
    boxes_from_json,
    boxes_to_json,
    load_boxes,
    save_boxes,
)
from SRCSMSegmenterLib import atomic
from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

few = settings(max_examples=40, deadline=None)

COLUMNS, ROWS, SLICES, THICKNESS = 40, 30, 20, 5.0
GRID = SliceGrid(
    Geometry((COLUMNS, ROWS, SLICES), np.diag([-0.5, 0.7, THICKNESS, 1])), 2
)  # left-handed
COARSE = Box(10, 8, 20, 18)
EDITED = Box(4, 2, 26, 24)
WIDER = Box(0, 0, 40, 30)


def organ(automatic=range(4, 15), **fields) -> KeyFrames:
    """A liver with one and the same automatic box in some slices."""
    return KeyFrames("liver", 3, GRID, dict.fromkeys(automatic, COARSE), **fields)


boxes = st.builds(
    lambda x, y, width, height: Box(x, y, x + width, y + height),
    st.floats(0, 30),
    st.floats(0, 20),
    st.floats(0.2, 10),
    st.floats(0.2, 10),
)
slices = st.integers(0, SLICES - 1)


def limits(grid):
    return st.builds(
        lambda box, n, more: grid.block(box, n, n + more), boxes, slices, st.integers(0, 9)
    )


edits = st.one_of(
    st.builds(lambda n, box: lambda organ: organ.edit(n, box), slices, boxes),
    st.builds(lambda n: lambda organ: organ.switch_off(n), slices),
    st.builds(lambda n: lambda organ: organ.switch_on(n), slices),
    st.builds(lambda n: lambda organ: organ.reset(n), slices),
    st.builds(lambda limit: lambda organ: organ.limited(limit), st.none() | limits(GRID)),
    st.just(lambda organ: organ.reset()),
)


@st.composite
def organs(draw, grid=GRID) -> KeyFrames:
    some = st.dictionaries(slices, boxes, max_size=6)
    return KeyFrames(
        draw(st.text('aé []"{}', max_size=4)),
        draw(st.integers(1, 10_000)),
        grid,
        draw(some),
        draw(some),
        draw(st.frozensets(slices, max_size=4)),
        draw(st.none() | limits(grid)),
    )


def assert_between(box, *others):
    """Each edge lies between the least and the greatest of the others'."""
    edges = np.array([other.edges for other in others])
    assert (edges.min(axis=0) <= box.edges).all()
    assert (box.edges <= edges.max(axis=0)).all()


# --- which box a slice has


def test_without_edits_the_automatic_boxes_are_used():
    assert organ().effective() == dict.fromkeys(range(4, 15), COARSE)


def test_an_edited_box_wins():
    assert organ().edit(7, EDITED).effective()[7] == EDITED


def test_between_edited_slices_boxes_interpolate_whatever_the_automatic_ones():
    effective = organ().edit(6, EDITED).edit(10, WIDER).effective()
    assert effective[7] == Box(3, 1.5, 29.5, 25.5)
    assert effective[8] == Box(2, 1, 33, 27)
    assert effective[9] == Box(1, 0.5, 36.5, 28.5)


def test_interpolation_goes_from_one_edited_slice_to_the_next():
    effective = organ().edit(6, EDITED).edit(8, WIDER).edit(12, EDITED).effective()
    assert effective[7] == Box(2, 1, 33, 27)
    assert effective[10] == effective[7]


def test_beyond_the_last_edited_slice_boxes_fade_back_to_the_automatic_ones():
    effective = organ().edit(8, EDITED).effective()
    for sign in (-1, 1):  # 5 mm, 10 mm of 15
        assert effective[8 + sign] == EDITED.towards(COARSE, 5 / FADE_MM)
        assert effective[8 + 2 * sign] == EDITED.towards(COARSE, 10 / FADE_MM)
        assert effective[8 + 3 * sign] == COARSE
    assert effective[8 + 1] == Box(6, 4, 24, 22)
    assert (min(effective), max(effective)) == (4, 14)


def test_the_fade_is_as_long_in_thin_slices():
    thin = SliceGrid(Geometry((40, 30, 40), np.diag([0.5, 0.7, 1, 1])), 2)
    effective = KeyFrames("liver", 3, thin, dict.fromkeys(range(40), COARSE), {9: EDITED})
    changed = [n for n, box in effective.effective().items() if box != COARSE]
    assert changed == list(range(0, 9 + 15))


def test_thick_slices_are_edited_one_by_one():
    thick = SliceGrid(Geometry((40, 30, 20), np.diag([0.5, 0.7, FADE_MM, 1])), 2)
    edited = KeyFrames("liver", 3, thick, dict.fromkeys(range(20), COARSE), {9: EDITED})
    assert [n for n, box in edited.effective().items() if box != COARSE] == [9]


def test_a_box_beyond_the_coarse_mask_is_joined_to_it():
    effective = organ().edit(18, EDITED).effective()
    assert list(effective) == list(range(4, 19))
    assert effective[14] == COARSE  # 20 mm away
    assert effective[16] == EDITED.towards(COARSE, 0.5)
    downwards = organ().edit(2, EDITED).effective()
    assert list(downwards) == list(range(2, 15))
    assert downwards[4] == EDITED.towards(COARSE, 10 / FADE_MM)
    assert downwards[3] == EDITED.towards(downwards[4], 0.5)


def test_a_hole_in_the_coarse_mask_stays_one():
    holed = KeyFrames("liver", 3, GRID, dict.fromkeys((4, 5, 6, 9, 10), COARSE))
    assert list(holed.effective()) == [4, 5, 6, 9, 10]
    assert list(holed.edit(5, EDITED).effective()) == [4, 5, 6, 9, 10]
    assert list(holed.edit(8, EDITED).effective()) == [4, 5, 6, 7, 8, 9, 10]


def test_an_organ_that_was_missed_has_the_boxes_drawn_for_it():
    nothing = organ(automatic=())
    assert nothing.effective() == {}
    assert nothing.bounds3d() is None
    assert nothing.edit(5, EDITED).effective() == {5: EDITED}
    effective = nothing.edit(5, EDITED).edit(9, WIDER).effective()
    assert list(effective) == [5, 6, 7, 8, 9]
    assert effective[7] == EDITED.towards(WIDER, 0.5)


def test_a_block_drawn_on_nothing_has_its_rectangle_in_each_of_its_slices():
    drawn = KeyFrames.drawn("cyst", 9, Box3D((5, 6, 2.6), (45, 12, 7.2)), GRID)
    assert drawn.effective() == dict.fromkeys(range(3, 7), Box(5, 6, 40, 12))
    assert drawn.edit(4, EDITED).effective()[4] == EDITED


def test_a_slice_switched_off_has_no_box_and_no_say():
    edited = organ().edit(6, EDITED).edit(8, WIDER).edit(10, EDITED)
    off = edited.switch_off(8)
    assert 8 not in off.effective()
    assert off.effective()[7] == off.effective()[9] == EDITED
    assert off.switch_on(8) == edited
    alone = organ().edit(8, EDITED).switch_off(8).effective()
    assert alone == dict.fromkeys([n for n in range(4, 15) if n != 8], COARSE)


def test_an_edit_switches_its_slice_on():
    assert organ().switch_off(8).edit(8, EDITED).effective()[8] == EDITED


def test_reset_takes_back_one_slice_or_all():
    edited = organ().edit(6, EDITED).edit(12, WIDER).switch_off(9)
    assert edited.reset(6) == organ().edit(12, WIDER).switch_off(9)
    assert edited.reset(9) == organ().edit(6, EDITED).edit(12, WIDER)
    assert edited.limited(GRID.block(EDITED, 6, 8)).reset() == organ()


def test_a_limit_cuts_all_boxes():
    limit = Box3D((5, 9, 5), (15, 99, 12.4))
    limited = organ().edit(8, EDITED).limited(limit)
    effective = limited.effective()
    assert list(effective) == list(range(5, 12))
    assert effective[5] == Box(10, 9, 15, 18)
    assert effective[8] == Box(5, 9, 15, 24)
    assert limited.limited(None) == organ().edit(8, EDITED)
    assert organ().limited(Box3D((30, 20, 5), (40, 30, 12))).effective() == {}


def test_an_edit_widens_the_limit_that_it_leaves():
    edited = organ().limited(Box3D((5, 9, 5), (15, 99, 9))).edit(12, EDITED)
    assert edited.limit == Box3D((4, 2, 5), (26, 99, 13))
    assert edited.effective()[12] == EDITED


def test_a_3d_box_bounds_all_boxes():
    edited = organ().edit(6, EDITED).edit(16, Box(12, 9.5, 39, 12)).switch_off(4)
    assert edited.bounds3d() == Box3D((4, 2, 5), (39, 24, 17))
    across_j = KeyFrames("liver", 3, SliceGrid(GRID.geometry, 1), {7: Box(10, 2, 20, 18)})
    assert across_j.bounds3d() == Box3D((10, 7, 2), (20, 8, 18))


@few
@given(organs())
def test_every_box_lies_within_the_slice_the_limit_and_the_hull_of_all(organ):
    effective = organ.effective()
    assert list(effective) == sorted(effective)
    assert not organ.off & effective.keys()
    for n, box in effective.items():
        assert box.clipped(GRID.shape) == box
        uncut = dataclasses.replace(organ, limit=None).effective()[n]
        assert_between(uncut, *organ.automatic.values(), *organ.edited.values())
    if effective:
        bounds = organ.bounds3d()
        assert list(GRID.slices_of(bounds)) == list(range(min(effective), max(effective) + 1))
        around = GRID.box_of(bounds)
        assert all(around.overlap(box) == box for box in effective.values())
        if organ.limit is not None:
            assert GRID.box_of(organ.limit).overlap(around) == around


@few
@given(boxes, boxes, st.integers(0, SLICES - 3), st.integers(2, 9))
def test_interpolation_is_monotone_and_stays_between_its_ends(first, last, n, distance):
    end = min(n + distance, SLICES - 1)
    edited = organ().edit(end, last).edit(n, first)
    effective = edited.effective()
    path = np.array([effective[m].edges for m in range(n, end + 1)])
    steps = np.diff(path, axis=0)
    assert ((steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)).all()
    assert effective[end] == last
    for m in range(n, end + 1):
        assert_between(effective[m], effective[n], last)


@few
@given(boxes, slices, boxes)
def test_the_fade_is_monotone_and_ends_at_the_automatic_box(automatic, n, edited):
    effective = KeyFrames("liver", 3, GRID, dict.fromkeys(range(SLICES), automatic), {n: edited})
    effective = effective.effective()
    for way in (range(n, SLICES), range(n, -1, -1)):
        path = np.array([effective[m].edges for m in way])
        steps = np.diff(path, axis=0)
        assert ((steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)).all()
        assert (path[math.ceil(FADE_MM / THICKNESS) :] == automatic.edges).all()
    assert effective[n] == edited


@few
@given(boxes, boxes)
def test_mixing_ends_where_it_says(first, last):
    assert first.towards(last, 0) == first
    np.testing.assert_allclose(first.towards(last, 1).edges, last.edges, atol=1e-12)
    expected = 0.75 * np.array(first.edges) + 0.25 * np.array(last.edges)
    np.testing.assert_allclose(first.towards(last, 0.25).edges, expected, atol=1e-12)


def test_boxes_come_from_a_coarse_mask():
    coarse = np.zeros(GRID.geometry.shape, np.float16)
    coarse[3:6, 2:9, 4:11] = 0.7
    coarse[4, 3:9, 5:11] = 0.9
    from_coarse = KeyFrames.from_coarse("liver", 3, coarse, GRID)
    assert from_coarse == KeyFrames("liver", 3, GRID, {4: Box(5, 3, 11, 9)})
    lower = KeyFrames.from_coarse("liver", 3, coarse, GRID, box_confidence=0.5)
    assert list(lower.automatic) == [3, 4, 5]


# --- what cannot be


def test_boxes_outside_the_volume_are_refused():
    with pytest.raises(PromptError, match="slices 0 to 19 along K"):
        organ().edit(20, EDITED)
    with pytest.raises(PromptError, match="slice -1"):
        organ().switch_off(-1)
    with pytest.raises(PromptError, match="covers nothing"):
        organ().edit(3, Box(40, 0, 50, 10))
    with pytest.raises(PromptError, match="reaches out of slice 3"):
        organ(edited={3: Box(0, 0, 50, 10)})
    with pytest.raises(PromptError, match="covers no slice"):
        organ().limited(Box3D((0, 0, -5), (9, 9, 0)))
    with pytest.raises(PromptError, match="covers no slice"):
        KeyFrames.drawn("cyst", 9, Box3D((40, 0, 1), (1e300, 9, 1e300)), GRID)
    with pytest.raises(PromptError, match="label 0"):
        KeyFrames("background", 0, GRID)


def test_an_edited_box_is_cut_to_the_slice():
    assert organ().edit(3, Box(-5, 2, 50, 9)).edited == {3: Box(0, 2, 40, 9)}


@pytest.mark.parametrize(
    "other",
    [
        SliceGrid(GRID.geometry, 1),
        SliceGrid(Geometry((40, 30, 19), GRID.geometry.affine), 2),
        SliceGrid(Geometry((40, 30, 20), np.diag([-0.5, 0.7, 4, 1])), 2),
        SliceGrid(Geometry((40, 30, 20), np.diag([0.5, 0.7, 5, 1])), 2),
        SliceGrid(oblique_left_handed((40, 30, 20)), 2),
    ],
)
def test_boxes_are_refused_on_another_grid(other):
    organ().require(SliceGrid(Geometry(GRID.geometry.size, GRID.geometry.affine), 2))
    with pytest.raises(PromptError, match='"liver" belong to another grid'):
        organ().require(other)


def test_what_a_caller_changes_later_changes_no_boxes():
    automatic = {5: COARSE}
    kept = KeyFrames("liver", 3, GRID, automatic)
    automatic[6] = EDITED
    assert kept.effective() == {5: COARSE}


# --- file


@few
@given(st.data(), geometries(max_size=40), st.integers(0, 2))
def test_boxes_come_back_from_text_exactly(data, geometry, axis):
    size = tuple(np.maximum(geometry.size, 40))
    grid = SliceGrid(Geometry(size, geometry.affine), axis)
    drawn = st.lists(organs(grid), min_size=1, max_size=3, unique_by=lambda one: one.label)
    saved = tuple(data.draw(drawn))
    assert boxes_from_json(boxes_to_json(saved)) == saved


def test_boxes_come_back_from_a_file(tmp_path):
    saved = (organ().edit(6, EDITED).switch_off(9), organ(automatic=()).edit(2, WIDER))
    path = tmp_path / "bo\N{LATIN SMALL LETTER X WITH DOT ABOVE}es.json"
    save_boxes(path, saved)
    save_boxes(path, saved[:1])
    assert load_boxes(path) == saved[:1]
    load_boxes(path)[0].require(GRID)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(PromptError, match="another grid"):
        load_boxes(path)[0].require(SliceGrid(GRID.geometry, 0))


def test_the_file_holds_a_box_a_line():
    text = boxes_to_json([organ(automatic=(4,), limit=Box3D((0, 0, 0), (9, 9, 9)))])
    assert '"4": [ 10.0, 8.0, 20.0, 18.0 ]' in text
    assert json.loads(text)["grid"]["axis"] == "K"


def test_organs_of_several_grids_or_none_are_not_saved():
    other = KeyFrames("spleen", 4, SliceGrid(GRID.geometry, 1))
    with pytest.raises(PromptError, match="different grids"):
        boxes_to_json([organ(), other])
    with pytest.raises(PromptError, match="no boxes"):
        boxes_to_json([])


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(PromptError, match=r"could not be written .* check that its folder exists"):
        save_boxes(tmp_path / "absent" / "boxes.json", [organ()])
    with pytest.raises(PromptError, match="could not be read"):
        load_boxes(tmp_path / "boxes.json")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(PromptError, match="it is no text"):
        load_boxes(tmp_path / "image.png")


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    save_boxes(tmp_path / "boxes.json", [organ()])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(PromptError, match="No space left"):
        save_boxes(tmp_path / "boxes.json", [organ(automatic=(1,))])
    assert [file.name for file in tmp_path.iterdir()] == ["boxes.json"]
    assert load_boxes(tmp_path / "boxes.json") == (organ(),)


def changed_file(change) -> str:
    content = json.loads(boxes_to_json([organ().edit(6, EDITED)]))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("format"), "does not hold boxes"),
        (lambda c: c.update(version=2), "version 2 .* reads 1; update it"),
        (lambda c: c.pop("grid"), "lacks 'grid'"),
        (lambda c: c["organs"][0].pop("off"), "lacks 'off'"),
        (lambda c: c["grid"].update(axis="R"), "damaged"),
        (lambda c: c["grid"].update(axis=""), "damaged"),
        (lambda c: c["grid"].update(affine=[[1, 0], [0, 1]]), "cannot be used: .* 4x4"),
        (lambda c: c["grid"].update(size=None), "damaged"),
        (lambda c: c["organs"][0].update(name=7), "damaged"),
        (lambda c: c["organs"][0].update(value="3"), "damaged"),
        (lambda c: c["organs"][0].update(value=0), "cannot be used: .* label 0"),
        (lambda c: c["organs"][0].update(automatic=[1]), "damaged"),
        (lambda c: c["organs"][0]["edited"].update({"6": [1, 2, 3]}), "damaged"),
        (lambda c: c["organs"][0]["edited"].update({"x": [1, 2, 3, 4]}), "damaged"),
        (lambda c: c["organs"][0]["edited"].update({"6": [3, 2, 1, 4]}), "has to be less"),
        (lambda c: c["organs"][0]["edited"].update({"6": [0, 0, math.nan, 4]}), "holds NaN"),
        (lambda c: c["organs"][0]["edited"].update({"6": [0, 0, 10**400, 4]}), "damaged"),
        (lambda c: c["organs"][0]["edited"].update({"99": [1, 2, 3, 4]}), "slices 0 to 19"),
        (lambda c: c["organs"][0].update(off=[99]), "slices 0 to 19"),
        (lambda c: c["organs"][0].update(limit=[[0, 0, 0]]), "damaged"),
        (lambda c: c.update(organs=3), "damaged"),
        (lambda c: c["organs"][0]["edited"].update({"07": [1, 2, 3, 4], "7": []}), "two boxes"),
    ],
)
def test_a_file_with_a_fault_is_refused_with_its_reason(change, message):
    with pytest.raises(PromptError, match=message) as caught:
        boxes_from_json(changed_file(change), "liver.json")
    assert str(caught.value).startswith("liver.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1, 2]", "null", '"srcsm-boxes"'])
def test_other_text_is_refused(text):
    with pytest.raises(PromptError, match=r"boxes|is no JSON"):
        boxes_from_json(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": "a\n\nb"}, "is no name"), ({"value": 2}, "two organs of one label")],
)
def test_names_and_labels_that_cannot_be_written_are_refused(change, said):
    grid = SliceGrid(Geometry((4, 4, 4), np.eye(4)), 2)
    organs = [KeyFrames(name, n, grid, {1: Box(0, 0, 2, 2)}) for n, name in ((1, "a"), (2, "b"))]
    content = json.loads(boxes_to_json(organs))
    content["organs"][0] |= change
    with pytest.raises(PromptError, match=said):
        boxes_from_json(json.dumps(content))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "boxes.json")
    with pytest.raises(PromptError, match="no regular file"):
        load_boxes(tmp_path / "boxes.json")
