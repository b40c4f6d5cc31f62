# SPDX-License-Identifier: Apache-2.0
"""The file `dataset.json` of an nnU-Net raw dataset: what it says, its faults, and writing it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from .atomic import atomic_write, read_regular
from .endings import READABLE
from .errors import DatasetError
from .label_groups import Groups, group_faults
from .modality import named_modality
from .schema import convert, parse_json
from .terminology import meaning
from .texts import is_name

FILE = "dataset.json"
KINDS = {
    "channel_names": dict[str, str | int | float],
    "labels": dict[str, Any],
    "numTraining": int,
    "file_ending": str,
}
"""The required keys, and the types of what they hold."""


@dataclass(frozen=True)
class DatasetDescription:
    """Content of a `dataset.json`.

    Attributes:
        channel: the name of the channel, as it is written.
        labels: name -> label, 1 to n in this order; background (0) is not included.
        ending: of the files.
        training_cases: their number; None if it is not given.
        groups: groups of labels, under the key "groups", which nnU-Net does not read.
    """

    channel: str
    labels: dict[str, int]
    ending: str
    training_cases: int | None
    groups: Groups = field(default_factory=dict)

    @property
    def modality(self) -> str | None:
        """The modality that the channel's name means, "CT" or "MR"; None if it means neither."""
        return named_modality(self.channel)


def read_description(folder: Path) -> dict[str, Any]:
    """Read the `dataset.json` of a folder.

    Raises:
        DatasetError: it is missing, or no JSON object.
    """
    path = folder / FILE
    try:
        text = read_regular(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; give the folder of an nnU-Net dataset.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path} cannot be read ({reason}).") from None
    content = parse_json(text, str(path), DatasetError)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds no JSON object; see the nnU-Net dataset format.")
    return content


def describe(content: Mapping[str, Any]) -> tuple[DatasetDescription, list[str]]:
    """Parse the content of a `dataset.json`; return its faults too, a sentence each."""
    given, faults = _converted(content)
    channels = given.get("channel_names") or {}
    if len(channels) > 1:
        faults.append(f"dataset.json names {len(channels)} channels; a network here takes one.")
    labels: dict[str, int] = {}
    if "labels" in given:
        labels, label_faults = _read_label_names(given["labels"])
        faults += label_faults
    channel = str(next(iter(channels.values()), ""))
    ending, count = given.get("file_ending", ".nii.gz"), given.get("numTraining")
    if ending not in READABLE:
        faults.append(f"dataset.json: file_ending is one of {', '.join(READABLE)}, not {ending!r}.")
    groups, wrong = _read_groups(content.get("groups", {}), labels)
    return DatasetDescription(channel, labels, ending, count, groups), faults + wrong


def _read_groups(content: object, labels: Mapping[str, int]) -> tuple[Groups, list[str]]:
    """Return the groups of labels, and their faults."""
    try:
        groups = convert(content, dict[str, tuple[str, ...]], "dataset.json: groups", DatasetError)
    except DatasetError as error:
        return {}, [str(error)]
    return groups, [f"dataset.json: {fault}" for fault in group_faults(groups, labels)]


def _converted(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the required keys, and faults: absent, or of other types."""
    given, faults = {}, []
    for key, kind in KINDS.items():
        if key not in content:
            faults.append(f'dataset.json lacks "{key}".')
            continue
        try:
            given[key] = convert(content[key], kind, f"dataset.json: {key}", DatasetError)
        except DatasetError as error:
            faults.append(str(error))
    return given, faults


def new_description(modality: str, labels: Mapping[str, int], cases: int) -> dict[str, Any]:
    """Return the content of a new `dataset.json`, of .nii.gz files.

    Args:
        labels: name -> label, without background.
        cases: number of training cases.
    """
    return {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **labels},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def write_description(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the `dataset.json` of a folder, complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _read_label_names(entries: dict) -> tuple[dict[str, int], list[str]]:
    """Return the foreground labels, name -> label, and their faults."""
    if not isinstance(entries, dict) or not all(type(v) is int for v in entries.values()):
        return {}, ['dataset.json: labels must be {"name": integer}, without regions.']
    labels = dict(sorted(entries.items(), key=lambda entry: entry[1]))
    faults = [
        f"dataset.json: the label {name!r} is no name; use letters, digits and signs, on one line."
        for name in labels
        if not is_name(name)
    ]
    faults += [
        f"dataset.json: the labels {first!r} and {second!r} mean the same; rename one of them."
        for first, second in combinations(labels, 2)
        if meaning(first) == meaning(second) != ()
    ]
    if list(labels.values()) != list(range(len(labels))) or labels.get("background") != 0:
        faults.append("dataset.json: labels must be background = 0, then 1, 2, 3 without gaps.")
    if len(labels) < 2:
        faults.append("dataset.json: labels must name at least one structure.")
    if "ignore" in labels:
        faults.append('dataset.json: the special label "ignore" is not supported.')
    return {name: value for name, value in labels.items() if value != 0}, faults
