# SPDX-License-Identifier: Apache-2.0
"""``srcsm segment``."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SRCSMSegmenterLib.components import keep_largest_component
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import ConfigError, SourceMatchingError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.inference import Segmentation, segment
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.models.bundle import ModelBundle
from SRCSMSegmenterLib.source_matching import wanted
from SRCSMSegmenterLib.volume_io import read_volume, write_labels, write_volume

from ..console import (
    load_model,
    output_files,
    print_json,
    progress_display,
    say,
    writing,
)

if TYPE_CHECKING:  # refining needs packages that segmenting does not
    from SAMRefineLib.sam.models import SamModel

SLICES_SHOWN = 5


def run(arguments: argparse.Namespace) -> int:
    """Segment scans; one that cannot be used does not keep the others from being segmented."""
    if (arguments.sam or arguments.sam_kind) and not arguments.refine:
        raise ConfigError("--sam and --sam-kind need --refine.")
    scans = arguments.scans
    outputs = output_files(scans, arguments.output, arguments.format)
    confidences: list[Path | None] = [None] * len(scans)
    if arguments.confidence:
        confidences = output_files(
            scans, arguments.confidence, "_confidence.nii.gz", labels=False, taken=outputs
        )
    device = str(resolve_device(arguments.device))
    bundle = load_model(arguments.model)
    sam = None
    if arguments.refine:
        from .refine import find_sam

        sam = find_sam(arguments.sam, arguments.sam_kind, bundle.description.rule.modality, device)
    results, code = [], 0
    for scan, output, confidence in zip(scans, outputs, confidences, strict=True):
        try:
            result = segment_scan(scan, output, confidence, bundle, sam, device, arguments)
        except (VolumeError, SourceMatchingError) as error:
            say(f"srcsm: error: {error}")
            results.append({"input": str(scan), "error": str(error)})
            code = 3
            continue
        results.append(result)
        if not arguments.json:
            print(as_text(result))
    if arguments.json:
        print_json({"model": bundle.identify(), "device": device, "scans": results})
    return code


def segment_scan(
    scan: Path,
    output: Path,
    confidence: Path | None,
    bundle: ModelBundle,
    sam: "SamModel | None",
    device: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Segment one scan, refine it where there is a SAM, and write the results; returns what a
    program would want to know."""
    started = time.perf_counter()
    volume = read_volume(scan, arguments.series)
    seconds = {"read": time.perf_counter() - started}
    modality = arguments.modality or guess_modality(volume.array)
    matching = wanted(arguments.source_matching, modality, bundle.description.rule)
    with progress_display(scan.name) as show:
        found = segment(
            volume,
            bundle,
            modality=arguments.modality,
            source_matching=matching,
            device=device,
            keep_largest=arguments.keep_largest,
            keep_probabilities=sam is not None,
            progress=lambda stage, fraction: show(round(100 * fraction), 100, stage),
        )
    refined = None
    if sam is not None:
        found, refined = refine_scan(volume, found, bundle, sam, modality, arguments)
    started = time.perf_counter()
    with writing():
        write_labels(output, found.labels, bundle.description.labels)
        if confidence:
            write_volume(confidence, Volume(found.confidence.astype(np.float32), volume.geometry))
    seconds |= found.seconds | {"write": time.perf_counter() - started}
    return {
        "input": str(scan),
        "output": str(output),
        "confidence": str(confidence) if confidence else None,
        "modality": modality,
        "source_matching": matching,
        "organs": organs(found, bundle),
        "refinement": refined,
        "messages": found.messages,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def refine_scan(
    volume: Volume,
    found: Segmentation,
    bundle: ModelBundle,
    sam: "SamModel",
    modality: str,
    arguments: argparse.Namespace,
) -> tuple[Segmentation, dict[str, Any]]:
    """The segmentation with SAM's labels and confidence, and what happened to each organ.

    The least certain slices stay those of the network.
    """
    from SAMRefineLib.boxes.coarse import CoarseOrgan
    from SAMRefineLib.refine.box_selection import refine_coarse

    from .boxes import slice_grid
    from .refine import as_rows

    coarse = [
        CoarseOrgan(label.name, label.value, found.probabilities[label.value])
        for label in bundle.description.labels
    ]
    started = time.perf_counter()
    grid = slice_grid(volume.geometry, "auto")
    with progress_display("refining") as show:
        refined = refine_coarse(
            volume,
            coarse,
            grid,
            sam,
            modality=modality,
            progress=lambda stage, fraction: show(round(100 * fraction), 100, stage),
        )
    labels, confidence = refined.labels.array, refined.confidence()
    if arguments.keep_largest:
        keep_largest_component(labels, confidence)
    seconds = found.seconds | {"refine": time.perf_counter() - started}
    found = replace(found, labels=refined.labels, confidence=confidence, seconds=seconds)
    return found, {"sam": sam.identify(), "organs": as_rows(refined, volume.geometry)}


def organs(found: Segmentation, bundle: ModelBundle) -> list[dict[str, Any]]:
    """Volume in ml, mean confidence and least certain slices of every organ."""
    labels, millilitres = found.labels.array, found.labels.geometry.voxel_ml
    rows = []
    for label in bundle.description.labels:
        inside = found.confidence[labels == label.value]
        sure = float(inside.mean(dtype=np.float64)) if inside.size else None
        rows.append(
            {
                "label": label.value,
                "name": label.name,
                "volume_ml": inside.size * millilitres,
                "confidence": sure,
                "least_certain_slices": [
                    {"k": k, "uncertainty_mm": uncertainty}
                    for k, uncertainty in found.least_certain[label.value]
                ],
            }
        )
    return rows


def as_text(result: dict[str, Any]) -> str:
    """The same for a reader."""
    matching = "with" if result["source_matching"] else "without"
    lines = [
        f"{result['output']} ({result['modality']}, {matching} source matching)",
        f"  {'organ':<20} {'ml':>9}  confidence  least certain slices (k from 0)",
    ]
    for organ in result["organs"]:
        sure = "-" if organ["confidence"] is None else f"{organ['confidence']:.2f}"
        slices = ", ".join(str(s["k"]) for s in organ["least_certain_slices"][:SLICES_SHOWN])
        lines.append(f"  {organ['name']:<20} {organ['volume_ml']:9.1f}  {sure:>10}  {slices}")
    if result["refinement"]:
        from .refine import as_text as refinement_as_text

        lines += ["  refined:", refinement_as_text(result["refinement"]["organs"])]
    return "\n".join([*lines, *(f"  {message}" for message in result["messages"])])
