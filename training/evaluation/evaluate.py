# SPDX-License-Identifier: Apache-2.0
"""From predictions to tables, tests and pictures: how well a network does on other domains.

Everything works on one long table, a row per dataset, source matching (SM) on or off, case and
label, as `evaluate` returns and `read_scores` reads it back.
"""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError, DatasetError, SRCSMError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.volume_io import read_labels, read_volume

from ..data.dataset import Dataset
from .metrics import Status, score_case

METRICS = ("dice", "assd", "hd95", "distance_median", "distance_sd", "distance_max")
TITLES = {"dice": "Dice", "assd": "ASSD (mm)", "hd95": "HD95 (mm)"}
GROUP = ["dataset", "source_matching"]


class EvaluationError(SRCSMError):
    """Results cannot be written, or do not belong together."""


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
    """Segment every case, score it, and write `cases.csv`, `metrics.json`, `summary.md`, pictures.

    `cases.partial.csv` is rewritten after every case and removed at the end, so that whatever
    stops the run loses neither these scores nor the results of an earlier run.

    Args:
        segment: called as segment(image, source_matching) -> labels on the image's grid.
        datasets: targets; every case needs a label map.
        output: folder, made where it does not exist; results in it are replaced.
        source_matching: any of "off", "on".
        label_map: what the network's labels are called in the datasets, see `parse_label_map`;
            the labels it maps to are scored. Without one, all labels of a dataset are.
        worst: pictures for each dataset and SM setting, of the cases of lowest mean Dice.
        settings: goes into `metrics.json` and `summary.md` as it is; plain JSON values.
        progress: called as progress(done, total, case name) after every segmentation.

    Returns:
        The long table: dataset, source_matching, seconds (wall time of `segment`), and the
        fields of `metrics.Score`.

    Raises:
        DatasetError: a case without a label map, or a label that the dataset does not have.
        EvaluationError: the output folder cannot be written.
    """
    targets = [(dataset, _labels_to_score(dataset, label_map)) for dataset in datasets]
    total = len(source_matching) * sum(len(dataset.cases) for dataset in datasets)
    rows, views = [], {}
    partial = output / "cases.partial.csv"
    _write(partial, "")  # Find out now, not after the first case, that this is impossible.
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
                _write(partial, table.to_csv(index=False))
                progress(len(views), total, case.name)
    for (name, setting, case), dice in worst_cases(table, worst).items():
        title = f"{name} {case}, SM {setting}: mean Dice {dice:.3f}"
        picture = output / "pictures" / f"{name}_{case}_sm_{setting}.png"
        draw_slice(views[name, setting, case], title, picture)
    write_report(table, output, settings or {})
    partial.unlink()
    return table


def parse_label_map(text: str) -> dict[int, int]:
    """Read "1:1,5:2,2:3", the network's label before the colon, the dataset's after it.

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
    """Rename the values of a label map; those that `label_map` does not name become 0.

    Args:
        labels: non-negative integers, any shape.

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
    wanted = set(label_map.values()) - {0}
    unknown = sorted(wanted - set(dataset.labels.values()))
    if unknown:
        raise DatasetError(f"{dataset.folder} has no label {unknown}; correct the label map.")
    return {name: value for name, value in dataset.labels.items() if value in wanted}


