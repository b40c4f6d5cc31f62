# SPDX-License-Identifier: Apache-2.0
"""What does not look as a model expects is said in a sentence each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scene_cases import TURN, add_transform, add_volume

from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.models.catalogue import read_card
from SRCSMSegmenterLib.scene.input_warnings import input_warnings

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def card(model):
    return read_card(Path(model))


def odd(scale=1.0, offset=0.0, dtype=np.int16, geometry=None):
    geometry = geometry or Geometry((60, 50, 40), np.diag([2.0, -2.0, 3.0, 1.0]))
    image = np.random.default_rng(0).uniform(-1000, 1000, geometry.shape)
    return add_volume(geometry, "odd", (image * scale + offset).astype(dtype))


def grid(size, spacing):
    return Geometry(size, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    ("volume", "options", "expected"),
    [
        ({}, {}, []),
        ({"scale": 0.3, "offset": 400}, {}, []),
        ({"scale": 0.3, "offset": 400}, {"source_matching": "off"}, ["looks like MR"]),
        ({"scale": 0.3, "offset": 400}, {"modality": "CT"}, ["Hounsfield"]),
        ({"scale": 0.08}, {}, ["negative intensities"]),
        ({"scale": 0.003}, {}, ["fewer than 32 intensities: is it a label map"]),
        ({"scale": 0.003, "offset": 9, "dtype": np.float32}, {}, []),
        ({}, {"modality": "PT"}, ["DICOM says PT"]),
        ({"geometry": grid((60, 50, 9), (2, 2, 3))}, {}, ["only 27 mm thick"]),
        ({"geometry": grid((60, 50, 8), (2, 2, 15))}, {}, ["15 mm apart"]),
        ({"geometry": grid((60, 50, 250), (2, 2, 5))}, {}, ["1250 mm long"]),
    ],
)
def test_what_does_not_look_as_expected_is_said(scene, card, volume, options, expected):
    found = input_warnings(odd(**volume), card, **options)
    assert len(found) == len(expected), found
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_the_models_modality_decides_what_is_odd(scene, card):
    found = input_warnings(odd(), replace(card, modality="MR"), "off")
    assert "looks like CT, the network learned from MR" in found[0]


def rotation(degrees, mirror=1):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 5], [s, c, 0, 6], [0, 0, 1.2 * mirror, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("matrix", "warned"),
    [(rotation(20), False), (rotation(40), True), (rotation(0, mirror=-1), True), (TURN, True)],
)
def test_a_transform_that_turns_the_patient_is_pointed_out(scene, card, matrix, warned):
    node = odd()
    add_transform(node, matrix)
    found = input_warnings(node, card)
    assert [("transform turns" in sentence) for sentence in found] == [True] * warned
