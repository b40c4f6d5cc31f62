# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm evaluate``."""

from pathlib import Path

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "evaluate",
        "score a network on datasets with labels, or compare earlier results",
        "Writes cases.csv, metrics.json, summary.md and pictures of the worst cases; with several\n"
        "datasets a folder for each as well. Dice, and surface distances in mm.",
        "  srcsm evaluate --model abdomen-ct --data Dataset102_AbdomenMR --out results/ct-mr\n"
        "  srcsm evaluate --model runs/heart/model --data LGE ACDC --source-matching on \\\n"
        "      --map-labels 1:1,5:2,2:3 --cases 'lge_0*' 'acdc_*' --out results/heart\n"
        "  srcsm evaluate --compare plain=r/plain0,r/plain1 src=r/src0,r/src1 --out r/compared",
    )
    arguments.add_model(parser, None)
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
        "--cases", nargs="+", default=["*"], metavar="PATTERN", help="names (default: all)"
    )
    parser.add_argument(
        "--map-labels",
        metavar="OURS:THEIRS,...",
        help="what the network's labels are called in the datasets, such as 1:1,5:2,2:3",
    )
    parser.add_argument(
        "--worst", type=int, default=3, metavar="N", help="pictures per dataset (default: 3)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER[,FOLDER...]",
        help="results of other networks, of several seeds each; the first is the reference",
    )
    arguments.add_modality(parser, "what the datasets say")
    arguments.add_keep_largest(
        parser,
        default=False,
        help="score only the largest piece of each organ, which is what srcsm segment writes",
        alias="--largest-component",
    )
    arguments.add_device(parser)
    arguments.add_json(parser)
