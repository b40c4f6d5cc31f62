# SPDX-License-Identifier: Apache-2.0
"""Semantic-aware random convolution (Thaler et al. 2026), in 2-D and 3-D.

What a random convolution network makes of a region is called its random look. Its norm is that of
the whole image, so networks see all of it; masks are smoothed and multiplied in their boxes.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from SRCSMSegmenterLib.errors import InputError
from SRCSMSegmenterLib.resampling import smooth_voxels

from .random_networks import PAPER, NetworkSettings, RandomNetworks, draw, responses

MODES = ("off", "global", "hard", "smoothed")
MOST_COUNTED = 1 << 16
"""Labels up to which values are found by counting."""

Box = tuple[slice, ...]


@torch.no_grad()
def random_convolution(
    images: torch.Tensor,
    labels: torch.Tensor,
    mode: str,
    generator: torch.Generator,
    settings: NetworkSettings = PAPER,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Give every labelled region of every image its own random look.

    Args:
        images: (N, C, *spatial) float32, two or three spatial axes; of three, a K of one slice is
            left out, which saves two thirds of each kernel. Each channel has networks of its own.
        labels: (N, *spatial) integers of 0 or more; each of them is a region.
        mode: "off", "global" (one network per image), "hard" (one per label, masks as they are)
            or "smoothed" (the method: masks smoothed by 5 taps per axis, border replicated so that
            they sum to 1 everywhere).
        generator: source of all random numbers, on the CPU.
        settings: architecture of the networks.
        sigma: of the Gaussian that smooths masks, voxels, with 5 taps for 1 and more for more.

    Returns:
        (N, C, *spatial) float32.

    Raises:
        InputError: types, shapes or labels that do not fit, or an unknown mode.
    """
    check_batch(images, labels, mode, generator)
    if mode == "off":
        return images
    if images.dim() == 5 and images.shape[2] == 1:
        flat = random_convolution(images[:, :, 0], labels[:, 0], mode, generator, settings, sigma)
        return flat[:, :, None]
    channels = images.shape[1]
    images, labels = images.flatten(0, 1), labels.repeat_interleave(channels, 0)
    if mode == "global":
        looks = torch.empty_like(images)
        for n, look in random_looks_of(images, range(len(images)), generator, settings):
            looks[n] = look
    else:
        samples, masks = [], []
        for n, label in enumerate(labels):
            # Only the labels that a sample holds: a network elsewhere would be multiplied by 0.
            present = _present(label)
            samples += [n] * len(present)
            masks += [label == value for value in present]
        smoothing = sigma if mode == "smoothed" else 0.0
        looks = convolved_regions(images, samples, masks, generator, settings, smoothing)
    return looks.unflatten(0, (-1, channels))


def _present(labels: torch.Tensor) -> list[int]:
    """List the values of labels of 0 or more, in order."""
    if labels.max() < MOST_COUNTED:  # counting is many times as fast as sorting
        return torch.bincount(labels.flatten().long()).nonzero()[:, 0].tolist()
    return labels.unique().tolist()


def radius(sigma: float) -> int:
    """Return the voxels that the Gaussian of a mask reaches: 2 for the paper's sigma of 1."""
    return math.ceil(2 * sigma)


