# SPDX-License-Identifier: Apache-2.0
"""nnU-Net raw datasets: their cases, and faults that would spoil a training."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from SRCSMSegmenterLib.alignment import on_grid
from SRCSMSegmenterLib.dataset_file import describe, read_description
from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import DatasetError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.label_groups import Groups
from SRCSMSegmenterLib.modality import contradiction, doubts, modality_of
from SRCSMSegmenterLib.schema import convert
from SRCSMSegmenterLib.texts import is_name
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

MOST_LABELS = 255


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
        modality: "CT" or "MR", by the name of the channel, or else by the first image.
        labels: name -> label, 1 to n in this order; background (0) is not included.
        cases: in the order of their names; take a subset with `dataclasses.replace`.
        remark: why it was taken for that modality, a sentence; "" if the channel says so.
        groups: groups of labels.
    """

    folder: Path
    name: str
    modality: str
    labels: dict[str, int]
    cases: tuple[Case, ...]
    remark: str = ""
    groups: Groups = field(default_factory=dict)


def read_dataset(folder: Path | str, split: str = "Tr") -> Dataset:
    """Read `dataset.json` and list the cases.

    Volumes are opened only if there are faults, or the first one if the name of the channel means
    neither CT nor MR.

    Args:
        folder: an nnU-Net raw dataset with `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, or
            with the training cases' paths under "dataset" in `dataset.json`.
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


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Read a scan, and its label map on the scan's grid.

    Raises:
        VolumeError: a file cannot be read, or they do not lie in the same space.
    """
    image = read_volume(case.image)
    return image, on_grid(read_labels(case.labels), image.geometry, case.labels)


def require_named(case: Case, labels: np.ndarray, names: Mapping[str, int]) -> None:
    """Check that a label map holds no other labels than the dataset's.

    Args:
        names: name -> label.

    Raises:
        DatasetError: it does.
    """
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, *names.values()}):
        raise DatasetError(
            f"{case.labels} holds the labels {unknown[:9]}, which dataset.json does not name."
        )


def as_bytes(path: Path, labels: np.ndarray) -> np.ndarray:
    """Convert labels to uint8, in which a network keeps them apart.

    Raises:
        VolumeError: there is one above `MOST_LABELS`.
    """
    if labels.max() > MOST_LABELS:
        raise VolumeError(
            f"{path} holds the label {labels.max()}; a network here tells at most {MOST_LABELS} "
            "apart. Leave labels out of the dataset."
        )
    return labels.astype(np.uint8)


def case_content(case: Case) -> str:
    """Return what identifies a case's files: a size and a SHA-256.

    Raises:
        DatasetError: a file cannot be read.
    """
    try:
        size = case.image.stat().st_size
        if case.labels is None:
            return f"{size} bytes"
        with open(case.labels, "rb") as file:
            return f"{size} bytes, labels {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise DatasetError(f"{case.name} cannot be read ({error.strerror}).") from error


def check_dataset(dataset: Dataset) -> list[str]:
    """Open every volume once and check it for faults that would spoil a training.

    Returns:
        Warnings: label maps that lack one of the labels, images that do not look like the
        dataset's modality, and what is odd about files.

    Raises:
        DatasetError: lists all faults at once: unreadable, 2-D or 4-D files, values that are not
            finite, image and label map in different places, labels that `dataset.json` does not
            name or that are too many, label maps without any foreground.
    """
    if len(dataset.labels) > MOST_LABELS:
        raise _error(
            dataset,
            [f"dataset.json names {len(dataset.labels)} labels; at most {MOST_LABELS} work here."],
        )
    faults, warnings = _check_volumes(dataset)
    if faults:
        raise _error(dataset, faults)
    return [dataset.remark, *warnings] if dataset.remark else warnings


def _error(dataset: Dataset, faults: list[str]) -> DatasetError:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DatasetError(
        "\n- ".join([f"{dataset.folder} has {count}; mend and try again:", *faults])
    )


