# SPDX-License-Identifier: Apache-2.0
"""Refinement with a SAM that finds whatever is bright in its box, and with a tiny random one."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_sam import FOUR_TILES
from torch.nn import functional as F

from SAMRefineLib.boxes.boxes import Box, Box3D, PointPrompt, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseMask, coarse_probability
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.acceptance import (
    ACCEPT_ALL,
    BLANK,
    DISAGREES,
    EMPTY,
    LOW_IOU,
    NO_BOX,
    OUTSIDE,
    PARTIAL,
    Acceptance,
    rejection_reason,
)
from SAMRefineLib.refine.refiner import OrganPrompt, Refiner, refine
from SAMRefineLib.sam import prediction
from SAMRefineLib.sam.crops import crops
from SAMRefineLib.sam.embeddings import EmbeddingCache
from SAMRefineLib.sam.models import SamModel, build_sam
from SAMRefineLib.sam.pixels import SRCSM
from SRCSMSegmenterLib.errors import Cancelled, PromptError
from SRCSMSegmenterLib.geometry import Geometry, Volume

SHAPE = (9, 70, 60)
"""(K, J, I) of the phantom."""


@pytest.fixture(scope="module")
def a_random_sam() -> SamModel:
    torch.manual_seed(7)
    sam = build_sam("small", FOUR_TILES).requires_grad_(False)
    return SamModel(sam, "tiny", "small", SRCSM, FOUR_TILES)


class Looking:
    """In place of the embedding cache: an embedding that is the picture, 16 values a patch."""

    def __init__(self, patch: int) -> None:
        self.passes, self.patch, self.seen = 0, patch, set()

    def embed(self, model, canvases, step=lambda done: None):
        found = []
        for done, canvas in enumerate(canvases):
            if canvas.tobytes() not in self.seen:
                step(done)
                self.passes += 1
                self.seen.add(canvas.tobytes())
            fine = F.avg_pool2d(torch.from_numpy(canvas)[None], self.patch // 4)
            found.append(F.pixel_unshuffle(fine, 4))
        return found


@pytest.fixture
def a_looking_sam(a_random_sam, monkeypatch):
    """A SAM that finds what is bright in the box, more surely the brighter it is.

    `asked` and `corners` keep what it was called with; `answer` may be replaced.
    """

    def bright(picture, box):
        rows = torch.arange(picture.shape[0])[:, None] + 0.5
        columns = torch.arange(picture.shape[1]) + 0.5
        x0, y0, x1, y1 = box * 4 / a_random_sam.patch
        inside = (columns > x0 - 1) & (columns < x1 + 1) & (rows > y0 - 1) & (rows < y1 + 1)
        return torch.where(inside, 6 * picture, -6.0), 0.9

    sam = SimpleNamespace(
        model=a_random_sam, cache=Looking(a_random_sam.patch), asked=[], corners=[], answer=bright
    )

    def decode(model, embeddings, prompts, corners):
        sam.asked.append(prompts)
        sam.corners += corners.tolist()
        pictures = F.pixel_shuffle(embeddings, 4)[:, 0]
        answers = [sam.answer(p, b) for p, b in zip(pictures, prompts.boxes, strict=True)]
        return torch.stack([a[0] for a in answers]), torch.tensor([a[1] for a in answers])

    monkeypatch.setattr(prediction, "decode", decode)
    return sam


def geometry(shape=SHAPE) -> Geometry:
    """Left-handed, 1.5 x 1.25 mm in plane, 6 mm slices."""
    affine = np.diag([-1.5, 1.25, 6.0, 1.0])
    affine[:3, 3] = 40, -30, 7
    return Geometry(shape[::-1], affine)


def ball(middle, radii, shape=SHAPE) -> np.ndarray:
    """bool (K, J, I)."""
    where = [(x - m) / r for x, m, r in zip(np.indices(shape), middle, radii, strict=True)]
    return sum(x**2 for x in where) < 1


LIVER = ball((4, 25, 20), (4, 13, 11))
SPLEEN = ball((5, 50, 44), (3, 9, 8))


def scan(*organs) -> Volume:
    """Organs as bright as 1 on black; MR, so that its quantiles become -1 and 1."""
    image = np.zeros(SHAPE, np.float32)
    for organ in organs:
        image[organ] = 1
    return Volume(image, geometry())


def prompt(mask, value=1, axis=2, name="liver", coarse="same") -> OrganPrompt:
    """Boxes around a mask; it is the coarse mask too unless another is given."""
    grid = SliceGrid(geometry(), axis)
    frames = KeyFrames.from_coarse(name, value, mask, grid)
    return OrganPrompt(frames, mask if isinstance(coarse, str) else coarse)


def with_frames(organ: OrganPrompt, frames: KeyFrames) -> OrganPrompt:
    return replace(organ, frames=frames)


def run(sam, volume, *organs, **options):
    return once(volume, organs, sam.model, cache=sam.cache, **options)


def once(volume, organs, model, *, mosaic="crops", cache=None, **options):
    """As `refine`, with all options of the refiner."""
    grid = SliceGrid(volume.geometry, organs[0].frames.grid.axis if organs else 2)
    refiner = Refiner(volume, grid, model, modality="MR", mosaic=mosaic, cache=cache)
    return refiner.refine(organs, **options)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("mosaic", ["slices", "crops", "off"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_masks_lie_where_the_organs_are(a_looking_sam, mosaic, axis):
    organs = prompt(LIVER, 1, axis), prompt(SPLEEN, 3, axis, "spleen")
    found = run(a_looking_sam, scan(LIVER, SPLEEN), *organs, mosaic=mosaic, acceptance=ACCEPT_ALL)
    assert found.labels.array.dtype == np.uint8
    assert found.labels.geometry is not None
    assert dice(found.labels.array == 1, LIVER) > 0.97
    assert dice(found.labels.array == 3, SPLEEN) > 0.97
    assert set(np.unique(found.labels.array)) == {0, 1, 3}
    liver = found.reports[0]
    assert (liver.name, liver.label, liver.kept) == ("liver", 1, {})
    assert liver.boxes == len(organs[0].frames.effective())
    assert liver.dice == pytest.approx(dice(found.labels.array == 1, LIVER))
    assert liver.voxels_before == LIVER.sum()
    assert liver.voxels_after == (found.labels.array == 1).sum()
    assert liver.predicted_iou == pytest.approx(0.9)


def test_slices_share_canvases_and_crops_share_more(a_looking_sam):
    passes = {}
    for mosaic in ("off", "slices", "crops"):
        a_looking_sam.cache = Looking(4)
        organs = prompt(LIVER, 1), prompt(SPLEEN, 3, name="spleen")
        found = run(a_looking_sam, scan(LIVER, SPLEEN), *organs, mosaic=mosaic)
        assert found.encoder_passes == a_looking_sam.cache.passes
        passes[mosaic] = found.encoder_passes
    # The liver shows in 7 slices, the spleen in 5 of them; 72 x 70 pixels need all four windows.
    assert passes == {"off": 7, "slices": 7, "crops": 2 + 2}


def test_probabilities_and_threshold(a_looking_sam):
    image = scan(LIVER)
    image.array[:, 25:][LIVER[:, 25:]] = 0.55  # pixels of 0.1, a probability of 0.65
    organ = prompt(LIVER, 2, coarse=None)
    sure = run(a_looking_sam, image, organ, acceptance=ACCEPT_ALL, mask_threshold=0.8)
    all_of_it = run(a_looking_sam, image, organ, acceptance=ACCEPT_ALL)
    assert (sure.labels.array == 2)[:, :24].sum() == (all_of_it.labels.array == 2)[:, :24].sum()
    assert not sure.labels.array[:, 27:].any()
    assert (all_of_it.labels.array == 2)[:, 27:].sum() > 100
    probability = all_of_it.probability(2)
    assert probability.dtype == np.float16
    assert probability[4, 30, 20] == pytest.approx(0.65, abs=0.01)
    assert probability[4, 20, 20] == pytest.approx(1, abs=0.01)
    assert probability[4, 65, 55] == 0
    confidence = all_of_it.confidence()
    assert confidence[4, 30, 20] == probability[4, 30, 20]
    assert confidence[4, 65, 55] == 1
    np.testing.assert_allclose(sure.confidence()[4, 30, 20], 1 - probability[4, 30, 20], atol=1e-3)


def test_the_more_probable_organ_has_a_voxel_whatever_the_order(a_looking_sam):
    """Both claim what lies in both boxes; the first is surer of it."""
    one, other = ball((4, 30, 25), (3, 12, 12)), ball((4, 30, 35), (3, 12, 12))
    both = ball((4, 30, 25), (3, 12, 10)) & ball((4, 30, 35), (3, 12, 10))

    def answer(picture, box):
        surer = box[0] + box[2] < 2 * 30 * 1.2  # a column is 1.2 pixels wide
        mask = torch.full_like(picture, -5)
        x0, y0, x1, y1 = box.round().int().tolist()
        mask[y0:y1, x0:x1] = 4.0 if surer else 2.0
        return mask, 0.9

    a_looking_sam.answer = answer
    organs = prompt(one, 1, coarse=None), prompt(other, 2, coarse=None)
    for order in (organs, organs[::-1]):
        found = run(a_looking_sam, scan(one, other), *order, mosaic="slices", acceptance=ACCEPT_ALL)
        assert (found.labels.array[both] == 1).all()
        assert (found.labels.array[other & ~one] == 2).any()


def test_sam_s_probability_counts_by_its_estimate_of_the_mask(a_looking_sam):
    """With the liver's box SAM is surer of the spleen in it, but not that it belongs there."""
    liver, spleen = ball((4, 30, 25), (3, 20, 18)), ball((4, 35, 30), (3, 8, 8))

    def answer(picture, box):
        wide = float(box[2] - box[0]) > 30
        mask = torch.full_like(picture, -5)
        x0, y0, x1, y1 = box.round().int().tolist()
        mask[y0:y1, x0:x1] = 5.0 if wide else 3.0
        return mask, 0.7 if wide else 0.9

    a_looking_sam.answer = answer
    organs = prompt(liver, 1, coarse=None), prompt(spleen, 2, coarse=None)
    found = run(a_looking_sam, scan(liver, spleen), *organs, mosaic="slices", acceptance=ACCEPT_ALL)
    assert (found.labels.array[spleen] == 2).mean() > 0.9  # but for voxels at the box's edge
    # A coarse mask that is kept counts as it is.
    sure = prompt(liver, 1, coarse=liver)
    found = run(
        a_looking_sam,
        scan(liver, spleen),
        sure,
        organs[1],
        acceptance=Acceptance(predicted_iou=0.8),
    )
    assert set(found.reports[0].kept.values()) == {LOW_IOU}
    assert (found.labels.array[liver & spleen] == 1).all()


