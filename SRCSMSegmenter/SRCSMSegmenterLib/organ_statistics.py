# SPDX-License-Identifier: Apache-2.0
"""Statistics of the organs in a scan: volume, intensities and extent, as a table."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import atomic_write
from .geometry import Geometry, Volume
from .slices_to_check import slices_to_check
from .terminology import Segment

COLUMNS = (
    "scan", "frame", "label", "organ", "volume_ml", "mean", "sd", "right_left_mm",
    "anterior_posterior_mm", "superior_inferior_mm", "slice_axis", "least_certain_slices",
)  # fmt: skip
"""Columns of the table: `frame` counts the volumes of a 4-D scan from 0 and is empty for others;
slices are numbers from 0 along the voxel axis `slice_axis` (I, J or K), the least certain first."""


@dataclass(frozen=True)
class OrganStatistics:
    """Statistics of an organ; None for those that an organ without voxels lacks.

    Attributes:
        mean, sd: of the scan's intensities within the organ.
        extent: mm along right-left, anterior-posterior and superior-inferior, from the outer edges
            of its voxels.
        slice_axis: voxel axis along which slices count (`Geometry.slice_axis`): I, J or K.
        least_certain: slices to check (`slices_to_check`), the least certain first.
    """

    label: int
    name: str
    volume_ml: float
    mean: float | None
    sd: float | None
    extent: tuple[float, float, float] | None
    slice_axis: str
    least_certain: tuple[int, ...]


def organ_statistics(
    scan: Volume,
    labels: Volume,
    segments: Sequence[Segment],
    least_certain: Mapping[int, Sequence[tuple[int, float]]],
) -> list[OrganStatistics]:
    """Compute the statistics of each segment, in their order.

    Args:
        scan: raw intensities, (K, J, I).
        labels: on the same grid.
        least_certain: label -> (slice, uncertainty in mm), the least certain first.
    """
    rows, axis = [], labels.geometry.slice_axis
    thickness = float(labels.geometry.spacing[axis])
    for segment in segments:
        mask = labels.array == segment.value
        inside = scan.array[mask]
        rows.append(
            OrganStatistics(
                segment.value,
                segment.name,
                inside.size * labels.geometry.voxel_ml,
                float(inside.mean(dtype=np.float64)) if inside.size else None,
                float(inside.std(dtype=np.float64)) if inside.size else None,
                _extent(mask, labels.geometry) if inside.size else None,
                "IJK"[axis],
                tuple(slices_to_check(dict(least_certain.get(segment.value, ())), thickness)),
            )
        )
    return rows


def write_statistics(path: Path, scan: str, frames: Sequence[Sequence[OrganStatistics]]) -> None:
    """Write a table in one go, so that tables of several scans can be joined.

    Args:
        path: a .csv file.
        scan: name of the scan, the first column.
        frames: rows of each volume of the scan.

    Raises:
        OSError: it cannot be written.
    """
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, rows in enumerate(frames):
            frame = number if len(frames) > 1 else ""
            writer.writerows((scan, frame, *_cells(row)) for row in rows)


def _cells(row: OrganStatistics) -> list[str]:
    numbers = (row.volume_ml, row.mean, row.sd, *(row.extent or (None, None, None)))
    written = ["" if number is None else f"{number:.3f}" for number in numbers]
    slices = " ".join(map(str, row.least_certain))
    return [str(row.label), row.name, *written, row.slice_axis, slices]


def _extent(mask: np.ndarray, geometry: Geometry) -> tuple[float, float, float]:
    """Measure a mask with voxels along the patient's axes, mm."""
    lowest, highest = np.full(3, np.inf), np.full(3, -np.inf)
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        j, i = np.nonzero(mask[k])
        places = geometry.to_ras(np.stack([i, j, np.full_like(i, k)], axis=1))
        lowest = np.minimum(lowest, places.min(axis=0))
        highest = np.maximum(highest, places.max(axis=0))
    edges = np.abs(geometry.affine[:3, :3]).sum(axis=1)
    return tuple((highest - lowest + edges).tolist())
