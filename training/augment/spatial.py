# SPDX-License-Identifier: Apache-2.0
"""Spatial and intensity augmentation (Thaler et al. 2026), on the device of the case."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from SRCSMSegmenterLib import intensity
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.resampling import look_up, points, sample, smooth_voxels

from ..engine.keys import NOT_NEGATIVE, SHARE, Range, Settings, key

FACTOR = Range(least=0, below=1)
"""Deviations of a factor that stays above 0."""


@dataclass(frozen=True)
class AugmentationConfig(Settings):
    """Ranges of the random draws; each number is the largest deviation to either side.

    Attributes:
        translation: mm along each axis of the window.
        rotation: rad around (I, J, K).
        scale: isotropic factor around 1.
        axis_scale: further factor per axis around 1.
        elastic: mm, displacement of the control points of a cubic B-spline.
        control_points: control points of the B-spline per axis; it is cubic and needs four.
        shift: added to the normalised intensities.
        contrast: factor on the normalised intensities around 1; null: 0.2 for CT, 0.4 for MR.
        crop: share of the windows of which only a random box is within the scan, as in thin slabs
            and in scans that are cut at the skin.
        strong: strength of further changes of intensity (`strong_changes`), 0 to 1 or so.
    """

    translation: float = key(20.0, NOT_NEGATIVE, unit="mm", paper="20")
    rotation: tuple[float, float, float] = key(
        (0.35, 0.35, 0.35), NOT_NEGATIVE, unit="rad", paper="0.35"
    )
    scale: float = key(0.2, FACTOR, paper="0.2")
    axis_scale: float = key(0.1, FACTOR, paper="0.1")
    elastic: float = key(15.0, NOT_NEGATIVE, unit="mm", paper="15")
    control_points: int = key(8, Range(least=4), paper="8")
    shift: float = key(0.2, NOT_NEGATIVE, paper="0.2")
    contrast: float | None = key(None, FACTOR, paper="0.2 for CT, 0.4 for MR")
    crop: float = key(0.0, SHARE, paper="0")
    strong: float = key(0.0, NOT_NEGATIVE, paper="0 (ICM: not published)")

    section: ClassVar[str] = "augmentation."


@dataclass(frozen=True, eq=False)
class SpatialDraw:
    """One random transform of a window, in mm around its centre.

    Attributes:
        matrix: 3x3 linear part (rotation times scale).
        translation: (3,) mm.
        control: (3, n, n, n) mm, displacements of the control points, spatial axes (K, J, I).
    """

    matrix: np.ndarray
    translation: np.ndarray
    control: torch.Tensor


def draw_spatial(config: AugmentationConfig, generator: torch.Generator) -> SpatialDraw:
    """Draw a transform; the generator lives on the CPU."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angles = (uniform(3) * torch.tensor(config.rotation)).double().numpy()
    factors = (1 + config.axis_scale * uniform(3)) * (1 + config.scale * uniform(1))
    matrix = _rotation(angles) @ np.diag(factors.double().numpy())
    translation = (config.translation * uniform(3)).double().numpy()
    n = config.control_points
    return SpatialDraw(matrix, translation, config.elastic * uniform(3, n, n, n))


def transformed_points(
    window: Geometry, source: Geometry, draw: SpatialDraw, device: torch.device | str
) -> torch.Tensor:
    """Compute where the voxels of a transformed window lie in a scan.

    Args:
        source: grid of the scan.

    Returns:
        (K, J, I, 3) continuous indices (i, j, k) into the scan.
    """
    around = np.eye(4)
    around[:3, :3] = draw.matrix @ np.diag(window.spacing)
    around[:3, 3] = draw.translation - around[:3, :3] @ ((np.array(window.size) - 1) / 2)
    # Window mm around its centre -> RAS -> source index, as one matrix.
    to_source = np.eye(4)
    to_source[:3, :3] = source.inverse[:3, :3] @ window.direction
    to_source[:3, 3] = source.to_ijk(window.centre)
    where = points(to_source @ around, window.size, device)
    if not draw.control.any():
        return where
    linear = torch.as_tensor(to_source[:3, :3], dtype=torch.float32, device=device)
    return where + spline_field(draw.control.to(device), window.shape) @ linear.T