def test_a_label_map_serves_as_coarse_mask_and_large_labels_fit(a_looking_sam):
    a_looking_sam.answer = lambda picture, box: (torch.full_like(picture, -9), 0.9)
    found = run(a_looking_sam, scan(LIVER), prompt(LIVER, 300))
    assert found.labels.array.dtype == np.uint16
    assert ((found.labels.array == 300) == LIVER).all()
    assert found.reports[0].dice == 1
    assert set(found.reports[0].kept.values()) == {EMPTY}


def test_a_mask_that_leaves_its_box_is_not_taken_and_the_report_says_so(a_looking_sam):
    """In every other slice SAM finds everything."""
    calls = []

    def answer(picture, box):
        calls.append(0)
        if len(calls) % 2:
            return torch.full_like(picture, 5), 0.9
        return 6 * picture, 0.9

    a_looking_sam.answer = answer
    coarse = 0.8 * LIVER
    coarse[3, 25, 20] = 0.6  # the coarse mask is known again by its probabilities
    organ = prompt(LIVER, 1, coarse=coarse.astype(np.float32))
    found = run(a_looking_sam, scan(LIVER), organ)
    slices = sorted(organ.frames.automatic)
    assert found.reports[0].kept == dict.fromkeys(slices[::2], OUTSIDE)
    for n in slices[::2]:
        assert ((found.labels.array[n] == 1) == LIVER[n]).all()
    assert found.probability(1)[3, 25, 20] == pytest.approx(
        0.6 if 3 in slices[::2] else 1, abs=0.01
    )


