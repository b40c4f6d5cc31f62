# SPDX-License-Identifier: Apache-2.0
"""Tuning, ControlNet and the small base: what is trained, what is kept, and how runs go on."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import style_tiny
import tiny
import torch
from checkpoints import last
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn

from srcsm_training.engine.accelerator import accelerator_for
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.engine.fit import TrainingError
from srcsm_training.engine.limits import Limits
from srcsm_training.style import control as control_module
from srcsm_training.style import diffusion, stage
from srcsm_training.style import tune as tune_module
from srcsm_training.style.base import load_base, read_record
from srcsm_training.style.config import SamplingConfig, StageConfig, StyleConfig
from srcsm_training.style.control import (
    conditions,
    load_control,
    palette,
    slice_weights,
    train_control,
)
from srcsm_training.style.diffusion import (
    Latents,
    generate,
    noisy_latents,
)
from srcsm_training.style.slices import StyleError, read_picture, read_slices
from srcsm_training.style.small import train_base
from srcsm_training.style.small_base import NOISE
from srcsm_training.style.stage import fit_stage, open_stage
from srcsm_training.style.tune import load_tuned, tune
from srcsm_training.style.weights import check_weights
from SRCSMSegmenterLib.errors import BundleError, ConfigError, DatasetError

ON = {"device": "cpu", "limits": style_tiny.SILENT}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    torch.set_num_threads(1)
    return style_tiny.run_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def base(chain):
    return load_base(str(chain.base), say=style_tiny.silent)


def stop_at(step):
    """Limits that stop after that step."""
    seen = []
    return {
        "limits": Limits(
            stop_requested=lambda: seen[-1] == step,
            say=style_tiny.silent,
            report=lambda progress: seen.append(progress.step),
        )
    }


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# The loop


class Sum(nn.Module):
    """A parameter, and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)

    def forward(self, factors):
        return (self.value * factors).sum()


def run_fit(folder, recipe, factors=(3.0, 1.0), **changes):
    """`fit_stage` of a `Sum`; returns the model and the progress."""
    model = changes.pop("model", None) or Sum()
    opened = open_stage(
        folder,
        StyleConfig(checkpoint_minutes=99),
        recipe,
        accelerator_for("cpu", "fp32", "test"),
        identity=changes.pop("identity", {"stage": "test"}),
        tell=style_tiny.silent,
    )
    given = {
        "draw": lambda generator: torch.tensor(factors) * torch.rand((), generator=generator),
        "loss": lambda m, batch: m(batch),
        "preview": lambda step: None,
        "limits": Limits(),
        **changes,
    }
    return model, fit_stage(opened, model, **given)


RECIPE = StageConfig(steps=6, learning_rate=0.1, weight_decay=0.0, precision="fp32", clip=100.0)


def test_gradients_of_a_step_are_the_mean_over_its_passes(tmp_path, monkeypatch):
    seen = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments, **named):
            [parameter] = self.param_groups[0]["params"]
            seen.append(parameter.grad.clone())
            return super().step(*arguments, **named)

    monkeypatch.setattr(stage.torch.optim, "AdamW", Recorded)
    draws = iter([1.0, 2.0, 6.0])
    run_fit(
        tmp_path,
        replace(RECIPE, steps=1, accumulation=3),
        draw=lambda generator: torch.tensor([1.0, 10.0]) * next(draws),
    )
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], torch.tensor([3.0, 30.0]))


def test_gradients_are_clipped_and_rates_scheduled(tmp_path, monkeypatch):
    seen, rates = [], []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments, **named):
            seen.append(float(self.param_groups[0]["params"][0].grad.norm()))
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **named)

    monkeypatch.setattr(stage.torch.optim, "AdamW", Recorded)
    run_fit(tmp_path, replace(RECIPE, clip=0.5, schedule="cosine"), factors=(300.0, 100.0))
    assert seen == pytest.approx([0.5] * 6, rel=1e-4)
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, ema):
    recipe = replace(RECIPE, ema=ema, accumulation=2)
    whole, _ = run_fit(tmp_path / "whole", recipe)
    _, stopped = run_fit(tmp_path / "parts", recipe, **stop_at(2))
    assert stopped.step == 2
    parts, ended = run_fit(tmp_path / "parts", recipe)
    assert ended.step == 6
    assert torch.equal(whole.value, parts.value)
    assert torch.equal(whole.frozen, torch.tensor([5.0]))
    assert last(tmp_path / "parts")["network"].keys() == {"value"}  # what is trained
    again, _ = run_fit(tmp_path / "parts", recipe)  # finished: nothing but the result
    assert torch.equal(again.value, parts.value)


