# SPDX-License-Identifier: Apache-2.0
"""Air in CT: how it is recognised, which labels hold none, and that these are not given to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from threshold_network import SHARPNESS, a_bundle

from SRCSMSegmenterLib.air import air_limit, airless_labels, without_air
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.intensity import INTEGER_RANGE, IntensityRule

CT, NARROW = IntensityRule("CT"), IntensityRule("CT", window=(-125.0, 275.0))
MR = IntensityRule("MR")
AIR, FAT, MUSCLE = -800, -110, 50


@pytest.mark.parametrize(
    ("lowest", "rule", "limit"),
    [
        (-1024, CT, -500),
        (-3024, CT, -500),
        (-125, CT, -120),  # a scan that was clipped before it was stored
        (-1024, NARROW, -120),
        (-100, CT, None),  # clipped within fat
        (0, CT, None),
        (-1024, IntensityRule("CT", window=(-100.0, 250.0)), None),
    ],
)
def test_air_is_below_half_a_lung_or_the_minimum_of_a_clipped_scan(lowest, rule, limit):
    assert air_limit(lowest, rule) == limit


def test_probability_in_air_goes_to_background():
    probabilities = torch.tensor([[0.1, 0.1], [0.6, 0.6], [0.3, 0.3]])[:, None, None]
    air = torch.tensor([True, False])[None, None]
    without_air(probabilities, air, [1])
    expected = [[0.7, 0.1], [0.0, 0.6], [0.3, 0.3]]
    torch.testing.assert_close(probabilities[:, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize(("rule", "air"), [(CT, -900.0), (NARROW, -125.0), (MR, 10.0)])
def test_labels_hold_no_air_if_hardly_a_voxel_is_air(rule, air):
    """Of label 1 no voxel, of 2 one in fifty, of 3 one in five hundred; there is no 4."""
    labels = np.repeat([1, 2, 3], 500).reshape(3, 20, 25).astype(np.uint8)
    image = np.full(labels.shape, 0.3 * INTEGER_RANGE if rule == MR else 40.0)
    image[1].flat[:10] = image[2, 0, 0] = air
    assert airless_labels([(image, labels)], rule, 5) == (1, 3)
    beyond = np.full_like(labels, 7)  # a label that is no output
    assert airless_labels([(image, labels), (image, beyond)], rule, 5) == (1, 3)


def test_no_label_is_airless_if_the_source_does_not_tell():
    labels = np.ones((2, 2, 2), np.uint8)
    assert airless_labels([(labels * 40.0, labels)], IntensityRule("CT", (-100.0, 200.0)), 2) == ()


def a_scan(dtype, clip=None) -> Volume:
    """A body of muscle, half of which is air and a quarter fat, 1 mm voxels."""
    array = np.full((24, 24, 24), MUSCLE, float)
    array[:, 4:20, :12] = AIR
    array[:, 4:20, 18:] = FAT
    return Volume(array.clip(clip).astype(dtype), Geometry((24, 24, 24), np.eye(4)))


def dark_is_liver(airless: tuple[str, ...]):
    """A network that labels all that is dark liver."""
    bundle = a_bundle(GridSpec((24, 24, 24), (1.0, 1.0, 1.0)))
    weights = {name: value.clone() for name, value in bundle.weights.items()}
    weights["head.weight"][1], weights["head.bias"][1] = -SHARPNESS, SHARPNESS * (3.0 - 0.45)
    weights["head.weight"][2], weights["head.bias"][2] = 0, -100
    description = replace(bundle.description, airless=airless)
    return replace(bundle, weights=weights, description=description)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("clip", [None, -125])
def test_air_of_a_ct_is_no_airless_organ(dtype, clip):
    scan = a_scan(dtype, clip)
    options = {"modality": "CT", "source_matching": False, "device": "cpu", "keep_largest": False}
    with_air = segment(scan, dark_is_liver(()), **options)
    without = segment(scan, dark_is_liver(("liver",)), **options)
    dark = scan.array < MUSCLE
    np.testing.assert_array_equal(with_air.labels.array, dark)
    np.testing.assert_array_equal(without.labels.array, scan.array == FAT)
    liver = without.probabilities.whole(1)
    assert liver[scan.array < FAT].max() == 0
    assert liver[scan.array == FAT].min() > 0.5


def test_what_is_dark_in_an_mr_may_be_an_organ():
    scan = a_scan(np.int16)
    scan = replace(scan, array=scan.array + 1000)
    options = {"modality": "MR", "source_matching": False, "device": "cpu", "keep_largest": False}
    found = [segment(scan, dark_is_liver(names), **options) for names in ((), ("liver",))]
    np.testing.assert_array_equal(found[0].labels.array, found[1].labels.array)
