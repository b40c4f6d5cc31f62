# SPDX-License-Identifier: Apache-2.0
"""``srcsm evaluate``."""

import argparse
import json
from pathlib import Path

import pandas as pd

from SRCSMSegmenterLib.devices import resolve_device
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle
from SRCSMSegmenterLib.terminology import segment_for

from ...data.dataset import Dataset, choose_cases, read_dataset
from ...evaluation.evaluate import (
    evaluate,
    parse_label_map,
    read_scores,
    write_comparison,
    write_report,
)
from ..console import load_model, print_json, progress_display


def run(arguments: argparse.Namespace) -> int:
    """Score a network on datasets, compare it with others, or both."""
    if bool(arguments.model) != bool(arguments.data):
        raise ConfigError("srcsm evaluate needs --model and --data together.")
    if not arguments.model and not arguments.compare:
        raise ConfigError("srcsm evaluate needs --model and --data, or --compare.")
    # Read first: a comparison that cannot be made should not wait for a long evaluation.
    methods = {}
    for name, folders in map(parse_method, arguments.compare):
        methods[name] = [read_scores(folder / "cases.csv") for folder in folders]
    reports = []
    if arguments.model:
        name, table = evaluate_model(arguments)
        methods[name] = [table]
        reports.append("metrics")
    if arguments.compare:
        write_comparison(methods, arguments.out)
        reports.append("comparison")
    if arguments.json:
        contents = {name: json.loads(read(arguments.out / f"{name}.json")) for name in reports}
        print_json({"output": str(arguments.out), **contents})
    else:
        texts = {"metrics": "summary.md", "comparison": "comparison.md"}
        print("\n".join(read(arguments.out / texts[name]) for name in reports), end="")
    return 0


def evaluate_model(arguments: argparse.Namespace) -> tuple[str, pd.DataFrame]:
    """Segment and score every case of every dataset; returns the network's name and the table."""
    label_map = parse_label_map(arguments.map_labels) if arguments.map_labels else None
    device = str(resolve_device(arguments.device))
    bundle = load_model(arguments.model)
    folders, matching = arguments.data, arguments.source_matching
    datasets = [choose_cases(read_dataset(f, arguments.split), arguments.cases) for f in folders]
    for dataset in datasets:
        check_labels(bundle, dataset, label_map)
    settings = {
        "model": bundle.description.name,
        "identity": bundle.identity,
        "datasets": ", ".join(dataset.name for dataset in datasets),
        "cases": " ".join(arguments.cases),
        "map_labels": arguments.map_labels or "none",
        "keep_largest": arguments.keep_largest,
        "device": device,
    }
    tables = []
    for dataset in datasets:
        modality = arguments.modality or dataset.modality

        def network(image: Volume, on: bool, modality: str = modality) -> Volume:
            return segment(
                image,
                bundle,
                modality=modality,
                source_matching=on,
                device=device,
                keep_largest=arguments.keep_largest,
            ).labels

        # Several targets get a folder each; the tables over all of them lie above.
        output = arguments.out / dataset.name if len(datasets) > 1 else arguments.out
        with progress_display(dataset.name) as show:
            table = evaluate(
                network,
                [dataset],
                output,
                ("off", "on") if matching == "both" else (matching,),
                label_map,
                arguments.worst,
                settings,
                show,
            )
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if len(datasets) > 1:
        write_report(table, arguments.out, settings)
    return bundle.description.name, table


def check_labels(bundle: ModelBundle, dataset: Dataset, label_map: dict[int, int] | None) -> None:
    """Hold the network's labels against the dataset's, before hours are spent on nonsense.

    Raises:
        ConfigError: the label map names a label that the network does not have.
        DatasetError: without a label map, a value means one thing here and another there.
    """
    name = bundle.description.name
    ours = {label.value: label for label in bundle.description.labels}
    theirs = {value: segment_for(label, value) for label, value in dataset.labels.items()}
    if label_map is not None:
        if unknown := sorted(label_map.keys() - ours.keys() - {0}):
            raise ConfigError(f"--map-labels: {name} has no label {unknown}.")
        return
    meanings = [{v: s.terminology for v, s in side.items()} for side in (ours, theirs)]
    if meanings[0] != meanings[1]:
        ours, theirs = (
            ", ".join(f"{value} {label.name}" for value, label in side.items())
            for side in (ours, theirs)
        )
        raise DatasetError(
            f"The labels of {name} ({ours}) are not those of {dataset.name} ({theirs}); say with "
            "--map-labels which is which."
        )


def parse_method(text: str) -> tuple[str, list[Path]]:
    """Read NAME=FOLDER[,FOLDER...]: a method and the results of its seeds.

    Raises:
        ConfigError: it is not of that form.
    """
    name, _, folders = text.partition("=")
    if not name or not folders:
        raise ConfigError(f'--compare takes NAME=FOLDER[,FOLDER...], not "{text}".')
    return name, [Path(folder) for folder in folders.split(",")]


def read(path: Path) -> str:
    """The text of a report."""
    return path.read_text(encoding="utf-8")
