# SPDX-License-Identifier: Apache-2.0
"""Bias fields, coarse sampling and noise."""

import pytest
import torch

from srcsm_training.augment.degradation import DegradationConfig, degraded
from SRCSMSegmenterLib.errors import ConfigError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(samples=1, shape=(8, 24, 28)):
    return torch.rand((samples, 1, *shape), generator=seeded(9)) * 2 - 1


def only(**strength):
    """Every sample is degraded, by the kinds of a strength above nothing alone."""
    return DegradationConfig(chance=1.0, **({"bias": 0, "coarseness": 1, "noise": 0} | strength))


def test_without_a_chance_nothing_changes():
    x = images(3)
    assert degraded(x, DegradationConfig(), seeded()) is x


def test_strengths_of_nothing_change_nothing():
    x = images(3)
    torch.testing.assert_close(degraded(x, only(), seeded()), x)


def test_a_bias_field_multiplies_smoothly_and_leaves_air_alone():
    x = images(4)
    x[..., :4] = -1
    biased = degraded(x, only(bias=1.0), seeded())
    assert (biased[..., :4] == -1).all()
    factor = ((biased + 1) / (x + 1))[..., 5:]
    assert 0.5 <= float(factor.min()) < 0.95
    assert 1.05 < float(factor.max()) <= 2
    assert float(factor.diff(dim=-1).abs().max()) < 0.2


def test_coarse_sampling_takes_detail_away_along_k_or_within_slices():
    along_k = torch.rand(40, 1, 8, 1, 1, generator=seeded(3)).expand(-1, -1, -1, 24, 28)
    along_i = torch.rand(40, 1, 1, 1, 28, generator=seeded(4)).expand(-1, -1, 8, 24, -1)
    fewer_k, fewer_i = (
        (degraded(x.clone(), only(coarseness=4.0), seeded()) - x).abs().flatten(1).amax(1) > 1e-3
        for x in (along_k, along_i)
    )
    assert not (fewer_k & fewer_i).any()
    assert 8 < int(fewer_k.sum()) < 32
    assert 8 < int(fewer_i.sum()) < 32


def test_noise_is_as_strong_as_asked_for_at_the_most():
    x = torch.zeros(50, 1, 4, 12, 12)
    deviations = degraded(x, only(noise=0.3), seeded()).std(dim=(1, 2, 3, 4))
    assert 0.2 < float(deviations.max()) < 0.33
    assert float(deviations.min()) < 0.1


def test_a_chance_of_a_quarter_degrades_a_quarter():
    x = torch.zeros(400, 1, 1, 4, 4)
    config = DegradationConfig(chance=0.25, bias=0, coarseness=1, noise=0.3)
    changed = (degraded(x, config, seeded()) != 0).flatten(1).any(1)
    assert 70 < int(changed.sum()) < 130


def test_slices_of_their_own_are_degraded_too():
    x = images(20, (1, 16, 16))
    found = degraded(x, DegradationConfig(chance=1.0), seeded())
    assert found.shape == x.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("wrong", [{"chance": 2}, {"coarseness": 0.5}, {"noise": -1}])
def test_a_value_out_of_range_names_its_key(wrong):
    with pytest.raises(ConfigError, match=f"degradation.{next(iter(wrong))}"):
        DegradationConfig(**wrong)
