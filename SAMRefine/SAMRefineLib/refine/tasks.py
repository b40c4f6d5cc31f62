# SPDX-License-Identifier: Apache-2.0
"""What a worker can do for the refinement (see `SRCSMSegmenterLib.worker.tasks`).

A session is a volume that was sent once: it stays with the worker, so that a moved box costs the
message about the box alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.worker.protocol import WorkerError
from SRCSMSegmenterLib.worker.tasks import Context, Task

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import CoarseOrgan
from ..boxes.key_frames import KeyFrames, boxes_from_json, boxes_to_json

if TYPE_CHECKING:
    from ..sam.models import SamModel
    from .refiner import OrganPrompt, Refiner

UNKNOWN_SESSION = "UnknownSession"
"""Kind of the `WorkerError` after which the volume has to be sent again."""


@dataclass(frozen=True, eq=False)
class Session:
    """A volume with its coarse masks, by label."""

    refiner: "Refiner"
    model: "SamModel"
    grid: SliceGrid
    coarse: dict[int, np.ndarray] = field(default_factory=dict)


def embed(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Open a session and compute the embeddings that its boxes need, ahead of `refine`.

    Args:
        parameters: as `refine`; mask_threshold and whole play no part.
        arrays: as `refine`.

    Returns:
        {chosen, encoder_passes, device}.
    """
    session, organs = _opened(parameters, arrays, context)
    before = session.refiner.passes
    organs, chosen = _chosen(session, organs, parameters.get("choose", ()), context)
    session.refiner.embed(organs, progress=context.progress, cancelled=context.cancelled)
    return {
        "chosen": chosen,
        "encoder_passes": session.refiner.passes - before,
        "device": str(session.model.device),
    }, {}


def refine(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Refine organs (`refiner.Refiner`).

    Args:
        parameters: session: a name for this volume, SAM and mosaic together, another one for
            anything else; boxes: text of `boxes_to_json`; to open a session, sam: name, folder or
            file (`load_sam`); size: (I, J, K); affine: 16 numbers, row by row, IJK -> RAS mm. May
            be left out: sam_kind; modality: "CT", "MR" or None (guessed); mosaic: see
            `MosaicMode`; device: see `resolve_device`; points: {label: {slice: [[x, y, positive],
            ...]}}; mask_prompt, keep_unboxed: labels of the organs for which these are so (see
            `OrganPrompt`), left out where it is so for all; choose: labels of organs whose boxes
            are to be chosen anew from their coarse masks (`box_selection`);
            mask_threshold: see `Refiner.refine`; whole: False for changed slices.
        arrays: to open a session, image: raw intensities (K, J, I); then or later coarse_LABEL:
            (K, J, I) probabilities, or a bool mask, for any of the organs.

    Returns:
        Reply: axis: 0, 1 or 2 (I, J or K), which is sliced; changed: numbers of the slices that
        were decided anew since the session's last result; chosen: boxes, mask_prompt and
        keep_unboxed of the organs whose boxes were chosen, None without any; organs:
        `OrganReport`s, {value, name,
        boxes, kept: {slice: reason}, dice, voxels_before, voxels_after, predicted_iou};
        encoder_passes; seconds: per stage; sam: {name, kind, identity}; device.
        Arrays: labels, (K, J, I); or, where `whole` is False, (changed, rows, columns).

    Raises:
        WorkerError: of kind `UNKNOWN_SESSION`, the worker was started anew or had to forget.
        BundleError, DeviceError, VolumeError, PromptError, Cancelled: as `load_sam` and `Refiner`.
    """
    session, organs = _opened(parameters, arrays, context)
    before = session.refiner.passes
    organs, chosen = _chosen(session, organs, parameters.get("choose", ()), context)
    found = session.refiner.refine(
        organs,
        mask_threshold=parameters.get("mask_threshold", 0.5),
        progress=context.progress,
        cancelled=context.cancelled,
    )
    model = session.model
    reply = {
        "axis": session.grid.axis,
        "changed": list(found.changed),
        "chosen": chosen,
        "organs": [
            asdict(report) | {"kept": {str(n): reason for n, reason in report.kept.items()}}
            for report in found.reports
        ],
        "encoder_passes": session.refiner.passes - before,
        "seconds": found.seconds,
        "sam": model.identify(),
        "device": str(model.device),
    }
    labels = found.labels.array
    if not parameters.get("whole", True):
        labels = session.grid.stack(labels)[list(found.changed)]
    return reply, {"labels": labels}


TASKS: dict[str, Task] = {"embed": embed, "refine": refine}


def _opened(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[Session, list["OrganPrompt"]]:
    """The session, a new one where there is none yet, and what is asked of it."""
    from ..sam.prediction import Point
    from .refiner import OrganPrompt

    frames = boxes_from_json(parameters["boxes"], "The request")
    if not frames:
        raise PromptError("There is no organ to refine; make boxes first.")
    session = context.models.get(
        f"refinement {parameters['session']}", lambda: _open(parameters, arrays, frames, context)
    )
    for name, array in arrays.items():
        if name.startswith("coarse_"):
            session.coarse[int(name.removeprefix("coarse_"))] = array
    points = {
        int(value): {int(n): tuple(Point(*point) for point in some) for n, some in slices.items()}
        for value, slices in parameters.get("points", {}).items()
    }
    everything = [organ.value for organ in frames]
    return session, [
        OrganPrompt(
            organ,
            session.coarse.get(organ.value),
            points.get(organ.value, {}),
            mask_prompt=organ.value in parameters.get("mask_prompt", everything),
            keep_unboxed=organ.value in parameters.get("keep_unboxed", everything),
        )
        for organ in frames
    ]


def _chosen(
    session: Session, organs: list["OrganPrompt"], values: Sequence[int], context: Context
) -> tuple[list["OrganPrompt"], dict[str, Any] | None]:
    """The organs, those with the labels `values` with other boxes, and what the reply says of it.
    Without a coarse mask there is nothing to choose from."""
    coarse = [
        CoarseOrgan(organ.frames.name, organ.frames.value, organ.coarse)
        for organ in organs
        if organ.frames.value in values and organ.coarse is not None
    ]
    if not coarse:
        return organs, None
    from .box_selection import choose_prompts

    found = choose_prompts(
        session.refiner, coarse, progress=context.progress, cancelled=context.cancelled
    )
    told = {
        "boxes": boxes_to_json([prompt.frames for prompt in found]),
        "mask_prompt": [prompt.frames.value for prompt in found if prompt.mask_prompt],
        "keep_unboxed": [prompt.frames.value for prompt in found if prompt.keep_unboxed],
    }
    by_value = {prompt.frames.value: prompt for prompt in found}
    return [by_value.get(organ.frames.value, organ) for organ in organs], told


def _open(
    parameters: dict[str, Any],
    arrays: dict[str, np.ndarray],
    frames: tuple[KeyFrames, ...],
    context: Context,
) -> Session:
    if "image" not in arrays:
        raise WorkerError(
            UNKNOWN_SESSION, "The worker does not know this volume any more.", "Send it again."
        )
    from ..sam.embeddings import EmbeddingCache
    from ..sam.models import load_sam
    from .refiner import Refiner

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
    return Session(refiner, model, grid)
