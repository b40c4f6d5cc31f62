# SPDX-License-Identifier: Apache-2.0
"""How well a label map agrees with the truth: Dice and surface distances in mm."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from SRCSMSegmenterLib.components import dice
from SRCSMSegmenterLib.errors import VolumeError

Status = Literal["scored", "missed", "false positive", "absent"]


@dataclass(frozen=True)
class Score:
    """Agreement of one label in one case (Thaler et al. 2026, evaluation).

    Attributes:
        case: name of the case.
        label: name of the label.
        status: "scored" where truth and prediction both hold the label; "missed" where only the
            truth does and "false positive" where only the prediction does: Dice 0, distances
            NaN; "absent" where neither does: all NaN, so that means leave the case out.
        dice: overlap, 0 to 1.
        assd: mean of the surface distances, mm.
        hd95: larger of the two one-way 95th percentiles of the surface distances, mm.
        distance_median, distance_sd, distance_max: of the surface distances, mm; the maximum is
            the Hausdorff distance.

    The surface distances of a case are those from every surface voxel of either label map to the
    nearest one of the other, both ways pooled; statistics over cases are those of `summarise`.
    """

    case: str
    label: str
    status: Status
    dice: float = np.nan
    assd: float = np.nan
    hd95: float = np.nan
    distance_median: float = np.nan
    distance_sd: float = np.nan
    distance_max: float = np.nan


def score_case(
    case: str,
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: np.ndarray,
    labels: dict[str, int],
) -> list[Score]:
    """Score every label of one case.

    Args:
        case: name that goes into the scores.
        prediction, truth: integer label maps of one shape (K, J, I).
        spacing: mm along (I, J, K), as `Geometry.spacing`; voxels are taken as cuboids.
        labels: name -> value of the labels to score; other values count as background.

    Returns:
        One score a label, in the order of `labels`.

    Raises:
        VolumeError: the label maps differ in shape.
    """
    if prediction.shape != truth.shape:
        raise VolumeError(
            f"{case}: prediction {prediction.shape} and truth {truth.shape} differ in shape."
        )
    pair = np.stack([prediction, truth])
    boxes = ndimage.find_objects(pair, max_label=max(labels.values()))
    scores = []
    for label, value in labels.items():
        box = boxes[value - 1]
        if box is None:
            scores.append(Score(case, label, "absent"))
            continue
        # Nothing outside the joint bounding box can change a distance.
        predicted, true = pair[(slice(None), *box[1:])] == value
        scores.append(_score_label(case, label, predicted, true, spacing))
    return scores


def _score_label(
    case: str, label: str, predicted: np.ndarray, true: np.ndarray, spacing: np.ndarray
) -> Score:
    if not predicted.any():
        return Score(case, label, "missed", dice=0.0)
    if not true.any():
        return Score(case, label, "false positive", dice=0.0)
    one_way, other_way = surface_distances(predicted, true, spacing)
    pooled = np.concatenate([one_way, other_way])
    return Score(
        case,
        label,
        "scored",
        dice=dice(predicted, true, empty=np.nan),
        assd=float(pooled.mean()),
        hd95=float(max(np.percentile(one_way, 95), np.percentile(other_way, 95))),
        distance_median=float(np.median(pooled)),
        distance_sd=float(pooled.std()),
        distance_max=float(pooled.max()),
    )


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each surface voxel of one mask to the nearest one of the other, by MONAI.

    A surface voxel is one with a face towards the background or the array's edge.

    Args:
        prediction, truth: boolean, one shape (K, J, I), neither empty.
        spacing: mm along (I, J, K).

    Returns:
        mm, float64: prediction to truth (n,) and truth to prediction (m,).
    """
    # MONAI takes seconds to import; only those who measure distances wait for it.
    from monai.metrics import get_mask_edges, get_surface_distance

    edges = get_mask_edges(prediction, truth)
    spacing_kji = [float(step) for step in spacing[::-1]]
    one_way = get_surface_distance(*edges, spacing=spacing_kji)
    other_way = get_surface_distance(*edges[::-1], spacing=spacing_kji)
    return one_way.astype(np.float64), other_way.astype(np.float64)