def read_scores(path: Path) -> pd.DataFrame:
    """The long table from a `cases.csv`.

    Raises:
        EvaluationError: unreadable, or not such a table.
    """
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys((*GROUP, "case", "label", "status"), str),
            keep_default_na=False,
            na_values={metric: [""] for metric in METRICS},
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read the scores {path}: {error}.") from error
    missing = {*GROUP, "case", "label", "status", *METRICS} - set(table.columns)
    if missing:
        raise EvaluationError(f"{path} is no table of scores; it lacks {sorted(missing)}.")
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Statistics over cases per dataset, SM setting and label; label "mean" is over all labels.

    Returns:
        A row per label: how many cases were scored, missed, false positive, absent; for every
        metric the mean, median, sd (n - 1), min and max over cases, e.g. `dice_mean`. Absent
        cases are left out; missed and false positive ones have Dice 0 and no distances. Rows
        "mean" treat every case's mean over its labels in the same way, and sum up the counts.
    """
    keys, metrics = [*GROUP, "label"], list(METRICS)
    case_means = table.groupby([*GROUP, "case"], sort=False)[metrics].mean().reset_index()
    cases = pd.concat([table, case_means.assign(label="mean")])
    by_label = cases.groupby(keys, sort=False)[metrics]
    statistics = by_label.agg(["mean", "median", "std", "min", "max"])
    statistics.columns = [f"{m}_{s.replace('std', 'sd')}" for m, s in statistics.columns]
    counted = pd.concat([table, table.assign(label="mean")])
    counts = counted.groupby([*keys, "status"]).size().unstack("status", fill_value=0)
    counts = counts.reindex(statistics.index, columns=list(get_args(Status)), fill_value=0)
    return counts.join(statistics).reset_index()


def across_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and sd (n - 1) over repeated trainings, each with its own table.

    Returns:
        A row per dataset, SM setting and label ("mean" included): `seeds`, and for every metric
        `_mean` and `_sd` over the seeds of the mean over cases.
    """
    means = pd.concat([summarise(table) for table in tables])
    by_label = means.groupby([*GROUP, "label"], sort=False)
    columns = {"seeds": by_label.size()}
    for metric in METRICS:
        columns[f"{metric}_mean"] = by_label[f"{metric}_mean"].mean()
        columns[f"{metric}_sd"] = by_label[f"{metric}_mean"].std()
    return pd.DataFrame(columns).reset_index()


def cross_domain_table(
    methods: Mapping[str, Sequence[pd.DataFrame]], metric: str = "dice", label: str = "mean"
) -> pd.DataFrame:
    """One number for each way of training and each target.

    Args:
        methods: name -> long tables, one per seed.
        metric: one of `METRICS`.
        label: name of a label, or "mean" for the mean over labels.

    Returns:
        Texts "0.853", with several seeds "0.853 ± 0.012"; a row per method and SM setting, a
        column per dataset.
    """
    rows = {}
    for method, tables in methods.items():
        seeds = across_seeds(tables)
        for row in seeds[seeds["label"] == label].to_dict("records"):
            cell = _mean_and_sd(row, metric)
            rows.setdefault((method, row["source_matching"]), {})[row["dataset"]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["method", "SM"]).fillna("-")


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same cases: means, second minus first, two-sided Wilcoxon p value."""

    cases: int
    first: float
    second: float
    difference: float
    p_value: float


def paired_test(first: pd.DataFrame, second: pd.DataFrame, metric: str = "dice") -> PairedTest:
    """Wilcoxon signed-rank test over cases (scipy), each by its mean over labels and seeds.

    Args:
        first, second: long tables of one SM setting each; concatenate those of several seeds.
        metric: one of `METRICS`; cases where it is NaN for either method are left out.

    Raises:
        EvaluationError: the tables hold different cases, or several SM settings.
    """
    if max(table["source_matching"].nunique() for table in (first, second)) > 1:
        raise EvaluationError("A paired test needs one SM setting on either side; select it first.")
    before, after = (t.groupby(["dataset", "case"])[metric].mean() for t in (first, second))
    unpaired = before.index.symmetric_difference(after.index)
    if len(unpaired):
        names = ", ".join("/".join(name) for name in unpaired)
        raise EvaluationError(f"A paired test needs the same cases on both sides; alone: {names}.")
    pairs = pd.DataFrame({"first": before, "second": after}).dropna()
    same = (pairs["first"] == pairs["second"]).all()
    p_value = 1.0 if same else wilcoxon(pairs["first"], pairs["second"]).pvalue
    means = pairs.mean()
    change = means["second"] - means["first"]
    return PairedTest(len(pairs), *map(float, (means["first"], means["second"], change, p_value)))


def compare_methods(
    methods: Mapping[str, Sequence[pd.DataFrame]], metric: str = "dice"
) -> pd.DataFrame:
    """`paired_test` of every method against the first, for each target and SM setting of both.

    Args:
        methods: name -> long tables, one per seed.

    Returns:
        Columns method, against, dataset, source_matching, and the fields of `PairedTest`.
    """
    (reference, baseline), *others = [(name, pd.concat(t)) for name, t in methods.items()]
    known = dict(iter(baseline.groupby(GROUP, sort=False)))
    rows = []
    for method, table in others:
        for key, part in table.groupby(GROUP, sort=False):
            if key in known:
                names = {"method": method, "against": reference}
                test = asdict(paired_test(known[key], part, metric))
                rows.append(names | dict(zip(GROUP, key, strict=True)) | test)
    return pd.DataFrame(rows)


def worst_cases(table: pd.DataFrame, count: int) -> dict[tuple[str, str, str], float]:
    """(dataset, SM setting, case) -> mean Dice, the `count` lowest of each dataset and setting."""
    dice = table.groupby([*GROUP, "case"], sort=False)["dice"].mean().dropna()
    return dice.sort_values().groupby(GROUP, sort=False).head(count).to_dict()


def write_report(table: pd.DataFrame, output: Path, settings: Mapping[str, Any]) -> None:
    """Write `cases.csv`, `metrics.json` and `summary.md`, each whole or not at all.

    `metrics.json` holds "settings", "cases" (the long table), "labels" (`summarise`), "means"
    (its rows over labels) and "source_matching_test" (SM on against off); NaN is null.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    summary = summarise(table)
    over_labels = summary["label"] == "mean"
    content = {
        "settings": dict(settings),
        "cases": _records(table),
        "labels": _records(summary[~over_labels]),
        "means": _records(summary[over_labels].drop(columns="label")),
        "source_matching_test": _records(_source_matching_tests(table)),
    }
    _write(output / "cases.csv", table.to_csv(index=False))
    _write(output / "metrics.json", _json(content))
    _write(output / "summary.md", _report(table, summary, settings))


