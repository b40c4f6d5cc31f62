# SPDX-License-Identifier: Apache-2.0
"""What a style intervention costs: seconds and memory of every stage.

    python -m srcsm_training.benchmarks.style   measured here, with a small base of our own
    python -m srcsm_training.benchmarks.style --base FOLDER --config FILE.yaml --device cuda
    python -m srcsm_training.benchmarks.style --computed   Stable Diffusion 1.x on a GPU of 24 GB

Measured: every stage runs some steps at the sizes of its configuration in a process of its own, on
phantom slices and one core or a GPU. Seconds on a core are those it worked; memory is the most that
the process held, or on a GPU its tensors.

Computed: the networks are built by their classes, with the sizes of Stable Diffusion 1.5 and
without weights or numbers in them, and a step of the real training is followed operation by
operation, counting what it multiplies and the bytes alive. AdamW's moments and temporaries are
added. Seconds follow from `GPUS` and `UTILISATION`.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from srcsm_training.data.phantom import write_dataset
from srcsm_training.engine.config import read_yaml, with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.timing import Row, Table, machine, markdown
from srcsm_training.experiments.reports import REPOSITORY
from srcsm_training.segmentation.config import TrainingConfig
from srcsm_training.segmentation.pairs import PairNetwork, pair_loss
from srcsm_training.segmentation.presets import preset
from srcsm_training.segmentation.run import run_training
from srcsm_training.style.base import CONDITION_CHANNELS
from srcsm_training.style.check import check
from srcsm_training.style.config import StyleConfig
from srcsm_training.style.control import train_control
from srcsm_training.style.diffusion import steered
from srcsm_training.style.phantom_slices import write_phantom_slices
from srcsm_training.style.prepare import prepare
from srcsm_training.style.slices import read_manifest
from srcsm_training.style.small import train_base
from srcsm_training.style.swap import SwapModels, swap
from srcsm_training.style.tune import ATTENTION, tune
from SRCSMSegmenterLib.devices import resolve_device

GiB = 2**30

GPUS = {"RTX 4090": 165e12, "RTX A5000": 111e12}
"""Of 24 GB; half-precision tensor operations a second, dense, summed in full (data sheets)."""

UTILISATION = 0.35
"""Share of them that such trainings reach."""


# Measured


@dataclass(frozen=True)
class Place:
    """Where a stage is measured: folders of what the stages before it made.

    Attributes:
        base: folder of the base model.
    """

    folder: Path
    base: str
    config: StyleConfig
    device: str

    def clock(self) -> float:
        """Seconds: of the one core's work on a CPU, which other programs do not prolong."""
        return time.process_time() if self.device == "cpu" else time.perf_counter()


def measured(config: StyleConfig, base: str | None, device: str, folder: Path) -> Table:
    """Every stage, one after the other.

    Args:
        base: None trains a small one.
    """
    steps, recipe = 8, config
    short = [f"{s}.steps={steps}" for s in ("tune", "control")]
    short += [f"base.{s}.steps={steps}" for s in ("autoencoder", "denoiser")]
    short += ["phantom.patients=4", "prepare.every=4", "swap.per_slice=0"]
    place = Place(folder, base or str(folder / "base"), with_overrides(config, short), device)
    rows = []

    def row(what: str, measure: Callable, times: int | None) -> None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, memory = pool.submit(_with_memory, measure, place).result()
        rows.append(Row(what, (seconds, times and seconds * times / 60, memory)))

    write_dataset(folder / "data", "CT", 1, seed=0)
    row("prepare, a slice", prepare_seconds, 1000)
    row("phantom, a picture", phantom_seconds, 1000)
    if not base:
        for name, part, measure in (
            ("autoencoder", recipe.base.autoencoder, autoencoder_seconds),
            ("denoiser", recipe.base.denoiser, denoiser_seconds),
        ):
            row(f"base, {name}, a step of {part.batch}", measure, part.steps)
    for name, part, measure in (
        ("tune", recipe.tune, tune_seconds),
        ("control", recipe.control, control_seconds),
    ):
        row(f"{name}, a step of {part.batch * part.accumulation}", measure, part.steps)
    row(f"swap, a picture, {recipe.swap.batch} together", swap_seconds, 1000)
    row("check, a picture", check_seconds, 1000)
    name = pairs_preset(device)
    recipe = preset(name).optimisation
    row(f"train on pairs, {name}, a step of 2 × {recipe.batch}", pairs_seconds, recipe.steps)
    columns = ("seconds", "minutes of the recipe, or for 1000 pictures", "memory, GiB")
    return Table(f"Style intervention, {config.size} pixels, {device}", columns, tuple(rows))


def prepare_seconds(place: Place) -> float:
    started = place.clock()
    prepare(place.folder / "data", place.folder / "slices", place.config, limits=SILENT)
    made = read_manifest(place.folder / "slices").slices
    return (place.clock() - started) / len(made)


