# SPDX-License-Identifier: Apache-2.0
"""Which SAMs there are and what they say of themselves; without torch.

Slicer's panel shows this before PyTorch is installed. What a folder says is only read here;
`models.load_sam` checks it before use.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from SRCSMSegmenterLib.errors import BundleError
from SRCSMSegmenterLib.models.catalogue import SAM_CONFIG, shipped_folder, shipped_models_folder
from SRCSMSegmenterLib.models.hashed_folder import SUMS

from .checkpoints import CHECKPOINTS, Checkpoint


@dataclass(frozen=True)
class SamCard:
    """What is known of a SAM.

    Attributes:
        path: its folder or file, which need not be there.
        kind: "small" or a key of `CHECKPOINTS`.
        name: for people.
        expects: what it is for, a sentence.
        licence: of its weights.
        origin: the `CHECKPOINTS` entry, where it can be downloaded.
    """

    path: Path
    kind: str
    name: str
    expects: str
    licence: str
    origin: Checkpoint | None = None

    @property
    def present(self) -> bool:
        """Its files are here."""
        return self.path.exists()


def read_sam_card(folder: Path) -> SamCard:
    """The card of a folder of ours, unchecked.

    Raises:
        BundleError: it is none.
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
        )
    except OSError as error:
        reason = f"{error.strerror}: {Path(error.filename).name}"
        raise BundleError(
            f"The folder {folder} holds no SAM of this program ({reason}); choose another."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"The folder {folder} holds a damaged SAM ({SAM_CONFIG}: {error}); choose another."
        ) from error


def checkpoint_card(path: Path, kind: str) -> SamCard:
    """The card of a checkpoint file made by others."""
    entry = CHECKPOINTS[kind]
    expects = (
        "photographs; on CT and MR it outlines what a tight box surrounds, slice by slice"
        if kind != "medsam"
        else "CT and MR, among other medical images, slice by slice"
    )
    origin = entry if entry.url else None
    return SamCard(path, kind, entry.title, expects, entry.licence, origin)


def find_sam_folders(folder: Path) -> list[Path]:
    """The SAMs of ours in a folder, by name."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        path
        for path in inside
        if not path.name.startswith(".")
        and (path / SAM_CONFIG).is_file()
        and (path / SUMS).is_file()
    ]


def default_for(modality: str) -> str:
    """Return the name of the shipped SAM for a modality, "CT" or "MR"."""
    return f"sam-small-{modality.lower()}"


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
    known = find_sam_folders(folder)
    if shipped in known:
        return shipped
    names = ", ".join(path.name for path in known) or "none"
    raise BundleError(
        f"There is no SAM {sam}; give --sam a checkpoint file, a folder, or one of those in "
        f"{folder}: {names}."
    )


def kind_of(sha256: str) -> str | None:
    """The kind of an official file; None for any other."""
    return next((kind for kind, entry in CHECKPOINTS.items() if entry.sha256 == sha256), None)


def megabytes(size: int) -> str:
    """A size as people write it, "375 MB", "2.6 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def host(origin: Checkpoint) -> str:
    """Where a checkpoint comes from, such as "dl.fbaipublicfiles.com"."""
    return urlsplit(origin.url or "").hostname or ""


def _line(card: str, key: str) -> str:
    """What a model card says after "- Key:", lines that go on included."""
    found = re.search(rf"^- {key}: (.+(?:\n  .+)*)", card, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
