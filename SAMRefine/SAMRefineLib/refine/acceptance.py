# SPDX-License-Identifier: Apache-2.0
"""Acceptance of SAM's masks: criteria, known without the truth, to prefer them to coarse masks."""

import math
from dataclasses import dataclass

import numpy as np

from SRCSMSegmenterLib.components import dice

from ..boxes.boxes import Box

NO_BOX = "there is no box"
BLANK = "the picture is blank"
EMPTY = "SAM found nothing"
OUTSIDE = "SAM's mask leaves the box"
PARTIAL = "SAM's mask fills too little of the box"
LOW_IOU = "SAM is unsure"
DISAGREES = "SAM and the coarse mask hardly overlap"


@dataclass(frozen=True)
class Acceptance:
    """Limits that SAM's mask of a slice must meet to replace the coarse one.

    Attributes:
        outside: largest share of the mask outside the box.
        reach: least share of the box that the mask's own box covers.
        predicted_iou: least of SAM's own estimates of the IoU.
        agreement: least Dice with the coarse mask, if SAM was given that as a mask prompt.
    """

    outside: float = 0.1
    reach: float = 0.5
    predicted_iou: float = 0.5
    agreement: float = 0.5


DEFAULT_ACCEPTANCE = Acceptance()
ACCEPT_ALL = Acceptance(outside=1.0, reach=0.0, predicted_iou=-math.inf, agreement=0.0)
"""Rejects empty masks only."""


def rejection_reason(
    mask: np.ndarray,
    box: Box,
    predicted_iou: float,
    coarse: np.ndarray | None,
    acceptance: Acceptance,
) -> str | None:
    """Return why SAM's mask of a slice is likely worse than the coarse one; None if it is not.

    A box is drawn tightly around an organ, so a good mask lies within it and reaches its edges, and
    SAM estimates the IoU of its mask. If the masks hardly overlap, the coarse one is kept: it was
    found without a box prompt.

    Args:
        mask: SAM's mask, bool (rows, columns).
        box: the box that SAM was given.
        predicted_iou: SAM's own estimate of the mask's IoU.
        coarse: the coarse mask, bool (rows, columns); None if they need not agree.
        acceptance: the limits.
    """
    area = int(mask.sum())
    if not area:
        return EMPTY
    rows = slice(math.floor(box.y0), math.ceil(box.y1))
    columns = slice(math.floor(box.x0), math.ceil(box.x1))
    inside = mask[rows, columns]
    if area - inside.sum() > acceptance.outside * area:
        return OUTSIDE
    if _covered(inside) < acceptance.reach * inside.size:
        return PARTIAL
    if predicted_iou < acceptance.predicted_iou:
        return LOW_IOU
    if coarse is not None and dice(mask, coarse, empty=1.0) < acceptance.agreement:
        return DISAGREES
    return None


def _covered(mask: np.ndarray) -> int:
    """Count the pixels of the box around a mask (rows, columns)."""
    if not mask.any():
        return 0
    extents = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return math.prod(int(np.ptp(extent)) + 1 for extent in extents)
