# SPDX-License-Identifier: Apache-2.0
"""Slices of scans: how they lie, what the manifest promises, phantom looks, prompts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import style_tiny
import tiny
from hypothesis import given
from hypothesis import strategies as st

from srcsm_training.data.dataset import read_dataset
from srcsm_training.engine.limits import Limits
from srcsm_training.style import phantom_slices
from srcsm_training.style.config import PrepareConfig
from srcsm_training.style.phantom_slices import (
    STYLES,
    render,
    slice_of_patient,
    write_phantom_slices,
)
from srcsm_training.style.prepare import picture, picture_grids, prepare, windowed
from srcsm_training.style.prompts import FOLDER, read_prompts
from srcsm_training.style.slices import (
    StyleError,
    read_manifest,
    read_picture,
    read_slices,
    write_picture,
)
from SRCSMSegmenterLib import atomic
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.phantom.anatomy import draw_patient
from SRCSMSegmenterLib.phantom.scans import LABEL_OF
from SRCSMSegmenterLib.volume_io import read_labels, read_volume


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Tiny")


@pytest.fixture
def made(data, tmp_path):
    prepare(data, tmp_path / "ct", style_tiny.config(), limits=style_tiny.SILENT)
    return tmp_path / "ct"


# Geometry


def stored(array: np.ndarray, order: tuple, flips: tuple) -> Volume:
    """The volume of `array` (K, J, I) in RAS, 2 x 3 x 4 mm, stored with other axes."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (5, -7, 11)
    for axis, flipped in enumerate(flips):
        if flipped:
            affine[:3, 3] += affine[:3, axis] * (array.shape[2 - axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, 2 - axis)
    array = array.transpose([2 - n for n in order[::-1]])
    return Volume(array, Geometry(array.shape[::-1], affine[:, [*order, 3]]))


@given(order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
def test_pictures_do_not_depend_on_how_a_scan_is_stored(order, flips):
    array = np.random.default_rng(0).integers(0, 255, (3, 5, 6)).astype(np.float32)
    plain, other = stored(array, (0, 1, 2), (0, 0, 0)), stored(array, tuple(order), flips)

    def pictures(volume):
        grids = picture_grids(volume.geometry, "auto", 16, 0)
        found = {
            round(grid.to_ras([0, 0, 0])[2], 6): picture(volume, grid, outside=-1) for grid in grids
        }
        return [found[height] for height in sorted(found)]

    assert len(pictures(other)) == 3
    np.testing.assert_allclose(pictures(other), pictures(plain), atol=1e-3)


@pytest.mark.parametrize(
    ("axis", "point", "where"),
    [
        # Right front of an axial slice: left top. Coronal: right is left, up is top. Sagittal: the
        # front is left, up is top.
        ("K", (15, 14, 0), ("left", "top")),
        ("J", (15, 0, 19), ("left", "top")),
        ("I", (0, 14, 19), ("left", "top")),
        ("K", (5, 14, 0), ("right", "top")),
        ("J", (15, 0, 11), ("left", "bottom")),
        ("I", (0, -4, 19), ("right", "top")),
    ],
)
def test_pictures_lie_as_on_a_radiologists_screen(axis, point, where):
    array = np.zeros((3, 5, 6), np.float32)
    volume = stored(array, (0, 1, 2), (0, 0, 0))
    grid = picture_grids(volume.geometry, axis, 32, 0)[1]
    column, row, _ = grid.to_ijk(np.array(point, float))
    assert ("left" if column < 15.5 else "right", "top" if row < 15.5 else "bottom") == where


def test_a_picture_shows_each_voxel_where_the_affine_says():
    array = np.arange(3 * 5 * 6, dtype=np.float32).reshape(3, 5, 6)
    volume = stored(array, (1, 2, 0), (True, False, True))
    for axis in "IJK":
        for grid in picture_grids(volume.geometry, axis, 40, 0):
            image = picture(volume, grid, labels=True)
            for row, column in ((12, 17), (20, 20), (25, 14)):
                ras = grid.to_ras(np.array([column, row, 0]))
                i, j, k = np.rint(volume.geometry.to_ijk(ras)).astype(int)
                assert image[row, column] == volume.array[k, j, i]


def test_small_pictures_average_and_large_ones_interpolate():
    stripes = np.tile(np.array([0, 200], np.float32), (1, 20, 10))
    volume = Volume(stripes, Geometry((20, 20, 1), np.diag([1.0, 1, 5, 1])))
    [coarse] = picture_grids(volume.geometry, "K", 5, 0)
    assert np.abs(picture(volume, coarse) - 100).max() < 25
    [fine] = picture_grids(volume.geometry, "K", 40, 0)
    assert picture(volume, fine)[20, 4:36].tolist()[:4] == pytest.approx([150, 150, 50, 50])


def test_the_whole_slice_fits_unless_a_field_of_view_is_given():
    scan = Geometry((10, 20, 3), np.diag([2.0, 3.0, 5.0, 1.0]))
    whole = picture_grids(scan, "K", 30, 0)[0]
    assert whole.spacing[0] == pytest.approx(2.0)
    np.testing.assert_allclose(whole.centre, scan.to_ras([4.5, 9.5, 0]))
    assert picture_grids(scan, "K", 30, 15.0)[0].spacing[0] == pytest.approx(0.5)
    assert len(picture_grids(scan, "J", 30, 0)) == 20


# The set


def test_prepare_writes_slices_that_match_the_scans(data, made):
    found = read_slices(made)
    assert found.complete
    assert (found.name, found.modality, found.size) == ("Dataset001_Tiny", "CT", 32)
    assert {s.case for s in found.slices} == {"a", "b", "c"}
    assert {s.style for s in found.slices} == {"ct"}
    case = {c.name: c for c in read_dataset(data).cases}["b"]
    volume, labels = read_volume(case.image), read_labels(case.labels)
    for s in [s for s in found.slices if s.case == "b"]:
        grid = Geometry((32, 32, 1), np.reshape(s.affine, (4, 4)))
        mask, image = read_picture(found, s.mask), read_picture(found, s.image)
        assert s.pixels == {
            n: int((mask == v).sum()) for n, v in found.labels.items() if (mask == v).any()
        }
        liver = np.argwhere(mask == 1)
        row, column = liver[len(liver) // 2]
        i, j, k = np.rint(volume.geometry.to_ijk(grid.to_ras([column, row, 0]))).astype(int)
        assert labels.array[k, j, i] == 1
        assert int(s.name[-3:]) == k
        hu = image[row, column] / 255 * 400 - 125
        assert hu == pytest.approx(volume.array[k, j, i], abs=12)


def test_slices_are_chosen_by_axis_step_and_foreground(data, tmp_path):
    def names(*overrides):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        prepare(data, folder, style_tiny.config(*overrides), limits=style_tiny.SILENT)
        return [s.name for s in read_slices(folder).slices]

    every = names("prepare.every=1", "prepare.cases=[b]")
    assert every == sorted(every)
    assert set(names("prepare.every=3", "prepare.cases=[b]")) == {
        name for name in every if int(name[-3:]) % 3 == 0
    }
    assert all(name.startswith("b_I") for name in names("prepare.axis=I", "prepare.cases=[b]"))
    labelled = names("prepare.every=1", "prepare.cases=[b]", "prepare.foreground=0.05")
    assert 0 < len(labelled) < len(every)
    assert len(names("prepare.every=1", "prepare.cases=[b]", "prepare.empty=1")) > len(every)


def test_mr_goes_by_percentiles():
    values = np.linspace(0, 1000, 1001, dtype=np.float32).reshape(7, 11, 13)
    volume = Volume(values, Geometry((13, 11, 7), np.eye(4)))
    chosen = PrepareConfig(percentiles=(10, 90))
    image = windowed(volume, "MR", chosen).array
    assert image.min() == 0
    assert image.max() == 255
    assert image.ravel()[500] == pytest.approx(127.5, abs=0.1)
    assert windowed(volume, "CT", chosen).array.ravel()[75] == pytest.approx(127.5, abs=0.1)
    with pytest.raises(DatasetError, match="one value"):
        windowed(Volume(values * 0 + 3, volume.geometry), "MR", chosen)


def test_prepare_goes_on_where_it_stopped(data, made, tmp_path):
    folder, config = tmp_path / "parts", style_tiny.config()
    stops = iter([False, True])
    result = prepare(
        data, folder, config, limits=replace(style_tiny.SILENT, stop_requested=lambda: next(stops))
    )
    assert (result.done, result.total, result.finished) == (1, 3, False)
    with pytest.raises(DatasetError, match="incomplete"):
        read_slices(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("images/*")}
    assert before
    assert prepare(data, folder, config, limits=style_tiny.SILENT).finished
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert style_tiny.files(folder) == style_tiny.files(made)


def test_a_scan_that_changed_is_sliced_again(tmp_path):
    data, folder = tiny.write_dataset(tmp_path / "Dataset001_Tiny"), tmp_path / "ct"
    prepare(data, folder, style_tiny.config(), limits=style_tiny.SILENT)
    old = {s.name: s.image_sha256 for s in read_slices(folder).slices}
    tiny.write_case(data, "b", *tiny.phantom(1)[:1], tiny.phantom(1)[1])
    image, labels = tiny.phantom(1)
    tiny.write_case(data, "b", image + 20, labels)
    prepare(data, folder, style_tiny.config(), limits=style_tiny.SILENT)
    changed = {s.name for s in read_slices(folder).slices if old[s.name] != s.image_sha256}
    assert changed == {name for name in old if name.startswith("b_")}


def test_other_settings_do_not_mix_with_slices_that_are_there(data, made):
    with pytest.raises(DatasetError, match="other settings"):
        prepare(data, made, style_tiny.config("prepare.every=2"), limits=style_tiny.SILENT)
    with pytest.raises(DatasetError, match="other settings"):
        prepare(data, made, style_tiny.config("size=16"), limits=style_tiny.SILENT)


def test_a_dataset_without_foreground_slices_is_refused(data, tmp_path):
    with pytest.raises(DatasetError, match=r"No slice of Dataset001_Tiny .*prepare.foreground"):
        prepare(
            data,
            tmp_path / "none",
            style_tiny.config("prepare.foreground=0.9"),
            limits=style_tiny.SILENT,
        )


@pytest.mark.parametrize("damage", ["altered", "gone", "mask"])
def test_a_set_whose_files_changed_is_refused(made, damage):
    first = read_manifest(made).slices[0]
    path = made / (first.mask if damage == "mask" else first.image)
    if damage == "gone":
        path.unlink()
    else:
        write_picture(path, np.full((32, 32), 7, np.uint8))
    with pytest.raises(DatasetError, match=f"1 files of .* {path.parent.name}/{path.name}"):
        read_slices(made)


def with_slice(content, **changes):
    first, *others = content["slices"]
    return {**content, "slices": [{**first, **changes}, *others]}


def test_a_pipe_in_the_place_of_a_picture_is_not_waited_for(made):
    picture = next((made / "images").iterdir())
    picture.unlink()
    os.mkfifo(picture)
    with pytest.raises(DatasetError, match="no file"):
        read_slices(made)


def test_a_manifest_of_another_kind_is_refused(made):
    manifest = made / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    for broken, words in (
        ({**content, "format_version": 9}, "format 9"),
        ({**content, "strange": 1}, "strange is unknown"),
        ({**content, "size": "64"}, "size should be a valid integer"),
        ({**content, "slices": [{}]}, r"slices\[0\].name is missing"),
        (with_slice(content, image="../../secret.png"), "secret.png, which lies outside"),
        (with_slice(content, image="/dev/zero"), "/dev/zero, which lies outside"),
        (with_slice(content, mask="../../masks/a.png"), "a.png, which lies outside"),
        (with_slice(content, affine=[1.0]), "affine"),
        ([], "should hold keys and values"),
    ):
        manifest.write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=words):
            read_slices(made)
    with pytest.raises(DatasetError, match="srcsm style prepare"):
        read_slices(made / "images")


def test_a_full_disk_leaves_no_half_picture_and_loses_nothing(data, tmp_path, monkeypatch):
    folder, config, written = tmp_path / "ct", style_tiny.config(), []

    def fsync(number):
        written.append(number)
        if len(written) == 14:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", fsync)
        with pytest.raises(StyleError, match="No space left on device"):
            prepare(data, folder, config, limits=style_tiny.SILENT)
    there = style_tiny.files(folder)
    assert not [name for name in there if "tmp" in name]
    assert len(read_slices(folder, incomplete=True).slices) > 0
    assert prepare(data, folder, config, limits=style_tiny.SILENT).finished
    assert all(style_tiny.files(folder)[n] == c for n, c in there.items() if n.endswith("png"))


def test_what_was_set_aside_is_not_kept(made):
    found = read_slices(made)
    first, *others = found.slices
    assert replace(found, slices=(replace(first, rejected="blurred"), *others)).kept() == tuple(
        others
    )


# Phantom looks


def test_phantom_slices_show_one_anatomy_in_every_look(tmp_path):
    config = style_tiny.config("size=64")
    assert write_phantom_slices(tmp_path, config).finished
    found = read_slices(tmp_path)
    assert len(found.slices) == 2 * 2 * len(STYLES)
    first = [s for s in found.slices if s.mask == found.slices[0].mask]
    assert [s.style for s in first] == list(config.phantom.styles)
    assert len({s.image_sha256 for s in first}) == len(STYLES)


def test_phantom_slices_are_seeded_and_go_on(tmp_path):
    config, stops = style_tiny.config(), iter([False, True])
    write_phantom_slices(tmp_path / "whole", config)
    stopped = write_phantom_slices(
        tmp_path / "parts", config, limits=Limits(stop_requested=lambda: next(stops))
    )
    assert (stopped.done, stopped.finished) == (1, False)
    assert write_phantom_slices(tmp_path / "parts", config).finished
    assert style_tiny.files(tmp_path / "parts") == style_tiny.files(tmp_path / "whole")
    with pytest.raises(DatasetError, match="other slices"):
        write_phantom_slices(tmp_path / "parts", style_tiny.config("phantom.seed=7"))


def test_killed_phantoms_go_on_from_the_last_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_slices, "MANIFEST_EVERY", 1)
    original, drawn = phantom_slices._slices_of, []

    def fails(seed, *arguments):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(seed)
        return original(seed, *arguments)

    monkeypatch.setattr(phantom_slices, "_slices_of", fails)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_slices(tmp_path, style_tiny.config())
    assert len(read_slices(tmp_path, incomplete=True).slices) == 2 * 4
    first = drawn.pop()
    assert write_phantom_slices(tmp_path, style_tiny.config()).finished
    assert drawn == [first + 1]


def test_an_unknown_look_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"phantom.styles is one of ct, t1, t2, ultrasound"):
        write_phantom_slices(tmp_path, style_tiny.config("phantom.styles=[pet]"))


