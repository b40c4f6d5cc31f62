# SPDX-License-Identifier: Apache-2.0
"""The tables of the SAM paper, from two little domains to the report."""

from dataclasses import replace

import pandas as pd
import pytest
import tiny
import tiny_sam
from torch import nn

pytest.importorskip("torchvision")

from SAMRefineLib.sam.models import load_sam, save_sam
from srcsm_training.data.dataset import read_dataset
from srcsm_training.experiments import published, published_sam
from srcsm_training.sam import deeplab
from srcsm_training.sam.deeplab_config import DeepLabConfig, DeepLabRecipe
from srcsm_training.sam.layout import BOX_KINDS, CoarseNetwork
from srcsm_training.segmentation.published import SETTINGS

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SETTING = "prostate-six-sites-sam"


class OneLayer(nn.Module):
    """As much of the DeepLab as the training and the loading of one need."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Conv2d(3, labels, 1))

    def forward(self, images):
        return {"out": self.classifier(images)}


@pytest.fixture
def sam(tmp_path):
    save_sam(tmp_path / "sam", tiny_sam.small_model(), "card", "licence")
    return tmp_path / "sam"


def test_the_setting_runs_from_two_domains_to_its_table(tmp_path, monkeypatch, capsys, sam):
    monkeypatch.setattr(deeplab, "build", lambda labels, backbone=None: OneLayer(labels))
    recipe = DeepLabRecipe(batch=2, precision="fp32")
    monkeypatch.setattr(published_sam, "COARSE", DeepLabConfig(size=32, optimisation=recipe))
    recipe = replace(published_sam.DECODER.optimisation, batch=2, precision="fp32")
    decoder = replace(published_sam.DECODER, optimisation=recipe, theta1=0.0)
    monkeypatch.setattr(published_sam, "DECODER", decoder)
    monkeypatch.setattr(published_sam, "THETA1", 0.0)  # after one step, nothing is sure
    run_training = published_sam.run_decoder_training

    def afresh(*arguments, **settings):
        tiny.forget_accelerator()
        return run_training(*arguments, **settings)

    monkeypatch.setattr(published_sam, "run_decoder_training", afresh)
    for name in ("A", "B"):
        tiny.write_dataset(tmp_path / "data" / name, 2, "MR")
    given = ["--setting", SETTING, "--domains", "A", "B", "--seeds", "0", "--steps", "1"]
    given += ["--data", tmp_path / "data", "--sam", sam, "--runs", tmp_path / "runs"]
    given = [*map(str, given), "--results", str(tmp_path / "results")]
    run = f"published_{SETTING}_A_0_1-steps"
    assert published.main([*given, "--only", run]) == 0
    table = pd.read_csv(tmp_path / "results" / f"{run}.csv")
    assert set(table["dataset"]) == {"B"}
    assert len(table) == 2 * 2 * (1 + len(BOX_KINDS) * 3)  # cases, labels; alone, kinds and theta 2
    tuned = {kind: load_sam(tmp_path / "runs" / run / kind / "model") for kind in BOX_KINDS}
    assert {kind: sam.training["config"]["boxes"] for kind, sam in tuned.items()} == {
        kind: kind for kind in BOX_KINDS
    }
    assert {sam.training["coarse"] for sam in tuned.values()} == {"DeepLabV3-ResNet-50"}
    capsys.readouterr()
    assert published.main([*given, "--report"]) == 0
    text = capsys.readouterr().out
    assert f"No scores: published_{SETTING}_B_0_1-steps" in text
    assert "| kind | theta2 | A | mean |" in text
    assert text.count("| SAM, filtered boxes |") == 3
    assert "| coarse network alone | 0.5 |" in text
    assert "filtered boxes 79.54" in text
    for option in (["--cut-to-labels"], ["--set", "seed=1"], ["--preset", "icm"]):
        assert published.main([*given, "--report", *option]) == 2
        assert "not for settings with a SAM" in capsys.readouterr().err


def test_true_boxes_and_the_truth_as_coarse_network_are_scored_as_such(tmp_path):
    dataset = read_dataset(tiny.write_dataset(tmp_path / "A", 1, "MR"))
    case = dataset.cases[0]
    truth = published_sam.read_case(case)[1].array
    coarse = CoarseNetwork(
        "truth", "", dataset.labels, lambda volume, modality: lambda label: (truth == label) * 0.9
    )
    rows = published_sam.score_case(case, dataset, coarse, {"true": tiny_sam.small_model()})
    table = pd.DataFrame(rows)
    assert (table[table["kind"] == "coarse"]["dice"] == 1).all()
    assert set(table[table["kind"] == "true"]["theta2"]) == {0.5, 0.75, 0.9}
    assert table["dice"].between(0, 1).all()


def test_the_means_of_the_table_are_over_labels_then_cases_then_seeds(tmp_path):
    setting = replace(SETTINGS[SETTING], sources=("A",), targets=("B",))
    runs = published_sam.runs_of(SETTING, setting, (0, 1))
    for run, values in zip(runs, ([0.1, 0.3, 0.6], [1.0, 1.0, 1.0]), strict=True):
        rows = {
            "case": ["x", "x", "y"],
            "label": ["one", "other", "one"],
            "kind": "filtered",
            "theta2": 0.75,
            "dataset": "B",
            "dice": values,
        }
        pd.DataFrame(rows).to_csv(tmp_path / f"{run.name}.csv", index=False)
    text = published_sam.report(runs, setting, tmp_path)
    assert "| SAM, filtered boxes | 0.75 | 70.0 | 70.0 |" in text  # (0.2 + 0.6) / 2, and 1
