# SPDX-License-Identifier: Apache-2.0
"""Answers of SAM taken over by the organs of a session. It needs neither Slicer nor torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..boxes.boxes import SliceGrid
from ..boxes.key_frames import boxes_from_json
from ..boxes.patches import unpacked
from .client import RefineRun
from .organ_state import OrganState, Report

Masks = dict[int, np.ndarray]
"""By slice index: bool (rows, columns)."""


def with_choices(
    organs: Iterable[OrganState], run: RefineRun
) -> tuple[tuple[OrganState, ...], list[OrganState]]:
    """Take over the boxes that SAM chose, except for organs that were edited meanwhile.

    Args:
        organs: the organs now.
        run: a run with `chosen` boxes or without any.

    Returns:
        The organs now, and those that were asked about, both with the chosen boxes.
    """
    asked = list(run.request.organs)
    if run.chosen is None:
        return tuple(organs), asked
    frames = {each.label: each for each in boxes_from_json(run.chosen["boxes"])}
    before = {organ.label: organ.frames for organ in asked}

    def decided(organ: OrganState) -> OrganState:
        boxes = frames.get(organ.label)
        return organ if boxes is None else organ.with_choice(boxes, run.chosen)

    now = tuple(
        decided(organ) if organ.awaits_choice and organ.frames == before.get(organ.label) else organ
        for organ in organs
    )
    return now, [decided(organ) for organ in asked]


def with_results(
    organs: Iterable[OrganState],
    asked: Sequence[OrganState],
    run: RefineRun,
    slice_index: int | None,
) -> tuple[list[OrganState], dict[str, Masks]]:
    """Take over the masks that SAM found.

    Args:
        organs: the organs now.
        asked: the organs when SAM was asked; those that were removed meanwhile are left out.
        run: the run with the label map.
        slice_index: the slice to be redrawn; None for all.

    Returns:
        The refined organs, and the masks to be drawn by segment ID and slice index.
    """
    reports = {row["label"]: Report.from_json(row) for row in run.reports}
    slices = range(len(run.label_map)) if slice_index is None else [slice_index]
    now, empty = {organ.label: organ for organ in organs}, np.zeros(run.label_map[0].shape, bool)
    refined, drawn = [], {}
    for each in asked:
        organ = now.get(each.label)
        if organ is None:
            continue
        masks = {k: _mask(run.label_map[k], each.label, empty) for k in slices}
        if slice_index is None:
            after = organ.with_result(each, reports[each.label], masks)
            drawn_anew = True
            if organ.result is not None and not organ.kept:
                # Slices of an unchanged result keep what was drawn there by hand since.
                last, result = organ.result, after.result
                masks = {k: mask for k, mask in masks.items() if result.get(k) != last.get(k)}
                drawn_anew = len(masks) == len(slices)
            after = replace(after, by_hand=organ.by_hand and not drawn_anew)
        else:
            after = organ.with_slice(slice_index, masks[slice_index])
        drawn[organ.segment] = masks
        refined.append(after)
    return refined, drawn


def _mask(labels: np.ndarray, label: int, empty: np.ndarray) -> np.ndarray:
    """Return the mask of a label in a slice; `empty` if it shows nothing, for many do not."""
    mask = labels == label
    return mask if mask.any() else empty


def result_masks(result: Mapping[int, bytes], grid: SliceGrid) -> Masks:
    """Unpack a result (`OrganState.result`) to the masks of all slices, by slice index."""
    shape = grid.shape
    empty = np.zeros(shape, bool)
    return {k: unpacked(result[k], shape) if k in result else empty for k in range(grid.count)}
