# SPDX-License-Identifier: Apache-2.0
"""SAM's image embeddings, one encoder pass for each canvas ever."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from SRCSMSegmenterLib.devices import autocast, out_of_memory
from SRCSMSegmenterLib.errors import DeviceError

from .models import SamModel

PASS_PIXELS = 1024 * 1024
"""Pixels that go through the encoder at a time on a GPU: one official canvas, four of 512."""


def encode(model: SamModel, canvases: torch.Tensor) -> torch.Tensor:
    """The encoder on canvases, in whatever precision and gradient mode the caller has set.

    Args:
        canvases: (n, side, side) pixels (`pixels.to_pixels`) on the model's device. The official
            encoders need sides of `model.canvas`; a small SAM takes any multiple of its window,
            for training too.

    Returns:
        (n, C, side / patch, side / patch).
    """
    encoder = model.sam.image_encoder
    mean, deviation = (
        canvases.new_tensor(values).view(-1, 1, 1)
        for values in (model.pixels.mean, model.pixels.deviation)
    )
    images = (canvases[:, None] - mean) / deviation
    images = images.expand(-1, encoder.patch_embed.proj.in_channels, -1, -1)
    if model.window is None:
        return encoder(images)
    # As images of their own, the last convolutions do not mix windows at their edges either.
    rows = canvases.shape[1] // model.window
    return _joined(encoder(_windows(images, model.window)), rows)


class EmbeddingCache:
    """Embeddings by what is on the canvas and by the encoder's weights.

    In memory under a limit, the least recently used one goes first; in a folder too where one is
    given, under a limit of its own. That folder then holds what was computed from patients'
    images: it is the caller's to protect and to delete.

    Attributes:
        passes: canvases that went through an encoder so far.
    """

    def __init__(
        self,
        limit_bytes: int = 2 * 1024**3,
        folder: Path | None = None,
        folder_limit_bytes: int = 8 * 1024**3,
    ) -> None:
        self.passes = 0
        self._limit = limit_bytes
        self._folder = folder and Path(folder)
        self._folder_limit = folder_limit_bytes
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Of the embeddings held in memory."""
        return sum(value.nbytes for value in self._kept.values())

    def embed(
        self,
        model: SamModel,
        canvases: np.ndarray,
        step: Callable[[int], None] = lambda done: None,
    ) -> list[torch.Tensor]:
        """The embeddings of canvases, from the cache where they are in it.

        Args:
            canvases: (n, side, side) float32 pixels.
            step: called with the number of canvases done before every encoder pass; may raise.

        Returns:
            n tensors (C, side / patch, side / patch), float16 on the CPU; not to be written to.

        Raises:
            DeviceError: out of memory.
        """
        keys = [_key(model, canvas) for canvas in canvases]
        found: dict[str, torch.Tensor] = {}
        missing: dict[str, np.ndarray] = {}
        for key, canvas in zip(keys, canvases, strict=True):
            embedding = self._look_up(key)
            if embedding is None:
                missing[key] = canvas
            else:
                found[key] = embedding
        at_once = 1
        if model.device.type != "cpu":
            at_once = max(1, PASS_PIXELS // max(1, canvases[:1].size))
        absent = list(missing)
        for first in range(0, len(absent), at_once):
            step(len(canvases) - len(absent) + first)
            batch = absent[first : first + at_once]
            embeddings = _run(model, np.stack([missing[key] for key in batch]))
            self.passes += len(batch)
            for key, embedding in zip(batch, embeddings, strict=True):
                found[key] = embedding.clone()  # on its own, or it would keep the batch in memory
                self._keep(key, found[key])
                self._write(key, found[key])
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forget what is in memory."""
        self._kept.clear()

    def _look_up(self, key: str) -> torch.Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self._folder is None:
            return None
        try:
            embedding = load_tensors(self._path(key).read_bytes())["embedding"]
        except (OSError, SafetensorError, KeyError):
            return None  # absent, or broken and about to be replaced
        with suppress(OSError):
            os.utime(self._path(key))  # used just now
        self._keep(key, embedding)
        return embedding

    def _keep(self, key: str, embedding: torch.Tensor) -> None:
        self._kept[key] = embedding
        total = self.bytes
        while total > self._limit:
            total -= self._kept.popitem(last=False)[1].nbytes

    def _write(self, key: str, embedding: torch.Tensor) -> None:
        """Onto the disk; a full one costs speed alone."""
        if self._folder is None:
            return
        path = self._path(key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save_tensors({"embedding": embedding}))
            os.replace(temporary, path)
            self._make_room()
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def _make_room(self) -> None:
        """Delete the least recently used entries of the folder; touches nothing else in it."""
        entries = []
        for path in self._folder.glob("[0-9a-f]" * 64 + ".safetensors*"):
            with suppress(FileNotFoundError):  # another process was quicker
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._folder_limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _key(model: SamModel, canvas: np.ndarray) -> str:
    digest = hashlib.sha256(f"{model.encoder_identity} {canvas.shape} {canvas.dtype}".encode())
    digest.update(np.ascontiguousarray(canvas))
    return digest.hexdigest()


@torch.no_grad()  # and not inference_mode: a decoder may be trained on these
def _run(model: SamModel, canvases: np.ndarray) -> torch.Tensor:
    """(n, C, h, w) float16 on the CPU; what half precision loses is far below what computing in
    bfloat16 does."""
    try:
        with autocast(model.device):
            embeddings = encode(model, torch.from_numpy(canvases).to(model.device))
        return embeddings.half().cpu()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise DeviceError(
            f"Memory ran out on {model.device} while SAM looked at a canvas; free some, or choose "
            "a smaller SAM or another device."
        ) from error


def _windows(images: torch.Tensor, side: int) -> torch.Tensor:
    """(n, c, rows * side, columns * side) -> (n * rows * columns, c, side, side)."""
    cut = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _joined(windows: torch.Tensor, rows: int) -> torch.Tensor:
    """What `_windows` cut from square images of `rows` windows a side, (n, c, side, side)."""
    grid = windows.unflatten(0, (-1, rows, rows)).permute(0, 3, 1, 4, 2, 5)
    return grid.flatten(4, 5).flatten(2, 3)
