# SPDX-License-Identifier: Apache-2.0
"""Scores of segmentations as one long table: reading, statistics and tests.

The long table has a row per dataset, source matching (SM) on or off, case and label, as
`evaluate.evaluate` returns it and `read_scores` reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import pandas as pd
from scipy.stats import wilcoxon

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import SRCSMError

from .metrics import Status

METRICS = ("dice", "assd", "hd95", "distance_median", "distance_sd", "distance_max")
GROUP = ["dataset", "source_matching"]


class EvaluationError(SRCSMError):
    """Results that cannot be written, or that do not belong together."""


def read_scores(path: Path) -> pd.DataFrame:
    """Read the long table from a `cases.csv`.

    Raises:
        EvaluationError: unreadable, or another table.
    """
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys((*GROUP, "case", "label", "status"), str),
            keep_default_na=False,
            na_values={metric: [""] for metric in METRICS},
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read the scores {path}: {error}.") from error
    missing = {*GROUP, "case", "label", "status", *METRICS} - set(table.columns)
    if missing:
        raise EvaluationError(f"{path} is no table of scores; it lacks {sorted(missing)}.")
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Compute statistics over the cases of each dataset, SM setting and label.

    Returns:
        A row per label: how many cases were scored, missed, false positive, absent; for every
        metric the mean, median, sd (n - 1), min and max over cases, e.g. `dice_mean`. Absent
        cases are left out; missed and false positive cases have Dice 0 and no distances. A row
        with the label "mean" has the same statistics of each case's mean over its labels, and the
        sums of the counts.
    """
    keys, metrics = [*GROUP, "label"], list(METRICS)
    case_means = table.groupby([*GROUP, "case"], sort=False)[metrics].mean().reset_index()
    cases = pd.concat([table, case_means.assign(label="mean")])
    by_label = cases.groupby(keys, sort=False)[metrics]
    statistics = by_label.agg(["mean", "median", "std", "min", "max"])
    statistics.columns = [f"{m}_{s.replace('std', 'sd')}" for m, s in statistics.columns]
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


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods on the same cases.

    Attributes:
        cases: number of pairs.
        first, second: means over the cases.
        difference: second minus first.
        p_value: two-sided, of the Wilcoxon signed-rank test.
    """

    cases: int
    first: float
    second: float
    difference: float
    p_value: float


def paired_test(first: pd.DataFrame, second: pd.DataFrame, metric: str = "dice") -> PairedTest:
    """Compare two methods by a Wilcoxon signed-rank test (scipy) over the cases' means.

    Args:
        first, second: long tables of one SM setting each; concatenate those of several seeds. A
            case counts with its mean over labels and seeds.
        metric: one of `METRICS`; a case is left out if it is NaN for either method.

    Raises:
        EvaluationError: the tables hold different cases, or several SM settings.
    """
    if max(table["source_matching"].nunique() for table in (first, second)) > 1:
        raise EvaluationError("A paired test needs one SM setting on either side; select it first.")
    before, after = (t.groupby(["dataset", "case"])[metric].mean() for t in (first, second))
    unpaired = before.index.symmetric_difference(after.index)
    if len(unpaired):
        names = ", ".join("/".join(name) for name in unpaired)
        raise EvaluationError(f"A paired test needs the same cases on both sides; alone: {names}.")
    pairs = pd.DataFrame({"first": before, "second": after}).dropna()
    same = (pairs["first"] == pairs["second"]).all()
    p_value = 1.0 if same else wilcoxon(pairs["first"], pairs["second"]).pvalue
    means = pairs.mean()
    change = means["second"] - means["first"]
    return PairedTest(len(pairs), *map(float, (means["first"], means["second"], change, p_value)))


def compare_methods(methods: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Test the Dice of every method against the first, for each target and SM setting of both.

    Args:
        methods: name -> long tables, one per seed.

    Returns:
        Columns method, against, dataset, source_matching, and the fields of `PairedTest`.
    """
    (reference, baseline), *others = [(name, pd.concat(t)) for name, t in methods.items()]
    known = dict(iter(baseline.groupby(GROUP, sort=False)))
    rows = []
    for method, table in others:
        for key, part in table.groupby(GROUP, sort=False):
            if key in known:
                names = {"method": method, "against": reference}
                test = asdict(paired_test(known[key], part))
                rows.append(names | dict(zip(GROUP, key, strict=True)) | test)
    return pd.DataFrame(rows)


def source_matching_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Test SM on against off by Dice, a row per dataset that has both; empty if none has."""
    rows = []
    for dataset, part in table.groupby("dataset", sort=False):
        off, on = (part[part["source_matching"] == setting] for setting in ("off", "on"))
        if len(off) and len(on):
            rows.append({"dataset": dataset} | asdict(paired_test(off, on)))
    return pd.DataFrame(rows)


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
