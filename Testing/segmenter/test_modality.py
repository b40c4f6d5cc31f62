# SPDX-License-Identifier: Apache-2.0
"""What counts as CT and as MR: by name, by file and by intensities."""

import numpy as np
import pytest

from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.modality import (
    contradiction,
    doubts,
    guess_modality,
    modality_of,
    named_modality,
)

CT, MR = np.array([-1000, 40, 300]), np.array([0, 40, 300])


@pytest.mark.parametrize(
    ("modality", "names"),
    [
        ("CT", ("CT", "ct", " CT ", "CTA", "cta_venous", "CBCT", "CT-portal", "NCCT", "HU", "CT1")),
        ("CT", ("Computed Tomography", "Hounsfield units")),
        ("MR", ("MR", "MRI", "T1", "T2w", "FLAIR", "LGE", "bSSFP", "mr_t2")),
        (None, ("noNorm", "zscore", "", 0, 7, None, ["CT", "MR"], "active")),
        (None, ("CT and MR", "intensity", "direct", "Factor")),
    ],
)
def test_a_channels_name_means_a_modality_or_none(modality, names):
    assert {name: named_modality(name) for name in map(str, names)} == {
        str(name): modality for name in names
    }


@pytest.mark.parametrize(
    ("modality", "array", "why"),
    [
        ("CT", CT, None),
        ("MR", MR, None),
        ("CT", MR, "taken for CT, although hardly a voxel is below -100"),
        ("MR", CT, "taken for MR, although 33% of its voxels are below -100"),
    ],
)
def test_a_name_that_the_images_contradict_is_told(modality, array, why):
    said = contradiction(modality, array)
    assert (said is None) if why is None else (why in said)


def test_the_modality_that_is_given_counts_more_than_the_files_and_the_files_more_than_guessing():
    grid = Geometry((3, 1, 1), np.eye(4))
    volume = Volume(CT.reshape(1, 1, 3), grid, "MR")
    assert modality_of(volume, "CT") == "CT"
    assert modality_of(volume) == "MR"
    assert modality_of(Volume(volume.array, grid)) == "CT"


def test_a_few_voxels_far_below_zero_are_not_ct():
    array = np.full((10, 10, 10), 300)
    array[0, 0, :9] = -1000
    assert guess_modality(array) == "MR"
    array[0, 1, 0] = -1000
    assert guess_modality(array) == "CT"


def test_intensities_that_are_not_those_of_their_modality_are_doubted():
    assert doubts("CT", CT) == doubts("MR", MR) == []
    assert "without air (the minimum is 24)" in doubts("CT", CT + 1024)[0]
    assert "negative" in doubts("MR", CT)[0]
    labels = (np.arange(4096).reshape(16, 16, 16) % 14).astype(np.uint8)
    assert doubts("MR", labels) == ["There are fewer than 32 intensities: is it a label map?"]
    assert doubts("MR", labels / 255) == []  # of fractions, a scan may have few
    assert "is it inverted" in doubts("CT", -CT.repeat((5, 4, 1)))[0]
    assert doubts("CT", CT.repeat((5, 4, 1))) == doubts("CT", np.array([-900, 1000])) == []
    assert "without soft tissue" in doubts("CT", np.array([-2000, -984, -700]))[0]
