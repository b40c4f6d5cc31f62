# SPDX-License-Identifier: Apache-2.0
"""Smoothing and moving arrays between grids: against known answers and against scipy."""

import numpy as np
import pytest
import torch
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SRCSMSegmenterLib import resampling
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.resampling import (
    index_map,
    look_up,
    points,
    resample,
    sample,
    smooth_mm,
    smooth_voxels,
)

seeds = st.integers(0, 2**32 - 1)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ramp(shape: tuple[int, int, int]) -> torch.Tensor:
    """(1, K, J, I) with the value 3 + i - 2 j + 5 k."""
    k, j, i = np.indices(shape)
    return torch.tensor(3.0 + i - 2.0 * j + 5.0 * k, dtype=torch.float32)[None]


def on_ramp(where: torch.Tensor) -> torch.Tensor:
    return 3 + where[..., 0] - 2 * where[..., 1] + 5 * where[..., 2]


def a_matrix(rng: np.random.Generator, shape: tuple[int, int, int], parallel: bool) -> np.ndarray:
    """An index map from a small grid that lies partly outside a volume of `shape`."""
    linear = rng.uniform(0.3, 1.5, 3) * rng.choice([-1, 1], 3) * np.eye(3)[rng.permutation(3)]
    if not parallel:
        linear = linear + rng.uniform(-0.4, 0.4, (3, 3))
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = rng.uniform(-2, np.array(shape[::-1]) + 1)
    return matrix


def test_sampling_at_the_voxels_themselves_changes_nothing():
    volume = noise(2, 3, 4, 5)
    lookup = look_up(points(np.eye(4), (5, 4, 3)), (3, 4, 5))
    torch.testing.assert_close(sample(volume, lookup), volume)
    assert torch.equal(sample(volume, lookup, mode="nearest"), volume)


@settings(deadline=None, max_examples=50)
@given(seed=seeds)
def test_a_linear_function_is_sampled_exactly(seed):
    rng = np.random.default_rng(seed)
    shape = (4, 9, 6)
    where = torch.tensor(rng.uniform(0, np.array(shape[::-1]) - 1, (2, 3, 5, 3)), dtype=torch.float)
    sampled = sample(ramp(shape), look_up(where, shape))
    torch.testing.assert_close(sampled[0], on_ramp(where), atol=1e-3, rtol=0)


def test_points_beyond_the_outer_faces_are_outside_and_those_within_take_the_outer_voxel():
    volume = torch.tensor([5.0, 7.0]).reshape(1, 1, 1, 2)
    i = torch.tensor([-0.51, -0.49, 0.25, 1.49, 1.51])
    where = torch.stack([i, torch.zeros(5), torch.zeros(5)], -1)[None, None]
    lookup = look_up(where, (1, 1, 2))
    assert sample(volume, lookup, outside=-9)[0, 0, 0].tolist() == [-9, 5, 5.5, 7, -9]
    nearest = sample(volume, lookup, mode="nearest", outside=-9)
    assert nearest[0, 0, 0].tolist() == [-9, 5, 5, 7, -9]


@pytest.mark.parametrize("axis", range(3))
def test_each_coordinate_goes_with_its_own_axis(axis):
    volume = ramp((4, 5, 6))
    where = torch.zeros(1, 1, 1, 3)
    where[..., axis] = 2.5
    value = sample(volume, look_up(where, (4, 5, 6))).item()
    assert value == pytest.approx([5.5, -2, 15.5][axis], abs=1e-4)


def test_only_the_part_of_the_volume_that_the_points_touch_is_read():
    volume = torch.full((1, 6, 7, 8), torch.nan)
    volume[:, 2:4, 3:5, 4:6] = ramp((2, 2, 2))
    where = torch.tensor([[[[4.0, 3.0, 2.0], [5.0, 4.0, 3.0]]]])
    sampled = sample(volume, look_up(where, (6, 7, 8)))
    torch.testing.assert_close(sampled.flatten(), torch.tensor([3.0, 7.0]))


def test_a_grid_wholly_outside_is_all_outside():
    where = points(np.eye(4), (2, 2, 2)) + 50
    assert (sample(noise(1, 3, 4, 5), look_up(where, (3, 4, 5)), outside=8) == 8).all()
    where = points(np.eye(4), (2, 2, 2)) - 50
    assert (sample(noise(1, 3, 4, 5), look_up(where, (3, 4, 5)), outside=8) == 8).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.float64])
def test_every_dtype_is_read(dtype):
    volume = torch.arange(24).reshape(1, 2, 3, 4).to(dtype)
    sampled = sample(volume, look_up(points(np.eye(4), (4, 3, 2)), (2, 3, 4)), mode="nearest")
    assert sampled.dtype == torch.float32
    assert torch.equal(sampled, volume.float())


@settings(deadline=None, max_examples=50)
@given(target=geometries(), source=geometries(max_shear=0.3), seed=seeds)
def test_the_index_map_goes_through_patient_space(target, source, seed):
    ijk = np.random.default_rng(seed).uniform(0, 9, 3)
    mapped = index_map(target, source) @ [*ijk, 1]
    np.testing.assert_allclose(mapped[:3], source.to_ijk(target.to_ras(ijk)), atol=1e-6)


