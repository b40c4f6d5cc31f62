# SPDX-License-Identifier: Apache-2.0
"""Training on several views of every window: style variants and contrast (Chen et al. 2025).

All views of a window show one anatomy, under one spatial augmentation; each has its own intensity
augmentation and its own look:

    random_convolution off    the window, and a restyled slice of it
    otherwise                 the window under SRC, that again with other draws, and, where
                              `pairs.styled` is given, a restyled slice of it

If a window has no restyled slice, SRC stands in for it. The loss is the mean of the views'
segmentation losses, plus NT-Xent between the views' bottlenecks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.network import UNet

from ..augment.degradation import degraded
from ..augment.regions import random_looks
from ..augment.spatial import augmented_intensities, augmented_window, draw_spatial
from ..data.cases import PreparedCase, draw_window
from ..engine.fit import Losses, fit
from ..engine.limits import Limits
from ..engine.losses import segmentation_losses
from ..engine.progress import Progress
from ..engine.run_folder import Run
from .config import OptimisationConfig, PairsConfig, TrainingConfig
from .contrast import Projection, nt_xent
from .restyled import RestyledSet, in_plane, into_plane, nearest_slice, styled_window
from .training import Weights, make_optimiser, output_labels, validation_scores


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of views.

    Attributes:
        images: (V, N, 1, K, J, I) normalised, before random convolution.
        labels: (N, K, J, I) int64, of all views.
        convolved: (V, N) bool, the views that random convolution gives their look.
    """

    images: torch.Tensor
    labels: torch.Tensor
    convolved: torch.Tensor


class PairNetwork(nn.Module):
    """A U-Net and, if there is contrast, the projection of its bottleneck."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.unet = UNet(config.network)
        self.projection = None
        if config.pairs.contrast:
            self.projection = Projection(config.network.channels[-1], config.pairs.projection)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (N, 1, K, J, I) to logits (N, classes, K, J, I) and projected (N, D, K', J', I')."""
        features = self.unet.encode(x)
        projected = self.projection(features[-1]) if self.projection else None
        return self.unet.decode(features), projected


def train(
    run: Run,
    rule: IntensityRule,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    *,
    restyled: Sequence[RestyledSet] = (),
    start: Weights | None = None,
    preview: Callable[[UNet, Progress], None] = lambda network, progress: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> tuple[Progress, Weights]:
    """Train on pairs; `training.train` describes the arguments and the result.

    Args:
        restyled: from `open_restyled`.

    Returns:
        The progress, and the weights of the U-Net.

    Raises:
        TrainingError, CheckpointError: see `fit`.
    """
    config, accelerator = run.config, run.accelerator
    recipe, device = config.optimisation, accelerator.device
    torch.manual_seed(config.seed)
    network = PairNetwork(config).to(device)
    if start:
        network.unet.load_state_dict(start)

    def loss(model: nn.Module, views: Views, generator: torch.Generator) -> Losses:
        with accelerator.autocast():
            looks = convolved(views, config, generator)
            looks = torch.stack([degraded(v, config.degradation, generator) for v in looks])
        logits, projected = model(looks.flatten(0, 1))
        targets = output_labels(views.labels, config.network.classes)
        return pair_losses(logits, projected, targets, recipe, config.pairs)

    def validate(network: PairNetwork) -> dict[str, list[float]]:
        return validation_scores(network.unet, validation, config, rule, accelerator, run.labels)

    def preview_unet(network: PairNetwork, progress: Progress) -> None:
        if validation:
            preview(network.unet, progress)

    progress = fit(
        run,
        network,
        make_optimiser(recipe, network, network.unet.kernels()),
        draw=lambda generator: draw_views(training, restyled, config, rule, generator, device),
        loss=loss,
        validate=validate if validation else None,
        preview=preview_unet,
        limits=limits,
    )
    return progress, network.unet.state_dict()


def pair_losses(
    logits: torch.Tensor,
    projected: torch.Tensor | None,
    labels: torch.Tensor,
    recipe: OptimisationConfig,
    pairs: PairsConfig,
) -> dict[str, torch.Tensor]:
    """Compute the means of the views' segmentation losses, and the weighted contrast.

    Args:
        logits: (V * N, classes, K, J, I), view after view.
        projected: (V * N, D, K', J', I'); None: no contrast.
        labels: (N, K, J, I) int64, of all views.

    Returns:
        Those of `segmentation_losses` and "nt_xent"; their sum is the loss.
    """
    by_view = logits.unflatten(0, (-1, len(labels)))
    losses = [segmentation_losses(v, labels, recipe.dice, recipe.cross_entropy) for v in by_view]
    means = {name: torch.stack([view[name] for view in losses]).mean() for name in losses[0]}
    if projected is not None:
        contrast = nt_xent(projected.unflatten(0, (-1, len(labels))), pairs.temperature)
        means["nt_xent"] = pairs.contrast * contrast
    return means


def draw_views(
    cases: Sequence[PreparedCase],
    restyled: Sequence[RestyledSet],
    config: TrainingConfig,
    rule: IntensityRule,
    generator: torch.Generator,
    device: torch.device,
) -> Views:
    """Draw augmented, normalised views of random windows, before random convolution."""
    windows, styled, labels = [], [], []
    for _ in range(config.optimisation.batch):
        case = cases[int(torch.randint(len(cases), (), generator=generator))]
        window = draw_window(case, config.grid, config.data.foreground, generator)
        draw = draw_spatial(config.augmentation, generator)
        chosen = nearest_slice(case.name, window, restyled, generator)
        if chosen:
            window, draw = into_plane(window, chosen.geometry, config.grid), in_plane(draw)
        image, label = augmented_window(
            case.image,
            case.labels,
            case.geometry,
            window,
            draw,
            case.outside,
            device,
        )
        windows.append(image)
        labels.append(label)
        styled.append(chosen and styled_window(chosen, window, draw, generator, device))
    source = torch.stack(windows)
    extra = torch.stack([s if s is not None else w for s, w in zip(styled, windows, strict=True)])
    missing = [s is None for s in styled]
    everywhere, nowhere = [True] * len(windows), [False] * len(windows)
    if config.random_convolution == "off":
        views, looks = [source, extra], [nowhere, missing]
    elif restyled:
        views, looks = [source, source, extra], [everywhere, everywhere, missing]
    else:
        views, looks = [source, source], [everywhere, everywhere]
    images = [augmented_intensities(v, rule, config.augmentation, generator) for v in views]
    return Views(torch.stack(images), torch.stack(labels), torch.tensor(looks, device=device))


def convolved(views: Views, config: TrainingConfig, generator: torch.Generator) -> torch.Tensor:
    """Apply random convolution to the views that are due for it; return all (V, N, 1, K, J, I).

    Its mode is the configuration's; if that is "off", "smoothed" (the method).
    """
    where = views.convolved
    if not where.any():
        return views.images
    mode = "smoothed" if config.random_convolution == "off" else config.random_convolution
    labels = views.labels.expand(len(where), *views.labels.shape)[where]
    looks = random_looks(views.images[where], labels, mode, config.regions, generator)
    return views.images.index_put((where,), looks)
