# SPDX-License-Identifier: Apache-2.0
"""``srcsm evaluate``: score a network on datasets, and compare it with others."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.errors import ConfigError, DatasetError

from . import arguments as options
from .console import print_json, progress_display

if TYPE_CHECKING:
    import pandas as pd

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.models.bundle import ModelBundle

    from ..data.dataset import Dataset


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "evaluate",
        "score a network on datasets with labels, or compare earlier results",
        "Writes cases.csv, metrics.json, summary.md and pictures of the worst cases; for several\n"
        "datasets also a folder each. The scores are Dice and surface distances in mm.",
        "  srcsm evaluate --model abdomen-ct --data Dataset102_AbdomenMR --out results/ct-mr\n"
        "  srcsm evaluate --model runs/heart/model --data LGE ACDC --source-matching on \\\n"
        "      --map-labels 1:1,5:2,2:3 --cases 'lge_0*' 'acdc_*' --out results/heart\n"
        "  srcsm evaluate --compare plain=r/plain0,r/plain1 src=r/src0,r/src1 --out r/compared",
    )
    options.add_model(parser, None)
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="FOLDER", help="nnU-Net raw datasets"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results")
    parser.add_argument(
        "--source-matching", choices=("on", "off", "both"), default="both", help="default: both"
    )
    parser.add_argument(
        "--split", choices=("Tr", "Ts"), default="Tr", help="imagesTr (default) or imagesTs"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="shell patterns of the cases' names (default: all cases)",
    )
    parser.add_argument(
        "--map-labels",
        metavar="OURS:THEIRS,...",
        help="the datasets' label for each of the network's, such as 1:1,5:2,2:3",
    )
    parser.add_argument(
        "--worst", type=int, default=3, metavar="N", help="pictures per dataset (default: 3)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER[,FOLDER...]",
        help="results of other networks, a folder per seed; the first network is the reference",
    )
    options.add_modality(parser, "what the datasets say")
    options.add_keep_largest(
        parser,
        default=False,
        help="score only the largest piece of each organ, which is what srcsm segment writes",
        alias="--largest-component",
    )
    options.add_device(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score a network on datasets, compare it with others, or both."""
    if bool(arguments.model) != bool(arguments.data):
        raise ConfigError("srcsm evaluate needs --model and --data together.")
    if not arguments.model and not arguments.compare:
        raise ConfigError("srcsm evaluate needs --model and --data, or --compare.")

    from ..evaluation.report import write_comparison
    from ..evaluation.scores import read_scores

    # Read first: a comparison that is impossible should not wait for a long evaluation.
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
        contents = {
            name: json.loads((arguments.out / f"{name}.json").read_text(encoding="utf-8"))
            for name in reports
        }
        print_json({"output": str(arguments.out), **contents})
    else:
        files = {"metrics": "summary.md", "comparison": "comparison.md"}
        texts = [(arguments.out / files[name]).read_text(encoding="utf-8") for name in reports]
        print("\n".join(texts), end="")
    return 0


def evaluate_model(arguments: argparse.Namespace) -> tuple[str, "pd.DataFrame"]:
    """Segment and score every case of every dataset.

    Returns:
        The network's name, and the long table of `evaluation.evaluate`.
    """
    import pandas as pd

    from SRCSMSegmenterLib.devices import resolve_device
    from SRCSMSegmenterLib.inference import segment
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    from ..data.dataset import choose_cases, read_dataset
    from ..evaluation.evaluate import evaluate, parse_label_map
    from ..evaluation.report import write_report

    label_map = parse_label_map(arguments.map_labels) if arguments.map_labels else None
    device = str(resolve_device(arguments.device))
    bundle = load_bundle(find_model(arguments.model))
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

        def network(image: "Volume", on: bool, modality: str = modality) -> "Volume":
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


def check_labels(
    bundle: "ModelBundle", dataset: "Dataset", label_map: dict[int, int] | None
) -> None:
    """Compare the network's labels with the dataset's, before hours of work on nonsense.

    Raises:
        ConfigError: the label map names a label that the network does not have.
        DatasetError: without a label map, a label means one thing here and another there.
    """
    from SRCSMSegmenterLib.terminology import segment_for

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
