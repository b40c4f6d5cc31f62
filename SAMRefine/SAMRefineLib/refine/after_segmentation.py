# SPDX-License-Identifier: Apache-2.0
"""Refinement of a segmentation right after the network made it: ``srcsm segment --refine``.

The command line and the worker's task "segment_refined" call the same function, so that the panel's
labels are those of the command, voxel for voxel.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from SRCSMSegmenterLib.terminology import readable
from SRCSMSegmenterLib.worker.tasks import Context, segment_reply, segmented_scan

from ..sam.catalogue import default_for, find_sam, redrawn_unasked

if TYPE_CHECKING:
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.terminology import Segment

    from ..sam.models import SamModel
    from .results import Refinement

SHARE = 0.5
"""Share of the progress of "segment_refined" that the network gets; SAM gets the rest."""


def refine_segmentation(
    volume: "Volume",
    segmentation: "Segmentation",
    labels: "Sequence[Segment]",
    sam: "SamModel",
    modality: str,
    keep_largest: bool,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple["Segmentation", "Refinement"]:
    """Refine a segmentation with SAM, in boxes around what the network is certain of.

    Labels that the SAM was not trained on stay as they are, and no other gets a voxel of theirs,
    unless it was trained on none of them.

    Args:
        volume: the scan, raw intensities (K, J, I).
        segmentation: with its probabilities.
        labels: of the network.
        sam: the SAM.
        modality: "CT" or "MR".
        keep_largest: keep only the largest piece of every organ.
        progress: called with the stage and the fraction that is done.
        cancelled: asked often; if it returns True, `Cancelled` is raised.

    Returns:
        The segmentation with SAM's labels and confidence (its probabilities and least certain
        slices stay the network's), and the refinement.
    """
    from SRCSMSegmenterLib.components import keep_largest_component, label_means

    from ..boxes.boxes import SliceGrid
    from ..boxes.coarse import CoarseOrgan
    from .box_selection import refine_coarse

    started = time.perf_counter()
    known = redrawn_unasked(labels, sam.organs)
    coarse = [
        CoarseOrgan(label.name, label.value, segmentation.probabilities.whole(label.value))
        for label in known
    ]
    others = [label for label in labels if label not in known]
    before = segmentation.labels.array
    stays = np.isin(before, [label.value for label in others]) if others else None
    refinement = refine_coarse(
        volume,
        coarse,
        SliceGrid(volume.geometry, volume.geometry.slice_axis),
        sam,
        modality=modality,
        taken=stays,
        progress=progress,
        cancelled=cancelled,
    )
    array, confidence = refinement.labels.array, refinement.confidence()
    if others:
        array[stays], confidence[stays] = before[stays], segmentation.confidence()[stays]
    if keep_largest:
        keep_largest_component(array, confidence)
    seconds = segmentation.seconds | {"refine": time.perf_counter() - started}
    refined = replace(
        segmentation,
        labels=refinement.labels,
        confidence=lambda: confidence,
        messages=[*segmentation.messages, *_about_others(others, sam)],
        mean_confidence=label_means(array, confidence),
        seconds=seconds,
    )
    return refined, refinement


def _about_others(others: "Sequence[Segment]", sam: "SamModel") -> list[str]:
    """Write which labels were not refined, if there are any."""
    if not others:
        return []
    names = ", ".join(readable(label.name) for label in others)
    return [f"{sam.name} was not trained on these, which are as the network drew them: {names}."]


def segment_refined(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Segment a scan, and refine the result with SAM; a task of a worker.

    Args:
        parameters: as of the task "segment"; sam, sam_kind: see `load_sam`, by default the shipped
            SAM that was trained on the network's modality.
        arrays: as of the task "segment".
        context: progress and cancellation.

    Returns:
        As the task "segment", with SAM's labels and confidence, and in the reply
        refinement: {sam: {name, kind, identity}, organs: [`OrganReport`s]}.

    Raises:
        BundleError: no such model, organ or SAM; VolumeError, SourceMatchingError, DeviceError,
        Cancelled: as the task "segment".
    """
    from ..sam.models import load_sam

    farthest = 0.0

    def progress(start: float, share: float) -> Callable[[str, float], None]:
        def tell(stage: str, fraction: float) -> None:
            nonlocal farthest
            # SAM counts anew when it has chosen the boxes; the bar stands still meanwhile.
            farthest = max(farthest, start + share * fraction)
            context.progress(stage, farthest)

        return tell

    scan = segmented_scan(parameters, arrays, replace(context, progress=progress(0, SHARE)))
    description = scan.bundle.description
    sam = parameters.get("sam") or default_for(description.rule.modality)
    kind, device = parameters.get("sam_kind"), scan.device
    model = context.models.get(
        f"sam {sam} {kind} {device}", lambda: load_sam(find_sam(sam), kind, device)
    )
    result, refinement = refine_segmentation(
        scan.volume,
        scan.result,
        description.labels,
        model,
        scan.modality,
        parameters.get("keep_largest", True),
        progress(SHARE, 1 - SHARE),
        context.cancelled,
    )
    reply, outputs = segment_reply(
        replace(scan, result=result), probabilities=parameters.get("probabilities", True)
    )
    reports = [
        asdict(report) | {"kept": {str(k): reason for k, reason in report.kept.items()}}
        for report in refinement.reports
    ]
    reply["refinement"] = {"sam": model.identify(), "organs": reports}
    return reply, outputs
