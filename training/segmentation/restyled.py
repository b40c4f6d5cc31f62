# SPDX-License-Identifier: Apache-2.0
"""Restyled slices of a dataset's scans (`srcsm style swap`), laid where the scans lie.

Restyled slices were made of a scan's own slices. A window is laid into the plane of the nearest
one that is no further off than a slice is thick, and is then augmented within that plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.resampling import look_up, sample

from ..augment.spatial import SpatialDraw, transformed_points
from ..data.dataset import Case, Dataset
from ..style.slices import (
    SliceSet,
    file_sha256,
    manifest_sha256,
    read_manifest,
    read_picture,
    read_slices,
)
from .config import TrainingConfig


@dataclass(frozen=True, eq=False)
class RestyledSlice:
    """One slice of a scan in all its styles.

    Attributes:
        geometry: of the pictures, (columns, rows, 1); its K is as thick as the scan's slices.
        pictures: uint8 (styles, rows, columns).
        values: what 0 and 255 stand for: HU for CT, anything for MR.
    """

    geometry: Geometry
    pictures: torch.Tensor
    values: tuple[float, float]


@dataclass(frozen=True, eq=False)
class RestyledScan:
    """The restyled slices of one scan, all of them parallel.

    Attributes:
        normal: (3,) RAS, across the slices.
        places: (n,) mm of each along the normal.
    """

    normal: np.ndarray
    places: np.ndarray
    slices: tuple[RestyledSlice, ...]


@dataclass(frozen=True, eq=False)
class RestyledSet:
    """The restyled slices of one folder.

    Attributes:
        name: folder and SHA-256 of its manifest; a checkpoint is known by it.
        scans: by the name of their case.
    """

    name: str
    scans: dict[str, RestyledScan]


def open_restyled(
    config: TrainingConfig, dataset: Dataset, training: Sequence[Case]
) -> tuple[RestyledSet, ...]:
    """Check that `config.pairs` can be trained, and read the restyled slices of training cases.

    Raises:
        ConfigError: settings that do not go together.
        DatasetError: a folder without restyled slices of these cases, or one whose files changed,
            or one that was made of other scans or has other labels.
    """
    pairs = config.pairs
    if pairs.styled and not pairs.use:
        raise ConfigError("pairs.styled has no effect without pairs.use=true; give both.")
    if pairs.use and pairs.contrast and config.optimisation.batch < 2:
        raise ConfigError(
            "Contrast needs other slices to compare with; choose an optimisation.batch of 2 or "
            "more, or pairs.contrast=0."
        )
    if pairs.styled and config.grid.size[2] > 1:
        raise ConfigError(
            "Restyled slices need windows of one slice; choose a preset such as icm, or a "
            f"grid.size with 1 at its end, not {config.grid.size}."
        )
    return tuple(_read_set(Path(folder), dataset, training) for folder in pairs.styled)


def nearest_slice(
    case: str, window: Geometry, restyled: Sequence[RestyledSet], generator: torch.Generator
) -> RestyledSlice | None:
    """Find a slice of the case at most its thickness away from the window's centre, or None.

    The thickness is the larger one of the window's and the slice's. One of several sets is drawn.
    """
    near = []
    for scan in (one.scans[case] for one in restyled if case in one.scans):
        away = np.abs(scan.normal @ window.centre - scan.places)
        nearest = scan.slices[int(away.argmin())]
        if away.min() <= max(window.spacing[2], nearest.geometry.spacing[2]):
            near.append(nearest)
    return near[int(torch.randint(len(near), (), generator=generator))] if near else None


def into_plane(window: Geometry, plane: Geometry, grid: GridSpec) -> Geometry:
    """Move and turn a window the shortest way into a picture's plane.

    Raises:
        DatasetError: the plane crosses the window's at more than 45 degrees.
    """
    normal, own = _normal(plane), window.direction[:, 2]
    normal = normal if normal @ own > 0 else -normal
    if normal @ own < np.sqrt(0.5):
        raise DatasetError(
            "The restyled slices lie across the network's slices; prepare them with another "
            "prepare.axis, or choose another grid.axes."
        )
    v = np.cross(own, normal)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    turn = np.eye(3) + cross + cross @ cross / (1 + normal @ own)
    centre = window.centre + normal * (normal @ (plane.centre - window.centre))
    return grid.placed(centre, turn @ window.direction)


def in_plane(draw: SpatialDraw) -> SpatialDraw:
    """Return the part of a spatial transform that does not leave the window's slice."""
    matrix = np.eye(3)
    matrix[:2, :2] = draw.matrix[:2, :2]
    control = draw.control.clone()
    control[2] = 0
    return SpatialDraw(matrix, draw.translation * [1, 1, 0], control)


