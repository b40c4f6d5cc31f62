# SPDX-License-Identifier: Apache-2.0
"""Training of the segmentation network: batches, loss and validation for `engine.fit`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from SRCSMSegmenterLib.field_of_view import covering_centres, scan_extent
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample

from ..augment.degradation import degraded
from ..augment.regions import random_looks
from ..augment.sequences import SEQUENCES, as_sequence
from ..augment.spatial import augmented_intensities, augmented_window, cropped, draw_spatial
from ..data.cases import PreparedCase, draw_window
from ..engine.fit import Batch, Losses, fit
from ..engine.limits import Limits
from ..engine.losses import segmentation_losses
from ..engine.progress import Progress, mean_dice
from ..engine.run_folder import Run
from .config import OptimisationConfig, TrainingConfig

Weights = dict[str, torch.Tensor]
Look = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""See `validation_dice`."""


def train(
    run: Run,
    rule: IntensityRule,
    training: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    *,
    start: Weights | None = None,
    preview: Callable[[UNet, Progress], None] = lambda network, progress: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> tuple[Progress, Weights]:
    """Train the U-Net of the run's `TrainingConfig` until its last step or a limit.

    Args:
        rule: the source's intensity rule.
        training, validation: cases from `prepare_cases`; validation may be empty.
        start: weights at the first step; None: random ones.
        preview: called after every validation with the averaged network, on every process.

    Returns:
        The progress, and the weights to keep; see `fit`.

    Raises:
        TrainingError, CheckpointError: see `fit`.
    """
    config, accelerator = run.config, run.accelerator
    recipe = config.optimisation
    torch.manual_seed(config.seed)
    network = UNet(config.network).to(accelerator.device)
    if start:
        network.load_state_dict(start)

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        images, labels = batch
        with accelerator.autocast():
            looks = random_looks(
                images, labels, config.random_convolution, config.regions, generator
            )
            looks = degraded(looks, config.degradation, generator)
        targets = output_labels(labels, config.network.classes)
        return segmentation_losses(model(looks), targets, recipe.dice, recipe.cross_entropy)

    def validate(network: UNet) -> dict[str, list[float]]:
        return validation_scores(network, validation, config, rule, accelerator, run.labels)

    progress = fit(
        run,
        network,
        make_optimiser(recipe, network, network.kernels()),
        draw=lambda generator: draw_batch(training, config, rule, generator, accelerator.device),
        loss=loss,
        validate=validate if validation else None,
        preview=preview if validation else lambda network, progress: None,
        limits=limits,
    )
    return progress, network.state_dict()


def make_optimiser(
    recipe: OptimisationConfig, network: nn.Module, kernels: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make Adam with L2 on the kernels, or AdamW with weight decay on all parameters."""
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2
        )
    others = [p for p in network.parameters() if not any(p is kernel for kernel in kernels)]
    return torch.optim.Adam(
        [{"params": kernels, "weight_decay": recipe.l2}, {"params": others}],
        lr=recipe.learning_rate,
    )


def output_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Replace labels that are no outputs, from `classes` on, by background.

    Args:
        labels: (N, K, J, I) or (K, J, I) integers.
    """
    return labels.masked_fill(labels >= classes, 0)


def draw_batch(
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw augmented, normalised windows, before random convolution.

    Returns:
        Images (batch, 1, K, J, I) float32 and labels (batch, K, J, I) int64 on `device`.
    """
    images, labels = [], []
    for _ in range(config.optimisation.batch):
        case = cases[int(torch.randint(len(cases), (), generator=generator))]
        window = draw_window(case, config.grid, config.data.foreground, generator)
        draw = draw_spatial(config.augmentation, generator)
        image, label = augmented_window(
            case.image,
            case.labels,
            case.geometry,
            window,
            draw,
            case.outside,
            device,
        )
        image, label = cropped(image, label, case.outside, config.augmentation, generator)
        images.append(image)
        labels.append(label)
    windows = torch.stack(images)
    return augmented_intensities(windows, rule, config.augmentation, generator), torch.stack(labels)


def validation_scores(
    network: UNet,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    accelerator: Accelerator,
    names: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Compute `validation_dice` and, if the training draws regions, that under other looks as well.

    Weights that hold under random looks of the source hold in other domains too, which the source
    as it is does not tell (after PALETTE): "randomised". Those of a CT's `SEQUENCES` are reported.

    Args:
        names: of the labels 1, 2, ...

    Returns:
        Kind of look -> Dice per label; "dice" is that of the cases as they are.
    """
    score = partial(validation_dice, network, cases, config, rule, accelerator)
    scores = {"dice": score()}
    if config.regions.share and config.random_convolution != "off":
        everywhere = replace(config.regions, share=1.0)

        def randomise(image: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            mode = config.random_convolution
            return random_looks(image[None], labels[None], mode, everywhere, generator)[0]

        scores["randomised"] = score(randomise)
        if rule.modality == "CT":
            for name, intensities in SEQUENCES.items():
                look = partial(as_sequence, names=names, rule=rule, intensities=intensities)
                scores[name] = score(lambda image, labels, _, look=look: look(image, labels))
    return scores


@torch.no_grad()
def validation_dice(
    network: UNet,
    cases: Sequence[PreparedCase],
    config: TrainingConfig,
    rule: IntensityRule,
    accelerator: Accelerator,
    look: Look = lambda image, labels, generator: image,
) -> list[float]:
    """Compute `mean_dice` of the foreground on the network's grid, without augmentation.

    Args:
        look: changes the intensities of every window; it gets the normalised image (1, K, J, I),
            its labels (K, J, I) and a generator that is seeded by the case.
    """
    classes = config.network.classes
    sums = torch.zeros(len(cases), 2, classes, device=accelerator.device)
    for index in range(accelerator.process_index, len(cases), accelerator.num_processes):
        generator = torch.Generator().manual_seed(index)
        for image, labels in case_windows(cases[index], config.grid, accelerator.device):
            image = look(normalise(image[None], rule)[0], labels, generator)[None]
            labels = output_labels(labels, classes)
            with accelerator.autocast():
                prediction = network(image)[0].argmax(0)
            for row, chosen in ((0, labels[prediction == labels]), (1, prediction), (1, labels)):
                sums[index, row] += torch.bincount(chosen.flatten(), minlength=classes)
    return mean_dice(sums, accelerator)[1:]


def case_windows(
    case: PreparedCase, grid: GridSpec, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (image (1, K, J, I), labels (K, J, I)) of the windows that cover a case."""
    scan = scan_extent(case.geometry, grid)
    for centre in covering_centres(case.body, scan, grid, overlap=0.0):
        window = grid.placed(centre, case.directions)
        where = points(index_map(window, case.geometry), window.size, device)
        lookup = look_up(where, case.geometry.shape)
        image = sample(case.image, lookup, outside=case.outside)
        yield image, sample(case.labels, lookup, mode="nearest").long()[0]
