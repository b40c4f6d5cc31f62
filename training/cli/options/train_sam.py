# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm train-sam``."""

from .. import arguments


def add(commands: arguments.Commands) -> None:
    parser = arguments.add_command(
        commands,
        "train-sam",
        "train a small SAM from nothing, or fine-tune a SAM's mask decoder; or resume that",
        "On an nnU-Net raw dataset, the source. With --sam, encoder and prompt encoder stay as\n"
        "they are and the boxes are those of the coarse network --coarse. Ctrl-C stops after the\n"
        "step, with a checkpoint; the same command goes on from it. The SAM is RUN/model.",
        "  srcsm train-sam --data Dataset101_AbdomenCT --out runs/sam-ct\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --sam sam_vit_b_01ec64.pth \\\n"
        "      --coarse abdomen-ct --out runs/vit-b-ct --device cuda\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --sam sam-small-ct --coarse abdomen-ct \\\n"
        "      --set embed_once=false random_convolution=smoothed --out runs/sam-ct-looks\n"
        "  srcsm train-sam --data Dataset101_AbdomenCT --dry-run",
    )
    arguments.add_dataset(parser)
    arguments.add_sam(
        parser, "fine-tune this one: a shipped SAM, a SAM folder or a checkpoint file"
    )
    parser.add_argument(
        "--coarse", metavar="NAME_OR_FOLDER", help="the network whose boxes are given, for --sam"
    )
    arguments.add_cache(parser, "from nothing; ")
    arguments.add_run(parser, required=False)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and what time and memory the training takes here",
    )
    arguments.add_device(parser)
