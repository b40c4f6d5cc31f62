# SPDX-License-Identifier: Apache-2.0
"""Catalogue of trained networks: their folders and cards; without torch.

Slicer's panel shows it before PyTorch is installed. Cards are read unchecked; `bundle.load_bundle`
checks a folder before use.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..atomic import recover, recover_all
from ..errors import BundleError
from ..terminology import segment_for
from .hashed_folder import SUMS

METADATA = "configs/metadata.json"
SAM_CONFIG = "config.json"
"""File by which the folder of a SAM is told from that of a network."""


@dataclass(frozen=True)
class OrganCard:
    """Name of a label, such as "right_kidney", its colour (RGB, 0-255) and its group or ""."""

    name: str
    color: tuple[int, int, int]
    group: str = ""


@dataclass(frozen=True)
class ModelCard:
    """Statements of a model folder about its network, unchecked.

    Attributes:
        name, task, expects, licence: see `bundle.Description`.
        modality: that of the training images, "CT" or "MR".
        organs: foreground labels, in the order of their values 1, 2, ...
        spacing: mm along (I, J, K), of the grid of the network's input.
    """

    folder: Path
    name: str
    task: str
    expects: str
    licence: str
    modality: str
    organs: tuple[OrganCard, ...]
    spacing: tuple[float, float, float]


def read_card(folder: Path) -> ModelCard:
    """Read the card of a model folder, unchecked.

    Raises:
        BundleError: no metadata, or not ours.
    """
    try:
        ours = json.loads((folder / METADATA).read_bytes())["srcsm"]
        grouped = ours.get("groups", {}).items()
        groups = {label: str(group) for group, labels in grouped for label in labels}
        names = [str(label["name"]) for label in ours["labels"]]
        return ModelCard(
            folder,
            *(str(ours[key]) for key in ("name", "task", "expects", "licence")),
            str(ours["rule"]["modality"]),
            tuple(
                OrganCard(name, segment_for(name, value).color, groups.get(name, ""))
                for value, name in enumerate(names, start=1)
            ),
            tuple(map(float, ours["grid"]["spacing"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{folder} is no model folder of this program ({METADATA}: {error}); choose another."
        ) from error


def is_bundle(folder: Path) -> bool:
    """Tell whether a folder looks like a bundle, whole or not; that of a SAM does not."""
    folder = Path(folder)
    recover(folder)
    if (folder / METADATA).is_file():
        return True
    return (folder / SUMS).is_file() and not (folder / SAM_CONFIG).is_file()


def find_bundles(*folders: Path) -> list[Path]:
    """List the bundles among `folders` and their direct subfolders, in order, by name."""
    return [folder for folder in candidate_folders(*folders) if is_bundle(folder)]


def candidate_folders(*folders: Path) -> Iterator[Path]:
    """Yield each of `folders` and then the folders and files in it, by name.

    A name with a dot in front is left out: it is being written, or was when the power failed.
    """
    for folder in map(Path, folders):
        yield folder
        if folder.is_dir():
            recover_all(folder)
            yield from (path for path in sorted(folder.iterdir()) if path.name[0] != ".")


def find_model(model: str) -> Path:
    """Find the folder of a model, given as a folder or as the name of a shipped model.

    Raises:
        BundleError: neither; the message names the shipped ones.
    """
    for folder in (Path(model), shipped_folder(model)):
        if folder is not None and is_bundle(folder):
            return folder
    shipped = shipped_models_folder()
    names = ", ".join(folder.name for folder in find_bundles(shipped)) or "none"
    raise BundleError(
        f"{model} is neither a model folder nor the name of a shipped model; of those there "
        f"are in {shipped}: {names}."
    )


def absolute(model: str) -> str:
    """Make a relative path absolute, for a process with another current folder; keep a name."""
    return os.path.abspath(model) if model and os.path.exists(model) else model


def shipped_folder(name: str | Path) -> Path | None:
    """Return the folder that a shipped model of a name would have; None for a path.

    A path with a typo must not lead to a shipped model that is called like its last part.
    """
    name = str(name)
    bare = Path(name).name == name and name not in ("", ".", "..")
    return shipped_models_folder() / name if bare else None


def shipped_models_folder() -> Path:
    """Return the folder of shipped models.

    It is ``$SRCSM_MODELS``, or ``Resources/Models`` of the installed extension or the repository,
    or ``shipped`` of a package that was installed from a wheel.
    """
    package, *above = Path(__file__).resolve().parents[1:4]
    installed, repository = (folder / "Resources" / "Models" for folder in above)
    existing = [folder for folder in (installed, package / "shipped") if folder.is_dir()]
    return Path(os.environ.get("SRCSM_MODELS", existing[0] if existing else repository))
