# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the commands' options: help texts, and options that several commands share."""

import argparse
from pathlib import Path

from SRCSMSegmenterLib.errors import ConfigError

DEFAULT_MODEL = "abdomen-ct"
SCAN_HELP = ".nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .hdr, or a folder with a DICOM series"
PACKED = ", or the file that srcsm pack-data made of it"
SAM_HELP = "a shipped SAM, a folder, or the checkpoint file of SAM or MedSAM"

Commands = argparse._SubParsersAction


def add_command(
    commands: Commands, name: str, summary: str, details: str = "", examples: str = ""
) -> argparse.ArgumentParser:
    """Add a command whose help has details and examples.

    Args:
        name: name of the module that runs the command, followed by the action if it has several.
    """
    parser = commands.add_parser(
        name.split()[-1],
        help=summary,
        description="\n\n".join(filter(None, [_sentence(summary), details])),
        epilog=f"examples:\n{examples}\n\nExit codes: see srcsm --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(**dict(zip(("command", "action"), name.split(), strict=False)))
    return parser


def add_actions(commands: Commands, name: str, summary: str, kind: str = "command") -> Commands:
    """Add a command with several actions; the actions are then added to the returned object."""
    parser = commands.add_parser(name, help=summary, description=_sentence(summary))
    return parser.add_subparsers(title=f"{kind}s", metavar=kind.upper(), required=True)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def positive(text: str) -> int:
    """Convert to a whole number of at least 1; argparse reports anything else to the user."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def positive_number(text: str) -> float:
    """Convert to a number above 0; argparse reports anything else to the user."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number


def add_scan(parser: argparse.ArgumentParser) -> None:
    """Add the scan to read."""
    parser.add_argument("scan", type=Path, metavar="SCAN", help=SCAN_HELP)


def add_modality(
    parser: argparse.ArgumentParser, default: str = "guessed", of: str = "the scan"
) -> None:
    """Add --modality."""
    parser.add_argument(
        "--modality", choices=("CT", "MR"), help=f"modality of {of} (default: {default})"
    )


def add_series(parser: argparse.ArgumentParser) -> None:
    """Add --series."""
    parser.add_argument(
        "--series",
        metavar="NAME",
        help="series to read if a DICOM folder holds several: its UID or its description (without "
        "--series they are listed)",
    )


def add_coarse(parser: argparse.ArgumentParser) -> None:
    """Add --coarse and --coarse-confidence."""
    parser.add_argument(
        "--coarse",
        type=Path,
        metavar="FILE",
        help="label map to start from, on the scan's grid; or a DICOM segmentation of the scan",
    )
    parser.add_argument(
        "--coarse-confidence",
        type=Path,
        metavar="FILE",
        help="its probabilities, from srcsm segment --confidence (default: all are 1)",
    )


def require_coarse(arguments: argparse.Namespace) -> None:
    """Check that --coarse-confidence comes with --coarse, which tells the organs apart.

    Raises:
        ConfigError: --coarse is missing.
    """
    if arguments.coarse_confidence and not arguments.coarse:
        raise ConfigError("--coarse-confidence needs the label map it belongs to: --coarse.")


def add_pictures(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --pictures."""
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help=f"also draw pictures {what}, one per organ"
    )


def add_model(parser: argparse._ActionsContainer, default: str | None, purpose: str = "") -> None:
    """Add --model; `purpose` tells what an optional one is for."""
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME_OR_FOLDER",
        help=f"a shipped network or a model folder{purpose}{shown}",
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


def add_sam(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --sam and --sam-kind."""
    parser.add_argument("--sam", metavar="NAME_OR_PATH", help=what)
    parser.add_argument(
        "--sam-kind",
        choices=("vit_b", "vit_l", "vit_h", "medsam"),
        help="kind of a checkpoint file (default: recognised by its SHA-256; MedSAM's is not)",
    )


def add_dataset(parser: argparse.ArgumentParser, *, required: bool = True, also: str = "") -> None:
    """Add --data for one dataset; `also` names what else it takes."""
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        metavar="FOLDER",
        help=f"the nnU-Net raw dataset{also}",
    )


def add_configuration(parser: argparse.ArgumentParser, file: str, values: str) -> None:
    """Add --config and --set."""
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help=file)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=values
    )


def add_help_config(parser: argparse.ArgumentParser, action: type[argparse.Action] | str) -> None:
    """Add --help-config."""
    parser.add_argument(
        "--help-config",
        nargs="?",
        const="",
        metavar="KEY",
        action=action,
        help="explain the keys of the configuration, or one of them or of its sections, and exit",
    )


def add_run(
    parser: argparse.ArgumentParser,
    *,
    config: str = "the configuration",
    result: str = "the result",
    required: bool = True,
) -> None:
    """Add the options of a training: configuration, run folder, name and time limit."""
    add_configuration(parser, config, "single values, such as optimisation.steps=2000")
    parser.add_argument(
        "--out", type=Path, required=required, metavar="RUN", help="folder of the run"
    )
    parser.add_argument("--name", help=f"name of {result} (default: that of the run's folder)")
    add_max_minutes(parser)


def add_signature(parser: argparse.ArgumentParser) -> None:
    """Add --author, --licence, --version and --description of the exported network."""
    parser.add_argument("--author", metavar="NAMES", help="who signs the exported network")
    parser.add_argument("--licence", metavar="TERMS", help="its terms of use")
    parser.add_argument(
        "--version", dest="model_version", metavar="X.Y.Z", help="its version (default: 0.1.0)"
    )
    parser.add_argument("--description", metavar="LINE", help="what it is for, in one line")


def add_max_minutes(parser: argparse.ArgumentParser) -> None:
    """Add --max-minutes."""
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=float("inf"),
        metavar="M",
        help="stop cleanly after that time (exit code 0)",
    )


def add_cache(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Add --cache."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help=f"folder of the preprocessed cases ({note}default: $SRCSM_CACHE or ~/.cache/srcsm)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