def test_the_average_is_the_average_and_is_previewed_and_kept(tmp_path):
    path, shown = [], []
    model = Sum()
    recipe = replace(RECIPE, ema=0.75, preview_every=2)
    expected = model.value.detach().clone()

    def report(progress):
        decay = min(0.75, progress.step / (9 + progress.step))
        path.append(model.value.detach().clone())
        expected.lerp_(model.value.detach(), 1 - decay)

    run_fit(
        tmp_path,
        recipe,
        model=model,
        draw=lambda generator: torch.tensor([3.0, 1.0]),
        preview=lambda step: shown.append((step, model.value.detach().clone())),
        limits=Limits(report=report),
    )
    torch.testing.assert_close(model.value.detach(), expected)
    assert [step for step, _ in shown] == [2, 4, 6]
    torch.testing.assert_close(shown[-1][1], expected)
    assert not torch.allclose(path[-1], expected)
    differences = [b - a for a, b in pairwise(path)]
    assert all(torch.all(d < 0) for d in differences)  # previews left the training alone


def test_time_that_is_up_stops_after_a_step_and_keeps_it(tmp_path):
    _, stopped = run_fit(tmp_path, RECIPE, limits=Limits(max_minutes=0))
    assert stopped.step == 1
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    assert run_fit(tmp_path, RECIPE)[1].step == 6
    assert (
        (tmp_path / "curve.csv")
        .read_text("utf-8")
        .startswith("step,loss,learning_rate,gradient_norm,seconds\n1,")
    )


def test_another_training_is_not_resumed(tmp_path):
    run_fit(tmp_path, RECIPE, **stop_at(2))
    with pytest.raises(CheckpointError, match="another stage"):
        run_fit(tmp_path, RECIPE, identity={"stage": "other"})


def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(tmp_path):
    run_fit(tmp_path, RECIPE, **stop_at(2))
    with pytest.raises(TrainingError, match="not finite at step 2"):
        run_fit(tmp_path, RECIPE, draw=lambda generator: torch.tensor([math.nan, 1.0]))
    assert run_fit(tmp_path, RECIPE)[1].step == 6


def test_precisions_that_the_device_cannot_train_in_are_refused():
    with pytest.raises(ConfigError, match=r"tune.precision=auto"):
        accelerator_for("cpu", "fp16", "tune")
    tiny.forget_accelerator()
    with pytest.raises(ConfigError, match=r"control.precision=fp32"):
        accelerator_for("cpu", "bf16", "control", 96 * 96)
    tiny.forget_accelerator()
    assert accelerator_for("cpu", "bf16", "control", 64 * 64).precision == "bf16"


# Noise, latents, sampler


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_the_published_ones(kind):
    """Against the formulas of DDPM (Ho et al. 2020) and of velocity (Salimans & Ho 2022)."""
    settings = {**NOISE, "rescale_betas_zero_snr": False, "prediction_type": kind}
    scheduler = DDPMScheduler.from_config(DDIMScheduler(**settings).config)
    latents = torch.randn((5, 4, 3, 2), generator=torch.Generator().manual_seed(9))
    noisy, times, target = noisy_latents(latents, scheduler, torch.Generator().manual_seed(1))
    replay = torch.Generator().manual_seed(1)
    noise = torch.randn(latents.shape, generator=replay)
    assert len(set(times.tolist())) == 5
    for n, t in enumerate(times.tolist()):
        signal = 1.0
        for step in range(t + 1):
            beta = (0.00085**0.5 + step / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
            signal *= 1 - beta
        a, s = signal**0.5, (1 - signal) ** 0.5
        torch.testing.assert_close(noisy[n], a * latents[n] + s * noise[n], atol=1e-3, rtol=1e-3)
        wanted = noise[n] if kind == "epsilon" else a * noise[n] - s * latents[n]
        torch.testing.assert_close(target[n], wanted, atol=1e-3, rtol=1e-3)


def test_the_small_bases_noise_leaves_no_signal_at_its_last_step():
    scheduler = DDPMScheduler.from_config(DDIMScheduler(**NOISE).config)
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)