def test_without_a_coarse_mask_sam_s_stays_and_is_reported(a_looking_sam):
    a_looking_sam.answer = lambda picture, box: (torch.full_like(picture, 5), 0.9)
    found = run(a_looking_sam, scan(LIVER), prompt(LIVER, coarse=None), mosaic="slices")
    report = found.reports[0]
    assert set(report.kept.values()) == {OUTSIDE}
    assert report.dice is None
    assert report.voxels_before == 0
    assert found.labels.array[4].all()


@pytest.mark.parametrize(
    ("mask", "iou", "coarse", "reason"),
    [
        (np.s_[10:20, 5:15], 0.9, np.s_[10:20, 5:15], None),
        (np.s_[0:0, 0:0], 0.9, np.s_[10:20, 5:15], EMPTY),
        (np.s_[10:20, 5:16], 0.9, np.s_[10:20, 5:15], None),  # a row of eleven is a bit less
        (np.s_[10:20, 4:17], 0.9, np.s_[10:20, 5:15], OUTSIDE),
        (np.s_[30:32, 30:33], 0.9, np.s_[10:20, 5:15], OUTSIDE),
        (np.s_[10:14, 5:15], 0.9, np.s_[10:20, 5:15], PARTIAL),
        (np.s_[10:20, 5:15], 0.4, np.s_[10:20, 5:15], LOW_IOU),
        (np.s_[10:20, 5:15], 0.9, np.s_[17:25, 5:15], DISAGREES),
        (np.s_[10:20, 5:15], 0.9, None, None),
    ],
)
def test_what_makes_a_mask_suspicious(mask, iou, coarse, reason):
    drawn = np.zeros((40, 40), bool)
    drawn[mask] = True
    rival = None
    if coarse is not None:
        rival = np.zeros((40, 40), bool)
        rival[coarse] = True
    box = Box(5.2, 10, 15, 19.5)
    assert rejection_reason(drawn, box, iou, rival, Acceptance()) == reason
    if reason not in (None, EMPTY):
        assert rejection_reason(drawn, box, iou, rival, ACCEPT_ALL) is None


