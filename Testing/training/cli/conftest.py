# SPDX-License-Identifier: Apache-2.0
"""What the tests of commands share: tiny scans, and a shipped network."""

import pytest
import tiny
from random_network import a_random_bundle

from SRCSMSegmenterLib.models.bundle import save_bundle


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Two targets, CT and MR, of one anatomy."""
    folder = tmp_path_factory.mktemp("datasets")
    return {m: tiny.write_dataset(folder / f"Dataset_{m}", 2, m) for m in ("CT", "MR")}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of shipped models that holds a random network, abdomen-ct."""
    bundle = a_random_bundle("abdomen-ct")
    save_bundle(tmp_path / "models" / "abdomen-ct", bundle, "# The card\n")
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def scan(datasets):
    return datasets["MR"] / "imagesTr" / "b_0000.nii.gz"
