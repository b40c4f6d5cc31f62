# SPDX-License-Identifier: Apache-2.0
"""Where voxels lie: conversions, comparison, and the network's grid over a scan."""

import json

import numpy as np
import pytest
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import (
    Geometry,
    GridSpec,
    Volume,
    require_patient_scale,
    scale_doubts,
)

sheared_grids = geometries(max_shear=0.3)


def with_affine(change) -> np.ndarray:
    affine = oblique_left_handed().affine.copy()
    change(affine)
    return affine


def test_a_known_voxel_lies_at_its_known_place():
    affine = np.array([[0, 0, 3.0, 10], [-0.5, 0, 0, 20], [0, 2.0, 0, 30], [0, 0, 0, 1]])
    grid = Geometry((4, 5, 6), affine)
    assert grid.to_ras((1, 2, 3)).tolist() == [19.0, 19.5, 34.0]
    assert grid.to_ijk((19.0, 19.5, 34.0)).tolist() == [1.0, 2.0, 3.0]
    assert grid.shape == (6, 5, 4)
    assert grid.spacing.tolist() == [0.5, 2.0, 3.0]
    assert grid.direction.tolist() == [[0, 0, 1], [-1, 0, 0], [0, 1, 0]]
    assert grid.centre.tolist() == [10 + 3 * 2.5, 20 - 0.5 * 1.5, 30 + 2 * 2]


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids, seed=st.integers(0, 1000))
def test_there_and_back_is_where_one_was(grid, seed):
    ijk = np.random.default_rng(seed).uniform(-3, 12, (2, 5, 3))
    ras = grid.to_ras(ijk)
    assert ras.shape == (2, 5, 3)
    np.testing.assert_allclose(grid.to_ijk(ras), ijk, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids)
def test_points_agree_with_the_homogeneous_product(grid):
    ijk = (3.0, -1.5, 2.25)
    np.testing.assert_allclose(grid.to_ras(ijk), (grid.affine @ (*ijk, 1))[:3], atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids)
def test_spacing_and_direction_make_up_the_affine(grid):
    np.testing.assert_allclose(grid.direction * grid.spacing, grid.affine[:3, :3], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(grid.direction, axis=0), 1)


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids)
def test_the_centre_is_as_far_from_opposite_corners(grid):
    last = np.array(grid.size) - 1
    np.testing.assert_allclose(
        grid.centre - grid.to_ras((0, 0, 0)), grid.to_ras(last) - grid.centre, atol=1e-9
    )


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids, axis=st.integers(0, 2), sign=st.sampled_from((-1, 1)))
def test_a_shift_by_less_than_the_tolerance_matches_and_by_more_does_not(grid, axis, sign):
    assert grid.matches(grid)
    for shift, same in ((0.9e-3, True), (1.1e-3, False)):
        affine = grid.affine.copy()
        affine[:3, 3] += sign * shift * grid.affine[:3, axis]  # in voxels of this axis
        assert grid.matches(Geometry(grid.size, affine)) is same
        assert grid.matches(Geometry(grid.size, affine), tolerance=2e-3)
        assert not grid.matches(Geometry(grid.size, affine), tolerance=5e-4)


@pytest.mark.parametrize("axis", range(3))
def test_a_spacing_that_adds_up_over_the_grid_does_not_match(axis):
    grid = oblique_left_handed((101, 21, 6))
    for at_the_end, same in ((0.9e-3, True), (1.1e-3, False)):
        affine = grid.affine.copy()
        affine[:3, axis] *= 1 + at_the_end / (grid.size[axis] - 1)
        assert grid.matches(Geometry(grid.size, affine)) is same


def test_a_mirrored_or_a_longer_grid_does_not_match():
    grid = oblique_left_handed()
    mirrored = grid.affine.copy()
    mirrored[:3, 3] = grid.to_ras((grid.size[0] - 1, 0, 0))
    mirrored[:3, 0] *= -1
    assert not grid.matches(Geometry(grid.size, mirrored))
    assert not grid.matches(Geometry((8, 5, 4), grid.affine))


