# SPDX-License-Identifier: Apache-2.0
"""Sets of slices on disk, which all stages read and write.

A set is a folder with one manifest. `style prepare` makes the source set; `style swap` makes a set
of restyled slices beside it, `style phantom` one to train a small base on. All have one format:

    slices/ct/                      the source set
        manifest.json               a `SliceSet`, every file with its SHA-256
        images/ct_01_K034.png       8-bit grey, size x size: the slice in its window
        masks/ct_01_K034.png        8-bit, the same grid: label values, 0 is background
        styled/abdomen/             a set of restyled slices, from one `style swap`
            manifest.json           `source` and `models` tell from what and by what
            images/ct_01_K034_t2.png

- A slice's `image` and `mask` are paths relative to its set's folder. A restyled slice has no mask
  of its own; its `mask` is ../../masks/ct_01_K034.png, and its `source` the name ct_01_K034.
  Pairs are therefore: for every slice s of a restyled set, (source set's slice s.source, s).
- Pictures are laid out as radiologists look at them: of an axial slice the patient's right is on
  the left and the front is up. Pixels are square; `affine` takes (column, row, 0) to RAS mm, so
  any picture can be put back into its scan. `prepare.picture_grids` lays the same grids over any
  other scan, such as one of the target domain.
- `pixels` counts each label's pixels by name, for filters and for rare-class sampling.
- The manifest is written whole or not at all and says whether the set is complete: an incomplete
  one is refused by the stages that follow, and continued by the same command that began it.
- What was set aside (`style check`) stays in the manifest, with the reason in `rejected`; whoever
  trains takes `kept()`.
"""

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from SRCSMSegmenterLib.atomic import atomic_write, read_regular
from SRCSMSegmenterLib.errors import DatasetError, SRCSMError
from SRCSMSegmenterLib.schema import convert, convert_keys, parse_json

from ..engine.checkpoint import without_precision

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class StyleError(SRCSMError):
    """A stage that cannot go on, or whose results cannot be written."""


@dataclass(frozen=True)
class Slice:
    """One picture of a set; see the module's docstring.

    Attributes:
        name: unique in its set, the stem of its file.
        case: of the nnU-Net dataset it comes from.
        image, mask: paths relative to the set's folder.
        image_sha256, mask_sha256: of the files.
        style: such as "ct" or "t2"; a key of the prompts file.
        pixels: label name -> number of its pixels; only labels that are there.
        affine: 16 numbers, row by row: (column, row, 0, 1) -> RAS mm.
        prompt, seed: what a restyled slice was made with.
        source: name of the slice that it restyles.
        rejected: why it was set aside; "" if it was not.
    """

    name: str
    case: str
    image: str
    mask: str
    image_sha256: str
    mask_sha256: str
    style: str
    pixels: dict[str, int]
    affine: list[float]
    prompt: str = ""
    seed: int | None = None
    source: str = ""
    rejected: str = ""


@dataclass(frozen=True, eq=False)
class SliceSet:
    """A manifest.

    Attributes:
        folder: where it lies; not stored.
        name: the dataset's.
        modality: "CT" or "MR", of the source.
        labels: name -> value in the masks, without background.
        size: pixels of a side.
        settings: everything that decided the pictures; a set of other settings is not continued.
        slices: in the order of their making.
        cases: case -> SHA-256 of image and label map (of prepared sets).
        source: the source set's folder relative to this one (of restyled sets).
        models: what restyled: name, licence and SHA-256 of each part (of restyled sets).
        complete: False while its making goes on.
    """

    folder: Path
    name: str
    modality: str
    labels: dict[str, int]
    size: int
    settings: dict[str, Any]
    slices: tuple[Slice, ...] = ()
    cases: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""
    models: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def kept(self) -> tuple[Slice, ...]:
        """Return the slices that were not set aside."""
        return tuple(s for s in self.slices if not s.rejected)


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        done, total: steps, cases or pictures.
        output: folder of the result; None if the stage was stopped, which the same call resumes.
    """

    done: int
    total: int
    output: Path | None

    @property
    def finished(self) -> bool:
        """Whether the stage came to its end."""
        return self.done == self.total


def read_slices(folder: Path | str, *, incomplete: bool = False) -> SliceSet:
    """Read a manifest and check every file against it.

    Args:
        incomplete: also take a set whose making was stopped; files it does not list are ignored.

    Raises:
        DatasetError: no manifest, an unreadable one, one whose files changed, an incomplete one.
    """
    slices = read_manifest(folder)
    if not slices.complete and not incomplete:
        raise DatasetError(
            f"{slices.folder} is incomplete: its making was stopped; run the command that began it "
            "again."
        )
    faults = [fault for s in slices.slices for fault in _faults(slices.folder, s)]
    if faults:
        raise DatasetError(
            f"{len(faults)} files of {slices.folder} are not what its manifest says, the first is "
            f"{faults[0]}; put them back, or make the set anew in another folder."
        )
    return slices


def read_manifest(folder: Path | str) -> SliceSet:
    """Read a manifest without looking at the pictures.

    Raises:
        DatasetError: there is none, or it is unreadable.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} has no {MANIFEST}; make a set of slices with srcsm style prepare."
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as a manifest of slices: {error}.") from error
    content = parse_json(text, str(path), DatasetError)
    convert_keys(content, {"format_version": int}, str(path), DatasetError)
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise DatasetError(f"{path} is of format {version}, this program reads {FORMAT_VERSION}.")
    content = {**content, "folder": str(folder)}
    manifest = convert(content, SliceSet, str(path), DatasetError)
    for each in manifest.slices:
        _check_slice(manifest, each)
    return manifest


