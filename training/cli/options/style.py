# SPDX-License-Identifier: Apache-2.0
"""Options of ``srcsm style``."""

import argparse
from pathlib import Path

from .. import arguments

SLICES = {"type": Path, "metavar": "SLICES", "help": "folder of slices"}


def add(commands: arguments.Commands) -> None:
    summary = "restyle training slices by diffusion, steered by their masks"
    actions = arguments.add_actions(commands, "style", summary, "stage")

    parser = add_stage(
        actions,
        "prepare",
        "slice an nnU-Net raw dataset, with masks",
        "  srcsm style prepare --data Dataset101_AbdomenCT --out slices/ct\n"
        "  srcsm style prepare --data Dataset201_HeartBSSFP --out slices/heart \\\n"
        "      --set prompts=heart prepare.style=bssfp",
    )
    arguments.add_dataset(parser)

    add_stage(
        actions,
        "phantom",
        "make phantom slices in several looks, to train a small base on",
        "  srcsm style phantom --config training/configs/style_tiny.yaml --out slices/phantom",
    )

    parser = add_stage(
        actions,
        "base",
        "train a small base model of your own",
        "  srcsm style base --config training/configs/style_tiny.yaml \\\n"
        "      --slices slices/phantom slices/ct --out bases/tiny",
    )
    arguments.add_device(parser)
    parser.add_argument("--slices", nargs="+", required=True, **SLICES)

    parser = add_stage(
        actions,
        "tune",
        "teach the base's U-Net the style of the source's slices",
        "  srcsm style tune --slices slices/ct --base stable-diffusion-folder --out runs/tuned\n"
        "  srcsm style tune --slices slices/ct --download --out runs/tuned \\\n"
        "      --set tune.lora=16 tune.learning_rate=1e-4\n"
        "  accelerate launch --num_processes 4 -m srcsm_training style tune --slices slices/ct ...",
    )
    add_base(parser)

    parser = add_stage(
        actions,
        "control",
        "teach a ControlNet on the tuned U-Net what the masks mean",
        "  srcsm style control --slices slices/ct --tuned runs/tuned --out runs/control",
    )
    add_base(parser)
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="of style tune (default: none, the base's own U-Net; for the ablation)",
    )

    parser = add_stage(
        actions,
        "swap",
        "draw the slices in other styles, with the original U-Net",
        "  srcsm style swap --slices slices/ct --control runs/control\n"
        "  srcsm style swap --slices slices/ct --control runs/control --out restyled \\\n"
        "      --set swap.styles=[t1,t2] swap.per_slice=0",
        out_default="SLICES/styled/PROMPTS",
    )
    add_base(parser)
    parser.add_argument(
        "--control", type=Path, required=True, metavar="RUN", help="of style control"
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="draw with the tuned U-Net instead; for the ablation",
    )

    parser = add_stage(
        actions,
        "check",
        "measure whether styles moved and anatomy stayed, and set bad slices aside",
        "  srcsm style check --slices slices/ct/styled/abdomen\n"
        "  srcsm style check --slices slices/ct/styled/abdomen --model runs/ct/model \\\n"
        "      --set check.moved=0.1 check.edges=0.6 check.dice=0.3",
        out_default="SLICES",
    )
    arguments.add_device(parser)
    parser.add_argument(
        "--slices", type=Path, required=True, metavar="SLICES", help="folder of restyled slices"
    )
    arguments.add_model(parser, None)


def add_stage(
    actions: arguments.Commands, name: str, summary: str, examples: str, out_default: str = ""
) -> argparse.ArgumentParser:
    """A stage of `srcsm style`: configuration, output and time are the same for all."""
    parser = arguments.add_command(
        actions,
        f"style {name}",
        summary,
        "One configuration serves all stages; each reads its own section. Ctrl-C stops with all\n"
        "that was made kept; the same command goes on after any stop.",
        examples,
    )
    arguments.add_configuration(
        parser, "the configuration", "single values of it, such as size=256 tune.steps=2000"
    )
    shown = f" (default: {out_default})" if out_default else ""
    parser.add_argument(
        "--out",
        type=Path,
        required=not out_default,
        metavar="FOLDER",
        help=f"for what the stage makes{shown}",
    )
    arguments.add_max_minutes(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and, of base, tune, control and swap, the time and memory",
    )
    return parser


def add_base(parser: argparse.ArgumentParser) -> None:
    """Device, base and slices, of the stages that work on a base with diffusion."""
    arguments.add_device(parser)
    parser.add_argument(
        "--base",
        default="Nihirc/Prompt2MedImage",
        metavar="NAME_OR_FOLDER",
        help="a base of Stable Diffusion 1.x's architecture in diffusers format, a folder or a "
        "name on the Hugging Face hub (default: Nihirc/Prompt2MedImage)",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch it from the hub where it is not here"
    )
    parser.add_argument("--slices", required=True, **SLICES)
