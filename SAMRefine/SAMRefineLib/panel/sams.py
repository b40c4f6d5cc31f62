# SPDX-License-Identifier: Apache-2.0
"""SAMs that the panel offers: shipped ones, official ones, and the user's own files."""

import json
from dataclasses import replace
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder

from ..sam.catalogue import SamCard, checkpoint_card, find_sams, read_sam_card
from ..sam.checkpoints import CHECKPOINTS

SETTING = "SRCSM/SamFiles"

BY_MODALITY = ""
"""Key of the shipped SAM that was trained on the scan's modality (`organ_state.Settings.sam`)."""


def sam_cards() -> dict[str, SamCard]:
    """Return the cards of the SAMs by the key in the parameter node.

    The key is the name of a shipped SAM, the kind of an official one, or the path of one of the
    user's. Official ones are listed even if they are not downloaded, the user's only if they exist.
    """
    cards, shipped = {}, find_sams(shipped_models_folder())
    folders = {folder.name: (folder, "") for folder in shipped}
    folders |= {path: (Path(path), kind) for path, kind in own_sams().items()}
    for key, (path, kind) in folders.items():
        try:
            card = checkpoint_card(path, kind) if kind else read_sam_card(path)
        except BundleError:
            continue  # perhaps on a drive that is not connected; the setting keeps it
        if card.present:
            cards[key] = card
    if small := [cards[folder.name] for folder in shipped if folder.name in cards]:
        name = _("Small SAM (that of the scan's modality)")
        licence = " / ".join(dict.fromkeys(card.licence for card in small))
        organs = frozenset.intersection(*(card.organs for card in small))
        card = replace(
            small[0], path=shipped_models_folder(), name=name, licence=licence, organs=organs
        )
        cards = {BY_MODALITY: card, **cards}
    for kind, entry in CHECKPOINTS.items():
        if entry.url:
            cards[kind] = checkpoint_card(downloads_folder() / entry.file, kind)
    return cards


def downloads_folder() -> Path:
    """Return the folder of downloads, which updates of Slicer and of this extension keep."""
    return Path(slicer.app.slicerUserSettingsFilePath).parent / "SRCSM" / "Models"


def own_sams() -> dict[str, str]:
    """Return the kind of each SAM that the user added, by path; "" for a folder of this program."""
    return json.loads(slicer.app.userSettings().value(SETTING) or "{}")


def add_sam(path: Path, kind: str = "") -> str:
    """Add a checkpoint file or folder to the user's SAMs, and return its key.

    Args:
        path: the file or folder.
        kind: the kind of a file; "" for a folder of this program.

    Raises:
        BundleError: the folder holds no SAM.
    """
    if not kind:
        read_sam_card(path)
    key = str(path.absolute())
    _remember(own_sams() | {key: kind})
    return key


def forget_sam(key: str) -> None:
    """Remove one of the user's SAMs from the list; its files stay."""
    _remember({path: kind for path, kind in own_sams().items() if path != key})


def _remember(sams: dict[str, str]) -> None:
    slicer.app.userSettings().setValue(SETTING, json.dumps(sams))
