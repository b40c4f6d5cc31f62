# SPDX-License-Identifier: Apache-2.0
"""SAM's image embeddings, cached so that a canvas is encoded once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch

from SRCSMSegmenterLib.devices import autocast, out_of_memory
from SRCSMSegmenterLib.errors import DeviceError

from .models import SamModel

PASS_PIXELS = 1024 * 1024
"""Pixels per encoder pass on a GPU: one official canvas, or four of 512 pixels."""


def encode(model: SamModel, canvases: torch.Tensor) -> torch.Tensor:
    """Run the encoder on canvases in the caller's precision and gradient mode.

    Args:
        canvases: (n, side, side) pixels (`pixels.to_pixels`) on the model's device. The official
            encoders need sides of `model.canvas`; a small SAM takes any multiple of its window.

    Returns:
        Embeddings (n, C, side / patch, side / patch).
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
    # As separate images, so that the last convolutions do not mix windows at their edges.
    rows = canvases.shape[1] // model.window
    return _joined(encoder(_windows(images, model.window)), rows)


class EmbeddingCache:
    """Embeddings in memory, by canvas and encoder weights; the least recently used go first.

    Attributes:
        passes: number of canvases that were encoded so far.
    """

    def __init__(self, limit_bytes: int = 2 * 1024**3) -> None:
        """Make an empty cache of at most `limit_bytes`."""
        self.passes = 0
        self._limit = limit_bytes
        self._embeddings: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Size of the cached embeddings."""
        return sum(embedding.nbytes for embedding in self._embeddings.values())

    def embed(
        self,
        model: SamModel,
        canvases: np.ndarray,
        step: Callable[[int], None] = lambda done: None,
    ) -> list[torch.Tensor]:
        """Return the embeddings of canvases, cached or computed.

        Args:
            canvases: (n, side, side) float32 pixels.
            step: called before every encoder pass with the number of canvases done; may raise.

        Returns:
            n tensors (C, side / patch, side / patch), float16 on the CPU; not to be written to.

        Raises:
            DeviceError: out of memory.
        """
        keys = [_key(model, canvas) for canvas in canvases]
        embeddings: dict[str, torch.Tensor] = {}
        missing: dict[str, np.ndarray] = {}
        for key, canvas in zip(keys, canvases, strict=True):
            if key in self._embeddings:
                self._embeddings.move_to_end(key)
                embeddings[key] = self._embeddings[key]
            else:
                missing[key] = canvas
        at_once = 1
        if model.device.type != "cpu":
            at_once = max(1, PASS_PIXELS // max(1, canvases[:1].size))
        absent = list(missing)
        for first in range(0, len(absent), at_once):
            step(len(canvases) - len(absent) + first)
            batch = absent[first : first + at_once]
            computed = _run(model, np.stack([missing[key] for key in batch]))
            self.passes += len(batch)
            for key, embedding in zip(batch, computed, strict=True):
                embeddings[key] = embedding.clone()  # a view would keep the whole batch in memory
                self._add(key, embeddings[key])
        return [embeddings[key] for key in keys]

    def _add(self, key: str, embedding: torch.Tensor) -> None:
        """Keep an embedding (C, h, w), and drop others until the limit holds."""
        self._embeddings[key] = embedding
        total = self.bytes
        while total > self._limit:
            total -= self._embeddings.popitem(last=False)[1].nbytes


def _key(model: SamModel, canvas: np.ndarray) -> str:
    """Hash a canvas (side, side) and the encoder that embeds it."""
    digest = hashlib.sha256(f"{model.encoder_identity} {canvas.shape} {canvas.dtype}".encode())
    digest.update(np.ascontiguousarray(canvas))
    return digest.hexdigest()


@torch.no_grad()  # and not inference_mode: a decoder may be trained on these
def _run(model: SamModel, canvases: np.ndarray) -> torch.Tensor:
    """Encode canvases (n, side, side) to embeddings (n, C, h, w), float16 on the CPU.

    What float16 loses is far below what computing in bfloat16 does.
    """
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
    """Cut (n, c, rows * side, columns * side) to (n * rows * columns, c, side, side)."""
    cut = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _joined(windows: torch.Tensor, rows: int) -> torch.Tensor:
    """Join windows (n, c, side, side), cut by `_windows`, to images of rows x rows windows."""
    grid = windows.unflatten(0, (-1, rows, rows)).permute(0, 3, 1, 4, 2, 5)
    return grid.flatten(4, 5).flatten(2, 3)
