# SPDX-License-Identifier: Apache-2.0
"""What dragging a 3-D box does to slice boxes, and mirrored boxes."""

import numpy as np
import pytest
from geometries import oblique_left_handed
from hypothesis import given
from hypothesis import strategies as st

from SAMRefineLib.boxes.boxes import Box, Box3D, SliceGrid
from SAMRefineLib.boxes.dragging import dragged, mirrored
from SAMRefineLib.boxes.key_frames import KeyFrames
from SRCSMSegmenterLib.errors import PromptError

GRID = SliceGrid(oblique_left_handed((40, 30, 20)), 2)


def frames(grid=GRID):
    """Slices 5 to 10; the organ narrows towards the last."""
    return KeyFrames("liver", 3, grid, {n: Box(10, 8, 30 - n, 20) for n in range(5, 11)})


BOUND = Box3D((10, 8, 5), (25, 20, 11))


def moved(lower=(0, 0, 0), upper=(0, 0, 0), of=BOUND):
    return Box3D(np.add(of.lower, lower), np.add(of.upper, upper))


def close(box, *edges):
    np.testing.assert_allclose(box.edges, edges, atol=1e-9)


def test_moved_as_a_whole_it_takes_its_boxes_along():
    found = dragged(frames(), moved((3, -2, 4.4), (3, -2, 4.4)))
    boxes = found.effective()
    assert list(boxes) == list(range(9, 15))
    close(boxes[9], 13, 6, 28, 18)
    close(boxes[14], 13, 6, 23, 18)
    assert found.bounds3d() == Box3D((13, 6, 9), (28, 18, 15))
    assert found.reset().effective() == frames().automatic


def test_what_is_moved_beyond_the_volume_is_cut_or_refused():
    found = dragged(frames(), moved((0, 15, 12), (0, 15, 12)))
    assert found.bounds3d() == Box3D((10, 23, 17), (25, 30, 20))
    with pytest.raises(PromptError, match="left the volume"):
        dragged(frames(), moved((0, 25, 0), (0, 25, 0)))
    with pytest.raises(PromptError, match="left the volume"):
        dragged(frames(), Box3D((50, 8, 5), (60, 20, 11)))


def test_inwards_a_face_cuts_and_outwards_it_gives_back():
    cut = dragged(frames(), moved(upper=(-3, 0, -1)))
    boxes = cut.effective()
    assert list(boxes) == list(range(5, 10))
    close(boxes[5], 10, 8, 22, 20)
    close(boxes[9], 10, 8, 21, 20)
    assert not cut.edited
    assert dragged(cut, moved(upper=(-1, 0, -1))).bounds3d() == moved(upper=(-1, 0, -1))
    assert dragged(cut, BOUND) == frames()


def test_outwards_within_the_slices_boxes_stretch():
    boxes = dragged(frames(), moved(upper=(15, 0, 0))).effective()
    close(boxes[5], 10, 8, 40, 20)
    close(boxes[10], 10, 8, 30, 20)
    boxes = dragged(frames(), moved(lower=(-5, 0, 0))).effective()
    close(boxes[5], 5, 8, 25, 20)
    close(boxes[10], 5, 8, 5 + 10 * 20 / 15, 20)


@given(
    keys=st.dictionaries(st.integers(5, 10), st.tuples(*[st.integers(-3, 3)] * 4), max_size=3),
    by=st.tuples(*[st.integers(-2, 2)] * 3),
    out=st.tuples(*[st.integers(0, 2)] * 6),
)
def test_key_frames_are_dragged_along_and_the_bound_is_where_it_was_let_go(keys, by, out):
    one = frames()
    for n, (x0, y0, x1, y1) in keys.items():
        one = one.edit(n, Box(11 + x0, 11 + y0, 20 + x1, 18 + y1))
    found = dragged(one, moved(by, by, of=one.bounds3d()))
    assert list(found.edited) == [n + by[2] for n in sorted(keys)]
    for n, box in one.effective().items():
        close(found.effective()[n + by[2]], *np.add(box.edges, (*by[:2], *by[:2])))
    bound = moved(np.negative(out[:3]), out[3:], of=found.bounds3d())
    stretched = dragged(found, bound)
    np.testing.assert_allclose(stretched.bounds3d().lower, bound.lower, atol=1e-9)
    np.testing.assert_allclose(stretched.bounds3d().upper, bound.upper, atol=1e-9)
    assert stretched.edited.keys() == found.edited.keys()
    assert stretched.reset() == frames()


