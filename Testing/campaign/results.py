# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of results: every file read whole, and reduced to what is compared."""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from SRCSMSegmenterLib.atomic import recover_all
from SRCSMSegmenterLib.models.hashed_folder import SUMS, read_folder
from SRCSMSegmenterLib.volume_io import read_frames

VOLATILE = re.compile("seconds|command|created|python|platform")
"""Columns and keys that differ from run to run."""


def snapshot(folder: Path) -> dict[str, str]:
    """Read every file that a user sees.

    Raises:
        Exception: of any kind, as a file is half-written.
    """
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        recover_all(inner)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            found[name] = hashlib.sha256(_content(path)).hexdigest()
    for sums in (folder / name for name in found if Path(name).name == SUMS):
        if wrong := read_folder(sums.parent, ())[1]:
            raise ValueError("; ".join(wrong))
    return found


def _content(path: Path) -> bytes:
    """Read a file whole, by what its ending says it is."""
    ending = next((ending for ending in READERS if path.name.endswith(ending)), None)
    try:
        return READERS[ending](path) if ending else path.read_bytes()
    except Exception as error:
        raise ValueError(f"{path.name}: {type(error).__name__}: {error}") from error


def _volume(path: Path) -> bytes:
    volumes = read_frames(path).volumes
    return b"".join(v.array.tobytes() + v.geometry.affine.round(4).tobytes() for v in volumes)


def _dicom(path: Path) -> bytes:
    return pydicom.dcmread(path).PixelData


def _picture(path: Path) -> bytes:
    with Image.open(path) as picture:
        return np.array(picture).tobytes()


def _steady(content: object) -> object:
    if isinstance(content, dict):
        return {key: _steady(v) for key, v in content.items() if not VOLATILE.search(str(key))}
    return [_steady(value) for value in content] if isinstance(content, list) else content


def _json(path: Path) -> bytes:
    return json.dumps(_steady(json.loads(path.read_text("utf-8"))), sort_keys=True).encode()


def _yaml(path: Path) -> bytes:
    return json.dumps(yaml.safe_load(path.read_text("utf-8")), default=str).encode()


def _table(path: Path) -> bytes:
    text = path.read_text("utf-8")
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    rows = list(csv.DictReader(text.splitlines()))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a line is cut off")
    return json.dumps(_steady(rows)).encode()


def _tensors(path: Path) -> bytes:
    return b"".join(value.numpy().tobytes() for _, value in sorted(load_file(path).items()))


def _checkpoint(path: Path) -> bytes:
    torch.load(path, weights_only=True)
    return b""


def _record(path: Path) -> bytes:
    """Read a record of lines, of which one may be cut off."""
    lines = path.read_text("utf-8").splitlines()
    whole = [line for line in lines if line.startswith("{") and line.endswith("}}")]
    return str(len({json.loads(line)["scan"] for line in whole})).encode()


READERS: dict[str, Callable[[Path], bytes]] = {
    ".nii.gz": _volume,
    ".nrrd": _volume,
    ".mha": _volume,
    ".dcm": _dicom,
    ".png": _picture,
    ".jsonl": _record,
    ".json": _json,
    ".yaml": _yaml,
    ".csv": _table,
    ".safetensors": _tensors,
    ".pt": _checkpoint,
}
