# SPDX-License-Identifier: Apache-2.0
"""The source domain: folds, and the rule of its intensities."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

from srcsm_training.engine.config import with_overrides
from srcsm_training.engine.source_domain import intensity_rule, open_source, split
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.intensity import IntensityRule


def test_folds_deal_out_the_sorted_cases():
    cases = [SimpleNamespace(name=name) for name in "abcdefg"]

    def names(**data):
        config = tiny.config()
        parts = split(cases, replace(config.data, **data))
        return ["".join(case.name for case in part) for part in parts]

    assert names(folds=3, fold=0) == ["bcef", "adg"]
    assert names(folds=3, fold=1) == ["acdfg", "be"]
    assert names(folds=3, fold=2) == ["abdeg", "cf"]
    assert names(folds=0) == ["abcdefg", ""]
    assert names(validation=("a", "[ef]")) == ["bcdg", "aef"]
    with pytest.raises(ConfigError, match=r"matches data\.validation"):
        names(validation=("x*",))
    with pytest.raises(ConfigError, match="No case is left"):
        names(folds=1)
    with pytest.raises(ConfigError, match="No case is left"):
        names(validation=("*",))


def test_the_intensity_rule_of_a_source(tmp_path, folder):
    def rule(folder, *overrides):
        data = with_overrides(tiny.config(), list(overrides)).data
        source = open_source(folder, data, check=False)
        return intensity_rule(data, source)

    clipped = tiny.write_dataset(tmp_path / "clipped")
    for number, name in enumerate("abc"):
        image, labels = tiny.phantom(number)
        tiny.write_case(clipped, name, image.clip(-125, 215), labels)
    assert rule(folder) == IntensityRule("CT", window=(-1023, 1024))
    assert rule(clipped) == IntensityRule("CT", window=(-125, 215))
    alone = "data.validation=[a, b]"  # one training case says nothing of the others
    assert rule(clipped, alone) == IntensityRule("CT", window=(-1023, 1024))
    assert rule(clipped, "data.window=[-100, 300]") == IntensityRule("CT", window=(-100, 300))
    assert rule(clipped, "data.modality=MR") == IntensityRule("MR")
    assert rule(clipped, "data.modality=MR", "data.maximum_percentile=99") == IntensityRule(
        "MR", maximum_percentile=99
    )