def test_looks_contrast_tissues_as_their_modality_does():
    patient = draw_patient(np.random.default_rng([3, 0]))
    rng = np.random.default_rng(1)
    tissues, _ = slice_of_patient(patient, rng, 96)
    seen = tissues[::2, ::2]
    means = {
        style: {
            name: render(tissues, style, rng, 96)[seen == phantom_slices.INDEX[name]].mean()
            for name in ("liver", "spleen", "subcutaneous_fat", "muscle", "air")
            if (seen == phantom_slices.INDEX[name]).any()
        }
        for style in STYLES
    }
    assert means["ct"]["liver"] > means["ct"]["subcutaneous_fat"]
    assert means["t1"]["liver"] < means["t1"]["subcutaneous_fat"]
    assert means["t1"]["liver"] > means["t1"]["muscle"]
    assert means["t2"]["liver"] < means["t2"]["subcutaneous_fat"]
    assert all(mean["air"] < 25 for mean in means.values())
    assert LABEL_OF[seen].max() <= 4


def test_no_look_is_the_phantoms_own_mr():
    """The base never sees the target of an experiment: T2-SPIR has dark fat and a bright spleen."""
    for signal in (phantom_slices.T1, phantom_slices.T2, phantom_slices.ECHO):
        assert signal.keys() == phantom_slices.TISSUES.keys()
        assert not signal["spleen"] > 3 * signal["subcutaneous_fat"]


