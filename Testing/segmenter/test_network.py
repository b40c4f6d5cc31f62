# SPDX-License-Identifier: Apache-2.0
"""The U-Net: its parts against the library's, and what one voxel may depend on."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.network import (
    Convolution,
    InstanceNorm,
    NetworkConfig,
    SwitchableNorm,
    UNet,
    fold,
    unfold,
    upsample,
)

SMALL = NetworkConfig(classes=3, channels=(2, 3, 4), stem=(2, 1, 1), norm="instance", dropout=0.5)
FLAT = NetworkConfig(
    classes=3,
    channels=(2, 3, 5),
    kernel=(3, 3, 1),
    pooling=(2, 2, 1),
    norm="switchable",
    dropout=0.0,
    pool_by="max",
    decoder=(4, 6),
)


def seeded(config: NetworkConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("block", [(1, 1, 1), (2, 1, 1), (1, 3, 2), (2, 3, 4)])
def test_unfold_undoes_fold(block):
    x = noise(2, 3, 8, 6, 4)
    bi, bj, bk = block
    folded = fold(x, block)
    assert folded.shape == (2, 3 * bi * bj * bk, 8 // bk, 6 // bj, 4 // bi)
    assert torch.equal(unfold(folded, block), x)


def test_fold_puts_the_voxels_of_a_block_into_the_channels_of_one_place():
    x = torch.arange(2 * 6 * 4).reshape(1, 1, 2, 6, 4)
    folded = fold(x, (2, 3, 1))
    assert folded[0, :, 1, 1, 0].tolist() == x[0, 0, 1, 3:6, 0:2].flatten().tolist()


@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 1, 1), (1, 3, 2)])
def test_upsampling_equals_the_librarys(factors):
    x = noise(2, 3, 4, 1, 5)
    expected = F.interpolate(
        x, scale_factor=tuple(map(float, factors[::-1])), mode="trilinear", align_corners=False
    )
    torch.testing.assert_close(upsample(x, factors), expected)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 3, 3)])
def test_a_convolution_of_one_sample_equals_the_librarys_and_so_do_its_gradients(kernel):
    torch.manual_seed(0)
    ours = Convolution(3, 5, kernel, padding=tuple(k // 2 for k in kernel))
    theirs = nn.Conv3d(3, 5, kernel, padding=tuple(k // 2 for k in kernel))
    theirs.load_state_dict(ours.state_dict())
    x = noise(1, 3, 4, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    for convolution in (ours, theirs):
        convolution(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_one_window_takes_no_slow_convolution():
    with torch.autograd.profiler.profile() as profile, torch.inference_mode():
        seeded(SMALL)(noise(1, 1, 4, 8, 16))
    names = {event.name for event in profile.function_events}
    assert "aten::mkldnn_convolution" in names
    assert "aten::slow_conv3d_forward" not in names


def test_a_convolution_of_one_sample_is_in_reduced_precision_when_asked_for():
    with torch.autocast("cpu", torch.bfloat16):
        assert Convolution(3, 5, 3)(noise(1, 3, 4, 6, 7)).dtype == torch.bfloat16


def test_instance_norm_equals_the_librarys():
    ours, library = InstanceNorm(3), nn.InstanceNorm3d(3, affine=True)
    scale, offset = torch.tensor([0.5, 2, -1]), torch.tensor([1.0, 0, 3])
    for norm in (ours, library):
        norm.weight.data, norm.bias.data = scale.clone(), offset.clone()
    x = noise(2, 3, 4, 5, 6) * 3 + 1
    torch.testing.assert_close(ours(x), library(x))
    torch.testing.assert_close(ours(x[:1]), library(x[:1]))


def literal_switchable_norm(x, weight, bias, mean_shares, variance_shares):
    """Luo et al., equations 2 to 5, one channel of one sample at a time."""
    shares = [[v.exp() for v in values] for values in (mean_shares, variance_shares)]
    shares = [[v / sum(values) for v in values] for values in shares]
    result = torch.empty_like(x)
    for n in range(len(x)):
        for c in range(x.shape[1]):
            parts = (x[n, c], x[n], x[:, c])
            mean = sum(s * part.mean() for s, part in zip(shares[0], parts, strict=True))
            variance = sum(
                s * ((part - part.mean()) ** 2).mean()
                for s, part in zip(shares[1], parts, strict=True)
            )
            result[n, c] = weight[c] * (x[n, c] - mean) / (variance + 1e-5) ** 0.5 + bias[c]
    return result


def a_switchable_norm():
    norm = SwitchableNorm(4)
    norm.weight.data = torch.tensor([0.5, 2, -1, 1])
    norm.bias.data = torch.tensor([1.0, 0, 3, -2])
    norm.mean_shares.data = torch.tensor([0.3, -0.5, 1.1])
    norm.variance_shares.data = torch.tensor([-0.7, 0.9, 0.2])
    return norm


def test_switchable_norm_equals_its_equations():
    norm, x = a_switchable_norm(), noise(3, 4, 1, 5, 6) * torch.arange(1.0, 4).view(3, 1, 1, 1, 1)
    x = x + torch.arange(4.0).view(1, 4, 1, 1, 1)
    values = (norm.weight, norm.bias, norm.mean_shares, norm.variance_shares)
    torch.testing.assert_close(norm(x), literal_switchable_norm(x, *values))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradients_of_switchable_norm_are_those_of_its_equations(layout):
    norm, x = a_switchable_norm(), noise(3, 4, 2, 5, 6).contiguous(memory_format=layout) + 0.5
    parameters = (norm.weight, norm.bias, norm.mean_shares, norm.variance_shares)
    towards = noise(3, 4, 2, 5, 6)

    def gradients(output):
        return torch.autograd.grad((output * towards).sum(), (x, *parameters))

    x.requires_grad_(True)
    ours, literal = gradients(norm(x)), gradients(literal_switchable_norm(x, *parameters))
    torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-5)


def test_switchable_norm_remembers_the_batches_and_keeps_samples_apart_in_evaluation():
    norm, x = a_switchable_norm(), 2 * noise(3, 4, 1, 5, 6) + 1
    norm(x)
    over = (0, 2, 3, 4)
    torch.testing.assert_close(norm.mean, 0.1 * x.mean(over))
    torch.testing.assert_close(norm.variance, 0.9 + 0.1 * x.var(over, correction=0))
    before = norm.mean.clone()
    together = norm.eval()(x)
    assert torch.equal(norm.mean, before)
    torch.testing.assert_close(together, torch.cat([norm(one) for one in x.split(1)]))
    assert not torch.allclose(together, norm.train()(x), atol=0.01)


def test_the_published_slice_network_has_the_published_widths():
    config = NetworkConfig(
        classes=5,
        channels=(32, 64, 128, 256, 256),
        kernel=(3, 3, 1),
        pooling=(2, 2, 1),
        norm="switchable",
        dropout=0.0,
        pool_by="max",
        decoder=(32, 32, 64, 128),
    )
    with torch.device("meta"):
        network = UNet(config)
        features = network.encode(torch.zeros(2, 1, 1, 96, 128))
        logits = network.decode(features)
    assert [f.shape[1] for f in features] == [32, 64, 128, 256, 256]
    assert features[-1].shape == (2, 256, 1, 6, 8)
    widths = [
        (up.convolutions[0].in_channels, up.convolutions[1].out_channels) for up in network.up
    ]
    assert widths == [(64, 32), (128, 32), (256, 64), (512, 128)]
    assert logits.shape == (2, 5, 1, 96, 128)


def test_pooling_takes_the_mean_or_the_largest():
    config = NetworkConfig(classes=2, channels=(2, 3), kernel=(1, 1, 1), pooling=(2, 2, 1))
    x = noise(1, 1, 1, 4, 6)
    for pool_by, pool in (("average", F.avg_pool3d), ("max", F.max_pool3d)):
        network = seeded(replace(config, pool_by=pool_by))
        finest, deepest = network.encode(x)
        torch.testing.assert_close(deepest, network.down[1](pool(finest, (1, 2, 2))))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        FLAT,
        NetworkConfig(classes=5, channels=(4,)),
        NetworkConfig(classes=2, channels=(2, 2), pooling=(2, 2, 1), kernel=(3, 3, 1)),
        NetworkConfig(classes=2, channels=(3, 2), stem=(1, 2, 3)),
    ],
)
def test_logits_have_the_size_of_the_window(config):
    i, j, k = (2 * n for n in config.divisor)
    logits = seeded(config)(noise(2, 1, k, j, i))
    assert logits.shape == (2, config.classes, k, j, i)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("config", [SMALL, FLAT, replace(SMALL, stem=(1, 2, 3))])
def test_probabilities_of_a_window_are_the_softmax_of_its_logits(config):
    i, j, k = (2 * n for n in config.divisor)
    network, x = seeded(config).eval(), noise(1, 1, k, j, i)
    with torch.inference_mode():
        torch.testing.assert_close(network.probabilities(x), network(x)[0].softmax(0))


def test_the_papers_network_is_the_default():
    network = UNet(NetworkConfig(classes=5))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert len(convolutions) == 2 * 9 + 1
    assert {tuple(m.kernel_size) for m in convolutions[:-1]} == {(3, 3, 3)}
    assert {m.out_channels for m in convolutions[:-1]} == {64}
    assert network.config.divisor == (16, 16, 16)
    assert not any("norm" in name for name in network.state_dict())


@pytest.mark.parametrize("config", [SMALL, FLAT])
def test_samples_of_a_batch_do_not_see_each_other(config):
    network, x = seeded(config), noise(3, 1, 4, 8, 16)
    alone = torch.cat([network(one) for one in x.split(1)])
    torch.testing.assert_close(network(x), alone, atol=1e-5, rtol=1e-4)


def test_a_network_of_flat_kernels_keeps_slices_apart():
    config = NetworkConfig(classes=2, channels=(2, 3), kernel=(3, 3, 1), pooling=(2, 2, 1))
    network, x = seeded(config), noise(1, 1, 5, 8, 8)
    changed = x.clone()
    changed[:, :, 2] += 1
    difference = (network(changed) - network(x)).abs().amax((0, 1, 3, 4))
    assert difference[2] > 1e-3
    assert (difference[[0, 1, 3, 4]] == 0).all()


def test_the_first_triple_entry_is_i():
    config = NetworkConfig(classes=2, channels=(2,), kernel=(5, 3, 1))
    network, x = seeded(config), torch.zeros(1, 1, 9, 13, 21)
    changed = x.clone()
    changed[0, 0, 4, 6, 10] = 1
    touched = (network(changed) != network(x))[0].any(0).nonzero()
    low, high = touched.amin(0).tolist(), touched.amax(0).tolist()
    assert (low, high) == ([4, 4, 6], [4, 8, 14])


def test_dropout_acts_in_training_only():
    network, x = seeded(SMALL), noise(1, 1, 4, 8, 16)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_the_head_is_the_one_convolution_without_regularisation():
    network = UNet(SMALL)
    kernels = network.kernels()
    assert len(kernels) == 2 * (3 + 2)
    assert all(kernel.dim() == 5 for kernel in kernels)
    assert not any(kernel is network.head.weight for kernel in kernels)


def test_kernels_start_as_he_said_and_biases_at_zero():
    weights = seeded(NetworkConfig(classes=2, channels=(64, 64))).down[1].convolutions[0]
    expected = (2 / (64 * 27)) ** 0.5
    assert weights.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert weights.weight.abs().max().item() <= 2 * expected / 0.8796 + 1e-6
    assert (weights.bias == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1},
        {"channels": ()},
        {"channels": (4, 0)},
        {"kernel": (3, 2, 3)},
        {"kernel": (3, 3)},
        {"stem": (2, 0, 1)},
        {"pooling": (2, 2, -2)},
        {"norm": "batch"},
        {"pool_by": "median"},
        {"decoder": (2,)},
        {"decoder": (2, 0)},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_impossible_networks_are_refused(change):
    with pytest.raises(ConfigError):
        replace(SMALL, **change)
