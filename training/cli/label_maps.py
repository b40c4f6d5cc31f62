# SPDX-License-Identifier: Apache-2.0
"""Labels of networks and tools on the command line, and what they are in datasets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from ..data.dataset import Dataset

LabelMaps = dict[str, dict[int, int]]
"""Name of a tool, "" for all others -> its label map."""


def check_labels(
    name: str, named: dict[int, str], dataset: "Dataset", label_map: dict[int, int] | None
) -> None:
    """Compare a method's labels with the dataset's, before hours of work on nonsense.

    Args:
        named: label -> name of the network's, or of those that a tool's folder tells; {} if it
            tells none, and then nothing can be compared.

    Raises:
        ConfigError: the label map names a label that the method does not have.
        DatasetError: without a label map, a label means one thing here and another there.
    """
    from SRCSMSegmenterLib.terminology import meaning

    if not named:
        return
    if label_map is not None:
        if unknown := sorted(label_map.keys() - named.keys() - {0}):
            raise ConfigError(f"--map-labels: {name} has no label {unknown}.")
        return
    sides = named, {value: label for label, value in dataset.labels.items()}
    ours, theirs = ({value: meaning(label) for value, label in side.items()} for side in sides)
    if ours != theirs:
        ours, theirs = (
            ", ".join(f"{value} {label}" for value, label in side.items()) for side in sides
        )
        raise DatasetError(
            f"The labels of {name} ({ours}) are not those of {dataset.name} ({theirs}); say with "
            "--map-labels which is which."
        )


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
