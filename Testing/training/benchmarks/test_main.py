# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and what it compares with computes the same; nothing is timed here."""

import json

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import gaussian_filter
from tiny_sam import FOUR_TILES

from SAMRefineLib.sam.embeddings import EmbeddingCache
from SAMRefineLib.sam.models import SamModel
from SAMRefineLib.sam.pixels import OFFICIAL, SRCSM
from SAMRefineLib.sam.small_sam import build_small_sam
from srcsm_training.augment.random_convolution import random_convolution
from srcsm_training.augment.random_networks import draw
from srcsm_training.benchmarks import __main__ as bench
from srcsm_training.benchmarks import sam as bench_sam
from srcsm_training.benchmarks import segment, timing, training
from srcsm_training.segmentation.presets import preset
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.source_matching import SourceHistogram, fit, match, to_integers
from SRCSMSegmenterLib.volume_io import read_volume

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(4))
def test_networks_one_by_one_give_what_ours_gives(seed):
    image = torch.randn(1, 1, 6, 7, 9, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 3, (1, 6, 7, 9), generator=torch.Generator().manual_seed(4))
    looped = training.looped_random_convolution(image, labels, torch.Generator().manual_seed(seed))
    ours = random_convolution(image, labels, "smoothed", torch.Generator().manual_seed(seed))
    assert not torch.allclose(ours, image, atol=0.1)
    torch.testing.assert_close(looped, ours, rtol=1e-4, atol=1e-4)


def test_kernels_are_as_narrow_as_they_were_drawn():
    weights = draw(50, 3, torch.Generator().manual_seed(0), "cpu").weights[1]
    widths = {tuple(training.narrowest(kernel).shape) for kernel in weights}
    assert widths == {(2, 2, 1, 1, 1), (2, 2, 3, 3, 3)}


def test_smoothing_by_convolution_is_the_gaussian():
    masks = torch.rand(1, 2, 6, 7, 8, generator=torch.Generator().manual_seed(5))
    smoothed = training.smoothed_by_convolution(masks)
    for channel in (0, 1):
        expected = gaussian_filter(masks[0, channel], sigma=1, radius=2, mode="nearest")
        np.testing.assert_allclose(smoothed[0, channel], expected, rtol=1e-5)


def test_the_literal_definition_gives_our_integers():
    literal = training.literal_source_matching()
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
    table = training.source_matching_table(size=6, large=(3, 5, 4))
    *compared, absolute = table.rows
    assert [row.what.split(",")[0] for row in compared] == [
        "match_to_source = to_integers + match",
        "to_integers",
        "match",
        "fit",
    ]
    assert all(row.values[2] == row.values[0] / row.values[1] > 0 for row in compared)
    assert absolute.what == "match_to_source, 4 × 5 × 3"
    assert absolute.values[0] is absolute.values[2] is None
    assert absolute.values[1] > 0


def test_random_convolution_is_compared_in_both_precisions():
    table = training.random_convolution_table(CPU, shape=(6, 5, 8), classes=2, draws=2)
    assert [row.what for row in table.rows] == ["one call, fp32", "one call, bf16"]
    assert all(row.values[2] > 0 for row in table.rows)
    assert "8 × 5 × 6" in table.title


def test_training_steps_are_compared(tmp_path):
    tiny.forget_accelerator()
    dataset = tiny.write_dataset(tmp_path, cases=1)
    rule, config = IntensityRule("CT"), tiny.config(steps=5)
    table = training.training_step_table("tiny", config, dataset, rule, CPU, warm_up=2)
    tiny.forget_accelerator()
    (step,) = table.rows
    with_src, without, ratio = step.values
    assert ratio == with_src / without
    assert f"SRC takes {1 - without / with_src:.0%}" in table.title


def test_the_parts_of_a_segmentation_add_up_to_all_of_it():
    printed = json.dumps({"scans": [{"seconds": {"read": 0.25, "network": 2.0}}]})
    assert segment.parts(printed, 5.0) == {
        "all": 5.0,
        "start, imports, model": 2.75,
        "read": 0.25,
        "network": 2.0,
    }


TABLE = timing.Table(
    "Title",
    timing.compared("theirs", "ours"),
    (timing.comparison("quick", 3.0, 1.5), timing.comparison("alone", None, 0.01234)),
)


def test_a_table_in_markdown():
    assert timing.markdown(TABLE) == (
        "**Title**\n\n| | theirs, s | ours, s | ratio |\n| --- | --- | --- | --- |\n"
        "| quick | 3 | 1.5 | 2 |\n| alone | – | 0.0123 | – |\n"
    )


