# SPDX-License-Identifier: Apache-2.0
"""Validation of an exported network on the cases of its source that were held out."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
from training_runs import SILENT

from srcsm_training.augment.regions import RegionsConfig
from srcsm_training.augment.sequences import SEQUENCES
from srcsm_training.experiments.source_validation import main, validate
from srcsm_training.segmentation.run import run_training
from SRCSMSegmenterLib.models.bundle import load_bundle

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_an_exported_network_gets_the_scores_that_its_training_measured(
    tmp_path, folder, cache, capsys, monkeypatch
):
    config = replace(tiny.config(), regions=RegionsConfig(share=0.7))
    run_training(folder, config, tmp_path / "run", cache=cache, limits=SILENT)
    curve = pd.read_csv(tmp_path / "run" / "curve.csv").dropna(subset="dice")
    best = curve.loc[(curve["dice"] + curve["randomised"]).idxmax()]
    bundle = load_bundle(tmp_path / "run" / "model")
    monkeypatch.setenv("SRCSM_CACHE", str(cache))
    scores = validate(bundle, folder)
    assert scores.keys() == {"dice", "randomised", *SEQUENCES}
    for kind, dice in scores.items():
        assert np.nanmean(dice) == pytest.approx(best[kind], abs=0.02)

    assert main([str(tmp_path / "run" / "model"), "--data", str(folder)]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert head.startswith("| network | dice | randomised | T1 |")
    assert f"{np.nanmean(scores['T1']):.3f}" in row
