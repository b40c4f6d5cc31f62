# SPDX-License-Identifier: Apache-2.0
"""Degradation after random convolution: bias fields, coarse sampling and noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from ..engine.keys import NOT_NEGATIVE, SHARE, Range, Settings, key
from .spatial import spline_field

CONTROL_POINTS = 5
"""Control points of a bias field, per axis."""


@dataclass(frozen=True)
class DegradationConfig(Settings):
    """Frequency and strength of the degradations.

    Attributes:
        chance: of each kind of degradation, per sample; 0: none.
        bias: binary logarithm of a bias field's largest factor.
        coarseness: largest factor by which a sample is sampled more coarsely, either along K or
            along I and J, and interpolated back.
        noise: largest standard deviation of Gaussian noise, normalised intensities.
    """

    chance: float = key(0.0, SHARE, paper="0")
    bias: float = key(0.6, NOT_NEGATIVE)
    coarseness: float = key(3.0, Range(least=1))
    noise: float = key(0.1, NOT_NEGATIVE)

    section: ClassVar[str] = "degradation."


@torch.no_grad()
def degraded(
    images: torch.Tensor, config: DegradationConfig, generator: torch.Generator
) -> torch.Tensor:
    """Degrade a part of the samples, each kind with the configured chance.

    Args:
        images: (N, 1, K, J, I) float32, normalised, -1 being air.
        generator: source of all random numbers, on the CPU.

    Returns:
        (N, 1, K, J, I) float32.
    """
    if not config.chance:
        return images
    return torch.stack([_degraded(image, config, generator) for image in images])


def _degraded(
    image: torch.Tensor, config: DegradationConfig, generator: torch.Generator
) -> torch.Tensor:
    biased, coarse, noisy = (torch.rand(3, generator=generator) < config.chance).tolist()
    if biased:
        control = torch.rand(1, *(CONTROL_POINTS,) * 3, generator=generator) * 2 - 1
        field = spline_field(control.to(image.device), image.shape[1:])[None, ..., 0]
        image = (image + 1) * 2 ** (config.bias * field) - 1
    if coarse:
        along_k, factor = torch.rand(2, generator=generator).tolist()
        factor = 1 + (config.coarseness - 1) * factor
        slices, *plane = image.shape[1:]
        if along_k < 0.5:
            size = (max(1, round(slices / factor)), *plane)
        else:
            size = (slices, *(max(1, round(n / factor)) for n in plane))
        few = F.interpolate(image[None], size=size, mode="area")
        image = F.interpolate(few, size=image.shape[1:], mode="trilinear")[0]
    if noisy:
        deviation = config.noise * float(torch.rand((), generator=generator))
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        image = image + deviation * noise
    return image
