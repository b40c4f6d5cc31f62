# SPDX-License-Identifier: Apache-2.0
"""Slices with masks, cut from an nnU-Net raw dataset."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_volume

from ..data.dataset import (
    Case,
    Dataset,
    as_bytes,
    check_dataset,
    choose_cases,
    read_case,
    read_dataset,
)
from ..engine.config import to_dict
from ..engine.limits import Limits
from .config import PrepareConfig, StyleConfig
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    begin_set,
    file_sha256,
    write_manifest,
    write_picture,
)

# For a slice whose normal runs along right, anterior or superior: where its columns and rows run
# on a radiologist's screen (RAS).
COLUMNS = ((0, -1, 0), (-1, 0, 0), (-1, 0, 0))
ROWS = ((0, 0, -1), (0, 0, -1), (0, -1, 0))


def prepare(
    dataset_folder: Path,
    folder: Path,
    config: StyleConfig,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Slice every case of a dataset, or those that an earlier call did not come to.

    Args:
        dataset_folder: an nnU-Net raw dataset.
        folder: of the slice set.
        progress: called as progress(done, total, case name) after every case.

    Raises:
        DatasetError: the dataset has faults or no slice with foreground, or `folder` holds other
            slices.
        StyleError: the slices cannot be written.
    """
    time_is_up, say = limits.start(), limits.say
    dataset = choose_cases(read_dataset(dataset_folder), config.prepare.cases)
    if max(dataset.labels.values()) > 255:
        raise DatasetError(f"{dataset.name} has labels over 255, which no 8-bit mask holds.")
    slices = begin_set(_new_set(Path(folder), dataset, config))
    say(f"Checking {len(dataset.cases)} cases of {dataset.name} ...")
    for warning in check_dataset(dataset):
        say(f"Warning: {warning}")
    axes = slice_axes(dataset.cases, config.prepare.axis)
    counts = Counter(axes.values())
    across = " and ".join(f"{axis} in {count} cases" for axis, count in counts.most_common())
    say(f"Slicing across one direction of the patient, the voxel axis {across}.")
    for done, case in enumerate(dataset.cases):
        if time_is_up():
            return StageResult(done, len(dataset.cases), None)
        sums = [file_sha256(case.image), file_sha256(case.labels)]
        if slices.cases.get(case.name) != sums:
            others = [s for s in slices.slices if s.case != case.name]
            made = list(_slices_of(case, dataset, slices, config, axes[case.name]))
            slices = replace(
                slices,
                slices=(*others, *made),
                cases={**slices.cases, case.name: sums},
            )
            write_manifest(slices)
        progress(done + 1, len(dataset.cases), case.name)
    if not slices.slices:
        raise DatasetError(
            f"No slice of {dataset.name} has {config.prepare.foreground:.2%} of its pixels "
            "labelled; lower prepare.foreground or choose another prepare.axis."
        )
    slices = replace(slices, complete=True)
    write_manifest(slices)
    say(f"{len(slices.slices)} slices of {len(dataset.cases)} cases.")
    return StageResult(len(dataset.cases), len(dataset.cases), slices.folder)


def slice_axes(cases: Sequence[Case], axis: str) -> dict[str, str]:
    """Choose one direction of the patient to slice all cases across.

    It is the direction that the slices of most scans lie across; a scan that is stored in another
    order, or acquired in another direction, is sliced across it all the same.

    Args:
        axis: "auto", or the voxel axis "I", "J" or "K" of all cases.

    Returns:
        Name of the case -> its voxel axis.
    """
    if axis != "auto":
        return {case.name: axis for case in cases}
    scans = {case.name: read_volume(case.image).geometry for case in cases}
    normals = np.array([scan.direction[:, scan.slice_axis] for scan in scans.values()])
    # Of all scans' normals the one that agrees best with the others, which may be oblique.
    chosen = normals[abs(normals @ normals.T).sum(axis=1).argmax()]
    return {
        name: "IJK"[int(abs(scan.direction.T @ chosen).argmax())] for name, scan in scans.items()
    }


def picture_grids(scan: Geometry, axis: str, size: int, field_of_view: float) -> list[Geometry]:
    """Lay the grids of all pictures of a scan, in the order of its slices.

    Args:
        axis: "auto", "I", "J" or "K", see `PrepareConfig`.
        size: pixels of a side.
        field_of_view: mm of a side; 0 takes the smallest square that holds the slice.

    Returns:
        Geometries of size (size, size, 1): I runs along the pictures' columns, J along their
        rows, as a radiologist looks at them; the middle of a picture is the middle of its slice.
    """
    normal = "IJK".index(axis) if axis != "auto" else scan.slice_axis
    across = [n for n in range(3) if n != normal]
    columns, rows = _display(scan.direction, normal, across)
    side = field_of_view or max(scan.size[n] * scan.spacing[n] for n in across)
    pixel = side / size
    grids = []
    for index in range(scan.size[normal]):
        middle = (np.array(scan.size) - 1) / 2
        middle[normal] = index
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = columns * pixel, rows * pixel
        affine[:3, 2] = scan.affine[:3, normal]
        affine[:3, 3] = scan.to_ras(middle) - affine[:3, :2].sum(axis=1) * (size - 1) / 2
        grids.append(Geometry((size, size, 1), affine))
    return grids


