# SPDX-License-Identifier: Apache-2.0
"""Training: the rules of the loop, stops that leave no trace, and what a run folder keeps."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator

from srcsm_training.augment.degradation import DegradationConfig
from srcsm_training.augment.regions import RegionsConfig
from srcsm_training.augment.spatial import AugmentationConfig
from srcsm_training.data.cases import PreparedCase, prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.engine import fit, run_folder
from srcsm_training.engine.accelerator import Computing
from srcsm_training.engine.checkpoint import CheckpointError, load_checkpoint
from srcsm_training.engine.config import to_dict, with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.losses import segmentation_loss
from srcsm_training.engine.progress import mean_score
from srcsm_training.engine.run_folder import RunResult, case_identity, curve_row, open_run
from srcsm_training.engine.source_domain import intensity_rule, open_source, split
from srcsm_training.segmentation import run, training
from srcsm_training.segmentation.config import DataConfig, OptimisationConfig, TrainingConfig
from srcsm_training.segmentation.run import make_accelerator, run_training
from SRCSMSegmenterLib.errors import ConfigError, DatasetError, DeviceError
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.intensity import IntensityRule, normalise
from SRCSMSegmenterLib.models.bundle import load_bundle, verify_bundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet

RULE = IntensityRule("CT", window=(-125, 275))
SILENT = Limits(say=lambda line: None)


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cases(folder, cache):
    """Training: b and c. Validation: a."""
    first, *others = prepare_cases(read_dataset(folder).cases, RULE, 1.0, tiny.config().grid, cache)
    return others, [first]


def train(
    config, cases, folder, *, mixed_precision="no", cpu=True, scaler=None, preview=None, **limits
):
    tiny.forget_accelerator()
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    accelerator.scaler = scaler or accelerator.scaler
    names = [[case.name for case in group] for group in cases]
    opened = open_run(
        folder,
        config,
        Computing(accelerator, "asked for"),
        identity=case_identity(config, *names),
        tell=lambda line: None,
        labels=list(tiny.LABELS)[1:],
    )
    preview = preview or (lambda network, progress: None)
    return training.train(opened, RULE, *cases, preview=preview, limits=Limits(**limits))


def stop_after(*steps):
    """Stops after the given numbers of steps, counted over all calls."""
    done = iter(range(1, 1000))
    return lambda: next(done) in steps


def last(folder):
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same(first, second, where="checkpoint"):
    """Equal to the bit, but for the seconds a step took."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first.keys() - {"seconds"}:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for n, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{n}]")
    else:
        assert first == second or (first != first and second != second), where


def differs(first, second):
    return any(not torch.equal(first[name], second[name]) for name in first)


# --- stop and go on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stops", [(2,), (1, 3, 4)])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, cases, precision, stops):
    """Dropout, SRC, EMA, Adam, clipping and the curve; stops between and at validations."""
    config = tiny.config(precision=precision)
    mixed = {"fp32": "no", "bf16": "bf16"}[precision]
    whole, weights = train(config, cases, tmp_path / "whole", mixed_precision=mixed)
    assert whole.step == 6
    requested = stop_after(*stops)
    for stop in stops:
        stopped, _ = train(
            config, cases, tmp_path / "parts", mixed_precision=mixed, stop_requested=requested
        )
        assert stopped.step == stop
    resumed, again = train(config, cases, tmp_path / "parts", mixed_precision=mixed)
    assert resumed.step == 6
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    assert_same(weights, again)
    assert [row["step"] for row in resumed.curve] == [2, 4, 6]
    assert differs(last(tmp_path / "whole")["network"], last(tmp_path / "whole")["average"])


def test_the_scale_of_half_precision_goes_on_where_it_was(tmp_path, cases):
    """A scaler that grows at its fifth step, with a stop after the second."""

    def a_scaler():
        return torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)

    train(tiny.config(), cases, tmp_path / "whole", scaler=a_scaler())
    assert last(tmp_path / "whole")["scaler"]["scale"] == 128
    stop = stop_after(2)
    train(tiny.config(), cases, tmp_path / "parts", scaler=a_scaler(), stop_requested=stop)
    assert last(tmp_path / "parts")["scaler"]["scale"] == 64
    train(tiny.config(), cases, tmp_path / "parts", scaler=a_scaler())
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))