def check_batch(
    images: torch.Tensor, labels: torch.Tensor, mode: str, generator: torch.Generator
) -> None:
    """Check a batch for random convolution.

    Raises:
        InputError: see `random_convolution`.
    """
    if mode not in MODES:
        raise InputError(f"The mode of random convolution is {' or '.join(MODES)}, not {mode!r}.")
    if not (isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)):
        raise InputError(
            "images and labels are torch.Tensors, not "
            f"{type(images).__name__} and {type(labels).__name__}."
        )
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InputError(
            "generator is a torch.Generator on the CPU, such as "
            f"torch.Generator().manual_seed(0), not {generator}."
        )
    if images.dim() not in (4, 5) or 0 in images.shape[1:]:
        raise InputError(
            f"images are (N, C, J, I) or (N, C, K, J, I), not of shape {tuple(images.shape)}."
        )
    if images.dtype != torch.float32:
        raise InputError(f"images are float32, not {images.dtype}; convert them with .float().")
    expected = (len(images), *images.shape[2:])
    if tuple(labels.shape) != expected:
        raise InputError(
            f"images of shape {tuple(images.shape)} need labels of shape {expected}, not "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels are integers, not {labels.dtype}.")
    if labels.numel() and labels.min() < 0:
        raise InputError(
            f"labels are 0 or more, not {int(labels.min())}; to leave these voxels as they are, "
            "give SemanticRandomConvolution their ignore_label."
        )


def convolved_regions(
    images: torch.Tensor,
    samples: Sequence[int],
    masks: Sequence[torch.Tensor],
    generator: torch.Generator,
    settings: NetworkSettings = PAPER,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Sum the random looks of regions, each one times the region's mask.

    Args:
        images: (N, *spatial) float32.
        samples: the sample that each region lies in.
        masks: of each region, (*spatial) bool, not empty.
        sigma: of the Gaussian that smooths the masks, voxels; 0 leaves them hard.

    Returns:
        (N, *spatial) float32; 0 outside all masks.
    """
    total = torch.zeros_like(images)
    boxes = bounding_boxes(masks, radius(sigma))
    for r, look in random_looks_of(images, samples, generator, settings):
        box = boxes[r]
        weights = masks[r][box].float()
        if sigma:  # behind the box all is 0, or the border of the image, which is replicated
            weights = smooth_voxels(weights[None, None], sigma, radius(sigma))[0, 0]
        total[samples[r]][box].addcmul_(weights, look[box])
    return total


def bounding_boxes(masks: Sequence[torch.Tensor], margin: int) -> list[Box]:
    """Return the box of each mask (*spatial), none empty, with a margin that ends at the border."""
    if not masks:
        return []
    shape, ends = masks[0].shape, []
    for mask in masks:
        for axis in range(mask.dim()):
            line = mask.byte().amax([a for a in range(mask.dim()) if a != axis])
            ends.append(torch.stack((line.argmax(), len(line) - line.flip(0).argmax())))
    spans = torch.stack(ends).view(len(masks), len(shape), 2).tolist()  # one transfer for all
    return [
        tuple(
            slice(max(0, first - margin), min(n, behind + margin))
            for (first, behind), n in zip(span, shape, strict=True)
        )
        for span in spans
    ]


def random_looks_of(
    images: torch.Tensor,
    samples: Sequence[int],
    generator: torch.Generator,
    settings: NetworkSettings = PAPER,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield looks of images by fresh networks, by others if a result sums to 0.

    All networks are drawn at once. They are applied at once on a GPU, and one by one on the CPU,
    where a result that stays in the cache costs half.

    Args:
        images: (N, *spatial) float32.
        samples: the image of each look.

    Yields:
        The position in `samples` and the look, (*spatial) float32, in any order.
    """
    due = list(range(len(samples)))
    for attempt in range(101):
        networks = draw(len(due), images.dim() - 1, generator, images.device, settings)
        size = 1 if images.device.type == "cpu" else max(1, len(due))
        again = []
        for start in range(0, len(due), size):
            positions = due[start : start + size]
            chosen = images[[samples[r] for r in positions]]
            looks = apply(networks.part(start, start + size), chosen)
            sums = looks.flatten(1).sum(1).tolist()
            for r, image, look, total in zip(positions, chosen, looks, sums, strict=True):
                if total == 0 and attempt < 100 and image.any():
                    again.append(r)
                else:
                    yield r, look
        due = again
        if not due:
            return


def apply(networks: RandomNetworks, images: torch.Tensor) -> torch.Tensor:
    """Send each image through its own network, blend, and rescale to the image's Frobenius norm.

    Args:
        images: (count, *spatial) float32, one per network.

    Returns:
        (count, *spatial) float32.
    """
    column = (-1, *(1,) * (images.dim() - 1))
    response = responses(networks, images[None])[0]
    blended = torch.lerp(images, response, networks.blend.view(column))
    norms = blended.flatten(1).norm(dim=1)
    norms = torch.where(norms == 0, torch.full_like(norms, 1e-5), norms)
    return blended.mul_((images.flatten(1).norm(dim=1) / norms).view(column))
