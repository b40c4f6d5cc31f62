# SPDX-License-Identifier: Apache-2.0
"""Coarse segmentations in files: a label map, and the probabilities of its labels."""

from pathlib import Path

import numpy as np

from SAMRefineLib.boxes.coarse import CoarseOrgan
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.reading.nrrd import segment_names
from SRCSMSegmenterLib.volume_io import read_labels, read_volume


def read_coarse(labels: Path, confidence: Path | None, geometry: Geometry) -> list[CoarseOrgan]:
    """Read the organs of a label map, with their probabilities if there are any.

    Args:
        labels: label map.
        confidence: volume that `srcsm segment --confidence` wrote; None takes every label as sure.
        geometry: grid of the scan, on which both have to lie.

    Raises:
        VolumeError: unreadable, without any label, or on another grid than the scan's.
    """
    volume = read_labels(labels)
    _require_grid(labels, volume, geometry)
    present = [int(label) for label in np.unique(volume.array) if label > 0]
    if not present:
        raise VolumeError(f"{labels} holds no label; segment the scan first.")
    probability = None
    if confidence:
        probabilities = read_volume(confidence)
        _require_grid(confidence, probabilities, geometry)
        probability = probabilities.array
    names = segment_names(labels)
    organs = []
    for label in present:
        mask = volume.array == label
        if probability is not None:
            mask = np.where(mask, probability, 0).astype(np.float16)
        organs.append(CoarseOrgan(names.get(label, f"label {label}"), label, mask))
    return organs


def _require_grid(path: Path, volume: Volume, geometry: Geometry) -> None:
    if not volume.geometry.matches(geometry):
        raise VolumeError(f"{path} does not lie on the scan's grid; give one that was made of it.")
