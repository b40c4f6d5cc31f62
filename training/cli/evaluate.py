# SPDX-License-Identifier: Apache-2.0
"""``srcsm evaluate``: score networks and label maps of other tools, and compare them."""

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from SRCSMSegmenterLib.endings import own_name
from SRCSMSegmenterLib.errors import ConfigError

from . import arguments as options
from .console import print_json, progress_display, say
from .label_maps import LabelMap, LabelMaps, as_text, label_map_for, parse_label_maps
from .scan_input import tell_remarks

if TYPE_CHECKING:
    import pandas as pd

    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.models.bundle import ModelBundle

    from ..data.dataset import Dataset
    from ..evaluation.predictions import Predictions


def add(commands: options.Commands) -> None:
    """Add the command and its options."""
    parser = options.add_command(
        commands,
        "evaluate",
        "score networks and label maps on datasets with labels, and compare them",
        "Writes cases.csv, metrics.json, summary.md and pictures of the worst cases; for several\n"
        "datasets, or several methods, also a folder each. The scores are Dice, surface Dice and\n"
        "surface distances in mm. Methods are compared with the first of --compare, --model and\n"
        "--predictions, in this order (comparison.md, comparison.json).",
        "  srcsm evaluate --model abdomen-ct --data Dataset102_AbdomenMR --out results/ct-mr\n"
        "  srcsm evaluate --model runs/heart/model --data LGE ACDC --source-matching on \\\n"
        "      --map-labels 1:1,5:2,2:3 --cases 'lge_0*' 'acdc_*' --out results/heart\n"
        "  srcsm evaluate --model abdomen-ct --predictions nnunet totalseg \\\n"
        "      --name nnU-Net TotalSegmentator --map-labels TotalSegmentator=5:1,2:2,3:3,1:4 \\\n"
        "      --data Dataset102_AbdomenMR --out results/others --table latex\n"
        "  srcsm evaluate --compare plain=r/plain0,r/plain1 src=r/src0,r/src1 --out r/compared",
    )
    options.add_model(parser, None)
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="label maps that other tools wrote, a folder per tool: CASE.nii.gz, as nnU-Net does",
    )
    parser.add_argument(
        "--name",
        nargs="+",
        default=[],
        help="names of the tools, in the order of --predictions (default: the folders' names)",
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="FOLDER", help="nnU-Net raw datasets"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the results"
    )
    _add_scoring(parser)
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER[,FOLDER...]",
        help="earlier results, a folder per seed; the first method is the reference",
    )
    parser.add_argument(
        "--table",
        choices=("markdown", "latex", "csv"),
        help="print a table of all methods, a column per label, instead of the reports (csv: "
        "numbers, a row per label); * marks differences from the first method, Holm's p < 0.05",
    )
    options.add_modality(parser, "what the datasets say", "the scans")
    options.add_keep_largest(
        parser,
        default=False,
        help="score only one piece of each organ that the network finds, which is what srcsm "
        "segment writes; label maps of --predictions are scored as they are",
        alias="--largest-component",
    )
    options.add_device(parser)
    options.add_json(parser)


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is scored and how."""
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
        nargs="+",
        default=[],
        metavar="[NAME=]OURS:THEIRS,...",
        help="the datasets' label for each of the network's or tool's, such as 1:1,5:2,2:3 "
        "(default: by their names); with a name before it, for that tool alone",
    )
    parser.add_argument(
        "--cut-to-labels",
        action="store_true",
        help="the protocol of most published numbers: only the slices from the first to the last "
        "that shows a scored label; networks do not see the others (default: whole scans)",
    )
    parser.add_argument(
        "--tolerance",
        type=options.positive_number,
        default=2.0,
        metavar="MM",
        help="tolerance of the surface Dice (default: 2)",
    )
    parser.add_argument(
        "--worst", type=int, default=3, metavar="N", help="pictures per dataset (default: 3)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score a network and label maps on datasets, compare them with others, or both."""
    scored = bool(arguments.model or arguments.predictions)
    if scored != bool(arguments.data):
        raise ConfigError("srcsm evaluate needs --data and --model or --predictions together.")
    if arguments.keep_largest and not arguments.model:
        raise ConfigError("--keep-largest needs --model; label maps are scored as they are.")
    if not scored and not arguments.compare:
        raise ConfigError(
            "srcsm evaluate needs --data and --model or --predictions, or it needs --compare."
        )

    from ..evaluation.report import write_comparison
    from ..evaluation.scores import read_scores

    names = names_of_predictions(arguments)
    label_maps = parse_label_maps(arguments.map_labels, names)
    # Read first: a comparison that is impossible should not wait for a long evaluation.
    methods = {}
    for name, folders in map(parse_method, arguments.compare):
        methods[name] = [read_scores(folder / "cases.csv") for folder in folders]
    reports = {}
    if scored:
        for name, table, folder in evaluate_all(arguments, names, label_maps, methods):
            methods[name], reports[name] = [table], folder
    if len(methods) > 1 or not scored:
        write_comparison(methods, arguments.out)
    print_results(arguments, methods, reports)
    return 0


