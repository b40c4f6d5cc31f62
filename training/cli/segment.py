# SPDX-License-Identifier: Apache-2.0
"""``srcsm segment``: label the organs of scans, and let SAM refine them."""

import argparse
import traceback
from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from SRCSMSegmenterLib.endings import DICOM, LABELS, WRITABLE
from SRCSMSegmenterLib.errors import BundleError, Cancelled, ConfigError
from SRCSMSegmenterLib.models.catalogue import find_model

from . import arguments as options
from .cohort import find_scans, own_device, own_share
from .console import print_json, say
from .failures import exit_code, sentence
from .outputs import OutputError, output_files
from .pipeline import Stages, run_stages
from .scan_results import PlannedScan
from .segment_stages import Models, SegmentStages
from .segmented import SegmentedRecord, earlier_results
from .tables import segmentation_text

OUTPUTS = (*LABELS, DICOM)
"""Endings of the files that labels are written to."""

FATAL = (OutputError, BundleError, ConfigError, Cancelled)
"""Errors that would meet every other scan too, or are meant to stop the work."""


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "segment",
        "label the organs of scans with a trained network",
        "The labels lie on the scan's own grid. Slices are numbered from 0 along the voxel axis\n"
        "that is printed: the last one (K), or a clearly coarser one. A folder is searched for\n"
        "scans, sub-folders too, but for the results of earlier calls; a scan that fails does\n"
        "not stop the rest. Under accelerate launch or torchrun the processes share the scans.\n"
        "Research use only, not for diagnosis.",
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd\n"
        "  srcsm segment dicom_folder -o organs.nii.gz --confidence sure.nii.gz --json\n"
        "  srcsm segment *.nii.gz -o labels --format .seg.nrrd --model runs/ct/model\n"
        "  srcsm segment dicom_folder --series 1.2.3 -o organs.dcm\n"
        "  srcsm segment ct.nii.gz -o organs.nii.gz --statistics stats.csv --preview preview.png\n"
        "  srcsm segment cine_4d.nii.gz -o organs_4d.nii.gz\n"
        "  srcsm segment cohort -o labels --resume\n"
        "  accelerate launch -m srcsm_training segment cohort -o labels --resume\n"
        "  srcsm segment ct.nii.gz -o organs.nii.gz --source-matching off --device cuda:1\n"
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine",
    )
    parser.add_argument(
        "scans",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help=f"{options.SCAN_HELP}; or a folder with many of them",
    )
    _add_results(parser)
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
        help="keep one piece of each organ, the largest unless another lies in its place, or all",
        alias="--all-pieces",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="draw boxes around the organs that the network finds and let SAM refine those that it "
        "was trained on",
    )
    default = (
        "sam-small-ct or sam-small-mr, as the network was trained on CT or MR; srcsm refine takes "
        "the one of the scan's modality, which may do better"
    )
    options.add_sam(parser, f"{options.SAM_HELP} (default: {default})")
    options.add_series(parser)
    _add_many(parser)
    options.add_device(parser)
    options.add_json(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Add the options for the files that are written."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"a file ending in {', '.join(OUTPUTS)} (.seg.nrrd opens in Slicer with names and "
        "colours; .dcm is a DICOM segmentation of a DICOM series), or a folder, which several "
        "scans need",
    )
    parser.add_argument(
        "--format",
        choices=OUTPUTS,
        default=".nii.gz",
        help="format of the files in an output folder (default: .nii.gz)",
    )
    parser.add_argument(
        "--confidence",
        type=Path,
        metavar="PATH",
        help="also write the probability of the chosen label; a file, or a folder for several",
    )
    parser.add_argument(
        "--statistics",
        type=Path,
        metavar="PATH",
        help="also write a table: each organ's volume, mean and SD of its intensities, extent "
        "along the patient's axes, least certain slices; a .csv file, or a folder for several",
    )
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="PATH",
        help="also draw slices with outlines and renderings of the organs; a .png file, or a "
        "folder for several",
    )


