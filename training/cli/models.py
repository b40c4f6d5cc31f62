# SPDX-License-Identifier: Apache-2.0
"""``srcsm models``: list, verify and describe networks and SAMs."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import (
    find_bundles,
    find_model,
    shipped_folder,
    shipped_models_folder,
)

from . import arguments as options
from .console import print_json


def add(commands: options.Commands) -> None:
    """Add the command, its actions and their options."""
    summary = "list, verify and describe trained networks and SAMs"
    actions = options.add_actions(commands, "models", summary)

    parser = options.add_command(
        actions,
        "models list",
        "list the shipped networks and SAMs, and those in other folders",
        examples="  srcsm models list\n  srcsm models list runs/* --json",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="other folders: of models, or of folders of models",
    )
    options.add_json(parser)

    parser = options.add_command(
        actions,
        "models verify",
        "check every file of networks and SAMs against its SHA-256",
        "Exits with 4 if a file is missing or altered, or does not belong there.",
        "  srcsm models verify\n  srcsm models verify abdomen-ct runs/ct/model",
    )
    parser.add_argument(
        "models", nargs="*", metavar="NAME_OR_FOLDER", help="default: all that are shipped"
    )
    options.add_json(parser)

    parser = options.add_command(
        actions,
        "models describe",
        "print the model card",
        examples="  srcsm models describe abdomen-ct\n  srcsm models describe runs/ct/model --json",
    )
    parser.add_argument(
        "model", metavar="NAME_OR_FOLDER", help="a shipped network or SAM, or the folder of one"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen action."""
    return {"list": show_list, "verify": verify, "describe": describe}[arguments.action](arguments)


def show_list(arguments: argparse.Namespace) -> int:
    """List the shipped networks and SAMs and those in other folders."""
    folders = (shipped_models_folder(), *arguments.folders)
    rows = [_row(folder, _network) for folder in find_bundles(*folders)]
    rows += [_row(folder, _sam) for folder in find_sams(folders)]
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        if "error" in row:
            print(row["error"])
            continue
        if "kind" in row:
            print(f"{row['name']}, a SAM ({row['kind']})")
        else:
            print(f"{row['name']}, trained on {row['trained_on']}: {', '.join(row['labels'])}")
        print(f"  {row['folder']}")
    if not rows:
        print(f"No models in {shipped_models_folder()}.")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check every file of the named models, by default of the shipped ones; return 4 on faults."""
    from SRCSMSegmenterLib.models.bundle import verify_bundle

    if arguments.models:
        folders = [find(model) for model in arguments.models]
    else:
        shipped = shipped_models_folder()
        folders = [*find_bundles(shipped), *find_sams([shipped])]
    faults = {
        str(folder): sams().verify_sam(folder) if is_sam(folder) else verify_bundle(folder)
        for folder in folders
    }
    if arguments.json:
        print_json(faults)
    else:
        for folder, wrong in faults.items():
            print(f"{folder}: {'; '.join(wrong) or 'whole'}")
        if not faults:
            print(f"No models in {shipped_models_folder()}.")
    return 4 if any(faults.values()) else 0


def describe(arguments: argparse.Namespace) -> int:
    """Print a model's card, or all that is known about it as JSON."""
    folder = find(arguments.model)
    known: dict[str, Any] = {"folder": str(folder)}
    if is_sam(folder):
        sam = sams().load_sam(folder, device="cpu")
        card = folder / sams().CARD
        known |= sam.identify() | {
            "sizes": sam.config and asdict(sam.config),
            "pixels": asdict(sam.pixels),
            "training": sam.training,
        }
    else:
        from SRCSMSegmenterLib.models.bundle import CARD, load_bundle

        bundle = load_bundle(folder)
        card = folder / CARD
        known |= {"identity": bundle.identity, **asdict(bundle.description)}
        known["network"] = asdict(bundle.network)
    if arguments.json:
        print_json(known)
    else:
        print(card.read_text(encoding="utf-8"))
        print(f"Folder: {folder}\nIdentity: {known['identity']}")
    return 0


def find(model: str) -> Path:
    """Return the folder of a network or a SAM, from its shipped name or its path.

    Raises:
        BundleError: neither.
    """
    for folder in (Path(model), shipped_folder(model)):
        if folder is not None and is_sam(folder):
            return folder
    return find_model(model)


def find_sams(folders: Sequence[Path]) -> list[Path]:
    """Return the SAMs among `folders` and in them."""
    from SAMRefineLib.sam import catalogue

    return catalogue.find_sams(*folders) if sams() else []


def is_sam(folder: Path) -> bool:
    """Return True for the folder of a SAM that can be used here."""
    from SAMRefineLib.sam import catalogue

    return sams() is not None and catalogue.is_sam(folder)


def sams() -> ModuleType | None:
    """Import the module that reads SAMs; return None if the packages for refining are missing."""
    try:
        from SAMRefineLib.sam import models
    except ModuleNotFoundError:
        return None
    return models


def _row(folder: Path, known: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"folder": str(folder), **known(folder)}
    except BundleError as error:
        return {"folder": str(folder), "error": str(error)}


def _network(folder: Path) -> dict[str, Any]:
    from SRCSMSegmenterLib.models.bundle import load_bundle

    bundle = load_bundle(folder)
    return {
        **bundle.identify(),
        "trained_on": bundle.description.rule.modality,
        "labels": [label.name for label in bundle.description.labels],
    }


def _sam(folder: Path) -> dict[str, Any]:
    return sams().load_sam(folder, device="cpu").identify()
