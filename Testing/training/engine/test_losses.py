# SPDX-License-Identifier: Apache-2.0
"""The loss against sums done by hand (Thaler et al. 2026, generalised Dice)."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from srcsm_training.engine.losses import (
    batch_dice_loss,
    generalised_dice_loss,
    mean_dice_loss,
    segmentation_losses,
)

FORMS = {"generalised": generalised_dice_loss, "mean": mean_dice_loss}


def segmentation_loss(*arguments):
    return sum(segmentation_losses(*arguments).values())


def a_sample(labels, probabilities):
    """(1, classes, 1, 1, voxels) probabilities and (1, 1, 1, voxels) labels."""
    return (
        torch.tensor(probabilities, dtype=torch.float32).T[None, :, None, None],
        torch.tensor(labels)[None, None, None],
    )


# Three voxels of class 0, one of class 1, none of class 2.
KNOWN = a_sample([0, 0, 1, 0], [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.4, 0.6, 0], [1, 0, 0]])
OVERLAP = (0.5 + 0.8 + 1, 0.6)
SQUARES = (0.25 + 0.64 + 0.16 + 1, 0.09 + 0.01 + 0.36)


def logits(probabilities):
    return probabilities.clamp(min=1e-30).log()


def random_sample(seed=0, classes=5, shape=(2, 4, 3, 5)):
    """Logits of two samples; class 3 is in neither, class 4 in the second only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, shape, generator=generator)
    labels[1, 0] = 4
    return torch.randn(shape[0], classes, *shape[1:], generator=generator), labels


def test_generalised_dice_equals_the_sums_by_hand():
    weights = (1 / (9 + 1e-4), 1 / (1 + 1e-4))
    above = weights[0] * OVERLAP[0] + weights[1] * OVERLAP[1]
    below = weights[0] * (3 + SQUARES[0]) + weights[1] * (1 + SQUARES[1])
    assert float(generalised_dice_loss(*KNOWN)) == pytest.approx(1 - 2 * above / below, rel=1e-6)


def test_mean_dice_equals_the_sums_by_hand():
    dice = (2 * OVERLAP[0] / (3 + SQUARES[0]), 2 * OVERLAP[1] / (1 + SQUARES[1]))
    assert float(mean_dice_loss(*KNOWN)) == pytest.approx(1 - sum(dice) / 2, rel=1e-6)


