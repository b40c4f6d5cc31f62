# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written whole or not at all, read without running code."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from SRCSMSegmenterLib.errors import SRCSMError


class CheckpointError(SRCSMError):
    """A checkpoint cannot be written, read, or does not belong to this training."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write under a temporary name, flush to disk, rename.

    Raises:
        CheckpointError: the disk is full or the folder is not writable; an older checkpoint of
            that name is still whole.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"Cannot write the checkpoint {path}: {error}. Free some space or choose another run "
            "folder; the last checkpoint is untouched and the same command resumes from it."
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with ``weights_only=True``.

    Raises:
        CheckpointError: unreadable or cut short.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"Cannot read the checkpoint {path}: {error}. Delete it to start this run anew."
        ) from error
