# SPDX-License-Identifier: Apache-2.0
"""A SAM that finds what looks like the middle of its box; picture_tasks.py puts it into a worker.

The real engine and worker, but for what a trained SAM would know: embeddings are pictures, 16
values a patch, and a mask is what is about as bright as the middle of the box.
"""

import torch
from torch.nn import functional as F

from SAMRefineLib.sam.models import SamModel, build_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from SAMRefineLib.sam.small_sam import SmallSamConfig

ALIKE = 0.3
SIZES = SmallSamConfig(
    canvas=256,
    window=128,
    patch=8,
    embed_dim=8,
    depth=1,
    heads=1,
    prompt_dim=16,
    decoder_heads=2,
    decoder_mlp=16,
)


class Pictures:
    """In place of the embedding cache."""

    def __init__(self) -> None:
        self.passes, self._seen = 0, set()

    def embed(self, model, canvases, step=lambda done: None):
        found = []
        for done, canvas in enumerate(canvases):
            if canvas.tobytes() not in self._seen:
                step(done)
                self.passes += 1
                self._seen.add(canvas.tobytes())
            fine = F.avg_pool2d(torch.from_numpy(canvas)[None], model.patch // 4)
            found.append(F.pixel_unshuffle(fine, 4))
        return found


def decode(model, parts, prompts, corners):
    """Logits; points in the organ add a disc, those beside it take one away."""
    pictures = F.pixel_shuffle(parts, 4)[:, 0]
    found = []
    for number, (picture, box) in enumerate(zip(pictures, prompts.boxes, strict=True)):
        rows = torch.arange(picture.shape[0])[:, None] + 0.5
        columns = torch.arange(picture.shape[1]) + 0.5
        x0, y0, x1, y1 = box * 4 / model.patch
        inside = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
        away = ((2 * columns - x0 - x1) / (x1 - x0)) ** 2 + ((2 * rows - y0 - y1) / (y1 - y0)) ** 2
        middle = picture[away < 0.3] if (away < 0.3).any() else picture[inside]
        median = middle.median()
        alike = max(ALIKE, 4 * float((middle - median).abs().median()))
        logits = torch.where(inside, 6 * (1 - abs(picture - median) / alike), -6.0)
        if prompts.points is not None:
            for point, label in zip(
                prompts.points[number], prompts.point_labels[number], strict=True
            ):
                x, y = point * 4 / model.patch
                disc = (columns - x) ** 2 + (rows - y) ** 2 < 9
                if label >= 0:
                    logits = torch.where(disc, 12 * label - 6, logits)
        found.append(logits)
    return torch.stack(found), torch.full((len(found),), 0.9)


def save(folder):
    """A SAM folder for these tasks."""
    torch.manual_seed(5)
    sam = SamModel(build_sam("small", SIZES), "picture", "small", SRCSM, SIZES)
    save_sam(folder, sam, "# Card", "None")
    return str(folder)