def literal_batch_dice(probabilities, labels):
    """The soft Dice of Chen et al. 2025, pixel by pixel."""
    samples, classes, *shape = probabilities.shape
    terms = []
    for label in range(classes):
        both = true = predicted = 0.0
        for n in range(samples):
            for place in itertools.product(*map(range, shape)):
                p = float(probabilities[(n, label, *place)])
                g = float(labels[(n, *place)] == label)
                both, true, predicted = both + p * g, true + g, predicted + p
        terms.append((2 * both + 1e-5) / (true + predicted + 1e-5))
    return 1 - sum(terms) / classes


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(5, 6), st.tuples(*[st.integers(1, 4)] * 4))
def test_batch_dice_equals_the_published_definition(seed, classes, shape):
    """Classes that no sample shows included."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, shape, generator=generator)
    values = torch.randn(shape[0], classes, *shape[1:], generator=generator)
    expected = literal_batch_dice(values.softmax(1), labels)
    assert float(batch_dice_loss(values.softmax(1), labels)) == pytest.approx(expected, abs=1e-5)
    both = float(segmentation_loss(values, labels, "batch", 0.5))
    added = 0.5 * float(F.cross_entropy(values, labels))
    assert both == pytest.approx(expected + added, abs=1e-5)


def test_batch_dice_of_a_batch_is_not_the_mean_of_its_samples():
    values, labels = random_sample()
    alone = [batch_dice_loss(values[n : n + 1].softmax(1), labels[n : n + 1]) for n in range(2)]
    together = batch_dice_loss(values.softmax(1), labels)
    assert not torch.isclose(together, sum(alone) / 2, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_class_absent_from_a_sample_is_left_out(form):
    """Whatever is predicted for it beyond what it takes from the others."""
    probabilities, labels = KNOWN
    changed = probabilities.clone()
    changed[:, 2] = 0.9
    assert FORMS[form](changed, labels) == FORMS[form](probabilities, labels)
    assert FORMS[form](probabilities[:, :2], labels) == FORMS[form](probabilities, labels)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_the_mean_of_its_samples(form):
    values, labels = random_sample()
    probabilities = values.softmax(1)
    alone = [FORMS[form](probabilities[n : n + 1], labels[n : n + 1]) for n in range(2)]
    assert not torch.isclose(*alone, rtol=0.01)
    torch.testing.assert_close(FORMS[form](probabilities, labels), sum(alone) / 2)


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_the_whole(form):
    labels = random_sample()[1]
    perfect = F.one_hot(labels, 5).movedim(-1, 1).float()
    assert float(FORMS[form](perfect, labels)) == pytest.approx(0, abs=1e-6)
    assert float(FORMS[form](perfect.roll(1, dims=1), labels)) == pytest.approx(1, abs=1e-6)
    for cross_entropy in (0.0, 1.0):
        loss = segmentation_loss(40 * perfect, labels, form, cross_entropy)
        assert float(loss) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_background_alone_has_a_finite_loss(form):
    values, labels = random_sample()
    assert 0 < float(segmentation_loss(values, labels * 0, form, 0.0)) < 1


def test_forms_and_weights_of_the_terms():
    values, labels = random_sample()
    for form, dice in FORMS.items():
        alone = segmentation_loss(values, labels, form, 0.0)
        torch.testing.assert_close(alone, dice(values.softmax(1), labels))
        both = segmentation_loss(values, labels, form, 0.7)
        torch.testing.assert_close(both - alone, 0.7 * F.cross_entropy(values, labels))
    assert not torch.isclose(*(f(values.softmax(1), labels) for f in FORMS.values()), rtol=1e-3)


def test_cross_entropy_equals_the_sum_by_hand():
    probabilities, labels = KNOWN
    both, alone = (segmentation_loss(logits(probabilities), labels, "mean", w) for w in (1, 0))
    expected = -(math.log(0.5) + math.log(0.8) + math.log(0.6) + math.log(1)) / 4
    assert float(both - alone) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_finite_and_points_down(form, dtype):
    values, labels = random_sample()
    values = (values * 30).to(dtype).requires_grad_()
    loss = segmentation_loss(values, labels, form, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert values.grad.isfinite().all()
    lower = segmentation_loss((values - 5 * values.grad).detach(), labels, form, 1.0)
    assert lower < loss
    # A true class is pushed up, and softmax shifts probability only.
    assert (values.grad.float().gather(1, labels[:, None]) <= 0).all()
    assert values.grad.float().sum(1).abs().max() < 1e-3


def test_a_large_window_does_not_overflow():
    """160 x 128 x 160 voxels leave float16, and their square leaves int32, but not float32."""
    voxels = 160 * 128 * 160
    labels = torch.zeros(1, 160, 128, 160, dtype=torch.int64)
    labels[:, :40, :50, :60] = 1
    probabilities = torch.full((1, 2, 160, 128, 160), 0.5)
    large, small = voxels - 120_000, 120_000
    quarter = voxels / 4  # sum of p squared
    above = 0.5 * (1 / large + 1 / small)
    below = (large + quarter) / large**2 + (small + quarter) / small**2
    found = float(generalised_dice_loss(probabilities, labels))
    assert found == pytest.approx(1 - 2 * above / below, rel=1e-4)
    mean = 0.5 * (large / (large + quarter) + small / (small + quarter))
    assert float(mean_dice_loss(probabilities, labels)) == pytest.approx(1 - mean, rel=1e-4)