def phantom_seconds(place: Place) -> float:
    started = place.clock()
    write_phantom_slices(place.folder / "phantom", place.config)
    made = read_manifest(place.folder / "phantom").slices
    return (place.clock() - started) / len(made)


def autoencoder_seconds(place: Place) -> float:
    steps = place.config.base.autoencoder.steps
    return _base_step(place, lambda p: p.step <= steps, lambda p: p.step == steps)


def denoiser_seconds(place: Place) -> float:
    steps = place.config.base.autoencoder.steps
    return _base_step(place, lambda p: p.step > steps, lambda p: False)


def _base_step(place: Place, counts: Callable, stops: Callable) -> float:
    marks, stopping = [], []

    def report(progress: object) -> None:
        if counts(progress):
            marks.append(place.clock())
        if stops(progress):
            stopping.append(True)

    train_base(
        [place.folder / "phantom"],
        Path(place.base),
        place.config,
        device=place.device,
        limits=Limits(stop_requested=lambda: bool(stopping), say=_silent, report=report),
    )
    return _step(marks)


def tune_seconds(place: Place) -> float:
    marks = []
    tune(
        place.folder / "slices",
        place.base,
        place.folder / "tuned",
        place.config,
        device=place.device,
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def control_seconds(place: Place) -> float:
    marks = []
    train_control(
        place.folder / "slices",
        place.base,
        place.folder / "control",
        place.config,
        tuned=place.folder / "tuned",
        device=place.device,
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def swap_seconds(place: Place) -> float:
    marks = []
    swap(
        place.folder / "slices",
        SwapModels(place.base, place.folder / "control"),
        place.folder / "styled",
        place.config,
        device=place.device,
        progress=lambda done, total: marks.append((place.clock(), done)),
        limits=SILENT,
    )
    (start, before), (end, after) = marks[0], marks[-1]
    return (end - start) / (after - before)


def check_seconds(place: Place) -> float:
    started = place.clock()
    check(place.folder / "styled", place.config, limits=SILENT)
    made = read_manifest(place.folder / "styled").slices
    return (place.clock() - started) / len(made)


def pairs_seconds(place: Place) -> float:
    """With SRC views, which cost more than restyled slices that lie ready."""
    marks = []
    overrides = ["optimisation.steps=8", "data.folds=0", "validate_every=0"]
    run_training(
        place.folder / "data",
        with_overrides(preset(pairs_preset(place.device)), overrides),
        place.folder / "pairs",
        device=place.device,
        cache=place.folder / "cache",
        limits=replace(SILENT, report=lambda p: marks.append(place.clock())),
    )
    return _step(marks)


def pairs_preset(device: str) -> str:
    """The published one on a GPU."""
    return "icm" if device.startswith("cuda") else "icm-fast"


def _step(marks: Sequence[float]) -> float:
    """Median seconds between marks; the first steps encode slices and warm up."""
    return statistics.median(np.diff(marks[2:]))


def _with_memory(measure: Callable[[Place], float], place: Place) -> tuple[float, float]:
    """Seconds, and GiB at the most."""
    if place.device == "cpu":
        torch.set_num_threads(1)
    seconds = measure(place)
    if place.device.startswith("cuda"):
        return seconds, torch.cuda.max_memory_allocated() / GiB
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GiB


def _silent(line: str) -> None:
    """Drop a line for the user."""


SILENT = Limits(say=_silent)


# Computed


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run the operation, and see what it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number not in self._known:
            self._known.add(number)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.bytes -= size


@dataclass(frozen=True)
class Work:
    """What a step, or a picture, takes.

    Attributes:
        trained: parameters.
        operations: floating-point, of one forward and backward pass.
        bytes: at the most, AdamW's included.
    """

    trained: int
    operations: float
    bytes: int


def counted(networks: Sequence[nn.Module], work: Callable[[], object]) -> Work:
    """Follow a pass without doing it.

    Args:
        networks: all that are on the device, built on "meta".
        work: the pass.
    """
    parameters = [p for network in networks for p in network.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    with FakeTensorMode(), Alive() as alive:
        for network in networks:
            network._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))
        weights = alive.peak = alive.bytes
        with FlopCounterMode(display=False) as flops:
            work()
    # In full precision: two moments, and at the step the gradients and one temporary copy.
    number = 4 * trained
    most = max(alive.peak + 2 * number, weights + 4 * number) if trained else alive.peak
    return Work(trained, flops.get_total_flops(), most)


def stable_diffusion() -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Networks of the sizes of Stable Diffusion 1.5, on "meta"; frozen, the autoencoder of half
    precision, as the stages keep them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    for network in (unet, vae, text):
        network.eval().requires_grad_(False)
    return unet, vae.bfloat16(), text


def control_of(unet: UNet2DConditionModel) -> ControlNetModel:
    """A new ControlNet, in full precision."""
    with torch.device("meta"):
        return ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=CONDITION_CHANNELS
        )


