# SPDX-License-Identifier: Apache-2.0
"""A network with random weights, of which nothing is known but that it runs."""

import tiny
import torch

from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.source_matching import fit, to_integers
from SRCSMSegmenterLib.terminology import segment_for

CT = IntensityRule("CT", window=(-200.0, 300.0))


def a_random_bundle(name: str) -> ModelBundle:
    """Make a model of a liver and a spleen, of CT; the same one each time."""
    network = NetworkConfig(classes=3, channels=(4, 6), norm="instance", dropout=0.0)
    torch.manual_seed(3)
    return ModelBundle(
        Description(
            name,
            "Liver and spleen",
            (segment_for("liver", 1), segment_for("spleen", 2)),
            CT,
            GridSpec((16, 16, 8), (3.0, 2.75, 6.0)),
            1.0,
            "Abdominal CT",
            "None",
        ),
        network,
        fit(to_integers(tiny.phantom(seed, "CT")[0], CT) for seed in (5, 6)),
        UNet(network).state_dict(),
    )
