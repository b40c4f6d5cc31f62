# SPDX-License-Identifier: Apache-2.0
"""Results of a refinement: outcomes by organ and slice, labels and probabilities, reports."""

from dataclasses import dataclass

import numpy as np

from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import CoarseMask
from .acceptance import NO_BOX

STAYS = 4.0
"""Factor by which the least probability of a mask that stays exceeds any other's claim."""


@dataclass(frozen=True)
class OrganReport:
    """Summary of an organ's refinement.

    Attributes:
        label: the organ's label.
        name: its name.
        boxes: number of slices that SAM was asked about.
        kept: why the coarse mask was kept, by slice index; without a coarse mask, why SAM's mask,
            which is used nevertheless, may be bad.
        dice: Dice of the coarse mask and the result; None without a coarse mask.
        voxels_before: voxels of the coarse mask.
        voxels_after: voxels of the result.
        predicted_iou: SAM's own estimate, mean over its slices; None without any.
    """

    label: int
    name: str
    boxes: int
    kept: dict[int, str]
    dice: float | None
    voxels_before: int
    voxels_after: int
    predicted_iou: float | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """An organ in one slice before organs compete for voxels.

    Attributes:
        probability: float16 (rows, columns).
        mask: bool (rows, columns), the voxels that the organ claims.
        rejection: why SAM's mask was rejected; None if it was accepted.
        predicted_iou: SAM's own estimate; None if SAM was not asked.
        weight: factor of the probability in the competition.
        basis: everything that the outcome depends on.
    """

    probability: np.ndarray
    mask: np.ndarray
    rejection: str | None
    predicted_iou: float | None
    weight: float
    basis: tuple


def staying(coarse: CoarseMask, slice_index: int) -> Outcome:
    """Return the whole coarse mask of a slice."""
    mask, basis = coarse.shown(slice_index), (coarse, STAYS)
    probability = coarse.grade(slice_index) * mask
    return Outcome(probability.astype(np.float16), mask, NO_BOX, None, STAYS, basis)


@dataclass(frozen=True, eq=False)
class Refinement:
    """The result of a refinement on the volume's own grid.

    Attributes:
        labels: (K, J, I) uint8 (uint16 if a label needs it).
        reports: one for each organ, in the order of the prompts.
        changed: indices of the slices that were decided anew; all others equal the last result.
        encoder_passes: number of canvases that had to be encoded.
        seconds: duration of each stage, "encode" and "decode".
        grid: the slices.
        outcomes: by label and slice index.
    """

    labels: Volume
    reports: tuple[OrganReport, ...]
    changed: tuple[int, ...]
    encoder_passes: int
    seconds: dict[str, float]
    grid: SliceGrid
    outcomes: dict[int, dict[int, Outcome]]

    def probability(self, label: int) -> np.ndarray:
        """Return the probabilities of an organ, float16 (K, J, I); 0 in slices without it."""
        probability = np.zeros(self.labels.array.shape, np.float16)
        stack = self.grid.stack(probability)
        for slice_index, outcome in self.outcomes[label].items():
            stack[slice_index] = outcome.probability
        return probability

    def confidence(self) -> np.ndarray:
        """Return the probability of each voxel's label, float16 (K, J, I)."""
        confidence = np.ones(self.labels.array.shape, np.float16)
        stack, labels = self.grid.stack(confidence), self.grid.stack(self.labels.array)
        for label, outcomes in self.outcomes.items():
            for k, outcome in outcomes.items():
                # On background it is one minus the largest probability of all organs.
                np.minimum(stack[k], 1 - outcome.probability, out=stack[k], where=labels[k] == 0)
                np.copyto(stack[k], outcome.probability, where=labels[k] == label)
        return confidence