def tuning(batch: int, lora: int) -> Work:
    """A pass of `style tune`, with gradient checkpointing."""
    unet, vae, text_encoder = stable_diffusion()
    if lora:
        with torch.device("meta"):
            unet.bfloat16()
            unet.add_adapter(LoraConfig(r=lora, lora_alpha=lora, target_modules=ATTENTION))
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        unet.requires_grad_(True)
    unet.train().enable_gradient_checkpointing()

    def work() -> None:
        noisy, times, text = _inputs(batch)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, times, text).sample
        nn.functional.mse_loss(predicted.float(), noisy).backward()

    return counted((unet, vae, text_encoder), work)


def controlling(batch: int) -> Work:
    """A pass of `style control`, with gradient checkpointing."""
    unet, vae, text_encoder = stable_diffusion()
    control = control_of(unet)
    control.train().requires_grad_(True).enable_gradient_checkpointing()
    unet.bfloat16().train().enable_gradient_checkpointing()

    def work() -> None:
        noisy, times, text = _inputs(batch)
        masks = torch.zeros(batch, 3, 512, 512)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = steered(unet, control, noisy, times, text, masks)
        nn.functional.mse_loss(predicted, noisy).backward()

    return counted((unet, control, vae, text_encoder), work)


def drawing(batch: int, steps: int) -> Work:
    """A batch of `style swap`, with guidance: steps of the sampler, all alike, and the decoder."""
    parts = []
    for decodes in (False, True):
        unet, vae, text_encoder = stable_diffusion()
        control = control_of(unet).requires_grad_(False).bfloat16()
        unet.bfloat16()

        @torch.no_grad()
        def work(decodes=decodes, unet=unet, control=control, vae=vae) -> None:  # noqa: ANN001
            noisy, times, text = _inputs(2 * batch)
            if decodes:
                vae.decode(noisy[:batch].bfloat16())
            else:
                steered(unet, control, noisy, times[0], text, torch.zeros(2 * batch, 3, 512, 512))

        parts.append(counted((unet, control, vae, text_encoder), work))
    step, decoder = parts
    operations = steps * step.operations + decoder.operations
    return Work(0, operations, max(step.bytes, decoder.bytes))


def training_on_pairs(config: TrainingConfig) -> Work:
    """A step on two views."""
    batch, recipe = config.optimisation.batch, config.optimisation
    with torch.device("meta"):
        network = PairNetwork(config).train()

    def work() -> None:
        shape = config.grid.size[::-1]
        labels = torch.zeros(batch, *shape, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, recipe.precision != "fp32"):
            logits, projected = network(torch.zeros(2 * batch, 1, *shape))
        pair_loss(logits, projected, labels, recipe, config.pairs).backward()

    return counted((network,), work)


def computed() -> Table:
    """The default configuration, 512 pixels, and the preset icm with four labels."""
    config, pairs = StyleConfig(), with_overrides(preset("icm"), ["network.classes=5"])
    tuned, control, batch = config.tune, config.control, config.swap.batch
    rows = []
    for what, work, passes, times in (
        ("tune, a step", tuning(tuned.batch, 0), tuned.accumulation, tuned.steps),
        ("tune, tune.lora=16, a step", tuning(tuned.batch, 16), tuned.accumulation, tuned.steps),
        ("control, a step", controlling(control.batch), control.accumulation, control.steps),
        ("swap, a picture", drawing(batch, config.sampling.steps), 1 / batch, 1000),
        ("train on pairs, icm, a step", training_on_pairs(pairs), 1, pairs.optimisation.steps),
    ):
        operations = work.operations * passes
        speeds = []
        for peak in GPUS.values():
            seconds = operations / (peak * UTILISATION)
            speeds += [seconds, seconds * times / 3600]
        numbers = (work.trained / 1e6 or None, work.bytes / GiB, operations / 1e12)
        rows.append(Row(f"{what}; {times} of them", (*numbers, *speeds)))
    columns = ["million trained", "memory, GiB", "TFLOP"]
    for name in GPUS:
        columns += [f"{name}, s", "hours in all"]
    title = f"Stable Diffusion 1.x, {config.size} pixels, GPUs of 24 GB; every number computed"
    return Table(title, tuple(columns), tuple(rows))


def _inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of 512 pixels, times, and encoded prompts."""
    times = torch.zeros(batch, dtype=torch.long)
    return torch.zeros(batch, 4, 64, 64), times, torch.zeros(batch, 77, 768)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or compute, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    small = REPOSITORY / "training" / "configs" / "style_tiny.yaml"
    parser.add_argument("--config", type=Path, default=small, help="of the stages")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--base", help="folder of a base model (default: a small one of our own)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--computed", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.computed:
        print(markdown(computed()))
        return 0
    device = resolve_device(arguments.device)
    config = with_overrides(read_yaml(arguments.config, StyleConfig()), arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        table = measured(config, arguments.base, str(device), Path(folder))
    print(f"{machine(device)}\n\n{markdown(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
