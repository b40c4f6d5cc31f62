# SPDX-License-Identifier: Apache-2.0
"""The SAM ablation: what is scored, that nothing is scored twice, and the tables."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from SAMRefineLib.sam.models import load_sam, save_sam
from SAMRefineLib.sam.small_sam import SmallSamConfig
from srcsm_training.data.dataset import read_dataset
from srcsm_training.experiments import sam_ablation
from srcsm_training.experiments.sam_ablation import RUNS, Run
from srcsm_training.sam import from_scratch
from SRCSMSegmenterLib.geometry import Volume

RUN = Run("tiny", "Tiny", "coarse", "sam", "Dataset002_Target")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.write_dataset(folder / RUN.target, cases=2)
    return folder


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    torch.set_num_threads(1)
    torch.manual_seed(3)
    sizes = SmallSamConfig(
        canvas=64, window=32, embed_dim=16, depth=1, heads=2, prompt_dim=16, decoder_heads=2
    )
    tiles = replace(from_scratch.SamConfig().tiles, side=32, whole_slices=0.0)
    config = replace(from_scratch.SamConfig(), network=sizes, tiles=tiles)
    model = from_scratch.new_network(config).model
    where = tmp_path_factory.mktemp("sams") / "random"
    save_sam(where, replace(model, name="random"), "card", "licence")
    return where


@pytest.fixture
def coarse(monkeypatch):
    """A coarse network that misses the top of the liver and has an island; no other is loaded."""
    calls = []

    def segment(volume, bundle, **arguments):
        calls.append(arguments)
        liver, spleen = (volume.array > 60) & (volume.array < 170), volume.array > 170
        liver[12:] = False
        liver[2, :2, -2:] = True
        found = np.stack([~(liver | spleen), liver, spleen]).astype(np.float16)
        labels = Volume(found.argmax(0).astype(np.uint8), volume.geometry)
        sure = np.ones(labels.array.shape, np.float16)
        probabilities = SimpleNamespace(whole=lambda label: found[label])
        return SimpleNamespace(probabilities=probabilities, labels=labels, confidence=lambda: sure)

    monkeypatch.setattr(sam_ablation, "segment", segment)
    bundle = SimpleNamespace(identity="0123456789")
    monkeypatch.setattr(sam_ablation, "load_bundle", lambda folder: bundle)
    return calls


@pytest.mark.parametrize("mosaic", sam_ablation.MOSAICS)
def test_every_setting_of_a_case_is_scored(data, sam, coarse, mosaic):
    dataset = read_dataset(data / RUN.target)
    model = load_sam(sam, device="cpu")
    kinds = sam_ablation.KINDS if mosaic == "crops" else sam_ablation.IN_ALL_MOSAICS
    rows = sam_ablation.score_case(dataset.cases[0], None, model, dataset, mosaic, list(kinds))
    table = pd.DataFrame(rows)
    assert len(table) == 2 * (2 + len(kinds) * len(sam_ablation.THETAS))
    assert not table.duplicated(["label", "kind", "theta2"]).any()
    assert set(table["mosaic"]) == {mosaic}
    assert coarse[0]["source_matching"] is True
    alone = table[table["kind"] == "coarse"].set_index("label")["dice"]
    pieces = table[table["kind"] == "pieces"].set_index("label")["dice"]
    assert alone["spleen"] == pytest.approx(1.0, abs=0.05)
    assert 0.5 < alone["liver"] < pieces["liver"] < 0.95  # without the island
    # An untrained SAM is no better than the coarse mask, which then stays.
    kept = table[(table["kind"] == "refine") & (table["label"] == "spleen")]
    assert (kept["kept"] > 0).all()
    assert not kept["large"].any()  # the network is sure
    strays = table[(table["kind"] == "filtered") & (table["theta2"] == 0.9)]
    assert strays["dice"].between(0, 1).all()


def test_a_case_is_scored_once_and_written_at_once(data, sam, coarse, tmp_path, capsys):
    def table():
        return sam_ablation.read_scores(tmp_path / "sam_tiny_random.csv")

    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["a"], ["crops"])
    assert set(table()["case"]) == {"a"}
    first = table()
    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["*"], ["crops"])
    assert len(coarse) == 2
    assert list(table()["case"].unique()) == ["a", "b"]
    pd.testing.assert_frame_equal(table().iloc[: len(first)], first)
    assert table()["sam"].iloc[0].startswith("random ")
    assert table()["sam"].iloc[0].endswith("decoder not fine-tuned")
    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["a"], ["crops", "slices"])
    assert len(coarse) == 3
    assert set(table()[table()["case"] == "a"]["mosaic"]) == {"crops", "slices"}
    before = table()
    capsys.readouterr()
    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["a"], ["crops"])
    assert len(coarse) == 3
    assert "sam_tiny_random.csv; run again with --force" in capsys.readouterr().out
    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["a"], ["crops"], force=True)
    assert len(coarse) == 4
    columns = ["case", "label", "kind", "mosaic", "theta2"]
    pd.testing.assert_frame_equal(
        table().sort_values(columns, ignore_index=True),
        before.sort_values(columns, ignore_index=True),
    )
    table()[table()["kind"] != "refine"].to_csv(tmp_path / "sam_tiny_random.csv", index=False)
    sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["a"], ["crops"])
    assert table()["kind"].tolist().count("refine") == 2 * 3
    for column, name in (("sam", "another SAM"), ("coarse", "another coarse network")):
        first.assign(**{column: "other"}).to_csv(tmp_path / "sam_tiny_random.csv", index=False)
        with pytest.raises(SystemExit, match=name):
            sam_ablation.execute(RUN, data, tmp_path, tmp_path, str(sam), ["*"])


def test_dice_by_hand():
    truth, found = np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int)
    truth[0, :2] = 1  # 8 voxels, 4 of them found, and 2 others
    found[0, 0] = found[1, 0, :2] = 1
    truth[1, 3] = 2
    rows = sam_ablation.scores("a", found, truth, {"x": 1, "y": 2, "z": 3}, kind="k")
    assert [row["label"] for row in rows] == ["x", "y", "z"]
    assert rows[0] == {"case": "a", "label": "x", "kind": "k", "dice": 2 * 4 / 14}
    assert rows[1]["dice"] == 0
    assert np.isnan(rows[2]["dice"])


def test_the_tables(tmp_path):
    assert sam_ablation.report(tmp_path).count("| – |") >= 2 * len(RUNS)
    organs = ("liver", "right_kidney", "left_kidney", "spleen")
    rows = []
    for mosaic in ("crops", "slices"):  # what was run so far
        rows += [
            {"case": case, "label": label, "kind": kind, "mosaic": mosaic, "dice": dice}
            for label in organs
            for kind, dice in (("coarse", 0.5), ("pieces", 0.6))
            for case in (("a", "b") if mosaic == "crops" else ("b",))
        ]
        rows[-1]["dice"] += 0.2 if mosaic == "slices" else 0.0  # scored before, and counted then
        for number, kind in enumerate(sam_ablation.KINDS):
            rows += [
                {"case": case, "label": label, "kind": kind, "mosaic": mosaic, "theta2": theta2}
                | {"dice": 0.1 * number + 0.01 * theta2 + (0.2 if case == "a" else 0.0)}
                for theta2 in sam_ablation.THETAS
                for label in organs
                for case in "ab"
                if mosaic == "crops" or kind in sam_ablation.IN_ALL_MOSAICS
            ]
    table = pd.DataFrame(rows).assign(sam="s 1, decoder none", coarse="c")
    table.to_csv(tmp_path / "sam_ct_plain_tuned.csv", index=False)
    report = sam_ablation.report(tmp_path)
    title = "| CT→MR, plain"
    assert f"{title} | nothing: network alone | – | 2 | 0.500 | | | – |" in report
    for mosaic in ("crops", "slices"):
        row = f"{title} | SAM, filtered boxes | {mosaic} | 2 | 0.305 | 0.307 | 0.309 | none |"
        assert row in report
    assert f"{title} | SAM, filtered boxes | off" not in report
    assert f"{title} | SAM, whole image as box | slices" not in report
    assert "| CT→MR, plain | SAM, true boxes | 0.405 | 0.405 | 0.405 | 0.405 | 0.405 |" in report
    assert "largest pieces | 0.600 | 0.600 | 0.600 | 0.600 | 0.600 |" in report
