# SPDX-License-Identifier: Apache-2.0
"""Selection of automatic boxes around what a coarse network found, without the truth.

If the network is certain of an organ, boxes are drawn around what it is certain of, SAM is given
its mask as a mask prompt, and slices that show only uncertain voxels are left empty. On a modality
that it was not made for, a network finds parts of organs and is uncertain of the rest. Then boxes
around all that may be the organ are better, without a mask prompt that would hold SAM to the part.
The network's certainty and SAM's own estimates of its masks decide. The limits were set on eight
development cases (BENCHMARKS.md).
"""

from collections.abc import Callable, Sequence

import numpy as np

from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import BOX_CONFIDENCE, CoarseOrgan, boxes_from_coarse, is_uncertain
from ..boxes.key_frames import KeyFrames
from ..sam.models import SamModel
from ..sam.prediction import Progress
from .refiner import OrganPrompt, Refiner
from .results import Refinement

POSSIBLE = 0.1
"""Probability above which a voxel may be the organ, for large boxes."""

TOLERANCE = 0.03
"""Allowed loss of SAM's estimated IoU in large boxes, as these cover more slices."""


def refine_coarse(
    volume: Volume,
    organs: Sequence[CoarseOrgan],
    grid: SliceGrid,
    model: SamModel,
    *,
    modality: str | None = None,
    taken: np.ndarray | None = None,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Refinement:
    """Choose boxes and refine with default settings; for arguments and errors see `Refiner`."""
    refiner = Refiner(volume, grid, model, modality=modality, taken=taken)
    prompts = choose_prompts(refiner, organs, progress=progress, cancelled=cancelled)
    return refiner.refine(prompts, progress=progress, cancelled=cancelled)


def choose_prompts(
    refiner: Refiner,
    organs: Sequence[CoarseOrgan],
    *,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[OrganPrompt]:
    """Choose the boxes of each organ, and whether SAM is given its coarse mask.

    Canvases that are encoded here are not encoded again by the refiner. The stage reported to
    `progress` is "choose"; for the other arguments and errors see `Refiner.refine`.
    """
    grid = refiner.grid
    chosen = {organ.label: prompt(organ, grid, BOX_CONFIDENCE) for organ in organs}
    uncertain = [organ for organ in organs if is_uncertain(organ.mask)]
    if not uncertain:
        return list(chosen.values())
    small, large = (
        {organ.label: prompt(organ, grid, confidence, mask_prompt=False) for organ in uncertain}
        for confidence in (BOX_CONFIDENCE, POSSIBLE)
    )
    small_iou, large_iou = (
        refiner.estimates(
            list(prompts.values()),
            progress=lambda stage, fraction, half=half: progress("choose", (half + fraction) / 2),
            cancelled=cancelled,
        )
        for half, prompts in enumerate((small, large))
    )
    for label, rival in large.items():
        if label in large_iou and large_iou[label] + TOLERANCE > small_iou.get(label, 0.0):
            chosen[label] = rival
    return list(chosen.values())


def prompts_as_in_slicer(
    refiner: Refiner,
    frames: Sequence[KeyFrames],
    coarse: Sequence[CoarseOrgan],
    *,
    progress: Progress = lambda stage, fraction: None,
) -> list[OrganPrompt]:
    """Turn boxes of a file into prompts as a session of Slicer does.

    Slices without a box are left empty if the automatic boxes are those of `BOX_CONFIDENCE`, and
    SAM chooses the boxes of uncertain organs that nobody edited; other boxes are taken as they are,
    and the coarse mask stays in slices without one.

    Args:
        refiner: the volume.
        frames: the boxes.
        coarse: the coarse organs; those without boxes stay as they are (`OrganPrompt.stays`).
        progress: called with the stage "choose".
    """
    prompts, undecided = [], []
    masks = {organ.label: organ.mask for organ in coarse}
    for each in frames:
        mask = masks.pop(each.label, None)
        default = mask is not None and each.automatic == boxes_from_coarse(mask, refiner.grid)
        prompts.append(OrganPrompt(each, mask, keep_unboxed=not default))
        if default and each.automatic and each == each.reset() and is_uncertain(mask):
            undecided.append(CoarseOrgan(each.name, each.label, mask))
    chosen = choose_prompts(refiner, undecided, progress=progress) if undecided else ()
    by_label = {prompt.frames.label: prompt for prompt in chosen}
    others = [
        OrganPrompt(KeyFrames(organ.name, organ.label, refiner.grid), organ.mask, stays=True)
        for organ in coarse
        if organ.label in masks
    ]
    return [*(by_label.get(prompt.frames.label, prompt) for prompt in prompts), *others]


def prompt(
    organ: CoarseOrgan, grid: SliceGrid, box_confidence: float, *, mask_prompt: bool = True
) -> OrganPrompt:
    """Draw boxes around voxels more probable than `box_confidence`.

    Without `mask_prompt` slices without a box keep the coarse mask; with it they are left empty.
    """
    frames = KeyFrames.from_coarse(
        organ.name, organ.label, organ.mask, grid, box_confidence=box_confidence
    )
    return OrganPrompt(frames, organ.mask, mask_prompt=mask_prompt, keep_unboxed=not mask_prompt)