@pytest.mark.parametrize(
    ("size", "affine"),
    [
        ((4, 5, 0), np.eye(4)),
        ((4, 5), np.eye(4)),
        ((4, 5, 6), np.eye(3)),
        ((4, 5, 6), np.diag([1.0, 0.0, 1.0, 1.0])),
        ((4, 5, 6), np.diag([1.0, np.nan, 1.0, 1.0])),
        ((4, 5, 6), np.diag([1.0, 1.0, 1.0, 2.0])),
        ((4, 5, 6), with_affine(lambda a: a.__setitem__((slice(0, 3), 1), a[:3, 0] * 3 + 1e-8))),
    ],
    ids=["empty", "2-D", "3x3", "no spacing", "not a number", "last row", "parallel axes"],
)
def test_an_impossible_grid_is_refused(size, affine):
    with pytest.raises(VolumeError):
        Geometry(size, affine)


def test_a_microscopic_grid_is_not_called_singular():
    assert Geometry((4, 5, 6), np.diag([5e-5, 4e-5, 3e-5, 1])).spacing.tolist() == [
        5e-5,
        4e-5,
        3e-5,
    ]


def test_a_geometry_keeps_its_own_affine_and_lets_nobody_write_it():
    affine = np.eye(4)
    grid = Geometry((4, 5, 6), affine)
    affine[0, 3] = 7
    assert grid.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 3] = 7


def test_an_array_in_the_wrong_axis_order_is_no_volume():
    grid = oblique_left_handed((7, 5, 4))
    assert Volume(np.zeros((4, 5, 7)), grid).array.shape == grid.shape
    with pytest.raises(VolumeError, match=r"\(7, 5, 4\)"):
        Volume(np.zeros((7, 5, 4)), grid)


