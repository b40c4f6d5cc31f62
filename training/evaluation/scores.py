# SPDX-License-Identifier: Apache-2.0
"""Scores of segmentations as one long table: reading and statistics.

The long table has a row per dataset, setting of source matching (SM), case and label, as
`evaluate.evaluate` returns it and `read_scores` reads it.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from SRCSMSegmenterLib.atomic import atomic_write, read_regular
from SRCSMSegmenterLib.errors import SRCSMError

from .metrics import Status

METRICS = (
    "dice", "surface_dice", "assd", "hd95", "distance_median", "distance_sd", "distance_max",
)  # fmt: skip
MAIN = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "assd": "ASSD (mm)",
    "hd95": "HD95 (mm)",
}
"""The metrics that reports show, and their titles."""

GROUP = ["dataset", "source_matching"]
PROTOCOL = ("protocol", "tolerance")
"""Columns in which scores must agree to be compared: the protocol, "whole" or "cut" scans, and the
tolerance of the surface Dice in mm. Tables of older versions have none: whole, no surface Dice."""

RESAMPLES = 9999
"""Bootstrap samples of an interval."""

CONFIDENCE = 0.95

ANY_SETTING = "-"
"""SM setting of label maps that another tool wrote."""


class EvaluationError(SRCSMError):
    """Results that cannot be written, or that do not belong together."""


def read_scores(path: Path) -> pd.DataFrame:
    """Read the long table from a `cases.csv`.

    Raises:
        EvaluationError: unreadable, or another table.
    """
    try:
        table = pd.read_csv(
            io.BytesIO(read_regular(path)),
            dtype=dict.fromkeys((*GROUP, "case", "label", "status"), str),
            keep_default_na=False,
            na_values={metric: [""] for metric in METRICS},
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read the scores {path}: {error}.") from error
    for column, value in (("protocol", "whole"), ("tolerance", np.nan), ("surface_dice", np.nan)):
        if column not in table:
            table[column] = value
    missing = {*GROUP, "case", "label", "status", *METRICS} - set(table.columns)
    if missing:
        raise EvaluationError(f"{path} is no table of scores; it lacks {sorted(missing)}.")
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Compute statistics over the cases of each dataset, SM setting and label.

    Returns:
        A row per label: how many cases were scored, missed, false positive, absent; for every
        metric the mean, median, sd (n - 1), min and max over cases, e.g. `dice_mean`; for those
        of `MAIN` also the `bootstrap_interval` of the mean, `dice_low` and `dice_high`. Absent
        cases are left out; missed and false positive cases have Dice 0 and no distances. A row
        with the label "mean" has the same statistics of each case's mean over its labels, and the
        sums of the counts.
    """
    keys, metrics = [*GROUP, "label"], list(METRICS)
    case_means = table.groupby([*GROUP, "case"], sort=False)[metrics].mean().reset_index()
    cases = pd.concat([table, case_means.assign(label="mean")])
    by_label = cases.groupby(keys, sort=False)
    statistics = by_label[metrics].agg(["mean", "median", "std", "min", "max"])
    statistics.columns = [f"{m}_{s.replace('std', 'sd')}" for m, s in statistics.columns]
    for metric in MAIN:
        intervals = by_label[metric].agg(bootstrap_interval)
        statistics[f"{metric}_low"], statistics[f"{metric}_high"] = zip(*intervals, strict=True)
    counted = pd.concat([table, table.assign(label="mean")])
    counts = counted.groupby([*keys, "status"]).size().unstack("status", fill_value=0)
    counts = counts.reindex(statistics.index, columns=list(get_args(Status)), fill_value=0)
    return counts.join(statistics).reset_index()


def across_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Compute mean and sd (n - 1) over repeated trainings, each with its own table.

    Returns:
        A row per dataset, SM setting and label ("mean" included): `seeds`, and for every metric
        `_mean` and `_sd` over the seeds of the mean over cases.
    """
    means = pd.concat([summarise(table) for table in tables])
    by_label = means.groupby([*GROUP, "label"], sort=False)
    columns = {"seeds": by_label.size()}
    for metric in METRICS:
        columns[f"{metric}_mean"] = by_label[f"{metric}_mean"].mean()
        columns[f"{metric}_sd"] = by_label[f"{metric}_mean"].std()
    return pd.DataFrame(columns).reset_index()


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean, at `CONFIDENCE`.

    The cases are drawn `RESAMPLES` times with replacement, with the same seed every time.

    Args:
        values: one number a case; NaN is left out.

    Returns:
        Its ends; NaN if there are fewer than two cases.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return np.nan, np.nan
    tail = 50 * (1 - CONFIDENCE)
    means = values[_resamples(len(values))].mean(axis=1)
    low, high = np.percentile(means, (tail, 100 - tail))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(cases: int) -> np.ndarray:
    return np.random.default_rng(0).integers(cases, size=(RESAMPLES, cases))


def worst_cases(table: pd.DataFrame, count: int) -> dict[tuple[str, str, str], float]:
    """Return the `count` cases with the lowest mean Dice of each dataset and SM setting.

    Returns:
        (dataset, SM setting, case) -> mean Dice.
    """
    dice = table.groupby([*GROUP, "case"], sort=False)["dice"].mean().dropna()
    return dice.sort_values().groupby(GROUP, sort=False).head(count).to_dict()


def write(path: Path, content: str | bytes) -> None:
    """Write a file in one go; its folder is created if it does not exist.

    Raises:
        EvaluationError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise EvaluationError(
            f"Cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from error
