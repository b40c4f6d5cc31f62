# SPDX-License-Identifier: Apache-2.0
"""What several commands share: how a command explains itself, and options under one name."""

import argparse
from pathlib import Path

DEFAULT_MODEL = "abdomen-ct"
SCAN_HELP = ".nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, or a folder with a DICOM series"
SAM_HELP = "a shipped SAM, a folder, or SAM's or MedSAM's own file"

Commands = argparse._SubParsersAction


def add_command(
    commands: Commands, name: str, summary: str, details: str = "", examples: str = ""
) -> argparse.ArgumentParser:
    """A command, with details and examples in its help.

    Args:
        name: of the module that runs it, and of the action there if it has several.
    """
    parser = commands.add_parser(
        name.split()[-1],
        help=summary,
        description="\n\n".join(filter(None, [f"{summary}.", details])),
        epilog=f"examples:\n{examples}\n\nExit codes: see srcsm --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(**dict(zip(("command", "action"), name.split(), strict=False)))
    return parser


def add_actions(commands: Commands, name: str, summary: str, kind: str = "command") -> Commands:
    """A command of several actions, which are added to what is returned."""
    parser = commands.add_parser(name, help=summary, description=f"{summary}.")
    return parser.add_subparsers(title=f"{kind}s", metavar=kind.upper(), required=True)


def positive(text: str) -> int:
    """A whole number from 1 on; argparse tells the user what is wrong with any other."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_scan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scan", type=Path, metavar="SCAN", help=SCAN_HELP)


def add_modality(parser: argparse.ArgumentParser, default: str = "guessed") -> None:
    parser.add_argument(
        "--modality", choices=("CT", "MR"), help=f"of the scan (default: {default})"
    )


def add_series(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", metavar="UID", help="of a DICOM folder that holds several")


def add_coarse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coarse", type=Path, metavar="FILE", help="label map to begin with, on the scan's grid"
    )
    parser.add_argument(
        "--coarse-confidence",
        type=Path,
        metavar="FILE",
        help="its probabilities, from srcsm segment --confidence (default: all are 1)",
    )


def add_pictures(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help=f"also draw pictures {what}, one per organ"
    )


def add_model(parser: argparse._ActionsContainer, default: str | None) -> None:
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME_OR_FOLDER",
        help=f"a shipped network or a model folder{shown}",
    )


def add_sam(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--sam", metavar="NAME_OR_PATH", help=what)
    parser.add_argument(
        "--sam-kind",
        choices=("vit_b", "vit_l", "vit_h", "medsam"),
        help="of a checkpoint file (default: known by the file's SHA-256; MedSAM's is not)",
    )


def add_dataset(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--data", type=Path, required=required, metavar="FOLDER", help="the dataset"
    )


def add_configuration(parser: argparse.ArgumentParser, file: str, values: str) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help=file)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=values
    )


def add_run(
    parser: argparse.ArgumentParser,
    *,
    config: str = "of the configuration",
    result: str = "of the result",
    required: bool = True,
) -> None:
    """What every training has: configuration, run folder and time."""
    add_configuration(parser, config, "single values, such as optimisation.steps=2000")
    parser.add_argument(
        "--out", type=Path, required=required, metavar="RUN", help="folder of the run"
    )
    parser.add_argument("--name", help=f"{result} (default: the folder's)")
    add_max_minutes(parser)


def add_max_minutes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop cleanly after that time (exit code 0)",
    )


def add_cache(parser: argparse.ArgumentParser, note: str = "") -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help=f"of the preprocessed cases ({note}default: $SRCSM_CACHE or ~/.cache/srcsm)",
    )


def add_keep_largest(
    parser: argparse.ArgumentParser, *, default: bool, help: str, alias: str
) -> None:
    """Add --keep-largest and --no-keep-largest, and the older name of one of them, unlisted."""
    parser.add_argument(
        "--keep-largest", action=argparse.BooleanOptionalAction, default=default, help=help
    )
    parser.add_argument(
        alias,
        dest="keep_largest",
        action="store_const",
        const=not default,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