def test_a_training_without_a_scale_goes_on_in_half_precision(tmp_path, cases):
    train(tiny.config(), cases, tmp_path, stop_requested=stop_after(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    state, _ = train(tiny.config(precision="bf16"), cases, tmp_path, scaler=scaler)
    assert state.step == 6
    assert last(tmp_path)["scaler"]["scale"] == 64


@pytest.mark.needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_training_on_a_gpu_goes_on_to_nearly_the_same(tmp_path, cases, precision):
    config = tiny.config(precision=precision)
    gpu = {"cpu": False, "mixed_precision": {"fp32": "no"}.get(precision, precision)}
    train(config, cases, tmp_path / "whole", **gpu)
    for stop in (1, 3):
        train(config, cases, tmp_path / "parts", **gpu, stop_requested=stop_after(stop))
    train(config, cases, tmp_path / "parts", **gpu)
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert whole["progress"]["step"] == parts["progress"]["step"] == 6
    assert whole["scaler"] == parts["scaler"]
    assert whole["progress"]["loss"] == pytest.approx(parts["progress"]["loss"], rel=1e-3)
    for part in ("network", "average", "best"):
        for name, value in whole[part].items():
            difference = (value - parts[part][name]).norm()
            assert difference <= 0.01 * value.norm() + 0.01, (part, name)


def test_nothing_of_the_global_random_state_matters(tmp_path, cases):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    train(tiny.config(), cases, tmp_path / "one")
    torch.manual_seed(2)
    torch.rand(99)
    np.random.seed(2)  # noqa: NPY002
    train(tiny.config(), cases, tmp_path / "two")
    assert_same(last(tmp_path / "one"), last(tmp_path / "two"))


def test_another_seed_is_another_training(tmp_path, cases):
    train(tiny.config(), cases, tmp_path / "one")
    train(replace(tiny.config(), seed=1), cases, tmp_path / "two")
    assert differs(last(tmp_path / "one")["network"], last(tmp_path / "two")["network"])


def test_a_training_without_time_stops_after_a_step_and_can_be_resumed(tmp_path, cases):
    config = replace(tiny.config(), checkpoint_minutes=1000.0)
    progress, _ = train(config, cases, tmp_path, max_minutes=0.0)
    assert progress.step == 1
    assert last(tmp_path)["progress"]["step"] == 1
    progress, _ = train(config, cases, tmp_path)
    assert progress.step == 6


def test_a_finished_training_is_not_trained_on(tmp_path, cases):
    first, weights = train(tiny.config(), cases, tmp_path)
    before = last(tmp_path)
    steps = []
    again, same = train(tiny.config(), cases, tmp_path, report=steps.append)
    assert steps == []
    assert_same(vars(first), vars(again))
    assert_same(weights, same)
    assert_same(before, last(tmp_path))


def test_checkpoints_are_written_in_time(monkeypatch, tmp_path, cases):
    saved = []
    monkeypatch.setattr(
        run_folder, "save_checkpoint", lambda path, state: saved.append(state["progress"]["step"])
    )
    config = replace(tiny.config(), checkpoint_minutes=1000.0)
    train(config, cases, tmp_path)
    assert saved == [6]
    saved.clear()
    train(replace(config, checkpoint_minutes=0.0), cases, tmp_path)
    assert saved == [1, 2, 3, 4, 5, 6]


def test_the_time_between_checkpoints_may_change_on_resuming(tmp_path, cases):
    train(tiny.config(), cases, tmp_path, stop_requested=stop_after(1))
    progress, _ = train(replace(tiny.config(), checkpoint_minutes=9.0), cases, tmp_path)
    assert progress.step == 6


@pytest.mark.parametrize(
    "override", ["seed=9", "optimisation.learning_rate=1e-4", "random_convolution=off"]
)
def test_another_configuration_does_not_resume(tmp_path, cases, override):
    train(tiny.config(), cases, tmp_path, stop_requested=stop_after(1))
    before = last(tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        train(with_overrides(tiny.config(), [override]), cases, tmp_path)
    assert_same(before, last(tmp_path))


def test_other_cases_do_not_resume(tmp_path, cases):
    train(tiny.config(), cases, tmp_path, stop_requested=stop_after(1))
    before = last(tmp_path)
    learnt, validation = cases
    for others in ((learnt[:1], validation), (validation, learnt[:1]), (learnt, [])):
        with pytest.raises(CheckpointError, match="another set of cases"):
            train(tiny.config(), others, tmp_path)
    assert_same(before, last(tmp_path))


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path, cases):
    path = tmp_path / "checkpoints" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="damaged"):
        train(tiny.config(), cases, tmp_path)
    assert path.read_bytes() == b"half of it"


KILLED = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {testing!r})
import tiny
from dataclasses import replace
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation.run import run_training
torch.set_num_threads(1)
run_training(
    Path({data!r}),
    replace(tiny.config(steps=12), checkpoint_minutes=0.0),
    Path({output!r}),
    device="cpu",
    cache=Path({cache!r}),
    limits=Limits(
        say=lambda line: None, report=lambda state: print(state.step, flush=True)
    ),
)
"""


def start(folder, cache, output):
    code = KILLED.format(
        testing=str(Path(__file__).resolve().parents[2] / "helpers"),
        data=str(folder),
        output=str(output),
        cache=str(cache),
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path, folder, cache):
    """kill -9, three times, as soon as a step is reported, which is before it is saved."""
    with start(folder, cache, tmp_path / "whole") as process:
        assert process.communicate()[0].split() == [str(n) for n in range(1, 13)]
    seen = []
    for until in (3, 6, 7):
        with start(folder, cache, tmp_path / "parts") as process:
            for line in process.stdout:
                seen.append(int(line))
                if seen[-1] >= until:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "parts" / "model").exists()
    with start(folder, cache, tmp_path / "parts") as process:
        rest = process.communicate()[0].split()
    assert process.returncode == 0
    assert 1 < int(rest[0]) <= 8  # it did not start anew
    assert rest[-1] == "12"
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    whole, parts = (load_bundle(tmp_path / name / "model") for name in ("whole", "parts"))
    assert_same(whole.weights, parts.weights)
    steps = [row["step"] for row in csv.DictReader((tmp_path / "parts" / "curve.csv").open())]
    assert steps == ["2", "4", "6", "8", "10", "12"]


# --- the rules of a step


def test_a_nan_loss_draws_src_anew_for_the_same_windows(monkeypatch, tmp_path, cases):
    looks = []

    def recorded(*arguments):
        looks.append(arguments[0].clone())
        return arguments[0] + len(looks)

    losses = []

    def nan_at_first(logits, *rest):
        losses.append(segmentation_loss(logits, *rest))
        return losses[-1] * (math.nan if len(losses) in (1, 2, 5) else 1)

    monkeypatch.setattr(training, "random_looks", recorded)
    monkeypatch.setattr(training, "segmentation_loss", nan_at_first)
    progress, weights = train(tiny.config(steps=3, nan_redraws=2), cases, tmp_path)
    assert progress.step == 3
    assert len(looks) == 3 + 3
    assert torch.equal(looks[0], looks[1])
    assert torch.equal(looks[0], looks[2])
    assert not torch.equal(looks[2], looks[3])
    assert not torch.equal(looks[3], looks[4])
    assert torch.equal(looks[4], looks[5])
    assert all(value.isfinite().all() for value in weights.values())


def test_redraws_are_fresh_draws(monkeypatch, tmp_path, cases):
    drawn = []
    original = training.random_looks

    def recorded(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    def nan_at_first(logits, *rest):
        return segmentation_loss(logits, *rest) * (math.nan if len(drawn) == 1 else 1)

    monkeypatch.setattr(training, "random_looks", recorded)
    monkeypatch.setattr(training, "segmentation_loss", nan_at_first)
    train(tiny.config(steps=1), cases, tmp_path)
    assert len(drawn) == 2
    assert not torch.allclose(*drawn, atol=1e-3)


def test_a_loss_that_stays_nan_ends_the_training_with_the_checkpoint_before(
    monkeypatch, tmp_path, cases
):
    calls = []

    def nan_after_three(logits, *rest):
        calls.append(1)
        return segmentation_loss(logits, *rest) * (math.nan if len(calls) > 3 else 1)

    monkeypatch.setattr(training, "segmentation_loss", nan_after_three)
    config = replace(tiny.config(nan_redraws=7), checkpoint_minutes=0.0)
    with pytest.raises(fit.TrainingError, match="not finite at step 3 after 7 redraws"):
        train(config, cases, tmp_path)
    assert len(calls) == 3 + 1 + 7
    assert last(tmp_path)["progress"]["step"] == 3


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(_context, x):
        return x.clone()

    @staticmethod
    def backward(_context, gradient):
        return gradient * math.nan


def test_gradients_that_are_never_finite_end_the_training(monkeypatch, tmp_path, cases):
    monkeypatch.setattr(fit, "MOST_SKIPPED", 3)
    monkeypatch.setattr(
        training, "segmentation_loss", lambda x, *rest: segmentation_loss(_Poison.apply(x), *rest)
    )
    with pytest.raises(fit.TrainingError, match="not finite in the 4 steps up to step 3:"):
        train(tiny.config(steps=20), cases, tmp_path)


def test_a_gradient_that_is_not_finite_spoils_no_weights(monkeypatch, tmp_path, cases):
    calls = []

    def poisoned_at_second(logits, *rest):
        calls.append(1)
        return segmentation_loss(_Poison.apply(logits) if len(calls) == 2 else logits, *rest)

    monkeypatch.setattr(training, "segmentation_loss", poisoned_at_second)
    norms = []
    train(
        tiny.config(steps=4),
        cases,
        tmp_path,
        report=lambda progress: norms.append(progress.gradient_norm),
    )
    assert all(value.isfinite().all() for value in last(tmp_path)["network"].values())
    assert norms[1] == norms[0]
    assert norms[2] != norms[1]


@pytest.mark.parametrize(("start", "norms"), [(10.0, (3.0, 80.0, 20.0)), (0.1, (7.0, 0.2, 0.3))])
def test_gradients_are_clipped_at_a_multiple_of_their_running_mean(
    monkeypatch, tmp_path, cases, start, norms
):
    limits, means = [], []
    drawn = iter(norms)

    def clip(_parameters, limit):
        limits.append(limit)
        return torch.tensor(next(drawn), dtype=torch.float64)

    monkeypatch.setattr(fit.torch.nn.utils, "clip_grad_norm_", clip)
    train(
        tiny.config(steps=3, clip_start=start, clip_factor=4.0, clip_rate=0.1),
        cases,
        tmp_path,
        report=lambda progress: means.append(progress.gradient_norm),
    )
    # By hand: the limit is 4 x the mean, and the mean moves by 0.1 towards min(norm, limit).
    expected = {
        10.0: ((40.0, 37.2, 48.348 / 1.08 * 0.9), (9.3, 12.09, 12.881)),
        0.1: ((0.4, 0.52, 0.548), (0.13, 0.137, 0.1533)),
    }[start]
    assert means == pytest.approx(expected[1])
    assert limits == pytest.approx([4 * mean for mean in (start, *expected[1][:2])])
    assert limits[:2] == pytest.approx(expected[0][:2])


def test_weight_decay_of_adamw_acts_on_all_parameters():
    network = UNet(tiny.config().network)
    recipe = tiny.config(optimiser="adamw", l2=0.25, learning_rate=2e-3).optimisation
    optimiser = training.make_optimiser(recipe, network, network.kernels())
    (group,) = optimiser.param_groups
    assert type(optimiser) is torch.optim.AdamW
    assert (group["weight_decay"], group["lr"]) == (0.25, 2e-3)
    assert len(group["params"]) == len(list(network.parameters()))


def test_clipping_really_shortens_the_step(monkeypatch, tmp_path, cases):
    """A tiny running mean, plain steps in place of Adam's: the weights move by the limit."""

    class PlainSteps(torch.optim.SGD):
        def __init__(self, groups, lr):
            super().__init__([{"params": g["params"]} for g in groups], lr=lr)

    monkeypatch.setattr(fit.torch.optim, "Adam", PlainSteps)
    config = tiny.config(steps=1, clip_start=1e-4, clip_factor=2.0, learning_rate=1.0, ema=0.0)
    torch.manual_seed(config.seed)
    start = UNet(config.network).state_dict()
    train(config, cases, tmp_path)
    moved = last(tmp_path)["network"]
    squares = sum(float((moved[name] - start[name]).square().sum()) for name in start)
    assert squares**0.5 == pytest.approx(2e-4, rel=0.02)