def test_slices_without_a_box_keep_the_coarse_mask_without_strays(a_looking_sam):
    coarse = 0.9 * LIVER
    coarse[8] = 0
    coarse[7] = 0.6 * LIVER[7]  # too unsure for a box
    coarse[0:2, 60:64, 50:54] = 0.95  # a stray
    coarse = coarse.astype(np.float16)
    organ = prompt(coarse > 0.75, coarse=coarse)
    assert sorted(organ.frames.automatic) == list(range(1, 7))
    found = run(a_looking_sam, scan(LIVER), organ)
    assert found.reports[0].kept[7] == NO_BOX
    assert (found.labels.array[7] == (coarse[7] >= 0.5)).all()
    assert not found.labels.array[:, 60:64, 50:54].any()
    assert not found.probability(1)[:2, 60:64, 50:54].any()
    assert found.reports[0].voxels_before == (coarse >= 0.5).sum()


def test_a_mask_that_stays_stays_whole_and_no_other_organ_gets_a_voxel_of_it(a_looking_sam):
    """As of an organ that is not asked about: strays and doubtful voxels belong to it too."""
    coarse = np.where(ball((4, 30, 33), (3, 12, 12)), 0.5, 0).astype(np.float16)
    coarse[0:2, 60:64, 50:54] = 0.95  # a stray
    assert (LIVER & (coarse > 0)).any()
    other = OrganPrompt(KeyFrames("spleen", 2, SliceGrid(geometry(), 2)), coarse, stays=True)
    found = run(a_looking_sam, scan(LIVER), prompt(LIVER, coarse=None), other)
    np.testing.assert_array_equal(found.labels.array == 2, coarse >= 0.5)
    assert (found.labels.array == 1).any()
    report = found.reports[1]
    assert (report.dice, report.voxels_after) == (1.0, (coarse >= 0.5).sum())
    np.testing.assert_array_equal(found.confidence()[coarse > 0], coarse[coarse > 0])


def test_slices_without_a_box_show_nothing_where_boxes_are_all_there_is(a_looking_sam):
    coarse = np.where(LIVER, 0.9, 0).astype(np.float16)
    coarse[7] = np.minimum(coarse[7], 0.6)  # too unsure for a box
    organ = replace(prompt(coarse > 0.75, coarse=coarse), keep_unboxed=False)
    found = run(a_looking_sam, scan(LIVER), organ)
    assert not found.labels.array[7].any()
    assert found.labels.array[6].any()
    assert NO_BOX not in found.reports[0].kept.values()
    unboxed = replace(organ, frames=replace(organ.frames, automatic={}))
    found = run(a_looking_sam, scan(LIVER), unboxed)
    np.testing.assert_array_equal(found.labels.array == 1, coarse >= 0.5)


def test_slices_switched_off_and_beyond_the_limit_show_nothing(a_looking_sam):
    organ = prompt(LIVER)
    first, *_, last = sorted(organ.frames.automatic)
    frames = organ.frames.switch_off(first)
    frames = frames.limited(Box3D((0, 0, 0), (60, 70, last)))
    found = run(a_looking_sam, scan(LIVER), with_frames(organ, frames))
    shown = np.flatnonzero(found.labels.array.any(axis=(1, 2)))
    assert shown.tolist() == list(range(first + 1, last))
    assert found.reports[0].kept == {}


