# SPDX-License-Identifier: Apache-2.0
"""The segmentation network: one U-Net for training and deployment, 3-D or slice-wise.

The paper's network (Thaler et al. 2026) is `NetworkConfig(classes)`. Two additions make it
trainable on a CPU: a `stem` that folds voxels into channels before the first level and
unfolds them behind the head, so that no convolution runs at full resolution, and instance norm.
A 2-D network is the same network with kernel, pooling and stem of 1 along K; that of
Chen et al. 2025 has maximum pooling, a decoder of its own widths, and switchable norm.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .errors import ConfigError

Triple = tuple[int, int, int]

MOST_LEVELS = 16
MOST_CHANNELS = 1 << 16
MOST_WIDTH = 64
"""Limits of a network: levels, feature maps of a level, and voxels of a kernel, window or stem."""

SPACE = (2, 3, 4)
"""Axes of a batch."""


PAPER = {
    "channels": {"paper": "64 at each of 5 levels (ICM: 32 to 512, bottleneck 256)"},
    "stem": {"paper": "[1, 1, 1]"},
    "kernel": {"paper": "[3, 3, 3] (ICM: [3, 3, 1])"},
    "pooling": {"paper": "[2, 2, 2]"},
    "norm": {"paper": "none (ICM: switchable)"},
    "dropout": {"paper": "0.1"},
    "pool_by": {"paper": "average (ICM: max)"},
    "decoder": {"paper": "[] (ICM: [32, 32, 64, 128])"},
}
"""Published values, for the help of a configuration."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a U-Net; triples are along (I, J, K).

    Attributes:
        classes: labels including background.
        channels: feature maps per level, finest first.
        stem: block of voxels folded into channels before the first level; (1, 1, 1) for none.
        kernel: convolution kernel, odd numbers; (3, 3, 1) makes a 2-D network.
        pooling: window of the pooling between levels.
        norm: "none" (the paper), "instance" or "switchable".
        dropout: probability, between the two convolutions of a block.
        pool_by: "average" (the paper) or "max".
        decoder: feature maps per level of the decoder, finest first, one fewer than `channels`;
            () takes those of `channels`.
    """

    classes: int
    channels: tuple[int, ...] = field(default=(64,) * 5, metadata=PAPER["channels"])
    stem: Triple = field(default=(1, 1, 1), metadata=PAPER["stem"])
    kernel: Triple = field(default=(3, 3, 3), metadata=PAPER["kernel"])
    pooling: Triple = field(default=(2, 2, 2), metadata=PAPER["pooling"])
    norm: str = field(default="none", metadata=PAPER["norm"])
    dropout: float = field(default=0.1, metadata=PAPER["dropout"])
    pool_by: str = field(default="average", metadata=PAPER["pool_by"])
    decoder: tuple[int, ...] = field(default=(), metadata=PAPER["decoder"])

    def __post_init__(self) -> None:
        for name in ("channels", "stem", "kernel", "pooling", "decoder"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        if self.classes < 2 or not self.channels or min(self.channels) < 1:
            raise ConfigError("A network needs two classes or more and one level or more.")
        levels = len(self.channels)
        if levels > MOST_LEVELS or max(*self.channels, *self.decoder, 0) > MOST_CHANNELS:
            raise ConfigError(
                f"A network has at most {MOST_LEVELS} levels of {MOST_CHANNELS} feature maps, not "
                f"{levels} of up to {max(*self.channels, *self.decoder, 0)}."
            )
        for name in ("stem", "kernel", "pooling"):
            triple = getattr(self, name)
            if len(triple) != 3 or not 1 <= min(triple) <= max(triple) <= MOST_WIDTH:
                raise ConfigError(
                    f"{name} needs three positive numbers up to {MOST_WIDTH}, not {triple}."
                )
        if any(k % 2 == 0 for k in self.kernel):
            raise ConfigError(f"kernel needs odd numbers, not {self.kernel}.")
        if self.norm not in NORMS:
            raise ConfigError(f"norm is one of {', '.join(NORMS)}, not {self.norm!r}.")
        if self.pool_by not in ("average", "max"):
            raise ConfigError(f"pool_by is 'average' or 'max', not {self.pool_by!r}.")
        if self.decoder and (len(self.decoder) != len(self.channels) - 1 or min(self.decoder) < 1):
            raise ConfigError(
                f"decoder needs {len(self.channels) - 1} positive numbers, one fewer than "
                f"channels, not {self.decoder}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}.")

    @property
    def divisor(self) -> Triple:
        """A window's size along (I, J, K) must be a multiple of this."""
        levels = len(self.channels) - 1
        return tuple(s * p**levels for s, p in zip(self.stem, self.pooling, strict=True))


