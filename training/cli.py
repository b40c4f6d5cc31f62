# SPDX-License-Identifier: Apache-2.0
"""The command line, ``srcsm``: options, help and exit codes.

Each command is a module in `commands`, imported only when it is run, so that help is instant.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from SRCSMSegmenterLib.errors import (
    BundleError,
    Cancelled,
    ConfigError,
    DatasetError,
    DeviceError,
    PromptError,
    SourceMatchingError,
    SRCSMError,
    VolumeError,
)

from .commands import ENDINGS, INTERRUPTED

EXIT_CODES = (
    (ConfigError, 2),
    ((VolumeError, SourceMatchingError, DatasetError, PromptError), 3),
    (BundleError, 4),
    (DeviceError, 5),
    (Cancelled, INTERRUPTED),
    ((SRCSMError, OSError), 6),
)
"""For each kind of error, the first that fits; any other is unexpected and exits with 1."""

HELP = """\
Train a segmentation network on one modality, use it on another.

exit codes:
  0    done (a training that --max-minutes stopped as well)
  1    unexpected error; run again with --debug and report it
  2    wrong usage or configuration
  3    a scan, a dataset or boxes cannot be used
  4    a model is unknown, incomplete or altered
  5    the device is unknown, absent or out of memory
  6    results cannot be written, or a training or evaluation cannot go on
  130  interrupted or cancelled

examples:
  srcsm demo
  srcsm segment mr.nii.gz -o organs.seg.nrrd
  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine
  srcsm train --data Dataset101_AbdomenCT --preset abdomen-fast --out runs/ct
  srcsm evaluate --model runs/ct/model --data Dataset102_AbdomenMR --out runs/ct/on-mr

