# SPDX-License-Identifier: Apache-2.0
"""``srcsm segment``: label the organs of scans, and let SAM refine them."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SRCSMSegmenterLib.endings import LABELS
from SRCSMSegmenterLib.errors import ConfigError, SourceMatchingError, VolumeError

from . import arguments as options
from .console import print_json, say, stage_display
from .outputs import output_files, report_volume_errors
from .tables import refinement_rows, refinement_text

if TYPE_CHECKING:
    from SAMRefineLib.sam.models import SamModel
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import Segmentation
    from SRCSMSegmenterLib.models.bundle import ModelBundle

SLICES_SHOWN = 5


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "segment",
        "label the organs of scans with a trained network",
        "The labels lie on the scan's own grid. Slices are numbered from 0 along the last voxel\n"
        "axis (K). Research use only, not for diagnosis.",
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd\n"
        "  srcsm segment dicom_folder -o organs.nii.gz --confidence sure.nii.gz --json\n"
        "  srcsm segment *.nii.gz -o labels --format .seg.nrrd --model runs/ct/model\n"
        "  srcsm segment ct.nii.gz -o organs.nii.gz --source-matching off --device cuda:1\n"
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine",
    )
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help=options.SCAN_HELP)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"a file ending in {', '.join(LABELS)} (.seg.nrrd opens in Slicer with names and "
        "colours), or a folder, which several scans need",
    )
    parser.add_argument(
        "--format",
        choices=LABELS,
        default=".nii.gz",
        help="format of the files in an output folder (default: .nii.gz)",
    )
    options.add_model(parser, options.DEFAULT_MODEL)
    parser.add_argument(
        "--source-matching",
        choices=("auto", "on", "off"),
        default="auto",
        help="give the scan the intensities the network was trained on; auto (default): if its "
        "modality is not the network's",
    )
    options.add_modality(parser)
    options.add_keep_largest(
        parser,
        default=True,
        help="keep only the largest piece of each organ, or all pieces",
        alias="--all-pieces",
    )
    parser.add_argument(
        "--confidence",
        type=Path,
        metavar="PATH",
        help="also write the probability of the chosen label; a file, or a folder for several",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="draw boxes around the organs that the network finds and let SAM refine them",
    )
    default = "sam-small-ct or sam-small-mr, as the network was trained on CT or MR"
    options.add_sam(parser, f"{options.SAM_HELP} (default: {default})")
    options.add_series(parser)
    options.add_device(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Segment scans; a scan that cannot be used does not stop the rest."""
    if (arguments.sam or arguments.sam_kind) and not arguments.refine:
        raise ConfigError("--sam and --sam-kind need --refine.")
    scans = arguments.scans
    outputs = output_files(scans, arguments.output, arguments.format)
    confidences: list[Path | None] = [None] * len(scans)
    if arguments.confidence:
        confidences = output_files(
            scans, arguments.confidence, "_confidence.nii.gz", labels=False, taken=outputs
        )

    from SRCSMSegmenterLib.devices import resolve_device
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    device = str(resolve_device(arguments.device))
    bundle = load_bundle(find_model(arguments.model))
    sam = None
    if arguments.refine:
        from SAMRefineLib.sam.catalogue import default_for, find_sam
        from SAMRefineLib.sam.models import load_sam

        path = find_sam(arguments.sam or default_for(bundle.description.rule.modality))
        sam = load_sam(path, arguments.sam_kind, device)
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
    bundle: "ModelBundle",
    sam: "SamModel | None",
    device: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Segment one scan, refine it if `sam` is given, and write the results.

    Returns:
        What a program may want to know: the scan's entry in the JSON output.
    """
    import numpy as np

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.inference import segment
    from SRCSMSegmenterLib.modality import guess_modality
    from SRCSMSegmenterLib.source_matching import wanted
    from SRCSMSegmenterLib.volume_io import read_volume, write_labels, write_volume

    started = time.perf_counter()
    volume = read_volume(scan, arguments.series)
    seconds = {"read": time.perf_counter() - started}
    modality = arguments.modality or guess_modality(volume.array)
    matching = wanted(arguments.source_matching, modality, bundle.description.rule)
    with stage_display(scan.name) as show:
        segmentation = segment(
            volume,
            bundle,
            modality=arguments.modality,
            source_matching=matching,
            device=device,
            keep_largest=arguments.keep_largest,
            keep_probabilities=sam is not None,
            progress=show,
        )
    refined = None
    if sam is not None:
        segmentation, refined = refine_scan(
            volume, segmentation, bundle, sam, modality, arguments.keep_largest
        )
    started = time.perf_counter()
    with report_volume_errors():
        write_labels(output, segmentation.labels, bundle.description.labels)
        if confidence:
            probability = segmentation.confidence.astype(np.float32)
            write_volume(confidence, Volume(probability, volume.geometry))
    seconds |= segmentation.seconds | {"write": time.perf_counter() - started}
    return {
        "input": str(scan),
        "output": str(output),
        "confidence": str(confidence) if confidence else None,
        "modality": modality,
        "source_matching": matching,
        "organs": organ_rows(segmentation, bundle),
        "refinement": refined,
        "messages": segmentation.messages,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def refine_scan(
    volume: "Volume",
    segmentation: "Segmentation",
    bundle: "ModelBundle",
    sam: "SamModel",
    modality: str,
    keep_largest: bool,
) -> tuple["Segmentation", dict[str, Any]]:
    """Refine a segmentation with SAM, in the boxes of what the network is sure of.

    Returns:
        The segmentation with SAM's labels and confidence (its least certain slices stay the
        network's), and what happened to each organ.
    """
    from SAMRefineLib.boxes.boxes import SliceGrid
    from SAMRefineLib.boxes.coarse import CoarseOrgan
    from SAMRefineLib.refine.box_selection import refine_coarse
    from SRCSMSegmenterLib.components import keep_largest_component

    coarse = [
        CoarseOrgan(label.name, label.value, segmentation.probabilities[label.value])
        for label in bundle.description.labels
    ]
    started = time.perf_counter()
    grid = SliceGrid(volume.geometry, volume.geometry.slice_axis)
    with stage_display("refining") as show:
        refinement = refine_coarse(volume, coarse, grid, sam, modality=modality, progress=show)
    labels, confidence = refinement.labels.array, refinement.confidence()
    if keep_largest:
        keep_largest_component(labels, confidence)
    seconds = segmentation.seconds | {"refine": time.perf_counter() - started}
    segmentation = replace(
        segmentation, labels=refinement.labels, confidence=confidence, seconds=seconds
    )
    rows = refinement_rows(refinement, volume.geometry)
    return segmentation, {"sam": sam.identify(), "organs": rows}


def organ_rows(segmentation: "Segmentation", bundle: "ModelBundle") -> list[dict[str, Any]]:
    """Return volume in ml, mean confidence and least certain slices of every organ."""
    labels, voxel_ml = segmentation.labels.array, segmentation.labels.geometry.voxel_ml
    rows = []
    for label in bundle.description.labels:
        inside = segmentation.confidence[labels == label.value]
        rows.append(
            {
                "label": label.value,
                "name": label.name,
                "volume_ml": inside.size * voxel_ml,
                "confidence": float(inside.mean(dtype="float64")) if inside.size else None,
                "least_certain_slices": [
                    {"k": k, "uncertainty_mm": uncertainty}
                    for k, uncertainty in segmentation.least_certain[label.value]
                ],
            }
        )
    return rows


def as_text(result: dict[str, Any]) -> str:
    """Format the result of `segment_scan` for a reader."""
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
        lines += ["  refined:", refinement_text(result["refinement"]["organs"])]
    return "\n".join([*lines, *(f"  {message}" for message in result["messages"])])
