# SPDX-License-Identifier: Apache-2.0
"""Paired tests between methods, and their correction for the number of tests.

The tables are those of `scores`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from .scores import ANY_SETTING, GROUP, PROTOCOL, EvaluationError, bootstrap_interval


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods on the same cases.

    Attributes:
        cases: number of pairs.
        first, second: means over the cases.
        difference: second minus first.
        low, high: bootstrap interval of the difference, see `bootstrap_interval`.
        p_value: two-sided, of the Wilcoxon signed-rank test.
    """

    cases: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def paired_test(first: pd.DataFrame, second: pd.DataFrame, metric: str = "dice") -> PairedTest:
    """Compare two methods by a Wilcoxon signed-rank test (scipy) over the cases' means.

    Args:
        first, second: long tables of one SM setting each; concatenate those of several seeds. A
            case counts with its mean over labels and seeds.
        metric: one of `METRICS`; a case is left out if it is NaN for either method.

    Raises:
        EvaluationError: the tables hold different cases, several SM settings, or scores of
            different protocols.
    """
    if max(table["source_matching"].nunique() for table in (first, second)) > 1:
        raise EvaluationError("A paired test needs one SM setting on either side; select it first.")
    check_protocol([first, second])
    before, after = (t.groupby(["dataset", "case"])[metric].mean() for t in (first, second))
    unpaired = before.index.symmetric_difference(after.index)
    if len(unpaired):
        names = ", ".join("/".join(name) for name in unpaired)
        raise EvaluationError(f"A paired test needs the same cases on both sides; alone: {names}.")
    pairs = pd.DataFrame({"first": before, "second": after}).dropna()
    change = (pairs["second"] - pairs["first"]).to_numpy()
    p_value = wilcoxon(pairs["first"], pairs["second"]).pvalue if change.any() else 1.0
    means = pairs["first"].mean(), pairs["second"].mean()
    difference = means[1] - means[0]
    numbers = (*means, difference, *bootstrap_interval(change), p_value)
    return PairedTest(len(pairs), *map(float, numbers))


def check_protocol(tables: Sequence[pd.DataFrame]) -> None:
    """Check that scores were measured in one way: whole or cut scans, one tolerance.

    Raises:
        EvaluationError: they were not.
    """
    for column in PROTOCOL:
        values = sorted({value for table in tables for value in table[column].dropna().unique()})
        if len(values) > 1:
            raise EvaluationError(
                f"Scores of different {column} cannot be compared: "
                f"{' and '.join(map(str, values))}; evaluate again with the same options."
            )


def compare_methods(
    methods: Mapping[str, Sequence[pd.DataFrame]], metric: str = "dice", by_label: bool = False
) -> pd.DataFrame:
    """Test every method against the first, for each target and SM setting of both.

    Label maps of another tool have no SM setting and are tested against all settings.

    Args:
        methods: name -> long tables, one per seed.
        metric: one of `METRICS`.
        by_label: test every label on its own, instead of each case's mean over its labels.

    Returns:
        Columns method, against, dataset, source_matching ("on against -" if only one side has SM
        settings), label ("mean" if not `by_label`), the fields of `PairedTest`, and `p_holm`, the
        p value after Holm's correction over all tests of the table.

    Raises:
        EvaluationError: see `paired_test`.
    """
    (reference, baseline), *others = [(name, pd.concat(t)) for name, t in methods.items()]
    rows = []
    for method, table in others:
        for (dataset, setting), part in table.groupby(GROUP, sort=False):
            for (target, known), base in baseline.groupby(GROUP, sort=False):
                if dataset != target or not (setting == known or ANY_SETTING in (setting, known)):
                    continue
                pairing = setting if setting == known else f"{setting} against {known}"
                labels = part["label"].unique()
                if set(labels) != set(base["label"]):
                    raise EvaluationError(
                        f"{method} and {reference} were scored on different labels of {dataset}; "
                        "evaluate again with the same --map-labels."
                    )
                for label in labels if by_label else ["mean"]:
                    sides = (base, part)
                    if by_label:
                        sides = tuple(side[side["label"] == label] for side in sides)
                    rows.append(
                        {
                            "method": method,
                            "against": reference,
                            "dataset": dataset,
                            "source_matching": pairing,
                            "label": label,
                            **asdict(paired_test(*sides, metric)),
                        }
                    )
    tests = pd.DataFrame(rows)
    return tests.assign(p_holm=holm(tests["p_value"])) if rows else tests


def source_matching_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Test SM on against off by Dice, a row per dataset that has both; empty if none has."""
    rows = []
    for dataset, part in table.groupby("dataset", sort=False):
        off, on = (part[part["source_matching"] == setting] for setting in ("off", "on"))
        if len(off) and len(on):
            rows.append({"dataset": dataset} | asdict(paired_test(off, on)))
    tests = pd.DataFrame(rows)
    return tests.assign(p_holm=holm(tests["p_value"])) if rows else tests


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p values for their number by Holm's step-down method.

    Returns:
        Adjusted p values, at most 1, in the order of the given ones; NaN stays NaN and counts as
        no test.
    """
    adjusted = np.array(p_values, dtype=float)
    tested = np.flatnonzero(~np.isnan(adjusted))
    order = tested[np.argsort(adjusted[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(adjusted[order] * factors), 1.0)
    return adjusted
