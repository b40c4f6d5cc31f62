# SPDX-License-Identifier: Apache-2.0
"""Reports of an evaluation and of a comparison, as JSON and as Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from .metrics import Status
from .scores import (
    across_seeds,
    compare_methods,
    source_matching_tests,
    summarise,
    write,
)

TITLES = {"dice": "Dice", "assd": "ASSD (mm)", "hd95": "HD95 (mm)"}


def write_report(table: pd.DataFrame, output: Path, settings: Mapping[str, Any]) -> None:
    """Write `cases.csv`, `metrics.json` and `summary.md`, each in one go.

    `metrics.json` holds "settings", "cases" (the long table), "labels" (`summarise`), "means"
    (its rows over labels) and "source_matching_test" (SM on against off); NaN is null.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    summary = summarise(table)
    over_labels = summary["label"] == "mean"
    content = {
        "settings": dict(settings),
        "cases": _records(table),
        "labels": _records(summary[~over_labels]),
        "means": _records(summary[over_labels].drop(columns="label")),
        "source_matching_test": _records(source_matching_tests(table)),
    }
    write(output / "cases.csv", table.to_csv(index=False))
    write(output / "metrics.json", _json(content))
    write(output / "summary.md", _report(table, summary, settings))


def _records(table: pd.DataFrame) -> list[dict]:
    return json.loads(table.to_json(orient="records", double_precision=15))


def _report(table: pd.DataFrame, summary: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    parts = ["# Evaluation"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in settings.items()))
    parts += ["## Targets, mean over labels", _targets({"this network": [table]})]
    for dataset, part in summary.groupby("dataset", sort=False):
        lines = [
            {"label": row["label"], "SM": row["source_matching"]}
            | {title: _mean_and_sd(row, metric) for metric, title in TITLES.items()}
            | {"median Dice": _number(row["dice_median"], "dice")}
            | {status: row[status] for status in get_args(Status)}
            for _, setting in part.groupby("source_matching", sort=False)
            for row in setting.to_dict("records")
        ]
        parts += [f"## {dataset}", markdown_table(pd.DataFrame(lines))]
    tests = source_matching_tests(table)
    if len(tests):
        tests = tests.rename(columns={"first": "SM off", "second": "SM on"})
        parts += ["## SM on against off, Dice, Wilcoxon over cases", markdown_table(tests.round(4))]
    parts.append(
        "Mean ± SD over cases; rows and targets named mean take every case's mean over its labels. "
        "A label absent in truth and prediction leaves the case out of its mean; one that is "
        "missed or false positive counts with Dice 0 and without distances."
    )
    return _document(parts)


def write_comparison(methods: Mapping[str, Sequence[pd.DataFrame]], output: Path) -> None:
    """Write `comparison.md` and `comparison.json` over several methods and seeds.

    `comparison.json` holds "means" (`across_seeds` of every method) and "tests"
    (`compare_methods`); NaN is null.

    Args:
        methods: name -> long tables, one per seed; the others are compared with the first.
        output: folder, created if it does not exist.

    Raises:
        EvaluationError: the folder cannot be written, or the methods have different cases.
    """
    tests = compare_methods(methods)
    means = [across_seeds(tables).assign(method=name) for name, tables in methods.items()]
    parts = ["# Comparison", "## Targets, mean over labels", _targets(methods)]
    if len(tests):
        parts += ["## Dice, Wilcoxon over cases", markdown_table(tests.round(4))]
    parts.append("Mean ± SD over seeds; tests take each case's mean over labels and seeds.")
    content = {"means": _records(pd.concat(means)), "tests": _records(tests)}
    write(output / "comparison.json", _json(content))
    write(output / "comparison.md", _document(parts))


def cross_domain_table(
    methods: Mapping[str, Sequence[pd.DataFrame]], metric: str = "dice"
) -> pd.DataFrame:
    """Make a table with one number, the mean over labels, per method and target.

    Args:
        methods: name -> long tables, one per seed.
        metric: one of `METRICS`.

    Returns:
        Texts "0.853", with several seeds "0.853 ± 0.012"; a row per method and SM setting, a
        column per dataset.
    """
    rows = {}
    for method, tables in methods.items():
        seeds = across_seeds(tables)
        for row in seeds[seeds["label"] == "mean"].to_dict("records"):
            cell = _mean_and_sd(row, metric)
            rows.setdefault((method, row["source_matching"]), {})[row["dataset"]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["method", "SM"]).fillna("-")


def _targets(methods: Mapping[str, Sequence[pd.DataFrame]]) -> str:
    """Format the cross-domain tables of the three main metrics, one below the other."""
    parts = []
    for metric, title in TITLES.items():
        part = cross_domain_table(methods, metric).reset_index()
        part.insert(0, "metric", title)
        parts.append(part)
    return markdown_table(pd.concat(parts))


def _document(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """Format a table without its index as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _mean_and_sd(row: Mapping[str, float], metric: str) -> str:
    mean, sd = row[f"{metric}_mean"], row[f"{metric}_sd"]
    return _number(mean, metric) + ("" if np.isnan(sd) else f" ± {_number(sd, metric)}")


def _number(number: float, metric: str) -> str:
    return "-" if np.isnan(number) else f"{number:.{3 if metric == 'dice' else 2}f}"