def _add_many(parser: argparse.ArgumentParser) -> None:
    """Add the options for many scans."""
    parser.add_argument(
        "--jobs",
        type=options.positive,
        default=3,
        metavar="N",
        help="scans in memory at a time: the next are read and the last written while the network "
        "works (default: 3; 1: one after another)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the scans that an earlier call did not segment into this folder, as it "
        "was stopped or they failed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Segment scans; a scan that cannot be used does not stop the rest."""
    if (arguments.sam or arguments.sam_kind) and not arguments.refine:
        raise ConfigError("--sam and --sam-kind need --refine.")
    planned = own_share(_plan(arguments))
    models = cache(partial(_load_models, arguments, find_model(arguments.model)))
    record = _record(arguments, models()) if arguments.output.is_dir() else None
    if arguments.resume:
        if record is None:
            raise ConfigError("--resume needs a folder as --output.")
        planned = _missing(planned, record)
    stages = SegmentStages(arguments, models, record)
    # To load PyTorch and the network takes about as long as to read a large scan.
    work = Stages(stages.read, stages.label, stages.write, FATAL, prepare=models)
    results: list[dict[str, Any]] = []
    errors: list[Exception] = []
    try:
        for scan, outcome in run_stages(planned, work, arguments.jobs):
            if isinstance(outcome, Exception):
                errors.append(outcome)
                results.append(_tell_failure(scan, outcome, arguments.debug))
                continue
            results.append(outcome)
            if not arguments.json:
                print(segmentation_text(outcome))
    finally:
        if arguments.json and (results or not planned):
            told = {"model": models().bundle.identify(), "device": models().device}
            print_json(told | {"scans": results})
        if len(planned) > 1:
            say(_summary(results, len(planned)))
    return exit_code(errors[0]) if errors else 0


def _plan(arguments: argparse.Namespace) -> list[PlannedScan]:
    """Find the scans and choose the files of their results, in new folders if need be."""
    outputs = arguments.output, arguments.confidence, arguments.statistics, arguments.preview
    places = [place for place in outputs if place]
    scans = find_scans(arguments.scans, [*places, *earlier_results(arguments.scans)])
    paths, names = [scan.path for scan in scans], [scan.name for scan in scans]
    labels = output_files(paths, arguments.output, arguments.format, names=names, known=OUTPUTS)
    files = [labels]
    for output, ending, known in (
        (arguments.confidence, "_confidence.nii.gz", WRITABLE),
        (arguments.statistics, "_statistics.csv", (".csv",)),
        (arguments.preview, "_preview.png", (".png",)),
    ):
        taken = [path for group in files for path in group if path]
        files.append(
            output_files(paths, output, ending, names=names, known=known, taken=taken)
            if output
            else [None] * len(scans)
        )
    planned = [PlannedScan(*group) for group in zip(paths, *files, strict=True)]
    for scan in planned:
        if scan.is_dicom and not scan.path.is_dir():
            raise ConfigError(
                f"{scan.labels.name} references a DICOM series; give the folder of one instead of "
                f"{scan.path}, or end the output with .seg.nrrd."
            )
    # If a package is missing, say so before the work.
    if any(scan.is_dicom for scan in planned):
        import highdicom  # noqa: F401
    if arguments.preview:
        import matplotlib  # noqa: F401
    return planned


def _load_models(arguments: argparse.Namespace, folder: Path) -> Models:
    from SRCSMSegmenterLib.models.bundle import load_bundle

    device = own_device(arguments.device)
    bundle = load_bundle(folder)
    sam = None
    if arguments.refine:
        from SAMRefineLib.sam.catalogue import default_for, find_sam
        from SAMRefineLib.sam.models import load_sam

        path = find_sam(arguments.sam or default_for(bundle.description.rule.modality))
        sam = load_sam(path, arguments.sam_kind, device)
    return Models(bundle, sam, device)


def _record(arguments: argparse.Namespace, models: Models) -> SegmentedRecord:
    """Open the record of the output folder."""
    settings = {
        "version": version("srcsm"),
        "model": models.bundle.identity,
        "modality": arguments.modality,
        "source matching": arguments.source_matching,
        "keep largest": arguments.keep_largest,
        "SAM": models.sam.identity if models.sam else None,
        "series": arguments.series,
    }
    return SegmentedRecord(arguments.output, settings)


def _missing(planned: Sequence[PlannedScan], record: SegmentedRecord) -> list[PlannedScan]:
    """Return the scans without results of these settings, and tell how many there are."""
    missing, reasons = [], set()
    for scan in planned:
        differences = record.differences(scan.path, scan.results)
        if differences != []:
            missing.append(scan)
            reasons.update(differences or [])
    told = f"{len(planned) - len(missing)} of {len(planned)} scans are segmented already"
    if reasons:
        told += f"; results of another {', '.join(sorted(reasons))} are made again"
    say(f"{told}.")
    return missing


def _tell_failure(scan: PlannedScan, error: Exception, debug: bool) -> dict[str, Any]:
    """Tell the user why a scan failed; return its entry in the JSON output."""
    if debug:
        traceback.print_exception(error)
    message = sentence(error)
    say(
        f"srcsm: error: {message}"
        if str(scan.path) in message
        else f"srcsm: error: {scan.path}: {message}"
    )
    return {"input": str(scan.path), "error": message}


def _summary(results: Sequence[dict[str, Any]], planned: int) -> str:
    """Write how many scans were segmented, and which failed."""
    failed = [result["input"] for result in results if "error" in result]
    told = f"{len(results) - len(failed)} of {planned} scans segmented"
    return f"{told}; failed: {', '.join(failed)}." if failed else f"{told}."