@settings(deadline=None, max_examples=50)
@given(scan=sheared_grids)
def test_a_placed_window_has_its_size_spacing_and_middle_whatever_the_scan(scan):
    for axes in ("patient", "coronal", "sagittal", "slices"):
        spec = GridSpec((16, 12, 7), (2.4, 2.0, 3.5), axes)
        directions = spec.directions_over(scan)
        window = spec.placed(scan.centre, directions)
        assert window.size == (16, 12, 7)
        np.testing.assert_allclose(window.spacing, (2.4, 2.0, 3.5))
        np.testing.assert_allclose(window.centre, scan.centre, atol=1e-9)
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(window.direction, directions, atol=1e-9)
        corners = window.to_ras([(-0.5, -0.5, -0.5), (15.5, 11.5, 6.5)])
        np.testing.assert_allclose((corners[1] - corners[0]) @ directions, spec.extent, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(scan=sheared_grids)
def test_a_patient_window_runs_right_anterior_superior(scan):
    assert np.array_equal(GridSpec((4, 4, 4), (1, 1, 1)).directions_over(scan), np.eye(3))
    right, anterior, superior = np.eye(3)
    for axes, columns in {
        "coronal": (right, superior, -anterior),
        "sagittal": (anterior, superior, right),
    }.items():
        directions = GridSpec((4, 4, 4), (1, 1, 1), axes).directions_over(scan)
        np.testing.assert_array_equal(directions, np.column_stack(columns))
        assert np.linalg.det(directions) == 1


@settings(deadline=None, max_examples=50)
@given(scan=geometries())
def test_a_slices_window_follows_the_axes_of_the_scan_that_of_its_slices_last(scan):
    directions = GridSpec((4, 4, 4), (1, 1, 1), "slices").directions_over(scan)
    agreement = np.abs(directions.T @ scan.direction)  # 1 where axes coincide
    np.testing.assert_allclose(np.sort(agreement, axis=1), [[0, 0, 1]] * 3, atol=1e-6)
    along = agreement.argmax(axis=1)
    assert along[0] < along[1]
    assert along[2] == scan.slice_axis


@pytest.mark.parametrize(
    ("size", "spacing", "axis"),
    [
        ((30, 20, 10), (0.7, 0.7, 5), 2),
        ((30, 20, 10), (4, 1, 1), 0),
        ((30, 20, 10), (1, 3, 1), 1),
        ((30, 20, 10), (1, 1, 1), 2),
        ((512, 512, 900), (0.86, 0.86, 0.42), 2),
        ((512, 900, 512), (0.86, 0.42, 0.86), 2),
        ((30, 20, 10), (2, 2.0001, 1), 2),
        ((30, 20, 10), (1.25, 1, 1), 0),
        ((30, 20, 10), (1.15, 1, 1), 2),
        ((30, 20, 1), (1, 2, 0.5), 2),
        ((1, 20, 30), (0.1, 2, 2), 0),
    ],
)
def test_slices_lie_across_the_slice_axis(size, spacing, axis):
    assert Geometry(size, np.diag([*spacing, 1])).slice_axis == axis


def test_the_volume_of_a_voxel_in_millilitres():
    assert Geometry((2, 3, 4), np.diag([-2.0, 5.0, 10.0, 1.0])).voxel_ml == pytest.approx(0.1)


@settings(deadline=None, max_examples=50)
@given(grid=sheared_grids)
def test_a_grid_goes_through_json_to_the_last_bit(grid):
    content = json.loads(json.dumps({"axis": 2, **grid.to_json()}))
    read = Geometry.from_json(content)
    assert read.size == grid.size
    assert np.array_equal(read.affine, grid.affine)
    older = {"size": list(grid.size), "affine": grid.affine.ravel().tolist()}
    assert np.array_equal(Geometry.from_json(older).affine, grid.affine)


def test_a_slices_window_takes_a_mirrored_axis_as_the_scan_has_it():
    scan = oblique_left_handed()
    directions = GridSpec((4, 4, 4), (1, 1, 1), "slices").directions_over(scan)
    np.testing.assert_allclose(directions, scan.direction, atol=1e-12)


def test_slices_of_an_isotropic_scan_are_along_k():
    scan = Geometry((9, 9, 9), np.diag([1.0000001, 1.0, 1.0, 1]))
    directions = GridSpec((4, 4, 4), (1, 1, 1), "slices").directions_over(scan)
    np.testing.assert_allclose(directions, np.eye(3), atol=1e-12)


def test_a_sheared_stack_is_followed_as_closely_as_a_rotation_can():
    scan = Geometry((9, 9, 9), with_affine(lambda a: a.__setitem__((0, 2), a[0, 2] + 0.2)))
    directions = GridSpec((4, 4, 4), (1, 1, 1), "slices").directions_over(scan)
    np.testing.assert_allclose(directions, scan.direction, atol=0.1)


def test_an_unknown_way_to_lay_axes_is_refused():
    with pytest.raises(VolumeError, match="scanner"):
        GridSpec((4, 4, 4), (1, 1, 1), "scanner")


@pytest.mark.parametrize(
    ("size", "spacing", "fits"),
    [
        ((512, 512, 600), (1.2, 1.2, 3.0), True),
        ((700, 160, 2000), (1.0, 2.0, 1.0), True),  # a whole body
        ((48, 48, 16), (40.0, 40.0, 50.0), False),  # cm
        ((48, 48, 16), (0.004, 0.004, 0.005), False),
        ((48, 48, 16), (4.0, 4.0, 200.0), False),
    ],
)
def test_grids_of_no_patients_size_are_refused(size, spacing, fits):
    geometry = Geometry(size, np.diag((*spacing, 1.0)))
    if fits:
        require_patient_scale(geometry)
    else:
        with pytest.raises(VolumeError, match="none of a patient"):
            require_patient_scale(geometry)


def test_a_scan_that_lies_beyond_the_building_is_refused():
    affine = np.eye(4)
    affine[0, 3] = 1e7
    with pytest.raises(VolumeError, match="lies 1e\\+07 mm from"):
        require_patient_scale(Geometry((512, 512, 600), affine))


def test_a_scan_that_is_smaller_than_an_organ_is_told():
    geometry = Geometry((48, 48, 16), np.diag((0.4, 0.4, 0.5, 1.0)))
    assert scale_doubts(geometry) == [
        "The whole scan is only 19.2 x 19.2 x 8 mm: is its spacing in mm?"
    ]
    assert scale_doubts(Geometry((48, 48, 16), np.diag((4.0, 4.0, 5.0, 1.0)))) == []
