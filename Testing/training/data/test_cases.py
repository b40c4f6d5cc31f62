# SPDX-License-Identifier: Apache-2.0
"""Prepared cases: a cache that is right or built anew, and windows along the whole scan."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import gaussian_filter

from srcsm_training.cli.failures import exit_code
from srcsm_training.data import cases as cases_module
from srcsm_training.data.cases import default_cache, draw_window, prepare_cases
from srcsm_training.data.dataset import read_dataset
from SRCSMSegmenterLib.errors import SRCSMError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule

RULE = IntensityRule("CT", window=(-125, 275))
GRID = tiny.config().grid


@pytest.fixture
def dataset(tmp_path):
    return read_dataset(tiny.write_dataset(tmp_path / "Dataset001_Tiny"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch):
    """Names of the cases that are built, in order."""
    names = []
    build = cases_module._build

    def counted(case, *rest):
        names.append(case.name)
        return build(case, *rest)

    monkeypatch.setattr(cases_module, "_build", counted)
    return names


def prepare(dataset, cache, rule=RULE, smoothing=1.0, grid=GRID):
    return prepare_cases(dataset.cases, rule, smoothing, grid, cache)


def entries(cache):
    return sorted(cache.iterdir())


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        assert one.image.dtype == other.image.dtype
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.labels, other.labels)
        assert one.geometry.affine.tolist() == other.geometry.affine.tolist()
        assert np.array_equal(one.centres, other.centres)
        assert one.outside == other.outside
        assert all(map(np.array_equal, one.foreground, other.foreground))


def test_a_case_is_scaled_and_smoothed_in_mm_on_its_own_grid(dataset, cache):
    prepared = prepare(dataset, cache, smoothing=2.0)[1]
    image, labels = tiny.phantom(1)
    clipped = image.clip(-125, 275).astype(float)
    sigmas = 2.0 / np.array(tiny.SPACING[::-1])
    radii = [int(np.ceil(3 * sigma - 0.5)) for sigma in sigmas]
    expected = gaussian_filter(clipped, sigma=sigmas, radius=radii, mode="nearest")
    assert prepared.image.dtype == torch.float16
    assert prepared.image.shape == (1, *tiny.SHAPE)
    np.testing.assert_allclose(prepared.image[0].float().numpy(), expected, rtol=1e-3, atol=0.1)
    assert np.array_equal(prepared.labels[0].numpy(), labels)
    assert prepared.outside == float(prepared.image.min())
    assert prepared.name == "b"
    np.testing.assert_allclose(prepared.geometry.spacing, tiny.SPACING)
    np.testing.assert_allclose(prepared.geometry.to_ras((0, 0, 0)), (20, -15, 7))


def test_mr_is_scaled_to_its_maximum(tmp_path, cache):
    dataset = read_dataset(tiny.write_dataset(tmp_path / "mr", 1, "MR"))
    prepared = prepare(dataset, cache, IntensityRule("MR"), smoothing=0.0)[0]
    image, _ = tiny.phantom(0, "MR")
    np.testing.assert_allclose(
        prepared.image[0].float().numpy(), image * (2048 / image.max()), rtol=1e-3
    )


def test_foreground_voxels_are_voxels_of_each_label(dataset, cache):
    prepared = prepare(dataset, cache)[0]
    labels = tiny.phantom(0)[1]
    assert len(prepared.foreground) == 2
    for value, voxels in enumerate(prepared.foreground, start=1):
        assert set(labels[tuple(voxels.T[::-1])]) == {value}
        assert len(voxels) == (labels == value).sum()


def test_of_a_large_label_an_even_sample_is_kept(monkeypatch, dataset, cache):
    monkeypatch.setattr(cases_module, "FOREGROUND_VOXELS", 20)
    labels = tiny.phantom(0)[1]
    for value, voxels in enumerate(prepare(dataset, cache)[0].foreground, start=1):
        assert 20 <= len(voxels) < 40
        whole = np.argwhere(labels == value)[:, ::-1]
        assert np.abs(voxels.mean(0) - whole.mean(0)).max() < 1


def test_the_cache_gives_equal_tensors_without_building(dataset, cache, built):
    first = prepare(dataset, cache)
    assert built == ["a", "b", "c"]
    again = prepare(dataset, cache)
    assert built == ["a", "b", "c"]
    assert_equal(first, again)
    assert len(entries(cache)) == 3


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def alter_the_header(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"crc32", b"crc33"))


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short,
        alter,
        alter_the_header,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no safetensors at all"),
        lambda path: path.unlink(),
    ],
    ids=["cut short", "altered", "header", "empty", "garbage", "missing"],
)
def test_a_broken_entry_is_built_anew(dataset, cache, built, spoil):
    first = prepare(dataset, cache)
    spoil(entries(cache)[1])
    again = prepare(dataset, cache)
    assert len(built) == 4
    assert_equal(first, again)
    prepare(dataset, cache)
    assert len(built) == 4


def test_a_case_of_the_same_content_and_another_name_shares_the_entry(dataset, cache, built):
    prepare(dataset, cache)
    twin = replace(dataset.cases[0], name="twin")
    prepared = prepare_cases([twin], RULE, 1.0, GRID, cache)
    assert prepared[0].name == "twin"
    assert len(built) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"rule": IntensityRule("CT", window=(-125, 276))},
        {"rule": IntensityRule("MR")},
        {"smoothing": 1.5},
    ],
    ids=["window", "modality", "smoothing"],
)
def test_other_settings_have_other_entries(tmp_path, cache, built, change):
    dataset = read_dataset(tiny.write_dataset(tmp_path / "mr", 2, "MR"))
    first = prepare(dataset, cache)
    other = prepare(dataset, cache, **change)
    assert built == ["a", "b"] * 2
    assert not torch.equal(first[0].image, other[0].image)
    assert_equal(prepare(dataset, cache), first)
    assert built == ["a", "b"] * 2


def test_the_grid_is_no_part_of_an_entry(dataset, cache, built):
    prepare(dataset, cache)
    prepare(dataset, cache, grid=GridSpec((8, 8, 8), (1, 1, 1), axes="slices"))
    assert len(built) == 3


@pytest.mark.parametrize("what", ["image", "labels"])
def test_other_content_has_another_entry(dataset, cache, built, what):
    first = prepare(dataset, cache)
    image, labels = tiny.phantom(1)
    (image if what == "image" else labels)[12, 9, 9] -= 1
    tiny.write_case(dataset.folder, "b", image, labels)
    other = prepare(dataset, cache)
    assert built == ["a", "b", "c", "b"]
    assert_equal(first[::2], other[::2])
    assert torch.equal(first[1].image, other[1].image) == (what == "labels")
    assert torch.equal(first[1].labels, other[1].labels) == (what == "image")


def test_a_full_disk_leaves_no_half_entry(monkeypatch, dataset, cache, built):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cases_module.os, "replace", full)
        with pytest.raises(SRCSMError, match="No space left") as error:
            prepare(dataset, cache)
    assert exit_code(error.value) == 6
    assert entries(cache) == []
    prepare(dataset, cache)
    assert built == ["a", "a", "b", "c"]


def test_a_cache_that_cannot_be_made_is_one_sentence(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SRCSMError, match="file"):
        prepare(dataset, tmp_path / "file" / "cache")


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SRCSM_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("SRCSM_CACHE")
    assert default_cache().name == "srcsm"


# --- windows


def centres(case, grid, foreground, count=400):
    """Along the grid's axes, mm."""
    generator = torch.Generator().manual_seed(0)
    windows = [draw_window(case, grid, foreground, generator) for _ in range(count)]
    assert {window.size for window in windows} == {grid.size}
    np.testing.assert_allclose([window.spacing for window in windows], [grid.spacing] * count)
    return np.array([window.centre for window in windows]) @ case.directions


