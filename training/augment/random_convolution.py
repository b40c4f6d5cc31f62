# SPDX-License-Identifier: Apache-2.0
"""Semantic-aware random convolution (Thaler et al. 2026), in 2-D and 3-D.

What a random convolution network makes of a region is called its random look.

Networks are drawn first and applied second, so that a draw can be replayed and tested. All
labels of all samples go through one grouped convolution per layer, on the image's device.
"""

import itertools
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from SRCSMSegmenterLib.resampling import smooth_voxels

MODES = ("off", "global", "hard", "smoothed")
CHANNELS = (1, 2, 2, 2, 1)
SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class RandomNetworks:
    """A number of random convolution networks (RCNets).

    Attributes:
        weights: per layer (count, out, in, 3, 3[, 3]); a 1-wide kernel is a 3-wide one whose
            outer taps are 0.
        blend: (count,) the share of the network in the blend with its input.
    """

    weights: tuple[torch.Tensor, ...]
    blend: torch.Tensor


def draw(
    count: int, dimensions: int, generator: torch.Generator, device: torch.device | str
) -> RandomNetworks:
    """Draw `count` networks for images of two or three `dimensions`.

    Numbers come from the generator's own device and then move, so that a CPU generator draws the
    same networks for every device.
    """
    centre = torch.zeros((3,) * dimensions, device=generator.device)
    centre[(1,) * dimensions] = 1
    weights = []
    for inputs, outputs in itertools.pairwise(CHANNELS):
        shape = (count, outputs, inputs, *(3,) * dimensions)
        kernel = torch.randn(shape, generator=generator, device=generator.device)
        wide = torch.rand(count, generator=generator, device=generator.device) < 0.5
        kernel = torch.where(wide.view(-1, *(1,) * (dimensions + 2)), kernel, kernel * centre)
        weights.append(kernel.to(device))
    blend = torch.rand(count, generator=generator, device=generator.device)
    return RandomNetworks(tuple(weights), blend.to(device))


def apply(networks: RandomNetworks, images: torch.Tensor) -> torch.Tensor:
    """Send each image through its own network, blend, and rescale to the image's Frobenius norm.

    Args:
        images: (count, *spatial) float32, one per network.

    Returns:
        (count, *spatial) float32.
    """
    spatial = images.shape[1:]
    layout = torch.channels_last_3d if len(spatial) == 3 else torch.channels_last
    x = images[None].contiguous(memory_format=layout)
    for weight in networks.weights:
        x = F.leaky_relu_(_convolved(x, weight), SLOPE)
    column = (-1, *(1,) * len(spatial))
    blended = torch.lerp(images, x[0].float(), networks.blend.view(column))
    norms = blended.flatten(1).norm(dim=1)
    norms = torch.where(norms == 0, torch.full_like(norms, 1e-5), norms)
    return blended * (images.flatten(1).norm(dim=1) / norms).view(column)


def _convolved(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve x (1, count * in, *spatial) by weights (count, out, in, ...), one layer of each."""
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    count = len(weight)
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # With bfloat16 on a CPU, zeros between the groups cost less than small groups do.
        weight = torch.einsum("gh,goi...->gohi...", torch.eye(count), weight).flatten(2, 3)
        return convolve(x, weight.flatten(0, 1), padding=1)
    return convolve(x, weight.flatten(0, 1), padding=1, groups=count)


def drawn_and_applied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply fresh networks to images (count, *spatial), others if a result sums to 0."""
    dimensions = images.dim() - 1
    result = apply(draw(len(images), dimensions, generator, images.device), images)
    for _ in range(100):
        dead = (result.flatten(1).sum(1) == 0) & (images.flatten(1) != 0).any(1)
        if not dead.any():
            break
        fresh = draw(int(dead.sum()), dimensions, generator, images.device)
        result[dead] = apply(fresh, images[dead])
    return result


@torch.no_grad()
def random_convolution(
    images: torch.Tensor,
    labels: torch.Tensor,
    mode: str,
    generator: torch.Generator,
) -> torch.Tensor:
    """Give every labelled region of every image its own random look.

    Args:
        images: (N, 1, *spatial) float32, two or three spatial axes; of three, a K of one slice is
            left out, which saves two thirds of each kernel.
        labels: (N, *spatial) integers, 0 being background.
        mode: "off", "global" (one network per image), "hard" (one per label, masks as they are)
            or "smoothed" (the method: masks smoothed by 5 taps per axis, sigma 1 voxel, border
            replicated so that they sum to 1 everywhere).
        generator: source of all random numbers.

    Returns:
        (N, 1, *spatial) float32.
    """
    if mode == "off":
        return images
    if images.dim() == 5 and images.shape[2] == 1:
        flat = random_convolution(images[:, :, 0], labels[:, 0], mode, generator)
        return flat[:, :, None]
    if mode == "global":
        return drawn_and_applied(images[:, 0], generator)[:, None]
    # Only the labels that a sample holds: a network elsewhere would be multiplied by 0.
    pairs = [(n, label) for n in range(len(labels)) for label in labels[n].unique().tolist()]
    samples = torch.tensor([n for n, _ in pairs], device=images.device)
    masks = torch.stack([labels[n] == label for n, label in pairs])
    return convolved_regions(images, samples, masks, mode, generator)[:, None]


def convolved_regions(
    images: torch.Tensor,
    samples: torch.Tensor,
    masks: torch.Tensor,
    mode: str,
    generator: torch.Generator,
) -> torch.Tensor:
    """Sum the random looks of regions, each one times the region's mask.

    Args:
        images: (N, 1, *spatial) float32.
        samples: (regions,) the sample that each region lies in.
        masks: (regions, *spatial) bool.
        mode: "smoothed" smooths the masks, others leave them hard.

    Returns:
        (N, *spatial) float32; 0 outside all masks.
    """
    masks = masks.float()
    if mode == "smoothed":
        with torch.autocast(masks.device.type, enabled=False):  # bfloat16 sums are off by 1 %
            masks = smooth_voxels(masks[:, None])[:, 0]
    looks = drawn_and_applied(images[samples, 0], generator)
    return torch.zeros_like(images[:, 0]).index_add_(0, samples, looks.mul_(masks))
