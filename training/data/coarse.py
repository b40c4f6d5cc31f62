# SPDX-License-Identifier: Apache-2.0
"""Coarse segmentations in files: a label map, and the probabilities of its labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from SAMRefineLib.boxes.coarse import CoarseOrgan
from SRCSMSegmenterLib.alignment import on_grid
from SRCSMSegmenterLib.dicom_segmentation import is_dicom, read_segmentation
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.reading.nrrd import segment_names
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

MOST_OFF = 0.01
"""Voxels by which the grid of labels may differ from the scan's: DICOM rounds its numbers."""


def read_coarse(
    labels: Path,
    confidence: Path | None,
    geometry: Geometry,
    tell: Callable[[Path, Sequence[str]], None] = lambda path, remarks: None,
) -> list[CoarseOrgan]:
    """Read the organs of a label map, with their probabilities if there are any.

    Args:
        labels: label map, or DICOM segmentation.
        confidence: volume that `srcsm segment --confidence` wrote; None takes every label as sure.
        geometry: grid of the scan; both have to lie where it does.
        tell: called with a file, and what is odd about it, a sentence each.

    Raises:
        VolumeError: unreadable, without any label, or elsewhere than the scan.
    """
    volume, names = _read_named_labels(labels, geometry)
    tell(labels, volume.remarks)
    present = [int(label) for label in np.unique(volume.array) if label > 0]
    if not present:
        raise VolumeError(f"{labels} holds no label; segment the scan first.")
    probability = None
    if confidence:
        probability = on_grid(read_volume(confidence), geometry, confidence).array
    organs = []
    for label in present:
        mask = volume.array == label
        if probability is not None:
            mask = np.where(mask, probability, 0).astype(np.float16)
        organs.append(CoarseOrgan(names.get(label, f"label {label}"), label, mask))
    return organs


def _read_named_labels(path: Path, geometry: Geometry) -> tuple[Volume, dict[int, str]]:
    """Read a label map on a scan's grid, and the names of its labels if its format has them."""
    if is_dicom(path):
        volume, names = read_segmentation(path)
        return _uncropped(path, volume, geometry), names
    return on_grid(read_labels(path), geometry, path), segment_names(path)


def _uncropped(path: Path, volume: Volume, geometry: Geometry) -> Volume:
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
