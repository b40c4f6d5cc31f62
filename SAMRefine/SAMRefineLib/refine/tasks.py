# SPDX-License-Identifier: Apache-2.0
"""Refinement tasks of a worker (see `SRCSMSegmenterLib.worker.tasks`).

A volume is sent once and stays with the worker, so that a moved box costs only the message about
the box.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.worker.protocol import WorkerError
from SRCSMSegmenterLib.worker.tasks import GRID, Context, Task, check_request

from ..boxes.boxes import PointPrompt, SliceGrid
from ..boxes.coarse import CoarseOrgan, checked_probabilities
from ..boxes.key_frames import KeyFrames, boxes_from_json, boxes_to_json
from ..boxes.patches import Patch
from .after_segmentation import segment_refined

if TYPE_CHECKING:
    from ..sam.models import SamModel
    from .refiner import OrganPrompt, Refiner

UNKNOWN_VOLUME = "UnknownVolume"
"""Kind of the `WorkerError` after which the volume has to be sent again."""


OPTIONS = {
    "sam": str,
    "sam_kind": str,
    "modality": Literal["CT", "MR"],
    "mosaic": Literal["crops", "slices", "off"],
    "device": str,
    "points": dict[int, dict[int, tuple[tuple[float, float, bool] | tuple[float, float], ...]]],
    "mask_prompt": tuple[int, ...],
    "keep_unboxed": tuple[int, ...],
    "choose": tuple[int, ...],
    "mask_threshold": float,
    "whole": bool,
}
"""Parameters of the tasks that may be left out, and their types."""


@dataclass(frozen=True, eq=False)
class SentVolume:
    """A volume at the worker.

    Attributes:
        refiner: the volume, to be refined repeatedly.
        model: its SAM.
        grid: its slices.
        coarse: coarse masks by label, (K, J, I) probabilities or bool.
    """

    refiner: "Refiner"
    model: "SamModel"
    grid: SliceGrid
    coarse: dict[int, np.ndarray] = field(default_factory=dict)


def embed(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Load a volume and compute the embeddings that its boxes need, ahead of `refine`.

    Args:
        parameters: as `refine`; mask_threshold and whole are ignored.
        arrays: as `refine`.
        context: progress and cancellation.

    Returns:
        {chosen, encoder_passes, device}, and no arrays.
    """
    sent, organs = _opened(parameters, arrays, context)
    before = sent.refiner.passes
    organs, chosen = _chosen(sent, organs, parameters.get("choose", ()), context)
    sent.refiner.embed(organs, progress=context.progress, cancelled=context.cancelled)
    return {
        "chosen": chosen,
        "encoder_passes": sent.refiner.passes - before,
        "device": str(sent.model.device),
    }, {}


