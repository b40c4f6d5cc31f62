# SPDX-License-Identifier: Apache-2.0
"""Placing windows: the body's box, where centres may lie, and whether all of a scan is covered."""

import numpy as np
import pytest
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib.field_of_view import (
    Extent,
    body_extent,
    centre_range,
    covering_centres,
    covering_grid,
    otsu_threshold,
    scan_extent,
    thin_scan_doubts,
    window_starts,
)
from SRCSMSegmenterLib.geometry import Geometry, GridSpec

# I runs to the left, J to the posterior, K to the superior; 2 x 1 x 4 mm.
SCAN = Geometry(
    (50, 80, 30), np.array([[-2.0, 0, 0, 60], [0, -1, 0, 30], [0, 0, 4, -10], [0, 0, 0, 1]])
)
PATIENT = GridSpec((8, 8, 8), (5.0, 5.0, 5.0))


def a_body(low=(10, 20, 0), high=(30, 50, 30), noise=0.0) -> np.ndarray:
    """(K, J, I) array of `SCAN`, 100 in the voxels from `low` to below `high` (I, J, K)."""
    array = np.random.default_rng(0).normal(0, noise, SCAN.shape) if noise else np.zeros(SCAN.shape)
    i, j, k = (slice(a, b) for a, b in zip(low, high, strict=True))
    array[k, j, i] += 100
    return array


def test_otsu_parts_two_peaks():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 3, 900), rng.normal(120, 10, 300)])
    above = values > otsu_threshold(values)
    assert abs(above.sum() - 300) < 5


@pytest.mark.parametrize("value", [-7.0, 0.0, 2048.0])
def test_a_constant_image_is_all_body(value):
    array = np.full(SCAN.shape, value, np.float32)
    array[::2] = np.nextafter(array[::2], np.float32(np.inf))  # smoothing rounds
    body, whole = body_extent(array, SCAN, PATIENT), scan_extent(SCAN, PATIENT)
    np.testing.assert_allclose([body.low, body.high], [whole.low, whole.high])


def test_the_scans_extent_counts_voxel_faces_and_is_in_ras():
    extent = scan_extent(SCAN, PATIENT)
    np.testing.assert_allclose(extent.low, (60 - 49.5 * 2, 30 - 79.5, -12))
    np.testing.assert_allclose(extent.high, (61, 30.5, -10 + 29.5 * 4))
    np.testing.assert_allclose(extent.centre, SCAN.centre)


def test_the_slices_axes_follow_the_scan():
    scan = oblique_left_handed((20, 30, 6))
    extent = scan_extent(scan, GridSpec((8, 8, 8), (1, 1, 1), axes="slices"))
    np.testing.assert_allclose(extent.high - extent.low, (20 * 0.8, 30 * 0.9, 6 * 2.5))
    np.testing.assert_allclose(extent.centre, scan.centre)


def test_the_bodys_box_is_found_within_a_hundredth():
    body = body_extent(a_body(noise=5.0), SCAN, PATIENT)
    # I 10 ... 29 is x 40 ... 2; J 20 ... 49 is y 10 ... -19; slices are all body.
    np.testing.assert_allclose(body.low[:2], (2, -19), atol=1)
    np.testing.assert_allclose(body.high[:2], (40, 10), atol=1)


def test_a_body_that_comes_near_a_face_ends_at_the_face():
    # J starts anterior; its third voxel is 2.5 mm from the face of an 80 mm scan.
    body, whole = body_extent(a_body(low=(10, 2, 0)), SCAN, PATIENT), scan_extent(SCAN, PATIENT)
    assert body.high[1] == whole.high[1]
    assert body.low[1] > whole.low[1] + 20


def test_a_table_does_not_move_the_body():
    array = a_body(low=(10, 20, 0), high=(40, 60, 30))
    before = body_extent(array, SCAN, PATIENT)
    array[:, 75, 20:30] = 100
    after = body_extent(array, SCAN, PATIENT)
    np.testing.assert_allclose(after.low, before.low, atol=1.5)
    np.testing.assert_allclose(after.high, before.high, atol=1.5)


def test_large_scans_are_looked_at_coarsely_to_the_same_result():
    fine = Geometry((200, 240, 30), SCAN.affine @ np.diag([0.25, 1 / 3, 1, 1]))
    array = a_body().repeat(3, axis=1).repeat(4, axis=2)
    coarse, found = body_extent(a_body(), SCAN, PATIENT), body_extent(array, fine, PATIENT)
    np.testing.assert_allclose(found.low, coarse.low, atol=2)
    np.testing.assert_allclose(found.high, coarse.high, atol=2)


def test_centres_stay_on_the_body_where_it_fits_and_within_the_scan_elsewhere():
    body = Extent(np.array([0.0, 10, 20]), np.array([40.0, 70, 180]), np.eye(3))
    scan = Extent(np.array([-100.0, 0, 10]), np.array([100.0, 90, 200]), np.eye(3))
    low, high = centre_range(body, scan, GridSpec((10, 10, 10), (4.0, 4, 4)))
    assert (low.tolist(), high.tolist()) == ([20, 20, 30], [20, 70, 180])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), overlap=st.sampled_from((0.0, 0.25, 0.5, 0.8)))
