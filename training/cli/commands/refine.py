# SPDX-License-Identifier: Apache-2.0
"""``srcsm refine``: SAM redraws organs within boxes."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SAMRefineLib.boxes.boxes import SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.boxes.key_frames import KeyFrames, load_boxes
from SAMRefineLib.refine.refiner import OrganPrompt, refine
from SAMRefineLib.refine.results import OrganReport, Refinement
from SAMRefineLib.sam.catalogue import default_for, find_sams, is_sam
from SAMRefineLib.sam.models import SamModel, load_sam
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.endings import stem
from SRCSMSegmenterLib.errors import BundleError, ConfigError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.models.catalogue import shipped_folder, shipped_models_folder
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import read_volume, write_labels, write_volume

from ..console import make_folder, output_files, print_json, progress_display, writing
from .boxes import (
    numbers,
    picture_path,
    read_coarse,
    require_labels,
)


def run(arguments: argparse.Namespace) -> int:
    """Refine a scan's organs, write them and say what changed."""
    require_labels(arguments)
    (output,) = output_files([arguments.scan], arguments.output, ".seg.nrrd")
    confidence = None
    if arguments.confidence:
        (confidence,) = output_files(
            [arguments.scan], arguments.confidence, labels=False, taken=[output]
        )
    if arguments.pictures:
        make_folder(arguments.pictures)
    scan = read_volume(arguments.scan, arguments.series)
    organs = read_organs(arguments, scan.geometry)
    modality = arguments.modality or guess_modality(scan.array)
    model = find_sam(arguments.sam, arguments.sam_kind, modality, arguments.device)
    started = time.perf_counter()
    with progress_display(arguments.scan.name) as show:
        found = refine(
            scan,
            organs,
            model,
            modality=modality,
            mosaic=arguments.mosaic,
            mask_threshold=arguments.mask_threshold,
            progress=lambda stage, fraction: show(round(100 * fraction), 100, stage),
        )
    seconds = time.perf_counter() - started
    segments = [segment_for(organ.frames.name, organ.frames.label) for organ in organs]
    with writing():
        write_labels(output, found.labels, segments)
        if confidence:
            write_volume(confidence, Volume(found.confidence().astype(np.float32), scan.geometry))
    pictures = []
    if arguments.pictures:
        start = arguments.pictures / stem(arguments.scan)
        pictures = draw_refinement(start, scan, organs, found)
    rows = as_rows(found, scan.geometry)
    if arguments.json:
        print_json(
            {
                "input": str(arguments.scan),
                "output": str(output),
                "confidence": str(confidence) if confidence else None,
                "sam": model.identify(),
                "device": str(model.device),
                "organs": rows,
                "encoder_passes": found.encoder_passes,
                "seconds": round(seconds, 3),
                "pictures": [str(path) for path in pictures],
            }
        )
    else:
        print(f"{output} ({model.name}, {found.encoder_passes} encoder passes, {seconds:.1f} s)")
        print(as_text(rows))
    return 0


def find_sam(sam: str | None, kind: str | None, domain: str, device: str) -> SamModel:
    """The SAM of a name or path, by default the shipped one of a domain ("CT" or "MR").

    Raises:
        BundleError: absent (names those there are), altered, or of an unknown kind.
        DeviceError: unknown or absent device.
    """
    name, shipped = sam or default_for(domain), shipped_models_folder()
    folder = shipped_folder(name)
    if not Path(name).exists() and not (folder and is_sam(folder)):
        names = ", ".join(folder.name for folder in find_sams(shipped)) or "none"
        raise BundleError(
            f"There is no SAM {name}; give --sam a checkpoint file, a folder, or one of those in "
            f"{shipped}: {names}."
        )
    return load_sam(name, kind, str(resolve_device(device)))


def read_organs(arguments: argparse.Namespace, geometry: Geometry) -> list[OrganPrompt]:
    """The organs with boxes, and those of the coarse label map alone, which stay as they are."""
    frames = load_boxes(arguments.boxes)
    if not frames:
        raise ConfigError(f"{arguments.boxes} holds no organ; make boxes with srcsm boxes.")
    grid = SliceGrid(geometry, frames[0].grid.axis)
    for organ in frames:
        organ.require(grid)
    coarse: dict[int, CoarseOrgan] = {}
    if arguments.coarse:
        found = read_coarse(arguments.coarse, arguments.coarse_confidence, geometry)
        coarse = {organ.label: organ for organ in found}
    boxed = {organ.label for organ in frames}
    others = [KeyFrames(o.name, o.label, grid) for o in coarse.values() if o.label not in boxed]
    return [
        OrganPrompt(
            organ,
            coarse[organ.label].mask if organ.label in coarse else None,
            mask_prompt=arguments.mask_prompt,
        )
        for organ in (*frames, *others)
    ]


def as_rows(found: Refinement, geometry: Geometry) -> list[dict[str, Any]]:
    """What happened to each organ, for programs."""
    return [_as_row(report, geometry.voxel_ml) for report in found.reports]


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same for a reader."""
    lines = [f"  {'organ':<20} boxes  ml before     after  Dice between  coarse mask stays in"]
    for row in rows:
        dice, before = "-", "-"
        if row["dice"] is not None:
            dice, before = f"{row['dice']:.3f}", f"{row['ml_before']:.1f}"
        kept = numbers([int(n) for n in row["kept"]]) or "-"
        lines.append(
            f"  {row['name']:<20} {row['boxes']:5d} {before:>10} {row['ml_after']:9.1f} "
            f"{dice:>13}  {kept if row['dice'] is not None else '-'}"
        )
    return "\n".join(lines)


def draw_refinement(
    start: Path, scan: Volume, organs: Sequence[OrganPrompt], found: Refinement
) -> list[Path]:
    """A picture per organ with boxes, called `start`_ORGAN.png."""
    from ...evaluation.overlays import COARSE_COLOUR, REFINED_COLOUR, Outline, overlay_picture

    paths = []
    for organ in organs:
        boxes = organ.frames.effective()
        if not boxes:
            continue
        outlines = [Outline("refined", found.labels.array == organ.frames.label, REFINED_COLOUR)]
        if organ.coarse is not None:
            outlines.insert(0, Outline("coarse", organ.coarse >= 0.5, COARSE_COLOUR))
        path = picture_path(start, organ.frames.name)
        overlay_picture(path, scan.array, organ.frames.grid, organ.frames.name, boxes, outlines)
        paths.append(path)
    return paths


def _as_row(report: OrganReport, millilitres: float) -> dict[str, Any]:
    return {
        "label": report.label,
        "name": report.name,
        "boxes": report.boxes,
        "dice": report.dice,
        "ml_before": report.voxels_before * millilitres if report.dice is not None else None,
        "ml_after": report.voxels_after * millilitres,
        "predicted_iou": report.predicted_iou,
        "kept": {str(n): reason for n, reason in report.kept.items()},
    }
