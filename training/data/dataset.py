# SPDX-License-Identifier: Apache-2.0
"""nnU-Net raw datasets: their cases, and faults that would spoil a training."""

import fnmatch
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from SRCSMSegmenterLib.dataset_file import describe, read_description
from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import DatasetError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.volume_io import read_labels, read_volume


@dataclass(frozen=True)
class Case:
    """One scan and its label map, None if it has none."""

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Dataset:
    """The cases of one split of an nnU-Net raw dataset.

    Attributes:
        folder: folder of `dataset.json`.
        name: the folder's name, e.g. "Dataset101_AbdomenCT".
        modality: "CT" if the channel is named so, else "MR".
        labels: name -> label, 1 to n in this order; background (0) is not included.
        cases: in the order of their names; take a subset with `dataclasses.replace`.
    """

    folder: Path
    name: str
    modality: str
    labels: dict[str, int]
    cases: tuple[Case, ...]


def read_dataset(folder: Path | str, split: str = "Tr") -> Dataset:
    """Read `dataset.json` and list the cases; volumes are opened only if there are faults.

    Args:
        folder: an nnU-Net raw dataset with `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.
        split: "Tr", or "Ts" for `imagesTs` and, if it exists, `labelsTs`.

    Raises:
        DatasetError: `dataset.json` is unreadable or lacks keys, or files are missing or
            superfluous; the message lists these faults together with those inside the volumes.
    """
    dataset, faults = _scan(Path(folder), split)
    if faults:
        raise _error(dataset, faults + _check_volumes(dataset)[0])
    return dataset


def choose_cases(dataset: Dataset, patterns: Sequence[str]) -> Dataset:
    """Return the dataset with the cases whose names match one of the shell patterns.

    Raises:
        DatasetError: no case matches.
    """
    cases = tuple(c for c in dataset.cases if any(fnmatch.fnmatchcase(c.name, p) for p in patterns))
    if not cases:
        raise DatasetError(f"No case of {dataset.name} matches {' or '.join(patterns)}.")
    return replace(dataset, cases=cases)


def check_dataset(dataset: Dataset) -> list[str]:
    """Open every volume once and check it for faults that would spoil a training.

    Returns:
        Warnings: label maps that lack one of the labels.

    Raises:
        DatasetError: lists all faults at once: unreadable, 2-D or 4-D files, values that are not
            finite, image and label map on different grids (tolerance 1e-3 voxel), labels that
            `dataset.json` does not name, label maps without any foreground.
    """
    faults, warnings = _check_volumes(dataset)
    if faults:
        raise _error(dataset, faults)
    return warnings


def _error(dataset: Dataset, faults: list[str]) -> DatasetError:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DatasetError(
        "\n- ".join([f"{dataset.folder} has {count}; mend and try again:", *faults])
    )


def _scan(folder: Path, split: str) -> tuple[Dataset, list[str]]:
    """Read `dataset.json` and the file names; return the dataset and their faults."""
    description, faults = describe(read_description(folder))
    cases, file_faults = _list_cases(folder, split, description.ending)
    count = description.training_cases
    if split == "Tr" and count is not None and count != len(cases):
        file_faults.append(f"dataset.json promises {count} training cases, found {len(cases)}.")
    if not cases:
        file_faults.append(f"there is no complete case in images{split} and labels{split}.")
    name = own_name(folder)
    dataset = Dataset(folder, name, description.modality, description.labels, tuple(cases))
    return dataset, faults + file_faults


def _list_cases(folder: Path, split: str, ending: str) -> tuple[list[Case], list[str]]:
    """Return the complete cases, and faults: files that are missing or superfluous."""
    images, faults = _list_files(folder / f"images{split}", f"_0000{ending}")
    labels, label_faults = _list_files(folder / f"labels{split}", ending)
    faults += label_faults
    if split == "Ts" and not (folder / "labelsTs").is_dir():
        return [Case(name, path, None) for name, path in images.items()], faults
    for name in sorted(images.keys() - labels.keys()):
        faults.append(f"{name}: labels{split}/{name}{ending} is missing.")
    for name in sorted(labels.keys() - images.keys()):
        faults.append(f"{name}: images{split}/{name}_0000{ending} is missing.")
    complete = [name for name in images if name in labels]
    return [Case(name, images[name], labels[name]) for name in complete], faults


def _list_files(folder: Path, ending: str) -> tuple[dict[str, Path], list[str]]:
    """Return the files by case name, and faults: files whose names do not fit."""
    if not folder.is_dir():
        return {}, [f"The folder {folder.name} is missing."] if folder.name != "labelsTs" else []
    files, faults = {}, []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.name.endswith(ending):
            files[path.name.removesuffix(ending)] = path
        else:
            faults.append(f"{folder.name}/{path.name} is not named CASE{ending}.")
    return files, faults


def _check_volumes(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return faults and warnings of all cases, in their order."""
    faults, warnings = [], []
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = pool.map(lambda case: _check_case(case, dataset.labels), dataset.cases)
        for case, (errors, remarks) in zip(dataset.cases, results, strict=True):
            faults += [f"{case.name}: {error}" for error in errors]
            warnings += [f"{case.name}: {remark}" for remark in remarks]
    return faults, warnings


def _check_case(case: Case, labels: dict[str, int]) -> tuple[list[str], list[str]]:
    faults = []
    image = truth = None
    try:
        image = read_volume(case.image)
        if not np.isfinite(image.array).all():
            count = np.count_nonzero(~np.isfinite(image.array))
            faults.append(f"the image holds NaN or infinite values (voxels: {count}).")
    except VolumeError as error:
        faults.append(str(error))
    if case.labels is None:
        return faults, []
    try:
        truth = read_labels(case.labels)
    except VolumeError as error:
        return [*faults, str(error)], []
    if image is not None and not image.geometry.matches(truth.geometry):
        faults.append(_describe_difference(image.geometry, truth.geometry))
    present = set(np.unique(truth.array).tolist()) - {0}
    unknown = sorted(present - set(labels.values()))
    if labels and unknown:
        faults.append(f"the label map holds {unknown}, which dataset.json does not name.")
    if not present:
        return [*faults, "the label map has no foreground."], []
    return faults, [f"no {name} in it." for name, value in labels.items() if value not in present]


def _describe_difference(image: Geometry, labels: Geometry) -> str:
    if image.size != labels.size:
        return f"the image has {image.size} voxels, its label map {labels.size}."
    offset = np.abs(image.affine - labels.affine).max()
    return f"image and label map lie on different grids (affines differ by up to {offset:.3g})."
