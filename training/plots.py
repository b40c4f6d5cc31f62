# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training: augmented slices, validation slices, curves. Written whole or not."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.network import UNet

from .augment.degradation import degraded
from .augment.random_convolution import MODES, random_convolution
from .augment.regions import partition, region_looks
from .data.cases import PreparedCase
from .engine.config import TrainingConfig
from .engine.fit import case_windows, draw_batch
from .segmentation.pairs import RestyledSet, convolved, draw_views

COLOURS = ("#e06c5a", "#f2c14e", "#4ea5d9", "#8e6bbf", "#5cb85c", "#d977b8", "#8c8c8c")


def draw_slice(
    axes: Axes, image: np.ndarray, labels: np.ndarray | None, title: str, aspect: float = 1.0
) -> None:
    """One slice with label contours, anterior up and the patient's right on the left.

    Args:
        image, labels: (J, I) of a grid in patient axes (I to the right, J to anterior).
        aspect: J spacing over I spacing.
    """
    image = image[:, ::-1]
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    if labels is not None:
        for label in np.unique(labels[labels > 0]):
            colour = COLOURS[(int(label) - 1) % len(COLOURS)]
            mask = (labels == label)[:, ::-1]
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def augmentation_preview(
    path: Path,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    rows: int = 3,
) -> None:
    """Draw the first windows of a training, under each mode of random convolution and by region.

    With `regions.share`, each row goes on with the regions of its window and six looks of them.
    """
    regions = 7 if config.regions.share and config.random_convolution != "off" else 0
    figure = Figure(figsize=(2.4 * (len(MODES) + regions), 2.2 * rows))
    grid = figure.subplots(rows, len(MODES) + regions, squeeze=False)
    for row in range(rows):
        generator = torch.Generator().manual_seed(config.seed + row)
        images, labels = draw_batch(cases, config, rule, generator, torch.device("cpu"))
        image, label = images[:1], labels[:1]
        k = int((label[0] > 0).sum((1, 2)).argmax())
        for axes, mode in zip(grid[row], MODES, strict=False):
            looks = random_convolution(image, label, mode, generator)
            contours = label[0, k].numpy() if mode == "off" else None
            draw_slice(axes, looks[0, 0, k].numpy(), contours, f"{mode}, slice {k}")
        for column, axes in enumerate(grid[row, len(MODES) :]):
            parts = partition(image, label, config.regions, generator)
            looks = region_looks(image, parts, config.random_convolution, config.regions, generator)
            looks = degraded(looks, config.degradation, generator)[0, 0, k]
            draw_slice(axes, (looks if column else parts[0, k]).numpy(), None, "regions")
    save(figure, path)


def pairs_preview(
    path: Path,
    cases: Sequence[PreparedCase],
    restyled: Sequence[RestyledSet],
    config: TrainingConfig,
    rule: IntensityRule,
    rows: int = 6,
) -> None:
    """All views of the first windows of a training on pairs."""
    generator = torch.Generator().manual_seed(config.seed)
    views = draw_views(cases, restyled, config, rule, generator, torch.device("cpu"))
    images = convolved(views, config, generator)
    count, rows = len(images), min(rows, images.shape[1])
    figure = Figure(figsize=(2.4 * count, 2.2 * rows))
    grid = figure.subplots(rows, count, squeeze=False)
    for n, row in enumerate(grid):
        k = int((views.labels[n] > 0).sum((1, 2)).argmax())
        for view, axes in enumerate(row):
            restyled_here = restyled and view == count - 1 and not views.convolved[view, n]
            title = "restyled" if restyled_here else "SRC" if views.convolved[view, n] else "source"
            draw_slice(axes, images[view, n, 0, k].numpy(), views.labels[n, k].numpy(), title)
    save(figure, path)


@torch.no_grad()
def validation_preview(
    path: Path, network: UNet, case: PreparedCase, config: TrainingConfig, rule: IntensityRule
) -> None:
    """The window of a validation case with the most foreground: truth beside prediction."""
    device = next(network.parameters()).device
    windows = case_windows(case, config.grid, device)
    image, labels = max(windows, key=lambda pair: int((pair[1] > 0).sum()))
    image = normalise(image[None], rule)
    prediction = network(image)[0].argmax(0)
    ks = (labels > 0).sum((1, 2)).argsort(descending=True)[:: max(1, len(labels) // 6)][:3]
    figure = Figure(figsize=(3 * len(ks), 5))
    grid = figure.subplots(2, len(ks), squeeze=False)
    for column, k in enumerate(sorted(ks.tolist())):
        for row, (chosen, title) in enumerate(((labels, "truth"), (prediction, "prediction"))):
            draw_slice(
                grid[row, column],
                image[0, 0, k].float().cpu().numpy(),
                chosen[k].cpu().numpy(),
                f"{case.name}, slice {k}, {title}",
            )
    save(figure, path)


def curve_picture(path: Path, rows: Sequence[dict], labels: Sequence[str]) -> None:
    """Loss, and validation Dice per label, over steps (rows of curve.csv)."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="black")
    left.set(xlabel="step", ylabel="loss (running mean)")
    validated = [row for row in rows if row["dice"] != ""]
    for label, colour in zip(labels, COLOURS * len(labels), strict=False):
        values = [row[f"dice_{label}"] for row in validated]
        right.plot([row["step"] for row in validated], values, "o-", color=colour, label=label)
    right.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))
    if validated:
        right.legend(fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name and rename it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, bbox_inches="tight")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