def _records(table: pd.DataFrame) -> list[dict]:
    return json.loads(table.to_json(orient="records", double_precision=15))


def _source_matching_tests(table: pd.DataFrame) -> pd.DataFrame:
    """SM on against off by Dice, a row per dataset; empty where only one of them was run."""
    rows = []
    for dataset, part in table.groupby("dataset", sort=False):
        off, on = (part[part["source_matching"] == setting] for setting in ("off", "on"))
        if len(off) and len(on):
            rows.append({"dataset": dataset} | asdict(paired_test(off, on)))
    return pd.DataFrame(rows)


def _report(table: pd.DataFrame, summary: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    parts = ["# Evaluation"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in settings.items()))
    parts += ["## Targets, mean over labels", _targets({"this network": [table]})]
    for dataset, part in summary.groupby("dataset", sort=False):
        lines = [
            {"label": row["label"], "SM": row["source_matching"]}
            | {title: _mean_and_sd(row, metric) for metric, title in TITLES.items()}
            | {"median Dice": _number(row["dice_median"], "dice")}
            | {status: row[status] for status in get_args(Status)}
            for _, setting in part.groupby("source_matching", sort=False)
            for row in setting.to_dict("records")
        ]
        parts += [f"## {dataset}", markdown_table(pd.DataFrame(lines))]
    tests = _source_matching_tests(table)
    if len(tests):
        tests = tests.rename(columns={"first": "SM off", "second": "SM on"})
        parts += ["## SM on against off, Dice, Wilcoxon over cases", markdown_table(tests.round(4))]
    parts.append(
        "Mean ± SD over cases; rows and targets named mean take every case's mean over its labels. "
        "A label absent in truth and prediction leaves the case out of its mean; one that is "
        "missed or false positive counts with Dice 0 and without distances."
    )
    return _document(parts)


def write_comparison(methods: Mapping[str, Sequence[pd.DataFrame]], output: Path) -> None:
    """Write `comparison.md` and `comparison.json` over several methods and seeds.

    `comparison.json` holds "means" (`across_seeds` of every method) and "tests"
    (`compare_methods` by Dice); NaN is null.

    Args:
        methods: name -> long tables, one per seed; the first is what the others are held against.
        output: folder, made where it does not exist.

    Raises:
        EvaluationError: the folder cannot be written, or the methods saw different cases.
    """
    tests = compare_methods(methods)
    means = [across_seeds(tables).assign(method=name) for name, tables in methods.items()]
    parts = ["# Comparison", "## Targets, mean over labels", _targets(methods)]
    if len(tests):
        parts += ["## Dice, Wilcoxon over cases", markdown_table(tests.round(4))]
    parts.append("Mean ± SD over seeds; tests take each case's mean over labels and seeds.")
    content = {"means": _records(pd.concat(means)), "tests": _records(tests)}
    _write(output / "comparison.json", _json(content))
    _write(output / "comparison.md", _document(parts))