def refine(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Refine organs (`refiner.Refiner`).

    Args:
        parameters: volume: a name for the combination of volume, SAM and mosaic; boxes: text of
            `boxes_to_json`; to load the volume, sam: name, folder or file (`load_sam`); size:
            (I, J, K); affine: four rows, IJK -> RAS mm. Optional are sam_kind; modality: "CT", "MR"
            or None (guessed); mosaic: see `MosaicMode`; device: see `resolve_device`; points:
            {label: {slice: [[x, y, positive], ...]}}; mask_prompt, keep_unboxed: labels of the
            organs with these flags (see `OrganPrompt`), by default all; choose: labels of organs
            whose boxes are to be chosen from their coarse masks (`box_selection`); mask_threshold:
            see `Refiner.refine`; whole: False for changed slices only.
        arrays: to load the volume, image: raw intensities (K, J, I); then or later coarse_LABEL:
            (k, j, i) probabilities, or a bool mask, of a block, and first_LABEL: the block's first
            voxel (k, j, i), by default 0, for any of the organs.
        context: progress and cancellation.

    Returns:
        Reply: axis: 0, 1 or 2 (I, J or K), which is sliced; changed: indices of the slices that
        were decided anew since the last result; chosen: boxes, mask_prompt and keep_unboxed of the
        organs whose boxes were chosen, None without any; organs: `OrganReport`s, {label, name,
        boxes, kept: {slice: reason}, dice, voxels_before, voxels_after, predicted_iou};
        encoder_passes; seconds: per stage; sam: {name, kind, identity}; device.
        Arrays: labels, (K, J, I); or, if `whole` is False, (changed slices, rows, columns).

    Raises:
        WorkerError: of kind `UNKNOWN_VOLUME`, the worker was restarted or had to forget.
        BundleError, DeviceError, VolumeError, PromptError, Cancelled: as `load_sam` and `Refiner`.
    """
    sent, organs = _opened(parameters, arrays, context)
    before = sent.refiner.passes
    organs, chosen = _chosen(sent, organs, parameters.get("choose", ()), context)
    refinement = sent.refiner.refine(
        organs,
        mask_threshold=parameters.get("mask_threshold", 0.5),
        progress=context.progress,
        cancelled=context.cancelled,
    )
    reply = {
        "axis": sent.grid.axis,
        "changed": list(refinement.changed),
        "chosen": chosen,
        "organs": [
            asdict(report) | {"kept": {str(k): reason for k, reason in report.kept.items()}}
            for report in refinement.reports
        ],
        "encoder_passes": sent.refiner.passes - before,
        "seconds": refinement.seconds,
        "sam": sent.model.identify(),
        "device": str(sent.model.device),
    }
    labels = refinement.labels.array
    if not parameters.get("whole", True):
        labels = sent.grid.stack(labels)[list(refinement.changed)]
    return reply, {"labels": labels}


TASKS: dict[str, Task] = {
    "embed": embed,
    "refine": refine,
    "segment_refined": segment_refined,
}


def _opened(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[SentVolume, list["OrganPrompt"]]:
    """Return the volume, loaded if it is new, and the organs that are asked about."""
    from .refiner import OrganPrompt

    check_request(parameters, {"volume": str, "boxes": str}, OPTIONS)
    frames = boxes_from_json(parameters["boxes"], "The request")
    if not frames:
        raise PromptError("There is no organ to refine; make boxes first.")
    sent = context.models.get(
        f"refinement {parameters['volume']}", lambda: _open(parameters, arrays, frames, context)
    )
    for name, array in arrays.items():
        if name.startswith("coarse_"):
            label = _label_of(name)
            first = tuple(arrays.get(f"first_{label}", (0, 0, 0)))
            patch = Patch(first, checked_probabilities(array, f"The array {name}"))
            sent.coarse[label] = patch.whole(sent.grid.geometry.shape)
    points = {
        int(label): {
            int(k): tuple(PointPrompt(*point) for point in some) for k, some in slices.items()
        }
        for label, slices in parameters.get("points", {}).items()
    }
    everything = [organ.label for organ in frames]
    return sent, [
        OrganPrompt(
            organ,
            sent.coarse.get(organ.label),
            points.get(organ.label, {}),
            mask_prompt=organ.label in parameters.get("mask_prompt", everything),
            keep_unboxed=organ.label in parameters.get("keep_unboxed", everything),
        )
        for organ in frames
    ]


def _label_of(name: str) -> int:
    label = name.removeprefix("coarse_")
    if not (label.isdecimal() and label.isascii()):
        raise PromptError(f"The array {name} names no label; call it coarse_LABEL.")
    return int(label)


def _chosen(
    sent: SentVolume, organs: list["OrganPrompt"], labels: Sequence[int], context: Context
) -> tuple[list["OrganPrompt"], dict[str, Any] | None]:
    """Choose the boxes of the organs with some labels, as far as they have a coarse mask.

    Returns:
        All organs, and the choice for the reply; None if nothing was to be chosen.
    """
    coarse = [
        CoarseOrgan(organ.frames.name, organ.frames.label, organ.coarse)
        for organ in organs
        if organ.frames.label in labels and organ.coarse is not None
    ]
    if not coarse:
        return organs, None
    from .box_selection import choose_prompts

    prompts = choose_prompts(
        sent.refiner, coarse, progress=context.progress, cancelled=context.cancelled
    )
    choice = {
        "boxes": boxes_to_json([prompt.frames for prompt in prompts]),
        "mask_prompt": [prompt.frames.label for prompt in prompts if prompt.mask_prompt],
        "keep_unboxed": [prompt.frames.label for prompt in prompts if prompt.keep_unboxed],
    }
    by_label = {prompt.frames.label: prompt for prompt in prompts}
    return [by_label.get(organ.frames.label, organ) for organ in organs], choice


def _open(
    parameters: dict[str, Any],
    arrays: dict[str, np.ndarray],
    frames: tuple[KeyFrames, ...],
    context: Context,
) -> SentVolume:
    """Load a volume and its SAM."""
    if "image" not in arrays:
        raise WorkerError(
            UNKNOWN_VOLUME, "The worker does not know this volume any more.", "Send it again."
        )
    from ..sam.embeddings import EmbeddingCache
    from ..sam.models import load_sam
    from .refiner import Refiner

    check_request(parameters, {"sam": str, **GRID}, {})
    context.progress("load", 0.0)
    sam, kind = parameters["sam"], parameters.get("sam_kind")
    device = parameters.get("device", "auto")
    model = context.models.get(f"sam {sam} {kind} {device}", lambda: load_sam(sam, kind, device))
    geometry = Geometry.from_json(parameters)
    grid = SliceGrid(geometry, frames[0].grid.axis)
    refiner = Refiner(
        Volume(arrays["image"], geometry),
        grid,
        model,
        modality=parameters.get("modality"),
        mosaic=parameters.get("mosaic", "crops"),
        cache=context.models.get("embeddings", EmbeddingCache),
    )
    return SentVolume(refiner, model, grid)
