# SPDX-License-Identifier: Apache-2.0
"""``srcsm segment``."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from SRCSMSegmenterLib.bundle import ModelBundle
from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import SourceMatchingError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.inference import Segmentation, guess_modality, segment
from SRCSMSegmenterLib.volume_io import read_volume, write_labels, write_volume

from .common import (
    load_model,
    model_identity,
    output_files,
    print_json,
    progress_display,
    say,
    writing,
)

SLICES_SHOWN = 5


def run(arguments: argparse.Namespace) -> int:
    """Segment scans; one that cannot be used does not keep the others from being segmented."""
    scans = arguments.scans
    outputs = output_files(scans, arguments.output, arguments.format)
    confidences: list[Path | None] = [None] * len(scans)
    if arguments.confidence:
        confidences = output_files(
            scans, arguments.confidence, "_confidence.nii.gz", labels=False, taken=outputs
        )
    device = str(resolve_device(arguments.device))
    bundle = load_model(arguments.model)
    results, code = [], 0
    for scan, output, confidence in zip(scans, outputs, confidences, strict=True):
        try:
            result = segment_scan(scan, output, confidence, bundle, device, arguments)
        except (VolumeError, SourceMatchingError) as error:
            say(f"srcsm: error: {error}")
            results.append({"input": str(scan), "error": str(error)})
            code = 3
            continue
        results.append(result)
        if not arguments.json:
            print(as_text(result))
    if arguments.json:
        print_json({"model": model_identity(bundle), "device": device, "scans": results})
    return code


def segment_scan(
    scan: Path,
    output: Path,
    confidence: Path | None,
    bundle: ModelBundle,
    device: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Segment one scan and write the results; returns what a program would want to know."""
    started = time.perf_counter()
    volume = read_volume(scan, arguments.series)
    seconds = {"read": time.perf_counter() - started}
    modality = arguments.modality or guess_modality(volume.array)
    matching = arguments.source_matching == "on" or (
        arguments.source_matching == "auto" and modality != bundle.description.rule.modality
    )
    with progress_display(scan.name) as show:
        found = segment(
            volume,
            bundle,
            modality=arguments.modality,
            source_matching=matching,
            device=device,
            largest_component=arguments.largest_component,
            progress=lambda stage, fraction: show(round(100 * fraction), 100, stage),
        )
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
        "messages": found.messages,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def organs(found: Segmentation, bundle: ModelBundle) -> list[dict[str, Any]]:
    """Volume in ml, mean confidence and least certain slices of every organ."""
    labels, affine = found.labels.array, found.labels.geometry.affine
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
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
    return "\n".join([*lines, *(f"  {message}" for message in result["messages"])])
