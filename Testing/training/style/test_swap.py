# SPDX-License-Identifier: Apache-2.0
"""Style swap: which network draws what from which seed, and that nothing is ever lost."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import style_tiny
import tiny
import torch

from srcsm_training.engine.limits import Limits
from srcsm_training.style import swap as swap_module
from srcsm_training.style.base import load_base
from srcsm_training.style.control import conditions, load_control
from srcsm_training.style.diffusion import generate
from srcsm_training.style.prompts import read_prompts
from srcsm_training.style.slices import (
    StyleError,
    read_manifest,
    read_picture,
    read_slices,
    write_manifest,
    write_picture,
)
from srcsm_training.style.swap import SwapModels, plan, swap
from srcsm_training.style.tune import load_tuned
from SRCSMSegmenterLib import atomic
from SRCSMSegmenterLib.errors import BundleError, ConfigError, DatasetError


@pytest.fixture(autouse=True)
def _offline(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    torch.set_num_threads(1)
    return style_tiny.run_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def whole(chain):
    """All restyled slices, made at once."""
    folder = chain.slices / "styled" / "whole"
    assert run(chain, folder).finished
    return folder


def run(chain, folder, config=None, tuned=None, **limits):
    config = config or style_tiny.config()
    models = SwapModels(str(chain.base), chain.control, tuned)
    limits = Limits(say=style_tiny.silent, **limits)
    return swap(chain.slices, models, folder, config, device="cpu", limits=limits)


def pictures(folder):
    found = read_slices(folder, incomplete=True)
    return {s.name: read_picture(found, s.image) for s in found.slices}


def alike(a, b):
    return a.keys() == b.keys() and all(style_tiny.close(a[n], b[n]) for n in a)


def test_every_slice_gets_its_styles_with_all_that_made_them(chain, whole):
    source, found = read_slices(chain.slices), read_slices(whole)
    prompts = read_prompts("abdomen")
    assert found.complete
    assert len(found.slices) == 2 * len(source.slices)
    assert (whole / found.source).resolve() == chain.slices.resolve()
    own = {s.name: s for s in source.slices}
    seeds = set()
    for s in found.slices:
        origin = own[s.source]
        assert s.name == f"{s.source}_{s.style}"
        assert s.style in {"t1", "t2", "ultrasound", "xray"}  # not the source's own
        assert s.prompt in prompts.of(s.style)
        assert (s.case, s.pixels, s.affine) == (origin.case, origin.pixels, origin.affine)
        assert (whole / s.mask).resolve() == (chain.slices / origin.mask).resolve()
        assert s.mask_sha256 == origin.mask_sha256
        seeds.add(s.seed)
    assert len(seeds) == len(found.slices)
    base = load_base(str(chain.base), say=style_tiny.silent)
    assert found.models["base"] == {
        "name": str(chain.base),
        "licence": base.licence,
        **base.identity,
    }
    assert found.models["unet"] == base.identity["unet"]
    assert len({s.style for s in found.slices}) == 4


def test_the_original_u_net_draws_steered_by_the_slices_own_mask(chain, whole):
    """Not the tuned one: that is the whole idea."""
    base = load_base(str(chain.base), say=style_tiny.silent)
    tuned, _ = load_tuned(chain.tuned, base)
    control, record = load_control(chain.control, base)
    source, found = read_slices(chain.slices), read_slices(whole)
    s = found.slices[7]
    mask = read_picture(found, s.mask)[None]
    other = read_picture(found, next(o for o in found.slices if o.case != s.case).mask)[None]

    def drawn(unet, masks):
        shown = conditions(masks, source.labels, record["colours"])
        sampling = style_tiny.config().sampling
        return generate(base, unet, [s.prompt], [s.seed], 32, sampling, control, shown)[0]

    picture = read_picture(found, s.image)
    assert style_tiny.close(drawn(base.unet, mask), picture)
    assert not np.array_equal(drawn(tuned, mask), drawn(base.unet, mask))
    assert not np.array_equal(drawn(base.unet, other), drawn(base.unet, mask))


def test_the_ablation_draws_with_the_tuned_u_net(chain, whole, tmp_path):
    run(chain, tmp_path, tuned=chain.tuned)
    found = read_slices(tmp_path)
    assert found.models["unet"] != read_slices(whole).models["unet"]
    ours, theirs = pictures(tmp_path), pictures(whole)
    assert any(not np.array_equal(ours[n], theirs[n]) for n in theirs)


def test_a_stopped_swap_goes_on_and_ends_as_one_that_was_not(chain, whole, tmp_path):
    stops = iter([False, False, True])
    stopped = run(chain, tmp_path, stop_requested=lambda: next(stops))
    assert (stopped.done, stopped.total, stopped.finished) == (10, 24, False)
    assert len(pictures(tmp_path)) == 10
    with pytest.raises(DatasetError, match="incomplete"):
        read_slices(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("images/*")}
    assert run(chain, tmp_path, max_minutes=0).done == 10
    assert run(chain, tmp_path, style_tiny.config("swap.batch=3")).finished  # any batch will do
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert alike(pictures(tmp_path), pictures(whole))
    seen = [(s.name, s.prompt, s.seed) for s in read_slices(tmp_path).slices]
    assert seen == [(s.name, s.prompt, s.seed) for s in read_slices(whole).slices]


def test_a_killed_swap_loses_nothing_that_was_written(chain, whole, tmp_path):
    """The manifest is older than the pictures then."""
    stops = iter([False, True])
    run(chain, tmp_path, stop_requested=lambda: next(stops))
    write_manifest(replace(read_manifest(tmp_path), slices=()))
    assert run(chain, tmp_path).finished
    assert alike(pictures(tmp_path), pictures(whole))


def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(chain, whole, tmp_path, monkeypatch):
    written = []

    def fsync(number):
        written.append(number)
        if len(written) == 10:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", fsync)
        with pytest.raises(StyleError, match=r"No space left on device.*goes on") as refused:
            run(chain, tmp_path)
    assert "\n" not in str(refused.value)
    there = style_tiny.files(tmp_path)
    assert len([n for n in there if n.endswith(".png")]) == 7
    assert not [n for n in there if "tmp" in n]
    assert run(chain, tmp_path).finished
    assert alike(pictures(tmp_path), pictures(whole))
    assert all(style_tiny.files(tmp_path)[n] == there[n] for n in there if n.endswith(".png"))


def test_pictures_that_changed_are_found_before_anything_is_drawn(chain, tmp_path, monkeypatch):
    stops = iter([False, True])
    run(chain, tmp_path, stop_requested=lambda: next(stops))
    path = tmp_path / read_manifest(tmp_path).slices[0].image
    write_picture(path, np.zeros((32, 32), np.uint8))
    monkeypatch.setattr(swap_module, "generate", None)
    with pytest.raises(DatasetError, match=r"1 files of .*altered"):
        run(chain, tmp_path)


def test_source_slices_that_changed_are_refused(chain, tmp_path):
    source = tmp_path / "ct"
    for name, content in style_tiny.files(chain.slices).items():
        if not name.startswith("styled"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    copied = replace(chain, slices=source)
    stops = iter([False, True])
    run(copied, tmp_path / "out", stop_requested=lambda: next(stops))
    found = read_manifest(source)
    write_manifest(replace(found, slices=found.slices[1:]))
    with pytest.raises(DatasetError, match="made of other slices"):
        run(copied, tmp_path / "out")
    (source / found.slices[3].mask).unlink()
    with pytest.raises(DatasetError, match="1 files of"):
        run(copied, tmp_path / "out")


@pytest.mark.parametrize("override", ["seed=1", "sampling.steps=3", "swap.styles=[t1]"])
def test_other_settings_do_not_mix_with_pictures_that_are_there(chain, whole, override):
    with pytest.raises(DatasetError, match="other settings; choose another folder"):
        run(chain, whole, style_tiny.config(override))


def test_labels_that_the_controlnet_never_saw_are_refused_before_anything_is_drawn(chain, tmp_path):
    found = read_slices(chain.slices)
    first = replace(found.slices[0], pixels={**found.slices[0].pixels, "pancreas": 3})
    strange = replace(found, labels={**found.labels, "pancreas": 7}, slices=(first,))
    _, record = load_control(chain.control, load_base(str(chain.base), say=style_tiny.silent))
    with pytest.raises(ConfigError, match="never saw: pancreas"):
        swap_module._check_fit(strange, record, chain.control)
    with pytest.raises(ConfigError, match=r"64 pixels a side.*trained on 32"):
        swap_module._check_fit(replace(found, size=64), record, chain.control)
    swap_module._check_fit(found, record, chain.control)


def test_masks_are_read_by_the_names_of_their_labels(chain):
    """Another dataset may number the same organs otherwise."""
    found = read_slices(chain.slices)
    _, record = load_control(chain.control, load_base(str(chain.base), say=style_tiny.silent))
    mask = read_picture(found, found.slices[0].mask)
    swapped = np.choose(mask, [0, 2, 1]).astype(np.uint8)
    other = {"liver": 2, "spleen": 1}
    assert torch.equal(
        conditions(mask[None], found.labels, record["colours"]),
        conditions(swapped[None], other, record["colours"]),
    )


def test_a_controlnet_of_another_base_is_refused(chain, tmp_path):
    other = tmp_path / "base"
    for name, content in style_tiny.files(chain.base).items():
        if not name.startswith("training"):
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes(content)
    tuned = chain.tuned / "unet" / "diffusion_pytorch_model.safetensors"
    (other / "unet" / tuned.name).write_bytes(tuned.read_bytes())
    with pytest.raises(BundleError, match="whose unet differ"):
        run(replace(chain, base=other), tmp_path / "out")


def test_the_plan_follows_from_slices_prompts_styles_and_seed(chain):
    source, prompts = read_slices(chain.slices), read_prompts("abdomen")

    def wishes(*overrides):
        return plan(source, prompts, style_tiny.config(*overrides))

    def keys(found):
        return [(w.name, w.prompt, w.seed) for w in found]

    assert keys(wishes()) == keys(wishes("swap.batch=1"))
    assert keys(wishes()) != keys(wishes("seed=1"))
    assert len(wishes("swap.per_slice=0")) == 4 * len(source.slices)
    assert len(wishes("swap.per_slice=9")) == 4 * len(source.slices)
    assert {w.slice.name for w in wishes("swap.every=2")} == {s.name for s in source.kept()[::2]}
    assert {w.style for w in wishes("swap.styles=[ct]")} == {"ct"}
    assert {w.style for w in wishes()} == {"t1", "t2", "ultrasound", "xray"}
    every = {w.name: w.seed for w in wishes("swap.per_slice=0")}
    assert all(every[w.name] == w.seed for w in wishes())  # whatever else is asked for
    fewer = replace(source, slices=source.slices[5:])
    assert keys(plan(fewer, prompts, style_tiny.config())) == [
        key for key, w in zip(keys(wishes()), wishes(), strict=True) if w.slice in fewer.slices
    ]
    aside = replace(source.slices[0], rejected="blurred")
    kept = plan(replace(source, slices=(aside, *source.slices[1:])), prompts, style_tiny.config())
    assert len(kept) == len(wishes()) - 2
    with pytest.raises(ConfigError, match="No prompts"):
        wishes("swap.styles=[pet]")


def test_every_process_has_its_share(chain, whole, tmp_path, monkeypatch):
    """Three processes in turn, each of which knows nothing of the others."""
    from accelerate import Accelerator

    counts = []
    for rank in (2, 0, 1):
        monkeypatch.setattr(Accelerator, "process_index", property(lambda self, r=rank: r))
        monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
        monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self, r=rank: r == 0))
        monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: None)
        run(chain, tmp_path)
        counts.append(len(list(tmp_path.glob("images/*.png"))))
        tiny.forget_accelerator()
    assert counts == [8, 16, 24]
    monkeypatch.undo()
    assert run(chain, tmp_path).finished
    assert alike(pictures(tmp_path), pictures(whole))


PROCESSES = """
import sys
sys.path.insert(0, {testing!r})
import style_tiny, torch
from pathlib import Path
from srcsm_training.style.control import train_control
from srcsm_training.style.swap import SwapModels, swap
torch.set_num_threads(1)
slices, base, out = Path({slices!r}), {base!r}, Path({out!r})
on = dict(device="cpu", limits=style_tiny.SILENT)
config = style_tiny.config("control.accumulation=2")
train_control(slices, base, out / "control", config, tuned=Path({tuned!r}), **on)
result = swap(slices, SwapModels(base, Path({control!r})), out / "swap", config, **on)
assert result.finished, result
"""


@pytest.mark.slow
def test_two_processes_train_and_draw_together(chain, whole, tmp_path):
    """Gloo on the CPU."""
    script = tmp_path / "script.py"
    script.write_text(
        PROCESSES.format(
            testing=str(Path(__file__).resolve().parents[2] / "helpers"),
            slices=str(chain.slices),
            base=str(chain.base),
            tuned=str(chain.tuned),
            control=str(chain.control),
            out=str(tmp_path),
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert alike(pictures(tmp_path / "swap"), pictures(whole))
    base = load_base(str(chain.base), say=style_tiny.silent)
    load_control(tmp_path / "control", base)