def test_the_average_of_the_weights(tmp_path, cases):
    """By hand: decay min(0.5, (1 + step) / (10 + step)), from the first weights on."""
    seen = []

    def checkpointed(_):
        seen.append(last(tmp_path) if (tmp_path / "checkpoints").exists() else None)

    config = replace(tiny.config(steps=12, ema=0.5), checkpoint_minutes=0.0, validate_every=0)
    torch.manual_seed(config.seed)
    expected = {name: v.double() for name, v in UNet(config.network).state_dict().items()}
    train(config, cases, tmp_path, report=checkpointed)
    states = [*seen[1:], last(tmp_path)]
    for step, state in enumerate(states):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in state["network"].items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
            torch.testing.assert_close(
                state["average"][name].double(), expected[name], rtol=1e-5, atol=1e-6
            )
    assert decay == 0.5


def test_learning_rates():
    constant = OptimisationConfig(steps=1000, learning_rate=3e-4)
    assert {fit.learning_rate(constant, step) for step in (0, 5, 999)} == {3e-4}
    cosine = replace(constant, schedule="cosine")
    rates = [fit.learning_rate(cosine, step) for step in range(1000)]
    assert rates[:10] == pytest.approx([3e-5 * n for n in range(1, 11)])  # 1 % warm-up
    assert rates[10] == pytest.approx(3e-4)
    assert rates[505] == pytest.approx(1.5e-4)
    assert rates[999] < 1e-9
    assert rates[10:] == sorted(rates[10:], reverse=True)
    icm = replace(constant, schedule="icm")
    rates = [fit.learning_rate(icm, step) for step in range(1000)]
    assert rates[:100] == pytest.approx([3e-6 * n for n in range(1, 101)])  # 10 % warm-up
    assert rates[550] == pytest.approx((3e-4 + 1e-6) / 2)
    assert rates[999] == pytest.approx(1e-6, rel=1e-2)
    assert min(rates[100:]) == rates[999]
    assert rates[100:] == sorted(rates[100:], reverse=True)


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


