# SPDX-License-Identifier: Apache-2.0
"""Blending of what a network predicts in overlapping windows."""

from collections.abc import Callable

import torch

Triple = tuple[int, int, int]


def blend(
    predict: Callable[[Triple], torch.Tensor],
    total: Triple,
    size: Triple,
    starts: list[Triple],
    step: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Average the predictions of windows, each weighted by a Gaussian around its middle.

    Args:
        predict: function of the first index (i, j, k) of a window, returns (classes, K, J, I).
        total, size: voxels of the whole and of a window, (I, J, K).
        starts: first indices of the windows, which together cover the whole.
        step: called before each window with the number of those done.

    Returns:
        (classes, K, J, I) on the whole.
    """
    for done, start in enumerate(starts):
        step(done)
        prediction = predict(start)
        if done == 0:
            weight = _gaussian(size).to(prediction.device)
            summed = prediction.new_zeros(len(prediction), *total[::-1])
            weights = prediction.new_zeros(total[::-1])
        part = window_slices(start, size)
        summed[:, *part].addcmul_(prediction, weight)
        weights[part] += weight
        if prediction.device.type == "cuda":
            torch.cuda.synchronize(prediction.device)  # or progress and cancelling run ahead of it
    return summed.div_(weights)


def _gaussian(size: Triple) -> torch.Tensor:
    """Make a (K, J, I) float32 Gaussian around the middle, sigma an eighth of the window."""
    i, j, k = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size)
    return k[:, None, None] * j[:, None] * i


def window_slices(start: Triple, size: Triple) -> tuple[slice, slice, slice]:
    """Return the (K, J, I) slices of a window from its first index and size (I, J, K)."""
    i, j, k = (slice(first, first + n) for first, n in zip(start, size, strict=True))
    return k, j, i