@pytest.mark.parametrize("foreground", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("axes", ["patient", "slices"])
def test_windows_stay_where_inference_would_put_them(dataset, cache, axes, foreground):
    grid = replace(GRID, axes=axes)
    case = prepare(dataset, cache, grid=grid)[0]
    low, high = case.centres
    assert low[0] == high[0]
    assert low[1] == high[1]
    assert high[2] - low[2] == pytest.approx(24 * 3.0 - 8 * 6.0)
    drawn = centres(case, grid, foreground)
    assert (drawn >= low - 1e-9).all()
    assert (drawn <= high + 1e-9).all()


def test_windows_anywhere_cover_the_whole_scan_evenly(dataset, cache):
    case = prepare(dataset, cache)[0]
    low, high = (ends[2] for ends in case.centres)
    place = (centres(case, GRID, 0.0)[:, 2] - low) / (high - low)
    assert place.min() < 0.01
    assert place.max() > 0.99
    assert np.histogram(place, bins=4, range=(0, 1))[0].min() > 75
    # The outermost windows end at the scan's outer faces: 7 - 1.5 mm, and 72 mm further up.
    assert low - GRID.extent[2] / 2 == pytest.approx(7 - 1.5)
    assert high + GRID.extent[2] / 2 == pytest.approx(7 - 1.5 + 72)


def test_windows_around_the_foreground_have_a_labelled_voxel_in_their_middle(dataset, cache):
    grid = GridSpec((4, 4, 4), (2.0, 2.0, 2.0))  # smaller than the body along every axis
    case = prepare(dataset, cache, grid=grid)[0]
    low, high = case.centres
    assert (low < high).all()
    around = centres(case, grid, 1.0)
    nearest = np.rint(case.geometry.to_ijk(around @ case.directions.T)).astype(int)
    labels = case.labels[0].numpy()[tuple(nearest.T[::-1])]
    inner = ((around > low) & (around < high)).all(1)
    assert inner.mean() > 0.9
    assert set(labels[inner]) == {1, 2}
    assert len(np.unique(around[inner], axis=0)) > 250
    # Each label as often as the other, whatever its size.
    assert abs((labels[inner] == 1).mean() - 0.5) < 0.08


def test_the_share_of_foreground_windows_is_the_one_asked_for(dataset, cache):
    grid = GridSpec((4, 4, 4), (2.0, 2.0, 2.0))
    case = prepare(dataset, cache, grid=grid)[0]
    voxels = np.concatenate(case.foreground)
    corner = replace(case, foreground=[voxels[:1]])
    spot = np.clip(
        case.geometry.to_ras(voxels[0]) @ case.directions, case.centres[0], case.centres[1]
    )
    for share in (0.0, 0.3, 1.0):
        there = np.isclose(centres(corner, grid, share, 1000), spot).all(1)
        assert abs(there.mean() - share) < 0.04
    nothing = replace(case, foreground=[])
    assert len(np.unique(centres(nothing, grid, 1.0, 50), axis=0)) == 50


def test_a_seed_draws_the_same_window_again(dataset, cache):
    case = prepare(dataset, cache)[0]
    assert np.array_equal(centres(case, GRID, 0.5, 5), centres(case, GRID, 0.5, 5))


def test_the_outside_of_a_case_is_found_once(dataset, cache):
    """It is asked for at every step, and a large scan's minimum takes 30 ms."""
    case = prepare(dataset, cache)[0]
    assert case.outside is case.outside
    assert replace(case, image=case.image + 1000).outside == pytest.approx(875, abs=0.5)


def test_prepared_cases_do_not_depend_on_the_files_any_more(dataset, cache):
    case = prepare(dataset, cache)[0]
    shutil.rmtree(dataset.folder)
    shutil.rmtree(cache)
    assert float(case.image.float().std()) > 0
