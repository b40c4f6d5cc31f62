# SPDX-License-Identifier: Apache-2.0
"""Progress of a training: its counters and its curve."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator

SCORES = ("dice", "randomised")
"""Dice of the validation cases as they are, and under random convolution."""


@dataclass
class Progress:
    """The counters of a training, plain numbers.

    Attributes:
        step: optimiser steps done.
        gradient_norm: running mean of the clipped gradient norm.
        best_dice: best mean of the validation scores so far, or -1.
        loss: running mean of the loss, for the display.
        parts: "loss_" and the name of each part of the loss -> its running mean.
        curve: one row per log entry: step, loss and its parts, learning rate, gradient norm, mean
            seconds of the steps since the last row, and the validation's scores per label.
        waited: validations since the best one.
        finished: at the last step, or out of patience.
    """

    step: int
    gradient_norm: float
    best_dice: float = -1.0
    loss: float = math.nan
    parts: dict[str, float] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    waited: int = 0
    finished: bool = False

    def count_step(self, losses: dict[str, float], steps: int) -> None:
        """Count a step of `steps`, and update the running means of "loss" and its parts."""
        self.step += 1
        values = dict(losses)
        loss = values.pop("loss")
        self.loss = loss if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * loss
        for name, value in values.items():
            self.parts[name] = 0.99 * self.parts.get(name, value) + 0.01 * value
        self.finished = self.step == steps

    def count_validation(self, score: float, patience: int) -> bool:
        """Count a validation; return whether its score is the best so far."""
        self.waited += 1
        best = score > self.best_dice
        if best:
            self.best_dice, self.waited = score, 0
        self.finished |= self.waited == patience > 0
        return best


def mean_score(row: dict) -> float:
    """Average the scores of a validation, a row of `Progress.curve`, over labels and kinds."""
    return float(np.mean([np.nanmean(row[kind]) for kind in SCORES if kind in row]))


def mean_dice(sums: torch.Tensor, accelerator: Accelerator) -> list[float]:
    """Compute the mean Dice per label over cases that were dealt out to the processes.

    Args:
        sums: (cases, 2, labels), 0 for the cases of other processes: size of the overlap, and of
            prediction and truth together.

    Returns:
        One number per label, NaN for a label that no case has.
    """
    overlap, total = accelerator.reduce(sums).unbind(1)
    return torch.where(total > 0, 2 * overlap / total, torch.nan).nanmean(0).tolist()
