# SPDX-License-Identifier: Apache-2.0
"""Agreement of a label map with the truth: Dice and surface distances in mm."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from SRCSMSegmenterLib.components import dice
from SRCSMSegmenterLib.errors import VolumeError

Status = Literal["scored", "missed", "false positive", "absent"]

TOLERANCE = 2.0
"""mm within which a surface counts as found by the surface Dice, unless another is asked for."""


@dataclass(frozen=True)
class Score:
    """Agreement of one label in one case (Thaler et al. 2026, evaluation).

    Attributes:
        case: name of the case.
        label: name of the label.
        status: "scored" if truth and prediction both have the label; "missed" if only the truth
            has it, "false positive" if only the prediction has it: Dice and surface Dice 0,
            distances NaN; "absent" if neither has it: all NaN, so that means leave the case out.
        dice: Dice coefficient, 0 to 1.
        surface_dice: share of the surface distances that are no longer than the tolerance, 0 to 1
            (normalised surface Dice, Nikolov et al. 2021; every surface voxel counts the same).
        assd: mean of the surface distances, mm.
        hd95: larger of the two one-way 95th percentiles of the surface distances, mm.
        distance_median, distance_sd, distance_max: of the surface distances, mm; the maximum is
            the Hausdorff distance.

    The surface distances of a case run from every surface voxel of one label map to the nearest
    surface voxel of the other; both directions are pooled. In a picture of one slice, such as an
    X-ray, the surface is the outline within it.
    """

    case: str
    label: str
    status: Status
    dice: float = np.nan
    surface_dice: float = np.nan
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
    tolerance: float = TOLERANCE,
) -> list[Score]:
    """Score every label of one case.

    Args:
        case: name of the case.
        prediction, truth: integer label maps of one shape (K, J, I).
        spacing: mm along (I, J, K), as `Geometry.spacing`; voxels are taken as cuboids.
        labels: name -> label of the labels to score; other labels count as background.
        tolerance: of the surface Dice, mm.

    Returns:
        One score per label, in the order of `labels`.

    Raises:
        VolumeError: the label maps differ in shape.
    """
    if prediction.shape != truth.shape:
        raise VolumeError(
            f"{case}: prediction {prediction.shape} and truth {truth.shape} differ in shape."
        )
    if truth.shape.count(1) == 1:
        # In three dimensions each voxel of a single slice would be a surface voxel.
        flat = truth.shape.index(1)
        prediction, truth = prediction.squeeze(flat), truth.squeeze(flat)
        spacing = np.delete(spacing, 2 - flat)
    pair = np.stack([prediction, truth])
    boxes = ndimage.find_objects(pair, max_label=max(labels.values()))
    scores = []
    for name, label in labels.items():
        box = boxes[label - 1]
        if box is None:
            scores.append(Score(case, name, "absent"))
            continue
        # Nothing outside the joint bounding box can change a distance.
        predicted, true = pair[(slice(None), *box[1:])] == label
        agreement = _agreement(predicted, true, spacing, tolerance)
        scores.append(Score(case, name, **agreement))
    return scores


def _agreement(
    predicted: np.ndarray, true: np.ndarray, spacing: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """Return the status and the metrics of a label that truth or prediction has."""
    if not predicted.any():
        return {"status": "missed", "dice": 0.0, "surface_dice": 0.0}
    if not true.any():
        return {"status": "false positive", "dice": 0.0, "surface_dice": 0.0}
    one_way, other_way = surface_distances(predicted, true, spacing)
    pooled = np.concatenate([one_way, other_way])
    # float32 distances: 0.3 mm, three voxels of 0.1 mm, are within 0.3 mm.
    within = pooled <= tolerance * (1 + 1e-6)
    return {
        "status": "scored",
        "dice": dice(predicted, true, empty=np.nan),
        "surface_dice": float(within.mean()),
        "assd": float(pooled.mean()),
        "hd95": float(max(np.percentile(one_way, 95), np.percentile(other_way, 95))),
        "distance_median": float(np.median(pooled)),
        "distance_sd": float(pooled.std()),
        "distance_max": float(pooled.max()),
    }


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the distance of each surface voxel of one mask to the other's surface, by MONAI.

    A surface voxel has a face towards the background or the array's edge.

    Args:
        prediction, truth: (K, J, I) bool, or two of these axes, neither empty.
        spacing: mm along (I, J, K), or those two axes.

    Returns:
        mm, float64: prediction to truth (n,) and truth to prediction (m,), for n and m surface
        voxels.
    """
    # MONAI takes seconds to import; only measuring distances waits for it.
    from monai.metrics import get_mask_edges, get_surface_distance

    edges = get_mask_edges(prediction, truth)
    spacing_kji = [float(step) for step in spacing[::-1]]
    one_way = get_surface_distance(*edges, spacing=spacing_kji)
    other_way = get_surface_distance(*edges[::-1], spacing=spacing_kji)
    return one_way.astype(np.float64), other_way.astype(np.float64)
