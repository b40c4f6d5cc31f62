# SPDX-License-Identifier: Apache-2.0
"""``srcsm match``: source matching alone."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from SRCSMSegmenterLib.endings import READABLE, ending
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.source_matching import SourceHistogram, fit, match_to_source, to_integers
from SRCSMSegmenterLib.volume_io import read_volume, write_volume

from ..console import (
    load_model,
    output_files,
    print_json,
    progress_display,
    writing,
)


def run(arguments: argparse.Namespace) -> int:
    """Give a scan the intensities of a model's training images, or of images in a folder."""
    [output] = output_files([arguments.scan], arguments.output, labels=False)
    if arguments.source_images:
        source = str(arguments.source_images)
        rule, histogram = fit_folder(arguments.source_images, arguments.source_modality)
    else:
        bundle = load_model(arguments.model)
        source = bundle.description.name
        rule, histogram = bundle.description.rule, bundle.histogram
    volume = read_volume(arguments.scan, arguments.series)
    modality = arguments.modality or guess_modality(volume.array)
    matched = match_to_source(volume.array, replace(rule, modality=modality), histogram)
    with writing():
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


def fit_folder(folder: Path, modality: str | None) -> tuple[IntensityRule, SourceHistogram]:
    """The rule and the histogram of the images in a folder.

    Args:
        modality: None guesses from the first image.

    Raises:
        VolumeError: no images, or one that cannot be read.
        SourceMatchingError: too few distinct intensities.
    """
    paths = [p for p in sorted(folder.glob("*")) if ending(p) in READABLE]
    if not paths:
        raise VolumeError(f"{folder} holds no images; give a folder of {', '.join(READABLE)}.")
    rule = IntensityRule(modality or guess_modality(read_volume(paths[0]).array))
    with progress_display("source images") as show:

        def images() -> Iterator[np.ndarray]:
            for done, path in enumerate(paths):
                show(done, len(paths), path.name)
                yield to_integers(read_volume(path).array, rule)

        return rule, fit(images())