def test_a_moved_box_costs_one_decoding_and_no_encoder_pass(a_looking_sam):
    volume, liver, spleen = scan(LIVER, SPLEEN), prompt(LIVER), prompt(SPLEEN, 2)
    box = liver.frames.automatic[4]
    around = liver.frames
    for n in (3, 5):  # so that an edit in between is felt there alone
        around = around.edit(n, around.automatic[n])
    liver = with_frames(liver, around.edit(4, box))
    edited = with_frames(liver, around.edit(4, Box(box.x0 + 3, box.y0, box.x1, box.y1 - 2)))
    for mosaic in ("slices", "crops"):
        refiner = Refiner(
            volume,
            liver.frames.grid,
            a_looking_sam.model,
            modality="MR",
            mosaic=mosaic,
            cache=a_looking_sam.cache,
        )
        before = refiner.refine([liver, spleen])
        a_looking_sam.asked.clear()
        after = refiner.refine([edited, spleen])
        assert [len(prompts.boxes) for prompts in a_looking_sam.asked] == [1]
        assert after.encoder_passes == 0
        assert after.changed == (4,)
        assert (before.labels.array[4] != after.labels.array[4]).any()
        others = [n for n in range(9) if n != 4]
        assert (before.labels.array[others] == after.labels.array[others]).all()
        # The same as from nothing, and back again.
        fresh = run(a_looking_sam, volume, edited, spleen, mosaic=mosaic)
        np.testing.assert_array_equal(after.labels.array, fresh.labels.array)
        again = refiner.refine([liver, spleen])
        np.testing.assert_array_equal(again.labels.array, before.labels.array)
        assert again.reports == before.reports
        assert refiner.refine([liver, spleen]).changed == ()


def test_an_edited_box_need_not_agree_with_the_coarse_mask(a_looking_sam):
    """The coarse mask is elsewhere; once a hand has moved the box, SAM is believed."""
    elsewhere = ball((4, 48, 44), (4, 9, 9))
    organ = prompt(elsewhere)
    box = Box(8, 11, 32, 39)
    moved = with_frames(organ, organ.frames.edit(4, box))
    a_looking_sam.answer = lambda picture, box: (6 * picture, 0.9)
    found = run(a_looking_sam, scan(LIVER), moved, mosaic="slices")
    assert 4 not in found.reports[0].kept
    assert dice(found.labels.array[4] == 1, LIVER[4]) > 0.97
    same = with_frames(organ, dataclasses.replace(organ.frames, automatic={4: box}))
    found = run(a_looking_sam, scan(LIVER), same, mosaic="slices")
    assert found.reports[0].kept[4] == DISAGREES


LARGER = ball((4, 25, 20), (4, 19, 17))


def graded(rim: float) -> np.ndarray:
    """Probabilities of the liver: 0.9 in it, `rim` around it."""
    return np.where(LIVER, 0.9, np.where(LARGER, rim, 0)).astype(np.float16)


@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize(("rim", "grows"), [(0.1, False), (0.4, True)])
def test_sam_s_probabilities_and_a_network_s_count_alike(a_looking_sam, rim, grows, mask_prompt):
    """SAM, at 0.7 beside the liver, wants it larger; the network has `rim` there."""
    image = scan(LIVER)
    image.array[LARGER & ~LIVER] = 0.57  # a pixel of 0.14, a probability of 0.7
    frames = prompt(LARGER).frames
    organ = OrganPrompt(frames, graded(rim), mask_prompt=mask_prompt)
    found = run(a_looking_sam, image, organ, acceptance=ACCEPT_ALL)
    assert found.probability(1)[4, 41, 20] == pytest.approx((0.7 + rim) / 2, abs=0.02)
    assert found.labels.array[4, 41, 20] == grows
    assert found.labels.array[4, 25, 20] == 1


def test_a_label_map_and_an_edited_box_leave_it_to_sam(a_looking_sam):
    image = scan(LIVER)
    image.array[LARGER & ~LIVER] = 0.57
    frames = prompt(LARGER).frames
    moved = replace(frames.automatic[4], x1=frames.automatic[4].x1 + 1)
    cases = [(frames, LIVER), (frames, coarse_probability(LIVER, np.full(SHAPE, 0.9)))]
    for boxes, coarse in [*cases, (frames.edit(4, moved), graded(0.1))]:
        found = run(a_looking_sam, image, OrganPrompt(boxes, coarse), acceptance=ACCEPT_ALL)
        assert found.labels.array[4, 41, 20] == 1


@pytest.mark.parametrize("positive", [True, False])
def test_a_slice_with_points_is_left_to_sam(a_looking_sam, positive):
    """As one with an edited box: else the network's certainty would undo what a point asks for."""
    image = scan(LIVER)
    image.array[LARGER & ~LIVER] = 0.57  # 0.7 for SAM, and 0.1 for the network
    organ = OrganPrompt(prompt(LARGER).frames, graded(0.1))
    organ = replace(organ, points={4: [PointPrompt(20, 41, positive)]})
    found = run(a_looking_sam, image, organ, acceptance=ACCEPT_ALL)
    assert found.labels.array[4, 41, 20] == 1
    assert found.probability(1)[4, 41, 20] == pytest.approx(0.7, abs=0.02)
    rim = LARGER[3] & ~ball((4, 25, 20), (4, 15, 13))[3]
    assert not found.labels.array[3][rim].any()  # the network counts in slices without points