class Oracle:
    """A U-Net that knows the picture: its prediction leads to `answer`, or to `other` unasked."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, base, answer, other):
        self.scheduler = DDPMScheduler.from_config(base.scheduler)
        self.answer, self.other, self.calls = answer, other, []

    def __call__(self, seen, time_step, text, **residuals):
        self.calls.append((len(seen), text.clone(), residuals))
        half = len(seen) // 2
        clean = torch.cat(
            [self.other.expand(half, -1, -1, -1), self.answer.expand(half, -1, -1, -1)]
        )
        signal = self.scheduler.alphas_cumprod[time_step]
        a, s = signal**0.5, (1 - signal) ** 0.5
        noise = (seen - a * clean) / s
        output = type("Output", (), {})()
        output.sample = noise if self.kind() == "epsilon" else a * noise - s * clean
        return output

    def kind(self):
        return self.scheduler.config.prediction_type


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_sampler_follows_the_network_and_its_guidance(base, kind):
    generator = torch.Generator().manual_seed(0)
    answer, other = torch.randn((2, 1, 4, 16, 16), generator=generator)
    sure = replace(
        base, scheduler={**base.scheduler, "prediction_type": kind, "rescale_betas_zero_snr": False}
    )

    def drawn(guidance):
        oracle = Oracle(sure, answer, other)
        sampling = SamplingConfig(steps=20, guidance=guidance)
        return oracle, generate(sure, oracle, ["ct", "t2"], [3, 4], 32, sampling)

    def decoded(latents):
        return diffusion.as_pictures(
            base.vae.decode(latents / base.vae.config.scaling_factor).sample
        )

    oracle, pictures = drawn(2.5)
    assert {count for count, *_ in oracle.calls} == {4}
    wanted = decoded(other + 2.5 * (answer - other))
    for picture in pictures:
        assert np.abs(picture.astype(int) - wanted[0].astype(int)).mean() < 1
    text = oracle.calls[0][1]
    torch.testing.assert_close(text[:2], diffusion.encode_prompts(base, ["", ""]))
    torch.testing.assert_close(text[2:], diffusion.encode_prompts(base, ["ct", "t2"]))


def test_a_picture_follows_from_its_own_seed(base):
    sampling = SamplingConfig(steps=3, guidance=2.0)

    def drawn(prompts, seeds):
        return generate(base, base.unet, prompts, seeds, 32, sampling)

    together = drawn(["ct", "t2", "ct"], [5, 6, 7])
    assert style_tiny.close(drawn(["t2"], [6])[0], together[1])
    assert not style_tiny.close(together[0], together[2])
    assert style_tiny.close(drawn(["ct"], [5])[0], together[0])


def test_latents_are_those_of_the_autoencoder(chain, base):
    slices = read_slices(chain.slices)
    latents = Latents(slices, [s.image for s in slices.slices], base)
    picture = read_picture(slices, slices.slices[3].image)
    found = diffusion.encode_pictures(base.vae, picture[None])
    draws = torch.stack(
        [latents.draw([3], torch.Generator().manual_seed(n))[0] for n in range(400)]
    )
    scale = base.vae.config.scaling_factor
    torch.testing.assert_close(
        draws.mean(0), found.mean[0] * scale, atol=float(found.std.max()) * scale / 4, rtol=0.02
    )
    ratio = draws.std(0) / (found.std[0] * scale)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    again = latents.draw([3, 1], torch.Generator().manual_seed(0))
    assert torch.equal(again, latents.draw([3, 1], torch.Generator().manual_seed(0)))


# Tuning


def test_tuning_trains_the_u_net_alone(chain, base):
    tuned, record = load_tuned(chain.tuned, base)
    assert not torch.equal(weights(tuned), weights(base.unet))
    assert torch.allclose(weights(tuned), weights(base.unet), atol=1e-2)
    assert record["base"]["unet"] == base.identity["unet"]
    assert record["base"]["licence"] == base.licence
    assert record["prompt"] == "sks axial slice of the abdomen"
    assert set(record["packages"]) == {"torch", "diffusers", "transformers", "peft"}
    assert [p.name for p in (chain.tuned / "previews").iterdir()] == ["step_000004.png"]


@pytest.mark.parametrize(
    "overrides", [(), ("tune.lora=2", "tune.ema=0.9"), ("tune.gradient_checkpointing=true",)]
)
def test_a_stopped_tuning_ends_as_one_that_was_not(chain, base, tmp_path, overrides):
    config = style_tiny.config("tune.learning_rate=1e-3", *overrides)
    given = (chain.slices, str(chain.base))
    tune(*given, tmp_path / "whole", config, **ON)
    stopped = tune(*given, tmp_path / "parts", config, device="cpu", **stop_at(2))
    assert (stopped.done, stopped.output) == (2, None)
    with pytest.raises(BundleError, match="no finished srcsm style tune"):
        load_tuned(tmp_path / "parts", base)
    tune(*given, tmp_path / "parts", config, **ON)
    whole, parts = (load_tuned(tmp_path / n, base)[0] for n in ("whole", "parts"))
    assert torch.equal(weights(whole), weights(parts))
    assert not torch.equal(weights(whole), weights(base.unet))


def test_low_rank_updates_are_small_and_merge_into_the_u_net(chain, base, tmp_path):
    before = weights(base.unet).clone()
    config = style_tiny.config("tune.lora=2", "tune.learning_rate=1e-2")
    tune(chain.slices, str(chain.base), tmp_path, config, **ON)
    assert not (tmp_path / "unet").exists()
    merged, _ = load_tuned(tmp_path, base)
    assert torch.equal(weights(base.unet), before)
    assert merged.state_dict().keys() == base.unet.state_dict().keys()
    changed = {
        name
        for name, value in merged.state_dict().items()
        if not torch.equal(value, base.unet.state_dict()[name])
    }
    assert changed
    assert all(".attn" in name for name in changed)
    for name in changed:
        update = merged.state_dict()[name] - base.unet.state_dict()[name]
        assert torch.linalg.matrix_rank(update, rtol=1e-3) <= 2
    kept = (tmp_path / "lora" / "pytorch_lora_weights.safetensors").stat().st_size
    assert kept < (chain.tuned / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size / 3
    # diffusers itself finds the same network in the adapter.
    own = UNet2DConditionModel.from_config(base.unet.config)
    own.load_state_dict(base.unet.state_dict())
    own.load_lora_adapter(
        tmp_path / "lora", prefix=None, local_files_only=True, use_safetensors=True
    )
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([7]), torch.randn(1, 24, 16)
    torch.testing.assert_close(own(*inputs).sample, merged(*inputs).sample, atol=1e-4, rtol=1e-4)


def test_tuning_lowers_the_loss_on_the_source(chain, base, tmp_path):
    config = style_tiny.config("tune.learning_rate=3e-3", "tune.steps=30")
    tune(chain.slices, str(chain.base), tmp_path, config, **ON)
    tuned, _ = load_tuned(tmp_path, base)
    slices = read_slices(chain.slices)
    latents = Latents(slices, [s.image for s in slices.slices], base)
    scheduler = DDPMScheduler.from_config(base.scheduler)
    text = diffusion.encode_prompts(base, ["sks axial slice of the abdomen"]).expand(12, -1, -1)

    @torch.no_grad()
    def loss(unet):
        generator = torch.Generator().manual_seed(5)
        noisy, times, target = noisy_latents(
            latents.draw(range(12), generator), scheduler, generator
        )
        return float(nn.functional.mse_loss(unet(noisy, times, text).sample, target))

    assert loss(tuned) < 0.9 * loss(base.unet)


def test_a_run_of_another_base_or_with_changed_weights_is_refused(chain, base, tmp_path):
    other = replace(base, name="other", identity={**base.identity, "vae": "0" * 64})
    with pytest.raises(BundleError, match="whose vae differ from those of other"):
        load_tuned(chain.tuned, other)
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    with pytest.raises(BundleError, match="changed since it was trained"):
        check_weights([file], {"weights": "0" * 64})
    with pytest.raises(BundleError, match="holds a style tune, not a style control"):
        read_record(chain.tuned, "control")


def test_slices_of_a_size_the_base_does_not_take_are_refused(chain, tmp_path):
    from srcsm_training.style.prepare import prepare

    odd = style_tiny.config("size=30")
    prepare(chain.data, tmp_path / "odd", odd, limits=style_tiny.SILENT)
    with pytest.raises(ConfigError, match="multiple of 4"):
        tune(tmp_path / "odd", str(chain.base), tmp_path / "run", odd, **ON)


# ControlNet


def test_a_new_controlnet_changes_nothing_and_a_trained_one_does(chain, base):
    """It starts as a copy of the tuned U-Net's encoder, joined by layers of zeros."""
    tuned, _ = load_tuned(chain.tuned, base)
    control, record = load_control(chain.control, base)
    fresh = control_module.ControlNetModel.from_unet(
        tuned, conditioning_embedding_out_channels=(16, 32)
    )
    assert record["tuned"] == read_record(chain.tuned, "tune")["weights"]
    encoder = weights(tuned.down_blocks)
    assert torch.equal(weights(fresh.down_blocks), encoder)
    assert not torch.equal(weights(control.down_blocks), encoder)
    assert torch.allclose(weights(control.down_blocks), encoder, atol=0.05)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 24, 16)
    shown = torch.rand(1, 3, 32, 32)

    def output(network, scale=1.0):
        return diffusion.steered(tuned, network, *inputs, shown, scale)

    with torch.no_grad():
        plain = tuned(*inputs).sample
        assert torch.equal(output(fresh), plain)
        assert not torch.equal(output(control), plain)
        assert torch.equal(output(control, 0.0), plain)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_not_trained_may_be_of_half_size(chain, base, tmp_path, monkeypatch, precision):
    """As on a GPU; the CPU keeps it in full otherwise."""
    frozen = diffusion.DTYPES[precision]
    for module in (control_module, tune_module):
        monkeypatch.setattr(module, "frozen_dtype", lambda *_: frozen)
    chosen = [f"{stage}.precision={precision}" for stage in ("tune", "control")]
    config = style_tiny.config(*chosen, "tune.lora=2", "control.gradient_checkpointing=true")
    given = (chain.slices, str(chain.base))
    tune(*given, tmp_path / "lora", config, **ON)
    assert train_control(
        *given, tmp_path / "control", config, tuned=tmp_path / "lora", **ON
    ).finished
    control, _ = load_control(tmp_path / "control", base)
    assert control.dtype == torch.float32
    assert torch.isfinite(weights(control)).all()