def styled_window(
    restyled: RestyledSlice,
    window: Geometry,
    draw: SpatialDraw,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Draw one of the styles and resample it on a transformed window in its plane.

    Returns:
        (1, 1, J, I) float32 in the scan's intensities.
    """
    style = int(torch.randint(len(restyled.pictures), (), generator=generator))
    lower, upper = restyled.values
    picture = restyled.pictures[style, None, None].float() * ((upper - lower) / 255) + lower
    where = transformed_points(window, restyled.geometry, draw, device)
    lookup = look_up(where, restyled.geometry.shape)
    return sample(picture, lookup, outside=float(picture.min()))


def _normal(plane: Geometry) -> np.ndarray:
    """Compute the unit normal (RAS) of a picture's plane."""
    normal = np.cross(plane.direction[:, 0], plane.direction[:, 1])
    return normal / np.linalg.norm(normal)


def _read_set(folder: Path, dataset: Dataset, training: Sequence[Case]) -> RestyledSet:
    restyled = read_slices(folder)
    if not restyled.source:
        raise DatasetError(
            f"{folder} holds no restyled slices; pairs.styled takes folders of srcsm style swap."
        )
    if restyled.labels != dataset.labels:
        raise DatasetError(
            f"The slices of {folder} have the labels {restyled.labels}, {dataset.name} has "
            f"{dataset.labels}; restyle slices of this dataset."
        )
    source = read_manifest(folder / restyled.source)
    for case in training:
        if case.name in source.cases and source.cases[case.name] != [
            file_sha256(case.image),
            file_sha256(case.labels),
        ]:
            raise DatasetError(
                f"{folder} was made of another {case.name} than that of {dataset.name}; prepare "
                "and restyle its slices anew."
            )
    wanted = {case.name for case in training} & source.cases.keys()
    by_slice: dict[tuple[str, str], list] = {}
    for s in restyled.kept():
        if s.case in wanted:
            by_slice.setdefault((s.case, s.source), []).append(s)
    if not by_slice:
        raise DatasetError(
            f"{folder} has no slice of a training case that was not set aside; see its check.json."
        )
    slices: dict[str, list[RestyledSlice]] = {}
    for (case, _), styles in by_slice.items():
        slices.setdefault(case, []).append(_restyled_slice(restyled, styles, source))
    name = f"{folder.name} {manifest_sha256(restyled)}"
    return RestyledSet(name, {case: _scan(tuple(parts)) for case, parts in slices.items()})


def _scan(slices: tuple[RestyledSlice, ...]) -> RestyledScan:
    normal = _normal(slices[0].geometry)
    return RestyledScan(normal, np.array([normal @ s.geometry.centre for s in slices]), slices)


def _restyled_slice(restyled: SliceSet, styles: list, source: SliceSet) -> RestyledSlice:
    affine = np.array(styles[0].affine).reshape(4, 4)
    pictures = np.stack([read_picture(restyled, s.image) for s in styles])
    window = source.settings["window"] if source.modality == "CT" else (0.0, 255.0)
    return RestyledSlice(
        Geometry((restyled.size, restyled.size, 1), affine),
        torch.from_numpy(pictures),
        tuple(window),
    )
