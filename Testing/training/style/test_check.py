# SPDX-License-Identifier: Apache-2.0
"""The check tells a good set of restyled slices from spoiled ones: issue 6, item 5."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from restyled import restyled, two_looks

from srcsm_training.cli.main import main
from srcsm_training.engine.limits import Limits
from srcsm_training.style import check as check_module
from srcsm_training.style import report
from srcsm_training.style.check import check
from srcsm_training.style.config import CheckConfig, StyleConfig
from srcsm_training.style.measures import boundary_agreement, histogram_distance
from srcsm_training.style.slices import (
    StyleError,
    read_slices,
    write_manifest,
    write_picture,
)
from SRCSMSegmenterLib.errors import BundleError, DatasetError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.source_matching import SourceHistogram
from SRCSMSegmenterLib.terminology import segment_for

SILENT = Limits(say=lambda line: None)


@pytest.fixture(autouse=True)
def _few_contact_sheets(monkeypatch, request):
    """Drawing takes longer than all that is measured."""
    if "contact_sheet" not in request.node.name:
        monkeypatch.setattr(check_module, "contact_sheet", lambda *_: None)


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    return two_looks(tmp_path_factory.mktemp("slices") / "ct", styles=("t1", "t2"), patients=5)


@pytest.fixture
def good(looks, tmp_path):
    source, others = looks
    return restyled(
        source,
        tmp_path / "good",
        {style: lambda s, _, style=style: others[s.name, style] for style in ("t1", "t2")},
    )


def unchanged(source, folder):
    """As an autoencoder gives the source back: with a little noise and blur."""
    rng = np.random.default_rng(0)

    def look(_, picture):
        return np.clip(picture * 0.98 + rng.normal(2, 3, picture.shape), 0, 255).astype(np.uint8)

    return restyled(source, folder, {"t1": look, "t2": look})


def shuffled(source, others, folder):
    """Each slice has the picture of another."""
    names = [s.name for s in source.slices]
    other = dict(zip(names, names[7:] + names[:7], strict=True))
    return restyled(
        source,
        folder,
        {style: lambda s, _, style=style: others[other[s.name], style] for style in ("t1", "t2")},
    )


def checked(found, **options):
    lines = []
    result = check(found.folder, StyleConfig(), limits=Limits(say=lines.append), **options)
    report = None
    if result.finished:
        report = json.loads((found.folder / "check.json").read_text("utf-8"))
    return report, lines, read_slices(found.folder)


def test_it_tells_a_good_set_from_two_spoiled_ones(looks, good, tmp_path):
    source, others = looks
    reports = {}
    for name, found in (
        ("good", good),
        ("unchanged", unchanged(source, tmp_path / "unchanged")),
        ("shuffled", shuffled(source, others, tmp_path / "shuffled")),
    ):
        reports[name], lines, judged = checked(found)
        assert reports[name]["kept"] == len(judged.kept())
        assert f"{len(judged.kept())} of 30 slices are kept." in lines
        reasons = [s.rejected.split(":")[0] for s in judged.slices]
        if name == "unchanged":
            assert set(reasons) <= {"style unchanged", "no organ to judge it by"}
        if name == "shuffled":
            assert reasons.count("anatomy not kept") > 20
    assert reports["good"]["kept"] >= 24
    assert reports["good"]["faults"] == []
    assert reports["unchanged"]["kept"] == 0
    assert len(reports["unchanged"]["faults"]) == 3  # both styles, and that they are alike
    assert all("intervention" in fault for fault in reports["unchanged"]["faults"][::2])
    assert "prompts" in reports["unchanged"]["faults"][1]
    assert reports["shuffled"]["kept"] <= 6
    assert [("masks" in fault) for fault in reports["shuffled"]["faults"]] == [True, True]


def test_the_numbers_are_those_of_the_pictures(looks, good):
    source, others = looks
    report, _, judged = checked(good)
    rows = list(csv.DictReader((good.folder / "check.csv").open()))
    assert [row["name"] for row in rows] == [s.name for s in good.slices]
    number = next(n for n, s in enumerate(good.slices) if len(s.pixels) > 2)
    s, row = good.slices[number], rows[number]
    with Image.open(good.folder / s.mask) as picture:
        mask = np.array(picture)
    with Image.open(source.folder / "images" / f"{s.source}.png") as picture:
        before = np.array(picture)
    after = others[s.source, s.style]
    distances = []
    for name, value in source.labels.items():
        where = mask == value
        if where.sum() >= 20:
            distances.append(histogram_distance(before[where], after[where]))
            assert float(row[f"moved_{name}"]) == pytest.approx(distances[-1], abs=1e-4)
        else:
            assert row[f"moved_{name}"] == ""
    assert float(row["moved"]) == pytest.approx(np.mean(distances), abs=1e-4)
    assert float(row["edges"]) == pytest.approx(boundary_agreement(after, mask), abs=1e-4)
    assert row["set_aside"] == judged.slices[number].rejected
    assert report["styles"]["t2"]["source_edges"] > 0.75
    assert 0 < report["within_source"] < report["styles"]["t1"]["moved"]
    assert report["styles"]["t1"]["between_styles"]["t2"] > 0.08
    assert report["styles"]["t1"]["dice"] is None


def test_the_contact_sheet_is_drawn(good):
    checked(good)
    with Image.open(good.folder / "contact_sheet.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_a_slice_set_aside_before_is_judged_anew(good):
    _, _, judged = checked(good)
    kept = judged.kept()[0]
    write_manifest(replace(good, slices=tuple(replace(s, rejected="by hand") for s in good.slices)))
    _, _, again = checked(good)
    assert again.slices == judged.slices
    assert kept in again.kept()


def test_every_threshold_sets_slices_aside(good):
    everything = {}
    for name in ("moved", "edges"):
        strict = StyleConfig(check=replace(CheckConfig(), **{name: 1.0}))
        check(good.folder, strict, limits=SILENT)
        everything[name] = {s.rejected.split(":")[0] for s in read_slices(good.folder).slices}
        assert read_slices(good.folder).kept() == ()
    assert "style unchanged" in everything["moved"]
    assert "anatomy not kept" in everything["edges"]
    loose = StyleConfig(check=CheckConfig(moved=0.0, edges=0.0))
    check(good.folder, loose, limits=SILENT)
    found = read_slices(good.folder)
    organs = [s for s in found.slices if sum(n >= 20 for n in s.pixels.values())]
    assert len(found.kept()) >= len(organs) - 1


def test_slices_without_foreground_are_set_aside(looks, tmp_path):
    source, others = looks
    empty = np.zeros((source.size, source.size), np.uint8)
    folder = tmp_path / "empty"
    first = source.slices[0]
    alone = replace(
        source,
        folder=folder,
        slices=(
            replace(
                first,
                pixels={},
                mask_sha256=write_picture(folder / first.mask, empty),
                image_sha256=write_picture(folder / first.image, others[first.name, "t1"]),
            ),
        ),
    )
    write_manifest(alone)
    report, _, judged = checked(
        restyled(alone, tmp_path / "styled", {"t2": lambda s, _: others[s.name, "t2"]})
    )
    assert judged.slices[0].rejected == "no organ to judge it by"
    assert report["styles"]["t2"]["moved"] is None


def test_masks_with_unknown_labels_are_refused(looks, tmp_path):
    source, _ = looks
    found = restyled(source, tmp_path / "styled", {"t2": lambda _, p: p})
    fewer = {name: value for name, value in source.labels.items() if value < 4}
    source_copy = replace(source, labels=fewer)
    try:
        write_manifest(source_copy)
        with pytest.raises(DatasetError, match=r"labels \[4\]"):
            check(found.folder, StyleConfig(), limits=SILENT)
    finally:
        write_manifest(source)


def test_a_set_that_changed_or_restyles_nothing_is_refused(looks, good):
    source, _ = looks
    with pytest.raises(DatasetError, match="style swap"):
        check(source.folder, StyleConfig(), limits=SILENT)
    picture = good.folder / good.slices[0].image
    picture.write_bytes(picture.read_bytes() + b"x")
    with pytest.raises(DatasetError, match="altered"):
        check(good.folder, StyleConfig(), limits=SILENT)


def test_a_stopped_check_goes_on_without_measuring_again(good, monkeypatch):
    measured = []
    original = check_module.measure

    def recorded(*arguments):
        measured.append(arguments[1].name)
        return original(*arguments)

    monkeypatch.setattr(check_module, "measure", recorded)
    calls = iter(range(99))
    result = check(
        good.folder,
        StyleConfig(),
        limits=replace(SILENT, stop_requested=lambda: next(calls) == 6),
    )
    assert (result.done, result.total, result.finished) == (6, 15, False)
    assert read_slices(good.folder).slices == good.slices
    checked(good)
    assert len(measured) == len(set(measured)) == 15
    assert not (good.folder / "check.partial.json").exists()


def test_a_full_disk_leaves_the_manifest_whole(good, monkeypatch):
    def full(*_):
        raise StyleError("Cannot write check.csv (No space left on device).")

    monkeypatch.setattr(report, "write_bytes", full)
    with pytest.raises(StyleError):
        check(good.folder, StyleConfig(), limits=SILENT)
    assert read_slices(good.folder).slices == good.slices


# The source-trained network


def a_network(labels):
    """Sees the first organ where the input is positive, background elsewhere."""
    config = NetworkConfig(
        classes=len(labels) + 1, channels=(2,), kernel=(1, 1, 1), norm="none", dropout=0.0
    )
    network = UNet(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for convolution in network.down[0].convolutions:
            convolution.weight[0, 0] = 1
        network.head.weight[1, 0] = 100
        network.head.bias[1] = 0
        network.head.bias[0] = 0.001
        network.head.bias[2:] = -100
    description = Description(
        name="positive",
        task="Tests",
        labels=tuple(segment_for(name, value) for name, value in labels.items()),
        rule=IntensityRule("CT", window=(-125, 275)),
        grid=GridSpec((64, 64, 4), (6.0, 6.0, 5.0)),
        smoothing=0.0,
        expects="tests",
        licence="none",
    )
    histogram = SourceHistogram(np.array([1, 2, 3]), np.array([1, 1, 1]), 0)
    return ModelBundle(description, config, histogram, network.state_dict())


def test_the_networks_dice_is_that_of_what_it_sees(looks, tmp_path):
    """A picture that is bright where its liver is has a high Dice, its negative has none."""
    source, _ = looks
    liver = source.labels["liver"]
    network = a_network(source.labels)

    def bright(s, _):
        with Image.open(source.folder / s.mask) as picture:
            return np.where(np.array(picture) == liver, 250, 5).astype(np.uint8)

    found = restyled(
        source, tmp_path / "styled", {"right": bright, "wrong": lambda s, p: 255 - bright(s, p)}
    )
    some = [s for s in found.slices if set(s.pixels) == {"liver"} and s.pixels["liver"] > 400]
    some = some or [s for s in found.slices if s.pixels.get("liver", 0) > 400][:4]
    write_manifest(replace(found, slices=tuple(some)))
    _, _, judged = checked(read_slices(found.folder), network=network, device="cpu")
    rows = list(csv.DictReader((found.folder / "check.csv").open()))
    for row, s in zip(rows, judged.slices, strict=True):
        organs = sum(n >= 20 for n in s.pixels.values())
        if s.style == "right":
            assert float(row["dice"]) > 0.85 / organs
        else:
            assert float(row["dice"]) < 0.3
    strict = StyleConfig(check=CheckConfig(moved=0.0, edges=0.0, dice=0.99))
    check(found.folder, strict, network=network, device="cpu", limits=SILENT)
    assert {s.rejected.split(" of ")[0][:22] for s in read_slices(found.folder).slices} == {
        "anatomy not kept: Dice"
    }


def test_a_network_with_other_labels_is_refused(good):
    network = a_network({"liver": 1, "spleen": 2})
    with pytest.raises(BundleError, match="spleen"):
        check(good.folder, StyleConfig(), network=network, limits=SILENT)


# Its two measures


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(0, 40))
def test_the_distance_of_a_shift_is_the_shift(values, shift):
    first = np.array([min(v, 255 - shift) for v in values], np.uint8)
    second = (first + shift).astype(np.uint8)
    assert histogram_distance(first, second) == pytest.approx(shift / 255)
    assert histogram_distance(second, first) == pytest.approx(shift / 255)
    assert histogram_distance(first, np.repeat(first[::-1], 2)) == pytest.approx(0)


def test_edges_agree_where_they_lie_and_not_elsewhere():
    mask = np.zeros((96, 96), np.uint8)
    mask[30:60, 20:70] = 1
    mask[60:80, 20:50] = 2
    rng = np.random.default_rng(0)

    def picture(labels):
        return (np.array([40, 120, 200])[labels] + rng.normal(0, 4, mask.shape)).astype(np.uint8)

    assert boundary_agreement(picture(mask), mask) > 0.97
    assert boundary_agreement(255 - picture(mask), mask) > 0.97
    assert boundary_agreement(picture(np.roll(mask, 4, axis=1)), mask) < 0.75
    nothing = rng.integers(0, 255, mask.shape).astype(np.uint8)
    assert boundary_agreement(nothing, mask) == pytest.approx(0.5, abs=0.07)
    assert np.isnan(boundary_agreement(nothing, np.zeros_like(mask)))
    dot = np.zeros_like(mask)
    dot[5, 5] = 1
    assert np.isnan(boundary_agreement(nothing, dot))


@settings(max_examples=5)
@given(st.sampled_from([2, 3]))
def test_agreement_does_not_depend_on_the_size_of_the_pictures(factor):
    mask = np.zeros((96, 96), np.uint8)
    mask[30:60, 20:70] = 1
    smooth = np.random.default_rng(1).normal(0, 1, (96, 96))
    picture = np.clip(100 + 60 * mask + 25 * smooth, 0, 255).astype(np.uint8)
    large = [np.kron(a, np.ones((factor, factor), np.uint8)) for a in (picture, mask)]
    assert boundary_agreement(*large) == pytest.approx(boundary_agreement(picture, mask), abs=0.1)


def test_check_is_a_command(good, capsys):
    assert main(["style", "check", "--slices", str(good.folder), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(good.folder)
    assert "of 30 slices are kept." in captured.err
    assert "contact_sheet.png" in captured.err
    assert (good.folder / "check.json").exists()
    assert main(["style", "check", "--slices", str(good.folder / "none")]) == 3
    assert not (good.folder / "none").exists()
