# SPDX-License-Identifier: Apache-2.0
"""Which boxes to draw around what a coarse network found, told without the truth.

A network that is sure of what it finds gets boxes around what it is sure of, and SAM its mask as a
first guess beside them; slices that show only what it is unsure of are left empty. A network on
a modality that it was not made for finds parts of organs, and is unsure of the rest: there boxes
around all that may be the organ are better, without a guess that would hold SAM to the part. How
sure the network is, and SAM's own estimates of its masks, tell which. The numbers were set on
eight development cases (BENCHMARKS.md).
"""

from collections.abc import Callable, Sequence

from SRCSMSegmenterLib.geometry import Volume

from ..boxes.boxes import SliceGrid
from ..boxes.coarse import SURE, UNSURE, CoarseOrgan, sureness
from ..boxes.key_frames import KeyFrames
from ..sam.models import SamModel
from ..sam.prediction import Progress
from .refiner import OrganPrompt, Refinement, Refiner

POSSIBLE = 0.1
"""As `SURE`, for boxes around all that may be the organ."""

TOLERANCE = 0.03
"""SAM's estimated IoU in the large boxes may be lower by so much: it is asked in more slices."""


def refine_coarse(
    volume: Volume,
    organs: Sequence[CoarseOrgan],
    grid: SliceGrid,
    model: SamModel,
    *,
    modality: str | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> Refinement:
    """Choose the boxes and refine, all by default; for errors see `Refiner`."""
    refiner = Refiner(volume, grid, model, modality=modality)
    return refiner.refine(choose_prompts(refiner, organs, progress=progress), progress=progress)


def choose_prompts(
    refiner: Refiner,
    organs: Sequence[CoarseOrgan],
    *,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[OrganPrompt]:
    """Boxes of each organ, and whether SAM is to see its coarse mask.

    What the refiner encodes here it does not encode again. The stage that progress is told of is
    "choose"; for the other arguments and errors see `Refiner.refine`.
    """
    grid = refiner.grid
    chosen = {organ.value: prompt(organ, grid, SURE) for organ in organs}
    unsure = [organ for organ in organs if sureness(organ.mask) < UNSURE]
    if not unsure:
        return list(chosen.values())
    small, large = (
        {organ.value: prompt(organ, grid, confidence, mask_prompt=False) for organ in unsure}
        for confidence in (SURE, POSSIBLE)
    )
    small_iou, large_iou = (
        refiner.estimates(
            list(prompts.values()),
            progress=lambda stage, fraction, half=half: progress("choose", (half + fraction) / 2),
            cancelled=cancelled,
        )
        for half, prompts in enumerate((small, large))
    )
    for value, rival in large.items():
        if value in large_iou and large_iou[value] + TOLERANCE > small_iou.get(value, 0.0):
            chosen[value] = rival
    return list(chosen.values())


def prompt(
    organ: CoarseOrgan, grid: SliceGrid, box_confidence: float, *, mask_prompt: bool = True
) -> OrganPrompt:
    """Boxes around what is more probable than `box_confidence`; with `mask_prompt` nothing else."""
    frames = KeyFrames.from_coarse(
        organ.name, organ.value, organ.mask, grid, box_confidence=box_confidence
    )
    return OrganPrompt(frames, organ.mask, mask_prompt=mask_prompt, keep_unboxed=not mask_prompt)
