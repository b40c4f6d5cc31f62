# SPDX-License-Identifier: Apache-2.0
"""Training of the U-Net: batches, validation, and that every setting counts."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from checkpoints import assert_same, differs, last, stop_after
from training_runs import RULE, train

from srcsm_training.augment.degradation import DegradationConfig
from srcsm_training.augment.regions import RegionsConfig
from srcsm_training.augment.sequences import SEQUENCES
from srcsm_training.augment.spatial import AugmentationConfig
from srcsm_training.data.cases import PreparedCase, prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.engine import fit
from srcsm_training.engine.config import with_overrides
from srcsm_training.engine.progress import mean_score
from srcsm_training.segmentation import training
from srcsm_training.segmentation.config import OptimisationConfig, TrainingConfig
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.network import NetworkConfig, UNet

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_weight_decay_of_adamw_acts_on_all_parameters():
    network = UNet(tiny.config().network)
    recipe = tiny.config(optimiser="adamw", l2=0.25, learning_rate=2e-3).optimisation
    optimiser = training.make_optimiser(recipe, network, network.kernels())
    (group,) = optimiser.param_groups
    assert type(optimiser) is torch.optim.AdamW
    assert (group["weight_decay"], group["lr"]) == (0.25, 2e-3)
    assert len(group["params"]) == len(list(network.parameters()))


def test_the_optimiser_gets_rate_and_l2_of_the_recipe(monkeypatch, tmp_path, cases):
    made, rates = [], []
    original = torch.optim.Adam

    class Recorded(original):
        def __init__(self, groups, lr):
            super().__init__(groups, lr=lr)
            made.append(self)

        def step(self, *arguments):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*arguments)

    monkeypatch.setattr(fit.torch.optim, "Adam", Recorded)
    config = tiny.config(schedule="cosine", steps=4, learning_rate=2e-3, l2=0.25)
    train(config, cases, tmp_path)
    expected = [fit.learning_rate(config.optimisation, step) for step in range(4)]
    assert rates == [[rate] * 2 for rate in expected]
    kernels, others = made[0].param_groups
    assert kernels["weight_decay"] == 0.25
    assert others["weight_decay"] == 0
    network = UNet(config.network)
    assert len(kernels["params"]) == len(network.kernels()) == 6
    assert {p.dim() for p in kernels["params"]} == {5}
    assert sum(p.dim() == 5 for p in others["params"]) == 1  # the head's
    total = sum(len(group["params"]) for group in (kernels, others))
    assert total == len(list(network.parameters()))


CHANGES = [
    "data.foreground=1.0",
    "augmentation.translation=0.0",
    "augmentation.rotation=[0.2, 0.35, 0.35]",
    "augmentation.scale=0.0",
    "augmentation.axis_scale=0.0",
    "augmentation.elastic=0.0",
    "augmentation.control_points=6",
    "augmentation.shift=0.0",
    "augmentation.contrast=0.0",
    "augmentation.strong=1.0",
    "optimisation.batch=1",
    "optimisation.accumulation=2",
    "optimisation.learning_rate=2e-3",
    "optimisation.l2=0.1",
    "optimisation.dice=mean",
    "optimisation.dice=batch",
    "optimisation.optimiser=adamw",
    "optimisation.cross_entropy=1.0",
    "optimisation.clip_factor=0.01",
    "optimisation.clip_start=0.001",
    "random_convolution=off",
    "random_convolution=global",
    "random_convolution=hard",
    "seed=1",
    "network.dropout=0.0",
    "network.norm=instance",
    "network.norm=switchable",
    "network.pool_by=max",
    "network.decoder=[5]",
    "network.kernel=[3, 3, 1]",
    "network.pooling=[2, 2, 1]",
    "grid.size=[16, 16, 6]",
    "grid.spacing=[3.0, 2.75, 5.0]",
]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, cases):
    folder = tmp_path_factory.mktemp("two")
    train(replace(tiny.config(steps=2), validate_every=0), cases, folder)
    return last(folder)


@pytest.mark.parametrize("override", CHANGES)
def test_every_setting_changes_the_training(tmp_path, cases, two_steps, override):
    config = with_overrides(replace(tiny.config(steps=2), validate_every=0), [override])
    train(config, cases, tmp_path)
    assert differs(last(tmp_path)["network"], two_steps["network"])


@pytest.mark.parametrize("override", ["optimisation.ema=0.05", "optimisation.clip_rate=0.5"])
def test_settings_that_show_beside_the_weights(tmp_path, cases, two_steps, override):
    config = with_overrides(replace(tiny.config(steps=2), validate_every=0), [override])
    train(config, cases, tmp_path)
    state = last(tmp_path)
    if "ema" in override:
        assert differs(state["average"], two_steps["average"])
    else:
        assert state["progress"]["gradient_norm"] != two_steps["progress"]["gradient_norm"]


def constant_network(label):
    """A network that sees one label everywhere."""
    network = UNet(NetworkConfig(classes=3, channels=(2, 2))).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.eye(3)[label])
    return network


def test_validation_dice_by_hand(cases):
    """Over all windows of a case together; then the mean over cases; nan for an absent label."""
    config, accelerator = tiny.config(), Accelerator(cpu=True)
    case = cases[1][0]
    windows = list(training.case_windows(case, config.grid, "cpu"))
    assert len(windows) == 2  # 72 mm in windows of 48 mm
    thin = replace(config.grid, size=(16, 16, 4))
    assert len(list(training.case_windows(case, thin, "cpu"))) == 3  # side by side
    labels = torch.stack([labels for _, labels in windows])
    liver = int((labels == 1).sum())
    expected = 2 * liver / (liver + labels.numel())
    dice = training.validation_dice(constant_network(1), [case], config, RULE, accelerator)
    assert dice == pytest.approx([expected, 0])
    assert expected > 0.02
    half = replace(case, labels=case.labels.where(case.labels != 1, 0))
    dice = training.validation_dice(constant_network(0), [half], config, RULE, accelerator)
    assert math.isnan(dice[0])
    assert dice[1] == 0
    both = training.validation_dice(constant_network(1), [case, half], config, RULE, accelerator)
    assert both[0] == pytest.approx(expected / 2)


def test_case_windows_show_the_case(cases):
    """A window as large as the case holds its labels' volumes, each with its intensities."""
    case = cases[1][0]
    grid = GridSpec((50, 44, 24), (1.0, 1.0, 3.0))
    for image, labels in training.case_windows(case, grid, "cpu"):
        assert image.shape == (1, 24, 44, 50)
        assert labels.shape == (24, 44, 50)
        assert labels.dtype == torch.int64
        for label in (1, 2):
            volume = float((case.labels == label).sum() * 2.5 * 2 * 3)
            assert float((labels == label).sum() * 3) == pytest.approx(volume, rel=0.03)
            median = float(case.image[case.labels == label].float().median())
            assert float(image[0][labels == label].median()) == pytest.approx(median, abs=10)


