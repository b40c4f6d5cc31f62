# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and what it compares with computes the same; nothing is timed here."""

import json

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import gaussian_filter

from srcsm_training import bench
from srcsm_training.presets import preset
from srcsm_training.random_convolution import draw, random_convolution
from SRCSMSegmenterLib.bundle import load_bundle
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.source_matching import SourceHistogram, fit, match, to_integers
from SRCSMSegmenterLib.volume_io import read_volume

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(4))
def test_networks_one_by_one_give_what_ours_gives(seed):
    image = torch.randn(1, 1, 6, 7, 9, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 3, (1, 6, 7, 9), generator=torch.Generator().manual_seed(4))
    looped = bench.looped_random_convolution(image, labels, 3, torch.Generator().manual_seed(seed))
    ours = random_convolution(image, labels, 3, "smoothed", torch.Generator().manual_seed(seed))
    assert not torch.allclose(ours, image, atol=0.1)
    torch.testing.assert_close(looped, ours, rtol=1e-4, atol=1e-4)


def test_kernels_are_as_narrow_as_they_were_drawn():
    weights = draw(50, 3, torch.Generator().manual_seed(0), "cpu").weights[1]
    widths = {tuple(bench.narrowest(kernel).shape) for kernel in weights}
    assert widths == {(2, 2, 1, 1, 1), (2, 2, 3, 3, 3)}


def test_smoothing_by_convolution_is_the_gaussian():
    masks = torch.rand(1, 2, 6, 7, 8, generator=torch.Generator().manual_seed(5))
    smoothed = bench.smoothed_by_convolution(masks)
    for channel in (0, 1):
        expected = gaussian_filter(masks[0, channel], sigma=1, radius=2, mode="nearest")
        np.testing.assert_allclose(smoothed[0, channel], expected, rtol=1e-5)


def test_the_literal_definition_gives_our_integers():
    literal = bench.literal_source_matching()
    rng = np.random.default_rng(2)
    source, raw = rng.integers(-9, 30, (5, 4, 3), np.int32), rng.gamma(2, 90, (4, 6, 5))
    target = to_integers(raw, IntensityRule("MR"))
    np.testing.assert_array_equal(literal.to_integers(raw, IntensityRule("MR")), target)
    minimum, counts = literal.fit([source])
    histogram = SourceHistogram(sorted(counts), [counts[v] for v in sorted(counts)], minimum)
    assert histogram.to_dict() == fit([source]).to_dict()
    np.testing.assert_array_equal(
        literal.match(target, minimum, counts), match(target, fit([source]))
    )


def test_source_matching_has_a_ratio_for_each_part_and_an_absolute_time():
    table = bench.source_matching_table(size=6, large=(3, 5, 4))
    *compared, absolute = table.rows
    assert [row.what.split(",")[0] for row in compared] == [
        "match_to_source = to_integers + match",
        "to_integers",
        "match",
        "fit",
    ]
    assert all(row.ratio == row.first / row.second > 0 for row in compared)
    assert absolute.what == "match_to_source, 4 × 5 × 3"
    assert absolute.first is None
    assert absolute.ratio is None


def test_random_convolution_is_compared_in_both_precisions():
    table = bench.random_convolution_table(CPU, shape=(6, 5, 8), classes=2, draws=2)
    assert [row.what for row in table.rows] == ["one call, fp32", "one call, bf16"]
    assert all(row.ratio > 0 for row in table.rows)
    assert "8 × 5 × 6" in table.title


def test_training_steps_are_compared(tmp_path):
    tiny.forget_accelerator()
    dataset = tiny.write_dataset(tmp_path, cases=1)
    rule, config = IntensityRule("CT"), tiny.config(steps=5)
    table = bench.training_step_table("tiny", config, dataset, rule, CPU, warm_up=2)
    tiny.forget_accelerator()
    (step,) = table.rows
    assert step.ratio == step.first / step.second
    assert f"SRC takes {1 - step.second / step.first:.0%}" in table.title


def test_the_parts_of_a_segmentation_add_up_to_all_of_it():
    printed = json.dumps({"scans": [{"seconds": {"read": 0.25, "network": 2.0}}]})
    assert bench.parts(printed, 5.0) == {
        "all": 5.0,
        "start, imports, model": 2.75,
        "read": 0.25,
        "network": 2.0,
    }


def test_a_table_in_markdown():
    rows = (bench.Row("quick", 3.0, 1.5), bench.Row("alone", None, 0.01234))
    table = bench.Table("Title", ("theirs", "ours"), rows)
    assert bench.markdown(table) == (
        "**Title**\n\n| | theirs | ours | ratio |\n| --- | --- | --- | --- |\n"
        "| quick | 3 s | 1.5 s | 2 |\n| alone | – | 0.0123 s | – |\n"
    )


def test_json_holds_the_sections_asked_for(monkeypatch, capsys):
    rows = (bench.Row("quick", 3.0, 1.5), bench.Row("alone", None, 0.01))
    table = bench.Table("Title", ("theirs", "ours"), rows)
    monkeypatch.setitem(bench.SECTIONS, "src", lambda folder, data, device: table)
    assert bench.main(["--only", "src", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "device cpu" in printed["machine"]
    assert printed["tables"] == [
        {
            "title": "Title",
            "columns": ["theirs", "ours"],
            "rows": [
                {"what": "quick", "first": 3.0, "second": 1.5, "ratio": 2.0},
                {"what": "alone", "first": None, "second": 0.01, "ratio": None},
            ],
        }
    ]


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    """No shipped network, and a small phantom."""
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr(
        bench,
        "write_dataset",
        lambda folder, modality, cases, seed: tiny.write_dataset(folder, cases, modality),
    )


def test_a_phantom_stands_in_for_data_that_is_not_there(tmp_path, nothing_there):
    scan = bench.a_scan(tmp_path / "no-data", tmp_path / "mr")
    assert scan == tmp_path / "mr" / "imagesTr" / "a_0000.nii.gz"
    assert read_volume(scan).array.min() >= 0


def test_random_weights_stand_in_for_a_network_that_is_not_there(tmp_path, nothing_there):
    folder = bench.a_model(tmp_path / "random-weights")
    bundle = load_bundle(folder)
    assert bundle.network.channels == preset("abdomen-fast").network.channels
    assert bundle.description.grid == preset("abdomen-fast").grid
    assert len(bundle.description.labels) == 4


@pytest.mark.slow
def test_a_segmentation_is_told_apart_into_its_parts(tmp_path, nothing_there):
    table = bench.scan_table(tmp_path, tmp_path / "no-data", CPU)
    assert "phantom-mr/a_0000.nii.gz, model random-weights" in table.title
    assert [row.what for row in table.rows] == [
        "all",
        "start, imports, model",
        "read",
        "prepare",
        "network",
        "resample",
        "write",
    ]
    assert all(row.first >= 0 and row.second >= 0 for row in table.rows)
