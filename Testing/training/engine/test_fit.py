# SPDX-License-Identifier: Apache-2.0
"""The training loop: stops that leave no trace, the rules of a step, and validation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from checkpoints import assert_same, differs, last, stop_after
from training_runs import train

from srcsm_training.engine import fit, run_folder
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.engine.config import with_overrides
from srcsm_training.engine.losses import segmentation_losses
from srcsm_training.segmentation import training
from srcsm_training.segmentation.config import OptimisationConfig
from SRCSMSegmenterLib.network import UNet

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def segmentation_loss(*arguments):
    return sum(segmentation_losses(*arguments).values())


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
    assert [row["step"] for row in resumed.curve] == [1, 2, 3, 4, 5, 6]
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
    monkeypatch.setattr(training, "segmentation_losses", nan_at_first)
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
    monkeypatch.setattr(training, "segmentation_losses", nan_at_first)
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

    monkeypatch.setattr(training, "segmentation_losses", nan_after_three)
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
        training, "segmentation_losses", lambda x, *rest: segmentation_loss(_Poison.apply(x), *rest)
    )
    with pytest.raises(fit.TrainingError, match="not finite in the 4 steps up to step 3:"):
        train(tiny.config(steps=20), cases, tmp_path)


def test_a_gradient_that_is_not_finite_spoils_no_weights(monkeypatch, tmp_path, cases):
    calls = []

    def poisoned_at_second(logits, *rest):
        calls.append(1)
        return segmentation_loss(_Poison.apply(logits) if len(calls) == 2 else logits, *rest)

    monkeypatch.setattr(training, "segmentation_losses", poisoned_at_second)
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

    monkeypatch.setattr(training, "segmentation_losses", loss)
    progress, _ = train(tiny.config(steps=3), cases, tmp_path)
    second = 0.99 * 0.9 + 0.01 * 0.5
    assert [row["loss"] for row in progress.curve] == pytest.approx(
        [0.9, second, 0.99 * second + 0.01 * 0.1]
    )


def test_every_part_of_the_loss_has_a_curve_of_its_own(monkeypatch, tmp_path, cases):
    values = iter([(0.5, 0.25), (1.0, 0.75)])

    def losses(logits, *_):
        zero = logits.sum() * 0
        return {name: zero + value for name, value in zip("ab", next(values), strict=True)}

    monkeypatch.setattr(training, "segmentation_losses", losses)
    first, second = train(tiny.config(steps=2), cases, tmp_path)[0].curve
    assert (first["loss"], first["loss_a"], first["loss_b"]) == (0.75, 0.5, 0.25)
    assert second["loss_a"] == pytest.approx(0.99 * 0.5 + 0.01 * 1.0)
    assert second["loss"] == pytest.approx(second["loss_a"] + second["loss_b"])


def test_parts_of_the_loss_are_means_over_the_accumulated_passes(monkeypatch, tmp_path, cases):
    values = iter([1.0, 2.0])
    monkeypatch.setattr(
        training, "segmentation_losses", lambda x, *_: {"a": x.sum() * 0 + next(values)}
    )
    [row] = train(tiny.config(steps=1, accumulation=2), cases, tmp_path)[0].curve
    assert [row["loss"], row["loss_a"]] == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize(("steps", "every"), [(6, 1), (250, 2), (5000, 50), (50_000, 50)])
def test_a_curve_has_a_row_at_least_every_hundredth_of_the_steps(steps, every):
    assert fit.log_every(steps) == every


def test_a_preview_that_a_kill_came_before_is_drawn_when_the_run_goes_on(tmp_path, cases):
    """The checkpoint of a step is written first; the network of the preview is the same."""
    drawn = []

    def killed(average, progress):
        raise KeyboardInterrupt

    def keep(average, progress):
        drawn.append((progress.step, {k: v.clone() for k, v in average.state_dict().items()}))

    config = replace(tiny.config(steps=4), checkpoint_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(config, cases, tmp_path / "parts", preview=killed)
    train(config, cases, tmp_path / "parts", preview=keep)
    resumed = list(drawn)
    drawn.clear()
    train(config, cases, tmp_path / "whole", preview=keep)
    assert [step for step, _ in resumed] == [step for step, _ in drawn] == [2, 4]
    for (_, one), (_, other) in zip(resumed, drawn, strict=True):
        assert_same(one, other)