def evaluate_all(
    arguments: argparse.Namespace,
    names: Sequence[str],
    label_maps: LabelMaps,
    taken: Collection[str],
) -> Iterator[tuple[str, "pd.DataFrame", Path]]:
    """Score the network, if there is one, and the label maps of every tool.

    Everything that can be checked before the work is.

    Args:
        names: of the folders of --predictions.
        taken: names of other methods.

    Yields:
        The method's name, the long table of `evaluation.evaluate`, and the folder of its reports.
    """
    from SRCSMSegmenterLib.models.bundle import load_bundle
    from SRCSMSegmenterLib.models.catalogue import find_model

    from ..data.dataset import choose_cases, read_dataset
    from ..evaluation.predictions import find_predictions

    datasets = [
        choose_cases(read_dataset(folder, arguments.split), arguments.cases)
        for folder in arguments.data
    ]
    if not arguments.modality:
        for dataset in datasets:
            tell_remarks(dataset.folder, [dataset.remark] * bool(dataset.remark))
    methods = []
    if arguments.model:
        bundle = load_bundle(find_model(arguments.model))
        named = {label.value: label.name for label in bundle.description.labels}
        named = {dataset.name: named for dataset in datasets}
        methods.append((bundle.description.name, bundle, named))
    for name, folder in zip(names, arguments.predictions, strict=True):
        predictions = find_predictions(folder, datasets)
        methods.append((name, predictions, predictions.labels))
    all_names = [*taken, *(name for name, _, _ in methods)]
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise ConfigError(f"Two methods are named {twice[0]}; give other names with --name.")
    maps: dict[str, dict[str, LabelMap | None]] = {name: {} for name, _, _ in methods}
    for name, _, named in methods:
        for dataset in datasets:
            given = label_maps.get(name, label_maps.get(""))
            found, told = label_map_for(name, named[dataset.name], dataset, given)
            maps[name][dataset.name] = found
            if told:
                say(told)
    for name, method, _ in methods:
        out = arguments.out / name if len(methods) > 1 else arguments.out
        yield name, evaluate_method(name, method, datasets, maps[name], out, arguments), out


def evaluate_method(
    name: str,
    method: "ModelBundle | Predictions",
    datasets: Sequence["Dataset"],
    label_maps: Mapping[str, LabelMap | None],
    out: Path,
    arguments: argparse.Namespace,
) -> "pd.DataFrame":
    """Score one network, or the label maps of one tool, on every dataset.

    Args:
        label_maps: dataset's name -> label map, see `Scoring`.

    Returns:
        The long table of `evaluation.evaluate`.
    """
    import pandas as pd

    from ..evaluation.evaluate import Scoring, evaluate, evaluate_predictions
    from ..evaluation.predictions import Predictions
    from ..evaluation.report import write_report

    from_files = isinstance(method, Predictions)
    settings = {
        "model": name,
        **({"predictions": str(method.folder)} if from_files else about(method, arguments)),
        "datasets": ", ".join(dataset.name for dataset in datasets),
        "cases": " ".join(arguments.cases),
        "map_labels": as_text(label_maps),
    }
    matching = arguments.source_matching
    chosen = ("off", "on") if matching == "both" else (matching,)
    tables = []
    for dataset in datasets:
        # Several targets get a folder each; the tables over all of them lie above.
        output = out / dataset.name if len(datasets) > 1 else out
        label_map = label_maps[dataset.name]
        scoring = Scoring(
            label_map,
            arguments.cut_to_labels,
            arguments.tolerance,
            arguments.worst,
            {**settings, "map_labels": as_text({dataset.name: label_map})},
        )
        with progress_display(f"{name}, {dataset.name}") as show:
            if from_files:
                table = evaluate_predictions(method, [dataset], output, scoring, show, tell_remarks)
            else:
                segment = network(method, dataset, arguments)
                table = evaluate(segment, [dataset], output, chosen, scoring, show, tell_remarks)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if len(datasets) > 1:
        write_report(table, out, settings)
    return table


