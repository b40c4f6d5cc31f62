# SPDX-License-Identifier: Apache-2.0
"""The models that the panel offers: shipped ones, and the user's own, kept in Slicer's settings."""

import json
from pathlib import Path

import slicer

from ..errors import BundleError
from ..models.catalogue import ModelCard, find_bundles, read_card, shipped_models_folder

SETTING = "SRCSM/ModelFolders"


def model_cards() -> dict[str, ModelCard]:
    """Return the cards of all models, by the name of a shipped one and the folder of an own one.

    Folders that are no models any more are left out.
    """
    folders = {folder.name: folder for folder in find_bundles(shipped_models_folder())}
    folders |= {folder: Path(folder) for folder in own_models()}
    cards = {}
    for key, folder in folders.items():
        try:
            cards[key] = read_card(folder)
        except BundleError:
            continue  # on a drive that is not there today, perhaps; the setting keeps it
    return cards


def own_models() -> list[str]:
    """List the folders that the user added."""
    return json.loads(slicer.app.userSettings().value(SETTING) or "[]")


def add_models(folder: str) -> list[str]:
    """Remember a model folder, or all in a folder, and return them.

    Raises:
        BundleError: there is none.
    """
    added = [str(read_card(each).folder.absolute()) for each in find_bundles(Path(folder))]
    if not added:
        raise BundleError(f"There is no model in {folder}; choose the folder that a training made.")
    _remember([*own_models(), *(each for each in added if each not in own_models())])
    return added


def remove_model(folder: str) -> None:
    """Forget one of the user's models; its files stay."""
    _remember([each for each in own_models() if each != folder])


def _remember(folders: list[str]) -> None:
    # As JSON: Qt's settings give a list of one back as a string.
    slicer.app.userSettings().setValue(SETTING, json.dumps(folders))
