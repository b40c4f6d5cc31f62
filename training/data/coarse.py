# SPDX-License-Identifier: Apache-2.0
"""Coarse segmentations in files: a label map, and the probabilities of its labels."""

from pathlib import Path

import numpy as np

from SAMRefineLib.boxes.coarse import (
    CoarseOrgan,
    CoarsePatch,
    checked_probabilities,
    coarse_probability,
)
from SAMRefineLib.boxes.patches import Patch, label_blocks
from SRCSMSegmenterLib.dicom_segmentation import is_dicom, read_segmentation
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.reading.nrrd import segment_names
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

MOST_OFF = 0.01
"""Voxels by which the grid of labels may differ from the scan's: DICOM rounds its numbers."""


def read_coarse(labels: Path, confidence: Path | None, geometry: Geometry) -> list[CoarseOrgan]:
    """Read the organs of a label map as whole volumes; see `read_coarse_patches`."""
    patches = read_coarse_patches(labels, confidence, geometry)
    return [patch.organ(geometry.shape) for patch in patches]


def read_coarse_patches(
    labels: Path, confidence: Path | None, geometry: Geometry
) -> list[CoarsePatch]:
    """Read the organs of a label map, with their probabilities if there are any.

    Args:
        labels: label map, or DICOM segmentation.
        confidence: volume that `srcsm segment --confidence` wrote; None takes every label as sure.
        geometry: grid of the scan, on which both have to lie.

    Raises:
        PromptError: probabilities that are none.
        VolumeError: unreadable, without any label, or on another grid than the scan's.
    """
    volume, names = _read_named_labels(labels)
    volume = _on_grid(labels, volume, geometry)
    blocks = label_blocks(volume.array)
    if not blocks:
        raise VolumeError(f"{labels} holds no label; segment the scan first.")
    probability = None
    if confidence:
        probabilities = read_volume(confidence)
        if not probabilities.geometry.matches(geometry):
            raise _elsewhere(confidence)
        probability = checked_probabilities(probabilities.array, str(confidence))
    organs = []
    for label, block in sorted(blocks.items()):
        mask = volume.array[block] == label
        if probability is not None:
            mask = coarse_probability(mask, probability[block])
        patch = Patch(tuple(part.start for part in block), mask)
        organs.append(CoarsePatch(names.get(label, nameless(label)), label, patch))
    return organs


def nameless(label: int) -> str:
    """Return the name of a label in a file that does not name it."""
    return f"label {label}"


def _read_named_labels(path: Path) -> tuple[Volume, dict[int, str]]:
    """Read a label map of any format, and the names of its labels if the format has them."""
    if is_dicom(path):
        return read_segmentation(path)
    return read_labels(path), segment_names(path)


def _on_grid(path: Path, volume: Volume, geometry: Geometry) -> Volume:
    """Lay labels on a scan's grid whose voxels they have, if cropped or with turned axes.

    DICOM segmentations leave empty slices out, and count slices from either end.
    """
    if volume.geometry.matches(geometry):
        return volume
    to_scan = geometry.inverse @ volume.geometry.affine
    turn, shift = np.rint(to_scan[:3, :3]), np.rint(to_scan[:3, 3])
    off = np.abs(to_scan[:3, :3] - turn) @ volume.geometry.size + np.abs(to_scan[:3, 3] - shift)
    if off.max() > MOST_OFF or not np.array_equal(turn @ turn.T, np.eye(3)):
        raise _elsewhere(path)
    kji = np.argwhere(volume.array)
    ijk = (kji[:, ::-1] @ turn.T + shift).astype(int)
    if (ijk < 0).any() or (ijk >= geometry.size).any():
        raise _elsewhere(path)
    labels = np.zeros(geometry.shape, volume.array.dtype)
    labels[tuple(ijk.T[::-1])] = volume.array[tuple(kji.T)]
    return Volume(labels, geometry)


def _elsewhere(path: Path) -> VolumeError:
    return VolumeError(f"{path} does not lie on the scan's grid; give one that was made of it.")