def test_training_a_controlnet_leaves_the_u_net_alone(chain, tmp_path, monkeypatch):
    seen = []
    original = control_module.load_tuned

    def recorded(*arguments):
        unet, record = original(*arguments)
        seen.append((unet, copy.deepcopy(unet)))
        return unet, record

    monkeypatch.setattr(control_module, "load_tuned", recorded)
    config = style_tiny.config("control.gradient_checkpointing=true", "control.learning_rate=0.1")
    train_control(chain.slices, str(chain.base), tmp_path, config, tuned=chain.tuned, **ON)
    [(after, before)] = seen
    assert torch.equal(weights(after), weights(before))


def test_a_controlnet_can_start_from_the_untuned_base(chain, base, tmp_path):
    config = style_tiny.config("control.learning_rate=1e-30")
    train_control(chain.slices, str(chain.base), tmp_path, config, tuned=None, **ON)
    control, record = load_control(tmp_path, base)
    assert record["tuned"] == ""
    assert torch.equal(weights(control.down_blocks), weights(base.unet.down_blocks))


def test_a_stopped_controlnet_ends_as_one_that_was_not(chain, base, tmp_path):
    given = (chain.slices, str(chain.base))
    config = style_tiny.config("control.accumulation=2", "control.ema=0.5")
    train_control(*given, tmp_path / "whole", config, tuned=chain.tuned, **ON)
    train_control(*given, tmp_path / "parts", config, tuned=chain.tuned, device="cpu", **stop_at(3))
    train_control(*given, tmp_path / "parts", config, tuned=chain.tuned, **ON)
    whole, parts = (load_control(tmp_path / n, base)[0] for n in ("whole", "parts"))
    assert torch.equal(weights(whole), weights(parts))
    with pytest.raises(CheckpointError, match="another tuned"):
        train_control(*given, tmp_path / "parts", config, tuned=None, **ON)


