# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm train``."""

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "train",
        "train a network on an nnU-Net raw dataset, or resume a training",
        "Ctrl-C stops after the step, with a checkpoint; the same command goes on from the last\n"
        "checkpoint after any stop. The trained network is the folder RUN/model.",
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --out runs/ct\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-paper --out runs/paper \\\n"
        "      --set optimisation.steps=20000 data.folds=0 --device cuda --max-minutes 60\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --dry-run\n"
        "  srcsm train --data Dataset101_AbdomenCT --preset icm --out runs/icm \\\n"
        "      --set pairs.styled=[slices/ct/styled/abdomen]\n"
        "  accelerate launch --num_processes 4 training/train.py --data Dataset101_AbdomenCT \\\n"
        "      --preset abdomen-paper --out runs/four-gpus",
    )
    arguments.add_dataset(parser, required=False)
    parser.add_argument("--preset", metavar="NAME", help="where the configuration starts from")
    arguments.add_run(
        parser, config="values put into it", result="of the trained network", required=False
    )
    arguments.add_cache(parser)
    parser.add_argument("--list-presets", action="store_true", help="list the presets and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the dataset, print the configuration and what time and memory it takes here",
    )
    arguments.add_device(parser)
