# SPDX-License-Identifier: Apache-2.0
"""Boxes, the slices that they lie in, and boxes in patient space."""

import math

import numpy as np
import pytest
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRefineLib.boxes.boxes import (
    Box,
    Box3D,
    SliceGrid,
    missed_organ_block,
)
from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

few = settings(max_examples=40, deadline=None)


def grid_of(shape, axis=2) -> SliceGrid:
    """A grid for arrays of `shape` (K, J, I)."""
    return SliceGrid(oblique_left_handed(shape[::-1]), axis)


@st.composite
def blocks(draw, low=-3.0, high=12.0, whole=False):
    edges = st.integers(int(low), int(high)) if whole else st.floats(low, high)
    lower = [draw(edges) for _ in range(3)]
    sides = st.integers(1, 6) if whole else st.floats(0.05, 6.0)
    return Box3D(lower, [edge + draw(sides) for edge in lower])


# --- the box


@pytest.mark.parametrize(
    "edges",
    [
        (5, 1, 3, 2),
        (1, 4, 3, 2),
        (2, 1, 2, 3),
        (1, 2, 3, 2),
        (math.nan, 1, 3, 2),
        (0, 1, 3, math.nan),
        (0, -math.inf, 3, 2),
        (0, 1, math.inf, 2),
    ],
)
def test_a_box_that_is_inverted_empty_or_infinite_is_refused(edges):
    with pytest.raises(PromptError, match="has to be less"):
        Box(*edges)


def test_a_box_is_cut_to_its_slice():
    assert Box(-2, 3, 4.5, 99).clipped((7, 9)) == Box(0, 3, 4.5, 7)
    assert Box(1, 2, 3, 4).clipped((7, 9)) == Box(1, 2, 3, 4)
    assert Box(-1, -1, 20, 20).clipped((7, 9)) == Box(0, 0, 9, 7)


@pytest.mark.parametrize("edges", [(9, 0, 12, 3), (0, 7, 3, 9), (-4, 1, 0.05, 3), (8.95, 1, 12, 3)])
def test_a_box_outside_its_slice_is_refused(edges):
    with pytest.raises(PromptError, match="9 columns and 7 rows"):
        Box(*edges).clipped((7, 9))


def test_the_sides_and_what_two_boxes_share():
    box = Box(1, 2, 5, 4.5)
    assert (box.width, box.height, box.edges) == (4, 2.5, (1, 2, 5, 4.5))
    assert box.overlap(Box(3, -1, 9, 3)) == Box(3, 2, 5, 3)
    assert box.overlap(Box(5, 2, 6, 4)) is None
    assert box.overlap(Box(1, 4.5, 5, 6)) is None


# --- the grid


def test_rows_and_columns_are_the_other_two_axes_of_the_array():
    geometry = oblique_left_handed((7, 5, 4))  # 0.8 x 0.9 x 2.5 mm
    array = np.arange(4 * 5 * 7).reshape(4, 5, 7)
    across_k, across_j, across_i = (SliceGrid(geometry, axis) for axis in (2, 1, 0))
    assert [g.count for g in (across_k, across_j, across_i)] == [4, 5, 7]
    assert [g.shape for g in (across_k, across_j, across_i)] == [(5, 7), (4, 7), (4, 5)]
    np.testing.assert_allclose(across_k.spacing, (0.9, 0.8))
    np.testing.assert_allclose(across_j.spacing, (2.5, 0.8))
    np.testing.assert_allclose(across_i.spacing, (2.5, 0.9))
    np.testing.assert_allclose([across_k.thickness, across_i.thickness], (2.5, 0.8))
    np.testing.assert_array_equal(across_k.slice_of(array, 3), array[3])
    np.testing.assert_array_equal(across_j.slice_of(array, 2), array[:, 2])
    np.testing.assert_array_equal(across_i.slice_of(array, 6), array[:, :, 6])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_is_a_view_of_all_slices(axis):
    array = np.zeros((4, 5, 7))
    grid = grid_of(array.shape, axis)
    stack = grid.stack(array)
    assert stack.shape == (grid.count, *grid.shape)
    stack[1, 2, 3] = 9
    assert array.sum() == 9
    assert grid.slice_of(array, 1)[2, 3] == 9


def test_an_array_of_another_grid_is_refused():
    with pytest.raises(PromptError, match="does not fit"):
        grid_of((4, 5, 7)).stack(np.zeros((4, 7, 5)))


def test_an_axis_is_one_of_three():
    with pytest.raises(PromptError, match="axis 0, 1 or 2"):
        SliceGrid(oblique_left_handed(), 3)


def test_grids_match_within_a_thousandth_of_a_voxel_and_with_one_axis():
    geometry = oblique_left_handed()
    moved = geometry.affine.copy()
    moved[:3, 3] += moved[:3, 2] * 5e-4
    near = SliceGrid(Geometry(geometry.size, moved), 2)
    grid = SliceGrid(geometry, 2)
    assert grid.matches(near)
    assert not grid.matches(near, tolerance=1e-4)
    assert not grid.matches(SliceGrid(geometry, 1))
    assert grid != near
    assert grid == SliceGrid(Geometry(geometry.size, geometry.affine.copy()), 2)
    assert grid != SliceGrid(geometry, 1)
    assert grid != SliceGrid(Geometry((7, 5, 5), geometry.affine), 2)


@few
@given(block=blocks(), axis=st.integers(0, 2), n=st.integers(-2, 9), more=st.integers(0, 4))
def test_a_box_in_some_slices_is_a_block_and_back(block, axis, n, more):
    grid = grid_of((4, 5, 7), axis)
    box = grid.box_of(block)
    made = grid.block(box, n, n + more)
    assert grid.box_of(made) == box
    assert list(grid.slices_of(made)) == list(range(n, n + more + 1))


