# SPDX-License-Identifier: Apache-2.0
"""Corrected segmentations as training data: cases added to an nnU-Net raw dataset."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dataset_file import (
    FILE,
    DatasetDescription,
    describe,
    new_description,
    read_description,
    write_description,
)
from .endings import WRITABLE
from .errors import Cancelled, DatasetError, SRCSMError
from .geometry import Volume
from .terminology import name_key, segment_for
from .volume_io import read_volume, write_labels, write_volume

_PRESETS = {
    "prostate": "prostate-fast",
    "left ventricle": "heart-fast",
    "right ventricle": "heart-fast",
    "left atrium": "heart-fast",
    "right atrium": "heart-fast",
    "myocardium": "heart-fast",
}
"""Preset of a dataset that has this organ; "abdomen-fast" for any other."""

_RESERVED = ("background", "ignore")
"""Names with a meaning of their own in `dataset.json`."""


@dataclass(frozen=True)
class AddedCase:
    """A case that was added to a dataset.

    Attributes:
        folder: the dataset's, as an absolute path.
        name: the case's.
        labels: name -> label of the dataset, without background.
        absent: labels that this case has no voxel of.
        cases: number of training cases that the dataset has now.
    """

    folder: Path
    name: str
    labels: dict[str, int]
    absent: tuple[str, ...]
    cases: int

    @property
    def model(self) -> Path:
        """Folder that `train_command` writes the trained network to."""
        return self._run / "model"

    @property
    def _run(self) -> Path:
        return self.folder.parent / "runs" / self.folder.name

    def train_command(self) -> str:
        """Write the command that trains a network on the dataset, to be pasted into a terminal."""
        terms = [segment_for(label, 0).terminology for label in self.labels]
        presets = (
            preset
            for organ, preset in _PRESETS.items()
            if segment_for(organ, 0).terminology in terms
        )
        words = ["srcsm", "train", "--data", str(self.folder)]
        words += ["--preset", next(presets, "abdomen-fast"), "--out", str(self._run)]
        if self.cases == 1:
            words += ["--set", "data.folds=0"]  # there is no second case to validate with
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def add_case(
    folder: Path | str,
    name: str,
    image: Volume,
    masks: Iterable[tuple[str, np.ndarray]],
    modality: str,
    cancelled: Callable[[], bool] = lambda: False,
) -> AddedCase:
    """Add a scan and the masks of its organs to the training cases of an nnU-Net raw dataset.

    Either the case is added complete, or nothing is changed. No file but `dataset.json` is ever
    overwritten.

    Args:
        folder: a dataset's; a folder that is empty or does not exist becomes a dataset with the
            organs of this case as its labels.
        name: what to call the case; characters that file names should not have become "_", and
            a number is appended if another scan has that name.
        image: raw intensities, (K, J, I).
        masks: organ's name and bool mask, (K, J, I) on the image's grid. A mask without a voxel
            says that the organ is not in this scan. Names are compared by `terminology.name_key`.
        modality: "CT" or "MR".
        cancelled: asked between the steps; if it returns True, nothing is added.

    Raises:
        Cancelled: `cancelled` returned True.
        DatasetError: the folder holds something else, or `dataset.json` has faults; its labels are
            not the organs, or its modality is another; masks overlap or are all empty; the image
            has voxels that are not finite, or is in the dataset already; a file cannot be written.
    """
    folder = Path(folder).resolve()
    content, dataset = _open(folder)
    _check_image(image, modality, dataset, folder)
    labels, array = _label_map(image, masks, dataset, folder)
    ending = dataset.ending if dataset else ".nii.gz"
    name = _free_name(folder, name, ending, image)
    image_path = folder / "imagesTr" / f"{name}_0000{ending}"
    labels_path = folder / "labelsTr" / f"{name}{ending}"

    def go_on() -> None:
        if cancelled():
            raise Cancelled("Cancelled; nothing was added.")

    with _removed_on_failure(image_path, labels_path):
        go_on()
        for path in (image_path, labels_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(image_path, image)
        go_on()
        segments = [segment_for(label, value) for label, value in labels.items()]
        write_labels(labels_path, Volume(array, image.geometry), segments)
        go_on()
        cases = sum(1 for _ in _cases(folder, ending))
        if content is None:
            content = new_description(modality, labels, cases)
        write_description(folder, content | {"numTraining": cases})
    present = set(np.unique(array).tolist())
    absent = tuple(label for label, value in labels.items() if value not in present)
    return AddedCase(folder, name, labels, absent, cases)


def _open(folder: Path) -> tuple[dict[str, Any] | None, DatasetDescription | None]:
    """Read a dataset's description; (None, None) if there is no dataset yet."""
    if not (folder / FILE).exists():
        files = (path for path in folder.rglob("*") if path.is_file())
        if folder.is_file() or any(not path.name.startswith(".") for path in files):
            raise DatasetError(
                f"{folder} is no dataset: it has no {FILE}, but other files. Choose a dataset's "
                "folder, or an empty one to start a dataset."
            )
        return None, None
    content = read_description(folder)
    dataset, faults = describe(content)
    if not faults and dataset.ending not in WRITABLE:
        faults = [f"files ending in {dataset.ending} cannot be written."]
    if "dataset" in content:
        faults.append(
            f'{FILE} names every case under "dataset", so that a new one would not be trained on; '
            "add the case by hand, or choose another folder."
        )
    if faults:
        raise DatasetError("\n- ".join([f"{folder} cannot be extended:", *faults]))
    return content, dataset