def picture(
    volume: Volume, grid: Geometry, *, labels: bool = False, outside: float = 0
) -> np.ndarray:
    """Resample a volume on a grid of `picture_grids`.

    Images are interpolated linearly, after a Gaussian if the pixels are larger than the voxels;
    labels are looked up.

    Args:
        outside: intensity beyond the scan.

    Returns:
        (rows, columns).
    """
    # One corner and two edges of the picture in voxels of (I, J, K) tell where all pixels lie.
    corner, right, down = volume.geometry.to_ijk(
        grid.to_ras(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    )
    right, down = right - corner, down - corner
    normal = int(np.argmin(np.abs(right) + np.abs(down)))
    index = round(corner[normal])
    plane = np.take(volume.array, index, axis=2 - normal)
    order = [n for n in (2, 1, 0) if n != normal]  # the plane's axes, of (K, J, I)
    rows, columns = np.mgrid[: grid.size[1], : grid.size[0]]
    where = [corner[n] + columns * right[n] + rows * down[n] for n in order]
    if labels:
        return map_coordinates(plane, where, order=0, mode="grid-constant", cval=0)
    step = np.array([np.hypot(right[n], down[n]) for n in order])
    sigma = 0.5 * np.sqrt(np.maximum(step**2 - 1, 0))
    smooth = gaussian_filter(plane.astype(np.float32), sigma, mode="nearest")
    return map_coordinates(smooth, where, order=1, mode="grid-constant", cval=outside)


def windowed(volume: Volume, modality: str, config: PrepareConfig) -> Volume:
    """Map a scan's window (CT) or percentiles (MR) to 0 and 255, float32, not rounded.

    Raises:
        DatasetError: it has no contrast.
    """
    array = volume.array.astype(np.float32)
    lower, upper = config.window if modality == "CT" else np.percentile(array, config.percentiles)
    if not lower < upper:
        raise DatasetError(f"its percentiles {config.percentiles} are one value, {lower}.")
    return Volume(np.clip((array - lower) * (255 / (upper - lower)), 0, 255), volume.geometry)


def _display(
    direction: np.ndarray, normal: int, across: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Orient a picture as nearly as the voxel axes allow to what radiologists expect.

    Args:
        direction: (3, 3) RAS unit vectors of the voxel axes as columns.
        normal: voxel axis across the slices.
        across: the two others.

    Returns:
        (3,) RAS unit vectors of the picture's columns and rows.
    """
    facing = int(np.argmax(np.abs(direction[:, normal])))
    wanted = np.array([COLUMNS[facing], ROWS[facing]])
    agreement = wanted @ direction[:, across]  # (column or row, voxel axis)
    straight, crossed = np.abs(np.diag(agreement)).sum(), np.abs(np.diag(agreement[::-1])).sum()
    chosen = across if straight >= crossed else across[::-1]
    signs = [np.sign(w @ direction[:, n]) or 1 for w, n in zip(wanted, chosen, strict=True)]
    columns, rows = (s * direction[:, n] for s, n in zip(signs, chosen, strict=True))
    return columns, rows


def _new_set(folder: Path, dataset: Dataset, config: StyleConfig) -> SliceSet:
    settings = {"stage": "prepare", "size": config.size, **to_dict(config.prepare)}
    return SliceSet(folder, dataset.name, dataset.modality, dataset.labels, config.size, settings)


def _slices_of(
    case: Case, dataset: Dataset, slices: SliceSet, config: StyleConfig, axis: str
) -> Iterator[Slice]:
    chosen = config.prepare
    volume, labels = read_case(case)
    labels = replace(labels, array=as_bytes(case.labels, labels.array))
    try:
        volume = windowed(volume, dataset.modality, chosen)
    except DatasetError as error:
        raise DatasetError(f"{case.image} cannot be used: {error}") from error
    grids = picture_grids(volume.geometry, axis, config.size, chosen.field_of_view)
    chances = np.random.default_rng([config.seed, zlib.crc32(case.name.encode())])
    draws = chances.random(len(grids))
    outside = float(volume.array.min())
    style = chosen.style if chosen.style != "auto" else dataset.modality.lower()
    names = {value: name for name, value in dataset.labels.items()}
    for index, (grid, chance) in enumerate(zip(grids, draws, strict=True)):
        if index % chosen.every:
            continue
        mask = picture(labels, grid, labels=True).astype(np.uint8)
        counts = np.bincount(mask.ravel(), minlength=256)
        share = counts[1:].sum() / mask.size
        if not (share >= chosen.foreground if share else chance < chosen.empty):
            continue
        name = f"{case.name}_{axis}{index:03d}"
        image = np.rint(picture(volume, grid, outside=outside)).astype(np.uint8)
        paths = [f"{kind}/{name}.png" for kind in ("images", "masks")]
        sums = [
            write_picture(slices.folder / path, array)
            for path, array in zip(paths, (image, mask), strict=True)
        ]
        yield Slice(
            name=name,
            case=case.name,
            image=paths[0],
            mask=paths[1],
            image_sha256=sums[0],
            mask_sha256=sums[1],
            style=style,
            pixels={names[v]: int(counts[v]) for v in names if counts[v]},
            affine=grid.affine.ravel().tolist(),
        )