def cropped(
    image: torch.Tensor,
    labels: torch.Tensor,
    outside: float,
    config: AugmentationConfig,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a window (1, K, J, I) and its labels (K, J, I) to a random box, with `config.crop`.

    Along each axis, with a chance of one half, up to 30 % of the window are cut off at either end;
    those voxels become `outside` and background.
    """
    if torch.rand((), generator=generator) >= config.crop:
        return image, labels
    lost = 0.3 * torch.rand(3, 2, generator=generator)
    lost = (lost * (torch.rand(3, 1, generator=generator) < 0.5)).tolist()
    box = tuple(
        slice(round(low * n), n - round(high * n))
        for n, (low, high) in zip(labels.shape, lost, strict=True)
    )
    within = torch.zeros_like(labels, dtype=torch.bool)
    within[box] = True
    return image.masked_fill(~within, outside), labels.masked_fill(~within, 0)


def spline_field(control: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Evaluate a uniform cubic B-spline over its control points (D, n, n, n) at (K, J, I).

    Returns:
        (K, J, I, D), in the unit of the control points.
    """
    basis = [_bspline_basis(n, control.shape[1], control.device) for n in shape]
    return torch.einsum("dkji,Kk,Jj,Ii->KJId", control, *basis)


def augmented_window(
    image: torch.Tensor,
    labels: torch.Tensor,
    source: Geometry,
    window: Geometry,
    draw: SpatialDraw,
    outside: float,
    device: torch.device | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample one case onto a transformed window.

    Args:
        image: (1, K, J, I) scaled and smoothed on the case's own grid, on any device.
        labels: (1, K, J, I) integers.
        outside: intensity beyond the scan.

    Returns:
        Image (1, K', J', I') float32 and labels (K', J', I') int64; labels are taken by nearest
        neighbour, smoothed per class (sigma 1 voxel), and decided by argmax.
    """
    where = transformed_points(window, source, draw, device)
    lookup = look_up(where, source.shape)
    resampled = sample(image, lookup, outside=outside)
    nearest = sample(labels, lookup, mode="nearest")[0]
    return resampled, smoothed_labels(nearest)


def smoothed_labels(labels: torch.Tensor) -> torch.Tensor:
    """Smooth labels (K, J, I) per class, sigma 1 voxel, and decide by the largest; int64."""
    present = labels.unique().tolist()
    masks = torch.stack([labels == label for label in present]).float()
    best, *others = smooth_voxels(masks[None])[0]
    decided = torch.full(labels.shape, int(present[0]), device=labels.device)
    # A running maximum: argmax over a leading axis is ten times slower on a CPU.
    for label, smoothed in zip(present[1:], others, strict=True):
        decided.masked_fill_(smoothed > best, int(label))
        best = torch.maximum(best, smoothed)
    return decided


def augmented_intensities(
    windows: torch.Tensor,
    rule: IntensityRule,
    config: AugmentationConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Normalise (N, 1, K, J, I) by the rule, with random changes of intensity per sample."""
    contrast = config.contrast
    if contrast is None:
        contrast = 0.2 if rule.modality == "CT" else 0.4
    draws = torch.rand(2, len(windows), generator=generator) * 2 - 1
    shift, factor = (draws * torch.tensor([[config.shift], [contrast]])).to(windows.device)
    shift, factor = shift.view(-1, 1, 1, 1, 1), 1 + factor.view(-1, 1, 1, 1, 1)
    highest = 1 if rule.modality == "CT" else None
    form = intensity.normalised_ct if rule.modality == "CT" else intensity.normalised_mr
    changed = (form(windows, rule) * factor + shift).clamp(-1, highest)
    if config.strong:
        changed = strong_changes(changed, config.strong, generator).clamp(-1, highest)
    return changed


def strong_changes(
    windows: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """Change normalised intensities strongly (as Chen et al. 2025, who published no code for it).

    Per sample, at strength 1: a gamma of 0.5 to 2 between -1 and 1, a smooth field that doubles or
    halves, blur (as by a Gaussian of 1 voxel) or sharpening, and noise with an SD of up to 0.1.

    Args:
        windows: (N, 1, K, J, I), -1 or more.
    """
    count, device = len(windows), windows.device
    draws = torch.rand(3, count, generator=generator) * 2 - 1
    draws = draws.to(device)[:, :, None, None, None, None]
    control = torch.rand(count, 5, 5, 5, generator=generator) * 2 - 1
    field = spline_field(control.to(device), windows.shape[2:]).movedim(-1, 0)[:, None]
    noise = torch.randn(windows.shape, generator=generator).to(device)
    x = ((windows + 1) / 2).clamp(min=0) ** (2 ** (strength * draws[0]))
    x = x * 2 ** (strength * field)
    x = x + strength * draws[1] * (smooth_voxels(x) - x)
    return 2 * (x + 0.05 * strength * draws[2] * noise) - 1


def _rotation(angles: np.ndarray) -> np.ndarray:
    (ci, cj, ck), (si, sj, sk) = np.cos(angles), np.sin(angles)
    around_i = np.array([[1, 0, 0], [0, ci, -si], [0, si, ci]])
    around_j = np.array([[cj, 0, sj], [0, 1, 0], [-sj, 0, cj]])
    around_k = np.array([[ck, -sk, 0], [sk, ck, 0], [0, 0, 1]])
    return around_k @ around_j @ around_i


def _bspline_basis(length: int, controls: int, device: torch.device) -> torch.Tensor:
    """Compute the weights (length, controls) of the uniform cubic B-spline at voxel centres."""
    spans = controls - 3
    u = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length * spans
    first = u.floor().clamp(max=spans - 1)
    t = u - first
    weights = torch.stack(
        ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3), dim=1
    )
    columns = first.long()[:, None] + torch.arange(4, device=device)
    return torch.zeros(length, controls, device=device).scatter_(1, columns, weights / 6)