def _check_image(
    image: Volume, modality: str, dataset: DatasetDescription | None, folder: Path
) -> None:
    if modality not in ("CT", "MR"):
        raise DatasetError(f"A network learns from CT or MR, not from {modality}.")
    if dataset and dataset.modality not in (modality, None):
        raise DatasetError(
            f"{folder} is a dataset of {dataset.modality}, the scan is {modality}; choose another "
            "folder."
        )
    if not np.isfinite(image.array).all():
        raise DatasetError("The scan has voxels that are NaN or infinite; mend it first.")


def _label_map(
    image: Volume,
    masks: Iterable[tuple[str, np.ndarray]],
    dataset: DatasetDescription | None,
    folder: Path,
) -> tuple[dict[str, int], np.ndarray]:
    """Join masks to a label map; return its labels, name -> label, and its voxels, (K, J, I)."""
    labels = dict(dataset.labels) if dataset else {}
    keys = {name_key(label): label for label in labels}
    array, given = np.zeros(image.array.shape, np.uint8), []
    for organ, mask in masks:
        label = keys.get(name_key(organ))
        if label is None:
            if dataset:
                raise DatasetError(
                    f'{folder} has no label "{organ}", but {_listed(labels)}; rename the segment, '
                    "or add the others alone."
                )
            label = re.sub(r"\s+", "_", organ.strip())
            if label.lower() in _RESERVED or not name_key(organ):
                raise DatasetError(f'A label cannot be called "{organ}"; rename the segment.')
            labels[label] = len(labels) + 1
            keys[name_key(organ)] = label
        if label in given:
            raise DatasetError(f'Two segments are called "{label}"; rename or join them.')
        given.append(label)
        _paint(array, mask, label, labels)
    if missing := [label for label in labels if label not in given]:
        raise DatasetError(
            f"There is no segment {_listed(missing)}, which {folder} has as a label; add an empty "
            "segment of that name if the scan does not show it."
        )
    if not array.any():
        raise DatasetError("No segment has a voxel within the scan; nothing can be learned.")
    return labels, array


def _paint(array: np.ndarray, mask: np.ndarray, label: str, labels: dict[str, int]) -> None:
    if mask.shape != array.shape:
        raise DatasetError(f"The mask of {label} has shape {mask.shape}, the scan {array.shape}.")
    taken = array[mask]
    if taken.any():
        value = int(taken[taken > 0][0])
        other = next(name for name, each in labels.items() if each == value)
        raise DatasetError(
            f"{label} overlaps {other} in {np.count_nonzero(taken)} voxels, and a label map holds "
            "one label a voxel; remove the overlap first."
        )
    if labels[label] > 255:
        raise DatasetError("More than 255 labels are not supported; add fewer segments.")
    array[mask] = labels[label]


def _free_name(folder: Path, name: str, ending: str, image: Volume) -> str:
    """Return a name that no case has; refuse a scan that has been added under this name."""
    base = re.sub(r"[^\w-]+", "_", name).strip("_") or "case"
    number, free = 1, base
    while True:
        path = folder / "imagesTr" / f"{free}_0000{ending}"
        if not path.exists() and not (folder / "labelsTr" / f"{free}{ending}").exists():
            return free
        if path.exists() and _same(path, image):
            raise DatasetError(
                f'This scan is in {folder} already, as case "{free}"; to replace it, remove the '
                "case's two files first."
            )
        number += 1
        free = f"{base}_{number}"


def _same(path: Path, image: Volume) -> bool:
    other = read_volume(path)
    return image.geometry.matches(other.geometry) and np.array_equal(image.array, other.array)


def _cases(folder: Path, ending: str) -> Iterator[str]:
    """Yield the names of the complete training cases."""
    for path in (folder / "labelsTr").glob(f"*{ending}"):
        name = path.name.removesuffix(ending)
        if not name.startswith(".") and (folder / "imagesTr" / f"{name}_0000{ending}").exists():
            yield name


@contextmanager
def _removed_on_failure(*paths: Path) -> Iterator[None]:
    """Remove files that the block wrote if it fails; none of them existed before."""
    try:
        yield
    except BaseException as error:
        for path in paths:
            path.unlink(missing_ok=True)
        if isinstance(error, SRCSMError) and not isinstance(error, Cancelled):
            raise DatasetError(str(error)) from error
        if isinstance(error, OSError):
            raise DatasetError(
                f"The case could not be written ({error.strerror}); choose a folder that may be "
                "written to and has space."
            ) from error
        raise


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
