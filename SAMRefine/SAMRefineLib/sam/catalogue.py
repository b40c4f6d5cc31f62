# SPDX-License-Identifier: Apache-2.0
"""Catalogue of SAMs: folders of this program, official checkpoints and their cards.

It needs no torch: Slicer's panel shows it before PyTorch is installed. Cards are read unchecked;
`models.load_sam` checks a SAM before use.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from SRCSMSegmenterLib.atomic import recover
from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import (
    SAM_CONFIG,
    candidate_folders,
    shipped_folder,
    shipped_models_folder,
)
from SRCSMSegmenterLib.models.hashed_folder import SUMS
from SRCSMSegmenterLib.terminology import meaning

from .checkpoints import CHECKPOINTS, Checkpoint


@dataclass(frozen=True)
class SamCard:
    """A model card: a SAM's name, purpose, licence and origin.

    Attributes:
        path: its folder or file, which need not exist.
        kind: "small" or a key of `CHECKPOINTS`.
        name: the name to show.
        expects: its purpose, a sentence.
        licence: the licence of its weights.
        origin: the `CHECKPOINTS` entry if it can be downloaded, else None.
        organs: names of the organs that it was trained on (`trained_organs`).
    """

    path: Path
    kind: str
    name: str
    expects: str
    licence: str
    origin: Checkpoint | None = None
    organs: frozenset[str] = frozenset()

    @property
    def present(self) -> bool:
        """True if its files exist."""
        return self.path.exists()


def read_sam_card(folder: Path) -> SamCard:
    """Read the card of a SAM's folder, unchecked.

    Raises:
        BundleError: the folder holds no SAM of this program.
    """
    try:
        config = json.loads((folder / SAM_CONFIG).read_bytes())
        text = (folder / "README.md").read_text(encoding="utf-8")
        return SamCard(
            folder,
            str(config["kind"]),
            str(config["name"]),
            _line(text, "Expects"),
            _line(text, "Licence"),
            organs=trained_organs(dict(config.get("training", {}))),
        )
    except OSError as error:
        reason = f"{error.strerror}: {Path(error.filename).name}"
        raise BundleError(
            f"The folder {folder} holds no SAM of this program ({reason}); choose another."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"The folder {folder} holds a damaged SAM ({SAM_CONFIG}: {error}); choose another."
        ) from error


def checkpoint_card(path: Path, kind: str) -> SamCard:
    """Return the card of a checkpoint file made by others."""
    entry = CHECKPOINTS[kind]
    expects = (
        "photographs; on CT and MR it outlines what a tight box surrounds, slice by slice"
        if kind != "medsam"
        else "CT and MR, among other medical images, slice by slice"
    )
    origin = entry if entry.url else None
    return SamCard(path, kind, entry.title, expects, entry.licence, origin)


def default_for(modality: str) -> str:
    """Return the name of the shipped SAM that was trained on a modality, "CT" or "MR"."""
    return f"sam-small-{modality.lower()}"


def shipped_sam_for(modality: str) -> str:
    """Return `default_for` a modality if that SAM is there, else ""."""
    name = default_for(modality)
    return name if is_sam(shipped_models_folder() / name) else ""


def is_sam(folder: Path) -> bool:
    """Tell whether a folder looks like a SAM of this program, complete or not."""
    recover(folder)
    return (Path(folder) / SAM_CONFIG).is_file() and (Path(folder) / SUMS).is_file()


def find_sams(*folders: Path) -> list[Path]:
    """List the SAMs of this program among `folders` and their direct subfolders, by name."""
    return [folder for folder in candidate_folders(*folders) if is_sam(folder)]


def find_sam(sam: str) -> Path:
    """Return the path of a SAM: a checkpoint file, a folder, or the folder of a shipped SAM.

    Args:
        sam: path, or name of a shipped SAM.

    Raises:
        BundleError: neither; the message names the shipped ones.
    """
    path, shipped, folder = Path(sam), shipped_folder(sam), shipped_models_folder()
    if path.exists():
        return path
    known = find_sams(folder)
    if shipped in known:
        return shipped
    names = ", ".join(path.name for path in known) or "none"
    raise BundleError(
        f"There is no SAM {sam}; give --sam a checkpoint file, a folder, or one of those in "
        f"{folder}: {names}."
    )


def trained_organs(training: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the labels that a SAM was trained on; empty if it does not say.

    Args:
        training: the SAM's own account of its training (`models.SamModel.training`).
    """
    return frozenset(training.get("validation_dice", ()))


class Named(Protocol):
    """Anything with the name of an organ."""

    @property
    def name(self) -> str:
        """The organ's name."""


AnOrgan = TypeVar("AnOrgan", bound=Named)


def trained_on(organs: Iterable[AnOrgan], trained: Collection[str]) -> list[AnOrgan]:
    """Return the organs that a SAM was trained on; all if it does not say on which.

    Args:
        organs: organs with names, whatever the spelling (`terminology.meaning`).
        trained: names of the organs that the SAM was trained on.
    """
    meant = set(map(meaning, trained))
    return [organ for organ in organs if not meant or meaning(organ.name) in meant]


def redrawn_unasked(organs: Iterable[AnOrgan], trained: Collection[str]) -> list[AnOrgan]:
    """Return the organs of which a SAM can be trusted to improve the outlines.

    They are those that it was trained on (`trained_on`). If that is none, it was made for something
    else, and the user who chose it wants it for all.
    """
    organs = list(organs)
    return trained_on(organs, trained) or organs


def kind_of(sha256: str) -> str | None:
    """Return the kind of an official file by its SHA-256; None for any other."""
    return next((kind for kind, entry in CHECKPOINTS.items() if entry.sha256 == sha256), None)


def megabytes(size: int) -> str:
    """Format a size in bytes, such as "375 MB" or "2.6 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _line(card: str, key: str) -> str:
    """Return the text of a model card after "- Key:", continuation lines included."""
    line = re.search(rf"^- {key}: (.+(?:\n  .+)*)", card, re.MULTILINE)
    return " ".join(line[1].split()) if line else ""
