# SPDX-License-Identifier: Apache-2.0
"""Augmentation: known answers for every transform, and draws that keep to their ranges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from geometries import geometries, oblique_left_handed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from srcsm_training.augment import spatial
from srcsm_training.augment.spatial import (
    AugmentationConfig,
    SpatialDraw,
    augmented_intensities,
    augmented_window,
    draw_spatial,
    smoothed_labels,
    spline_field,
    transformed_points,
)
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample

STILL = AugmentationConfig(0.0, (0.0, 0.0, 0.0), 0.0, 0.0, 0.0)
"""No spatial augmentation; intensities are drawn still."""


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def a_draw(matrix=None, translation=(0, 0, 0), control=None):
    return SpatialDraw(
        np.eye(3) if matrix is None else np.array(matrix, dtype=float),
        np.array(translation, dtype=float),
        torch.zeros(3, 5, 5, 5) if control is None else control,
    )


def a_case(geometry, seed=0):
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.normal(100, 40, (1, *geometry.shape))).float()
    labels = torch.from_numpy(random.integers(0, 4, (1, *geometry.shape)).astype(np.uint8))
    return image, labels


def window_of(image, labels, source, window, draw, outside=-7.0):
    return augmented_window(image, labels, source, window, draw, outside, "cpu")


def axis_aligned(size=(11, 9, 7), spacing=(1.0, 2.0, 3.0), origin=(5.0, -3.0, 8.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Geometry(size, affine)


# --- spatial


def test_a_draw_of_nothing_is_plain_resampling():
    source = oblique_left_handed()
    window = GridSpec((6, 5, 4), (1.1, 0.7, 1.9)).placed(source.centre, np.eye(3))
    image, labels = a_case(source)
    lookup = look_up(points(index_map(window, source), window.size), source.shape)
    found, decided = window_of(image, labels, source, window, draw_spatial(STILL, seeded()))
    torch.testing.assert_close(found, sample(image, lookup, outside=-7.0), rtol=1e-4, atol=1e-3)
    nearest = sample(labels, lookup, mode="nearest")[0]
    assert torch.equal(decided, smoothed_labels(nearest))
    assert found.dtype == torch.float32
    assert decided.dtype == torch.int64


def test_a_window_on_the_scans_own_grid_shows_the_scan():
    source = axis_aligned()
    image, labels = a_case(source)
    found, decided = window_of(image, labels, source, source, a_draw())
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-3)
    assert torch.equal(decided, smoothed_labels(labels[0].long()))


def lit_voxel(draw, ijk):
    """Index (i, j, k) in the window where one bright voxel of the scan, of the same grid, lands."""
    source = axis_aligned((11, 11, 11), (2.0, 2.0, 2.0))
    image = torch.zeros(1, 11, 11, 11)
    image[0, ijk[2], ijk[1], ijk[0]] = 1
    found, _ = window_of(image, image.byte(), source, source, draw, outside=0.0)
    assert float(found.max()) == pytest.approx(1, abs=1e-4)
    return np.unravel_index(int(found.argmax()), found.shape[1:])[::-1]


def test_a_translation_in_mm_shows_what_lies_that_far_along_each_axis():
    assert lit_voxel(a_draw(translation=(2, 0, 0)), (5, 6, 7)) == (4, 6, 7)
    assert lit_voxel(a_draw(translation=(0, -4, 0)), (5, 6, 7)) == (5, 8, 7)
    assert lit_voxel(a_draw(translation=(0, 0, 6)), (5, 6, 7)) == (5, 6, 4)


def test_a_quarter_turn_about_each_axis():
    """A window turned from I to J about K (its centre, 5, stays) shows at +I what lay at +J."""
    about_i, about_j, about_k = (
        Rotation.from_rotvec(np.pi / 2 * np.eye(3)[axis]).as_matrix() for axis in range(3)
    )
    assert lit_voxel(a_draw(about_k), (5, 8, 6)) == (8, 5, 6)
    assert lit_voxel(a_draw(about_i), (4, 5, 8)) == (4, 8, 5)
    assert lit_voxel(a_draw(about_j), (8, 4, 5)) == (5, 4, 8)


def test_a_scale_above_1_shows_more_of_the_scan_smaller():
    assert lit_voxel(a_draw(np.diag([2.0, 1.0, 1.0])), (9, 6, 7)) == (7, 6, 7)
    assert lit_voxel(a_draw(np.diag([1.0, 0.5, 1.0])), (4, 6, 7)) == (4, 7, 7)


def test_what_lies_beyond_the_scan_is_outside_and_background():
    source = axis_aligned((6, 6, 6), (1.0, 1.0, 1.0))
    image, labels = a_case(source)
    found, decided = window_of(
        image, labels * 0 + 2, source, source, a_draw(translation=(4.0, 0, 0))
    )
    assert (found[0, :, :, 2:] == -7).all()
    assert (found[0, :, :, :2] != -7).all()
    assert (decided[:, :, 3:] == 0).all()
    assert (decided[:, :, 0] == 2).all()


@settings(max_examples=40, deadline=None)
@given(geometries(), st.data())
def test_every_point_is_where_the_transform_says(source, data):
    """Any scan grid, any window axes: RAS = centre + axes (matrix x offset + translation + d)."""

    def triple(limit):
        return [data.draw(st.floats(-limit, limit)) for _ in range(3)]

    axes = Rotation.from_rotvec(triple(3)).as_matrix()
    window = GridSpec((5, 4, 3), (1.5, 2.5, 4.0)).placed(triple(50), axes)
    matrix = Rotation.from_rotvec(triple(0.5)).as_matrix() * (np.array(triple(0.3)) + 1)
    displacement, translation = triple(15), triple(20)
    control = torch.tensor(displacement)[:, None, None, None].expand(3, 5, 5, 5)
    where = transformed_points(window, source, a_draw(matrix, translation, control), "cpu")
    ijk = np.stack(np.indices(window.shape)[::-1], axis=-1)
    offset = (ijk - (np.array(window.size) - 1) / 2) * window.spacing
    moved = offset @ matrix.T + translation + displacement
    expected = source.to_ijk(window.centre + moved @ axes.T)
    size = 1 + np.abs(expected).max()
    assert np.abs(where.numpy() - expected).max() < 1e-5 * size


def test_an_oblique_left_handed_scan_gives_the_window_of_an_axis_aligned_one():
    """One world on two grids: linear interpolation of a linear function is exact on both."""
    slope, offset = np.array([3.0, -2.0, 1.25]), 40.0
    world = np.array([10.0, -20.0, 30.0])
    turn = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    oblique = GridSpec((50, 60, 30), (0.9, 0.8, 2.0)).placed(world, turn * (1.0, -1.0, 1.0))
    aligned = GridSpec((40, 44, 48), (1.3, 1.2, 1.1)).placed(world, np.eye(3))
    window = GridSpec((8, 10, 6), (1.5, 1.0, 2.0)).placed((11, -18, 29), np.eye(3))
    assert np.linalg.det(oblique.affine[:3, :3]) < 0 < np.linalg.det(aligned.affine[:3, :3])
    draw = draw_spatial(
        AugmentationConfig(translation=2.0, elastic=2.0, control_points=5), seeded()
    )
    results = []
    for source in (oblique, aligned):
        ras = source.to_ras(np.stack(np.indices(source.shape)[::-1], axis=-1))
        image = torch.from_numpy(ras @ slope + offset).float()[None]
        labels = torch.from_numpy((ras @ slope > slope @ world).astype(np.uint8))[None]
        results.append(window_of(image, labels, source, window, draw))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-2)
    assert (results[0][0] != -7).all()
    assert (results[0][1] == results[1][1]).float().mean() > 0.97
    assert results[0][1].unique().tolist() == [0, 1]


def test_flipping_and_permuting_the_scans_axes_changes_nothing():
    source = axis_aligned()
    image, labels = a_case(source)
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, source.size[0] - 1
    swap = np.eye(4)[[1, 0, 2, 3]]
    same = Geometry((source.size[1], source.size[0], source.size[2]), source.affine @ flip @ swap)
    assert np.linalg.det(source.affine @ flip) < 0
    window = GridSpec((8, 7, 6), (1.2, 1.4, 1.6)).placed(source.centre, np.eye(3))
    draw = draw_spatial(AugmentationConfig(translation=2.0, elastic=2.0), seeded())
    found, decided = window_of(image, labels, source, window, draw)
    moved = [x.flip(3).transpose(2, 3) for x in (image, labels)]
    again, again_decided = window_of(*moved, same, window, draw)
    torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-2)
    assert (decided == again_decided).float().mean() > 0.99


def test_draws_keep_to_their_ranges_and_use_them():
    config = AugmentationConfig(
        translation=20.0,
        rotation=(0.35, 0.2, 0.1),
        scale=0.2,
        axis_scale=0.1,
        elastic=15.0,
        control_points=6,
    )
    generator = seeded()
    draws = [draw_spatial(config, generator) for _ in range(600)]
    translations = np.array([draw.translation for draw in draws])
    assert 19 < translations.max(0).min() <= 20
    assert -20 <= translations.min(0).max() < -19
    assert draws[0].control.shape == (3, 6, 6, 6)
    control = torch.stack([draw.control for draw in draws])
    assert 14.9 < control.max() <= 15
    assert -15 <= control.min() < -14.9
    # matrix = rotation about I, then J, then K, of factors along the window's axes.
    factors = np.array([np.linalg.norm(draw.matrix, axis=0) for draw in draws])
    assert 0.8 * 0.9 <= factors.min() < 0.76
    assert 1.28 < factors.max() <= 1.2 * 1.1
    ratios = factors[:, 0] / factors[:, 1]
    assert 0.9 / 1.1 <= ratios.min() < 0.86
    assert 1.15 < ratios.max() <= 1.1 / 0.9
    turns = [draw.matrix / scale for draw, scale in zip(draws, factors, strict=True)]
    angles = Rotation.from_matrix(turns).as_euler("xyz")
    assert np.linalg.det(turns) == pytest.approx(np.ones(600))
    assert (np.abs(angles) <= config.rotation).all()
    assert (np.abs(angles).max(0) > 0.97 * np.array(config.rotation)).all()
    # Both ways, and every number drawn by itself.
    assert abs(angles.mean(0)).max() < 0.05
    drawn = np.hstack([translations, angles, control[:, :, 2, 3, 4].numpy()])
    assert abs(np.corrcoef(drawn.T) - np.eye(9)).max() < 0.17


@pytest.mark.parametrize("axis", range(3))
def test_a_rotation_about_one_axis_leaves_that_axis_alone(axis):
    rotation = tuple(0.3 * np.eye(3)[axis])
    matrix = draw_spatial(replace(STILL, rotation=rotation), seeded()).matrix
    assert matrix @ np.eye(3)[axis] == pytest.approx(np.eye(3)[axis])
    assert abs(matrix - np.eye(3)).max() > 0.01


def test_the_same_seed_draws_the_same_and_each_draw_is_another():
    generator = seeded()
    first, second = (draw_spatial(AugmentationConfig(), generator) for _ in range(2))
    again = draw_spatial(AugmentationConfig(), seeded())
    for name in ("matrix", "translation", "control"):
        assert (getattr(first, name) == getattr(again, name)).all()
        assert (getattr(first, name) != getattr(second, name)).all()


# --- B-spline


def test_a_constant_control_field_is_a_pure_translation():
    """Partition of unity, at any number of voxels and control points."""
    for shape, n in (((7, 5, 3), 4), ((2, 30, 1), 8), ((6, 6, 6), 11)):
        constant = torch.tensor([3.0, -2.0, 0.5])[:, None, None, None].expand(3, n, n, n)
        field = spline_field(constant, shape)
        assert field.shape == (*shape, 3)
        torch.testing.assert_close(field, torch.tensor([3.0, -2.0, 0.5]).expand(*shape, 3))


def test_the_field_is_scipys_cubic_b_spline_along_k_j_and_i():
    n, shape = 7, (9, 6, 11)
    control = torch.randn(3, n, n, n, generator=seeded())
    expected = control.movedim(0, -1).double().numpy()
    for axis, length in enumerate(shape):
        spline = BSpline(np.arange(-3, n + 1), np.moveaxis(expected, axis, 0), 3)
        at = (np.arange(length) + 0.5) / length * (n - 3)
        expected = np.moveaxis(spline(at), 0, axis)
    found = spline_field(control, shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


# --- labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 5))
def test_labels_are_the_argmax_of_scipys_smoothed_one_hot(seed, shape, classes):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, shape)
    scores = np.stack(
        [
            gaussian_filter((labels == c).astype(float), sigma=1, radius=2, mode="nearest")
            for c in range(classes)
        ]
    )
    best, second = np.sort(np.concatenate([scores, scores[:1] * 0 - 1]), axis=0)[:-3:-1]
    found = smoothed_labels(torch.from_numpy(labels)).numpy()
    clear = best - second > 1e-6
    assert clear.mean() > 0.5
    assert (found == scores.argmax(0))[clear].all()


def test_of_labels_that_tie_the_smallest_is_taken(monkeypatch):
    scores = torch.tensor([[0.2, 0.4, 0.3], [0.4, 0.2, 0.3], [0.4, 0.4, 0.3]])
    monkeypatch.setattr(spatial, "smooth_voxels", lambda masks: scores[None, :, None, None])
    found = smoothed_labels(torch.tensor([[[1, 4, 5]]]))
    assert found.tolist() == [[[4, 1, 1]]]


def test_a_lone_voxel_is_smoothed_away_and_a_block_stays():
    labels = torch.zeros(9, 9, 9, dtype=torch.int64)
    labels[2, 2, 2] = 1
    labels[4:8, 4:8, 4:8] = 3
    found = smoothed_labels(labels)
    assert found.unique().tolist() == [0, 3]
    assert (found[5:7, 5:7, 5:7] == 3).all()


# --- intensities

CT = IntensityRule("CT")
SOFT_TISSUE = IntensityRule("CT", window=(-125, 275))
MR = IntensityRule("MR")


def some_windows(samples=2, low=-400.0, high=400.0):
    return torch.empty(samples, 1, 4, 5, 6).uniform_(low, high, generator=seeded())


@pytest.mark.parametrize("rule", [CT, SOFT_TISSUE, MR])
def test_intensities_without_augmentation_are_what_inference_sees(rule):
    windows = some_windows()
    still = replace(STILL, shift=0.0, contrast=0.0)
    found = augmented_intensities(windows, rule, still, seeded())
    torch.testing.assert_close(found, normalise(windows, rule))


def fitted(found, plain):
    """Shift and factor per sample from voxels far from the clamps."""
    pairs = []
    for one, before in zip(found, plain, strict=True):
        inner = (one.abs() < 0.99) & (before.abs() < 0.99)
        factor, shift = np.polyfit(before[inner].numpy(), one[inner].numpy(), 1)
        pairs.append((shift, factor))
    return np.array(pairs)


@pytest.mark.parametrize(
    ("rule", "contrast", "widest"),
    [(CT, None, 0.2), (SOFT_TISSUE, None, 0.2), (MR, None, 0.4), (CT, 0.1, 0.1), (MR, 0.3, 0.3)],
)
def test_shift_and_contrast_are_drawn_per_sample_within_their_ranges(rule, contrast, widest):
    windows = some_windows(1, -100, 100).expand(400, 1, 4, 5, 6)
    config = replace(STILL, shift=0.15, contrast=contrast)
    found = augmented_intensities(windows, rule, config, seeded())
    shift, factor = fitted(found, normalise(windows, rule)).T
    assert 0.14 < shift.max() <= 0.15 + 1e-4
    assert -0.15 - 1e-4 <= shift.min() < -0.14
    assert 1 + 0.95 * widest < factor.max() <= 1 + widest + 1e-4
    assert 1 - widest - 1e-4 <= factor.min() < 1 - 0.95 * widest
    assert abs(np.corrcoef(shift, factor)[0, 1]) < 0.15


def test_ct_is_clamped_at_both_ends_and_mr_below_alone():
    ct = augmented_intensities(some_windows(8, -3000, 3000), CT, STILL, seeded())
    assert ct.min() == -1
    assert ct.max() == 1
    mr = augmented_intensities(some_windows(8, 0, 500) ** 2, MR, STILL, seeded())
    assert mr.min() == -1
    assert mr.max() > 1.2


def test_strong_changes_keep_to_the_range_and_differ_by_sample():
    """Each factor of a gamma, a field, blur or sharpening, and noise; brighter stays brighter."""
    ramp = torch.linspace(-1, 1, 32).expand(6, 1, 1, 24, 32).contiguous()
    changed = spatial.strong_changes(ramp, 1.0, seeded())
    differences = [(changed[n] - changed[m]).abs().mean() for n in range(6) for m in range(n)]
    assert min(differences) > 0.01
    means = changed.mean((1, 2, 3))
    assert (means[:, -8:].mean(1) > means[:, :8].mean(1) + 0.5).all()
    assert (means[:, 0] < -0.85).all()
    assert torch.equal(changed, spatial.strong_changes(ramp, 1.0, seeded()))
    slight = spatial.strong_changes(ramp, 0.01, seeded())
    torch.testing.assert_close(slight, ramp, atol=0.05, rtol=0)
    torch.testing.assert_close(spatial.strong_changes(ramp, 0.0, seeded()), ramp)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_strong_changes_are_within_the_rules_limits(modality):
    windows = torch.rand(4, 1, 1, 16, 16, generator=seeded()) * 400 - 125
    rule = IntensityRule(modality, window=(-125, 275))
    config = replace(STILL, strong=1.0)
    changed = augmented_intensities(windows, rule, config, seeded())
    assert not torch.equal(changed, augmented_intensities(windows, rule, STILL, seeded()))
    assert changed.min() >= -1
    assert changed.isfinite().all()
    assert modality == "MR" or changed.max() <= 1