def test_draw_batch_is_seeded_normalised_and_labelled(cases):
    config = tiny.config(batch=3)

    def batch():
        generator = torch.Generator().manual_seed(4)
        return training.draw_batch(cases[0], config, RULE, generator, torch.device("cpu"))

    images, labels = batch()
    assert images.shape == (3, 1, 8, 16, 16)
    assert labels.shape == (3, 8, 16, 16)
    assert -1 <= images.min() < images.max() <= 1
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    assert all(map(torch.equal, (images, labels), batch()))
    assert not torch.equal(images[0], images[1])


def test_a_trivial_phantom_is_learnt_in_seconds(tmp_path):
    """One bright and one middling ball on dark ground, always the same."""
    k, j, i = np.indices((16, 16, 16))
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[(k - 7) ** 2 + (j - 4) ** 2 + (i - 5) ** 2 < 14] = 1
    labels[(k - 8) ** 2 + (j - 11) ** 2 + (i - 10) ** 2 < 20] = 2
    image = np.choose(labels, (-100, 60, 240)).astype(np.float16)
    grid = GridSpec((16, 16, 16), (2.0, 2.0, 2.0))
    geometry = grid.placed(np.zeros(3), np.eye(3))
    body = SimpleNamespace(directions=np.eye(3), low=np.full(3, -16.0), high=np.full(3, 16.0))
    case = PreparedCase(
        "ball",
        torch.from_numpy(image)[None],
        torch.from_numpy(labels)[None],
        geometry,
        body,
        (np.zeros(3), np.zeros(3)),
        np.eye(3),
        [],
    )
    config = TrainingConfig(
        grid=grid,
        network=NetworkConfig(classes=3, channels=(8, 12), norm="instance", dropout=0.0),
        augmentation=AugmentationConfig(0.0, (0.0, 0.0, 0.0), 0.0, 0.0, 0.0),
        optimisation=OptimisationConfig(
            steps=60, learning_rate=1e-2, precision="fp32", dice="mean", ema=0.9
        ),
        validate_every=20,
        random_convolution="off",
    )
    progress, weights = train(config, ([case], [case]), tmp_path)
    losses = [row["loss"] for row in progress.curve]
    assert losses == sorted(losses, reverse=True)
    assert progress.best_dice > 0.8
    assert min(progress.curve[-1]["dice"]) > 0.8
    network = UNet(config.network).eval()
    network.load_state_dict(weights)
    prediction = network(normalise(case.image[None].float(), RULE))[0].argmax(0)
    assert (prediction.numpy() == labels).mean() > 0.97