# --- validation


def test_the_best_weights_are_those_of_the_best_validation(monkeypatch, tmp_path, cases):
    """Also where the training was stopped between the best and the last."""
    scores = iter([[0.2, 0.4], [0.9, math.nan], [0.5, 0.5], [0.8, 0.9], [0.1, 0.1]])
    monkeypatch.setattr(training, "validation_dice", lambda *_: next(scores))
    averages = {}

    def keep(average, progress):
        averages[progress.step] = {k: v.clone() for k, v in average.state_dict().items()}

    config = tiny.config(steps=10)
    train(config, cases, tmp_path, preview=keep, stop_requested=stop_after(7))
    progress, weights = train(config, cases, tmp_path, preview=keep)
    assert sorted(averages) == [2, 4, 6, 8, 10]
    assert progress.best_dice == pytest.approx(0.9)  # the mean of the labels there are
    assert_same(weights, averages[4])
    assert_same(last(tmp_path)["best"], averages[4])
    assert differs(averages[10], averages[4])


def test_a_training_ends_when_its_patience_does(monkeypatch, tmp_path, cases):
    """Two validations without a better, that is a higher, Dice; stopped and resumed meanwhile."""
    scores = iter([[0.5, 0.3], [0.4, 0.2], [0.6, 0.4], [0.5, 0.4], [0.1, 0.1], [0.9, 0.9]])
    monkeypatch.setattr(training, "validation_dice", lambda *_: next(scores))
    config = tiny.config(steps=100, patience=2)
    progress, _ = train(config, cases, tmp_path, stop_requested=stop_after(9))
    assert (progress.step, progress.finished, progress.waited) == (9, False, 1)
    progress, _ = train(config, cases, tmp_path)
    assert (progress.step, progress.finished) == (10, True)
    assert progress.best_dice == pytest.approx(0.5)
    progress, _ = train(config, cases, tmp_path)
    assert progress.step == 10