def begin_set(new: SliceSet) -> SliceSet:
    """Open the unfinished set in the folder of a new one, or begin the new one.

    Raises:
        DatasetError: the folder holds a set that was made of something else or otherwise,
            precisions left out, or one whose files changed.
    """
    if not (new.folder / MANIFEST).exists():
        return new
    old = read_manifest(new.folder)
    if _made_of(old) != _made_of(new):
        raise DatasetError(
            f"{new.folder} holds slices that were made of other slices or scans, by other models "
            "or with other settings; choose another folder, or give the same input and options to "
            "go on."
        )
    return replace(read_slices(new.folder, incomplete=True), complete=False)


def write_manifest(slices: SliceSet) -> None:
    """Write the manifest into the set's folder.

    Raises:
        StyleError: it cannot be written; an older one is still whole.
    """
    content = {"format_version": FORMAT_VERSION, **asdict(replace(slices, folder=None))}
    del content["folder"]
    write_bytes(slices.folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_picture(slices: SliceSet, path: str) -> np.ndarray:
    """Read an image or mask of the set, (size, size) uint8.

    Raises:
        DatasetError: unreadable, or of another size.
    """
    try:
        with Image.open(slices.folder / path) as picture:
            array = np.array(picture)
    except (OSError, SyntaxError) as error:
        raise DatasetError(
            f"{slices.folder / path} cannot be read as a picture: {error}."
        ) from error
    if array.shape != (slices.size, slices.size) or array.dtype != np.uint8:
        raise DatasetError(
            f"{slices.folder / path} is no grey picture of {slices.size} x {slices.size} pixels."
        )
    return array


def write_picture(path: Path, array: np.ndarray) -> str:
    """Write (rows, columns) or (rows, columns, 3) uint8 as PNG; return the file's SHA-256.

    Raises:
        StyleError: it cannot be written; no part of it is left.
    """
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    write_bytes(path, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        StyleError: the disk is full or the folder is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise StyleError(
            f"Cannot write {path} ({error.strerror}); free some space, and the same command goes "
            "on: what was made before is kept."
        ) from error


def file_sha256(path: Path) -> str:
    """Compute the hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_sha256(slices: SliceSet) -> str:
    """Compute the hex digest of a manifest, which identifies the set's content."""
    return file_sha256(slices.folder / MANIFEST)


def _made_of(slices: SliceSet) -> list[Any]:
    """Return everything that decides a set's pictures, as JSON gives it back."""
    made = [without_precision(slices.settings), slices.name, slices.labels, slices.models]
    return json.loads(json.dumps(made))


def _check_slice(slices: SliceSet, one: Slice) -> None:
    """Raise a DatasetError if a slice's files lie elsewhere, or its affine is none."""
    where, source = slices.folder / MANIFEST, slices.folder / slices.source
    for path, homes in ((one.image, (slices.folder,)), (one.mask, (slices.folder, source))):
        place = Path(os.path.abspath(slices.folder / path))
        if not any(place.is_relative_to(os.path.abspath(home)) for home in homes):
            raise DatasetError(f"{where} names {path}, which lies outside its folder.")
    if len(one.affine) != 16:
        raise DatasetError(f"{where}: the affine of {one.name} has 16 numbers, row by row.")


def _faults(folder: Path, s: Slice) -> list[str]:
    faults = []
    for path, digest in ((s.image, s.image_sha256), (s.mask, s.mask_sha256)):
        try:
            if not (folder / path).is_file():  # a pipe would be waited for
                faults.append(f"{path} (missing, or no file)")
            elif file_sha256(folder / path) != digest:
                faults.append(f"{path} (altered)")
        except OSError as error:
            faults.append(f"{path} ({error.strerror})")
    return faults
