# SPDX-License-Identifier: Apache-2.0
"""Regions of unlabelled tissue, and the looks that they get."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srcsm_training.augment import regions as module
from srcsm_training.augment.random_convolution import random_convolution
from srcsm_training.augment.regions import RegionsConfig, partition, random_looks, region_looks
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.resampling import smooth_voxels

SHAPES = {2: (24, 28), 3: (8, 24, 28)}
EVERYWHERE = RegionsConfig(share=1.0)
UNDIVIDED = replace(EVERYWHERE, divided=0.0, divided_labels=0.0)
AFFINE = replace(EVERYWHERE, affine=1.0, kept=0.0, kept_air=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def a_body(samples=1, dimensions=3, seed=0):
    """Air of -1 around fat of -0.8, muscle of 0 and a labelled organ of 0.3, each with noise."""
    shape = SHAPES[dimensions]
    images = torch.full((samples, 1, *shape), -1.0)
    labels = torch.zeros(samples, *shape, dtype=torch.int64)
    images[..., 3:21, 3:25] = -0.8
    images[..., 6:18, 6:22] = 0.0
    images[..., 8:16, 8:14] = 0.3
    labels[..., 8:16, 8:14] = 2
    noise = 0.02 * torch.randn(images.shape, generator=seeded(seed)).clamp(-2, 2)
    return torch.where(images > -1, images + noise, images), labels


def masks(images, labels):
    """Air, fat and muscle of `a_body`, (N, *spatial) each."""
    values = images[:, 0]
    fat = (values > -0.95) & (values < -0.4)
    return values == -1, fat, (values > -0.4) & (labels == 0)


@pytest.mark.parametrize("dimensions", [2, 3])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_regions_keep_air_labels_and_tissue_apart(dimensions, seed):
    images, labels = a_body(1, dimensions)
    regions = partition(images, labels, EVERYWHERE, seeded(seed))
    air, fat, muscle = (regions[mask] for mask in masks(images, labels))
    organ = regions[labels == 2]
    assert set(air.tolist()) == {0}
    assert not set(fat.tolist()) & {0, 1, 2}
    assert not set(organ.tolist()) & ({0, 1} | set(fat.tolist()) | set(muscle.tolist()))


def test_without_divisions_labels_stay_as_they_are():
    images, labels = a_body(3)
    for seed in range(10):
        regions = partition(images, labels, UNDIVIDED, seeded(seed))
        assert (regions[labels == 2] == 2).all()
        assert (regions[labels != 2] != 2).all()


def test_a_division_makes_two_halves_of_a_label_and_no_more():
    images, labels = a_body()
    always = replace(UNDIVIDED, divided_labels=1.0)
    halves = [
        partition(images, labels, always, seeded(seed))[labels == 2].unique() for seed in range(20)
    ]
    assert max(map(len, halves)) == 2


def test_half_of_the_divisions_of_a_label_follow_its_intensities():
    image = torch.rand(1, 1, 8, 24, 24, generator=seeded(1))
    labels = torch.ones(1, 8, 24, 24, dtype=torch.long)
    always = replace(UNDIVIDED, divided_labels=1.0)
    followed = 0
    for seed in range(40):
        regions = partition(image, labels, always, seeded(seed))
        darker, brighter = image[:, 0][regions == 1], image[:, 0][regions != 1]
        followed += not len(darker) or not len(brighter) or bool(darker.max() <= brighter.min())
    assert 10 <= followed <= 30


def test_clusters_are_as_many_as_asked_for_at_the_most():
    images, labels = a_body()
    for seed in range(20):
        three = replace(UNDIVIDED, clusters=(3, 3))
        regions = partition(images, labels, three, seeded(seed))
        assert len(regions[labels == 0].unique()) <= 1 + 3


def test_k_means_separates_fat_from_muscle_in_many_draws():
    images, labels = a_body()
    _, fat, muscle = masks(images, labels)
    two = replace(UNDIVIDED, clusters=(2, 2))
    clean = 0
    for seed in range(40):
        regions = partition(images, labels, two, seeded(seed))
        apart = set(regions[fat].tolist()).isdisjoint(regions[muscle].tolist())
        clean += apart and len(regions[fat].unique()) == len(regions[muscle].unique()) == 1
    assert 12 <= clean <= 36


def test_tissue_of_a_single_value_and_windows_of_air_alone_are_regions_too():
    flat = torch.full((1, 1, 4, 6, 6), -1.0)
    labels = torch.zeros(1, 4, 6, 6, dtype=torch.int64)
    assert partition(flat, labels, EVERYWHERE, seeded()).unique().tolist() == [0]
    flat[..., 2:] = 0.5
    regions = partition(flat, labels, UNDIVIDED, seeded())
    assert len(regions[0, ..., 2:].unique()) == 1
    looks = region_looks(flat, regions, "smoothed", EVERYWHERE, seeded())
    assert torch.isfinite(looks).all()


# --- looks


def test_an_affine_moves_every_region_to_a_mean_within_the_range_and_keeps_its_texture():
    images, labels = a_body()
    regions = partition(images, labels, UNDIVIDED, seeded(3))
    looks = region_looks(images, regions, "hard", AFFINE, seeded(3))
    for region in regions.unique():
        before, after = images[:, 0][regions == region], looks[:, 0][regions == region]
        assert -1 <= float(after.mean()) <= 1
        if before.std() > 0:
            factor = after.std() / before.std()
            assert 0.3 <= float(factor) <= 1.5
            correlation = torch.corrcoef(torch.stack((before, after)))[0, 1]
            assert abs(float(correlation)) > 0.999


def test_fat_is_brighter_darker_and_as_bright_as_an_organ_in_a_good_share_of_the_draws():
    images, labels = a_body()
    _, fat, _ = masks(images, labels)
    differences = []
    for seed in range(200):
        looks = random_looks(images, labels, "smoothed", EVERYWHERE, seeded(seed))[:, 0]
        differences.append(float(looks[fat].mean() - looks[labels == 2].mean()))
    differences = torch.tensor(differences)
    assert (differences > 0.2).float().mean() > 0.15
    assert (differences < -0.2).float().mean() > 0.3
    assert (differences.abs() < 0.2).float().mean() > 0.1


def test_smoothed_looks_equal_the_sum_of_affines_under_smoothed_masks():
    images = torch.randn(2, 1, 6, 10, 12, generator=seeded(8))
    regions = torch.randint(0, 3, (2, 6, 10, 12), generator=seeded(9))
    hard = region_looks(images, regions, "hard", AFFINE, seeded(1))[:, 0]
    expected = torch.zeros_like(hard)
    for n in range(2):
        for region in range(3):
            mask = regions[n] == region
            x, y = images[n, 0][mask], hard[n][mask]
            slope = torch.cov(torch.stack((x, y)))[0, 1] / x.var()
            look = slope * (images[n, 0] - x.mean()) + y.mean()
            expected[n] += look * smooth_voxels(mask[None, None].float())[0, 0]
    smooth = region_looks(images, regions, "smoothed", AFFINE, seeded(1))[:, 0]
    torch.testing.assert_close(smooth, expected, rtol=1e-4, atol=1e-4)


def test_kept_regions_are_what_they_were():
    images, labels = a_body(2)
    regions = partition(images, labels, EVERYWHERE, seeded(1))
    kept = replace(EVERYWHERE, kept=1.0, kept_air=1.0)
    looks = region_looks(images, regions, "smoothed", kept, seeded(1))
    torch.testing.assert_close(looks, images, rtol=1e-5, atol=1e-5)


def test_without_affines_regions_of_labels_alone_are_src():
    """One region per label and networks alone: the same networks, in the same order, as SRC."""
    images, labels = a_body(2)
    networks = replace(EVERYWHERE, affine=0.0, kept=0.0, kept_air=0.0)
    generator = seeded(5)
    torch.rand(5, 4, generator=generator)  # what region_looks draws for its four regions first
    expected = random_convolution(images, labels, "smoothed", generator)
    torch.testing.assert_close(
        region_looks(images, labels, "smoothed", networks, seeded(5)), expected
    )


def test_looks_in_2d_equal_looks_in_3d_of_one_slice():
    images, labels = a_body(2, 2)
    flat = random_looks(images, labels, "smoothed", EVERYWHERE, seeded(2))
    deep = random_looks(images[:, :, None], labels[:, None], "smoothed", EVERYWHERE, seeded(2))
    assert torch.equal(flat[:, :, None], deep)


def test_the_same_seed_gives_the_same_look_and_another_seed_another():
    images, labels = a_body(2)
    first, again, other = (
        random_looks(images, labels, "smoothed", EVERYWHERE, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_samples_get_regions_src_or_nothing_by_their_shares(monkeypatch):
    images, labels = a_body(400, 2)
    calls = {}
    monkeypatch.setattr(
        module, "region_looks", lambda x, *_: calls.update(regions=len(x)) or x * 0 + 5
    )
    monkeypatch.setattr(
        module, "random_convolution", lambda x, *_: calls.update(src=len(x)) or x * 0 + 7
    )
    config = RegionsConfig(share=0.6, untouched=0.5)
    looks = random_looks(images, labels, "smoothed", config, seeded())
    kinds = looks.flatten(1).amax(1)
    assert abs(int((kinds == 5).sum()) - 240) < 40
    assert abs(int((kinds == 7).sum()) - 80) < 30
    untouched = (kinds != 5) & (kinds != 7)
    assert torch.equal(looks[untouched], images[untouched])
    assert calls == {"regions": int((kinds == 5).sum()), "src": int((kinds == 7).sum())}


@pytest.mark.parametrize("mode", ["off", "global", "hard", "smoothed"])
def test_without_a_share_it_is_random_convolution(mode):
    images, labels = a_body(2)
    found = random_looks(images, labels, mode, RegionsConfig(), seeded(4))
    assert torch.equal(found, random_convolution(images, labels, mode, seeded(4)))


def test_off_changes_nothing_however_many_regions_are_asked_for():
    images, labels = a_body(2)
    assert torch.equal(random_looks(images, labels, "off", EVERYWHERE, seeded()), images)


def test_bfloat16_changes_looks_by_little():
    images, labels = a_body(2)
    full = random_looks(images, labels, "smoothed", AFFINE, seeded(2))
    with torch.autocast("cpu", torch.bfloat16):
        half = random_looks(images, labels, "smoothed", AFFINE, seeded(2))
    torch.testing.assert_close(full, half)


@pytest.mark.needs_gpu
def test_a_gpu_gives_the_looks_of_the_cpu():
    images, labels = a_body(2)
    here = random_looks(images, labels, "smoothed", EVERYWHERE, seeded(3))
    there = random_looks(images.cuda(), labels.cuda(), "smoothed", EVERYWHERE, seeded(3))
    torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings_", "key"),
    [
        ({"share": 1.5}, "share"),
        ({"kept": -0.1}, "kept"),
        ({"clusters": (0, 3)}, "clusters"),
        ({"clusters": (4, 3)}, "clusters"),
        ({"slope": (2.0, 1.0)}, "slope"),
    ],
)
def test_a_value_out_of_range_names_its_key(settings_, key):
    with pytest.raises(ConfigError, match=f"regions.{key}"):
        RegionsConfig(**settings_)
