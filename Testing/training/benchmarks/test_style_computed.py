# SPDX-License-Identifier: Apache-2.0
"""What the computed costs rest on: counts of bytes and operations, and sizes of networks."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from srcsm_training.benchmarks.style_computed import (
    Alive,
    computed,
    control_of,
    counted,
    stable_diffusion,
)


def test_bytes_are_those_alive():
    """12 MB stay, views add nothing, and 4 MB that die make room for 4 others."""
    with FakeTensorMode(), Alive() as alive:
        kept = torch.empty(3, 1_000_000)
        view = kept[1:]
        other = torch.empty(1_000_000)
        assert alive.bytes == 16e6
        del other
        assert alive.bytes == 12e6
        other = torch.empty(2, 500_000)
    assert (alive.bytes, alive.peak) == (16e6, 16e6)
    del view, other


def test_a_pass_is_counted_with_what_adamw_needs():
    """Two layers, the first frozen: forward twice, backward once for the second's weights."""
    with torch.device("meta"):
        frozen, trained = nn.Linear(300, 200, bias=False), nn.Linear(200, 100, bias=False)
    frozen.requires_grad_(False)

    def work():
        trained(frozen(torch.empty(50, 300))).sum().backward()

    found = counted((frozen, trained), work)
    assert found.trained == 20_000
    assert found.operations == 2 * 50 * (300 * 200 + 2 * 200 * 100)
    weights = 4 * (300 * 200 + 200 * 100)
    assert found.bytes == weights + 4 * 4 * 20_000


def test_the_networks_are_as_large_as_stable_diffusions():
    unet, vae, text = stable_diffusion()
    control = control_of(unet)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (unet, vae, text, control)]
    assert sizes == [859_520_964, 83_653_863, 123_060_480, 361_279_120]
    assert not any(p.requires_grad for n in (unet, vae, text) for p in n.parameters())
    assert (unet.dtype, vae.dtype, text.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_the_table_for_a_gpu_is_computed():
    table = computed()
    assert len(table.rows) == 5
    memory = [row.values[1] for row in table.rows]
    assert memory[1] < memory[2] < memory[0] < 24