REGIONS = RegionsConfig(share=0.7)


def test_a_stopped_training_with_regions_goes_on_to_the_same_bits(tmp_path, cases):
    config = replace(tiny.config(), regions=REGIONS, degradation=DegradationConfig(chance=0.5))
    whole, _ = train(config, cases, tmp_path / "whole")
    train(config, cases, tmp_path / "parts", stop_requested=stop_after(3))
    resumed, _ = train(config, cases, tmp_path / "parts")
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    assert whole.best_dice == resumed.best_dice


def test_with_regions_the_best_weights_hold_under_random_looks_too(tmp_path, cases):
    state, _ = train(replace(tiny.config(), regions=REGIONS), cases, tmp_path)
    validations = [row for row in state.curve if "dice" in row]
    assert all(len(row["dice"]) == len(row["randomised"]) == 2 for row in validations)
    assert state.best_dice == max(map(mean_score, validations))
    row = {"dice": [0.8, math.nan], "randomised": [0.4, 0.6], "loss": 9.0}
    assert mean_score(row) == pytest.approx(0.65)
    plain, _ = train(tiny.config(), cases, tmp_path / "plain")
    assert all("randomised" not in row for row in plain.curve)


def test_randomised_dice_is_the_same_at_every_validation(cases):
    config = replace(tiny.config(), regions=REGIONS)
    tiny.forget_accelerator()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    network = UNet(config.network).eval()
    first, again = (
        training.validation_scores(network, cases[1], config, RULE, accelerator) for _ in range(2)
    )
    assert first == again
    assert first["randomised"] != first["dice"]


def test_a_ct_is_validated_under_the_looks_of_other_sequences_too(cases):
    tiny.forget_accelerator()
    accelerator, network = Accelerator(cpu=True), UNet(tiny.config().network).eval()
    names = ("liver", "spleen")
    for share, rule, kinds in (
        (0.7, RULE, {"dice", "randomised", *SEQUENCES}),
        (0.7, IntensityRule("MR"), {"dice", "randomised"}),
        (0.0, RULE, {"dice"}),
    ):
        config = replace(tiny.config(), regions=RegionsConfig(share=share))
        scores = training.validation_scores(network, cases[1], config, rule, accelerator, names)
        assert scores.keys() == kinds
        assert {len(values) for values in scores.values()} == {2}


def test_other_labels_are_background_to_the_network_and_no_windows_are_drawn_around_them(
    folder, cache
):
    cases = read_dataset(folder).cases[:1]
    (plain,) = prepare_cases(cases, RULE, 1.0, tiny.config().grid, cache)
    (ordered,) = prepare_cases(
        cases, RULE, 1.0, tiny.config().grid, cache, order=(0, 2, 1), outputs=1
    )
    assert torch.equal(ordered.labels == 1, plain.labels == 2)
    assert torch.equal(ordered.labels == 2, plain.labels == 1)
    assert len(ordered.foreground) == 1
    i, j, k = ordered.foreground[0][0]
    assert plain.labels[0, k, j, i] == 2
    targets = training.output_labels(ordered.labels, 2)
    assert torch.equal(targets == 1, plain.labels == 2)
    assert targets.max() == 1
