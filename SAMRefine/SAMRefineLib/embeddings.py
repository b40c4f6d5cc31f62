# SPDX-License-Identifier: Apache-2.0
"""SAM's image embeddings, one encoder pass for each canvas ever."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .models import SamModel


def encode(model: SamModel, canvases: torch.Tensor) -> torch.Tensor:
    """The encoder on canvases, in whatever precision and gradient mode the caller has set.

    Args:
        canvases: (n, side, side) pixels (`pixels.to_pixels`) on the model's device. The official
            encoders need sides of `model.canvas`; a small SAM takes any multiple of its window,
            for training too.

    Returns:
        (n, C, side / patch, side / patch).
    """
    raise NotImplementedError


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

    @property
    def bytes(self) -> int:
        """Of the embeddings held in memory."""
        raise NotImplementedError

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
        raise NotImplementedError

    def clear(self) -> None:
        """Forget what is in memory."""
        raise NotImplementedError
