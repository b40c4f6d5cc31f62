# SPDX-License-Identifier: Apache-2.0
"""Results as rows for programs and as text for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from SAMRefineLib.refine.results import OrganReport, Refinement
    from SRCSMSegmenterLib.geometry import Geometry

Rows = list[dict[str, Any]]


def refinement_rows(refinement: "Refinement", geometry: "Geometry") -> Rows:
    """Return what happened to each organ, a row per organ."""
    return [_refinement_row(report, geometry.voxel_ml) for report in refinement.reports]


def refinement_text(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `refinement_rows` as a table."""
    lines = [f"  {'organ':<20} boxes  ml before     after  Dice between  coarse mask kept in"]
    for row in rows:
        dice, before, kept = "-", "-", "-"
        if row["dice"] is not None:
            dice, before = f"{row['dice']:.3f}", f"{row['ml_before']:.1f}"
            kept = ranges([int(k) for k in row["kept"]]) or "-"
        lines.append(
            f"  {row['name']:<20} {row['boxes']:5d} {before:>10} {row['ml_after']:9.1f} "
            f"{dice:>13}  {kept}"
        )
    return "\n".join(lines)


def ranges(slices: Sequence[int]) -> str:
    """Format ascending slice numbers as ranges: 3, 4, 5, 9 -> "3-5, 9"."""
    runs: list[list[int]] = []
    for slice_index in slices:
        if runs and slice_index == runs[-1][-1] + 1:
            runs[-1][1:] = [slice_index]
        else:
            runs.append([slice_index])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _refinement_row(report: "OrganReport", voxel_ml: float) -> dict[str, Any]:
    return {
        "label": report.label,
        "name": report.name,
        "boxes": report.boxes,
        "dice": report.dice,
        "ml_before": report.voxels_before * voxel_ml if report.dice is not None else None,
        "ml_after": report.voxels_after * voxel_ml,
        "predicted_iou": report.predicted_iou,
        "kept": {str(k): reason for k, reason in report.kept.items()},
    }