def test_every_label_has_a_colour_of_its_own():
    colours = palette({f"organ {n}": n + 1 for n in range(40)})
    assert len(set(map(tuple, colours.values()))) == 40
    near = [
        np.abs(np.subtract(a, b)).sum()
        for i, a in enumerate(colours.values())
        for j, b in enumerate(colours.values())
        if i < j
    ]
    assert min(near) > 5
    assert all(max(colour) > 150 for colour in colours.values())


def test_masks_are_shown_in_the_colours_of_their_labels_names():
    labels, colours = {"liver": 2, "spleen": 1}, {"liver": [255, 0, 51], "spleen": [0, 102, 0]}
    masks = np.zeros((1, 3, 2), np.uint8)
    masks[0, 1, 0], masks[0, 2, 1] = 2, 1
    shown = conditions(masks, labels, colours)
    assert shown.shape == (1, 3, 3, 2)
    assert shown[0, :, 1, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert shown[0, :, 2, 1].tolist() == pytest.approx([0, 0.4, 0])
    assert float(shown.sum()) == pytest.approx(1.6)
    masks[0, 0, 0] = 7
    with pytest.raises(ConfigError, match="never saw: liver, 7"):
        conditions(masks, labels, {"spleen": [0, 0, 255]})


def test_rare_classes_are_drawn_more_often(chain):
    """Against a literal draw, label first, then slice."""
    one = read_slices(chain.slices).slices[0]
    slices = [
        replace(one, pixels={"liver": 900}),
        replace(one, pixels={"liver": 50, "spleen": 40}),
        replace(one, pixels={"spleen": 10}),
        replace(one, pixels={}),
    ]
    a, b = math.exp((1 - 0.95) / 0.5), math.exp((1 - 0.05) / 0.5)
    liver, spleen = a / (a + b), b / (a + b)
    expected = [liver / 2, liver / 2 + spleen / 2, spleen / 2, 0]
    torch.testing.assert_close(
        slice_weights(slices, 0.5), torch.tensor(expected, dtype=torch.float64)
    )
    assert slice_weights(slices, 0).tolist() == [0.25] * 4
    assert slice_weights(slices[3:], 0.5).tolist() == [1.0]
    assert slice_weights(slices, 0.01)[0] < 1e-12  # so cold that the liver alone is never drawn


# The small base


def test_a_stopped_small_base_ends_as_one_that_was_not(chain, tmp_path):
    """Stopped in the autoencoder and in the rest."""
    sets, config = [chain.phantom, chain.slices], style_tiny.config()
    first = train_base(sets, tmp_path, config, device="cpu", **stop_at(3))
    assert (first.done, first.total, first.output) == (3, 8, None)
    second = train_base(sets, tmp_path, config, device="cpu", **stop_at(6))
    assert second.done == 6
    with pytest.raises(BundleError, match=r"no model_index.json"):
        load_base(str(tmp_path), say=style_tiny.silent)
    assert train_base(sets, tmp_path, config, **ON).finished
    parts, whole = (load_base(str(f), say=style_tiny.silent) for f in (tmp_path, chain.base))
    assert parts.identity == whole.identity
    assert parts.vae.config.scaling_factor == whole.vae.config.scaling_factor


def test_the_small_bases_latents_are_scaled_to_one(chain, base):
    sets = read_slices(chain.phantom), read_slices(chain.slices)
    pictures = np.stack([read_picture(found, s.image) for found in sets for s in found.slices])
    means = diffusion.encode_pictures(base.vae, pictures).mean * base.vae.config.scaling_factor
    assert float(means.std()) == pytest.approx(1, abs=0.02)


def test_every_style_needs_prompts_before_anything_is_trained(chain, tmp_path):
    prompts = tmp_path / "few.yaml"
    prompts.write_text("instance: a\nstyles: {ct: ct}")
    config = style_tiny.config(f"prompts={prompts}")
    with pytest.raises(ConfigError, match='No prompts for the style "t1"'):
        train_base([chain.phantom], tmp_path / "base", config, **ON)
    assert not (tmp_path / "base").exists()


def test_sets_of_different_sizes_do_not_mix(chain, tmp_path):
    from srcsm_training.style.phantom_slices import write_phantom_slices

    write_phantom_slices(tmp_path / "large", style_tiny.config("size=64"))
    with pytest.raises(DatasetError, match="different sizes"):
        train_base([chain.slices, tmp_path / "large"], tmp_path / "base", style_tiny.config(), **ON)


def test_a_model_that_cannot_be_written_leaves_the_checkpoint(chain, base, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    config = style_tiny.config()
    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "save_pretrained", full)
        with pytest.raises(StyleError, match="No space left"):
            tune(chain.slices, str(chain.base), tmp_path, config, **ON)
    assert not (tmp_path / "model.json").exists()
    tune(chain.slices, str(chain.base), tmp_path, config, **ON)
    assert torch.equal(
        weights(load_tuned(tmp_path, base)[0]), weights(load_tuned(chain.tuned, base)[0])
    )