def test_without_validation_cases_the_last_average_counts(tmp_path, cases):
    progress, weights = train(tiny.config(), (cases[0], []), tmp_path)
    assert progress.best_dice == -1
    assert_same(weights, last(tmp_path)["average"])
    assert all("dice" not in row for row in progress.curve)


@pytest.mark.parametrize(("every", "steps"), [(0, [6]), (4, [4, 6]), (3, [3, 6])])
def test_validation_comes_when_due_and_at_the_end(monkeypatch, tmp_path, cases, every, steps):
    monkeypatch.setattr(training, "validation_dice", lambda *_: [0.5, 0.5])
    progress, _ = train(replace(tiny.config(), validate_every=every), cases, tmp_path)
    assert [row["step"] for row in progress.curve if "dice" in row] == steps


def test_the_running_loss_in_the_curve(monkeypatch, tmp_path, cases):
    values = iter([0.9, 0.5, 0.1])

    def loss(logits, *_):
        return logits.sum() * 0 + next(values)

    monkeypatch.setattr(training, "segmentation_loss", loss)
    progress, _ = train(tiny.config(steps=3), cases, tmp_path)
    second = 0.99 * 0.9 + 0.01 * 0.5
    assert [row["loss"] for row in progress.curve] == pytest.approx(
        [second, 0.99 * second + 0.01 * 0.1]
    )


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


# --- learning


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


# --- a run


def a_run(folder, cache, output, config=None, name=None, **limits):
    tiny.forget_accelerator()
    lines = []
    result = run_training(
        folder,
        config or tiny.config(),
        output,
        name=name,
        device="cpu",
        cache=cache,
        limits=Limits(say=lines.append, **limits),
    )
    return result, lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder, cache):
    output = tmp_path_factory.mktemp("runs") / "my-run"
    return (*a_run(folder, cache, output), output)


def test_a_run_folder_holds_what_its_docstring_promises(finished):
    result, lines, output = finished
    promised = {
        line.split()[0].rstrip(",").rstrip("/")
        for line in run.__doc__.split("\n\n")[1].splitlines()
    } | {"curve.png"}
    assert promised == {
        *("config.yaml", "environment.json", "source_histogram.json", "checkpoints/last.pt"),
        *("curve.csv", "curve.png", "tensorboard", "previews", "model"),
    }
    for name in promised:
        assert (output / name).exists(), name
    assert {p.name for p in (output / "previews").iterdir()} == {
        "augmentation.png",
        *(f"validation_{step:06d}.png" for step in (2, 4, 6)),
    }
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert list(output.rglob("*.tmp")) == []
    assert result == RunResult(6, True, result.best_dice, output / "model")
    assert any("3 cases of Dataset001_Tiny" in line for line in lines)
    assert lines[0] == "Computing on cpu (1 process) in fp32: the configuration asks for it."


def test_a_run_folder_tells_all_that_decided_it(finished, folder):
    output = finished[2]
    written = yaml.safe_load((output / "config.yaml").read_text("utf-8"))
    kept = with_overrides(tiny.config(), [])
    used = replace(kept, data=replace(kept.data, window=(-1023.0, 1024.0)))
    assert written == to_dict(used)  # the range of the images is open: the full one
    environment = json.loads((output / "environment.json").read_text("utf-8"))
    assert environment["training_cases"] == ["b", "c"]
    assert environment["validation_cases"] == ["a"]
    assert environment["dataset"] == "Dataset001_Tiny"
    assert torch.__version__.startswith(environment["packages"]["torch"].split("+")[0])
    assert {"python", "platform", "packages", "git", "command"} <= environment.keys()
    assert (environment["device"], environment["precision"]) == ("cpu", "fp32")
    assert environment["precision_reason"] == "the configuration asks for it"
    assert set(environment["git"]) in ({"commit", "modified"}, set())
    histogram = json.loads((output / "source_histogram.json").read_text("utf-8"))
    images = [tiny.phantom(n)[0].clip(-1023, 1024) for n in (1, 2)]
    interior = sum(int(((x > x.min()) & (x < x.max())).sum()) for x in images)
    assert sum(histogram["counts"]) == interior
    assert histogram["minimum"] == min(int(x.min()) for x in images)


