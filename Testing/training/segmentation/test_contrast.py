# SPDX-License-Identifier: Apache-2.0
"""Contrast, and the loss of a pair, by their definitions and over processes (Chen et al. 2025)."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srcsm_training.segmentation.contrast import Projection, nt_xent
from srcsm_training.segmentation.pairs import pair_losses
from srcsm_training.segmentation.presets import PRESETS


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_nt_xent(projected, temperature):
    """NT-Xent (Chen et al. 2025) term by term, for views (V, N, D, rows, columns)."""
    views, slices, _, rows, columns = projected.shape
    losses = []
    for row in range(rows):
        for column in range(columns):

            def vector(view, n, row=row, column=column):
                return projected[view, n, :, row, column].tolist()

            for n in range(slices):
                for view in range(views):
                    anchor = vector(view, n)
                    negatives = 0.0
                    for other in range(slices):
                        if other != n:
                            for any_view in range(views):
                                similarity = cosine(anchor, vector(any_view, other))
                                negatives += math.exp(similarity / temperature)
                    for other_view in range(views):
                        if other_view != view:
                            similarity = cosine(anchor, vector(other_view, n))
                            positive = math.exp(similarity / temperature)
                            losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def features(views, slices, channels, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, slices, channels, rows, columns, generator=generator).double()


@settings(max_examples=15)
@given(
    st.integers(2, 3),
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0.07, 0.2, 1.0]),
)
def test_nt_xent_equals_its_definition(views, slices, channels, rows, columns, temperature):
    projected = features(views, slices, channels, rows, columns)
    found = float(nt_xent(projected, temperature))
    assert found == pytest.approx(literal_nt_xent(projected, temperature), rel=1e-4, abs=1e-6)


def test_nt_xent_of_two_known_slices():
    """Two slices at right angles, whose views agree: -log(e^5 / (e^5 + 2 e^0))."""
    one, other = torch.tensor([1.0, 0]), torch.tensor([0, 3.0])
    view = torch.stack([one, other]).view(2, 2, 1, 1)
    expected = -math.log(math.exp(5) / (math.exp(5) + 2))
    assert float(nt_xent(torch.stack([view, 7 * view]), 0.2)) == pytest.approx(expected, abs=1e-6)


def test_positions_are_not_compared_with_each_other():
    projected = features(2, 3, 4, 2, 2)
    alone = [nt_xent(projected[..., r : r + 1, c : c + 1], 0.2) for r in range(2) for c in range(2)]
    torch.testing.assert_close(nt_xent(projected, 0.2), sum(alone) / 4)


def test_three_axes_of_positions_are_as_good_as_two():
    projected = features(2, 3, 4, 2, 3)
    torch.testing.assert_close(nt_xent(projected[:, :, :, None], 0.2), nt_xent(projected, 0.2))


def test_the_gradient_brings_views_together_and_slices_apart():
    projected = features(2, 3, 4, 1, 1).float().requires_grad_()
    before = nt_xent(projected, 0.2)
    before.backward()
    assert projected.grad.isfinite().all()
    assert nt_xent((projected - projected.grad).detach(), 0.2) < before


def test_the_projection_is_the_published_one():
    projection = Projection(256, 128)
    kinds = [type(layer).__name__ for layer in projection]
    assert kinds == ["Conv3d", "BatchNorm3d", "ReLU", "Conv3d", "BatchNorm3d"]
    first, last = projection[0], projection[3]
    assert (first.in_channels, first.out_channels, last.out_channels) == (256, 256, 128)
    assert first.kernel_size == last.kernel_size == (1, 1, 1)
    x = torch.randn(2, 256, 1, 3, 4)
    assert projection(x).shape == (2, 128, 1, 3, 4)


def test_the_loss_of_a_pair_is_the_published_sum():
    """(Dice(source) + Dice(style)) / 2 + NT-Xent, each by its definition; soft Dice with 1e-5."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 1, 2, 2).double()
    labels = torch.randint(4, (3, 1, 2, 2))
    projected = features(2, 3, 5, 1, 2)
    dice = []
    for view in range(2):
        ratios = []
        for c in range(4):
            overlap = total = 0.0
            for n in range(3):
                for row in range(2):
                    for column in range(2):
                        scores = logits[view, n, :, 0, row, column].exp().tolist()
                        p, g = scores[c] / sum(scores), float(labels[n, 0, row, column] == c)
                        overlap, total = overlap + p * g, total + p + g
            ratios.append((2 * overlap + 1e-5) / (total + 1e-5))
        dice.append(1 - sum(ratios) / len(ratios))
    preset = PRESETS["icm"]
    assert (preset.pairs.temperature, preset.pairs.contrast) == (0.2, 1.0)

    def found(with_contrast):
        given = projected[:, :, :, None].flatten(0, 1) if with_contrast else None
        both = logits.flatten(0, 1)
        return float(
            sum(pair_losses(both, given, labels, preset.optimisation, preset.pairs).values())
        )

    assert found(False) == pytest.approx(sum(dice) / 2, abs=1e-5)
    literal = sum(dice) / 2 + literal_nt_xent(projected, 0.2)
    assert found(True) == pytest.approx(literal, abs=1e-5)


TWO_PROCESSES = """
import sys
import torch
from torch import distributed, nn
from srcsm_training.segmentation.contrast import nt_xent
torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
everything = torch.randn(2, 6, 5, 2, 3)
layer = nn.parallel.DistributedDataParallel(nn.Conv2d(5, 4, 1))
mine = everything[:, 3 * rank : 3 * rank + 3]
projected = layer(mine.flatten(0, 1)).unflatten(0, (2, 3))
loss = nt_xent(projected, 0.2)
loss.backward()
torch.save([loss.detach(), layer.module.weight.grad], f"{sys.argv[1]}/rank{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does_with_all_slices(tmp_path):
    """Loss and gradient; a wrong offset of the second process's slices changes both."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (first, gradient), (second, same) = (
        torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)
    )
    torch.manual_seed(0)
    everything = torch.randn(2, 6, 5, 2, 3)
    layer = torch.nn.Conv2d(5, 4, 1)
    alone = nt_xent(layer(everything.flatten(0, 1)).unflatten(0, (2, 6)), 0.2)
    alone.backward()
    torch.testing.assert_close((first + second) / 2, alone.detach())
    torch.testing.assert_close(gradient, layer.weight.grad)
    assert torch.equal(gradient, same)
    assert first != second
