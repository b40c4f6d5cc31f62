# SPDX-License-Identifier: Apache-2.0
"""Semantic-aware random convolution, held against loops over samples, labels and layers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from srcsm_training.augment import random_convolution as src
from srcsm_training.augment.random_convolution import (
    MODES,
    apply,
    bounding_boxes,
    random_convolution,
    random_looks_of,
)
from srcsm_training.augment.random_networks import (
    NetworkSettings,
    RandomNetworks,
    _convolved,
    _grouped_response,
    draw,
    responses,
)
from SRCSMSegmenterLib.errors import InputError

DRAWN_WIDTHS = [[1, 1], [1, 3], [1, 1], [3, 1]]
DRAWN_KERNEL = [
    1.168688,
    0.394503,
    1.941462,
    0.791498,
    0.033532,
    0.710087,
    -1.535287,
    -0.412679,
    0.966303,
]
DRAWN_BLEND = [0.385662, 0.477764]
SHAPES = {2: (9, 7), 3: (6, 7, 5)}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def a_batch(samples, dimensions):
    """Images with 0 outside, and labels in blobs; label 3 is nowhere, 4 in the last sample only."""
    random = np.random.default_rng(10 * samples + dimensions)
    shape = (samples, *SHAPES[dimensions])
    images = torch.from_numpy(random.normal(0.2, 0.6, shape)).float()[:, None]
    labels = torch.from_numpy(random.integers(0, 3, shape))
    labels[-1, 0] = 4
    return images, labels


def drawn_and_applied(images, generator):
    looks = dict(random_looks_of(images, range(len(images)), generator))
    return torch.stack([looks[n] for n in range(len(images))])


def literal_network(networks, index, image):
    """One network on one image, layer by layer: Thaler et al. 2026, RCNet."""
    convolve = F.conv2d if image.dim() == 2 else F.conv3d
    middle = (..., *(1,) * image.dim())
    x = image[None, None].double()
    for layer in networks.weights:
        weight = layer[index].double()
        centre = weight[middle]
        one_wide = weight.abs().sum() == centre.abs().sum()
        if one_wide:
            x = convolve(x, centre.reshape(*centre.shape, *(1,) * image.dim()))
        else:
            x = convolve(x, weight, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
    share = networks.blend[index].double()
    blended = share * x[0, 0] + (1 - share) * image.double()
    return blended * image.double().norm() / max(float(blended.norm()), 1e-5)


def literal(networks, images, labels, mode):
    """The output of every mode for networks drawn in the order of samples and their labels."""
    results = []
    index = 0
    for image, label in zip(images[:, 0], labels, strict=True):
        if mode == "global":
            results.append(literal_network(networks, index, image))
            index += 1
            continue
        total = torch.zeros_like(image, dtype=torch.float64)
        for value in sorted(set(label.flatten().tolist())):
            mask = (label == value).double().numpy()
            if mode == "smoothed":
                mask = gaussian_filter(mask, sigma=1, radius=2, mode="nearest")
            total += literal_network(networks, index, image) * torch.from_numpy(mask)
            index += 1
        results.append(total)
    assert index == len(networks.blend)
    return torch.stack(results)[:, None]


@pytest.mark.parametrize("mode", ["global", "hard", "smoothed"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_networks_and_masks_equal_loops_in_float64(dimensions, samples, mode):
    images, labels = a_batch(samples, dimensions)
    found = random_convolution(images, labels, mode, seeded())
    present = sum(len(label.unique()) for label in labels)
    networks = draw(samples if mode == "global" else present, dimensions, seeded(), "cpu")
    expected = literal(networks, images, labels, mode)
    assert found.dtype == torch.float32
    assert found.shape == images.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_off_changes_nothing():
    images, labels = a_batch(2, 3)
    assert torch.equal(random_convolution(images, labels, "off", seeded()), images)


def test_the_four_modes_differ():
    images, labels = a_batch(2, 3)
    results = [random_convolution(images, labels, mode, seeded()) for mode in MODES]
    for n, one in enumerate(results):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in results[:n])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_look_keeps_the_norm_of_its_image(dimensions):
    images = a_batch(3, dimensions)[0][:, 0] * torch.tensor([1, 5, 100]).view(
        -1, *(1,) * dimensions
    )
    looks = drawn_and_applied(images, seeded())
    assert not torch.allclose(looks, images, rtol=0.05)
    torch.testing.assert_close(looks.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))


def test_a_blend_of_0_gives_the_image():
    images = a_batch(2, 3)[0][:, 0]
    networks = draw(2, 3, seeded(), "cpu")
    unblended = RandomNetworks(networks.weights, networks.widths, torch.zeros(2))
    torch.testing.assert_close(apply(unblended, images), images)


@pytest.mark.parametrize("mode", ["hard", "smoothed"])
def test_masks_sum_to_1_up_to_the_border(monkeypatch, mode):
    """If all labels have one network, they together are that network's look, at every voxel."""
    images, labels = a_batch(3, 3)
    one = draw(1, 3, seeded(), "cpu")

    def same(count, *_):
        return RandomNetworks(
            tuple(w.expand(count, *w.shape[1:]) for w in one.weights),
            one.widths.expand(-1, count),
            one.blend.expand(count),
        )

    monkeypatch.setattr(src, "draw", same)
    found = random_convolution(images, labels, mode, seeded())
    torch.testing.assert_close(found[:, 0], apply(same(3), images[:, 0]))