def test_json_holds_the_sections_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(bench.SECTIONS, "src", lambda folder, data, device: [TABLE])
    assert bench.main(["--only", "src", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "device cpu" in printed["machine"]
    assert printed["tables"] == [
        {
            "title": "Title",
            "rows": [
                {"what": "quick", "theirs, s": 3.0, "ours, s": 1.5, "ratio": 2.0},
                {"what": "alone", "theirs, s": None, "ours, s": 0.01234, "ratio": None},
            ],
        }
    ]


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    """No shipped network, and a small phantom."""
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr(
        timing,
        "write_dataset",
        lambda folder, modality, cases, seed: tiny.write_dataset(folder, cases, modality),
    )


def test_a_phantom_stands_in_for_data_that_is_not_there(tmp_path, nothing_there):
    scan = timing.a_scan(tmp_path / "no-data", tmp_path / "mr")
    assert scan == tmp_path / "mr" / "imagesTr" / "a_0000.nii.gz"
    assert read_volume(scan).array.min() >= 0


def test_random_weights_stand_in_for_a_network_that_is_not_there(tmp_path, nothing_there):
    folder = segment.a_model(tmp_path / "random-weights")
    bundle = load_bundle(folder)
    assert bundle.network.channels == preset("abdomen-fast").network.channels
    assert bundle.description.grid == preset("abdomen-fast").grid
    assert len(bundle.description.labels) == 4


@pytest.mark.slow
def test_a_segmentation_is_told_apart_into_its_parts(tmp_path, nothing_there):
    (table,) = segment.tables(tmp_path, tmp_path / "no-data", CPU)
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
    assert all(row.values[0] >= 0 and row.values[1] >= 0 for row in table.rows)


@pytest.fixture(scope="module")
def official():
    """Of an official SAM's kind, with noise for an encoder."""
    sam = build_small_sam(FOUR_TILES).requires_grad_(False)
    sam.image_encoder = bench_sam.Noise(128, (16, 32, 32))
    return SamModel(sam, "tiny official", "vit_b", OFFICIAL)


@pytest.fixture(scope="module")
def small():
    return SamModel(
        build_small_sam(FOUR_TILES).requires_grad_(False), "tiny", "small", SRCSM, FOUR_TILES
    )


def test_passes_are_counted_for_each_layout(tmp_path, official, small):
    folder = tiny.write_dataset(tmp_path / "Dataset009_Tiny", cases=1)
    table = bench_sam.passes_table(folder / "imagesTr" / "a_0000.nii.gz", small, official)
    slices = int(table.title.split(" slices")[0].split()[-1])
    passes = {row.what: (row.values[0], row.values[3]) for row in table.rows}
    assert "the liver's" in table.title
    assert passes["slice by slice"] == (slices, slices)
    fewer = -(-slices // 4)
    assert passes["mosaic of slices"] == passes["mosaic of crops"] == (fewer, fewer)
    assert all(row.values[1] == row.values[2] * slices > 0 for row in table.rows)


def test_an_edit_is_timed_with_its_embeddings_known(official, small, monkeypatch):
    caches = []

    class Watched(EmbeddingCache):
        def __init__(self):
            super().__init__()
            caches.append(self)

    monkeypatch.setattr("SAMRefineLib.sam.prediction.EmbeddingCache", Watched)
    table = bench_sam.edit_table(official, small, sides=(96, 48))
    assert [row.what for row in table.rows[1:3]] == ["25 slices of 96 px", "25 slices of 48 px"]
    assert all(row.values[0] > 0 and row.values[1] > 0 for row in table.rows)
    # The first refinement encodes canvases with a slice of 96 pixels each, or four tiles of 64;
    # the edits none.
    assert [cache.passes for cache in caches] == [25] * 4 + [7] * 6


def test_the_decoder_is_timed_on_the_whole_canvas_and_on_a_tile(official, monkeypatch):
    shapes = set()
    decode = bench_sam.decode

    def watched(model, embeddings, prompts, corners):
        shapes.add(tuple(embeddings.shape))
        return decode(model, embeddings, prompts, corners)

    monkeypatch.setattr(bench_sam, "decode", watched)
    table = bench_sam.decoder_table(official, sides=(64,))
    assert [row.what for row in table.rows] == ["1 box, tile of 64 px", "25 boxes, tile of 64 px"]
    assert shapes == {(count, 16, n, n) for count in (1, 9, 16) for n in (16, 32)}


def test_the_cache_holds_no_more_than_its_limit(official, monkeypatch):
    monkeypatch.setattr(bench_sam, "MIB", 2**15)  # of 16 x 32 x 32 half-precision numbers
    large, little = bench_sam.cache_table(official, side=64).rows
    assert large.values == (7, 7, 0)
    assert little.values == (6, 7, 2)  # the least recently used ones had to go
