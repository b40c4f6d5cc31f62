# SPDX-License-Identifier: Apache-2.0
"""The loss (methods.md, section A, optimisation)."""

import torch
from torch.nn import functional as F


def generalised_dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Generalised Dice over the classes present in each sample, background included.

    Args:
        logits: (N, classes, K, J, I).
        labels: (N, K, J, I) int64.

    Returns:
        Mean over samples of ``1 - 2 sum_l(w_l sum(g p)) / sum_l(w_l sum(g + p^2))`` with
        ``w_l = 1 / (volume_l^2 + 1e-4)``; classes absent from a sample are left out of its sums.
    """
    probabilities = logits.float().softmax(1).flatten(2)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).flatten(2).float()
    volume = truth.sum(2)
    weight = torch.where(volume > 0, 1 / (volume**2 + 1e-4), 0.0)
    overlap = (truth * probabilities).sum(2)
    total = volume + probabilities.square().sum(2)
    return (1 - 2 * (weight * overlap).sum(1) / (weight * total).sum(1)).mean()
