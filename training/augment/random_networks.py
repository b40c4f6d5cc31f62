# SPDX-License-Identifier: Apache-2.0
"""Random convolution networks (RCNets, Thaler et al. 2026): drawing and evaluating them.

Networks are drawn first and applied second, so that a draw can be replayed and tested.
"""

import itertools
import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch.nn import functional as F

from SRCSMSegmenterLib.errors import InputError

BLOCK = 2
"""Voxels along each axis that one output of a 3-D convolution on the CPU holds, as channels."""


@dataclass(frozen=True)
class NetworkSettings:
    """Architecture of the random networks; the defaults are the paper's.

    Attributes:
        layers: convolutions of a network.
        channels: between two layers; a network's input and output have one.
        kernels: widths that a layer draws its kernel's from, with equal chance; odd.
        slope: of the leaky ReLU behind every layer, the last included.

    Raises:
        InputError: impossible sizes.
    """

    layers: int = 4
    channels: int = 2
    kernels: tuple[int, ...] = (1, 3)
    slope: float = 0.1

    def __post_init__(self) -> None:
        sizes = self.layers, self.channels
        if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
            raise InputError(
                f"layers and channels are 1 or more, not {self.layers} and {self.channels}."
            )
        if not self.kernels or not all(map(_is_odd, self.kernels)):
            raise InputError(f"kernels are odd widths such as (1, 3), not {self.kernels}.")
        if not math.isfinite(self.slope):
            raise InputError(f"slope is a number such as 0.1, not {self.slope}.")


def _is_odd(width: object) -> bool:
    return isinstance(width, Integral) and width >= 1 and width % 2 == 1


PAPER = NetworkSettings()


@dataclass(frozen=True, eq=False)
class RandomNetworks:
    """A number of random networks.

    Attributes:
        weights: per layer (count, out, in, k, k[, k]), k being the widest kernel; the outer taps
            of narrower ones are 0.
        widths: (layers, count) int64 of the kernels, on the CPU.
        blend: (count,) the share of the network in the blend with its input.
        slope: of the leaky ReLU.
    """

    weights: tuple[torch.Tensor, ...]
    widths: torch.Tensor
    blend: torch.Tensor
    slope: float = PAPER.slope

    def part(self, start: int, stop: int) -> "RandomNetworks":
        """Return the networks from `start` to `stop`."""
        weights = tuple(weight[start:stop] for weight in self.weights)
        widths, blend = self.widths[:, start:stop], self.blend[start:stop]
        return RandomNetworks(weights, widths, blend, self.slope)


def draw(
    count: int,
    dimensions: int,
    generator: torch.Generator,
    device: torch.device | str,
    settings: NetworkSettings = PAPER,
) -> RandomNetworks:
    """Draw `count` networks for images of two or three `dimensions`.

    Numbers come from the generator's own device and then move, so that a CPU generator draws the
    same networks for every device.
    """
    kernels = torch.tensor(sorted(settings.kernels, reverse=True))
    widest = int(kernels[0])
    from_centre = (torch.arange(widest) - widest // 2).abs().to(generator.device)
    axes = torch.meshgrid(*[from_centre] * dimensions, indexing="ij")
    distance = torch.stack(axes).amax(0)
    channels = (1, *[settings.channels] * (settings.layers - 1), 1)
    weights, widths = [], []
    for inputs, outputs in itertools.pairwise(channels):
        shape = (count, outputs, inputs, *(widest,) * dimensions)
        kernel = torch.randn(shape, generator=generator, device=generator.device)
        chosen = torch.rand(count, generator=generator, device=generator.device) * len(kernels)
        width = kernels.to(generator.device)[chosen.long()]
        inside = distance <= (width // 2).view(-1, *(1,) * (dimensions + 2))
        weights.append((kernel * inside).to(device))
        widths.append(width.cpu())
    blend = torch.rand(count, generator=generator, device=generator.device).to(device)
    return RandomNetworks(tuple(weights), torch.stack(widths), blend, settings.slope)


def responses(networks: RandomNetworks, x: torch.Tensor) -> torch.Tensor:
    """Send each channel through its own network.

    On the CPU everything is computed in float32, autocast or not: bfloat16 is no faster there.

    Args:
        x: (B, count, *spatial) float32; beyond the border every layer sees zeros.

    Returns:
        (B, count, *spatial) float32.
    """
    if x.device.type != "cpu":
        return _grouped_response(networks, x).float()
    with torch.autocast("cpu", enabled=False):
        parts = [_response(networks, n, x[:, n : n + 1]) for n in range(x.shape[1])]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _grouped_response(networks: RandomNetworks, x: torch.Tensor) -> torch.Tensor:
    """Evaluate all networks by one grouped convolution per layer."""
    count, dimensions = x.shape[1], x.dim() - 2
    layout = torch.channels_last_3d if dimensions == 3 else torch.channels_last
    convolve = F.conv3d if dimensions == 3 else F.conv2d
    x = x.contiguous(memory_format=layout)
    for weight in networks.weights:
        x = convolve(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=count)
        x = F.leaky_relu_(x, networks.slope)
    return x


def _response(networks: RandomNetworks, index: int, x: torch.Tensor) -> torch.Tensor:
    """Evaluate one network on the CPU: (B, 1, *spatial) to (B, 1, *spatial)."""
    for weight, width in zip(networks.weights, networks.widths[:, index].tolist(), strict=True):
        outer = (weight.shape[-1] - width) // 2
        middle = (..., *(slice(outer, outer + width),) * (x.dim() - 2))
        x = F.leaky_relu_(_convolved(x, weight[index][middle]), networks.slope)
    return x


def _convolved(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve x (B, in, *spatial) by weight (out, in, k, ...) with few channels, on the CPU.

    In 3-D oneDNN computes two channels as slowly as sixteen. So one output of its convolution is a
    block of voxels, with stride, and the voxels are then put in their places: two to twenty times
    as fast.
    """
    dimensions, (outputs, inputs, width) = x.dim() - 2, weight.shape[:3]
    if dimensions == 2 or width == 1:
        convolve = F.conv3d if dimensions == 3 else F.conv2d
        return convolve(x, weight, padding=width // 2)
    block = weight.new_zeros(*(BLOCK,) * 3, outputs, inputs, *(width + BLOCK - 1,) * 3)
    for k, j, i in itertools.product(range(BLOCK), repeat=3):
        block[k, j, i, :, :, k : k + width, j : j + width, i : i + width] = weight
    size = x.shape[2:]
    odd = [part for n in reversed(size) for part in (0, -n % BLOCK)]
    x = (F.pad(x, odd) if any(odd) else x).contiguous(memory_format=torch.channels_last_3d)
    y = F.conv3d(x, block.flatten(0, 3), stride=BLOCK, padding=width // 2)
    y = y.unflatten(1, (*(BLOCK,) * 3, outputs)).permute(0, 5, 1, 6, 2, 7, 3, 4)
    y = y.reshape(len(x), *x.shape[2:], outputs).movedim(-1, 1)
    return y[:, :, : size[0], : size[1], : size[2]]
