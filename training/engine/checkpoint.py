# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: atomic writes, and reads that run no code."""

import io
from pathlib import Path
from typing import Any

import torch

from SRCSMSegmenterLib.atomic import atomic_write, read_regular
from SRCSMSegmenterLib.errors import SRCSMError


class CheckpointError(SRCSMError):
    """A checkpoint that cannot be written or read, or that belongs to another training."""


def without_precision(settings: Any) -> Any:  # noqa: ANN401 - plain values
    """Copy settings without the precisions in them, which a training may change when resumed."""
    if isinstance(settings, dict):
        kept = {key: value for key, value in settings.items() if key != "precision"}
        return {key: without_precision(value) for key, value in kept.items()}
    return settings


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        CheckpointError: the disk is full or the folder is not writable; an older checkpoint of
            that name is still whole.
    """
    # Into memory first: torch.save hides why a file cannot be written.
    content = io.BytesIO()
    torch.save(state, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"Cannot write the checkpoint {path} ({error.strerror}). Free some space or choose "
            "another run folder; the last checkpoint is untouched and the same command resumes "
            "from it."
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with ``weights_only=True``.

    Raises:
        CheckpointError: unreadable or cut short.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path} ({error.strerror}).") from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise CheckpointError(
            f"The checkpoint {path} is damaged or cut short; delete it to start this run anew."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint; delete it to start this run anew.")
    return state