def fold(x: torch.Tensor, block: Triple) -> torch.Tensor:
    """Fold (N, C, K, J, I) to (N, C * block voxels, K/bk, J/bj, I/bi); `block` is (I, J, K)."""
    if block == (1, 1, 1):
        return x
    n, c, k, j, i = x.shape
    bi, bj, bk = block
    x = x.reshape(n, c, k // bk, bk, j // bj, bj, i // bi, bi)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * bk * bj * bi, k // bk, j // bj, i // bi)


def unfold(x: torch.Tensor, block: Triple) -> torch.Tensor:
    """Invert `fold`."""
    if block == (1, 1, 1):
        return x
    n, c, k, j, i = x.shape
    bi, bj, bk = block
    x = x.reshape(n, c // (bk * bj * bi), bk, bj, bi, k, j, i)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, -1, k * bk, j * bj, i * bi)


def upsample(x: torch.Tensor, factors: Triple) -> torch.Tensor:
    """Interpolate (N, C, K, J, I) linearly, as `F.interpolate` with ``align_corners=False``.

    One matrix product per axis: it keeps the channels-last layout of the convolutions around it,
    which the library's kernel loses, and takes a fifth of its time on a CPU.
    """
    x = x.permute(0, 2, 3, 4, 1)
    for axis, factor in enumerate(factors[::-1], start=1):
        if factor > 1:
            matrix = _linear_matrix(x.shape[axis], factor, x)
            shape = (*x.shape[:axis], -1, *x.shape[axis + 1 :])
            x = (matrix @ x.flatten(axis + 1).flatten(0, axis - 1)).reshape(shape)
    return x.permute(0, 4, 1, 2, 3)


def _linear_matrix(length: int, factor: int, like: torch.Tensor) -> torch.Tensor:
    """Make (length * factor, length): each row weighs the two nearest inputs."""
    rows = torch.arange(length * factor, device=like.device)
    position = ((rows + 0.5) / factor - 0.5).clamp(0, length - 1)
    columns = torch.arange(length, device=like.device)
    return (1 - (position[:, None] - columns).abs()).clamp(min=0).to(like.dtype)


class InstanceNorm(nn.Module):
    """Instance norm with scale and offset per channel, sample by sample.

    For one sample it is batch norm, whose kernel keeps the channels-last layout, unlike
    `torch.nn.InstanceNorm3d`, and takes a third of its time on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        normed = [F.batch_norm(one, None, None, weight, bias, training=True) for one in x.split(1)]
        return torch.cat(normed) if len(normed) > 1 else normed[0]


class SwitchableNorm(nn.Module):
    """Switchable norm with scale and offset per channel (Luo et al., ICLR 2019, arXiv 1806.10779).

    Mean and variance are blends of those over a channel (instance norm), a sample (layer norm)
    and a batch (batch norm), with learned shares for each. In evaluation the batch's are running
    averages, so that samples do not see each other.
    """

    MOMENTUM = 0.1
    EPSILON = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean_shares = nn.Parameter(torch.zeros(3))
        self.variance_shares = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.float()
        mean, square = _Moments.apply(values)
        variance = (square - mean**2).clamp(min=0)
        layer_mean = mean.mean(1, keepdim=True)
        layer_variance = square.mean(1, keepdim=True) - layer_mean**2
        if self.training:
            batch_mean = mean.mean(0)
            batch_variance = square.mean(0) - batch_mean**2
            with torch.no_grad():
                self.mean.lerp_(batch_mean, self.MOMENTUM)
                self.variance.lerp_(batch_variance, self.MOMENTUM)
        else:
            batch_mean, batch_variance = self.mean, self.variance
        a, b = self.mean_shares.softmax(0), self.variance_shares.softmax(0)
        mean = a[0] * mean + a[1] * layer_mean + a[2] * batch_mean
        variance = b[0] * variance + b[1] * layer_variance + b[2] * batch_variance
        scale = self.weight / (variance + self.EPSILON).sqrt()
        return _Scaled.apply(values, scale, self.bias - mean * scale).to(x.dtype)


# A norm's time goes to reading and writing large tensors. With these two, whose backward passes do
# so as rarely as can be, switchable norm takes half the time on a CPU.


class _Moments(torch.autograd.Function):
    """(N, C, K, J, I) -> means of values and of squares, (N, C) each."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x)
        length = torch.linalg.vector_norm(x, dim=SPACE)
        return x.mean(SPACE), length.square() / x.shape[2:].numel()

    @staticmethod
    def backward(ctx: FunctionCtx, mean: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        count = x.shape[2:].numel()
        return torch.addcmul(_over_space(mean / count), x, _over_space(square * (2 / count)))


class _Scaled(torch.autograd.Function):
    """x * scale + shift of (N, C, K, J, I) by (N, C)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        return torch.addcmul(_over_space(shift), x, _over_space(scale))

    @staticmethod
    def backward(
        ctx: FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, scale = ctx.saved_tensors
        return gradient * _over_space(scale), (gradient * x).sum(SPACE), gradient.sum(SPACE)


def _over_space(values: torch.Tensor) -> torch.Tensor:
    return values[:, :, None, None, None]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "instance": InstanceNorm,
    "switchable": SwitchableNorm,
}


class Convolution(nn.Conv3d):
    """A 3-D convolution by oneDNN for a single sample too.

    In fp32 on a CPU, torch takes a kernel of its own for a single sample unless channels x K x J
    exceed 20480; a window of `abdomen-ct` needs two to four times as long with it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        reduced = torch.is_autocast_enabled("cpu")
        if single and not reduced and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class Block(nn.Module):
    """Two convolutions, each with an optional norm and leaky ReLU; dropout between them."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__()
        kernel = config.kernel[::-1]
        padding = tuple(k // 2 for k in kernel)
        self.convolutions = nn.ModuleList(
            Convolution(n, outputs, kernel, padding=padding) for n in (inputs, outputs)
        )
        self.norms = nn.ModuleList(NORMS[config.norm](outputs) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.norms[0](self.convolutions[0](x)), 0.1)
        x = self.dropout(x)
        return F.leaky_relu(self.norms[1](self.convolutions[1](x)), 0.1)


class UNet(nn.Module):
    """U-Net with pooling down, linear interpolation up, and concatenated skips."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        block_voxels = config.stem[0] * config.stem[1] * config.stem[2]
        channels = config.channels
        inputs = (block_voxels, *channels[:-1])
        self.down = nn.ModuleList(
            Block(n, m, config) for n, m in zip(inputs, channels, strict=True)
        )
        decoder = (*(config.decoder or channels[:-1]), channels[-1])
        self.up = nn.ModuleList(
            Block(below + skip, outputs, config)
            for skip, (outputs, below) in zip(channels, itertools.pairwise(decoder), strict=False)
        )
        self.head = Convolution(decoder[0], config.classes * block_voxels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                _he_truncated_normal(module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 1, K, J, I) network input to (N, classes, K, J, I) logits."""
        return self.decode(self.encode(x))

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, 1, K, J, I) network input to features of every level, the bottleneck's last."""
        pooling = self.config.pooling[::-1]
        pool = F.avg_pool3d if self.config.pool_by == "average" else F.max_pool3d
        x = fold(x, self.config.stem).contiguous(memory_format=torch.channels_last_3d)
        features = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else pool(x, pooling))
            features.append(x)
        return features

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map features of `encode` to (N, classes, K, J, I) logits."""
        return unfold(self.head(self._decoded(features)), self.config.stem)

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """Map (1, 1, K, J, I) network input to (classes, K, J, I) probabilities.

        The same as the softmax of `forward`, but slice by slice behind the last block: the logits
        of many classes together would leave a processor's cache, and need memory twice.
        """
        features = self._decoded(self.encode(x))
        probabilities = features.new_empty(self.config.classes, *x.shape[2:])
        slices = probabilities.split(self.config.stem[2], 1)
        for part, classified in zip(features.split(1, 2), slices, strict=True):
            classified.copy_(unfold(self.head(part), self.config.stem)[0].softmax(0))
        return probabilities

    def _decoded(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map features of `encode` to those that the head classifies."""
        *skips, x = features
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = block(torch.cat((upsample(x, self.config.pooling), skip), dim=1))
        return x

    def kernels(self) -> list[nn.Parameter]:
        """List the convolution kernels under L2 regularisation: all but the head's."""
        return [
            module.weight
            for module in self.modules()
            if isinstance(module, nn.Conv3d) and module is not self.head
        ]


def _he_truncated_normal(convolution: nn.Conv3d) -> None:
    fan_in = convolution.weight[0].numel()
    # A normal cut at two standard deviations has 0.8796 of its standard deviation left.
    std = (2 / fan_in) ** 0.5 / 0.87962566
    nn.init.trunc_normal_(convolution.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(convolution.bias)
