# SPDX-License-Identifier: Apache-2.0
"""Which boxes to draw around what a coarse network found, told without the truth.

A network that is sure of what it finds gets boxes around what it is sure of, and SAM its mask as a
first guess beside them; slices that show only what it is unsure of are switched off. A network on
a modality that it was not made for finds parts of organs, and is unsure of the rest: there boxes
around all that may be the organ are better, without a guess that would hold SAM to the part. How
sure the network is, and SAM's own estimates of its masks, tell which. The numbers were set on
eight development cases (BENCHMARKS.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from SRCSMSegmenterLib.geometry import Volume

from .boxes import SliceGrid, slices_without_box
from .coarse import THRESHOLD, CoarseOrgan
from .embeddings import EmbeddingCache
from .key_frames import KeyFrames
from .models import SamModel
from .prediction import MosaicMode, Progress
from .refinement import OrganPrompt, Refinement, refine
from .trust import ANYTHING

SURE = 0.75
"""The paper's theta 1: boxes around what is more probable."""

POSSIBLE = 0.1
"""The same for boxes around all that may be the organ."""

UNSURE = 0.75
"""A network is unsure of an organ where it is sure of a smaller part of its mask."""

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
    """Choose the boxes and refine, all by default; for errors see `refinement.refine`."""
    settings = {"modality": modality, "cache": EmbeddingCache(), "progress": progress}
    prompts = choose_prompts(volume, organs, grid, model, **settings)
    return refine(volume, prompts, model, **settings)


def choose_prompts(
    volume: Volume,
    organs: Sequence[CoarseOrgan],
    grid: SliceGrid,
    model: SamModel,
    *,
    modality: str | None = None,
    mosaic: MosaicMode = "crops",
    cache: EmbeddingCache | None = None,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[OrganPrompt]:
    """Boxes of each organ, and whether SAM is to see its coarse mask.

    For the other arguments and errors see `refinement.refine`; with the same cache, what is
    encoded here is not encoded again.
    """
    cache = EmbeddingCache() if cache is None else cache
    chosen = {organ.value: prompt(organ, grid, SURE) for organ in organs}
    unsure = [organ for organ in organs if sureness(organ.mask) < UNSURE]
    rivals = {organ.value: prompt(organ, grid, POSSIBLE, mask_prompt=False) for organ in unsure}
    if not rivals:
        return list(chosen.values())

    def estimates(prompts: Sequence[OrganPrompt]) -> dict[int, float | None]:
        """SAM's mean IoU of each organ, boxes alone given."""
        found = refine(
            volume,
            prompts,
            model,
            modality=modality,
            mosaic=mosaic,
            trust=ANYTHING,
            cache=cache,
            progress=progress,
            cancelled=cancelled,
        )
        return {report.value: report.predicted_iou for report in found.reports}

    small = estimates([prompt(organ, grid, SURE, mask_prompt=False) for organ in unsure])
    large = estimates(list(rivals.values()))
    for value, rival in rivals.items():
        if large[value] is not None and large[value] + TOLERANCE > (small[value] or 0.0):
            chosen[value] = rival
    return list(chosen.values())


def prompt(
    organ: CoarseOrgan, grid: SliceGrid, threshold: float, *, mask_prompt: bool = True
) -> OrganPrompt:
    """Boxes around what is more probable than `threshold`; with `mask_prompt` nothing else."""
    frames = KeyFrames.from_coarse(organ.name, organ.value, organ.mask, grid, threshold=threshold)
    if mask_prompt and frames.automatic:
        unsure = slices_without_box(organ.mask, grid, frames.automatic)
        frames = replace(frames, off=frozenset(unsure))
    return OrganPrompt(frames, organ.mask, mask_prompt=mask_prompt)


def sureness(mask: np.ndarray) -> float:
    """Share of a coarse mask that the network is sure of; 1 for a bool mask or an empty one."""
    if mask.dtype == bool:
        return 1.0
    shown = int((mask >= THRESHOLD).sum())
    return int((mask > SURE).sum()) / shown if shown else 1.0
