# SPDX-License-Identifier: Apache-2.0
"""``srcsm models``: list, verify, describe."""

import argparse
from dataclasses import asdict

from SRCSMSegmenterLib.bundle import (
    CARD,
    find_bundles,
    load_bundle,
    shipped_models_folder,
    verify_bundle,
)
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.model_list import find_model

from .common import model_identity, print_json


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    return {"list": show_list, "verify": verify, "describe": describe}[arguments.action](arguments)


def show_list(arguments: argparse.Namespace) -> int:
    """List the shipped networks and those in other folders."""
    rows = []
    for folder in find_bundles(shipped_models_folder(), *arguments.folders):
        try:
            bundle = load_bundle(folder)
        except BundleError as error:
            rows.append({"folder": str(folder), "error": str(error)})
            continue
        rows.append(
            {
                "folder": str(folder),
                **model_identity(bundle),
                "trained_on": bundle.description.rule.modality,
                "labels": [label.name for label in bundle.description.labels],
            }
        )
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        if "error" in row:
            print(row["error"])
        else:
            print(f"{row['name']}, trained on {row['trained_on']}: {', '.join(row['labels'])}")
            print(f"  {row['folder']}")
    if not rows:
        print(f"No models in {shipped_models_folder()}.")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check every file of the models named, of the shipped ones by default; 4 where one fails."""
    if arguments.models:
        folders = [find_model(model) for model in arguments.models]
    else:
        folders = find_bundles(shipped_models_folder())
    faults = {str(folder): verify_bundle(folder) for folder in folders}
    if arguments.json:
        print_json(faults)
    else:
        for folder, found in faults.items():
            print(f"{folder}: {'; '.join(found) or 'whole'}")
        if not faults:
            print(f"No models in {shipped_models_folder()}.")
    return 4 if any(faults.values()) else 0


def describe(arguments: argparse.Namespace) -> int:
    """Print a model's card, or all that is known about it as JSON."""
    folder = find_model(arguments.model)
    bundle = load_bundle(folder)
    if arguments.json:
        known = {"folder": str(folder), "identity": bundle.identity}
        print_json(known | asdict(bundle.description) | {"network": asdict(bundle.network)})
    else:
        print((folder / CARD).read_text(encoding="utf-8"))
        print(f"Folder: {folder}\nIdentity: {bundle.identity}")
    return 0
