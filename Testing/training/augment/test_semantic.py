# SPDX-License-Identifier: Apache-2.0
"""The module of semantic-aware random convolution: what it takes, gives and refuses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from srcsm_training.augment.random_convolution import random_convolution
from srcsm_training.augment.random_networks import NetworkSettings
from srcsm_training.augment.regions import RegionsConfig, random_looks
from srcsm_training.augment.semantic import SemanticRandomConvolution

SRC = SemanticRandomConvolution()
SHAPES = [(9, 7), (6, 7, 5)]


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def a_batch(shape, channels=1):
    images = torch.rand(2, channels, *shape, generator=seeded(1)) * 2 - 1
    return images, torch.randint(0, 4, (2, *shape), generator=seeded(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_of_labels_gives_what_training_gets(shape):
    images, labels = a_batch(shape)
    expected = random_convolution(images, labels, "smoothed", seeded())
    one_hot = F.one_hot(labels, 4).movedim(-1, 1)
    for form in (labels, labels[:, None], labels.float(), labels.byte(), one_hot, one_hot.bool()):
        assert torch.equal(SRC(images, form, seeded()), expected)


def test_settings_and_regions_reach_the_networks():
    images, labels = a_batch(SHAPES[1])
    settings = {"layers": 2, "channels": 3, "kernels": (3,), "slope": 0.3}
    found = SemanticRandomConvolution(sigma=2.0, **settings)(images, labels, seeded())
    expected = random_convolution(
        images, labels, "smoothed", seeded(), NetworkSettings(**settings), 2.0
    )
    assert torch.equal(found, expected)
    regions = RegionsConfig(share=1.0)
    found = SemanticRandomConvolution(regions=regions)(images, labels, seeded())
    assert torch.equal(found, random_looks(images, labels, "smoothed", regions, seeded()))


@pytest.mark.parametrize("ignored", [255, -1])
def test_the_ignore_label_keeps_its_voxels_and_no_others(ignored):
    images, labels = a_batch(SHAPES[0], channels=2)
    labels[0, 2:4] = ignored
    looks = SemanticRandomConvolution(ignore_label=ignored)(images, labels, seeded())
    kept = (looks == images).all(1)
    assert torch.equal(kept, labels == ignored)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_computed_in_float32_and_given_back(dtype):
    images, labels = a_batch(SHAPES[0])
    looks = SRC(images.to(dtype), labels, seeded())
    assert looks.dtype == dtype
    assert torch.equal(looks, SRC(images.to(dtype).float(), labels, seeded()).to(dtype))


def test_without_a_generator_it_is_torchs_own():
    images, labels = a_batch(SHAPES[0])
    torch.manual_seed(3)
    first = SRC(images, labels)
    assert not torch.equal(SRC(images, labels), first)
    torch.manual_seed(3)
    assert torch.equal(SRC(images, labels), first)


def test_in_evaluation_and_switched_off_it_changes_nothing():
    images, labels = a_batch(SHAPES[0])
    assert SemanticRandomConvolution().eval()(images, labels) is images
    assert SemanticRandomConvolution("off")(images, labels) is images


IMAGES, LABELS = a_batch(SHAPES[0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.numpy(), LABELS, "torch.Tensor, not ndarray"),
        (IMAGES, LABELS.numpy(), "labels are a torch.Tensor, not ndarray"),
        (IMAGES[0], LABELS[0], r"not of shape \(1, 9, 7\).*image\[None\]"),
        ((IMAGES * 255).byte(), LABELS, "floating point, not torch.uint8"),
        (IMAGES / 0, LABELS, "NaN or infinite"),
        (IMAGES, LABELS[:1], r"\(2, 1, 9, 7\).*\(2, 9, 7\).*not \(1, 9, 7\)"),
        (IMAGES, LABELS[:, :5], r"not \(2, 5, 7\)"),
        (IMAGES, LABELS - 1, "0 or more, not -1"),
        (IMAGES, LABELS[:, None].expand(2, 3, 9, 7), "one of the 3 classes is 1"),
        (IMAGES, torch.rand(2, 3, 9, 7).softmax(1), "fractions, as probabilities do"),
        (IMAGES[:, :, :0], LABELS[:, :0], r"not of shape \(2, 1, 0, 7\)"),
        (IMAGES[:, :0], LABELS, r"not of shape \(2, 0, 9, 7\)"),
    ],
)
def test_wrong_input_is_refused_with_what_is_wrong(images, labels, message):
    with pytest.raises(ValueError, match=message):
        SRC(images, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "smooth"}, "'smooth'"),
        ({"sigma": 0}, "sigma is above 0"),
        ({"sigma": float("inf")}, "at most 10.0, not inf"),
        ({"kernels": (2,)}, "odd widths"),
        ({"kernels": 2.5}, "odd widths"),
        ({"slope": float("nan")}, "slope is a number"),
        ({"ignore_label": 2.5}, "ignore_label is a whole number or None, not 2.5"),
        ({"regions": {"share": 1.0}}, "a RegionsConfig or None, not dict"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SemanticRandomConvolution(**settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.repeat(1, 2, 1, 1), r"one channel, not of shape \(2, 2, 9, 7\)"),
        (IMAGES * 1000, "normalised to about that, not from -[0-9.]+ to"),  # HU
        (IMAGES.abs() * 1000, "normalised to about that"),  # a raw MR
    ],
)
def test_regions_take_one_normalised_channel(images, message):
    with pytest.raises(ValueError, match=message):
        SemanticRandomConvolution(regions=RegionsConfig(share=1.0))(images, LABELS)


@pytest.mark.parametrize("generator", [0, np.random.default_rng(0)])
def test_a_generator_is_torchs(generator):
    with pytest.raises(ValueError, match=r"generator is a torch\.Generator on the CPU"):
        SRC(IMAGES, LABELS, generator)


def test_a_wide_gaussian_is_not_cut_to_five_taps():
    labels = torch.zeros(1, 1, 41).long()
    labels[..., 20:] = 1
    images = torch.where(labels[:, None] == 1, 0.5, -1.0)
    looks = SemanticRandomConvolution(layers=1, kernels=(1,), sigma=5.0)(images, labels, seeded())
    mixed = (looks[0, 0, 0] - looks[0, 0, 0, 0]).abs() > 1e-5
    assert mixed.nonzero()[0] == 10


def test_gradients_do_not_flow_and_inputs_stay():
    images, labels = a_batch(SHAPES[1])
    before = images.clone(), labels.clone()
    assert not SRC(images.requires_grad_(), labels).requires_grad
    assert np.array_equal(images.detach(), before[0])
    assert torch.equal(labels, before[1])
