# SPDX-License-Identifier: Apache-2.0
"""A network whose labels follow thresholds on the intensity, so that the right ones are known."""

import numpy as np
import torch

from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.source_matching import fit
from SRCSMSegmenterLib.terminology import segment_for

CT = IntensityRule("CT", window=(-200.0, 200.0))
THRESHOLDS = (-0.5, 0.25)
"""Normalised intensities from which a voxel is liver, and from which it is spleen."""
SHARPNESS = 40.0
"""Logits per unit of normalised intensity."""


def threshold_weights(network: NetworkConfig) -> dict[str, torch.Tensor]:
    """Set weights by hand: logits cross where the normalised intensity passes `THRESHOLDS`."""
    bias, middle = 3.0, network.kernel[0] // 2
    weights = {name: torch.zeros_like(value) for name, value in UNet(network).state_dict().items()}
    for layer in range(2):  # x + 3 is positive, where the leaky ReLU changes nothing
        weights[f"down.0.convolutions.{layer}.weight"][0, 0, middle, middle, middle] = 1
    weights["down.0.convolutions.0.bias"][:] = bias
    for label in range(1, network.classes):
        weights["head.weight"][label] = SHARPNESS * label
        weights["head.bias"][label] = -SHARPNESS * sum(t + bias for t in THRESHOLDS[:label])
    return weights


def a_bundle(grid: GridSpec, rule: IntensityRule = CT, smoothing: float = 0.0) -> ModelBundle:
    """Make a model of `threshold_weights` on a grid."""
    network = NetworkConfig(classes=3, channels=(1,), kernel=(1, 1, 1), dropout=0.0)
    names = [segment_for("liver", 1), segment_for("spleen", 2)]
    return ModelBundle(
        Description("thresholds", "", tuple(names), rule, grid, smoothing, "", ""),
        network,
        fit([np.arange(-200, 201, dtype=np.int32)]),
        threshold_weights(network),
    )
