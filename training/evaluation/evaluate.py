# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a network on datasets with labels: scores of every case, reports and pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

from ..data.dataset import Dataset
from .metrics import score_case
from .report import write_report
from .scores import worst_cases, write
from .slice_views import draw_view, most_wrong_slice


def evaluate(
    segment: Callable[[Volume, bool], Volume],
    datasets: Sequence[Dataset],
    output: Path,
    source_matching: Sequence[str] = ("off", "on"),
    label_map: Mapping[int, int] | None = None,
    worst: int = 3,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> pd.DataFrame:
    """Segment and score every case, and write `cases.csv`, `metrics.json`, `summary.md`, pictures.

    `cases.partial.csv` is rewritten after every case and removed at the end: a run that is stopped
    keeps its scores so far and the results of an earlier run.

    Args:
        segment: called as segment(image, source_matching) -> labels on the image's grid.
        datasets: targets; every case needs a label map.
        output: folder, created if it does not exist; results in it are replaced.
        source_matching: any of "off", "on".
        label_map: the network's label -> the datasets' label, see `parse_label_map`; the labels it
            maps to are scored. Without a map, all labels of a dataset are scored.
        worst: number of pictures per dataset and SM setting, of the cases of lowest mean Dice.
        settings: plain JSON values that are copied to `metrics.json` and `summary.md`.
        progress: called as progress(done, total, case name) after every segmentation.

    Returns:
        The long table (see `scores`): dataset, source_matching, seconds (wall time of `segment`),
        and the fields of `metrics.Score`.

    Raises:
        DatasetError: a case has no label map, or the dataset has no label of `label_map`.
        EvaluationError: the output folder cannot be written.
    """
    targets = [(dataset, _labels_to_score(dataset, label_map)) for dataset in datasets]
    total = len(source_matching) * sum(len(dataset.cases) for dataset in datasets)
    rows, views = [], {}
    partial = output / "cases.partial.csv"
    write(partial, "")  # an unwritable folder fails now, not after the first case
    for dataset, labels in targets:
        for case in dataset.cases:
            image, truth = read_volume(case.image), read_labels(case.labels).array
            for setting in source_matching:
                started = time.perf_counter()
                prediction = segment(image, setting == "on").array
                seconds = time.perf_counter() - started
                if label_map is not None:
                    prediction = map_labels(prediction, label_map)
                scores = score_case(case.name, prediction, truth, image.geometry.spacing, labels)
                run = {"dataset": dataset.name, "source_matching": setting, "seconds": seconds}
                rows += [run | asdict(score) for score in scores]
                view = most_wrong_slice(image, prediction, truth, labels)
                views[dataset.name, setting, case.name] = view
                table = pd.DataFrame(rows)
                write(partial, table.to_csv(index=False))
                progress(len(views), total, case.name)
    for (name, setting, case), dice in worst_cases(table, worst).items():
        title = f"{name} {case}, SM {setting}: mean Dice {dice:.3f}"
        picture = output / "pictures" / f"{name}_{case}_sm_{setting}.png"
        draw_view(views[name, setting, case], title, picture)
    write_report(table, output, settings or {})
    partial.unlink()
    return table


def parse_label_map(text: str) -> dict[int, int]:
    """Read "1:1,5:2,2:3": the network's label before the colon, the dataset's after it.

    Raises:
        ConfigError: not pairs of whole numbers, or one label mapped twice.
    """
    try:
        pairs = [(int(old), int(new)) for old, new in (p.split(":") for p in text.split(","))]
    except ValueError:
        raise ConfigError(f'A label map looks like "1:1,5:2,2:3", not "{text}".') from None
    label_map = dict(pairs)
    if len(label_map) < len(pairs) or min(min(pair) for pair in pairs) < 0:
        raise ConfigError(f'Label map "{text}": each label from 0 on may be mapped once only.')
    return label_map


def map_labels(labels: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """Rename labels; labels that `label_map` does not name become 0.

    Args:
        labels: non-negative integers of any shape.
        label_map: old label -> new label.

    Returns:
        Same shape and dtype.
    """
    lookup = np.zeros(max(int(labels.max()), *label_map) + 1, dtype=labels.dtype)
    lookup[list(label_map)] = list(label_map.values())
    return lookup[labels]


def _labels_to_score(dataset: Dataset, label_map: Mapping[int, int] | None) -> dict[str, int]:
    bare = [case.name for case in dataset.cases if case.labels is None]
    if bare:
        raise DatasetError(f"{dataset.folder}: no label map for {', '.join(bare)}.")
    if label_map is None:
        return dataset.labels
    scored = set(label_map.values()) - {0}
    unknown = sorted(scored - set(dataset.labels.values()))
    if unknown:
        raise DatasetError(f"{dataset.folder} has no label {unknown}; correct the label map.")
    return {name: label for name, label in dataset.labels.items() if label in scored}
