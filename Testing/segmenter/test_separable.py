# SPDX-License-Identifier: Apache-2.0
"""Smoothing and resampling in one step, held against one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib import separable
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample, smooth_mm
from SRCSMSegmenterLib.separable import multiplied, sample_smoothed, smoothing_rows


def as_float(block):
    return block.astype(np.float32)


def a_scan(seed, turn=0.0):
    """A scan of any size, spacing, order and direction of its axes, and a grid near it."""
    random = np.random.default_rng(seed)
    size = tuple(random.integers(1, 30, 3).tolist())
    affine = np.eye(4)
    axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
    c, s = np.cos(turn), np.sin(turn)
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ axes
    affine[:3, :3] = turned * random.uniform(0.4, 6, 3)
    affine[:3, 3] = random.normal(0, 30, 3)
    scan = Geometry(size, affine)
    grid = GridSpec(tuple(random.integers(1, 20, 3).tolist()), tuple(random.uniform(1, 6, 3)))
    target = grid.placed(scan.centre + random.normal(0, 4, 3), np.eye(3))
    array = random.integers(-1000, 1500, scan.shape).astype(np.int16)
    return array, scan, target


def literal(array, scan, sigma, target):
    """Smooth the whole scan, then look every point up; with where the points are inside."""
    smoothed = smooth_mm(torch.from_numpy(as_float(array)), scan.spacing, sigma)
    lookup = look_up(points(index_map(target, scan), target.size), scan.shape)
    return sample(smoothed[None], lookup)[0], lookup.inside


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.sampled_from([0.0, 0.6, 1.0, 3.0]))
def test_one_step_equals_smoothing_and_then_sampling(seed, sigma):
    array, scan, target = a_scan(seed)
    expected, inside = literal(array, scan, sigma, target)
    result = sample_smoothed(array, as_float, scan, sigma, target)
    assert result.shape == target.shape
    # The range of 2500 is what 1 to -1 are to a network: a ten-thousandth of it.
    torch.testing.assert_close(result[inside], expected[inside], atol=0.125, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_an_oblique_scan_is_sampled_too(seed):
    array, scan, target = a_scan(seed, turn=0.3)
    expected, inside = literal(array, scan, 1.0, target)
    result = sample_smoothed(array, as_float, scan, 1.0, target)
    torch.testing.assert_close(result[inside], expected[inside], atol=0.125, rtol=0)


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_beyond_the_scan_its_border_counts(turn):
    array = np.full((4, 5, 6), 7, np.int16)
    affine = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    affine[:2, :2] = [[c, -s], [s, c]]
    target = GridSpec((9, 9, 9), (4.0, 4.0, 4.0)).placed(np.zeros(3), np.eye(3))
    result = sample_smoothed(array, as_float, Geometry((6, 5, 4), affine), 1.0, target)
    torch.testing.assert_close(result, torch.full_like(result, 7))


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 40),
    spacing=st.floats(0.2, 8),
    sigma=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 999),
)
def test_every_row_is_a_mean(length, spacing, sigma, seed):
    positions = np.random.default_rng(seed).uniform(-3, length + 3, 11)
    rows = smoothing_rows(length, spacing, sigma, positions)
    assert rows.shape == (11, length)
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)


def test_without_smoothing_rows_interpolate_linearly():
    rows = smoothing_rows(4, 1.0, 0.0, np.array([0.0, 1.25, 3.0, 9.0, -2.0]))
    expected = [[1, 0, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]]
    np.testing.assert_allclose(rows, expected)


@pytest.mark.parametrize("axis", range(3))
def test_small_blocks_give_what_one_block_gives(monkeypatch, axis):
    random = np.random.default_rng(axis)
    array = random.integers(-50, 50, (40, 41, 42)).astype(np.int16)
    lengths = [37, 38, 39]
    lengths[axis] = 9  # the axis that shrinks most goes first
    rows = [
        smoothing_rows(size, 1.0, 1.0, np.linspace(0, size - 1, n))
        for size, n in zip(array.shape, lengths, strict=True)
    ]
    whole = multiplied(array, as_float, rows)
    expected = np.einsum("kji,Kk,Jj,Ii->KJI", array.astype(np.float64), *rows)
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-3)
    monkeypatch.setattr(separable, "BLOCK_VOXELS", 500)
    monkeypatch.setattr(separable, "BAND", 4)
    torch.testing.assert_close(multiplied(array, as_float, rows), whole, atol=1e-4, rtol=0)


def test_an_error_while_converting_is_raised():
    def fails(block):
        raise ValueError("no such voxel")

    with pytest.raises(ValueError, match="no such voxel"):
        multiplied(np.zeros((4, 4, 4)), fails, [np.eye(4, dtype=np.float32)] * 3)
