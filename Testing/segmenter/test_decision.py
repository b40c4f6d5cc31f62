# SPDX-License-Identifier: Apache-2.0
"""Labels decided within boxes, held against all labels everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SRCSMSegmenterLib import decision as module
from SRCSMSegmenterLib.decision import SEPARATION
from SRCSMSegmenterLib.geometry import Geometry, GridSpec
from SRCSMSegmenterLib.label_probabilities import PLAUSIBLE, LabelProbabilities
from SRCSMSegmenterLib.resampling import index_map, look_up, points, sample


def blobs(seed, classes=4, turn=0.0):
    """Probabilities of labels in blobs on a coarse grid, and a finer scan within or across it."""
    random = np.random.default_rng(seed)
    coarse = GridSpec((12, 11, 10), (4.0, 4.5, 5.0)).placed(np.zeros(3), np.eye(3))
    k, j, i = np.indices(coarse.shape)
    logits = [np.zeros(coarse.shape)]
    for _ in range(classes - 1):
        ck, cj, ci = random.uniform(-2, 12, 3)
        distance = (k - ck) ** 2 + (j - cj) ** 2 + (i - ci) ** 2
        logits.append(5 - distance / random.uniform(0.5, 4) + random.normal(0, 0.5, coarse.shape))
    probabilities = torch.from_numpy(np.stack(logits)).float().softmax(0)
    affine = np.eye(4)
    axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
    c, s = np.cos(turn), np.sin(turn)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ axes * random.uniform(1, 3, 3)
    size = tuple(random.integers(8, 30, 3).tolist())
    affine[:3, 3] = -affine[:3, :3] @ (np.array(size) - 1) / 2 + random.normal(0, 6, 3)
    weight = torch.where(torch.from_numpy(random.random(coarse.shape)) < 0.2, 1e-3, 1.0)
    return probabilities, weight.float(), coarse, Geometry(size, affine)


def decide(probabilities, weight, coarse, scan):
    return module.decide(LabelProbabilities.of(probabilities, weight, coarse, scan), scan)


def literal(probabilities, weight, coarse, scan):
    """(classes, K, J, I) on the scan; 0 beyond the coarse grid."""
    lookup = look_up(points(index_map(scan, coarse), scan.size), coarse.shape)
    shares = sample(weight[None], lookup, outside=1.0)
    return sample(probabilities * weight, lookup) / shares


@pytest.mark.parametrize("turn", [0.0, 0.4])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), even=st.booleans(), classes=st.sampled_from([4, 13]))
def test_labels_are_the_likeliest_everywhere(turn, seed, even, classes):
    probabilities, weight, coarse, scan = blobs(seed, classes, turn)
    weight = torch.ones_like(weight) if even else weight
    expected = literal(probabilities, weight, coarse, scan)
    decision = decide(probabilities, weight, coarse, scan)
    best, second = expected.topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy() | (best == 0).numpy()
    assert (decision.labels == expected.argmax(0).numpy())[clear].all()
    sure = decision.probabilities.confidence(decision.labels)
    np.testing.assert_allclose(sure, best.numpy(), atol=2e-3)
    for label in range(1, len(expected)):
        kept = torch.from_numpy(decision.probabilities.whole(label)).float()
        likely = expected[label] >= PLAUSIBLE
        torch.testing.assert_close(kept[likely], expected[label][likely], atol=2e-3, rtol=0)
        assert (kept <= expected[label] + 2e-3).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_least_certain_slices_count_every_plausible_voxel(seed):
    probabilities, weight, coarse, scan = blobs(seed)
    expected = literal(probabilities, weight, coarse, scan)
    decision = decide(probabilities, weight, coarse, scan)
    area = np.prod(np.delete(scan.spacing, scan.slice_axis))
    for label in range(1, 4):
        chance = expected[label].double().movedim(2 - scan.slice_axis, 0)
        # Whether a voxel on the threshold counts is a matter of rounding.
        clear = ((chance - PLAUSIBLE).abs() > 1e-4).all(2).all(1)
        chance = chance.where(chance >= PLAUSIBLE, 0)
        sums, wrong = chance.sum((1, 2)), chance.minimum(1 - chance).sum((1, 2))
        slices = dict(decision.least_certain[label])
        for k in torch.nonzero((sums > 0) & clear)[:, 0].tolist():
            assert slices[k] == pytest.approx(
                float(wrong[k] * np.sqrt(area) / sums[k].sqrt()), rel=1e-3, abs=1e-4
            )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_slices_listed_first_are_apart_and_every_slice_is_listed_once(seed):
    decision = decide(*blobs(seed))
    scan = blobs(seed)[3]
    spacing = scan.spacing[scan.slice_axis]
    for ranked in decision.least_certain.values():
        slices = [k for k, _ in ranked]
        assert len(set(slices)) == len(slices)
        first = []
        for k in slices:
            if any(abs(k - other) * spacing < SEPARATION for other in first):
                break
            first.append(k)
        for k, value in ranked[len(first) :]:  # each is too near to a less certain one
            near = [mm for other, mm in ranked[: len(first)] if abs(k - other) * spacing < 10.0]
            assert max(near) >= value


def test_a_label_that_is_nowhere_plausible_has_no_box():
    probabilities, weight, coarse, scan = blobs(0)
    probabilities[2] = 0.05
    decision = decide(probabilities, weight, coarse, scan)
    assert 2 not in decision.probabilities.boxes
    assert decision.least_certain[2] == []
    assert not (decision.labels == 2).any()


@pytest.fixture
def twenty_classes():
    """Background everywhere, on a grid whose voxels 1 and 2 of I a scan of one voxel lies between.

    An equal share is 0.05.
    """
    coarse = GridSpec((4, 3, 3), (1.0, 1.0, 1.0)).placed(np.zeros(3), np.eye(3))
    probabilities = torch.zeros(20, *coarse.shape)
    probabilities[0] = 1
    return probabilities, torch.ones(coarse.shape), coarse, Geometry((1, 1, 1), np.eye(4))


def test_of_many_labels_one_that_is_behind_background_has_no_box(twenty_classes):
    probabilities, weight, coarse, scan = twenty_classes
    probabilities[:2] = torch.tensor([0.91, 0.09]).view(2, 1, 1, 1)
    assert decide(probabilities, weight, coarse, scan).probabilities.boxes == {}
    probabilities[1, 1, 1, 2] = 0.2
    assert list(decide(probabilities, weight, coarse, scan).probabilities.boxes) == [1]


def test_of_many_labels_the_least_likely_can_win_between_two_voxels(twenty_classes):
    """Neither voxel alone tells: label 1 has its share in the one, is ahead in the other."""
    probabilities, weight, coarse, scan = twenty_classes
    probabilities[:, 1, 1, 1] = torch.tensor([0.08, 0.06, *[0.86 / 9] * 9, *[0.0] * 9])
    probabilities[:, 1, 1, 2] = torch.tensor([0.0, 0.049, *[0.0] * 9, *[0.951 / 9] * 9])
    assert decide(probabilities, weight, coarse, scan).labels.tolist() == [[[1]]]


def test_of_labels_that_tie_the_lowest_wins():
    coarse = GridSpec((2, 2, 2), (1.0, 1.0, 1.0)).placed(np.zeros(3), np.eye(3))
    probabilities = torch.full((4, 2, 2, 2), 0.25)
    assert (decide(probabilities, torch.ones(2, 2, 2), coarse, coarse).labels == 0).all()
    probabilities[0] = 0
    assert (decide(probabilities, torch.ones(2, 2, 2), coarse, coarse).labels == 1).all()


def test_labels_beyond_255_have_sixteen_bits():
    coarse = GridSpec((6, 5, 4), (3.0, 3.0, 3.0)).placed(np.zeros(3), np.eye(3))
    probabilities = torch.zeros(301, *coarse.shape)
    probabilities[0] = 0.1
    probabilities[300, 1, 2, 3] = 0.9
    decision = decide(probabilities, torch.ones(coarse.shape), coarse, coarse)
    assert decision.labels.dtype == np.uint16
    assert np.argwhere(decision.labels).tolist() == [[1, 2, 3]]
    assert decision.labels[1, 2, 3] == 300


def test_nothing_is_interpolated_where_no_label_is_plausible(monkeypatch):
    coarse = GridSpec((12, 12, 12), (5.0, 5.0, 5.0)).placed(np.zeros(3), np.eye(3))
    fine = GridSpec((60, 60, 60), (1.0, 1.0, 1.0)).placed(np.zeros(3), np.eye(3))
    probabilities = torch.zeros(2, *coarse.shape)
    probabilities[0] = 1
    probabilities[:, 4, 5, 6] = torch.tensor([0.1, 0.9])
    voxels, interpolate = [], LabelProbabilities.interpolate

    def counted(known, label, part):
        voxels.append(np.prod([axis.stop - axis.start for axis in part]))
        return interpolate(known, label, part)

    monkeypatch.setattr(LabelProbabilities, "interpolate", counted)
    decision = decide(probabilities, torch.ones(coarse.shape), coarse, fine)
    assert sum(voxels) == 2 * 11 * 11 * 11  # background and the label in its box
    assert decision.labels.sum() > 20
