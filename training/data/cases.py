# SPDX-License-Identifier: Apache-2.0
"""Preprocessed training cases, cached on disk, and windows drawn from them."""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import ndimage

from SRCSMSegmenterLib.air import airless_labels
from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError
from SRCSMSegmenterLib.field_of_view import Extent, body_extent, centre_range, scan_extent
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, scale
from SRCSMSegmenterLib.organ_positions import centroid
from SRCSMSegmenterLib.resampling import smooth_mm

from .dataset import Case, as_bytes, read_case

CACHE_VERSION = 2
FOREGROUND_VOXELS = 500

Tensors = dict[str, torch.Tensor]
"""Of a prepared case: image (K, J, I) float16, labels (K, J, I) uint8, affine (4, 4) float64."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case that windows can be drawn from.

    Attributes:
        image: (1, K, J, I) float16, scaled by the intensity rule and smoothed on its own grid.
        labels: (1, K, J, I) uint8.
        geometry: grid of both.
        body: extent of the patient along the window grid's axes.
        centres: low and high end of a window's centre along the window grid's axes, mm.
        directions: 3x3, columns are the window grid's axes in RAS.
        foreground: per label present, (n, 3) voxel indices (i, j, k) of a sample of its voxels.
    """

    name: str
    image: torch.Tensor
    labels: torch.Tensor
    geometry: Geometry
    body: Extent
    centres: tuple[np.ndarray, np.ndarray]
    directions: np.ndarray
    foreground: list[np.ndarray]

    @cached_property
    def outside(self) -> float:
        """The intensity beyond the scan, its minimum."""
        return float(self.image.min())


def default_cache() -> Path:
    """Return ``$SRCSM_CACHE``, or ``~/.cache/srcsm``.

    Raises:
        ConfigError: neither is known.
    """
    if folder := os.environ.get("SRCSM_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "srcsm"
    except RuntimeError as error:  # a container's user without an entry and without $HOME
        raise ConfigError(
            "There is no home folder for prepared cases; set SRCSM_CACHE or give --cache."
        ) from error


def prepare_cases(
    cases: Sequence[Case],
    rule: IntensityRule,
    smoothing: float,
    grid: GridSpec,
    cache: Path,
    order: Sequence[int] = (),
    outputs: int = 255,
) -> list[PreparedCase]:
    """Read, scale and smooth every case, or take it from the cache.

    Args:
        smoothing: sigma in mm.
        grid: grid of the windows.
        cache: folder, created if it does not exist.
        order: the files' label for each label that training uses, 0 first; () keeps the labels.
        outputs: number of labels, from 1 on, that windows are drawn around.

    Raises:
        VolumeError: a case cannot be read.
        SRCSMError: the cache cannot be written.
    """
    return [
        place_case(case.name, cached_tensors(case, rule, smoothing, cache), grid, order, outputs)
        for case in cases
    ]


def cached_tensors(case: Case, rule: IntensityRule, smoothing: float, cache: Path) -> Tensors:
    """Read, scale and smooth a case, or take it from the cache.

    An entry is keyed by the content of both files, the rule and the smoothing; it is rebuilt if it
    is missing, truncated or altered.

    Args:
        smoothing, cache: see `prepare_cases`.

    Raises:
        VolumeError: see `prepare_cases`.
    """
    path = cache / f"{_key(case, rule, smoothing)}.safetensors"
    tensors = _load(path)
    if tensors is None:
        tensors = _build(case, rule, smoothing)
        _store(path, tensors)
    return tensors


def draw_window(
    case: PreparedCase, grid: GridSpec, foreground: float, generator: torch.Generator
) -> Geometry:
    """Place a window at random: around a labelled voxel with chance `foreground`, else anywhere.

    Its centre stays within the range of inference: on the body's centre along the axes along which
    the body fits into the field of view, within the scan along the other axes.
    """
    low, high = case.centres
    chance, label, voxel, *place = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    if chance < foreground and case.foreground:
        voxels = case.foreground[int(label * len(case.foreground))]
        centre = case.geometry.to_ras(voxels[int(voxel * len(voxels))]) @ case.directions
        centre = np.clip(centre, low, high)
    else:
        centre = low + (high - low) * np.array(place)
    return grid.placed(case.directions @ centre, case.directions)


def _key(case: Case, rule: IntensityRule, smoothing: float) -> str:
    digest = hashlib.sha256()
    settings = {"version": CACHE_VERSION, "rule": asdict(rule), "smoothing": smoothing}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in (case.image, case.labels):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _build(case: Case, rule: IntensityRule, smoothing: float) -> Tensors:
    volume, labels = read_case(case)
    scaled = torch.from_numpy(scale(volume.array, rule).astype(np.float32))
    smoothed = smooth_mm(scaled, volume.geometry.spacing, smoothing)
    return {
        "image": smoothed.to(torch.float16),
        "labels": torch.from_numpy(as_bytes(case.labels, labels.array)),
        "affine": torch.tensor(volume.geometry.affine),
    }


def _store(path: Path, tensors: Tensors) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"crc32": _checksum(tensors)})
    except (OSError, SafetensorError) as error:
        raise SRCSMError(
            f"Cannot write prepared cases into {path.parent} ({error}); free some space, or set "
            "SRCSM_CACHE to another folder."
        ) from error