def test_covering_windows_reach_both_ends_and_share_the_overlap(seed, overlap):
    rng = np.random.default_rng(seed)
    scan = Extent(rng.uniform(-300, 0, 3), rng.uniform(10, 300, 3), np.eye(3))
    grid = GridSpec(tuple(rng.integers(4, 40, 3)), tuple(rng.uniform(1, 6, 3)))
    centres = np.array(covering_centres(scan, scan, grid, overlap))
    for axis in range(3):
        along, width = np.unique(centres[:, axis].round(6)), grid.extent[axis]
        if scan.high[axis] - scan.low[axis] <= width:
            np.testing.assert_allclose(along, (scan.low[axis] + scan.high[axis]) / 2, atol=1e-5)
            continue
        assert along[0] - width / 2 == pytest.approx(scan.low[axis], abs=1e-4)
        assert along[-1] + width / 2 == pytest.approx(scan.high[axis], abs=1e-4)
        assert np.diff(along).max() <= width * (1 - overlap) + 1e-4


@settings(deadline=None, max_examples=50)
@given(scan=geometries(max_size=30), axes=st.sampled_from(("patient", "slices")))
def test_the_windows_of_the_covering_grid_are_the_covering_ones_within_a_voxel(scan, axes):
    grid = GridSpec((5, 4, 6), (12.0, 14.0, 13.0), axes)
    extent = scan_extent(scan, grid)
    covering, starts = covering_grid(extent, extent, grid)
    centres = covering_centres(extent, extent, grid)
    found = covering.to_ras(np.array(starts) + (np.array(grid.size) - 1) / 2)
    # Rounding the scan up to whole voxels can ask for one window more along an axis.
    assert len(starts) >= len(centres)
    if len(starts) == len(centres):
        off = (found - centres) @ extent.directions
        assert (np.abs(off) <= np.array(grid.spacing) + 1e-6).all()
    np.testing.assert_allclose(covering.spacing, grid.spacing)
    np.testing.assert_allclose(covering.centre, extent.centre, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(scan=geometries(max_size=30), overlap=st.sampled_from((0.0, 0.3, 0.5)))
def test_the_covering_grids_windows_cover_every_voxel_of_the_scan(scan, overlap):
    grid = GridSpec((5, 4, 6), (12.0, 14.0, 13.0))
    extent = scan_extent(scan, grid)
    covering, starts = covering_grid(extent, extent, grid, overlap)
    seen = np.zeros(covering.shape, bool)
    for i, j, k in starts:
        assert min(i, j, k) >= 0
        assert (np.array((i, j, k)) + grid.size <= covering.size).all()
        seen[k : k + 6, j : j + 4, i : i + 5] = True
    assert seen.all()
    last = np.array(scan.size) - 1
    corners = np.array(np.meshgrid(*((0, n) for n in last))).reshape(3, -1).T
    ijk = covering.to_ijk(scan.to_ras(corners))
    assert (ijk >= -0.5).all()
    assert (ijk <= np.array(covering.size) - 0.5).all()


def test_a_scan_that_fits_gets_one_window_around_the_body():
    body = Extent(np.array([1.0, 2, 3]), np.array([11.0, 8, 23]), np.eye(3))
    scan = Extent(np.array([-80.0, -80, -80]), np.array([80.0, 80, 80]), np.eye(3))
    covering, starts = covering_grid(body, scan, GridSpec((8, 9, 10), (3.0, 3, 3)))
    assert starts == [(0, 0, 0)]
    assert covering.size == (8, 9, 10)
    np.testing.assert_allclose(covering.centre, (6, 5, 13))


@settings(deadline=None, max_examples=50)
@given(total=st.tuples(*[st.integers(3, 15)] * 3), overlap=st.sampled_from((0.0, 0.25, 0.5, 0.75)))
def test_window_starts_cover_without_a_gap(total, overlap):
    size = (3, 2, 1)
    starts = np.array(window_starts(total, size, overlap))
    for axis, (n, m) in enumerate(zip(total, size, strict=True)):
        along = np.unique(starts[:, axis])
        assert (along[0], along[-1]) == (0, n - m)
        if len(along) > 1:
            assert np.diff(along).max() <= np.ceil(m * (1 - overlap))


def test_window_starts_are_known_for_a_known_case():
    assert window_starts((10, 4, 4), (4, 4, 4), 0.5) == [(0, 0, 0), (2, 0, 0), (4, 0, 0), (6, 0, 0)]
    assert window_starts((4, 10, 5), (4, 4, 4), 0.0) == [
        (0, 0, 0), (0, 0, 1), (0, 3, 0), (0, 3, 1), (0, 6, 0), (0, 6, 1)
    ]  # fmt: skip
    assert window_starts((4, 4, 3), (4, 4, 1), 0.5) == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]


@pytest.mark.parametrize(
    ("slices", "depth", "said"), [(7, 8, ["only 14 mm", "sees 32 mm"]), (8, 8, []), (1, 1, [])]
)
def test_a_scan_thinner_than_half_a_window_is_doubted(slices, depth, said):
    scan = GridSpec((32, 24, slices), (2.0, 2.0, 2.0)).placed(np.zeros(3), np.eye(3))
    grid = GridSpec((16, 12, depth), (4.0, 4.0, 4.0))
    doubts = thin_scan_doubts(scan, grid)
    assert len(doubts) == bool(said)
    assert all(words in doubts[0] for words in said)
