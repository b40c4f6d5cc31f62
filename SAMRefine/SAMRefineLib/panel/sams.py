# SPDX-License-Identifier: Apache-2.0
"""The SAMs that the panel offers: shipped ones, official ones, and the user's own files."""

import json
from dataclasses import replace
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder

from ..sam.catalogue import SamCard, checkpoint_card, find_sam_folders, read_sam_card
from ..sam.checkpoints import CHECKPOINTS

SETTING = "SRCSM/SamFiles"

BY_MODALITY = ""
"""Of the shipped SAMs the one that learned from the scan's modality; see
`organ_state.Settings.sam`."""


def sam_cards() -> dict[str, SamCard]:
    """What the parameter node calls a SAM -> its card.

    That is a shipped one's name, an official one's kind, or the path of one of the user's.
    Official ones are listed whether they are here or not, the user's where they are.
    """
    cards, shipped = {}, find_sam_folders(shipped_models_folder())
    folders = {folder.name: (folder, "") for folder in shipped}
    folders |= {path: (Path(path), kind) for path, kind in own_sams().items()}
    for key, (path, kind) in folders.items():
        try:
            card = checkpoint_card(path, kind) if kind else read_sam_card(path)
        except BundleError:
            continue  # on a drive that is not there today, perhaps; the setting keeps it
        if card.present:
            cards[key] = card
    if small := [cards[folder.name] for folder in shipped if folder.name in cards]:
        name = _("Small SAM (that of the scan's modality)")
        licence = " / ".join(dict.fromkeys(card.licence for card in small))
        card = replace(small[0], path=shipped_models_folder(), name=name, licence=licence)
        cards = {BY_MODALITY: card, **cards}
    for kind, entry in CHECKPOINTS.items():
        if entry.url:
            cards[kind] = checkpoint_card(downloads_folder() / entry.file, kind)
    return cards


def downloads_folder() -> Path:
    """Beside Slicer's settings: it outlives updates of Slicer and of this extension."""
    return Path(slicer.app.slicerUserSettingsFilePath).parent / "SRCSM" / "Models"


def own_sams() -> dict[str, str]:
    """Path of each that the user added -> its kind; "" for a folder, which says so itself."""
    return json.loads(slicer.app.userSettings().value(SETTING) or "{}")


def add_sam(path: Path, kind: str = "") -> str:
    """Remember a checkpoint file of a kind, or a folder of ours; returns its key.

    Raises:
        BundleError: the folder holds no SAM.
    """
    if not kind:
        read_sam_card(path)
    key = str(path.resolve())
    _remember(own_sams() | {key: kind})
    return key


def forget_sam(key: str) -> None:
    """Take one of the user's off the list; its file stays."""
    _remember({path: kind for path, kind in own_sams().items() if path != key})


def _remember(sams: dict[str, str]) -> None:
    slicer.app.userSettings().setValue(SETTING, json.dumps(sams))
