# SPDX-License-Identifier: Apache-2.0
"""Long tables of scores for tests."""

import numpy as np
import pandas as pd

from srcsm_training.evaluation.metrics import Score

# Differences on minus off: +1, -2, +3, +4, -5, +6, +7 and +8 hundredths.
OFF = [0.50, 0.60, 0.55, 0.40, 0.70, 0.45, 0.52, 0.48]
ON = [0.51, 0.58, 0.58, 0.44, 0.65, 0.51, 0.59, 0.56]


def table_of(rows, dataset="MR", setting="off", seconds=1.0):
    """A long table from (case, label, status, dice, assd) rows."""
    scores = [
        Score(case, label, status, dice=dice, assd=assd, hd95=2 * assd)
        for case, label, status, dice, assd in rows
    ]
    run = {"dataset": dataset, "source_matching": setting, "seconds": seconds}
    run |= {"protocol": "whole", "tolerance": 2.0}
    return pd.DataFrame([run | vars(score) for score in scores])


def dice_table(values, dataset="MR", setting="off"):
    """One label, one case a value."""
    rows = [(f"case{n}", "liver", "scored", value, 1.0) for n, value in enumerate(values)]
    return table_of(rows, dataset, setting)


def three_cases():
    """Three cases: c misses the spleen, a has none and b's is scored."""
    return table_of(
        [
            ("a", "liver", "scored", 0.9, 1.0),
            ("a", "spleen", "absent", np.nan, np.nan),
            ("b", "liver", "scored", 0.8, 2.0),
            ("b", "spleen", "scored", 0.6, 4.0),
            ("c", "liver", "scored", 0.4, 6.0),
            ("c", "spleen", "missed", 0.0, np.nan),
        ]
    )
