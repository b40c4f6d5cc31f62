# SPDX-License-Identifier: Apache-2.0
"""The benchmark of SAM Refine in a scene."""

import importlib.util

import pytest
import torch

from srcsm_training.benchmarks import refine


def test_without_slicers_core_it_is_left_out_with_a_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refine.tables(tmp_path, tmp_path, torch.device("cpu")) == ()
    assert capsys.readouterr().err.count("slicer-core is not installed") == 1


def test_without_a_shipped_sam_it_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path))
    assert refine.missing() == "sam-small-mr is not shipped"


@pytest.mark.slow
@pytest.mark.needs_slicer
@pytest.mark.skipif("not shipped" in refine.missing(), reason="no SAM is shipped")
def test_a_row_for_the_slice_and_one_for_the_organ():
    table = refine.refine_table("", torch.device("cpu"), organ=3)
    assert [len(row.values) for row in table.rows] == [3, 3]
    assert [row.what.split(",")[0] for row in table.rows] == [
        "the slice that is looked at",
        "the organ",
    ]
    for one, whole in zip(*(row.values for row in table.rows), strict=True):
        assert 0 < one <= whole
