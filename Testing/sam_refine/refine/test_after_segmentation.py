# SPDX-License-Identifier: Apache-2.0
"""Refinement right after segmentation: which organs SAM redraws."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_sam
import torch
from threshold_network import a_bundle

from SAMRefineLib.refine.after_segmentation import refine_segmentation
from SAMRefineLib.sam import prediction
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import segment


@pytest.fixture(scope="module")
def segmented():
    """A scan with a liver and a spleen, its labels, and the network."""
    array = np.full((6, 24, 32), -200.0)
    array[1:5, 4:16, 3:15] = 0.0
    array[1:5, 10:18, 12:29] = 150.0  # some of it within the liver's box
    array[:, 0], array[:, -1] = 150.0, 150.0  # the body reaches all over the scan
    volume = Volume(array, Geometry((32, 24, 6), np.diag([2.0, 2.0, 4.0, 1.0])))
    bundle = a_bundle(GridSpec((32, 24, 6), (2.0, 2.0, 4.0)))
    found = segment(volume, bundle, modality="CT", source_matching=False, device="cpu")
    return volume, found, bundle.description.labels


@pytest.fixture
def greedy(monkeypatch):
    """A SAM that gives an organ all of its box."""

    def decode(model, embeddings, prompts, corners):
        side = embeddings.shape[-1] * 4
        rows = torch.arange(side)[:, None] + 0.5
        columns = torch.arange(side) + 0.5
        masks = []
        for box in prompts.boxes * 4 / model.patch:
            x0, y0, x1, y1 = box
            inside = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
            masks.append(torch.where(inside, 20.0, -20.0))
        return torch.stack(masks), torch.full((len(masks),), 0.9)

    monkeypatch.setattr(prediction, "decode", decode)


def refined(segmented, **training):
    volume, found, labels = segmented
    sam = replace(tiny_sam.small_model(), training=training)
    return refine_segmentation(volume, found, labels, sam, "CT", keep_largest=False)


def test_organs_that_the_sam_was_not_trained_on_stay_as_the_network_drew_them(segmented, greedy):
    before = segmented[1].labels.array
    result, refinement = refined(segmented, validation_dice={"liver": 0.9})
    after = result.labels.array
    assert [organ.name for organ in refinement.reports] == ["liver"]
    np.testing.assert_array_equal(after == 2, before == 2)
    (report,) = refinement.reports
    assert report.voxels_after == (after == 1).sum() < (after > 0).sum()
    spleen = after == 2
    np.testing.assert_array_equal(result.confidence()[spleen], segmented[1].confidence()[spleen])
    assert result.messages[-1] == (
        "tiny was not trained on these, which are as the network drew them: spleen."
    )


@pytest.mark.parametrize("training", [{}, {"validation_dice": {"left_kidney": 0.9}}])
def test_a_sam_that_names_none_of_the_organs_redraws_all(segmented, training):
    result, refinement = refined(segmented, **training)
    assert [organ.name for organ in refinement.reports] == ["liver", "spleen"]
    assert result.messages == segmented[1].messages
