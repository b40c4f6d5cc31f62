# SPDX-License-Identifier: Apache-2.0
"""Scores: statistics over cases and seeds, and tests, on tables whose results are known."""

import numpy as np
import pandas as pd
import pytest
from score_tables import dice_table, three_cases

from srcsm_training.evaluation.scores import (
    EvaluationError,
    across_seeds,
    read_scores,
    summarise,
    worst_cases,
)


@pytest.fixture
def scores():
    return three_cases()


def row_of(table, **where):
    [row] = table[np.logical_and.reduce([table[k] == v for k, v in where.items()])].to_dict(
        "records"
    )
    return row


def test_label_statistics_leave_out_absent_and_count_missed_as_zero(scores):
    spleen = row_of(summarise(scores), label="spleen")
    assert [spleen[s] for s in ("scored", "missed", "false positive", "absent")] == [1, 1, 0, 1]
    assert spleen["dice_mean"] == pytest.approx(0.3)
    assert spleen["dice_median"] == pytest.approx(0.3)
    assert spleen["dice_sd"] == pytest.approx(np.sqrt(0.18))
    assert (spleen["dice_min"], spleen["dice_max"]) == (0, 0.6)
    assert (spleen["assd_mean"], spleen["hd95_mean"]) == (4, 8)
    assert np.isnan(spleen["assd_sd"])
    liver = row_of(summarise(scores), label="liver")
    assert liver["dice_median"] == 0.8
    assert liver["assd_mean"] == pytest.approx(3)


def test_the_mean_row_is_over_the_cases_means(scores):
    mean = row_of(summarise(scores), label="mean")
    assert mean["dice_mean"] == pytest.approx((0.9 + 0.7 + 0.2) / 3)
    assert mean["dice_sd"] == pytest.approx(np.std([0.9, 0.7, 0.2], ddof=1))
    assert mean["assd_mean"] == pytest.approx((1 + 3 + 6) / 3)
    assert [mean[s] for s in ("scored", "missed", "false positive", "absent")] == [4, 1, 0, 1]


def test_worst_cases_are_taken_per_dataset_and_setting(scores):
    both = pd.concat([scores, dice_table([0.5, 0.3], "CT", "on")])
    assert worst_cases(both, 1) == {
        ("CT", "on", "case1"): 0.3,
        ("MR", "off", "c"): pytest.approx(0.2),
    }
    assert len(worst_cases(both, 2)) == 4


def test_seeds_give_mean_and_sample_sd():
    result = across_seeds([dice_table([0.5, 0.7]), dice_table([0.7, 0.9]), dice_table([0.9, 1.0])])
    liver = row_of(result, label="liver")
    assert liver["seeds"] == 3
    assert liver["dice_mean"] == pytest.approx((0.6 + 0.8 + 0.95) / 3)
    assert liver["dice_sd"] == pytest.approx(np.std([0.6, 0.8, 0.95], ddof=1))


def test_scores_that_are_none_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="Cannot read"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("dataset,case\nMR,a\n")
    with pytest.raises(EvaluationError, match="it lacks"):
        read_scores(tmp_path / "other.csv")


def test_tables_of_older_versions_are_of_whole_scans_without_surface_dice(scores, tmp_path):
    older = scores.drop(columns=["protocol", "tolerance", "surface_dice"])
    older.to_csv(tmp_path / "cases.csv", index=False)
    table = read_scores(tmp_path / "cases.csv")
    assert table["protocol"].unique().tolist() == ["whole"]
    assert table[["tolerance", "surface_dice"]].isna().all(axis=None)
    assert row_of(summarise(table), label="liver")["dice_mean"] == pytest.approx(0.7)