def test_an_organ_that_is_left_out_leaves_the_labels(a_looking_sam):
    liver, spleen = prompt(LIVER), prompt(SPLEEN, 2)
    refiner = Refiner(
        scan(LIVER, SPLEEN),
        liver.frames.grid,
        a_looking_sam.model,
        modality="MR",
        cache=a_looking_sam.cache,
    )
    assert set(np.unique(refiner.refine([liver, spleen]).labels.array)) == {0, 1, 2}
    assert set(np.unique(refiner.refine([spleen]).labels.array)) == {0, 2}


def test_another_coarse_mask_is_noticed(a_looking_sam):
    a_looking_sam.answer = lambda picture, box: (torch.full_like(picture, -9), 0.9)
    organ = prompt(LIVER)
    refiner = Refiner(
        scan(LIVER), organ.frames.grid, a_looking_sam.model, cache=a_looking_sam.cache
    )
    refiner.refine([organ])
    other = np.roll(LIVER, 2, axis=2)
    found = refiner.refine([replace(organ, coarse=other)])
    np.testing.assert_array_equal(found.labels.array == 1, other)
    assert refiner.refine([replace(organ, coarse=None)]).reports[0].dice is None


def test_sam_is_told_where_on_its_canvas_a_tile_lies(a_looking_sam):
    run(a_looking_sam, scan(LIVER), prompt(LIVER), mosaic="crops")
    four = [[0, 0], [64, 0], [0, 64], [64, 64]]
    assert a_looking_sam.corners == four + four[:3]


def test_points_reach_sam_in_the_coordinates_of_their_tile(a_looking_sam):
    organ = prompt(LIVER)
    n = 4
    organ = replace(organ, points={n: (PointPrompt(18, 20), PointPrompt(3, 60, positive=False))})
    run(a_looking_sam, scan(LIVER), organ, mosaic="off")
    rows = [
        (p.points[row], p.point_labels[row])
        for p in a_looking_sam.asked
        if p.points is not None
        for row in range(len(p.boxes))
        if (p.point_labels[row] >= 0).any()
    ]
    assert len(rows) == 1
    # A slice of 60 x 1.5 mm by 70 x 1.25 mm, its longer side on 128 pixels.
    scale = 128 / 72
    np.testing.assert_allclose(
        rows[0][0],
        np.array([(18 * 128 / 60, 20 * 124 / 70), (3 * 128 / 60, 60 * 124 / 70)]),
        rtol=0.01,
    )
    assert scale > 1
    assert rows[0][1].tolist() == [1, 0]


def test_a_crop_shows_the_points_too(a_looking_sam):
    organ = replace(prompt(LIVER), points={4: (PointPrompt(57, 66, positive=False),)})
    run(a_looking_sam, scan(LIVER), organ, mosaic="crops")
    found = [p for p in a_looking_sam.asked if p.points is not None]
    (row,) = np.flatnonzero(found[0].point_labels[:, 0] == 0)
    x, y = found[0].points[row, 0].tolist()
    assert 0 < x < 64
    assert 0 < y < 64


def test_the_coarse_mask_is_a_mask_prompt_unless_it_is_not_wanted(a_looking_sam):
    coarse = np.where(LIVER, 0.9, 0.02).astype(np.float32)
    organ = prompt(LIVER, coarse=coarse)
    run(a_looking_sam, scan(LIVER), replace(organ, mask_prompt=False), mosaic="off")
    assert all(p.masks is None for p in a_looking_sam.asked)
    a_looking_sam.asked.clear()
    run(a_looking_sam, scan(LIVER), organ, mosaic="off")
    masks = torch.cat([p.masks for p in a_looking_sam.asked])
    assert masks.shape == (len(organ.frames.automatic), 1, 124, 128)
    middle = masks[list(organ.frames.automatic).index(4), 0]
    assert middle[round(25 * 124 / 70), round(20 * 128 / 60)].sigmoid() == pytest.approx(
        0.9, abs=0.01
    )
    assert middle[100, 100].sigmoid() == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_only_a_mask_prompt_that_nobody_corrected_is_to_be_agreed_with(a_looking_sam, mask_prompt):
    """SAM finds the liver; the coarse mask is a part of it."""
    coarse = LIVER.copy()
    coarse[:, :, 15:] = False
    organ = replace(prompt(LIVER, coarse=coarse), mask_prompt=mask_prompt)
    box = organ.frames.automatic[4]
    frames = organ.frames
    for n in (3, 4, 5):
        frames = frames.edit(n, organ.frames.automatic[n])
    frames = frames.edit(4, Box(box.x0 - 1, box.y0, box.x1, box.y1))
    found = run(a_looking_sam, scan(LIVER), with_frames(organ, frames))
    boxes = frames.effective()
    disagreeing = {n for n in boxes if boxes[n] == frames.automatic[n] and mask_prompt}
    assert 4 not in disagreeing
    assert disagreeing or not mask_prompt
    assert found.reports[0].kept == dict.fromkeys(sorted(disagreeing), DISAGREES)
    mask_prompts = sum(len(p.boxes) for p in a_looking_sam.asked if p.masks is not None)
    assert mask_prompts == len(disagreeing)