def _scan(folder: Path, split: str) -> tuple[Dataset, list[str]]:
    """Read `dataset.json` and the file names; return the dataset and their faults."""
    content = read_description(folder)
    description, faults = describe(content)
    if split == "Tr" and "dataset" in content:
        cases, file_faults = _named_cases(folder, content["dataset"])
    else:
        cases, file_faults = _list_cases(folder, split, description.ending)
    count = description.training_cases
    if split == "Tr" and count is not None and count != len(cases):
        file_faults.append(f"dataset.json promises {count} training cases, found {len(cases)}.")
    if not cases:
        file_faults.append(f"there is no complete case in images{split} and labels{split}.")
    name = own_name(folder)
    modality, remark = description.modality or "MR", ""
    if description.modality is None and cases and not faults:
        modality, remark = _modality_of(cases[0], description.channel)
    dataset = Dataset(
        folder, name, modality, description.labels, tuple(cases), remark, description.groups
    )
    return dataset, faults + file_faults


def _modality_of(case: Case, channel: str) -> tuple[str, str]:
    """Return the modality of an image, and why the name of its channel does not decide."""
    try:
        modality = modality_of(read_volume(case.image))
    except VolumeError:
        return "MR", ""  # a fault that is told where the volumes are checked
    return modality, (
        f"The channel {channel!r} means neither CT nor MR; by its first image the dataset is taken "
        f"for {modality}."
    )


def _named_cases(folder: Path, entries: Any) -> tuple[list[Case], list[str]]:  # noqa: ANN401
    """Return the cases that nnU-Net's entry "dataset" names, wherever they lie, and faults.

    Args:
        entries: case -> {"images": [path], "label": path}; paths are absolute, or start from the
            dataset's folder.
    """
    try:
        named = convert(entries, dict[str, dict[str, Any]], "dataset.json: dataset", DatasetError)
    except DatasetError as error:
        return [], [str(error)]
    cases, faults = [], []
    for name, entry in sorted(named.items()):
        images, label = entry.get("images"), entry.get("label")
        paths = [*images, label] if isinstance(images, list) else []
        fits = is_name(name) and own_name(name) == name
        if not fits or len(paths) != 2 or not all(isinstance(p, str) for p in paths):
            faults.append(
                f'dataset.json: dataset: {name!r} needs {{"images": [one path], "label": path}} '
                "and a name on one line, without slashes."
            )
            continue
        missing = [f"{name}: {path} is missing." for path in paths if not (folder / path).is_file()]
        faults += missing
        if not missing:
            cases.append(Case(name, folder / paths[0], folder / paths[1]))
    return cases, faults


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
        results = pool.map(lambda case: _check_case(case, dataset), dataset.cases)
        for case, (errors, remarks) in zip(dataset.cases, results, strict=True):
            faults += [f"{case.name}: {error}" for error in errors]
            warnings += [f"{case.name}: {remark}" for remark in remarks]
    return faults, warnings


def _check_case(case: Case, dataset: Dataset) -> tuple[list[str], list[str]]:
    faults, remarks, labels = [], [], dataset.labels
    image = None
    try:
        image = read_volume(case.image)
        remarks += image.remarks
        if not np.isfinite(image.array).all():
            count = np.count_nonzero(~np.isfinite(image.array))
            faults.append(f"the image holds NaN or infinite values (voxels: {count}).")
        elif said := contradiction(dataset.modality, image.array):
            remarks.append(said)
        elif dataset.modality == "CT":
            remarks += doubts("CT", image.array)
    except VolumeError as error:
        faults.append(str(error))
    if case.labels is None:
        return faults, remarks
    try:
        truth = read_labels(case.labels)
    except VolumeError as error:
        return [*faults, str(error)], []
    if image is not None:
        try:
            truth = on_grid(truth, image.geometry, case.labels)
        except VolumeError as error:
            faults.append(str(error))
    present = set(np.unique(truth.array).tolist()) - {0}
    unknown = sorted(present - set(labels.values()))
    if labels and unknown:
        faults.append(f"the label map holds {unknown}, which dataset.json does not name.")
    if not present:
        return [*faults, "the label map has no foreground."], []
    remarks += [f"The label map: {remark}" for remark in truth.remarks]
    remarks += [f"no {name} in it." for name, value in labels.items() if value not in present]
    return faults, remarks