def _load(path: Path) -> Tensors | None:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("image", "labels", "affine")}
            return tensors if file.metadata()["crc32"] == _checksum(tensors) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _checksum(tensors: Tensors) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].numpy(), crc)
    return f"{crc:08x}"


def _reordered(labels: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(order)] = torch.arange(len(order), dtype=torch.uint8)
    return table[labels.int()]


def place_case(
    name: str, tensors: Tensors, grid: GridSpec, order: Sequence[int] = (), outputs: int = 255
) -> PreparedCase:
    """Find where windows lie in a prepared case.

    Args:
        grid, order, outputs: see `prepare_cases`.
    """
    image, labels = tensors["image"], tensors["labels"]
    if len(order):
        labels = _reordered(labels, order)
    geometry = Geometry(tuple(image.shape[::-1]), tensors["affine"].numpy())
    body = body_extent(image.numpy().astype(np.float32), geometry, grid)
    scan = scan_extent(geometry, grid)
    foreground = []
    for label in range(1, min(outputs, int(labels.max())) + 1):
        voxels = np.flatnonzero(labels.numpy() == label)
        if len(voxels):
            chosen = voxels[:: max(1, len(voxels) // FOREGROUND_VOXELS)]
            foreground.append(np.stack(np.unravel_index(chosen, labels.shape), 1)[:, ::-1])
    return PreparedCase(
        name,
        image[None],
        labels[None],
        geometry,
        body,
        centre_range(body, scan, grid),
        body.directions,
        foreground,
    )


def organ_centroids(cases: Sequence[PreparedCase], outputs: int) -> np.ndarray:
    """Compute the centroid of every output label in every case.

    Returns:
        (cases, outputs, 3) in RAS mm; NaN for a label that a case does not show.
    """
    centroids = np.full((len(cases), outputs, 3), np.nan)
    for row, case in zip(centroids, cases, strict=True):
        labels = case.labels[0].cpu().numpy()
        for index, box in enumerate(ndimage.find_objects(labels, outputs)):
            if box is not None:
                row[index] = centroid(labels[box] == index + 1, box, case.geometry)
    return centroids


def airless_outputs(
    cases: Sequence[PreparedCase], rule: IntensityRule, outputs: int
) -> tuple[int, ...]:
    """Find the output labels that hold no air; see `airless_labels`."""
    scans = [(case.image[0].cpu().numpy(), case.labels[0].cpu().numpy()) for case in cases]
    return airless_labels(scans, rule, outputs + 1)
