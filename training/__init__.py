# SPDX-License-Identifier: Apache-2.0
"""Headless training, evaluation and benchmarks (installed as ``srcsm_training``)."""

from SRCSMSegmenterLib.public_names import public_names

PUBLIC = {
    "NetworkSettings": "augment.random_networks",
    "RandSemanticConvd": "augment.dictionary",
    "RegionsConfig": "augment.regions",
    "SemanticRandomConvolution": "augment.semantic",
    "SourceMatchd": "augment.dictionary",
    "random_convolution": "augment.random_convolution",
    "read_dataset": "data.dataset",
}
"""Public names, and the module of each; they are imported when they are asked for."""

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
