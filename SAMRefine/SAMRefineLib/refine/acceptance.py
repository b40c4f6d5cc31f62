# SPDX-License-Identifier: Apache-2.0
"""Is SAM's mask of a slice better than the coarse one? What can be told without the truth."""

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
UNSURE = "SAM is unsure"
DISAGREES = "SAM and the coarse mask hardly overlap"


@dataclass(frozen=True)
class Trust:
    """What SAM's mask of a slice must be like to replace the coarse one (see `rejection_reason`).

    Attributes:
        outside: largest share of the mask outside the box.
        reach: least share of the box that the mask's own box covers.
        predicted_iou: least of SAM's own estimates.
        agreement: least Dice with the coarse mask, where SAM saw that as a first guess.
    """

    outside: float = 0.1
    reach: float = 0.5
    predicted_iou: float = 0.5
    agreement: float = 0.5


DEFAULT_TRUST = Trust()
ANYTHING = Trust(outside=1.0, reach=0.0, predicted_iou=-math.inf, agreement=0.0)
"""Whatever SAM finds; only an empty mask is refused."""


def rejection_reason(
    mask: np.ndarray, box: Box, predicted_iou: float, coarse: np.ndarray | None, trust: Trust
) -> str | None:
    """Why SAM's mask of a slice is likely worse than the coarse one; None where it is not.

    A box is drawn tightly around an organ, so a good mask lies within it and reaches its edges;
    SAM itself says how sure it is; and where the two masks hardly overlap, one is wrong, and the
    one that was found without being shown where to look has the better claim.

    Args:
        mask: (rows, columns) bool.
        coarse: (rows, columns) bool, or None where agreement is no sign.
    """
    area = int(mask.sum())
    if not area:
        return EMPTY
    rows = slice(math.floor(box.y0), math.ceil(box.y1))
    columns = slice(math.floor(box.x0), math.ceil(box.x1))
    inside = mask[rows, columns]
    if area - inside.sum() > trust.outside * area:
        return OUTSIDE
    if _covered(inside) < trust.reach * inside.size:
        return PARTIAL
    if predicted_iou < trust.predicted_iou:
        return UNSURE
    if coarse is not None and dice(mask, coarse, empty=1.0) < trust.agreement:
        return DISAGREES
    return None


def _covered(mask: np.ndarray) -> int:
    """Pixels of the box around a mask."""
    if not mask.any():
        return 0
    extents = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return math.prod(int(np.ptp(extent)) + 1 for extent in extents)
