# SPDX-License-Identifier: Apache-2.0
"""Random partitions of unlabelled tissue into regions, each with a random look of its own.

SRC as published gives all unlabelled tissue one random look a step, so fat and muscle always change
together. Here unlabelled tissue is partitioned by intensity and again in space,
and every region and label gets a random convolution network or a signed affine of its own voxels,
which keeps their texture (after PALETTE; class-wise location and scale after SLAug, arXiv
2211.10805). Some labels are divided too: vessels may be brighter than the liver around them, and a
kidney's cortex than its medulla.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from SRCSMSegmenterLib.errors import ConfigError, InputError
from SRCSMSegmenterLib.resampling import smooth_voxels

from ..engine.keys import COUNT, NOT_NEGATIVE, SHARE, Settings, key
from .random_convolution import check_batch, convolved_regions, radius, random_convolution
from .random_networks import PAPER, NetworkSettings

AIR = 0.02
"""Normalised intensity above a window's minimum up to which unlabelled voxels are air."""

SAMPLE = 2000
"""Voxels from which the clusters of intensity are computed."""

LLOYD_STEPS = 4
"""Steps of k-means; one dimension needs no more for clusters that differ from draw to draw."""


@dataclass(frozen=True)
class RegionsConfig(Settings):
    """Frequency and fineness of the partitions, and the random looks of their regions.

    Attributes:
        share: of the samples that get regions; 0 is SRC as published.
        untouched: share of the other samples that keep their intensities; the rest gets SRC.
        clusters: fewest and most clusters of intensity.
        divided: chance that a cluster is divided in two by a smooth random field.
        divided_labels: chance that a label is divided in two, in half of the draws by the same
            field, in the others at a random quantile of its intensities.
        affine: share of the looks that are a signed affine of the region's own voxels instead of a
            random convolution.
        slope: smallest and largest factor of the affine, of either sign; its offset moves the
            region's mean to a place between -1 and 1.
        kept: share of the regions and labels without a look.
        kept_air: the same for air, which is dark in every modality.
    """

    share: float = key(0.0, SHARE, paper="0")
    untouched: float = key(0.4, SHARE)
    clusters: tuple[int, int] = key((1, 6), COUNT)
    divided: float = key(0.5, SHARE)
    divided_labels: float = key(0.3, SHARE)
    affine: float = key(0.75, SHARE)
    slope: tuple[float, float] = key((0.3, 1.5), NOT_NEGATIVE)
    kept: float = key(0.05, SHARE)
    kept_air: float = key(0.5, SHARE)

    section: ClassVar[str] = "regions."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.clusters[0] <= self.clusters[1]:
            raise ConfigError(
                f"regions.clusters are the fewest and the most, at least 1, not {self.clusters}."
            )
        if not 0 <= self.slope[0] <= self.slope[1]:
            raise ConfigError(
                f"regions.slope are the smallest and the largest factor, not {self.slope}."
            )