def test_a_black_slice_keeps_the_coarse_mask(a_looking_sam):
    volume = scan(LIVER)
    volume.array[4] = 0
    found = run(a_looking_sam, volume, prompt(LIVER), mosaic="slices")
    assert found.reports[0].kept == {4: BLANK}
    assert ((found.labels.array[4] == 1) == LIVER[4]).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice(a_looking_sam, axis):
    cut = [slice(None)] * 3
    cut[2 - axis] = slice(20, 21) if axis == 0 else slice(25, 26) if axis == 1 else slice(4, 5)
    mask = LIVER[tuple(cut)]
    place = geometry(mask.shape)
    volume = Volume(mask.astype(np.float32), place)
    frames = KeyFrames.from_coarse("liver", 1, mask, SliceGrid(place, axis))
    found = run(a_looking_sam, volume, OrganPrompt(frames, mask))
    assert dice(found.labels.array == 1, mask) > 0.97


def test_an_organ_without_any_box_stays_as_it_was(a_looking_sam):
    unsure = (0.6 * LIVER).astype(np.float32)
    organ = prompt(np.zeros(SHAPE, bool), coarse=unsure)
    found = run(a_looking_sam, scan(LIVER), organ)
    np.testing.assert_array_equal(found.labels.array == 1, LIVER)
    assert found.reports[0].boxes == 0
    assert found.reports[0].predicted_iou is None
    assert found.encoder_passes == 0


def test_bad_prompts_are_refused(a_looking_sam):
    volume, organ = scan(LIVER), prompt(LIVER)
    elsewhere = Volume(volume.array, Geometry(SHAPE[::-1], np.diag([1.5, 1.25, 6, 1])))
    with pytest.raises(PromptError, match="another grid"):
        run(a_looking_sam, elsewhere, organ)
    with pytest.raises(PromptError, match="another grid"):
        run(a_looking_sam, volume, organ, prompt(SPLEEN, 2, axis=1))
    with pytest.raises(PromptError, match="same label"):
        run(a_looking_sam, volume, organ, prompt(SPLEEN, 1))
    with pytest.raises(PromptError, match="no organ"):
        run(a_looking_sam, volume)
    with pytest.raises(PromptError, match="no organ"):
        refine(volume, [], a_looking_sam.model)
    with pytest.raises(PromptError, match="does not fit"):
        run(a_looking_sam, volume, replace(organ, coarse=LIVER[1:]))
    with pytest.raises(PromptError, match="no box in slice 8"):
        run(a_looking_sam, volume, replace(organ, points={8: (PointPrompt(3, 3),)}))
    with pytest.raises(PromptError, match="outside slice 4"):
        run(a_looking_sam, volume, replace(organ, points={4: (PointPrompt(61, 3),)}))
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(PromptError, match="mask threshold"):
            run(a_looking_sam, volume, organ, mask_threshold=threshold)


def test_cancelling_changes_nothing(a_looking_sam):
    volume, organ = scan(LIVER, SPLEEN), prompt(LIVER)
    refiner = Refiner(volume, organ.frames.grid, a_looking_sam.model, cache=a_looking_sam.cache)
    before = refiner.refine([organ])
    with pytest.raises(Cancelled):
        refiner.refine([organ, prompt(SPLEEN, 2)], cancelled=lambda: True)
    again = refiner.refine([organ])
    assert again.changed == ()
    np.testing.assert_array_equal(again.labels.array, before.labels.array)