def test_slices_follow_a_key_frame_that_is_set_after_the_bound_was_dragged():
    found = dragged(frames(), moved(upper=(15, 0, 0))).edit(7, Box(2, 2, 30, 12))
    boxes = found.effective()
    assert boxes[7] == Box(2, 2, 30, 12)
    assert 2 < boxes[6].y0 < boxes[5].y0 < 8
    assert found.reset(7) == dragged(frames(), moved(upper=(15, 0, 0)))


def test_outwards_across_the_slices_there_are_more():
    found = dragged(frames().switch_off(12), moved((0, 0, -2), (0, 0, 3)))
    boxes = found.effective()
    assert list(boxes) == list(range(3, 14))
    assert boxes[3] == boxes[4] == frames().automatic[5]
    assert boxes[13] == boxes[11] == frames().automatic[10]
    assert boxes[7] == frames().automatic[7]


def test_cut_moved_and_stretched_at_once():
    cut = dragged(frames(), moved(upper=(-3, 0, 0)))
    found = dragged(cut, moved((0, -4, 0), (-3, 0, 1)))
    assert found.bounds3d() == moved((0, -4, 0), (-3, 0, 1))
    close(found.effective()[10], 10, 4, 20, 20)
    shifted = dragged(cut, moved((1, 0, 2), (-2, 0, 2)))
    assert shifted.bounds3d() == moved((1, 0, 2), (-2, 0, 2))


def test_without_boxes_the_block_is_drawn():
    found = dragged(KeyFrames("new", 1, GRID), Box3D((1, 2, 3), (5, 9, 6)))
    assert found.effective() == dict.fromkeys(range(3, 6), Box(1, 2, 5, 9))


@given(
    axis=st.integers(0, 2),
    lower=st.tuples(*[st.integers(-4, 4)] * 3),
    upper=st.tuples(*[st.integers(-4, 4)] * 3),
)
def test_boxes_fill_the_bound_they_are_given_and_undoing_the_drag_returns_it(axis, lower, upper):
    grid = SliceGrid(GRID.geometry, axis)
    block = Box3D((6, 7, 5), (18, 17, 15))
    one = KeyFrames.drawn("liver", 1, block, grid)
    bound = moved(lower, upper, of=block)
    found = dragged(one, bound)
    np.testing.assert_allclose(found.bounds3d().lower, bound.lower, atol=1e-9)
    np.testing.assert_allclose(found.bounds3d().upper, bound.upper, atol=1e-9)
    back = dragged(found, block).bounds3d()
    np.testing.assert_allclose((back.lower, back.upper), (block.lower, block.upper), atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_boxes_cover_the_same_places(axis):
    grid = SliceGrid(GRID.geometry, axis)
    one = KeyFrames.drawn("liver", 1, Box3D((6, 7, 5), (18, 17, 11)), grid)
    n = sorted(one.automatic)[1]
    one = dragged(one.edit(n, Box(6, 5, 9, 8)), Box3D((5, 5, 5), (18, 18, 12)))
    one = one.switch_off(n + 2).limited(Box3D((5, 6, 4), (17, 16, 10)))
    assert one.moved is not None
    found = mirrored(one)
    corners = [
        {
            tuple(np.round(corner, 6))
            for n, box in each.effective().items()
            for corner in each.grid.block(box, n).oriented(each.grid.geometry).corners
        }
        for each in (one, found)
    ]
    assert corners[0] == corners[1]
    assert found != one
    assert mirrored(found).effective() == one.effective()
