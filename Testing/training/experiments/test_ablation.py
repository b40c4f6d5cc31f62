# SPDX-License-Identifier: Apache-2.0
"""The ablation: its runs are configurations that exist, and its rows are of the right scores."""

import pandas as pd

from srcsm_training.experiments import ablation, trainings
from srcsm_training.experiments.ablation import ladder_rows, report

RUNS = {run.name: run for run in ablation.RUNS}


def regions_of(name):
    config = trainings._configuration(RUNS[name], 4)
    assert config.optimisation.steps == 4
    assert config.random_convolution == "smoothed"
    return config.regions.share, config.regions.affine


def test_each_step_of_the_ladder_is_a_switch():
    assert regions_of("ct_smoothed") == (0.0, 0.75)
    for source in ("ct", "mr", "bssfp"):
        assert regions_of(f"{source}_regions") == (0.75, 0.0)
        assert regions_of(f"{source}_affine") == (0.75, 0.75)
    thirteen, four = RUNS["ct_thirteen"], RUNS["ct_affine"]
    assert thirteen.settings == four.settings
    assert (thirteen.source, four.source) == (ablation.CT13, ablation.CT)
    assert RUNS["bssfp_affine"].cases == RUNS["bssfp_smoothed"].cases


def scores(dice):
    """Scores of two organs; a piece that position chooses adds 0.1."""
    return pd.DataFrame(
        [
            {"label": label, "source_matching": sm, "pieces": p, "dice": dice + more, "assd": 1.0}
            for label in ("x", "y")
            for sm in ("off", "on")
            for p, more in (("all", 0.0), ("one", 0.1))
        ]
    )


def test_rows_name_their_steps_and_dashes_stand_for_missing_scores():
    tables = {"ct_regions": scores(0.5), "ct_affine": scores(0.6), "ct_thirteen": None}
    rows = ladder_rows(tables, "ct", "CT→MR", ("x", "y"))
    assert rows[::2] == [
        "| CT→MR regions | off | 0.500 | 0.500 | 0.500 | 1.0 |",
        "| CT→MR regions + affine | off | 0.600 | 0.600 | 0.600 | 1.0 |",
        "| CT→MR regions + affine, chosen by position | off | 0.700 | 0.700 | 0.700 | 1.0 |",
        "| CT→MR regions + affine + thirteen organs | off | – | – | – | – |",
        "| CT→MR regions + affine + thirteen organs, chosen by position | off | – | – | – | – |",
    ]
    assert ladder_rows({"mr_regions": None}, "mr", "MR→CT", ("x",)) == [
        "| MR→CT regions | off | – | – | – |",
        "| MR→CT regions | on | – | – | – |",
    ]


def test_the_tables_have_rows_for_every_step_and_the_same_columns(tmp_path):
    tables = report(tmp_path).split("\n\n")
    for table, row in zip(
        tables,
        ("MR→CT regions + affine, chosen by position | on |", "bSSFP 11–20 regions | LGE 1–10 |"),
        strict=True,
    ):
        assert row in table
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_one_piece_is_scored_beside_all_of_them(monkeypatch, tmp_path):
    kept = []

    def evaluate(network, datasets, folder, settings, scoring):
        network("scan", True)
        return pd.DataFrame({"folder": [str(folder.relative_to(tmp_path))]})

    class Segmented:
        labels = None

    def segment(volume, bundle, *, keep_largest, **_):
        kept.append(keep_largest)
        return Segmented

    monkeypatch.setattr("srcsm_training.evaluation.evaluate.evaluate", evaluate)
    monkeypatch.setattr("SRCSMSegmenterLib.inference.segment", segment)
    dataset = type("D", (), {"name": "MR", "modality": "MR"})
    tables = [
        trainings._scores(RUNS[name], None, dataset, tmp_path, ("on",), pieces, None)
        for name, pieces in (("ct_affine", "all"), ("ct_affine", "one"), ("ct_regions", "all"))
    ]
    assert kept == [False, True, False]
    assert [table["folder"][0] for table in tables] == ["MR/all", "MR/one", "MR"]
    assert tables[1]["pieces"][0] == "one"
    assert "pieces" not in tables[2]


def test_no_two_runs_share_a_name():
    assert len(RUNS) == len(ablation.RUNS)
