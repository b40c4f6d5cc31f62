# SPDX-License-Identifier: Apache-2.0
"""Memory and time of style interventions with Stable Diffusion 1.x on GPUs of 24 GB, computed.

The networks are built by their classes, with the sizes of Stable Diffusion 1.5 and without weights
or numbers in them. A step of the real training is followed operation by operation, counting the
floating-point operations and the bytes alive; AdamW's moments and temporaries are added. Seconds
follow from `GPUS` and `UTILISATION`.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from srcsm_training.benchmarks.timing import Row, Table
from srcsm_training.engine.config import with_overrides
from srcsm_training.segmentation.config import TrainingConfig
from srcsm_training.segmentation.pairs import PairNetwork, pair_losses
from srcsm_training.segmentation.presets import preset
from srcsm_training.style.base import CONDITION_CHANNELS
from srcsm_training.style.config import StyleConfig
from srcsm_training.style.diffusion import steered
from srcsm_training.style.tune import ATTENTION

GiB = 2**30

GPUS = {"RTX 4090": 165e12, "RTX A5000": 111e12}
"""Half-precision tensor operations a second, dense, summed in full precision (data sheets)."""

UTILISATION = 0.35
"""Share of these that such trainings reach."""


class Alive(TorchDispatchMode):
    """Counter of the bytes of the tensors that are alive.

    Attributes:
        bytes: alive now.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run an operation and count its results."""
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
    """Cost of a step or of a picture.

    Attributes:
        trained: number of trained parameters.
        operations: floating-point operations of one forward and backward pass.
        bytes: the most that are alive at once, AdamW's included.
    """

    trained: int
    operations: float
    bytes: int


def counted(networks: Sequence[nn.Module], work: Callable[[], object]) -> Work:
    """Count the cost of a pass without computing it.

    Args:
        networks: all networks on the device, built on "meta".
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
    """Build networks of the sizes of Stable Diffusion 1.5 on "meta", as the stages keep them.

    Returns:
        U-Net, autoencoder (half precision) and text encoder, all frozen.
    """
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
    """Build a new ControlNet in full precision."""
    with torch.device("meta"):
        return ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=CONDITION_CHANNELS
        )


def tuning(batch: int, lora: int) -> Work:
    """Count a pass of `style tune`, with gradient checkpointing."""
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
    """Count a pass of `style control`, with gradient checkpointing."""
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
    """Count a batch of `style swap` with guidance: the sampler's equal steps, and the decoder."""
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
    """Count a training step on two views."""
    batch, recipe = config.optimisation.batch, config.optimisation
    with torch.device("meta"):
        network = PairNetwork(config).train()

    def work() -> None:
        shape = config.grid.size[::-1]
        labels = torch.zeros(batch, *shape, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, recipe.precision != "fp32"):
            logits, projected = network(torch.zeros(2 * batch, 1, *shape))
        losses = pair_losses(logits, projected, labels, recipe, config.pairs)
        sum(losses.values()).backward()

    return counted((network,), work)


def computed() -> Table:
    """Make the table for the default configuration, 512 pixels, and for icm with four labels."""
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
    """Make the inputs of a U-Net for pictures of 512 pixels.

    Returns:
        Latents (batch, 4, 64, 64), times (batch,) and encoded prompts (batch, 77, 768).
    """
    times = torch.zeros(batch, dtype=torch.long)
    return torch.zeros(batch, 4, 64, 64), times, torch.zeros(batch, 77, 768)
