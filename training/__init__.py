# SPDX-License-Identifier: Apache-2.0
"""Headless training, evaluation and benchmarks (installed as ``srcsm_training``)."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:  # the same names for type checkers, which do not see `__getattr__`'s
    from .augment.dictionary import RandSemanticConvd as RandSemanticConvd
    from .augment.dictionary import SourceMatchd as SourceMatchd
    from .augment.random_convolution import random_convolution as random_convolution
    from .augment.random_networks import NetworkSettings as NetworkSettings
    from .augment.regions import RegionsConfig as RegionsConfig
    from .augment.semantic import SemanticRandomConvolution as SemanticRandomConvolution
    from .data.dataset import read_dataset as read_dataset

__all__ = [*PUBLIC]
__getattr__, __dir__ = public_names(__name__, PUBLIC)
