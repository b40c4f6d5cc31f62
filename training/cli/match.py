# SPDX-License-Identifier: Apache-2.0
"""``srcsm match``: source matching alone."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.endings import READABLE, WRITABLE, scans_in
from SRCSMSegmenterLib.errors import VolumeError

from . import arguments as options
from .console import print_json, progress_display
from .outputs import output_files, report_volume_errors
from .scan_input import read_scan

if TYPE_CHECKING:
    import numpy as np

    from SRCSMSegmenterLib.intensity import IntensityRule
    from SRCSMSegmenterLib.source_matching import SourceHistogram


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "match",
        "source matching alone: give a scan the intensities of training images",
        "The result is what a network sees with source matching on, before resampling.",
        "  srcsm match mr.nii.gz --model abdomen-ct -o matched.nii.gz\n"
        "  srcsm match mr.nii.gz --source-images Dataset101_AbdomenCT/imagesTr -o matched.nii.gz",
    )
    options.add_scan(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="file of the result, or a folder"
    )
    source = parser.add_mutually_exclusive_group()
    options.add_model(source, options.DEFAULT_MODEL)
    source.add_argument(
        "--source-images",
        type=Path,
        metavar="FOLDER",
        help="match to the images in this folder instead",
    )
    parser.add_argument(
        "--source-modality",
        choices=("CT", "MR"),
        help="modality of --source-images (default: guessed from the first)",
    )
    options.add_modality(parser)
    options.add_series(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Match a scan to a model's training images, or to the images in a folder."""
    from dataclasses import replace

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model
    from SRCSMSegmenterLib.source_matching import match_to_source
    from SRCSMSegmenterLib.volume_io import write_volume

    images = scans_in(arguments.source_images) if arguments.source_images else []
    [output] = output_files([arguments.scan], arguments.output, known=WRITABLE, taken=images)
    if arguments.source_images:
        source = str(arguments.source_images)
        rule, histogram = fit_folder(arguments.source_images, arguments.source_modality)
    else:
        bundle = load_bundle(find_model(arguments.model))
        source = bundle.description.name
        rule, histogram = bundle.description.rule, bundle.histogram
    volume, modality = read_scan(arguments)
    matched = match_to_source(volume.array, replace(rule, modality=modality), histogram)
    with report_volume_errors():
        write_volume(output, Volume(matched, volume.geometry))
    low, high = int(matched.min()), int(matched.max())
    if arguments.json:
        print_json(
            {
                "input": str(arguments.scan),
                "output": str(output),
                "modality": modality,
                "source": source,
                "source_modality": rule.modality,
                "source_range": [histogram.minimum, int(histogram.values[-1])],
                "matched_range": [low, high],
            }
        )
    else:
        print(f"{output}: {modality} matched to {source} ({rule.modality}), {low} to {high}")
    return 0


def fit_folder(folder: Path, modality: str | None) -> tuple["IntensityRule", "SourceHistogram"]:
    """Return the intensity rule and the histogram of the images in a folder.

    Args:
        modality: "CT" or "MR"; None guesses from the first image.

    Raises:
        VolumeError: no images, or an image that cannot be read.
        SourceMatchingError: too few distinct intensities.
    """
    from SRCSMSegmenterLib.intensity import IntensityRule
    from SRCSMSegmenterLib.modality import modality_of
    from SRCSMSegmenterLib.source_matching import fit, to_integers
    from SRCSMSegmenterLib.volume_io import read_volume

    paths = scans_in(folder)
    if not paths:
        raise VolumeError(f"{folder} holds no images; give a folder of {', '.join(READABLE)}.")
    rule = IntensityRule(modality_of(read_volume(paths[0]), modality))
    with progress_display("source images") as show:

        def images() -> Iterator["np.ndarray"]:
            for done, path in enumerate(paths):
                show(done, len(paths), path.name)
                yield to_integers(read_volume(path).array, rule)

        return rule, fit(images())