def test_progress_only_ever_grows_and_ends_at_one(a_looking_sam):
    seen = []
    volume = scan(LIVER)
    volume.array[:] += np.arange(9)[:, None, None] / 100  # no two slices alike
    run(a_looking_sam, volume, prompt(LIVER), mosaic="off", progress=lambda *p: seen.append(p))
    stages = [stage for stage, _ in seen]
    assert stages == sorted(stages, key=["encode", "combine"].index)
    encoded = [fraction for stage, fraction in seen if stage == "encode"]
    assert encoded == sorted(encoded)
    assert encoded[0] == 0
    assert len(set(encoded)) == 7
    assert seen[-1] == ("combine", 1.0)


def test_crops_are_squares_that_follow_the_automatic_boxes():
    affine = np.diag([1.5, 0.75, 5, 1])
    grid = SliceGrid(Geometry((200, 300, 4), affine), 2)
    automatic = {0: Box(60, 100, 132, 130), 1: Box(110, 110, 112, 112), 2: Box(0, 280, 40, 300)}
    found = crops(automatic, automatic, grid)
    # 108 mm long: 162 mm are 108 columns and 216 rows, around (96, 115).
    assert found[0] == (42, 7, 150, 223)
    # A tiny cross-section is shown with half as much around it.
    assert found[1] == (84, 57, 138, 165)
    # 60 mm long, in a corner.
    assert found[2] == (0, 180, 60, 300)
    moved = {**automatic, 0: Box(50, 100, 140, 133)}
    assert crops(automatic, moved, grid)[0] == found[0]
    far = crops(automatic, {**automatic, 0: Box(20, 100, 40, 130)}, grid)[0]
    assert far[0] <= 20
    assert far[2] >= 132
    # Without automatic boxes, and never less than 50 mm.
    assert crops({}, {3: Box(60, 100, 132, 130)}, grid)[3] == found[0]
    assert crops({}, {3: automatic[1]}, grid)[3] == (94, 78, 128, 145)
    assert crops({}, {}, grid) == {}


def test_strays_are_pieces_apart_from_the_largest():
    grid = SliceGrid(geometry(), 1)
    mask = LIVER.copy()
    mask[8, 25:27, 58] = True
    coarse = CoarseMask(mask, grid)
    assert coarse.voxels == {n: mask[:, n].sum() for n in range(70) if mask[:, n].any()}
    assert (coarse.shown(25) == mask[:, 25]).all()
    assert (coarse.component(25) == LIVER[:, 25]).all()
    assert (coarse.probability(25) == LIVER[:, 25]).all()


def test_a_random_sam_gives_the_same_in_a_session_and_alone(a_random_sam):
    """Its windows do not see each other: what shares a canvas does not matter either."""
    random = np.random.default_rng(1)
    volume = scan(LIVER, SPLEEN)
    volume.array[:] += random.normal(0, 0.2, SHAPE).astype(np.float32)
    liver, spleen = prompt(LIVER), prompt(SPLEEN, 2)
    cache = EmbeddingCache()
    refiner = Refiner(volume, liver.frames.grid, a_random_sam, modality="MR", cache=cache)
    refiner.embed([liver, spleen])
    assert refiner.passes == 4
    together = refiner.refine([liver, spleen], acceptance=ACCEPT_ALL)
    assert together.encoder_passes == 0
    assert cache.passes == 4
    alone = once(volume, [spleen], a_random_sam, acceptance=ACCEPT_ALL)
    np.testing.assert_allclose(together.probability(2), alone.probability(2), atol=2e-2)
    assert together.probability(2).any()


def test_estimates_are_those_of_the_masks_and_leave_no_trace(a_random_sam):
    volume = scan(LIVER, SPLEEN)
    volume.array[:] += np.random.default_rng(1).normal(0, 0.2, SHAPE).astype(np.float32)
    liver, spleen = prompt(LIVER), prompt(SPLEEN, 2)
    nowhere = OrganPrompt(KeyFrames("heart", 3, liver.frames.grid))
    refiner = Refiner(volume, liver.frames.grid, a_random_sam, modality="MR")
    small = replace(liver.frames, automatic=dict(list(liver.frames.automatic.items())[2:4]))
    first = refiner.estimates([with_frames(liver, small)])
    both = refiner.estimates([liver, spleen, nowhere])
    fresh = once(volume, [liver, spleen], a_random_sam, acceptance=ACCEPT_ALL)
    found = refiner.refine([liver, spleen], acceptance=ACCEPT_ALL)
    assert both == {report.label: report.predicted_iou for report in fresh.reports}
    assert first.keys() == {1}
    assert first[1] != both[1]
    assert found.encoder_passes == 0
    assert found.changed == fresh.changed
    np.testing.assert_array_equal(found.labels.array, fresh.labels.array)
