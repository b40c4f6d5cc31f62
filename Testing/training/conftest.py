# SPDX-License-Identifier: Apache-2.0
"""Fixtures of trainings on `tiny`'s dataset."""

from pathlib import Path

import pytest
import tiny
from training_runs import RULE

from srcsm_training.data.cases import PreparedCase, prepare_cases
from srcsm_training.data.dataset import read_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An nnU-Net raw dataset of three tiny cases, one for all tests of a module."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """An empty folder for preprocessed cases, one for all tests of a module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cases(folder, cache) -> tuple[list[PreparedCase], list[PreparedCase]]:
    """Training: b and c. Validation: a."""
    first, *others = prepare_cases(read_dataset(folder).cases, RULE, 1.0, tiny.config().grid, cache)
    return others, [first]
