# SPDX-License-Identifier: Apache-2.0
"""Looks that the tissues of a CT have in MR sequences and in other phases of contrast.

A fixed set, for validation: the Dice of a training under each of them tells what the network holds
against before any scan of another modality is there. The intensities are typical ones, chosen by
what is brighter than what; no scan was measured for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.resampling import smooth_voxels

from .regions import AIR

FAT_BELOW, DENSE_ABOVE = -30.0, 150.0
"""HU between which unlabelled tissue is soft tissue; below it is fat, above bone or contrast."""

TEXTURE = 0.7
"""Share of a tissue's own variation about its mean that it keeps."""


@dataclass(frozen=True)
class Intensities:
    """Mean intensity of each tissue, normalised: -1 for air to 1.

    Attributes:
        soft: of muscle, bowel and every label that is not named here.
        dense: of bone, and of vessels with contrast.
    """

    fat: float
    soft: float
    dense: float
    liver: float
    kidney: float
    spleen: float


SEQUENCES = {
    "T1": Intensities(fat=0.8, soft=-0.2, dense=0.1, liver=0.2, kidney=0.0, spleen=-0.1),
    "T1 fat-suppressed": Intensities(-0.4, -0.2, -0.4, 0.2, 0.1, 0.0),
    "opposed phase": Intensities(0.1, -0.2, -0.2, 0.1, 0.0, -0.1),
    "T2": Intensities(0.7, -0.6, -0.2, -0.3, 0.4, 0.2),
    "T2 fat-suppressed": Intensities(-0.4, -0.6, -0.5, -0.4, 0.5, 0.3),
    "CT without contrast": Intensities(-0.85, -0.2, 0.5, -0.1, -0.2, -0.15),
}
"""In the order of `Intensities`: fat, soft tissue, dense tissue, liver, kidneys, spleen."""


def as_sequence(
    image: torch.Tensor,
    labels: torch.Tensor,
    names: Sequence[str],
    rule: IntensityRule,
    intensities: Intensities,
) -> torch.Tensor:
    """Move the mean of every tissue of a CT to that of a sequence; air stays.

    Args:
        image: (1, K, J, I) float32, normalised by `rule`, a CT's.
        labels: (K, J, I) integers, 0 being background.
        names: of the labels 1, 2, ...; further labels count as soft tissue.

    Returns:
        (1, K, J, I) float32.
    """
    tissues = _tissues(image[0], labels, rule)
    means = [0.0, intensities.fat, intensities.soft, intensities.dense]
    means += [_of_label(name, intensities) for name in names]
    means += [intensities.soft] * (int(tissues.max()) + 1 - len(means))
    factors, offsets = torch.ones_like(image[0]), torch.zeros_like(image[0])
    for tissue in tissues.unique().tolist():
        if tissue:
            inside = tissues == tissue
            factors[inside] = TEXTURE
            offsets[inside] = means[tissue] - TEXTURE * image[0][inside].mean()
    factors, offsets = smooth_voxels(torch.stack((factors, offsets))[None])[0]
    return factors * image + offsets


def _tissues(image: torch.Tensor, labels: torch.Tensor, rule: IntensityRule) -> torch.Tensor:
    """Map voxels to tissues: air 0, fat 1, soft 2, dense 3, label l to l + 3; (K, J, I)."""
    low, high = rule.window
    cuts = torch.tensor([FAT_BELOW, DENSE_ABOVE], device=image.device)
    unlabelled = 1 + torch.bucketize(image, 2 * (cuts - low) / (high - low) - 1)
    unlabelled = unlabelled.masked_fill(image <= image.min() + AIR, 0)
    return torch.where(labels > 0, labels.long() + 3, unlabelled)


def _of_label(name: str, intensities: Intensities) -> float:
    for organ in ("liver", "kidney", "spleen"):
        if organ in name:
            return getattr(intensities, organ)
    return intensities.soft