# Prompts


def test_the_prompts_of_every_anatomy_can_be_read():
    for path in FOLDER.glob("prompts_*.yaml"):
        prompts = read_prompts(path.stem.removeprefix("prompts_"))
        assert len(prompts.styles) >= 4
        assert all(prompts.of(style) for style in prompts.styles)
        assert "CT" not in prompts.instance
    assert set(STYLES) <= set(read_prompts("abdomen").styles)


def test_prompts_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ConfigError, match="one of abdomen, chest, heart, prostate, spine"):
        read_prompts("knee")
    with pytest.raises(ConfigError, match="did you mean t2"):
        read_prompts("abdomen").of("t2w")
    for text in (
        "",
        "instance: a\nstyles: [b]",
        "styles: {ct: b}",
        "instance: a\nstyles: {ct: []}",
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"^The prompts .*mine\.yaml"):
            read_prompts(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("instance: a\nstyles: {ct: one way}")
    assert read_prompts(str(tmp_path / "mine.yaml")).of("ct") == ("one way",)


def test_the_configuration_file_of_the_small_base_is_read():
    from srcsm_training.engine.config import read_yaml
    from srcsm_training.style.config import StyleConfig

    config = read_yaml(Path(FOLDER) / "style_tiny.yaml", StyleConfig())
    assert 96 <= config.size <= 128
    read_prompts(config.prompts)
