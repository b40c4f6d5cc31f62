# SPDX-License-Identifier: Apache-2.0
"""Looks of CT tissues in other sequences."""

import pytest
import torch

from srcsm_training.augment.sequences import SEQUENCES, TEXTURE, as_sequence
from SRCSMSegmenterLib.intensity import IntensityRule

RULE = IntensityRule("CT", window=(-125.0, 275.0))
NAMES = ("liver", "left_kidney", "spleen", "aorta")
HU = {"air": -125.0, "fat": -100.0, "soft": 50.0, "dense": 250.0}


def a_slab() -> tuple[torch.Tensor, torch.Tensor, dict[str, slice]]:
    """Eight columns of 12 voxels: four kinds of unlabelled tissue, then the four labels."""
    hu = torch.tensor([*HU.values(), 60.0, 180.0, 90.0, 150.0])
    image = (hu + 125) / 200 - 1
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    columns = {name: slice(12 * n + 4, 12 * n + 8) for n, name in enumerate((*HU, *NAMES))}
    shape = (1, 6, 6, 96)
    return (
        image.repeat_interleave(12).expand(shape).contiguous(),
        labels.repeat_interleave(12).expand(shape[1:]).contiguous(),
        columns,
    )


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_tissue_gets_the_intensity_of_the_sequence(name):
    image, labels, columns = a_slab()
    wanted = SEQUENCES[name]
    look = as_sequence(image, labels, NAMES, RULE, wanted)
    assert look.shape == image.shape
    expected = {
        "air": -1.0,
        "fat": wanted.fat,
        "soft": wanted.soft,
        "dense": wanted.dense,
        "liver": wanted.liver,
        "left_kidney": wanted.kidney,
        "spleen": wanted.spleen,
        "aorta": wanted.soft,
    }
    for tissue, column in columns.items():
        assert look[..., column].mean().item() == pytest.approx(expected[tissue], abs=1e-5)


def test_texture_stays():
    image, labels, columns = a_slab()
    liver = columns["liver"]
    image[..., liver] += 0.05 * torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(1))
    look = as_sequence(image, labels, NAMES, RULE, SEQUENCES["T2"])
    before, after = (x[..., liver] - x[..., liver].mean() for x in (image, look))
    torch.testing.assert_close(after, TEXTURE * before, atol=1e-5, rtol=0)


def test_labels_without_a_name_count_as_soft_tissue():
    image, labels, columns = a_slab()
    look = as_sequence(image, labels, NAMES[:2], RULE, SEQUENCES["T1"])
    assert look[..., columns["spleen"]].mean().item() == pytest.approx(-0.2, abs=1e-5)


def test_fat_is_as_grey_as_the_liver_in_some_and_brighter_or_darker_in_others():
    signs = {round(look.fat - look.liver, 2) for look in SEQUENCES.values()}
    assert 0 in signs
    assert min(signs) < 0 < max(signs)
