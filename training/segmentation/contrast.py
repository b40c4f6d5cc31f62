# SPDX-License-Identifier: Apache-2.0
"""Patch-wise contrast between views of slices (Chen et al. 2025).

At each position of the bottleneck, the features of one slice in two styles become more alike than
those of different slices.
"""

from itertools import permutations
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F


class Projection(nn.Sequential):
    """The projection of bottleneck features that NT-Xent compares, position by position.

    (N, channels, K, J, I) -> (N, outputs, K, J, I): 1x1 convolution, batch norm, ReLU, 1x1
    convolution, batch norm.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(
            nn.Conv3d(channels, channels, 1),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            nn.Conv3d(channels, outputs, 1),
            nn.BatchNorm3d(outputs),
        )


def nt_xent(projected: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the normalised temperature-scaled cross-entropy (Chen et al., 2020).

    An anchor is a view of a slice; its positive is another view of that slice, its negatives are
    all views of all other slices of all processes, everything at the anchor's position. They are
    compared by the cosine, divided by `temperature`.

    Args:
        projected: (V, N, D, *positions), V views of N slices; every process has as many.

    Returns:
        Mean over positions, slices and ordered pairs of views. Its gradient passes through all
        processes, so that averaged over them it is that of one process with all slices.
    """
    views, slices = projected.shape[:2]
    features = F.normalize(projected.float().flatten(3), dim=2)
    everyone, first = gathered(features)
    positives = torch.einsum("vndp,wndp->pnvw", features, features) / temperature
    similarity = torch.einsum("vndp,wmdp->pnvmw", features, everyone) / temperature
    own = torch.arange(slices, device=features.device)
    same = torch.zeros(slices, everyone.shape[1], dtype=torch.bool, device=features.device)
    same[own, first + own] = True
    negatives = similarity.masked_fill(same[:, None, :, None], -torch.inf).flatten(3).logsumexp(3)
    losses = torch.logaddexp(positives, negatives[..., None]) - positives
    one, other = zip(*permutations(range(views), 2), strict=True)
    return losses[:, :, one, other].mean()


def gathered(features: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather features (V, N, ...) of every process.

    Returns:
        (V, processes * N, ...), and the index in it of this process's first slice.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return features, 0
    parts = _Gather.apply(features)
    return torch.cat(parts.unbind(), dim=1), distributed.get_rank() * features.shape[1]


class _Gather(torch.autograd.Function):
    """A gathering of x as (processes, *x.shape), through which the gradients of all come back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]