Research use only, not for diagnosis.
"""

DEFAULT_MODEL = "abdomen-ct"
SCAN_HELP = ".nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, or a folder with a DICOM series"

Commands = argparse._SubParsersAction


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (`HELP` lists them)."""
    arguments = make_parser().parse_args(argv)
    try:
        module = f".commands.{arguments.command.replace('-', '_')}"
        return import_module(module, __package__).run(arguments)
    except KeyboardInterrupt:
        print("srcsm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"srcsm: error: {sentence(error)}", file=sys.stderr)
        return next((code for kinds, code in EXIT_CODES if isinstance(error, kinds)), 1)


def sentence(error: Exception) -> str:
    """What an error tells the user."""
    if isinstance(error, SRCSMError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"Cannot use {error.filename} ({error.strerror}); is it there, writable, not full?"
    if isinstance(error, ModuleNotFoundError):
        extra = "style" if error.name in ("diffusers", "transformers", "peft") else "training"
        return f"This needs the package {error.name}: pip install 'srcsm[{extra}]'."
    return f"Unexpected {type(error).__name__}: {error}. Run again with --debug and report it."


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="srcsm", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"srcsm {version('srcsm')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_segment(commands)
    add_boxes(commands)
    add_refine(commands)
    add_train(commands)
    add_train_sam(commands)
    add_evaluate(commands)
    add_match(commands)
    add_models(commands)
    add_phantom(commands)
    add_demo(commands)
    add_style(commands)
    add_worker(commands)
    return parser


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    details: str = "",
    examples: str = "",
) -> argparse.ArgumentParser:
    """A command, run by the module of its name, with details and examples in its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description="\n\n".join(filter(None, [f"{summary}.", details])),
        epilog=f"examples:\n{examples}\n\nExit codes: see srcsm --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(command=name)
    return parser


def add_segment(commands: Commands) -> None:
    parser = add_command(
        commands,
        "segment",
        "label the organs of scans with a trained network",
        "The labels lie on the scan's own grid. Slices are numbered from 0 along the last voxel\n"
        "axis (K). Research use only, not for diagnosis.",
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd\n"
        "  srcsm segment dicom_folder -o organs.nii.gz --confidence sure.nii.gz --json\n"
        "  srcsm segment *.nii.gz -o labels --format .seg.nrrd --model runs/ct/model\n"
        "  srcsm segment ct.nii.gz -o organs.nii.gz --source-matching off --device cuda:1\n"
        "  srcsm segment mr.nii.gz -o organs.seg.nrrd --refine",
    )
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help=SCAN_HELP)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=f"a file ending in {', '.join(ENDINGS)} (.seg.nrrd opens in Slicer with names and "
        "colours), or a folder, which several scans need",
    )
    parser.add_argument(
        "--format",
        choices=ENDINGS,
        default=".nii.gz",
        help="of the files in an output folder (default: .nii.gz)",
    )
    add_model_option(parser, DEFAULT_MODEL)
    parser.add_argument(
        "--source-matching",
        choices=("auto", "on", "off"),
        default="auto",
        help="give the scan the intensities the network was trained on; auto (default): where "
        "its modality is another than the network's",
    )
    add_modality_option(parser)
    parser.add_argument(
        "--all-pieces",
        action="store_true",
        help="keep what lies apart from the largest piece of an organ (default: leave it out)",
    )
    parser.add_argument(
        "--confidence",
        type=Path,
        metavar="PATH",
        help="also write the probability of the chosen label; a file, or a folder for several",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="draw boxes around what the network finds and let SAM refine it",
    )
    add_sam_options(parser, "sam-small-ct or sam-small-mr, as the network was trained on CT or MR")
    add_series_option(parser)
    add_device_option(parser)
    add_json_option(parser)


def add_boxes(commands: Commands) -> None:
    parser = add_command(
        commands,
        "boxes",
        "draw boxes around the organs that a network is sure of, slice by slice",
        "For srcsm refine, as they are or corrected by hand. x0 y0 x1 y1 are edges in\n"
        "voxels, voxel n reaching from n to n + 1. Without --coarse the scan is segmented first.",
        "  srcsm boxes mr.nii.gz -o boxes.json --pictures pictures\n"
        "  srcsm boxes mr.nii.gz -o boxes.json --coarse organs.nii.gz \\\n"
        "      --coarse-confidence sure.nii.gz --threshold 0.9",
    )
    parser.add_argument("scan", type=Path, metavar="SCAN", help=SCAN_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    add_coarse_options(parser)
    add_model_option(parser, DEFAULT_MODEL)
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.75,
        metavar="P",
        help="probability from which the network counts as sure (default: 0.75)",
    )
    parser.add_argument(
        "--shrink",
        type=positive,
        default=1,
        metavar="N",
        help="average N x N pixels first, as the paper does with 4 (default: 1)",
    )
    parser.add_argument(
        "--unfiltered", action="store_true", help="box stray pieces too (default: the largest)"
    )
    parser.add_argument(
        "--axis",
        choices=("auto", "I", "J", "K"),
        default="auto",
        help="across which slices lie (default: auto, the coarsest)",
    )
    add_pictures_option(parser, "of the boxes")
    add_modality_option(parser)
    add_series_option(parser)
    add_device_option(parser)
    add_json_option(parser)


def add_refine(commands: Commands) -> None:
    parser = add_command(
        commands,
        "refine",
        "let SAM redraw organs within boxes",
        "Where SAM's mask is not to be trusted, the coarse one stays; both are said. Without\n"
        "--coarse, SAM's stays. Research use only, not for diagnosis.",
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.seg.nrrd\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json --coarse coarse.nii.gz \\\n"
        "      --coarse-confidence sure.nii.gz -o organs.seg.nrrd --pictures pictures\n"
        "  srcsm refine mr.nii.gz --boxes boxes.json -o organs.nii.gz \\\n"
        "      --sam sam_vit_b_01ec64.pth --mosaic slices",
    )
    parser.add_argument("scan", type=Path, metavar="SCAN", help=SCAN_HELP)
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="FILE.json", help="from srcsm boxes or Slicer"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=f"a file ending in {', '.join(ENDINGS)}"
    )
    add_coarse_options(parser)
    add_sam_options(parser, "sam-small-ct")
    parser.add_argument(
        "--mosaic",
        choices=("crops", "slices", "off"),
        default="crops",
        help="what goes through SAM's encoder at once: squares around the organ (default), whole "
        "slices side by side, or one slice",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="of SAM's probabilities (default: 0.5)",
    )
    parser.add_argument(
        "--mask-prompt", action="store_true", help="also give SAM the coarse mask as a first guess"
    )
    parser.add_argument(
        "--confidence", type=Path, metavar="FILE", help="also write the labels' probability"
    )
    add_pictures_option(parser, "of the boxes and of both masks")
    add_modality_option(parser)
    add_series_option(parser)
    add_device_option(parser)
    add_json_option(parser)


def add_train(commands: Commands) -> None:
    parser = add_command(
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
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("--preset", metavar="NAME", help="where the configuration starts from")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="values put into it")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="single values, such as optimisation.steps=2000",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--name", help="of the trained network (default: the folder's)")
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop cleanly after that time (exit code 0)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="of the preprocessed cases (default: $SRCSM_CACHE or ~/.cache/srcsm)",
    )
    parser.add_argument("--list-presets", action="store_true", help="list the presets and exit")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the dataset, print the configuration, exit"
    )
    add_device_option(parser)


def add_train_sam(commands: Commands) -> None:
    parser = add_command(
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
        "      --set embed_once=false random_convolution=smoothed --out runs/sam-ct-looks",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument(
        "--sam",
        metavar="NAME_OR_PATH",
        help="fine-tune this one: a shipped SAM, a SAM folder or a checkpoint file",
    )
    parser.add_argument(
        "--sam-kind",
        choices=("vit_b", "vit_l", "vit_h", "medsam"),
        help="of a checkpoint file (default: known by the file's SHA-256; MedSAM's is not)",
    )
    parser.add_argument(
        "--coarse", metavar="NAME_OR_FOLDER", help="the network whose boxes are given, for --sam"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="of the preprocessed cases (from nothing; default: $SRCSM_CACHE or ~/.cache/srcsm)",
    )
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What every training has."""
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="of the configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="single values, such as optimisation.steps=2000",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--name", help="of the result (default: the folder's)")
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop cleanly after that time (exit code 0)",
    )
    add_device_option(parser)


