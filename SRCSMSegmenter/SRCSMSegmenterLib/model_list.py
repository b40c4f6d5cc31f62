# SPDX-License-Identifier: Apache-2.0
"""Which trained networks there are and what they say of themselves; without torch.

Slicer's panel shows this before PyTorch is installed. What a folder says is only read here;
`bundle.load_bundle` checks it before use.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .checked_folder import SUMS
from .errors import BundleError

METADATA = "configs/metadata.json"
SAM_CONFIG = "config.json"
"""What the folder of a SAM (`SAMRefineLib.models`) has in its place."""


@dataclass(frozen=True)
class Organ:
    """A label: its name as a reader writes it, and its colour (RGB, 0-255)."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class ModelCard:
    """What a network says of itself.

    Attributes:
        name, task, expects, licence: see `bundle.Description`.
        modality: "CT" or "MR", which it was trained on.
        organs: foreground labels, in the order of their values 1, 2, ...
        window_mm: extent (I, J, K) of the part it looks at.
    """

    folder: Path
    name: str
    task: str
    expects: str
    licence: str
    modality: str
    organs: tuple[Organ, ...]
    window_mm: tuple[float, float, float]


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, unchecked.

    Raises:
        BundleError: no metadata, or not ours.
    """
    try:
        ours = json.loads((folder / METADATA).read_bytes())["srcsm"]
        grid = ours["grid"]
        return ModelCard(
            folder,
            *(str(ours[key]) for key in ("name", "task", "expects", "licence")),
            str(ours["rule"]["modality"]),
            tuple(
                Organ(label["name"].replace("_", " "), tuple(map(int, label["color"])))
                for label in ours["labels"]
            ),
            tuple(n * mm for n, mm in zip(grid["size"], grid["spacing"], strict=True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{folder} is no model folder of this program ({METADATA}: {error}); choose another."
        ) from error


def is_bundle(folder: Path) -> bool:
    """True where a folder looks like a bundle, whole or not; that of a SAM is none."""
    folder = Path(folder)
    if (folder / METADATA).is_file():
        return True
    return (folder / SUMS).is_file() and not (folder / SAM_CONFIG).is_file()


def find_bundles(*folders: Path) -> list[Path]:
    """The bundles among `folders` and their direct subfolders, in order, by name."""
    found = []
    for folder in map(Path, folders):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        # A name with a dot is one that is being written, or was when the power failed.
        shown = [path for path in inside if not path.name.startswith(".")]
        found += [path for path in (folder, *shown) if is_bundle(path)]
    return found


def shipped_models_folder() -> Path:
    """``$SRCSM_MODELS``, or ``Resources/Models`` of the installed extension or the repository."""
    installed, repository = (
        above / "Resources" / "Models" for above in Path(__file__).resolve().parents[1:3]
    )
    return Path(os.environ.get("SRCSM_MODELS", installed if installed.is_dir() else repository))
