# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: rows of its curve."""

import math

from srcsm_training.engine.run_folder import curve_row


def test_curve_rows_leave_dice_open_between_validations():
    row = {"step": 50, "loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "seconds": 0.1}
    assert curve_row(row, ["liver"])["dice_liver"] == ""
    assert curve_row(row, ["liver"])["dice"] == ""
    scored = curve_row(row | {"dice": [0.5, math.nan, 0.25]}, ["liver", "spleen", "aorta"])
    assert scored["dice"] == 0.375
    assert scored["dice_aorta"] == 0.25
