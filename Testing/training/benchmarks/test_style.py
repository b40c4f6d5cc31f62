# SPDX-License-Identifier: Apache-2.0
"""The measured costs of a style intervention: a row for every stage."""

import pytest
import style_tiny

from srcsm_training.benchmarks.style import measured


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path):
    table = measured(style_tiny.config("swap.batch=3"), None, "cpu", tmp_path)
    names = [row.what.split(",")[0] for row in table.rows]
    assert names == [
        *("prepare", "phantom", "base", "base", "tune", "control", "swap", "check"),
        "train on pairs",
    ]
    for row in table.rows:
        seconds, minutes, memory = row.values
        assert 0 < seconds < minutes * 60
        assert 0.1 < memory < 8
