# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training: augmented windows, views of pairs, validation slices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.network import UNet

from ..augment.degradation import degraded
from ..augment.random_convolution import MODES, random_convolution
from ..augment.regions import partition, region_looks
from ..data.cases import PreparedCase
from ..plots import draw_slice, save
from .config import TrainingConfig
from .pairs import convolved, draw_views
from .restyled import RestyledSet
from .training import case_windows, draw_batch, output_labels


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
    """Draw all views of the first windows of a training on pairs."""
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
    """Draw truth and prediction in the window of a validation case with the most foreground."""
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


@torch.no_grad()
def worst_preview(
    path: Path,
    network: UNet,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
) -> None:
    """Draw truth and prediction in the worst slice of the validation cases.

    Of each case, the window with the most foreground is searched for the slice with the lowest Dice
    of all its foreground together.
    """
    device = next(network.parameters()).device

    def worst_slice(case: PreparedCase) -> tuple[float, str, list[np.ndarray]]:
        windows = case_windows(case, config.grid, device)
        image, labels = max(windows, key=lambda pair: int((pair[1] > 0).sum()))
        image, labels = normalise(image[None], rule), output_labels(labels, config.network.classes)
        prediction = network(image)[0].argmax(0)
        overlap = ((prediction == labels) & (labels > 0)).sum((1, 2))
        total = (prediction > 0).sum((1, 2)) + (labels > 0).sum((1, 2))
        dice = torch.where(total > 0, 2 * overlap / total, 1.0)
        k = int(dice.argmin())
        arrays = [x[k].cpu().numpy() for x in (image[0, 0].float(), labels, prediction)]
        return float(dice[k]), f"{case.name}, slice {k}", arrays

    dice, place, (image, labels, prediction) = min(map(worst_slice, cases), key=lambda one: one[0])
    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    draw_slice(left, image, labels, f"{place}, truth")
    draw_slice(right, image, prediction, f"prediction, Dice {dice:.3f}")
    save(figure, path)