@torch.no_grad()
def random_looks(
    images: torch.Tensor,
    labels: torch.Tensor,
    mode: str,
    config: RegionsConfig,
    generator: torch.Generator,
    settings: NetworkSettings = PAPER,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Give every sample random looks by region, by label alone (SRC), or none.

    Args:
        images: (N, 1, *spatial) float32, two or three spatial axes; of three, a K of one slice is
            left out.
        labels: (N, *spatial) integers, 0 being background.
        mode: of random convolution, see `random_convolution`; "off" changes nothing.
        generator: source of all random numbers, on the CPU.
        settings, sigma: see `random_convolution`.

    Returns:
        (N, 1, *spatial) float32.

    Raises:
        InputError: see `random_convolution`; several channels if there are regions.
    """
    if mode == "off" or not config.share:
        return random_convolution(images, labels, mode, generator, settings, sigma)
    check_batch(images, labels, mode, generator)
    if images.shape[1] != 1:
        raise InputError(f"regions take images of one channel, not of shape {tuple(images.shape)}.")
    if images.dim() == 5 and images.shape[2] == 1:
        flat = random_looks(images[:, :, 0], labels[:, 0], mode, config, generator, settings, sigma)
        return flat[:, :, None]
    chances = torch.rand(2, len(images), generator=generator)
    with_regions = chances[0] < config.share
    convolved = ~with_regions & (chances[1] >= config.untouched)
    looks = images.clone()
    if with_regions.any():
        chosen = with_regions.to(images.device)
        regions = partition(images[chosen], labels[chosen], config, generator)
        looks[chosen] = region_looks(
            images[chosen], regions, mode, config, generator, settings, sigma
        )
    if convolved.any():
        chosen = convolved.to(images.device)
        looks[chosen] = random_convolution(
            images[chosen], labels[chosen], mode, generator, settings, sigma
        )
    return looks


def partition(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: RegionsConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Partition the unlabelled tissue of every sample.

    Args:
        images: (N, 1, *spatial) float32.
        labels: (N, *spatial) integers, 0 being background.

    Returns:
        (N, *spatial) int64: 0 for air, labels as they are, larger numbers for regions of tissue and
        for the second halves of divided labels.
    """
    samples = zip(images[:, 0], labels, strict=True)
    first = int(labels.max()) + 1
    return torch.stack([_partition(x, y, first, config, generator) for x, y in samples])


def _partition(
    image: torch.Tensor,
    labels: torch.Tensor,
    first: int,
    config: RegionsConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    fewest, most = config.clusters
    clusters = int(torch.randint(fewest, most + 1, (), generator=generator))
    regions = labels.long()
    tissue = (labels == 0) & (image > image.min() + AIR)
    values = image[tissue]
    if len(values):
        cuts = _cuts(values, clusters, generator)
        regions = torch.where(tissue, torch.bucketize(image, cuts) + first, regions)
    count = first + clusters
    chance = torch.full((count,), config.divided)
    chance[:first] = config.divided_labels
    chance[0] = 0
    divided = (torch.rand(count, generator=generator) < chance).to(image.device)
    half = _smooth_field(image.shape, generator).to(image.device) > 0
    for label in torch.nonzero(divided[:first])[:, 0].tolist():
        half = _halved_by_intensity(half, image, labels == label, generator)
    return regions + count * (half & divided[regions])


def _halved_by_intensity(
    half: torch.Tensor, image: torch.Tensor, organ: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Replace `half` within an organ by its brighter voxels, in half of the draws."""
    by_intensity, quantile = torch.rand(2, generator=generator).tolist()
    values = image[organ]
    if by_intensity < 0.5 or not len(values):
        return half
    ordered = values[:: max(1, len(values) // SAMPLE)].sort().values
    return torch.where(organ, image > ordered[int(quantile * len(ordered))], half)


def _cuts(values: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (clusters - 1,) thresholds: random quantiles, moved by k-means in half of the draws."""
    chosen = torch.randint(len(values), (SAMPLE,), generator=generator).to(values.device)
    values = values[chosen].sort().values
    quantiles = torch.rand(clusters - 1, generator=generator).sort().values * (SAMPLE - 1)
    cuts = values[quantiles.long().to(values.device)]
    if torch.rand((), generator=generator) < 0.5:
        return cuts
    for _ in range(LLOYD_STEPS):
        nearest = torch.bucketize(values, cuts)
        sums = values.new_zeros(clusters).index_add_(0, nearest, values)
        sizes = torch.bincount(nearest, minlength=clusters)
        means = sums[sizes > 0] / sizes[sizes > 0]
        cuts = (means[1:] + means[:-1]) / 2
        clusters = len(means)
    return cuts


def _smooth_field(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw a random field that changes sign a few times along each axis."""
    control = torch.randn(1, 1, *(2, 3, 4)[-len(shape) :], generator=generator)
    linear = "trilinear" if len(shape) == 3 else "bilinear"
    return F.interpolate(control, size=tuple(shape), mode=linear, align_corners=False)[0, 0]


def region_looks(
    images: torch.Tensor,
    regions: torch.Tensor,
    mode: str,
    config: RegionsConfig,
    generator: torch.Generator,
    settings: NetworkSettings = PAPER,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Give every region of every sample an affine, a random convolution or no look.

    All affines together cost two smoothed maps, of factors and of offsets, as smoothing is linear;
    masks are smoothed one by one for random convolutions alone.

    Args:
        images: (N, 1, *spatial) float32.
        regions: (N, *spatial) int64 of `partition`, 0 being air.
        mode: "smoothed" blends regions by smoothed masks, as SRC does; else masks are hard.
        settings, sigma: see `random_convolution`.

    Returns:
        (N, 1, *spatial) float32.
    """
    device, count = images.device, int(regions.max()) + 1
    columns = (-1, *(1,) * (regions.dim() - 1))
    numbered = regions + count * torch.arange(len(regions), device=device).view(columns)
    sizes = torch.bincount(numbered.flatten())  # counting is many times as fast as sorting
    present = sizes.nonzero()[:, 0]
    values = images[:, 0]
    sums = values.new_zeros(len(sizes)).index_add_(0, numbered.flatten(), values.flatten())
    means = sums[present] / sizes[present]

    draws = torch.rand(5, len(present), generator=generator).to(device)
    kept = draws[0] < torch.where(present % count == 0, config.kept_air, config.kept)
    convolved = ~kept & (draws[1] >= config.affine)
    low, high = config.slope
    factors = (low + (high - low) * draws[2]) * torch.where(draws[3] < 0.5, -1.0, 1.0)
    offsets = 2 * draws[4] - 1 - factors * means
    factors = factors.masked_fill(kept, 1).masked_fill(convolved, 0)
    offsets = offsets.masked_fill(kept | convolved, 0)
    of_number = values.new_zeros(2, len(sizes))
    of_number[:, present] = torch.stack((factors, offsets))
    maps = of_number[:, numbered].movedim(0, 1)
    if mode == "smoothed":
        with torch.autocast(device.type, enabled=False):
            maps = smooth_voxels(maps, sigma, radius(sigma))
    looks = values * maps[:, 0] + maps[:, 1]

    chosen = present[convolved]
    if len(chosen):
        samples = (chosen // count).tolist()
        masks = [numbered[n] == r for n, r in zip(samples, chosen.tolist(), strict=True)]
        sigma = sigma if mode == "smoothed" else 0.0
        looks += convolved_regions(values, samples, masks, generator, settings, sigma)
    return looks[:, None]
