# SPDX-License-Identifier: Apache-2.0
"""Tables for papers: columns, stars, and their forms."""

import io

import pandas as pd
import pytest
from score_tables import OFF, dice_table

from srcsm_training.evaluation.tables import (
    format_table,
    label_table,
    latex_table,
    markdown_table,
)


def methods():
    better = [value + 0.1 for value in OFF]
    return {"plain": [dice_table(OFF)], "SRC": [dice_table(better)], "same": [dice_table(OFF)]}


def test_a_table_has_a_column_per_label_and_stars_what_differs_from_the_first():
    table = label_table(methods(), ["dice"])
    assert list(table.columns) == ["metric", "dataset", "method", "SM", "liver", "mean"]
    assert table["liver"].tolist() == ["0.525 ± 0.093", "0.625 ± 0.093*", "0.525 ± 0.093"]
    assert table["mean"].str.endswith("*").tolist() == [False, True, False]


def test_a_difference_from_one_of_two_settings_gets_no_star():
    both = pd.concat([dice_table(OFF), dice_table([v + 0.1 for v in OFF], setting="on")])
    table = label_table({"ours": [both], "tool": [dice_table(OFF, setting="-")]}, ["dice"])
    assert table[table["method"] == "tool"]["liver"].tolist() == ["0.525 ± 0.093"]


def test_several_seeds_give_the_spread_over_seeds():
    table = label_table({"a": [dice_table([0.5, 0.7]), dice_table([0.7, 0.9])]}, ["dice"])
    assert table["mean"].tolist() == ["0.700 ± 0.141"]


def test_numbers_are_a_csv_that_reads_back():
    table = pd.read_csv(io.StringIO(format_table(methods(), "csv")))
    liver = table[(table["method"] == "SRC") & (table["label"] == "liver")].iloc[0]
    assert liver["dice_mean"] == pytest.approx(0.625)
    assert liver["dice_low"] < 0.625 < liver["dice_high"]


def test_latex_escapes_what_would_not_compile():
    table = pd.DataFrame({"CT→MR": ["0.9 ± 0.1*"], "a_b": ["50 %"]})
    assert latex_table(table).splitlines() == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"CT$\to$MR & a\_b \\",
        r"\midrule",
        r"0.9 $\pm$ 0.1* & 50 \% \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_markdown_tables_have_a_head_and_a_rule():
    assert markdown_table(pd.DataFrame({"a": [1, 2], "b c": ["x", "y"]})) == (
        "| a | b c |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
    )