def about(bundle: "ModelBundle", arguments: argparse.Namespace) -> dict[str, str | bool]:
    """Return the reports' entries about a network."""
    from SRCSMSegmenterLib.devices import resolve_device

    return {
        "identity": bundle.identity,
        "keep_largest": arguments.keep_largest,
        "device": str(resolve_device(arguments.device)),
    }


def network(
    bundle: "ModelBundle", dataset: "Dataset", arguments: argparse.Namespace
) -> Callable[["Volume", bool], "Volume"]:
    """Return a function that segments a scan of a dataset, with or without source matching."""
    from SRCSMSegmenterLib.devices import resolve_device
    from SRCSMSegmenterLib.inference import segment

    def labels(image: "Volume", on: bool) -> "Volume":
        return segment(
            image,
            bundle,
            modality=arguments.modality or dataset.modality,
            source_matching=on,
            device=str(resolve_device(arguments.device)),
            keep_largest=arguments.keep_largest,
        ).labels

    return labels


def print_results(
    arguments: argparse.Namespace,
    methods: dict[str, list["pd.DataFrame"]],
    reports: dict[str, Path],
) -> None:
    """Print the requested table, or the reports as JSON or as text.

    Args:
        reports: method that was scored -> folder of its reports.
    """
    from ..evaluation.tables import format_table

    compared = len(methods) > 1 or not reports
    if arguments.table:
        print(format_table(methods, arguments.table), end="")
    elif arguments.json:
        scored = {
            name: json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            for name, folder in reports.items()
        }
        content = {"output": str(arguments.out)}
        if len(scored) == 1:
            content["metrics"] = next(iter(scored.values()))
        elif scored:
            content["methods"] = scored
        if compared:
            text = (arguments.out / "comparison.json").read_text(encoding="utf-8")
            content["comparison"] = json.loads(text)
        print_json(content)
    else:
        files = [folder / "summary.md" for folder in reports.values()]
        files += [arguments.out / "comparison.md"] if compared else []
        print("\n".join(path.read_text(encoding="utf-8") for path in files), end="")


def names_of_predictions(arguments: argparse.Namespace) -> list[str]:
    """Return a name for every folder of --predictions.

    Raises:
        ConfigError: too few or too many names, two equal ones, or one that is no folder's name.
    """
    names = arguments.name or [own_name(folder) for folder in arguments.predictions]
    if len(names) != len(arguments.predictions):
        raise ConfigError(
            f"--name takes a name for each folder of --predictions: {len(arguments.predictions)}, "
            f"not {len(names)}."
        )
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two folders of --predictions are named {name}; give --name.")
        if Path(name).name != name or "=" in name:
            raise ConfigError(f'--name: "{name}" cannot name a folder of results.')
    return names


def parse_method(text: str) -> tuple[str, list[Path]]:
    """Read NAME=FOLDER[,FOLDER...]: a method and the results of its seeds.

    Raises:
        ConfigError: it is not of that form.
    """
    name, _, folders = text.partition("=")
    if not name or not folders:
        raise ConfigError(f'--compare takes NAME=FOLDER[,FOLDER...], not "{text}".')
    return name, [Path(folder) for folder in folders.split(",")]
