# SPDX-License-Identifier: Apache-2.0
"""Tests between methods, on tables whose results are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon
from score_tables import OFF, ON, dice_table, table_of, three_cases

from srcsm_training.evaluation.scores import EvaluationError, bootstrap_interval
from srcsm_training.evaluation.significance import compare_methods, holm, paired_test


@pytest.fixture
def scores():
    return three_cases()


def test_the_paired_test_equals_scipy_and_a_count_by_hand():
    result = paired_test(
        dice_table(OFF), dice_table(ON[::-1]).assign(case=lambda t: t.case[::-1].values)
    )
    # Negative ranks 2 and 5 sum to 7; of the 2^8 signs, 19 subsets of 1..8 sum to 7 or less.
    assert result.p_value == pytest.approx(2 * 19 / 256)
    assert result.p_value == wilcoxon(OFF, ON).pvalue
    assert result.cases == 8
    assert result.difference == pytest.approx(0.22 / 8)
    assert result.second - result.first == pytest.approx(result.difference)


def test_the_paired_test_takes_means_over_labels_and_seeds():
    first = pd.concat([dice_table([0.2, 0.4, 0.6]), dice_table([0.4, 0.6, 0.8])])
    second = dice_table([0.4, 0.7, 1.0])
    result = paired_test(first, second)
    assert (result.cases, result.first, result.second) == (
        3,
        pytest.approx(0.5),
        pytest.approx(0.7),
    )
    assert result.p_value == 0.25


def test_equal_results_have_p_one_and_nan_pairs_are_left_out(scores):
    same = paired_test(scores, scores, "assd")
    assert (same.cases, same.p_value) == (3, 1.0)
    missed = scores.assign(assd=scores["assd"].where(scores["case"] != "c"))
    assert paired_test(scores, missed, "assd").cases == 2


def test_the_paired_test_refuses_what_is_no_pair():
    with pytest.raises(EvaluationError, match="alone: MR/case2"):
        paired_test(dice_table([0.1, 0.2, 0.3]), dice_table([0.1, 0.2]))
    both = pd.concat([dice_table([0.1]), dice_table([0.1], setting="on")])
    with pytest.raises(EvaluationError, match="one SM setting"):
        paired_test(both, both)


def test_holm_multiplies_the_smallest_p_value_by_the_number_of_tests():
    # Holm 1979: 0.01 * 4, 0.013 * 3, then the running maximum, then 0.04 * 1.
    assert holm([0.04, 0.01, 0.03, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    np.testing.assert_equal(holm([np.nan, 0.02]), [np.nan, 0.02])
    assert len(holm([])) == 0


def test_the_bootstrap_interval_is_that_of_the_resampled_means():
    # Of two cases, a quarter of the resamples is twice the first and a quarter twice the second.
    assert bootstrap_interval([0.2, 0.6]) == (0.2, 0.6)
    low, high = bootstrap_interval(np.arange(100.0))
    spread = 1.96 * np.std(np.arange(100)) / 10  # the normal approximation, good at 100 cases
    assert (low, high) == pytest.approx((49.5 - spread, 49.5 + spread), abs=0.3)
    assert bootstrap_interval([0.5, np.nan, 0.5]) == (0.5, 0.5)
    np.testing.assert_equal(bootstrap_interval([0.5]), (np.nan, np.nan))


def two_labels(shift):
    """Eight cases of two labels; the liver differs by `shift`, the spleen not at all."""
    rows = [
        (f"case{n}", label, "scored", value + (shift if label == "liver" else 0), 1.0)
        for n, value in enumerate(OFF)
        for label in ("liver", "spleen")
    ]
    return table_of(rows)


def test_labels_are_tested_one_by_one_and_corrected_for_their_number():
    tests = compare_methods({"a": [two_labels(0)], "b": [two_labels(0.1)]}, by_label=True)
    assert tests["label"].tolist() == ["liver", "spleen"]
    assert tests["p_value"].tolist() == [pytest.approx(2 / 256), 1.0]
    assert tests["p_holm"].tolist() == [pytest.approx(2 * 2 / 256), 1.0]
    assert tests[["low", "high"]].iloc[0].tolist() == pytest.approx([0.1, 0.1])


def test_label_maps_of_a_tool_are_tested_against_every_setting():
    ours = pd.concat([dice_table(OFF), dice_table(ON, setting="on")])
    tests = compare_methods({"tool": [dice_table(ON, setting="-")], "ours": [ours]})
    assert tests["source_matching"].tolist() == ["off against -", "on against -"]
    assert tests["p_value"].tolist() == [pytest.approx(38 / 256), 1.0]


@pytest.mark.parametrize(("column", "value"), [("protocol", "cut"), ("tolerance", 1.0)])
def test_scores_of_two_protocols_are_not_compared(column, value):
    other = dice_table(ON).assign(**{column: value})
    with pytest.raises(EvaluationError, match=f"different {column}"):
        compare_methods({"a": [dice_table(OFF)], "b": [other]})


def test_scores_of_other_labels_are_not_compared():
    with pytest.raises(EvaluationError, match="different labels"):
        compare_methods({"a": [dice_table(OFF)], "b": [dice_table(ON).assign(label="spleen")]})
