# SPDX-License-Identifier: Apache-2.0
"""Fixtures of trainings: a tiny dataset, and a cache of its preprocessed cases."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An nnU-Net raw dataset of three tiny cases, one for all tests of a module."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """An empty folder for preprocessed cases, one for all tests of a module."""
    return tmp_path_factory.mktemp("cache")