def test_points_apply_the_matrix_to_every_index():
    matrix = index_map(oblique_left_handed((7, 5, 4)), oblique_left_handed((3, 3, 3)))
    matrix[:3, 3] += (1, 2, 3)
    matrix[0, 2] += 0.5
    where = points(matrix, (7, 5, 4))
    assert where.shape == (4, 5, 7, 3)
    expected = matrix @ [6, 4, 3, 1]
    np.testing.assert_allclose(where[3, 4, 6], expected[:3], rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, parallel=st.booleans())
def test_resampling_a_grid_equals_sampling_its_points(seed, parallel):
    rng = np.random.default_rng(seed)
    shape, size = (4, 6, 9), (7, 3, 5)
    matrix = a_matrix(rng, shape, parallel)
    volume = torch.tensor(rng.uniform(-3, 3, (2, *shape)), dtype=torch.float32)
    expected = sample(volume, look_up(points(matrix, size), shape), outside=-7)
    resampled = resample(volume, matrix, size, outside=-7)
    assert resampled.shape == (2, 5, 3, 7)
    torch.testing.assert_close(resampled, expected, atol=1e-4, rtol=0)


def test_parallel_grids_are_resampled_without_points(monkeypatch):
    monkeypatch.setattr(resampling, "points", None)
    matrix = a_matrix(np.random.default_rng(1), (4, 6, 9), parallel=True)
    resample(noise(1, 4, 6, 9), matrix, (7, 3, 5))
    with pytest.raises(TypeError):
        resample(noise(1, 4, 6, 9), a_matrix(np.random.default_rng(1), (4, 6, 9), False), (7, 3, 5))


@pytest.mark.parametrize("shape", [(1, 2, 7, 6), (2, 3, 5, 9, 4), (1, 1, 1, 2, 3)])
def test_voxel_smoothing_is_a_five_tap_gaussian_with_replicated_border(shape):
    x = noise(*shape)
    spatial = range(2, len(shape))
    expected = ndimage.gaussian_filter(
        x.double().numpy(), 1.0, mode="nearest", radius=2, axes=tuple(spatial)
    )
    np.testing.assert_allclose(smooth_voxels(x), expected, atol=1e-6)


def test_voxel_smoothing_follows_sigma_and_radius():
    x = noise(1, 1, 9, 8, 7)
    expected = ndimage.gaussian_filter(
        x.double().numpy(), 1.7, mode="nearest", radius=3, axes=(2, 3, 4)
    )
    np.testing.assert_allclose(smooth_voxels(x, 1.7, 3), expected, atol=1e-6)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_smoothing_in_mm_is_scipys_gaussian_cut_at_three_sigma(block, monkeypatch):
    monkeypatch.setattr(resampling, "CACHED_VOXELS", block)
    x = noise(6, 11, 17)
    spacing, sigma = np.array([0.4, 0.9, 7.7]), 1.0
    expected = x.double().numpy()
    for axis, step in enumerate(spacing[::-1]):
        # The farthest tap is the last whose near face is within three sigma.
        radius = [r for r in range(20) if (r - 0.5) * step < 3 * sigma][-1]
        expected = ndimage.gaussian_filter1d(
            expected, sigma / step, axis=axis, mode="nearest", radius=radius
        )
    np.testing.assert_allclose(smooth_mm(x, spacing, sigma), expected, atol=1e-6)


def test_thick_slices_are_not_smoothed_across():
    x = torch.zeros(5, 3, 4)
    x[2] = 1
    torch.testing.assert_close(smooth_mm(x, np.array([1.0, 1.0, 7.7]), 1.0), x)


@settings(deadline=None, max_examples=50)
@given(
    value=st.floats(-2000, 2000, width=32),
    step=st.floats(0.25, 4.0),
    sigma=st.floats(0.0, 3.0),
)
def test_smoothing_keeps_constants(value, step, sigma):
    x = torch.full((4, 3, 5), value)
    spacing = np.array([step, 1.5, 0.7])
    torch.testing.assert_close(smooth_mm(x, spacing, sigma), x, rtol=1e-5, atol=1e-4)


def test_smoothing_keeps_the_mean_position_and_the_mass():
    x = torch.zeros(21, 23, 25)
    x[8, 11, 13] = 2
    smoothed = smooth_mm(x, np.array([0.8, 1.0, 1.3]), 1.2)
    assert smoothed.sum().item() == pytest.approx(2, abs=1e-5)
    position = [(smoothed * torch.tensor(grid)).sum().item() / 2 for grid in np.indices(x.shape)]
    assert position == pytest.approx([8, 11, 13], abs=1e-4)


def test_no_sigma_leaves_the_volume_as_it_is_and_the_input_is_never_changed():
    x = noise(3, 4, 5)
    before = x.clone()
    assert torch.equal(smooth_mm(x, np.ones(3), 0.0), x)
    smooth_mm(x, np.ones(3), 1.0)
    smooth_voxels(x[None, None])
    resample(x[None], np.diag([0.5, 0.5, 0.5, 1]), (9, 9, 9), outside=4)
    assert torch.equal(x, before)


def test_a_volume_moved_to_another_grid_and_back_is_where_it_was():
    near = oblique_left_handed((12, 11, 10))
    fine = Geometry((34, 31, 28), near.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1]))
    volume = ramp(near.shape)
    there = resample(volume, index_map(fine, near), fine.size)
    torch.testing.assert_close(
        resample(there, index_map(near, fine), near.size), volume, atol=1e-3, rtol=0
    )
