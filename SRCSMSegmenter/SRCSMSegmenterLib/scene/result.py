# SPDX-License-Identifier: Apache-2.0
"""A result of the network before it is put into Slicer's scene (results.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..geometry import Volume


@dataclass(frozen=True)
class SegmentedOrgan:
    """An organ of a result.

    Attributes:
        label: its value in the label map.
        color: RGB, 0-255.
        terminology: the value of the segment tag TerminologyEntry.
        volume_ml: on the volume's own grid.
        least_certain: (slice, uncertainty in mm), the least certain first; see
            `inference.Segmentation.least_certain`.
    """

    name: str
    label: int
    color: tuple[int, int, int]
    terminology: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A label map with what it shows and how it was made.

    Attributes:
        labels: uint8 (K, J, I).
        organs: those to be shown; other values of `labels` are background.
        probabilities: organ's name -> (K, J, I) on the grid of `labels`, for refinement.
        attributes: kept with the segmentation under "SRCSM.<key>".
    """

    labels: Volume
    organs: tuple[SegmentedOrgan, ...]
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
