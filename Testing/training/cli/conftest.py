# SPDX-License-Identifier: Apache-2.0
"""What the tests of commands share: tiny scans, and a shipped network."""

import pytest
import tiny
import torch

from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle, save_bundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.source_matching import fit, to_integers
from SRCSMSegmenterLib.terminology import segment_for

RULE = IntensityRule("CT", window=(-200.0, 300.0))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Two targets, CT and MR, of one anatomy."""
    folder = tmp_path_factory.mktemp("datasets")
    return {m: tiny.write_dataset(folder / f"Dataset_{m}", 2, m) for m in ("CT", "MR")}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of shipped models that holds a random network, abdomen-ct."""
    network = NetworkConfig(classes=3, channels=(4, 6), norm="instance", dropout=0.0)
    torch.manual_seed(3)
    bundle = ModelBundle(
        Description(
            "abdomen-ct",
            "Liver and spleen",
            (segment_for("liver", 1), segment_for("spleen", 2)),
            RULE,
            GridSpec((16, 16, 8), (3.0, 2.75, 6.0)),
            1.0,
            "Abdominal CT",
            "None",
        ),
        network,
        fit(to_integers(tiny.phantom(seed, "CT")[0], RULE) for seed in (5, 6)),
        UNet(network).state_dict(),
    )
    save_bundle(tmp_path / "models" / "abdomen-ct", bundle, "# The card\n")
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def scan(datasets):
    return datasets["MR"] / "imagesTr" / "b_0000.nii.gz"
