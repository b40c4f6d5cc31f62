# SPDX-License-Identifier: Apache-2.0
"""The style ablation: one budget for all rows, and a table that says what was not run."""

import pytest

from srcsm_training.engine.config import with_overrides
from srcsm_training.experiments.style_ablation import DATASETS, METHODS, report, runs_of
from srcsm_training.segmentation.presets import preset


@pytest.mark.parametrize("domain", DATASETS)
def test_every_training_sees_as_many_pictures(tmp_path, domain):
    found = {}
    for run in runs_of(domain, tmp_path):
        mode = f"random_convolution={run.mode}"
        config = with_overrides(preset(run.preset), [mode, *run.settings])
        views = 2 + (config.random_convolution != "off") if config.pairs.use else 1
        assert abs(views * config.optimisation.batch - 32) <= 1
        folder = str(tmp_path / domain / "slices" / "styled" / "abdomen")
        assert config.pairs.styled == ((folder,) if config.pairs.use else ())
        pairs = config.pairs.contrast if config.pairs.use else None
        found[run.name] = (config.random_convolution, pairs, config.regions.share)
    assert found == {
        f"{domain}_plain": ("off", None, 0),
        f"{domain}_pairs": ("off", 0, 0),
        f"{domain}_icm": ("off", 1, 0),
        f"{domain}_src": ("smoothed", None, 0),
        f"{domain}_src_regions": ("smoothed", None, 0.75),
        f"{domain}_src_icm": ("smoothed", 1, 0),
    }


def test_rows_that_were_not_run_are_dashes(tmp_path):
    rows = report(tmp_path).splitlines()[2:]
    assert len(rows) == 2 * len(DATASETS) * len(METHODS)
    assert all(row.endswith("| – | – | – | – | – | – |") for row in rows)
