# SPDX-License-Identifier: Apache-2.0
"""Reports: what is written, that it is complete, and that a failed write keeps the older file."""

import json

import pandas as pd
import pytest
from score_tables import OFF, ON, dice_table, three_cases

from srcsm_training.evaluation.report import (
    cross_domain_table,
    write_comparison,
    write_report,
)
from srcsm_training.evaluation.scores import EvaluationError, read_scores
from srcsm_training.evaluation.significance import compare_methods


@pytest.fixture
def scores():
    return three_cases()


def test_the_cross_domain_table_has_methods_down_and_targets_across():
    def run(*values):
        on, off = dice_table(values[:2], setting="on"), dice_table(values[2:4], setting="off")
        return pd.concat([off, on, dice_table(values[4:], "ACDC", "off")])

    methods = {
        "plain": [run(0.3, 0.5, 0.1, 0.3, 0.25, 0.25)],
        "SRC": [run(0.8, 0.8, 0.7, 0.7, 0.5, 0.5), run(0.9, 0.9, 0.7, 0.7, 0.6, 0.6)],
    }
    table = cross_domain_table(methods)
    assert table.index.tolist() == [
        ("plain", "off"),
        ("plain", "on"),
        ("SRC", "off"),
        ("SRC", "on"),
    ]
    assert table["MR"].tolist() == ["0.200", "0.400", "0.700 ± 0.000", "0.850 ± 0.071"]
    assert table["ACDC"].tolist() == ["0.250", "-", "0.550 ± 0.071", "-"]
    assert cross_domain_table(methods, "hd95").loc[("plain", "on"), "MR"] == "2.00"


def test_methods_are_held_against_the_first(tmp_path):
    methods = {
        "plain": [dice_table(OFF)],
        "SRC": [dice_table(ON), dice_table(ON, setting="on")],
        "hard": [dice_table(OFF)],
    }
    tests = compare_methods(methods)
    assert tests[["method", "against", "source_matching"]].values.tolist() == [
        ["SRC", "plain", "off"],
        ["hard", "plain", "off"],
    ]
    assert tests["p_value"].tolist() == [pytest.approx(38 / 256), 1.0]
    write_comparison(methods, tmp_path / "new")
    content = json.loads((tmp_path / "new" / "comparison.json").read_text("utf-8"))
    assert content["tests"][0]["difference"] == pytest.approx(0.22 / 8)
    assert {row["method"] for row in content["means"]} == set(methods)
    assert [row["label"] for row in content["label_tests"]] == ["liver", "liver"]
    text = (tmp_path / "new" / "comparison.md").read_text("utf-8")
    assert "| ASSD (mm) | SRC | on | 1.00 |" in text


def test_reports_are_complete_and_read_back_the_same(scores, tmp_path):
    on = scores.assign(source_matching="on", case=["001", "001", "02", "02", "NA", "NA"])
    off = on.assign(source_matching="off", dice=on["dice"] / 2)
    table = pd.concat([off, on], ignore_index=True)
    write_report(table, tmp_path / "run", {"network": "abdomen", "seed": 3})
    pd.testing.assert_frame_equal(read_scores(tmp_path / "run" / "cases.csv"), table)

    content = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert content["settings"] == {"network": "abdomen", "seed": 3}
    assert len(content["cases"]) == 12
    assert content["cases"][1]["status"] == "absent"
    assert content["cases"][1]["dice"] is None
    assert [row["label"] for row in content["labels"]] == ["liver", "spleen"] * 2
    assert content["labels"][3]["missed"] == 1
    assert [row["dice_mean"] for row in content["means"]] == [
        pytest.approx(0.3),
        pytest.approx(0.6),
    ]
    [test] = content["source_matching_test"]
    assert (test["dataset"], test["cases"], test["p_value"]) == ("MR", 3, 0.25)

    text = (tmp_path / "run" / "summary.md").read_text("utf-8")
    assert "- seed: 3" in text
    assert "| Dice | this network | on | 0.600 |" in text
    row = (
        "| spleen | on | 0.300 ± 0.424 | - | 4.00 | 8.00 | 0.000 to 0.600 | 0.300 | 1 | 1 | 0 | 1 |"
    )
    assert row in text
    assert "| MR | 3 | 0.3 | 0.6 | 0.3 | 0.1 | 0.45 | 0.25 | 0.25 |" in text
    assert "- protocol: whole scans; surface Dice at 2 mm" in text
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "cases.csv",
        "metrics.json",
        "summary.md",
    ]


def test_an_output_that_cannot_be_written_is_one_sentence(scores, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"Cannot write .*cases\.csv"):
        write_report(scores, tmp_path / "file", {})


def test_a_failed_write_keeps_the_older_file_and_leaves_nothing_else(scores, tmp_path, monkeypatch):
    write_report(scores, tmp_path, {})
    before = (tmp_path / "metrics.json").read_text("utf-8")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(EvaluationError, match="No space left on device"):
        write_report(scores.assign(dice=0.1), tmp_path, {})
    assert (tmp_path / "metrics.json").read_text("utf-8") == before
    assert len(list(tmp_path.iterdir())) == 3