def test_a_block_holds_the_slices_whose_middle_it_holds():
    grid = grid_of((9, 5, 7))
    assert list(grid.slices_of(Box3D((0, 0, 1.4), (1, 1, 3.6)))) == [1, 2, 3]
    assert list(grid.slices_of(Box3D((0, 0, 1.6), (1, 1, 3.4)))) == [2]
    assert list(grid.slices_of(Box3D((0, 0, 1.6), (1, 1, 2.4)))) == []


@pytest.mark.parametrize(
    ("slices", "slice_index", "first", "end"),
    [(9, 4, 3, 6), (9, 0, 0, 2), (9, 8, 7, 9), (100, 50, 45, 56), (100, 98, 93, 100)],
)
def test_the_box_of_a_missed_organ_is_a_third_of_the_slice_and_a_tenth_of_the_slices(
    slices, slice_index, first, end
):
    grid = grid_of((slices, 60, 30))
    block = missed_organ_block(grid, slice_index)
    np.testing.assert_allclose(block.lower, (10, 20, first))
    np.testing.assert_allclose(block.upper, (20, 40, end))


# --- in patient space


def test_a_known_block_lies_at_its_known_place():
    affine = np.array([[0, 0, 3.0, 10], [-0.5, 0, 0, 20], [0, 2.0, 0, 30], [0, 0, 0, 1]])
    geometry = Geometry((9, 8, 7), affine)  # left-handed
    block = Box3D((2, 1, 4), (6, 4, 5))  # voxels 2..5, 1..3, 4
    oriented = block.oriented(geometry)
    np.testing.assert_allclose(oriented.centre, (10 + 3 * 4, 20 - 0.5 * 3.5, 30 + 2 * 2))
    np.testing.assert_allclose(oriented.size, (2, 6, 3))
    np.testing.assert_allclose(oriented.axes, [[0, 0, -1], [-1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(oriented.corners.min(axis=0), (20.5, 17.25, 31))
    np.testing.assert_allclose(oriented.corners.max(axis=0), (23.5, 19.25, 37))


@few
@given(geometry=geometries(), block=blocks())
def test_a_block_comes_back_from_patient_space(geometry, block):
    back = Box3D.around(block.oriented(geometry).corners, geometry)
    np.testing.assert_allclose(back.lower, block.lower, atol=1e-9)
    np.testing.assert_allclose(back.upper, block.upper, atol=1e-9)


@few
@given(geometry=geometries(), block=blocks())
def test_an_oriented_box_has_right_angles_and_a_right_hand(geometry, block):
    oriented = block.oriented(geometry)
    np.testing.assert_allclose(oriented.axes.T @ oriented.axes, np.eye(3), atol=1e-9)
    assert np.linalg.det(oriented.axes) > 0
    assert (oriented.size > 0).all()
    corner = oriented.matrix @ (*(oriented.size * (0.5, -0.5, 0.5)), 1)
    distances = np.linalg.norm(oriented.corners - corner[:3], axis=1)
    assert distances.min() < 1e-9


@few
@given(geometry=geometries(), block=blocks(whole=True), axis=st.integers(0, 2))
def test_the_voxels_inside_are_those_of_the_block(geometry, block, axis):
    ijk = np.stack(np.indices(geometry.size), axis=-1).reshape(-1, 3)
    inside = np.all((ijk >= block.lower) & (ijk < np.array(block.upper)), axis=1)
    oriented = block.oriented(geometry)
    local = (geometry.to_ras(ijk) - oriented.centre) @ oriented.axes
    np.testing.assert_array_equal(np.all(np.abs(local) < oriented.size / 2, axis=1), inside)
    # And in the slices, for the box and the slices of the block.
    grid = SliceGrid(geometry, axis)
    box, slices = grid.box_of(block), grid.slices_of(block)
    x, y, n = (ijk[:, a] + 0.5 for a in (grid.column_axis, grid.row_axis, axis))
    in_box = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
    in_slices = np.isin(n - 0.5, list(slices))
    np.testing.assert_array_equal(in_box & in_slices, inside)


def test_the_block_around_a_turned_box_holds_its_corners():
    geometry = Geometry((20, 20, 20), np.diag([0.5, 2, 1, 1]))
    corners = np.array([(9, 8, 2), (1, 8, 2), (5, 12, 2), (5, 4, 5)])  # mm, RAS
    around = Box3D.around(corners, geometry)
    np.testing.assert_allclose(around.lower, (1 / 0.5 + 0.5, 4 / 2 + 0.5, 2.5))
    np.testing.assert_allclose(around.upper, (9 / 0.5 + 0.5, 12 / 2 + 0.5, 5.5))


def test_a_sheared_volume_has_no_oriented_boxes():
    affine = np.eye(4)
    affine[0, 1] = 0.1
    with pytest.raises(PromptError, match="right angles"):
        Box3D((0, 0, 0), (1, 2, 3)).oriented(Geometry((4, 4, 4), affine))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ((0, 3, 0), (1, 2, 3)),
        ((0, 0, 3), (1, 2, 3)),
        ((math.nan, 0, 0), (1, 2, 3)),
        ((0, 0, 0), (1, 2, math.inf)),
        ((0, 0), (1, 2)),
    ],
)
def test_an_impossible_block_is_refused(lower, upper):
    with pytest.raises(PromptError, match="3-D box"):
        Box3D(lower, upper)
