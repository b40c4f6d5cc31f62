# SPDX-License-Identifier: Apache-2.0
"""The loss (methods.md, section A, optimisation)."""

import torch
from torch.nn import functional as F


def segmentation_loss(
    logits: torch.Tensor, labels: torch.Tensor, cross_entropy: float
) -> torch.Tensor:
    """Generalised Dice, plus cross-entropy weighted by `cross_entropy` (0 in the paper).

    Args:
        logits: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.
    """
    log_probabilities = logits.float().log_softmax(1)
    loss = generalised_dice_loss(log_probabilities.exp(), labels)
    if cross_entropy:
        loss = loss + cross_entropy * F.nll_loss(log_probabilities, labels)
    return loss


def generalised_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Generalised Dice over the classes present in each sample, background included.

    Args:
        probabilities: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.

    Returns:
        Mean over samples of ``1 - 2 sum_l(w_l sum(g p)) / sum_l(w_l sum(g + p^2))`` with
        ``w_l = 1 / (volume_l^2 + 1e-4)``; classes absent from a sample are left out of its sums.
    """
    classes = probabilities.shape[1]
    labels = labels.flatten(1)
    chosen = probabilities.flatten(2).gather(1, labels[:, None])[:, 0]
    volume, overlap = (
        torch.zeros(len(labels), classes, device=labels.device).scatter_add(1, labels, summand)
        for summand in (torch.ones_like(chosen), chosen)
    )
    weight = torch.where(volume > 0, 1 / (volume**2 + 1e-4), 0.0)
    total = volume + probabilities.flatten(2).square().sum(2)
    return (1 - 2 * (weight * overlap).sum(1) / (weight * total).sum(1)).mean()