def add_evaluate(commands: Commands) -> None:
    parser = add_command(
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
    add_model_option(parser, None)
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
    add_modality_option(parser, "what the datasets say")
    parser.add_argument(
        "--largest-component",
        action="store_true",
        help="score the largest piece of every label alone, which is what srcsm segment writes",
    )
    add_device_option(parser)
    add_json_option(parser)


def add_match(commands: Commands) -> None:
    parser = add_command(
        commands,
        "match",
        "source matching alone: give a scan the intensities of training images",
        "The result is what a network sees with source matching on, before it is resampled.",
        "  srcsm match mr.nii.gz --model abdomen-ct -o matched.nii.gz\n"
        "  srcsm match mr.nii.gz --source-images Dataset101_AbdomenCT/imagesTr -o matched.nii.gz",
    )
    parser.add_argument("scan", type=Path, metavar="SCAN", help=SCAN_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file or a folder")
    source = parser.add_mutually_exclusive_group()
    add_model_option(source, DEFAULT_MODEL)
    source.add_argument(
        "--source-images", type=Path, metavar="FOLDER", help="match to these images instead"
    )
    parser.add_argument(
        "--source-modality",
        choices=("CT", "MR"),
        help="of --source-images (default: guessed from the first)",
    )
    add_modality_option(parser)
    add_series_option(parser)
    add_json_option(parser)


def add_models(commands: Commands) -> None:
    summary = "list, verify and describe trained networks and SAMs"
    parser = commands.add_parser("models", help=summary, description=f"{summary}.")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = add_command(
        actions,
        "list",
        "list the shipped networks and those in other folders",
        examples="  srcsm models list\n  srcsm models list runs/* --json",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.set_defaults(command="models", action="list")
    add_json_option(parser)
    parser = add_command(
        actions,
        "verify",
        "check every file of networks against their SHA-256",
        "Exits with 4 where a file is missing, altered or does not belong there.",
        "  srcsm models verify\n  srcsm models verify abdomen-ct runs/ct/model",
    )
    parser.add_argument("models", nargs="*", metavar="NAME_OR_FOLDER", help="default: the shipped")
    parser.set_defaults(command="models", action="verify")
    add_json_option(parser)
    parser = add_command(
        actions,
        "describe",
        "print the model card",
        examples="  srcsm models describe abdomen-ct\n  srcsm models describe runs/ct/model --json",
    )
    parser.add_argument("model", metavar="NAME_OR_FOLDER")
    parser.set_defaults(command="models", action="describe")
    add_json_option(parser)


def add_phantom(commands: Commands) -> None:
    parser = add_command(
        commands,
        "phantom",
        "write an nnU-Net raw dataset of a digital phantom of the abdomen",
        "The same seed gives the same anatomy in both modalities.",
        "  srcsm phantom phantoms/Dataset901_PhantomCT --modality CT --cases 8\n"
        "  srcsm phantom phantoms/Dataset902_PhantomMR --modality MR --cases 4 --seed 100",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made where it does not exist")
    parser.add_argument("--modality", choices=("CT", "MR"), required=True)
    parser.add_argument("--cases", type=positive, default=8, metavar="N", help="default: 8")
    parser.add_argument("--seed", type=int, default=0, help="of the first case (default: 0)")


def add_demo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        "train on a phantom's CT, segment its MR, and show what SRC and SM bring",
        "Under ten minutes on two CPU cores. One that was stopped goes on where it was.",
        "  srcsm demo\n  srcsm demo -o somewhere/else",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="for all that is made (default: demo-output)",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="of each training")


def add_worker(commands: Commands) -> None:
    parser = add_command(
        commands,
        "worker",
        "serve a worker of this machine, such as one with a GPU, to other machines",
        "A client proves to know the token; without it none is let in. What is sent is not\n"
        "encrypted: listen on 127.0.0.1 and let SSH bring the clients there, with\n"
        "ssh -L 7654:127.0.0.1:7654 this-machine on theirs. Ctrl-C ends it.",
        "  srcsm worker --listen 127.0.0.1:7654\n"
        "  srcsm worker --listen 7654 --token-file ~/.srcsm-token",
    )
    parser.add_argument(
        "--listen",
        required=True,
        metavar="[HOST:]PORT",
        help="where to; the host is 127.0.0.1 unless it is named; port 0: a free one",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="with the token (default: $SRCSM_WORKER_TOKEN, else one is made and shown)",
    )


def add_style(commands: Commands) -> None:
    summary = "restyle training slices by diffusion, steered by their masks"
    parser = commands.add_parser("style", help=summary, description=f"{summary}.")
    actions = parser.add_subparsers(title="stages", metavar="STAGE", required=True)
    slices = {"type": Path, "metavar": "SLICES", "help": "folder of slices"}

    parser = add_style_stage(
        actions,
        "prepare",
        "slice an nnU-Net raw dataset, with masks",
        "  srcsm style prepare --data Dataset101_AbdomenCT --out slices/ct\n"
        "  srcsm style prepare --data Dataset201_HeartBSSFP --out slices/heart \\\n"
        "      --set prompts=heart prepare.style=bssfp",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the dataset")

    add_style_stage(
        actions,
        "phantom",
        "make phantom slices in several looks, to train a small base on",
        "  srcsm style phantom --config training/configs/style_tiny.yaml --out slices/phantom",
    )

    parser = add_style_stage(
        actions,
        "base",
        "train a small base model of your own",
        "  srcsm style base --config training/configs/style_tiny.yaml \\\n"
        "      --slices slices/phantom slices/ct --out bases/tiny",
        device=True,
    )
    parser.add_argument("--slices", nargs="+", required=True, **slices)

    parser = add_style_stage(
        actions,
        "tune",
        "teach the base's U-Net the style of the source's slices",
        "  srcsm style tune --slices slices/ct --base stable-diffusion-folder --out runs/tuned\n"
        "  srcsm style tune --slices slices/ct --download --out runs/tuned \\\n"
        "      --set tune.lora=16 tune.learning_rate=1e-4\n"
        "  accelerate launch --num_processes 4 -m srcsm_training style tune --slices slices/ct ...",
        device=True,
        base=True,
    )
    parser.add_argument("--slices", required=True, **slices)

    parser = add_style_stage(
        actions,
        "control",
        "teach a ControlNet on the tuned U-Net what the masks mean",
        "  srcsm style control --slices slices/ct --tuned runs/tuned --out runs/control",
        device=True,
        base=True,
    )
    parser.add_argument("--slices", required=True, **slices)
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="of style tune (default: none, the base's own U-Net; for the ablation)",
    )

    parser = add_style_stage(
        actions,
        "swap",
        "draw the slices in other styles, with the original U-Net",
        "  srcsm style swap --slices slices/ct --control runs/control\n"
        "  srcsm style swap --slices slices/ct --control runs/control --out restyled \\\n"
        "      --set swap.styles=[t1,t2] swap.per_slice=0",
        device=True,
        base=True,
        out_default="SLICES/styled/PROMPTS",
    )
    parser.add_argument("--slices", required=True, **slices)
    parser.add_argument(
        "--control", type=Path, required=True, metavar="RUN", help="of style control"
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="draw with the tuned U-Net instead; for the ablation",
    )

    parser = add_style_stage(
        actions,
        "check",
        "measure whether styles moved and anatomy stayed, and set bad slices aside",
        "  srcsm style check --slices slices/ct/styled/abdomen\n"
        "  srcsm style check --slices slices/ct/styled/abdomen --model runs/ct/model \\\n"
        "      --set check.moved=0.1 check.edges=0.6 check.dice=0.3",
        device=True,
        out_default="SLICES",
    )
    parser.add_argument(
        "--slices", type=Path, required=True, metavar="SLICES", help="folder of restyled slices"
    )
    add_model_option(parser, None)


def add_style_stage(
    actions: Commands,
    name: str,
    summary: str,
    examples: str,
    *,
    device: bool = False,
    base: bool = False,
    out_default: str = "",
) -> argparse.ArgumentParser:
    """A stage of `srcsm style`: configuration, output and time are the same for all."""
    parser = add_command(
        actions,
        name,
        summary,
        "One configuration serves all stages; each reads its own section. Ctrl-C stops with all\n"
        "that was made kept; the same command goes on after any stop.",
        examples,
    )
    parser.set_defaults(command="style", action=name)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="the configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="single values of it, such as size=256 tune.steps=2000",
    )
    shown = f" (default: {out_default})" if out_default else ""
    parser.add_argument(
        "--out",
        type=Path,
        required=not out_default,
        metavar="FOLDER",
        help=f"for what the stage makes{shown}",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop cleanly after that time (exit code 0)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and exit")
    if device:
        add_device_option(parser)
    if base:
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
    return parser


def positive(text: str) -> int:
    """A whole number from 1 on; argparse tells the user what is wrong with any other."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_model_option(parser: argparse._ActionsContainer, default: str | None) -> None:
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME_OR_FOLDER",
        help=f"a shipped network or a model folder{shown}",
    )


def add_coarse_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coarse", type=Path, metavar="FILE", help="label map to begin with, on the scan's grid"
    )
    parser.add_argument(
        "--coarse-confidence",
        type=Path,
        metavar="FILE",
        help="its probabilities, from srcsm segment --confidence (default: all are 1)",
    )


def add_sam_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--sam",
        metavar="NAME_OR_PATH",
        help=f"a shipped SAM, a folder, or SAM's or MedSAM's own file (default: {default})",
    )
    parser.add_argument(
        "--sam-kind",
        choices=("vit_b", "vit_l", "vit_h", "medsam"),
        help="of a checkpoint file (default: known by the file's SHA-256; MedSAM's is not)",
    )


def add_pictures_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help=f"also draw pictures {what}, one per organ"
    )


def add_modality_option(parser: argparse.ArgumentParser, default: str = "guessed") -> None:
    parser.add_argument(
        "--modality", choices=("CT", "MR"), help=f"of the scan (default: {default})"
    )


def add_series_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", metavar="UID", help="of a DICOM folder that holds several")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
