# SPDX-License-Identifier: Apache-2.0
"""Intensities as a SAM checkpoint wants them, each by a rule of its own."""

from dataclasses import dataclass

import numpy as np

from SRCSMSegmenterLib.errors import ConfigError, VolumeError
from SRCSMSegmenterLib.modality import guess_modality


@dataclass(frozen=True)
class PixelRule:
    """How raw intensities become pixels.

    The window, or the quantiles of the whole volume, go to the lower and upper value; what lies
    beyond is clipped. Where `equalise` is set, each slice's own minimum and maximum go there and
    its histogram is made even; of CT the window is cut out before.

    Attributes:
        lower, upper: pixel values.
        window: HU, for CT.
        quantiles: for MR.
        equalise: per slice, see above.
        mean, deviation: per channel of the encoder, or one for all; subtracted and divided by on
            the way into the encoder (`embeddings.encode`).
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
        """The pixel value where a canvas shows nothing: black."""
        return self.lower


OFFICIAL = PixelRule(0.0, 255.0, mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375))
"""The official checkpoints': SAM's mean and deviation of RGB on 0..255."""

UNIT = PixelRule(0.0, 1.0)
"""MedSAM's."""

EQUALISED = PixelRule(0.0, 1.0, equalise=True)
"""That of Wang et al. for the decoders they fine-tune."""

SRCSM = PixelRule(-1.0, 1.0)
"""Our small SAMs'."""

SAMPLES = 2**21
"""Voxels that quantiles are taken of: of larger volumes so many, drawn the same way every time.
That is off by about 0.0001 of the distribution."""


def to_pixels(slices: np.ndarray, rule: PixelRule, modality: str | None = None) -> np.ndarray:
    """Raw intensities -> pixels.

    Args:
        slices: (n, rows, columns) of any real dtype, all slices of a volume: what is bright is
            decided once for all of them.
        modality: "CT" or "MR"; None guesses (`guess_modality`).

    Returns:
        (n, rows, columns) float32 from `rule.lower` to `rule.upper`; a slice or volume of one
        value is `rule.lower` everywhere.

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
    if values.size > SAMPLES:
        drawn = np.random.default_rng(0)
        values = values[tuple(drawn.integers(length, size=SAMPLES) for length in values.shape)]
    return np.quantile(values, shares)


def _unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linear, low -> 0, high -> 1, clipped; 0 everywhere where they are the same."""
    if not low < high:
        return np.zeros_like(values)
    scaled = values - np.float32(low)
    scaled /= np.float32(high - low)
    return scaled.clip(0, 1, out=scaled)


def _equalised(image: np.ndarray) -> np.ndarray:
    """A slice whose grey values, 256 of them, are evenly frequent from 0 to 1."""
    grey = np.rint(_unit(image, float(image.min()), float(image.max())) * 255).astype(np.uint8)
    summed = np.bincount(grey.ravel(), minlength=256).cumsum()
    first = summed[grey.min()]  # the darkest value stays black
    table = (summed - first).clip(0) / max(1, grey.size - first)
    return table.astype(np.float32)[grey]
