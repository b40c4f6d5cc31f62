# SPDX-License-Identifier: Apache-2.0
"""Intensity rules: one rule for training, source matching and inference of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .errors import ConfigError, VolumeError

TABLE = 1 << 20
"""Longest lookup table; volumes that span more integers are worked on voxel by voxel."""

INTEGER_RANGE = 2048
"""MR volumes are scaled so that their maximum is this integer (source_matching.py, 1)."""


@dataclass(frozen=True)
class IntensityRule:
    """Rule that turns raw intensities into network input (Thaler et al. 2026).

    Attributes:
        modality: "CT" or "MR".
        window: CT only; HU below and above are clipped. (-1023, 1024) is the full range, divided
            by 2048; any other window is scaled to [-1, 1].
        quantiles: MR only; these two quantiles of the window become -1 and 1.
        maximum_percentile: MR only; the percentile taken for the maximum when a volume is scaled.
            100 is the paper's plain maximum; 99.9 ignores a single bright voxel.
    """

    modality: str
    window: tuple[float, float] = (-1023.0, 1024.0)
    quantiles: tuple[float, float] = (0.05, 0.95)
    maximum_percentile: float = 100.0

    def __post_init__(self) -> None:
        if self.modality not in ("CT", "MR"):
            raise ConfigError(f'modality is "CT" or "MR", not "{self.modality}".')
        object.__setattr__(self, "window", tuple(float(v) for v in self.window))
        object.__setattr__(self, "quantiles", tuple(float(v) for v in self.quantiles))
        if not -np.inf < self.window[0] < self.window[1] < np.inf:
            raise ConfigError(f"window is (lower, upper) in HU, not {self.window}.")
        if not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise ConfigError(f"quantiles are two of 0 to 1, not {self.quantiles}.")
        if not 0 < self.maximum_percentile <= 100:
            raise ConfigError(f"maximum_percentile is up to 100, not {self.maximum_percentile:g}.")


def scale(array: np.ndarray, rule: IntensityRule) -> np.ndarray:
    """Clip (CT) or scale to a maximum of 2048 (MR), before any smoothing.

    Args:
        array: raw intensities, any shape and real dtype.

    Returns:
        float64 array of the same shape; CT inside the rule's window, MR at most 2048 with 0 at 0.

    Raises:
        VolumeError: NaN or infinite voxels, or an MR volume without a positive maximum.
    """
    return scaling(array, rule)(array)


def scaled_voxels(
    array: np.ndarray, rule: IntensityRule
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Prepare `scale` block by block, by one table if the voxels are integers.

    Args:
        array: (K, J, I) raw intensities of any real dtype; left as it is.

    Returns:
        The array, and a function from any block of it to float32 of the block's shape.

    Raises:
        VolumeError: as `scale`.
    """
    function = scaling(array, rule)
    span = integer_span(array)
    if span:
        return array, tabulated(array.dtype, span, function(np.arange(span[0], span[1] + 1)))
    return array, lambda block: function(block).astype(np.float32)


def integer_span(array: np.ndarray) -> tuple[int, int] | None:
    """Find the smallest and the largest of integer voxels, if a table can hold all between."""
    if array.dtype.kind not in "iu":
        return None
    lo, hi = int(array.min()), int(array.max())
    return (lo, hi) if hi - lo < TABLE else None


def tabulated(
    dtype: np.dtype, span: tuple[int, int], values: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function that looks integer voxels up in a table.

    Args:
        dtype: of the voxels.
        span: smallest and largest integer.
        values: (span[1] - span[0] + 1,) what each integer becomes.

    Returns:
        A function from an array of `dtype` to float32 of the same shape.
    """
    values = values.astype(np.float32)
    if dtype.itemsize > 2:
        return lambda block: values.take(block.astype(np.intp) - span[0])
    # The bit pattern of a short integer is its place in the table: no subtraction, no copy.
    bits = np.dtype(f"u{dtype.itemsize}")
    table = np.zeros(1 << (8 * dtype.itemsize), np.float32)
    native = dtype.newbyteorder("=")
    table[np.arange(span[0], span[1] + 1).astype(native).view(bits)] = values
    return lambda block: table.take(block.astype(native, copy=False).view(bits), mode="clip")


def scaling(array: np.ndarray, rule: IntensityRule) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that `scale` applies to every voxel of `array`."""
    if array.dtype.kind not in "iu" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise VolumeError(f"NaN or infinite voxels: {bad}; replace them and try again.")
    if rule.modality == "CT":
        return partial(_clipped, rule=rule)
    top = float(array.max()) if rule.maximum_percentile == 100 else _percentile(array, rule)
    if top <= 0:
        raise VolumeError(f"An MR volume needs a positive maximum, got {top:g}.")
    return partial(_scaled_to_maximum, top=top)


def normalise(window: torch.Tensor, rule: IntensityRule) -> torch.Tensor:
    """Convert scaled, smoothed and resampled intensities to network input.

    Args:
        window: (N, 1, K, J, I) float32; each sample is one window on the network's grid.

    Returns:
        (N, 1, K, J, I); CT within [-1, 1], MR at least -1 and open above.
    """
    if rule.modality == "CT":
        return normalised_ct(window, rule).clamp(-1, 1)
    return normalised_mr(window, rule).clamp(min=-1)


def normalised_ct(window: torch.Tensor, rule: IntensityRule) -> torch.Tensor:
    """Normalise CT without the clamp: x / 2048 for the full range, else window to [-1, 1]."""
    lower, upper = rule.window
    if (lower, upper) == (-1023.0, 1024.0):
        return window / INTEGER_RANGE
    return (window - lower) * (2 / (upper - lower)) - 1


def normalised_mr(window: torch.Tensor, rule: IntensityRule) -> torch.Tensor:
    """Normalise MR without the clamp: the rule's quantiles of each sample become -1 and 1."""
    flat = window.flatten(1)
    count = flat.shape[1]
    lower, upper = (
        flat.kthvalue(1 + round(q * (count - 1)), dim=1).values.view(-1, 1, 1, 1, 1)
        for q in rule.quantiles
    )
    return (window - lower) * (2 / (upper - lower).clamp(min=1e-6)) - 1


def _clipped(array: np.ndarray, rule: IntensityRule) -> np.ndarray:
    values = array.astype(np.float64)
    return np.clip(values, *rule.window, out=values)


def _scaled_to_maximum(array: np.ndarray, top: float) -> np.ndarray:
    values = array.astype(np.float64)
    values *= INTEGER_RANGE
    values /= top
    return np.minimum(values, INTEGER_RANGE, out=values)


def _percentile(array: np.ndarray, rule: IntensityRule) -> float:
    values = array.astype(np.float64)
    return float(np.percentile(values, rule.maximum_percentile, overwrite_input=True))
