# SPDX-License-Identifier: Apache-2.0
"""Pixels of a SAM: intensities normalised by the rule that its checkpoint was trained with."""

from dataclasses import dataclass

import numpy as np

from SRCSMSegmenterLib.errors import ConfigError, VolumeError
from SRCSMSegmenterLib.modality import guess_modality


@dataclass(frozen=True)
class PixelRule:
    """Normalisation of raw intensities.

    The window (CT), or the quantiles of the whole volume (MR), are mapped to the lower and upper
    value; intensities beyond are clipped. With `equalise`, each slice's histogram is equalised
    between its own minimum and maximum, for CT after clipping to the window.

    Attributes:
        lower, upper: pixel values.
        window: lower and upper HU, for CT.
        quantiles: lower and upper quantile, for MR.
        equalise: equalise histograms slice by slice.
        mean, deviation: one value for each channel of the encoder, or one for all; pixels are
            standardised by them before the encoder (`embeddings.encode`).
    """

    lower: float
    upper: float
    window: tuple[float, float] = (-125.0, 275.0)
    quantiles: tuple[float, float] = (0.005, 0.995)
    equalise: bool = False
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not (self.lower < self.upper and self.window[0] < self.window[1]):
            raise ConfigError(f"A lower value must lie below its upper one: {self}.")
        if not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise ConfigError(f"quantiles are two of 0 to 1, in order, not {self.quantiles}.")
        if len(self.mean) != len(self.deviation) or not all(d > 0 for d in self.deviation):
            raise ConfigError(f"mean and deviation need one value a channel, got {self}.")

    @property
    def fill(self) -> float:
        """The value of pixels that show no slice: black."""
        return self.lower


OFFICIAL = PixelRule(0.0, 255.0, mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375))
"""Rule of the official checkpoints: SAM's mean and deviation of RGB on 0..255."""

UNIT = PixelRule(0.0, 1.0)
"""Rule of MedSAM."""

EQUALISED = PixelRule(0.0, 1.0, equalise=True)
"""Rule of Wang et al. for the decoders they fine-tune."""

SRCSM = PixelRule(-1.0, 1.0)
"""Rule of this program's small SAMs."""

SAMPLES = 2**21
"""Voxels of larger volumes that quantiles are estimated from, drawn with a fixed seed. The error is
about 0.0001 of the distribution."""


def to_pixels(slices: np.ndarray, rule: PixelRule, modality: str | None = None) -> np.ndarray:
    """Normalise raw intensities to pixels.

    Args:
        slices: (n, rows, columns) of any real dtype, all slices of a volume, as quantiles are
            those of all of them.
        rule: the SAM's normalisation.
        modality: "CT" or "MR"; None guesses (`guess_modality`).

    Returns:
        (n, rows, columns) float32 from `rule.lower` to `rule.upper`; `rule.lower` everywhere if a
        slice or volume has one value only.

    Raises:
        VolumeError: NaN or infinite voxels.
    """
    values = np.asarray(slices, np.float32)
    if not np.isfinite(values).all():
        raise VolumeError("The volume has NaN or infinite voxels; replace them and try again.")
    is_ct = (modality or guess_modality(slices)) == "CT"
    if rule.equalise:
        if is_ct:
            values = values.clip(*rule.window)
        even = np.stack([_equalised(image) for image in values])
    else:
        low, high = rule.window if is_ct else _quantiles(values, rule.quantiles)
        even = _unit(values, float(low), float(high))
    even *= np.float32(rule.upper - rule.lower)
    even += np.float32(rule.lower)
    return even


def _quantiles(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Estimate two quantiles of an array of any shape."""
    if values.size > SAMPLES:
        drawn = np.random.default_rng(0)
        values = values[tuple(drawn.integers(length, size=SAMPLES) for length in values.shape)]
    return np.quantile(values, shares)


def _unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low to 0 and high to 1, clipped, in an array of any shape; to 0 if low equals high."""
    if not low < high:
        return np.zeros_like(values)
    scaled = values - np.float32(low)
    scaled /= np.float32(high - low)
    return scaled.clip(0, 1, out=scaled)


def _equalised(image: np.ndarray) -> np.ndarray:
    """Equalise the histogram, of 256 grey values, of a slice (rows, columns) to 0..1."""
    grey = np.rint(_unit(image, float(image.min()), float(image.max())) * 255).astype(np.uint8)
    summed = np.bincount(grey.ravel(), minlength=256).cumsum()
    first = summed[grey.min()]  # the darkest value stays black
    table = (summed - first).clip(0) / max(1, grey.size - first)
    return table.astype(np.float32)[grey]
