# SPDX-License-Identifier: Apache-2.0
"""Segmentation of one file by one call, which MONAI's bundle runner calls too."""

from pathlib import Path

from .inference import Segmentation, segment
from .modality import modality_of
from .models.bundle import load_bundle
from .source_matching import wanted
from .volume_io import read_volume, write_labels


def segment_file(
    image: str | Path,
    output: str | Path,
    model: str | Path,
    *,
    modality: str | None = None,
    source_matching: str = "auto",
    keep_largest: bool = True,
    device: str = "auto",
) -> Segmentation:
    """Segment a scan's file and write its labels, as ``srcsm segment`` does.

    Args:
        image: a file, or a folder of one DICOM series.
        output: file of the labels, see `write_labels`.
        model: a folder, or the name of a shipped model.
        modality: "CT" or "MR"; None takes the file's or guesses.
        source_matching: "on", "off" or "auto", see `source_matching.wanted`.
        keep_largest: see `segment`.
        device: see `resolve_device`.

    Raises:
        BundleError, VolumeError, SourceMatchingError, DeviceError: see `load_bundle`,
            `read_volume`, `segment` and `write_labels`.
    """
    bundle, volume = load_bundle(model), read_volume(image)
    matching = wanted(source_matching, modality_of(volume, modality), bundle.description.rule)
    segmentation = segment(
        volume,
        bundle,
        modality=modality,
        source_matching=matching,
        device=device,
        keep_largest=keep_largest,
    )
    write_labels(output, segmentation.labels, bundle.description.labels)
    return segmentation
