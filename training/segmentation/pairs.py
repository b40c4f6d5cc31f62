# SPDX-License-Identifier: Apache-2.0
"""Training on several views of every window: style variants and contrast (Chen et al. 2025).

All views of a window show one anatomy, under one spatial augmentation; each has its own intensity
augmentation and its own look:

    random_convolution off    the window, and a restyled slice of it
    otherwise                 the window under SRC, that again with other draws, and, where
                              `pairs.styled` is given, a restyled slice of it

Where a window has no restyled slice, SRC stands in for it. The loss is the mean of the views'
segmentation losses, plus NT-Xent between the views' bottlenecks.

Restyled slices were made of a scan's own slices. A window is laid into the plane of the nearest
one that is no further off than a slice is thick, and is then augmented within that plane.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.resampling import look_up, sample

from ..augment.degradation import degraded
from ..augment.regions import random_looks
from ..augment.spatial import (
    SpatialDraw,
    augmented_intensities,
    augmented_window,
    draw_spatial,
    transformed_points,
)
from ..data.cases import PreparedCase, draw_window
from ..data.dataset import Case, Dataset
from ..engine import fit
from ..engine.config import OptimisationConfig, PairsConfig, TrainingConfig
from ..engine.losses import segmentation_loss
from ..style.slices import (
    SliceSet,
    file_sha256,
    manifest_sha256,
    read_manifest,
    read_picture,
    read_slices,
)
from .contrast import Projection, nt_xent


@dataclass(frozen=True, eq=False)
class RestyledSlice:
    """One slice of a scan in all its styles.

    Attributes:
        geometry: of the pictures, (columns, rows, 1); its K is as thick as the scan's slices.
        pictures: uint8 (styles, rows, columns).
        values: what 0 and 255 stand for: HU for CT, anything for MR.
    """

    geometry: Geometry
    pictures: torch.Tensor
    values: tuple[float, float]


@dataclass(frozen=True, eq=False)
class RestyledScan:
    """The restyled slices of one scan, all of them parallel.

    Attributes:
        normal: (3,) RAS, across the slices.
        places: (n,) mm of each along the normal.
    """

    normal: np.ndarray
    places: np.ndarray
    slices: tuple[RestyledSlice, ...]


@dataclass(frozen=True, eq=False)
class RestyledSet:
    """The restyled slices of one folder.

    Attributes:
        name: folder and SHA-256 of its manifest; a checkpoint is known by it.
        scans: by the name of their case.
    """

    name: str
    scans: dict[str, RestyledScan]


@dataclass(frozen=True, eq=False)
class Views:
    """A batch.

    Attributes:
        images: (V, N, 1, K, J, I) normalised, before random convolution.
        labels: (N, K, J, I) int64, of all views.
        convolved: (V, N) bool, the views that random convolution gives their look.
    """

    images: torch.Tensor
    labels: torch.Tensor
    convolved: torch.Tensor


class PairNetwork(nn.Module):
    """A U-Net and, where there is contrast, the projection of its bottleneck."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.unet = UNet(config.network)
        self.projection = None
        if config.pairs.contrast:
            self.projection = Projection(config.network.channels[-1], config.pairs.projection)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, 1, K, J, I) -> logits (N, classes, K, J, I) and projected (N, D, K', J', I')."""
        features = self.unet.encode(x)
        projected = self.projection(features[-1]) if self.projection else None
        return self.unet.decode(features), projected


def open_restyled(
    config: TrainingConfig, dataset: Dataset, training: Sequence[Case]
) -> tuple[RestyledSet, ...]:
    """Check that `config.pairs` can be trained, and read the restyled slices of training cases.

    Raises:
        ConfigError: settings that do not go together.
        DatasetError: a folder without restyled slices of these cases, or one whose files changed,
            or that was made of other scans or other labels.
    """
    pairs = config.pairs
    if pairs.styled and not pairs.use:
        raise ConfigError("pairs.styled has no effect without pairs.use=true; give both.")
    if pairs.use and pairs.contrast and config.optimisation.batch < 2:
        raise ConfigError(
            "Contrast needs other slices to compare with; choose an optimisation.batch of 2 or "
            "more, or pairs.contrast=0."
        )
    if pairs.styled and config.grid.size[2] > 1:
        raise ConfigError(
            "Restyled slices need windows of one slice; choose a preset such as icm, or a "
            f"grid.size with 1 at its end, not {config.grid.size}."
        )
    return tuple(_read_set(Path(folder), dataset, training) for folder in pairs.styled)


def train(
    config: TrainingConfig,
    rule: IntensityRule,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    run_folder: Path,
    *,
    restyled: Sequence[RestyledSet] = (),
    accelerator: Accelerator,
    start: dict[str, torch.Tensor] | None = None,
    validated: Callable[[nn.Module, fit.Progress], None] = lambda average, progress: None,
    **arguments: Any,  # noqa: ANN401 - of `fit.fit`
) -> tuple[fit.Progress, dict[str, torch.Tensor]]:
    """Train on pairs; takes and gives what `fit.train` does, the weights being the U-Net's.

    Args:
        restyled: from `open_restyled`.

    Raises:
        TrainingError, CheckpointError: see `fit.train`.
    """
    recipe, pairs, device = config.optimisation, config.pairs, accelerator.device
    torch.manual_seed(config.seed)
    network = PairNetwork(config).to(device)
    if start:
        network.unet.load_state_dict(start)
    optimiser = fit.make_optimiser(recipe, network, network.unet.kernels())

    def loss(model: nn.Module, views: Views, generator: torch.Generator) -> torch.Tensor:
        with accelerator.autocast():
            looks = convolved(views, config, generator)
            looks = torch.stack([degraded(v, config.degradation, generator) for v in looks])
        logits, projected = model(looks.flatten(0, 1))
        targets = fit.output_labels(views.labels, config.network.classes)
        return pair_loss(logits, projected, targets, recipe, pairs)

    progress, weights = fit.fit(
        config,
        network,
        optimiser,
        run_folder,
        (*training, *restyled),
        validation,
        draw=lambda generator: draw_views(training, restyled, config, rule, generator, device),
        loss=loss,
        validate=lambda average: fit.validation_scores(
            average.unet, validation, config, rule, accelerator
        ),
        accelerator=accelerator,
        validated=lambda average, state: validated(average.unet, state),
        **arguments,
    )
    unet = "unet."
    return progress, {
        name.removeprefix(unet): value for name, value in weights.items() if name.startswith(unet)
    }


def pair_loss(
    logits: torch.Tensor,
    projected: torch.Tensor | None,
    labels: torch.Tensor,
    recipe: OptimisationConfig,
    pairs: PairsConfig,
) -> torch.Tensor:
    """Mean of the views' segmentation losses, plus the weighted contrast (Chen et al. 2025).

    Args:
        logits: (V * N, classes, K, J, I), view after view.
        projected: (V * N, D, K', J', I'); None: no contrast.
        labels: (N, K, J, I) int64, of all views.
    """
    by_view = logits.unflatten(0, (-1, len(labels)))
    losses = [segmentation_loss(v, labels, recipe.dice, recipe.cross_entropy) for v in by_view]
    mean = torch.stack(losses).mean()
    if projected is None:
        return mean
    contrast = nt_xent(projected.unflatten(0, (-1, len(labels))), pairs.temperature)
    return mean + pairs.contrast * contrast


def draw_views(
    cases: Sequence[PreparedCase],
    restyled: Sequence[RestyledSet],
    config: TrainingConfig,
    rule: IntensityRule,
    generator: torch.Generator,
    device: torch.device,
) -> Views:
    """Augmented, normalised views of random windows, before random convolution."""
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
    """(V, N, 1, K, J, I): the views with random convolution where it is due.

    Its mode is the configuration's; "smoothed", the method, where that is "off".
    """
    where = views.convolved
    if not where.any():
        return views.images
    mode = "smoothed" if config.random_convolution == "off" else config.random_convolution
    labels = views.labels.expand(len(where), *views.labels.shape)[where]
    looks = random_looks(views.images[where], labels, mode, config.regions, generator)
    return views.images.index_put((where,), looks)


def nearest_slice(
    case: str, window: Geometry, restyled: Sequence[RestyledSet], generator: torch.Generator
) -> RestyledSlice | None:
    """A slice of the case no further from the window's middle than a slice is thick, or None.

    The thickness is the larger one of the window's and the slice's. Of several sets one is drawn.
    """
    near = []
    for scan in (one.scans[case] for one in restyled if case in one.scans):
        away = np.abs(scan.normal @ window.centre - scan.places)
        nearest = scan.slices[int(away.argmin())]
        if away.min() <= max(window.spacing[2], nearest.geometry.spacing[2]):
            near.append(nearest)
    return near[int(torch.randint(len(near), (), generator=generator))] if near else None


def into_plane(window: Geometry, plane: Geometry, grid: GridSpec) -> Geometry:
    """The window moved and turned the shortest way into a picture's plane.

    Raises:
        DatasetError: the plane crosses the window's at more than 45 degrees.
    """
    normal, own = _normal(plane), window.direction[:, 2]
    normal = normal if normal @ own > 0 else -normal
    if normal @ own < np.sqrt(0.5):
        raise DatasetError(
            "The restyled slices lie across the network's slices; prepare them with another "
            "prepare.axis, or choose grid.axes=slices."
        )
    v = np.cross(own, normal)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    turn = np.eye(3) + cross + cross @ cross / (1 + normal @ own)
    centre = window.centre + normal * (normal @ (plane.centre - window.centre))
    return grid.placed(centre, turn @ window.direction)


def in_plane(draw: SpatialDraw) -> SpatialDraw:
    """The part of a spatial transform that does not leave the window's slice."""
    matrix = np.eye(3)
    matrix[:2, :2] = draw.matrix[:2, :2]
    control = draw.control.clone()
    control[2] = 0
    return SpatialDraw(matrix, draw.translation * [1, 1, 0], control)


def styled_window(
    restyled: RestyledSlice,
    window: Geometry,
    draw: SpatialDraw,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """(1, 1, J, I) one of the styles, drawn, on a transformed window in its plane."""
    style = int(torch.randint(len(restyled.pictures), (), generator=generator))
    lower, upper = restyled.values
    picture = restyled.pictures[style, None, None].float() * ((upper - lower) / 255) + lower
    where = transformed_points(window, restyled.geometry, draw, device)
    lookup = look_up(where, restyled.geometry.shape)
    return sample(picture, lookup, outside=float(picture.min()))


def _normal(plane: Geometry) -> np.ndarray:
    """Unit normal (RAS) of a picture's plane."""
    normal = np.cross(plane.direction[:, 0], plane.direction[:, 1])
    return normal / np.linalg.norm(normal)


def _read_set(folder: Path, dataset: Dataset, training: Sequence[Case]) -> RestyledSet:
    found = read_slices(folder)
    if not found.source:
        raise DatasetError(
            f"{folder} holds no restyled slices; pairs.styled takes folders of srcsm style swap."
        )
    if found.labels != dataset.labels:
        raise DatasetError(
            f"The slices of {folder} have the labels {found.labels}, {dataset.name} has "
            f"{dataset.labels}; restyle slices of this dataset."
        )
    source = read_manifest(folder / found.source)
    for case in training:
        if case.name in source.cases and source.cases[case.name] != [
            file_sha256(case.image),
            file_sha256(case.labels),
        ]:
            raise DatasetError(
                f"{folder} was made of another {case.name} than that of {dataset.name}; prepare "
                "and restyle its slices anew."
            )
    wanted = {case.name for case in training} & source.cases.keys()
    by_slice: dict[tuple[str, str], list] = {}
    for s in found.kept():
        if s.case in wanted:
            by_slice.setdefault((s.case, s.source), []).append(s)
    if not by_slice:
        raise DatasetError(
            f"{folder} has no slice of a training case that was not set aside; see its check.json."
        )
    slices: dict[str, list[RestyledSlice]] = {}
    for (case, _), styles in by_slice.items():
        slices.setdefault(case, []).append(_restyled_slice(found, styles, source))
    name = f"{folder.name} {manifest_sha256(found)}"
    return RestyledSet(name, {case: _scan(tuple(parts)) for case, parts in slices.items()})


def _scan(slices: tuple[RestyledSlice, ...]) -> RestyledScan:
    normal = _normal(slices[0].geometry)
    return RestyledScan(normal, np.array([normal @ s.geometry.centre for s in slices]), slices)


def _restyled_slice(found: SliceSet, styles: list, source: SliceSet) -> RestyledSlice:
    affine = np.array(styles[0].affine).reshape(4, 4)
    pictures = np.stack([read_picture(found, s.image) for s in styles])
    window = source.settings["window"] if source.modality == "CT" else (0.0, 255.0)
    return RestyledSlice(
        Geometry((found.size, found.size, 1), affine), torch.from_numpy(pictures), tuple(window)
    )
