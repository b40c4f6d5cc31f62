# SPDX-License-Identifier: Apache-2.0
"""Reports of an evaluation and of a comparison, as JSON and as Markdown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from .metrics import Status
from .scores import CONFIDENCE, MAIN, PROTOCOL, across_seeds, summarise, write
from .significance import check_protocol, compare_methods, source_matching_tests
from .tables import interval, label_table, markdown_table, mean_and_sd, number

INTERVAL = f"{CONFIDENCE:.0%} interval"


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
    lines = [f"- {key}: {value}" for key, value in settings.items()]
    parts.append("\n".join([*lines, f"- protocol: {_protocol(table)}"]))
    parts += [
        "## Targets, mean over labels",
        _targets({settings.get("model", "this network"): [table]}),
    ]
    for dataset, part in summary.groupby("dataset", sort=False):
        lines = [
            {"label": row["label"], "SM": row["source_matching"]}
            | {title: mean_and_sd(row, metric) for metric, title in MAIN.items()}
            | {INTERVAL: interval(row, "dice"), "median Dice": number(row["dice_median"], "dice")}
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
        f"{INTERVAL}: of the mean Dice, by bootstrap over cases. "
        "A label absent in truth and prediction leaves the case out of its mean; one that is "
        "missed or false positive counts with Dice and surface Dice 0 and without distances."
    )
    return _document(parts)


def write_comparison(methods: Mapping[str, Sequence[pd.DataFrame]], output: Path) -> None:
    """Write `comparison.md` and `comparison.json` over several methods and seeds.

    `comparison.json` holds "means" (`across_seeds` of every method), "tests" and "label_tests"
    (`compare_methods`); NaN is null.

    Args:
        methods: name -> long tables, one per seed; the others are compared with the first.
        output: folder, created if it does not exist.

    Raises:
        EvaluationError: the folder cannot be written, or the methods have different cases or
            labels, or were scored in different ways.
    """
    tables = [table for seeds in methods.values() for table in seeds]
    check_protocol(tables)
    tests, label_tests = (compare_methods(methods, by_label=by_label) for by_label in (False, True))
    means = [across_seeds(tables).assign(method=name) for name, tables in methods.items()]
    parts = ["# Comparison", f"- protocol: {_protocol(tables[0])}"]
    parts += ["## Targets, mean over labels", _targets(methods)]
    parts += ["## Dice of every label", markdown_table(label_table(methods, ["dice"]))]
    for title, some in (("Dice", tests), ("Dice of every label", label_tests)):
        if len(some):
            parts += [f"## {title}, Wilcoxon over cases", markdown_table(some.round(4))]
    parts.append(
        "Mean ± SD over seeds, of a single seed's labels over cases; tests take each case's mean "
        f"over seeds, and over labels if they are not tested one by one. low, high: {INTERVAL} of "
        "the difference, by bootstrap over cases. p_holm: p value after Holm's correction over all "
        "tests of its table; *: under 0.05."
    )
    content = {
        "means": _records(pd.concat(means)),
        "tests": _records(tests),
        "label_tests": _records(label_tests),
    }
    write(output / "comparison.json", _json(content))
    write(output / "comparison.md", _document(parts))


def _protocol(table: pd.DataFrame) -> str:
    """Say what was scored and with what tolerance."""
    protocol, tolerance = (table[column].iloc[0] for column in PROTOCOL)
    scans = {
        "whole": "whole scans",
        "cut": "scans cut to the slices that the labels span, as most published numbers",
    }[protocol]
    return scans if pd.isna(tolerance) else f"{scans}; surface Dice at {tolerance:g} mm"


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
            cell = mean_and_sd(row, metric)
            rows.setdefault((method, row["source_matching"]), {})[row["dataset"]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["method", "SM"]).fillna("-")


def _targets(methods: Mapping[str, Sequence[pd.DataFrame]]) -> str:
    """Format the cross-domain tables of the three main metrics, one below the other."""
    parts = []
    for metric, title in MAIN.items():
        part = cross_domain_table(methods, metric).reset_index()
        part.insert(0, "metric", title)
        parts.append(part)
    return markdown_table(pd.concat(parts))


def _document(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