@pytest.mark.parametrize("mode", ["global", "hard", "smoothed"])
def test_the_same_seed_gives_the_same_look_and_another_seed_another(mode):
    images, labels = a_batch(2, 3)
    first, again, other = (
        random_convolution(images, labels, mode, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_absent_labels_are_not_drawn_for(monkeypatch):
    images, labels = a_batch(2, 3)
    counts = []
    monkeypatch.setattr(
        src, "draw", lambda count, *rest: counts.append(count) or draw(count, *rest)
    )
    random_convolution(images, labels, "smoothed", seeded())
    assert counts == [3 + 4]


def test_samples_and_labels_look_different():
    """The same image and labels twice in a batch: no network is shared."""
    images, labels = a_batch(1, 3)
    twice = random_convolution(
        images.repeat(2, 1, 1, 1, 1), labels.repeat(2, 1, 1, 1), "hard", seeded()
    )
    assert not torch.allclose(twice[0], twice[1], atol=1e-2)
    constant = torch.ones_like(images)
    look = random_convolution(constant, labels, "hard", seeded())[0, 0]
    middle = [look[labels[0] == label].median().item() for label in (0, 1, 2)]
    assert len(set(middle)) == 3


def test_global_ignores_the_labels():
    images, labels = a_batch(2, 3)
    found = random_convolution(images, labels, "global", seeded())
    assert torch.equal(found, random_convolution(images, labels * 0, "global", seeded()))


def test_half_of_the_kernels_are_one_wide_layer_by_layer():
    networks = draw(2000, 3, seeded(), "cpu")
    wide = []
    for weight, (inputs, outputs) in zip(
        networks.weights, ((1, 2), (2, 2), (2, 2), (2, 1)), strict=True
    ):
        assert weight.shape == (2000, outputs, inputs, 3, 3, 3)
        outer = weight.clone()
        outer[..., 1, 1, 1] = 0
        wide.append((outer != 0).flatten(1).any(1))
        assert abs(wide[-1].float().mean() - 0.5) < 0.05
        drawn = weight[wide[-1]]
        assert abs(drawn.mean()) < 0.02
        assert abs(drawn.std() - 1) < 0.02
        assert abs(weight[..., 1, 1, 1].std() - 1) < 0.05
    # Independent of each other: all four are wide once in sixteen times.
    assert abs(torch.stack(wide).all(0).float().mean() - 1 / 16) < 0.02
    assert 0 <= networks.blend.min() < 0.01
    assert 0.99 < networks.blend.max() <= 1
    assert abs(networks.blend.mean() - 0.5) < 0.03


def test_a_result_that_sums_to_0_is_drawn_again(monkeypatch):
    images = a_batch(3, 3)[0][:, 0]
    counts = []

    def draws(count, *rest):
        counts.append(count)
        networks = draw(count, *rest)
        if len(counts) == 1:  # The second network gives 0 everywhere.
            networks.weights[3][1] = 0
            networks.blend[1] = 1
        return networks

    monkeypatch.setattr(src, "draw", draws)
    looks = drawn_and_applied(images, seeded())
    assert counts == [3, 1]
    torch.testing.assert_close(looks.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
    kept = apply(draw(3, 3, seeded(), "cpu"), images)
    assert torch.equal(looks[[0, 2]], kept[[0, 2]])


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_zeros_stays_one_is_not_drawn_again_and_harms_no_other(monkeypatch, mode):
    images, labels = a_batch(2, 3)
    images[0] = 0
    draws = []
    monkeypatch.setattr(src, "draw", lambda *args: draws.append(args) or draw(*args))
    found = random_convolution(images, labels, mode, seeded())
    assert len(draws) == (mode != "off")
    assert (found[0] == 0).all()
    assert found[1].isfinite().all()
    assert found[1].abs().sum() > 0


def test_autocast_changes_nothing_on_the_cpu():
    images = a_batch(2, 3)[0][:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        looks = drawn_and_applied(images, seeded())
    assert torch.equal(looks, drawn_and_applied(images, seeded()))


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 3), (1, 2, 1), (9, 7)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 2), (2, 2), (2, 1)])
def test_the_blocked_convolution_is_torchs(inputs, outputs, shape, width):
    x = torch.randn(2, inputs, *shape, generator=seeded())
    weight = torch.randn(outputs, inputs, *(width,) * len(shape), generator=seeded(3))
    convolve = F.conv3d if len(shape) == 3 else F.conv2d
    expected = convolve(x, weight, padding=width // 2)
    torch.testing.assert_close(_convolved(x, weight), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_one_grouped_convolution_as_on_a_gpu_gives_the_same_responses(dimensions):
    x = torch.randn(2, 6, *SHAPES[dimensions], generator=seeded())
    networks = draw(6, dimensions, seeded(), "cpu")
    torch.testing.assert_close(
        _grouped_response(networks, x), responses(networks, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_boxes_hold_the_mask_and_its_margin_up_to_the_border(dimensions):
    masks = torch.zeros(2, *(9, 12, 8)[-dimensions:], dtype=torch.bool)
    masks[0, ..., 4:6, 3] = True
    masks[1, ..., 0, 7] = True
    first, second = bounding_boxes([*masks], 2)
    assert first[-2:] == (slice(2, 8), slice(1, 6))
    assert second[-2:] == (slice(0, 3), slice(5, 8))
    assert dimensions == 2 or first[0] == second[0] == slice(0, 9)
    assert bounding_boxes([], 2) == []


def test_the_draws_of_a_seed_are_those_of_the_first_release():
    networks = draw(2, 2, torch.Generator().manual_seed(0), "cpu")
    assert networks.widths.tolist() == DRAWN_WIDTHS
    kernel = networks.weights[1][1, 0, 0].flatten()
    assert kernel.tolist() == pytest.approx(DRAWN_KERNEL, abs=1e-6)
    assert networks.blend.tolist() == pytest.approx(DRAWN_BLEND, abs=1e-6)


def test_settings_change_layers_channels_kernels_and_slope():
    settings = NetworkSettings(layers=2, channels=3, kernels=(3, 5), slope=0.5)
    networks = draw(400, 2, seeded(), "cpu", settings)
    assert [tuple(w.shape) for w in networks.weights] == [(400, 3, 1, 5, 5), (400, 1, 3, 5, 5)]
    assert set(networks.widths.flatten().tolist()) == {3, 5}
    narrow = networks.weights[0][networks.widths[0] == 3]
    assert (narrow[..., 0] == 0).all()
    assert (narrow[..., 1:4, 1] != 0).all()
    assert networks.slope == 0.5


@pytest.mark.parametrize(
    "fault", [{"layers": 0}, {"channels": 0}, {"kernels": (2,)}, {"kernels": ()}]
)
def test_impossible_settings_are_refused(fault):
    with pytest.raises(InputError, match=str(next(iter(fault)))):
        NetworkSettings(**fault)


def test_each_channel_has_networks_of_its_own():
    images, labels = a_batch(2, 3)
    found = random_convolution(images.repeat(1, 2, 1, 1, 1), labels, "smoothed", seeded())
    assert found.shape == (2, 2, *SHAPES[3])
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-2)


@pytest.mark.parametrize(
    ("images", "labels", "mode", "message"),
    [
        ((2, 1, 4, 5), (1, 4, 5), "hard", r"\(2, 1, 4, 5\).*\(2, 4, 5\), not \(1, 4, 5\)"),
        ((2, 1, 4, 5), (2, 1, 4, 5), "hard", r"not \(2, 1, 4, 5\)"),
        ((4, 5), (4, 5), "hard", r"not of shape \(4, 5\)"),
        ((1, 1, 4, 5), (1, 4, 5), "smooth", "'smooth'"),
    ],
)
def test_shapes_and_modes_that_do_not_fit_are_refused(images, labels, mode, message):
    labels = torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        random_convolution(torch.zeros(images), labels, mode, seeded())


def test_negative_and_fractional_labels_and_other_dtypes_are_refused():
    images, labels = a_batch(1, 2)
    with pytest.raises(InputError, match="0 or more, not -1"):
        random_convolution(images, labels - 1, "hard", seeded())
    with pytest.raises(InputError, match="integers, not torch"):
        random_convolution(images, labels.float(), "hard", seeded())
    with pytest.raises(InputError, match="are float32, not"):
        random_convolution(images.double(), labels, "hard", seeded())


def test_a_label_of_255_and_a_huge_one_are_regions_like_others():
    images, labels = a_batch(1, 2)
    expected = random_convolution(images, labels, "smoothed", seeded())
    for large in (255, 1 << 40):
        other = torch.where(labels == 4, large, labels)
        assert torch.equal(random_convolution(images, other, "smoothed", seeded()), expected)


@pytest.mark.needs_gpu
def test_a_gpu_gives_the_same_looks_from_the_same_cpu_generator():
    images, labels = a_batch(2, 3)
    here = random_convolution(images, labels, "smoothed", seeded())
    there = random_convolution(images.cuda(), labels.cuda(), "smoothed", seeded())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-2, atol=1e-2)