def test_the_curve_has_a_row_per_validation(finished):
    result, _, output = finished
    rows = list(csv.DictReader((output / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    names = ["step", "loss", "learning_rate", "gradient_norm", "seconds", "dice"]
    assert list(rows[0]) == [*names, "dice_liver", "dice_spleen"]
    for row in rows:
        assert float(row["learning_rate"]) == 1e-3
        mean = (float(row["dice_liver"]) + float(row["dice_spleen"])) / 2
        assert float(row["dice"]) == pytest.approx(mean)
    assert max(float(row["dice"]) for row in rows) == pytest.approx(result.best_dice)


def test_the_exported_network_is_the_validated_one(finished, folder, cache):
    result, _, output = finished
    assert verify_bundle(result.model) == []
    bundle = load_bundle(result.model)
    description = bundle.description
    assert description.name == "my-run"
    assert [label.value for label in description.labels] == [1, 2]
    assert [label.name.lower() for label in description.labels] == ["liver", "spleen"]
    assert description.grid == tiny.config().grid
    assert description.smoothing == 1.0
    assert description.rule == IntensityRule("CT", window=(-1023.0, 1024.0))
    rows = [row for row in last(output)["progress"]["curve"] if "dice" in row]
    best = max(rows, key=lambda row: np.nanmean(row["dice"]))["dice"]
    told = description.training["validation_dice"]
    assert told == pytest.approx(dict(zip(("liver", "spleen"), best, strict=True)))
    prepared = prepare_cases(
        read_dataset(folder).cases[:1], description.rule, 1.0, description.grid, cache
    )
    dice = training.validation_dice(
        bundle.unet(), prepared, tiny.config(), description.rule, Accelerator(cpu=True)
    )
    assert dice == pytest.approx(best, abs=2e-3)  # its weights are float16
    assert bundle.histogram.to_dict() == json.loads(
        (output / "source_histogram.json").read_text("utf-8")
    )
    card = (result.model / "docs" / "README.md").read_text("utf-8")
    assert "Research use only" in card
    assert f"| liver | {best[0]:.3f} |" in card


def test_a_stopped_run_exports_nothing_and_the_same_call_finishes_it(
    tmp_path, folder, cache, finished
):
    result, _ = a_run(folder, cache, tmp_path / "my-run", stop_requested=stop_after(3))
    assert result == RunResult(3, False, result.best_dice, None)
    assert not (tmp_path / "my-run" / "model").exists()
    assert (tmp_path / "my-run" / "curve.csv").exists()
    result, _ = a_run(folder, cache, tmp_path / "my-run")
    assert result.finished
    assert result.best_dice == finished[0].best_dice
    assert_same(load_bundle(result.model).weights, load_bundle(finished[0].model).weights)
    assert_same(last(tmp_path / "my-run"), last(finished[2]))
    again, _ = a_run(folder, cache, tmp_path / "my-run", name="other")
    assert again.finished
    assert load_bundle(again.model).description.name == "other"


def test_a_run_before_its_first_validation_has_no_dice(tmp_path, folder, cache):
    result, _ = a_run(folder, cache, tmp_path, stop_requested=stop_after(1))
    assert math.isnan(result.best_dice)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_training_in_the_same_run_folder_is_refused_and_spoils_nothing(
    tmp_path, folder, cache
):
    a_run(folder, cache, tmp_path / "run", stop_requested=stop_after(2))
    before = contents(tmp_path / "run")
    others = tiny.write_dataset(tmp_path / "others", 4)
    for data, config in (
        (folder, replace(tiny.config(), seed=1)),
        (folder, replace(tiny.config(), data=replace(tiny.config().data, fold=1))),
        (others, tiny.config()),
    ):
        with pytest.raises(CheckpointError, match="choose another run folder"):
            a_run(data, cache, tmp_path / "run", config)
    assert contents(tmp_path / "run") == before


def test_a_histogram_left_by_a_run_without_checkpoint_is_not_kept(tmp_path, folder, cache):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "source_histogram.json").write_text('{"old": 1}')
    a_run(folder, cache, run_folder, stop_requested=stop_after(1))
    assert "old" not in (run_folder / "source_histogram.json").read_text("utf-8")


def test_a_label_that_no_validation_case_has_is_exported_without_a_number(tmp_path, cache):
    data = tiny.write_dataset(tmp_path / "Dataset002_NoSpleen")
    image, labels = tiny.phantom(0)
    tiny.write_case(data, "a", image, np.where(labels == 2, 0, labels))

    def blind(*_):
        return [0.25, math.nan]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "validation_dice", blind)
        result, lines = a_run(data, cache, tmp_path / "run")
    assert any("no spleen" in line for line in lines)
    assert result.best_dice == 0.25
    told = load_bundle(result.model).description.training
    assert told["validation_dice"] == {"liver": 0.25}
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert rows[0]["dice"] == "0.25"


def test_a_run_without_validation_cases(tmp_path, folder, cache):
    config = with_overrides(tiny.config(steps=2), ["data.folds=0"])
    result, _ = a_run(folder, cache, tmp_path, config)
    assert math.isnan(result.best_dice)
    assert result.finished
    assert load_bundle(result.model).description.training["validation_dice"] == {}
    assert json.loads((tmp_path / "environment.json").read_text("utf-8"))["validation_cases"] == []


def test_an_mr_dataset_gives_an_mr_network(tmp_path, cache):
    data = tiny.write_dataset(tmp_path / "Dataset003_MR", 2, "MR")
    config = with_overrides(tiny.config(steps=1), ["data.folds=2", "data.maximum_percentile=99.5"])
    result, _ = a_run(data, cache, tmp_path / "run", config)
    assert load_bundle(result.model).description.rule == IntensityRule(
        "MR", maximum_percentile=99.5
    )


def test_a_full_disk_during_training_keeps_the_checkpoint_before(
    monkeypatch, tmp_path, folder, cache
):
    a_run(folder, cache, tmp_path, stop_requested=stop_after(2))
    before = last(tmp_path)
    replace_file = os.replace

    def full(source, target):
        if str(target).endswith("last.pt"):
            raise OSError(28, "No space left on device")
        return replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("SRCSMSegmenterLib.atomic.os.replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            a_run(folder, cache, tmp_path)
    assert_same(before, last(tmp_path))
    assert a_run(folder, cache, tmp_path)[0].finished


# --- what a run is made from


def test_folds_deal_out_the_sorted_cases():
    cases = [SimpleNamespace(name=name) for name in "abcdefg"]

    def names(**data):
        config = tiny.config()
        parts = split(cases, replace(config.data, **data))
        return ["".join(case.name for case in part) for part in parts]

    assert names(folds=3, fold=0) == ["bcef", "adg"]
    assert names(folds=3, fold=1) == ["acdfg", "be"]
    assert names(folds=3, fold=2) == ["abdeg", "cf"]
    assert names(folds=0) == ["abcdefg", ""]
    assert names(validation=("a", "[ef]")) == ["bcdg", "aef"]
    with pytest.raises(ConfigError, match=r"matches data\.validation"):
        names(validation=("x*",))
    with pytest.raises(ConfigError, match="No case is left"):
        names(folds=1)
    with pytest.raises(ConfigError, match="No case is left"):
        names(validation=("*",))


def test_cases_are_chosen_by_pattern(tmp_path, folder, cache):
    config = with_overrides(tiny.config(steps=1), ["data.cases=[a, c]", "data.folds=2"])
    a_run(folder, cache, tmp_path / "run", config)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
    assert (environment["training_cases"], environment["validation_cases"]) == (["c"], ["a"])
    with pytest.raises(DatasetError, match="x"):
        a_run(folder, cache, tmp_path / "none", with_overrides(config, ["data.cases=x*"]))


def test_the_intensity_rule_of_a_source(tmp_path, folder):
    def rule(folder, *overrides):
        data = with_overrides(tiny.config(), list(overrides)).data
        source = open_source(folder, data, check=False)
        return intensity_rule(data, source.modality, source.dataset.cases)

    clipped = tiny.write_dataset(tmp_path / "clipped")
    for number, name in enumerate("abc"):
        image, labels = tiny.phantom(number)
        tiny.write_case(clipped, name, image.clip(-125, 215), labels)
    assert rule(folder) == IntensityRule("CT", window=(-1023, 1024))
    assert rule(clipped) == IntensityRule("CT", window=(-125, 215))
    alone = read_dataset(clipped).cases[:1]  # says nothing of the others
    assert intensity_rule(tiny.config().data, "CT", alone) == IntensityRule(
        "CT", window=(-1023, 1024)
    )
    assert rule(clipped, "data.window=[-100, 300]") == IntensityRule("CT", window=(-100, 300))
    assert rule(clipped, "data.modality=MR") == IntensityRule("MR")
    assert rule(clipped, "data.modality=MR", "data.maximum_percentile=99") == IntensityRule(
        "MR", maximum_percentile=99
    )


def test_devices_and_precisions_are_checked():
    with pytest.raises(DeviceError, match="cuda:9"):
        make_accelerator("cuda:9", tiny.config())
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_accelerator("cpu", tiny.config(precision="fp16"))
    tiny.forget_accelerator()
    computing = make_accelerator("cpu", tiny.config(precision="bf16"))
    assert computing.accelerator.device.type == "cpu"
    assert computing.precision == "bf16"
    for size in ((16, 16, 1), (128, 128, 2)):
        tiny.forget_accelerator()
        config = tiny.config(precision="bf16")
        flat = replace(config.network, pooling=(2, 2, 1))
        config = replace(config, grid=replace(config.grid, size=size), network=flat)
        with pytest.raises(ConfigError, match=r"optimisation\.precision=fp32"):
            make_accelerator("cpu", config)


def test_curve_rows_leave_dice_open_between_validations():
    row = {"step": 50, "loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "seconds": 0.1}
    assert curve_row(row, ["liver"])["dice_liver"] == ""
    assert curve_row(row, ["liver"])["dice"] == ""
    scored = curve_row(row | {"dice": [0.5, math.nan, 0.25]}, ["liver", "spleen", "aorta"])
    assert scored["dice"] == 0.375
    assert scored["dice_aorta"] == 0.25


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {testing!r})
import tiny
from dataclasses import replace
from srcsm_training.engine import fit
from srcsm_training.segmentation import run, training
torch.set_num_threads(1)
original = fit.train
def recorded(*arguments, **named):
    state, weights = original(*arguments, **named)
    rank = named["accelerator"].process_index
    assert named["accelerator"].num_processes == 2
    torch.save([weights, vars(state)], Path({output!r}) / f"rank{{rank}}.pt")
    return state, weights
fit.train = recorded
steps = iter(range(1, 99))
for name, stop in (("whole", 99), ("parts", 9), ("parts", 99)):
    run.run_training(
        Path({data!r}), tiny.config(), Path({output!r}) / name, device="cpu",
        cache=Path({cache!r}),
        limits=Limits(
            say=lambda line: None,
            stop_requested=lambda: next(steps) == stop and torch.distributed.get_rank() == 1,
        ),
    )
"""


@pytest.mark.slow
def test_two_processes_share_their_weights_and_differ_from_one(tmp_path, folder, cache):
    """Gloo on the CPU: whole, and stopped at step 3 by the second process alone and resumed."""
    script = tmp_path / "script.py"
    script.write_text(
        TWO_PROCESSES.format(
            testing=str(Path(__file__).resolve().parents[2] / "helpers"),
            data=str(folder),
            output=str(tmp_path),
            cache=str(cache),
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, first_state), (second, second_state) = (
        torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)
    )
    assert_same(first, second)
    assert first_state["step"] == second_state["step"] == 6
    assert first_state["best_dice"] == second_state["best_dice"]
    assert first_state["gradient_norm"] == second_state["gradient_norm"]
    assert first_state["loss"] != second_state["loss"]  # each draws its own windows
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    alone, _ = a_run(folder, cache, tmp_path / "alone")
    weights = load_bundle(alone.model).weights
    assert differs(weights, load_bundle(tmp_path / "whole" / "model").weights)


# --- regions, outputs, start weights

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
    assert all(len(row["dice"]) == len(row["randomised"]) == 2 for row in state.curve)
    assert state.best_dice == max(map(mean_score, state.curve))
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


def test_label_values_are_ordered_with_the_outputs_first():
    labels = {"liver": 1, "kidney": 2, "spleen": 3, "aorta": 4}
    assert run.label_order(labels, ()) == (0, 1, 2, 3, 4)
    assert run.label_order(labels, ("spleen", "kidney")) == (0, 3, 2, 1, 4)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [(("livr",), r'no label "livr" \(did you mean liver\?\)'), (("liver", "liver"), "twice")],
)
def test_outputs_that_cannot_be_are_named(outputs, message):
    with pytest.raises(ConfigError, match=message):
        run.label_order({"liver": 1, "spleen": 2}, outputs)


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


def test_a_network_of_a_part_of_the_labels_names_them_alone(tmp_path, folder, cache):
    config = replace(tiny.config(steps=2), data=DataConfig(folds=3, outputs=("spleen",)))
    result = run_training(folder, config, tmp_path / "run", cache=cache, limits=SILENT)
    bundle = load_bundle(result.model)
    assert [(label.name, label.value) for label in bundle.description.labels] == [("spleen", 1)]
    assert bundle.network.classes == 2
    with open(tmp_path / "run" / "curve.csv", newline="") as file:
        assert "dice_spleen" in next(csv.reader(file))


def test_a_start_gives_known_labels_their_outputs_and_new_ones_random_weights(
    tmp_path, folder, cache
):
    config = tiny.config(steps=2)
    first = run_training(folder, config, tmp_path / "a", cache=cache, limits=SILENT)
    trained = load_bundle(first.model).weights
    going_on = replace(config, start=str(first.model))
    same = run.start_weights(going_on, ["liver", "spleen"])
    assert all(torch.equal(same[name], value) for name, value in trained.items())
    more = replace(going_on, network=replace(config.network, classes=4))
    other = run.start_weights(more, ["spleen", "aorta", "liver"])
    for row, old in ((0, 0), (1, 2), (3, 1)):
        assert torch.equal(other["head.weight"][row], trained["head.weight"][old])
    assert not torch.equal(other["head.weight"][2], trained["head.weight"][2])
    one_step = replace(going_on, optimisation=tiny.config(steps=1).optimisation)
    result = run_training(folder, one_step, tmp_path / "b", cache=cache, limits=SILENT)
    moved = load_bundle(result.model).weights
    steps = max(float((moved[name] - value).abs().max()) for name, value in trained.items())
    assert 0 < steps < 0.01


def test_a_start_of_another_shape_is_refused(tmp_path, folder, cache):
    config = tiny.config(steps=1)
    first = run_training(folder, config, tmp_path / "a", cache=cache, limits=SILENT)
    wider = replace(
        config, start=str(first.model), network=replace(config.network, channels=(4, 8))
    )
    with pytest.raises(ConfigError, match="another shape"):
        run.start_weights(wider, ["liver", "spleen"])
