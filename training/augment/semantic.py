# SPDX-License-Identifier: Apache-2.0
"""SRC as a module of a training loop of your own (Thaler et al. 2026)."""

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import nn

from SRCSMSegmenterLib.errors import InputError

from .random_convolution import MODES
from .random_networks import NetworkSettings
from .regions import RegionsConfig, random_looks

MOST_SIGMA = 10.0
"""Voxels."""

DARKEST, BRIGHTEST = -2.0, 50.0
"""Intensities that are no longer normalised; an MR's are open above."""


class SemanticRandomConvolution(nn.Module):
    """Semantic-aware random convolution of a batch, on the batch's device, in 2-D and 3-D.

    It belongs behind all other augmentation, at every training step; it computes no gradients and
    does nothing in evaluation mode. The defaults are the paper's.

    Args:
        mode: "smoothed" (the method), "hard" (masks as they are), "global" (one network for the
            whole image) or "off".
        layers, channels, kernels, slope: see `NetworkSettings`.
        sigma: of the Gaussian that smooths masks, voxels, at most 10.
        regions: regions and looks of unlabelled tissue, see `RegionsConfig`; None is SRC as
            published. It takes images of one channel, normalised to about [-1, 1].
        ignore_label: its voxels keep their intensities.

    Raises:
        InputError: a ValueError that names the argument at fault.
    """

    def __init__(
        self,
        mode: str = "smoothed",
        *,
        layers: int = 4,
        channels: int = 2,
        kernels: tuple[int, ...] = (1, 3),
        slope: float = 0.1,
        sigma: float = 1.0,
        regions: RegionsConfig | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode is {' or '.join(MODES)}, not {mode!r}.")
        if not 0 < sigma <= MOST_SIGMA:
            raise InputError(
                f'sigma is above 0 and at most {MOST_SIGMA}, not {sigma}; mode="hard" smooths no '
                "masks."
            )
        if not isinstance(ignore_label, Integral | None):
            raise InputError(f"ignore_label is a whole number or None, not {ignore_label!r}.")
        if not isinstance(regions, RegionsConfig | None):
            raise InputError(f"regions are a RegionsConfig or None, not {type(regions).__name__}.")
        self.mode, self.sigma, self.ignore_label = mode, sigma, ignore_label
        widths = tuple(kernels) if isinstance(kernels, Iterable) else (kernels,)
        self.settings = NetworkSettings(layers, channels, widths, slope)
        self.regions = regions or RegionsConfig()

    @torch.no_grad()
    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Give every region of every image its own random look.

        Args:
            images: (N, C, J, I) or (N, C, K, J, I), floating point, normalised, such as to [-1, 1].
                Each channel has networks of its own.
            labels: integers of 0 or more, (N, *spatial) or (N, 1, *spatial), or one-hot
                (N, classes, *spatial).
            generator: source of all random numbers, on the CPU; None is torch's own, as
                `torch.manual_seed` sets it.

        Returns:
            The images' shape, dtype and device.

        Raises:
            InputError: a ValueError that names the shape, dtype or label at fault.
        """
        if not self.training or self.mode == "off":
            return images
        _check_images(images, bool(self.regions.share))
        numbers = label_numbers(labels, images).to(images.device)
        ignored = numbers == self.ignore_label if self.ignore_label is not None else None
        if ignored is not None:
            numbers = numbers.masked_fill(ignored, 0)
        looks = random_looks(
            images.float(),
            numbers,
            self.mode,
            self.regions,
            torch.default_generator if generator is None else generator,
            self.settings,
            self.sigma,
        ).to(images.dtype)
        return looks if ignored is None else torch.where(ignored[:, None], images, looks)


def _check_images(images: torch.Tensor, with_regions: bool) -> None:
    if not isinstance(images, torch.Tensor):
        raise InputError(
            f"images are a torch.Tensor, not {type(images).__name__}; convert them, such as with "
            "torch.from_numpy."
        )
    if images.dim() not in (4, 5) or 0 in images.shape[1:]:
        raise InputError(
            "images are (N, C, J, I) or (N, C, K, J, I), not of shape "
            f"{tuple(images.shape)}; give a single image a batch axis by image[None]."
        )
    if not images.is_floating_point():
        raise InputError(
            f"images are floating point, not {images.dtype}; normalise them first, such as to "
            "[-1, 1]."
        )
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values, which would spread to all voxels.")
    if with_regions and len(images):
        darkest, brightest = float(images.min()), float(images.max())
        if darkest < DARKEST or brightest > BRIGHTEST:
            raise InputError(
                "regions get intensities from -1 to 1, so images are normalised to about that, "
                f"not from {darkest:g} to {brightest:g}."
            )


def label_numbers(labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Convert labels of any accepted form to (N, *spatial) int64.

    Args:
        labels: see `SemanticRandomConvolution.forward`.
        images: (N, C, *spatial).

    Raises:
        InputError: another shape, probabilities, or no one-hot code.
    """
    if not isinstance(labels, torch.Tensor):
        raise InputError(f"labels are a torch.Tensor, not {type(labels).__name__}.")
    batch, spatial = len(images), tuple(images.shape[2:])
    plain = tuple(labels.shape) == (batch, *spatial)
    with_channel = (
        labels.dim() == images.dim()
        and len(labels) == batch
        and tuple(labels.shape[2:]) == spatial
        and labels.shape[1] > 0
    )
    if not plain and not with_channel:
        raise InputError(
            f"images of shape {tuple(images.shape)} need labels of shape {(batch, *spatial)}, "
            f"{(batch, 1, *spatial)} or one-hot {(batch, 'classes', *spatial)}, not "
            f"{tuple(labels.shape)}."
        )
    numbers = labels.long()
    if not torch.equal(numbers.to(labels.dtype), labels):
        raise InputError("labels are integers, but these hold fractions, as probabilities do.")
    if plain:
        return numbers
    if numbers.shape[1] == 1:
        return numbers[:, 0]
    if not ((numbers == 0) | (numbers == 1)).all() or not (numbers.sum(1) == 1).all():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} are one-hot: one of the {labels.shape[1]} "
            "classes is 1 at each voxel and the others are 0."
        )
    return numbers.argmax(1)
