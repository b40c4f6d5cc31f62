# SPDX-License-Identifier: Apache-2.0
"""Results as rows for programs and as text for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.terminology import readable

if TYPE_CHECKING:
    from SAMRefineLib.refine.results import OrganReport, Refinement
    from SRCSMSegmenterLib.geometry import Geometry
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.terminology import Segment

Rows = list[dict[str, Any]]

SLICES_SHOWN = 5
"""Least certain slices in a text."""


def organ_rows(segmentation: "Segmentation", labels: Sequence["Segment"]) -> Rows:
    """Return volume in ml, mean confidence and the slices to check of every organ."""
    from SRCSMSegmenterLib.components import label_counts
    from SRCSMSegmenterLib.slices_to_check import slices_to_check

    geometry = segmentation.labels.geometry
    thickness = float(geometry.spacing[geometry.slice_axis])
    listed = {
        label.value: slices_to_check(dict(segmentation.least_certain[label.value]), thickness)
        for label in labels
    }
    array, voxel_ml = segmentation.labels.array, geometry.voxel_ml
    voxels = label_counts(array, 1 + max(label.value for label in labels))
    return [
        {
            "label": label.value,
            "name": label.name,
            "volume_ml": int(voxels[label.value]) * voxel_ml,
            "confidence": segmentation.mean_confidence.get(label.value),
            "least_certain_slices": [
                {"slice": number, "uncertainty_mm": uncertainty}
                for number, uncertainty in segmentation.least_certain[label.value]
                if number in listed[label.value]
            ],
        }
        for label in labels
    ]


def segmentation_text(result: dict[str, Any]) -> str:
    """Format a scan's entry in the JSON output of ``srcsm segment`` for a reader."""
    matching = "with" if result["source_matching"] else "without"
    lines = [f"{result['output']} ({result['modality']}, {matching} source matching)"]
    if "frames" in result:
        return "\n".join(lines + _frame_lines(result["frames"]))
    along, width = result["slice_axis"], name_width(result["organs"])
    lines.append(
        f"  {'organ':{width}} {'ml':>9}  confidence  least certain slices ({along} from 0)"
    )
    for organ in result["organs"]:
        sure = "-" if organ["confidence"] is None else f"{organ['confidence']:.2f}"
        slices = ", ".join(str(s["slice"]) for s in organ["least_certain_slices"][:SLICES_SHOWN])
        name = f"{readable(organ['name']):{width}}"
        lines.append(f"  {name} {organ['volume_ml']:9.1f}  {sure:>10}  {slices}".rstrip())
    if result["refinement"]:
        lines += ["  refined:", refinement_text(result["refinement"]["organs"])]
    return "\n".join([*lines, *(f"  {message}" for message in result["messages"])])


def _frame_lines(frames: Sequence[dict[str, Any]]) -> list[str]:
    """Format the organs' volumes in every frame, counted from 0, and the messages, each once."""
    width = name_width(frames[0]["organs"])
    lines = [f"  {'organ':{width}} ml in each of {len(frames)} volumes"]
    for organs in zip(*(frame["organs"] for frame in frames), strict=True):
        volumes = " ".join(f"{organ['volume_ml']:.1f}" for organ in organs)
        lines.append(f"  {readable(organs[0]['name']):{width}} {volumes}")
    said: dict[str, list[int]] = {}
    for number, frame in enumerate(frames):
        for message in frame["messages"]:
            said.setdefault(message, []).append(number)
    for message, numbers in said.items():
        where = "" if len(numbers) == len(frames) else f"volume {ranges(numbers)}: "
        lines.append(f"  {where}{message}")
    return lines


def refinement_rows(refinement: "Refinement", geometry: "Geometry") -> Rows:
    """Return the change of each organ, a row per organ."""
    return [_refinement_row(report, geometry.voxel_ml) for report in refinement.reports]


def refinement_text(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `refinement_rows` as a table."""
    width = name_width(rows)
    lines = [f"  {'organ':{width}} boxes  ml before     after  Dice between  coarse mask kept in"]
    for row in rows:
        dice, before, kept = "-", "-", "-"
        if row["dice"] is not None:
            dice, before = f"{row['dice']:.3f}", f"{row['ml_before']:.1f}"
            kept = ranges([int(k) for k in row["kept"]]) or "-"
        lines.append(
            f"  {readable(row['name']):{width}} {row['boxes']:5d} {before:>10} "
            f"{row['ml_after']:9.1f} "
            f"{dice:>13}  {kept}"
        )
    return "\n".join(lines)


def name_width(rows: Sequence[dict[str, Any]]) -> int:
    """Return the width of the column of names in a text."""
    return max([20, *(len(row["name"]) for row in rows)])


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
