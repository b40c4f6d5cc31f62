# SPDX-License-Identifier: Apache-2.0
"""Evaluation on datasets with labels: scores of every case, reports and pictures."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from SRCSMSegmenterLib.alignment import on_grid
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_geometry, read_labels

from ..data.dataset import Case, Dataset, read_case, require_named
from .cut import Slab, cut, labelled_slab
from .metrics import TOLERANCE, score_case
from .predictions import Predictions
from .report import write_report
from .scores import ANY_SETTING, worst_cases, write
from .slice_views import draw_view, most_wrong_slice

RESERVED = ("mean", "metric", "dataset", "method", "SM")
"""Rows and columns of tables, which a label of the same name would be mixed up with."""


@dataclass(frozen=True)
class Scoring:
    """The labels to score, how they are scored, and what is reported beside the scores.

    Attributes:
        label_map: the predictions' label -> the datasets' label, see `parse_label_map`; the labels
            it maps to are scored. Without a map, all labels of a dataset are scored.
        cut_to_labels: score only the slices that the scored labels span (cut.py); networks do not
            see the others.
        tolerance: of the surface Dice, mm.
        worst: number of pictures per dataset and SM setting, of the cases of lowest mean Dice.
        settings: plain JSON values that are copied to `metrics.json` and `summary.md`.
    """

    label_map: Mapping[int, int] | None = None
    cut_to_labels: bool = False
    tolerance: float = TOLERANCE
    worst: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scan:
    """A case as it is scored.

    Attributes:
        image, truth: of one grid, cut if the slab is.
        whole: grid of the file.
        slab: slices of the file that are scored; None: all.
        labels: name -> label of those to score.
    """

    dataset: Dataset
    case: Case
    image: Volume
    truth: Volume
    whole: Geometry
    slab: Slab | None
    labels: dict[str, int]


Progress = Callable[[int, int, str], None]
Tell = Callable[[Path, Sequence[str]], None]


def evaluate(
    segment: Callable[[Volume, bool], Volume],
    datasets: Sequence[Dataset],
    output: Path,
    source_matching: Sequence[str] = ("off", "on"),
    scoring: Scoring = Scoring(),
    progress: Progress = lambda done, total, name: None,
    tell: Tell = lambda path, remarks: None,
) -> pd.DataFrame:
    """Segment and score every case, see `score`.

    Args:
        segment: called as segment(image, source_matching) -> labels on the image's grid.
        datasets: targets; every case needs a label map.
        source_matching: any of "off", "on".
    """

    def label(scan: Scan, setting: str) -> Volume:
        return segment(scan.image, setting == "on")

    return score(label, source_matching, datasets, output, scoring, progress, tell)


def evaluate_predictions(
    predictions: Predictions,
    datasets: Sequence[Dataset],
    output: Path,
    scoring: Scoring = Scoring(),
    progress: Progress = lambda done, total, name: None,
    tell: Tell = lambda path, remarks: None,
) -> pd.DataFrame:
    """Score the label maps that another tool wrote, see `score`.

    Raises:
        VolumeError: a label map cannot be read, or lies on another grid than its scan.
        DatasetError: without a label map, it holds a label that the dataset does not name.
    """

    def label(scan: Scan, setting: str) -> Volume:
        labels = predictions.read(scan.dataset.name, scan.case, scan.whole)
        tell(predictions.files[scan.dataset.name, scan.case.name], labels.remarks)
        if scoring.label_map is None:
            present = set(np.unique(labels.array).tolist()) - {0}
            if unknown := sorted(present - set(scan.dataset.labels.values())):
                raise DatasetError(
                    f"{predictions.folder}: {scan.case.name} holds the labels {unknown}, which "
                    f"{scan.dataset.name} does not name; say with --map-labels which is which."
                )
        return labels if scan.slab is None else cut(labels, scan.slab)

    return score(label, (ANY_SETTING,), datasets, output, scoring, progress, tell)


def score(
    label: Callable[[Scan, str], Volume],
    source_matching: Sequence[str],
    datasets: Sequence[Dataset],
    output: Path,
    scoring: Scoring,
    progress: Progress,
    tell: Tell,
) -> pd.DataFrame:
    """Score every case, and write `cases.csv`, `metrics.json`, `summary.md` and pictures.

    `cases.partial.csv` is rewritten after every case and removed at the end: a run that is stopped
    keeps its scores so far and the results of an earlier run.

    Args:
        label: called as label(scan, setting) -> label map on the grid of the scan's image.
        source_matching: the settings to call it with.
        datasets: targets; every case needs a label map.
        output: folder, created if it does not exist; results in it are replaced.
        progress: called as progress(done, total, case name) after every label map.
        tell: called with a file, and what is odd about it, a sentence each.

    Returns:
        The long table (see `scores`): dataset, source_matching, seconds (wall time of `label`),
        protocol, tolerance, and the fields of `metrics.Score`.

    Raises:
        DatasetError: a case has no label map or, if it is to be cut, none of the labels, or the
            dataset has no label of the label map.
        EvaluationError: the output folder cannot be written.
    """
    targets = [(dataset, _labels_to_score(dataset, scoring.label_map)) for dataset in datasets]
    total = len(source_matching) * sum(len(dataset.cases) for dataset in datasets)
    protocol = {
        "protocol": "cut" if scoring.cut_to_labels else "whole",
        "tolerance": scoring.tolerance,
    }
    rows, views = [], {}
    partial = output / "cases.partial.csv"
    write(partial, "")  # an unwritable folder fails now, not after the first case
    for scan in _scans(targets, scoring.cut_to_labels):
        name, case, truth = scan.dataset.name, scan.case.name, scan.truth.array
        spacing = scan.image.geometry.spacing
        tell(scan.case.image, scan.image.remarks)
        tell(scan.case.labels, scan.truth.remarks)
        for setting in source_matching:
            started = time.perf_counter()
            prediction = label(scan, setting).array
            run = {
                "dataset": name,
                "source_matching": setting,
                "seconds": time.perf_counter() - started,
                **protocol,
            }
            if scoring.label_map is not None:
                prediction = map_labels(prediction, scoring.label_map)
            scores = score_case(case, prediction, truth, spacing, scan.labels, scoring.tolerance)
            rows += [run | asdict(score) for score in scores]
            view = most_wrong_slice(scan.image, prediction, truth, scan.labels)
            views[name, setting, case] = view
            table = pd.DataFrame(rows)
            write(partial, table.to_csv(index=False))
            progress(len(views), total, case)
    for (name, setting, case), dice in worst_cases(table, scoring.worst).items():
        shown, suffix = f"{name} {case}", f"{name}_{case}"
        if setting != ANY_SETTING:
            shown, suffix = f"{shown}, SM {setting}", f"{suffix}_sm_{setting}"
        picture = output / "pictures" / f"{suffix}.png"
        draw_view(views[name, setting, case], f"{shown}: mean Dice {dice:.3f}", picture)
    write_report(table, output, scoring.settings)
    partial.unlink()
    return table


def parse_label_map(text: str) -> dict[int, int]:
    """Read "1:1,5:2,2:3": the prediction's label before the colon, the dataset's after it.

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
        Same shape, an integer type that holds the new labels.
    """
    dtype = np.promote_types(labels.dtype, np.min_scalar_type(max(label_map.values())))
    lookup = np.zeros(max(int(labels.max()), *label_map) + 1, dtype)
    lookup[list(label_map)] = list(label_map.values())
    return lookup[labels]


def _labels_to_score(dataset: Dataset, label_map: Mapping[int, int] | None) -> dict[str, int]:
    bare = [case.name for case in dataset.cases if case.labels is None]
    if bare:
        raise DatasetError(f"{dataset.folder}: no label map for {', '.join(bare)}.")
    if mistakable := [name for name in dataset.labels if name in RESERVED]:
        raise DatasetError(
            f'{dataset.folder} has a label "{mistakable[0]}", as tables call one of their rows or '
            "columns; rename it in dataset.json."
        )
    if label_map is None:
        return dataset.labels
    scored = set(label_map.values()) - {0}
    unknown = sorted(scored - set(dataset.labels.values()))
    if unknown:
        raise DatasetError(f"{dataset.folder} has no label {unknown}; correct the label map.")
    return {name: label for name, label in dataset.labels.items() if label in scored}


def _scans(
    targets: Sequence[tuple[Dataset, dict[str, int]]], cut_to_labels: bool
) -> Iterator[Scan]:
    """Read the cases of every target, and cut them if `Scoring` says so."""
    slabs: dict[tuple[str, str], Slab | None] = {}
    if cut_to_labels:  # all of them before hours of work
        for dataset, labels in targets:
            for case in dataset.cases:
                truth = on_grid(read_labels(case.labels), read_geometry(case.image), case.labels)
                slab = labelled_slab(truth, labels)
                if slab is None:
                    raise DatasetError(
                        f"{dataset.folder}: {case.name} shows none of {', '.join(labels)}, so it "
                        "cannot be cut to them; leave it out with --cases."
                    )
                slabs[dataset.name, case.name] = slab
    for dataset, labels in targets:
        for case in dataset.cases:
            image, truth = read_case(case)
            require_named(case, truth.array, dataset.labels)
            whole, slab = image.geometry, slabs.get((dataset.name, case.name))
            if slab is not None:
                image, truth = cut(image, slab), cut(truth, slab)
            yield Scan(dataset, case, image, truth, whole, slab, labels)
