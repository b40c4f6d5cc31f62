# SPDX-License-Identifier: Apache-2.0
"""Tables of scores as texts: Markdown, LaTeX and CSV."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .scores import MAIN, across_seeds, summarise
from .significance import compare_methods

SIGNIFICANT = 0.05
"""Adjusted p value from which on a cell of a table has no star."""


Methods = Mapping[str, Sequence[pd.DataFrame]]
"""Name -> long tables, one per seed."""


def format_table(methods: Methods, form: str) -> str:
    """Format the results of methods for a paper.

    Args:
        form: "markdown" and "latex" give `label_table`, "csv" the numbers of `numbers`.
    """
    if form == "csv":
        return numbers(methods).to_csv(index=False)
    table = label_table(methods)
    return (latex_table if form == "latex" else markdown_table)(table) + "\n"


def label_table(methods: Methods, metrics: Sequence[str] = tuple(MAIN)) -> pd.DataFrame:
    """Make a table with a column per label.

    Returns:
        Texts "0.853 ± 0.012", mean and sd over cases or, if a method has several seeds, over
        seeds; "*" if `compare_methods` finds a difference from the first method by the p value
        after Holm's correction. Rows: metric, dataset, method and SM setting.
    """
    rows = []
    for metric in metrics:
        stars = _significant(methods, metric)
        for name, tables in methods.items():
            means = summarise(tables[0]) if len(tables) == 1 else across_seeds(tables)
            for (dataset, setting), part in means.groupby(
                ["dataset", "source_matching"], sort=False
            ):
                row = {
                    "metric": MAIN[metric], "dataset": dataset, "method": name, "SM": setting,
                }  # fmt: skip
                for line in part.to_dict("records"):
                    star = "*" if (name, dataset, setting, line["label"]) in stars else ""
                    row[line["label"]] = mean_and_sd(line, metric) + star
                rows.append(row)
    return pd.DataFrame(rows).fillna("-")


def numbers(methods: Methods) -> pd.DataFrame:
    """Make a table of numbers: a row per method, dataset, SM setting and label.

    Returns:
        Columns of `across_seeds` and, of methods with one seed, sd over cases and intervals.
    """
    parts = []
    for name, tables in methods.items():
        part = summarise(tables[0]) if len(tables) == 1 else across_seeds(tables)
        part.insert(0, "method", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _significant(methods: Methods, metric: str) -> set[tuple[str, str, str, str]]:
    """Return (method, dataset, SM setting, label) of scores that differ from the first method's.

    A score that is compared with several settings of SM has to differ from all of them.
    """
    highest: dict[tuple[str, str, str, str], float] = {}
    for by_label in (False, True):
        for row in compare_methods(methods, metric, by_label).to_dict("records"):
            setting = row["source_matching"].partition(" ")[0]
            key = (row["method"], row["dataset"], setting, row["label"])
            highest[key] = max(row["p_holm"], highest.get(key, 0.0))
    return {key for key, p_value in highest.items() if p_value < SIGNIFICANT}


def markdown_table(table: pd.DataFrame) -> str:
    """Format a table without its index as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def latex_table(table: pd.DataFrame) -> str:
    r"""Format a table without its index as LaTeX; it needs `\usepackage{booktabs}`."""
    rows = [" & ".join(map(_latex, row)) + r" \\" for row in table.itertuples(index=False)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(cell: object) -> str:
    text = str(cell).replace("\\", r"\textbackslash ")
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace(" ± ", r" $\pm$ ").replace("→", r"$\to$")


def mean_and_sd(row: Mapping[str, float], metric: str) -> str:
    """Format the mean of a metric, and its standard deviation if there is one."""
    mean, sd = row[f"{metric}_mean"], row[f"{metric}_sd"]
    return number(mean, metric) + ("" if np.isnan(sd) else f" ± {number(sd, metric)}")


def interval(row: Mapping[str, float], metric: str) -> str:
    """Format the bootstrap interval of a mean."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return "-" if np.isnan(low) else f"{number(low, metric)} to {number(high, metric)}"


def number(value: float, metric: str) -> str:
    """Format a Dice with three digits, mm with two, NaN as "-"."""
    return "-" if np.isnan(value) else f"{value:.{3 if metric.endswith('dice') else 2}f}"
