# SPDX-License-Identifier: Apache-2.0
"""Air in CT, which is no part of an organ that holds none.

A network that was trained on another modality may label a lung as liver: black and smooth, it could
be one. In Hounsfield units air is known for certain, and the labels of the training scans tell
which organs hold none.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .intensity import INTEGER_RANGE, IntensityRule

LUNG = -500.0
"""HU below which more than half of a voxel is air."""

FAT = -120.0
"""HU above which fat begins; a CT that was clipped above `LUNG` still shows air, as its minimum, if
it was clipped below this."""

MARGIN = 5.0
"""HU above such a minimum that count as air too."""

MR_AIR = 0.02
"""Share of an MR's maximum up to which a voxel has no signal."""

ROUNDING = 0.01
"""Scaled intensity by which smoothed air may exceed the intensity of air."""

HELD = 0.01
"""Share of an organ's voxels from which on it holds air."""


def air_limit(lowest: float, rule: IntensityRule) -> float | None:
    """Return the HU up to which the voxels of a CT are air.

    Args:
        lowest: smallest voxel of the scan, HU.
        rule: whose window clips the scan.

    Returns:
        HU, or None if the clipped scan does not tell air from fat.
    """
    lowest = max(lowest, rule.window[0])
    return max(LUNG, lowest + MARGIN) if lowest <= FAT else None


def find_air(
    array: np.ndarray,
    convert: Callable[[np.ndarray], np.ndarray],
    image: torch.Tensor,
    rule: IntensityRule,
) -> torch.Tensor | None:
    """Find the voxels of a resampled CT that are air alone.

    Args:
        array: (K, J, I) voxels of the scan, HU.
        convert: makes scaled float32 of any block of them, and keeps their order.
        image: (K, J, I) float32, scaled, smoothed and resampled.
        rule: see `air_limit`.

    Returns:
        bool, of the image's shape; None if the scan does not tell air from fat.
    """
    limit = air_limit(float(array.min()), rule)
    if limit is None:
        return None
    voxel = np.full((1, 1, 1), min(limit, float(array.max()))).astype(array.dtype)
    return image <= float(convert(voxel)[0, 0, 0]) + ROUNDING


def without_air(probabilities: torch.Tensor, air: torch.Tensor, labels: Sequence[int]) -> None:
    """Give the probability of labels to background in voxels of air, in place.

    Args:
        probabilities: (classes, K, J, I), background first.
        air: (K, J, I) bool.
        labels: those that hold no air.
    """
    for label in labels:
        chance = torch.where(air, probabilities[label], 0)
        probabilities[label] -= chance
        probabilities[0] += chance


def airless_labels(
    scans: Sequence[tuple[np.ndarray, np.ndarray]], rule: IntensityRule, classes: int
) -> tuple[int, ...]:
    """Find the labels that hold no air: less than `HELD` of their voxels, over all scans.

    Args:
        scans: scaled intensities and labels of each scan, both (K, J, I).
        classes: labels, background included.

    Returns:
        Labels that some scan shows; none if the scans do not tell air from fat.
    """
    is_ct = rule.modality == "CT"
    limit = air_limit(rule.window[0], rule) if is_ct else MR_AIR * INTEGER_RANGE
    if limit is None:
        return ()
    voxels, empty = np.zeros((2, classes))
    for image, labels in scans:
        shown = labels < classes
        voxels += np.bincount(labels[shown], minlength=classes)
        empty += np.bincount(labels[shown & (image <= limit)], minlength=classes)
    airless = (voxels > 0) & (empty < HELD * voxels)
    return tuple(np.flatnonzero(airless[1:]) + 1)
