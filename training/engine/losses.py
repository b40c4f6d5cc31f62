# SPDX-License-Identifier: Apache-2.0
"""Segmentation losses (Thaler et al. 2026, Chen et al. 2025, Wang et al.)."""

import torch
from torch.nn import functional as F


def segmentation_losses(
    logits: torch.Tensor, labels: torch.Tensor, dice: str, cross_entropy: float
) -> dict[str, torch.Tensor]:
    """Compute a Dice loss and a cross-entropy weighted by `cross_entropy` (0 in the papers).

    Args:
        logits: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.
        dice: a key of `DICE`: "generalised" (Thaler et al.), "mean" or "batch" (Chen et al.).

    Returns:
        "dice" and, unless its weight is 0, "cross_entropy"; their sum is the loss.
    """
    log_probabilities = logits.float().log_softmax(1)
    losses = {"dice": DICE[dice](log_probabilities.exp(), labels)}
    if cross_entropy:
        losses["cross_entropy"] = cross_entropy * F.nll_loss(log_probabilities, labels)
    return losses


def generalised_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the generalised Dice loss of the classes present, background included.

    Args:
        probabilities: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.

    Returns:
        Mean over samples of ``1 - 2 sum_l(w_l sum(g p)) / sum_l(w_l sum(g + p^2))`` with
        ``w_l = 1 / (volume_l^2 + 1e-4)``; classes absent from a sample are left out of its sums.
    """
    volume, overlap = _sums(probabilities, labels)
    total = volume + probabilities.flatten(2).square().sum(2)
    weight = torch.where(volume > 0, 1 / (volume**2 + 1e-4), 0.0)
    return (1 - 2 * (weight * overlap).sum(1) / (weight * total).sum(1)).mean()


def mean_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute one minus the soft Dice, averaged over the classes present in each sample.

    For windows that cut organs: the generalised Dice weighs a sliver of a hundred voxels ten
    thousand times as much as an organ of ten thousand, and teaches little else.

    Args:
        probabilities: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.
    """
    volume, overlap = _sums(probabilities, labels)
    total = volume + probabilities.flatten(2).square().sum(2)
    present = volume > 0
    dice = torch.where(present, 2 * overlap / total.clamp(min=1e-6), 0.0)
    return (1 - dice.sum(1) / present.sum(1)).mean()


def batch_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute one minus the soft Dice of every class, summed over the batch.

    Args:
        probabilities: (N, classes, K, J, I).
        labels: (N, K, J, I) int64, 0 being background, which counts too.

    Returns:
        Mean over classes of ``1 - (2 sum(g p) + 1e-5) / (sum(g) + sum(p) + 1e-5)``, sums over all
        pixels of all samples (Chen et al. 2025). A class that no sample shows counts too.
    """
    volume, overlap = _sums(probabilities, labels)
    predicted = probabilities.flatten(2).sum((0, 2))
    dice = (2 * overlap.sum(0) + 1e-5) / (volume.sum(0) + predicted + 1e-5)
    return (1 - dice).mean()


DICE = {"generalised": generalised_dice_loss, "mean": mean_dice_loss, "batch": batch_dice_loss}


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Compute one minus the soft Dice, plus cross-entropy, of single objects (Wang et al.).

    Args:
        logits: (P, rows, columns).
        masks: (P, rows, columns) bool or 0 and 1, none of them empty.
    """
    logits, masks = logits.float().flatten(1), masks.float().flatten(1)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(1)
    dice = 2 * overlap / (probabilities.square().sum(1) + masks.sum(1))
    return (1 - dice).mean() + F.binary_cross_entropy_with_logits(logits, masks)


def _sums(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute sum(g) and sum(g p) of each sample and class, each (N, classes)."""
    classes = probabilities.shape[1]
    labels = labels.flatten(1)
    chosen = probabilities.flatten(2).gather(1, labels[:, None])[:, 0]
    volume, overlap = (
        torch.zeros(len(labels), classes, device=labels.device).scatter_add(1, labels, summand)
        for summand in (torch.ones_like(chosen), chosen)
    )
    return volume, overlap