def _targets(methods: Mapping[str, Sequence[pd.DataFrame]]) -> str:
    """The cross-domain tables of the three main metrics below each other, as Markdown."""
    parts = []
    for metric, title in TITLES.items():
        part = cross_domain_table(methods, metric).reset_index()
        part.insert(0, "metric", title)
        parts.append(part)
    return markdown_table(pd.concat(parts))


def _document(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A table without its index, as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _mean_and_sd(row: Mapping[str, float], metric: str) -> str:
    mean, sd = row[f"{metric}_mean"], row[f"{metric}_sd"]
    return _number(mean, metric) + ("" if np.isnan(sd) else f" ± {_number(sd, metric)}")


def _number(value: float, metric: str) -> str:
    return "-" if np.isnan(value) else f"{value:.{3 if metric == 'dice' else 2}f}"


@dataclass(frozen=True, eq=False)
class SliceView:
    """One slice as it is shown: rows run downwards to posterior or inferior, columns to left.

    Attributes:
        image, prediction, truth: 2-D, one shape.
        aspect: height of a voxel over its width.
        index: number of the slice along the scan's coarsest axis.
        labels: name -> value of the labels to outline.
    """

    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray
    aspect: float
    index: int
    labels: dict[str, int]


def most_wrong_slice(
    image: Volume, prediction: np.ndarray, truth: np.ndarray, labels: dict[str, int]
) -> SliceView:
    """The slice, across the scan's coarsest axis, with the most wrongly labelled voxels.

    Args:
        image: the scan.
        prediction, truth: label maps (K, J, I) on its grid.
        labels: name -> value; other values count as background.
    """
    geometry = image.geometry
    through = geometry.coarsest_axis
    column, row = sorted(
        (axis for axis in range(3) if axis != through),
        key=lambda axis: abs(geometry.direction[0, axis]),
        reverse=True,
    )
    values = list(labels.values())
    prediction, truth = (a * np.isin(a, values, kind="table") for a in (prediction, truth))
    wrong = (prediction != truth).sum(axis=(2 - column, 2 - row))
    index = int(np.argmax(wrong))
    return SliceView(
        *(
            _oriented(a, geometry, through, index, row, column)
            for a in (image.array, prediction, truth)
        ),
        aspect=float(geometry.spacing[row] / geometry.spacing[column]),
        index=index,
        labels=labels,
    )


def _oriented(
    array: np.ndarray, geometry: Geometry, through: int, index: int, row: int, column: int
) -> np.ndarray:
    """The slice with its rows along one voxel axis and its columns along another, as radiologists
    look at it: the patient's right on the left, anterior or superior on top."""
    shown = array.transpose(2 - through, 2 - row, 2 - column)[index]
    right = geometry.direction[0, column]
    up = max(geometry.direction[1:, row], key=abs)
    return shown[:: -1 if up > 0 else 1, :: -1 if right > 0 else 1]


def draw_slice(view: SliceView, title: str, path: Path) -> None:
    """Save a PNG: the slice with the truth as solid and the prediction as dashed outlines.

    Raises:
        EvaluationError: the file cannot be written.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    low, high = np.percentile(view.image, (1, 99))
    axes.imshow(view.image, cmap="gray", vmin=low, vmax=high, aspect=view.aspect)
    for number, (label, value) in enumerate(view.labels.items()):
        colour = colormaps["tab10"](number % 10)
        axes.plot([], [], color=colour, label=label)
        for shown, style in ((view.truth, "solid"), (view.prediction, "dashed")):
            mask = shown == value
            if mask.any() and not mask.all():
                axes.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1.2)
    axes.set_title(f"{title}\nslice {view.index}; truth solid, prediction dashed", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    _write(path, buffer.getvalue())


def _write(path: Path, content: str | bytes) -> None:
    """Write under a temporary name and rename, so that no half file is ever seen."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise EvaluationError(
            f"Cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from error
