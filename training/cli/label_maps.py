# SPDX-License-Identifier: Apache-2.0
"""Labels of networks and tools on the command line, mapped to those of datasets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from ..data.dataset import Dataset

LabelMap = dict[int, int]
"""Label of a network or tool -> label of a dataset."""

LabelMaps = dict[str, LabelMap]
"""Name of a tool, "" for all others -> its label map."""


MOST_NAMED = 12
"""Labels without a counterpart that are named one by one."""


def label_map_for(
    name: str, named: dict[int, str], dataset: "Dataset", given: LabelMap | None
) -> tuple[LabelMap | None, str]:
    """Find the dataset's label for each of a method's, before hours of work on wrong ones.

    Args:
        named: label -> name of the network's, or of those that a tool's folder tells; {} if it
            tells none, and then nothing can be compared.
        given: the label map of --map-labels, if there is one.

    Returns:
        The label map, None if each label is the same in both; and a line that tells a label map
        that was made by the names, or "".

    Raises:
        ConfigError: the given label map names a label that the method does not have.
        DatasetError: without a given label map, a label of the dataset has no counterpart of that
            name, or several.
    """
    from SRCSMSegmenterLib.terminology import meaning

    if not named:
        return given, ""
    if given is not None:
        if unknown := sorted(given.keys() - named.keys() - {0}):
            raise ConfigError(f"--map-labels: {name} has no label {unknown}.")
        return given, ""
    pairs = [
        (ours, theirs)
        for label, theirs in dataset.labels.items()
        for ours, other in named.items()
        if meaning(label) == meaning(other)
    ]
    sides = (pairs, {ours for ours, _ in pairs}, {theirs for _, theirs in pairs})
    if any(len(side) != len(dataset.labels) for side in sides):
        raise DatasetError(_not_those(name, named, dataset, pairs))
    label_map = dict(pairs)
    if label_map.keys() == named.keys() and all(a == b for a, b in pairs):
        return None, ""
    told = ", ".join(f"{ours}:{theirs} {named[ours]}" for ours, theirs in pairs)
    rest = [label for value, label in named.items() if value not in label_map]
    if len(rest) > MOST_NAMED:
        rest = [f"{len(rest)} others"]
    left_out = f"; not in it: {', '.join(rest)}" if rest else ""
    return label_map, f"{name} on {dataset.name}, labels matched by name: {told}{left_out}."


def _not_those(
    name: str, named: dict[int, str], dataset: "Dataset", pairs: Sequence[tuple[int, int]]
) -> str:
    """Say that names do not tell which labels are which, and what --map-labels could be."""
    ours = ", ".join(f"{value} {label}" for value, label in named.items())
    theirs = ", ".join(f"{value} {label}" for label, value in dataset.labels.items())
    example = ",".join(f"{a}:{b}" for a, b in pairs)
    hint = f", such as --map-labels {example} for those of one name" if example else ""
    return (
        f"The labels of {name} ({ours}) are not those of {dataset.name} ({theirs}); say with "
        f"--map-labels which is which{hint}."
    )


def as_text(label_maps: Mapping[str, LabelMap | None]) -> str:
    """Format the label maps of datasets as --map-labels takes them, with names if they differ."""
    texts = {
        name: ",".join(f"{a}:{b}" for a, b in (label_map or {}).items()) or "none"
        for name, label_map in label_maps.items()
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def parse_label_maps(texts: Sequence[str], names: Sequence[str]) -> LabelMaps:
    """Read [NAME=]OURS:THEIRS,...: label maps by the tool they are for, "" for all others.

    Raises:
        ConfigError: one is of another form or of an unknown tool, or a tool has two.
    """
    from ..evaluation.evaluate import parse_label_map

    maps: LabelMaps = {}
    for text in texts:
        name, _, pairs = text.rpartition("=")
        if name and name not in names:
            raise ConfigError(f"--map-labels: no folder of --predictions is named {name}.")
        if name in maps:
            raise ConfigError(f"--map-labels: two label maps for {name or 'all'}.")
        maps[name] = parse_label_map(pairs)
    return maps
