# SPDX-License-Identifier: Apache-2.0
"""Refining from Slicer, through the real worker: boxes, results, undo, and whatever may vanish.

Its SAM (picture_sam.py) finds what looks like the middle of its box.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import picture_sam
import pytest
import slicer
from scene_cases import add_transform, add_volume, draw, state, voxels
from slicer_scene_fixture import empty_scene

from SAMRefineLib.boxes.boxes import Box, Box3D, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.box_selection import prompts_as_in_slicer
from SAMRefineLib.refine.client import RefineClient
from SAMRefineLib.refine.organ_state import Settings
from SAMRefineLib.refine.refiner import Refiner
from SAMRefineLib.refine.saved_state import state_from_json
from SAMRefineLib.sam import prediction
from SAMRefineLib.sam.models import load_sam
from SAMRefineLib.scene import logic
from SAMRefineLib.scene.box_editor import BOXES
from SAMRefineLib.scene.logic import boxes, open_boxes, refine, saved_boxes
from SAMRefineLib.scene.requests import TASKS
from SAMRefineLib.scene.roi_views import BOUND, read_block, show_block
from SAMRefineLib.scene.segments import segment_ids
from SAMRefineLib.scene.session import sessions
from SAMRefineLib.scene.slice_views import align_views
from SRCSMSegmenterLib.errors import PromptError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.scene import nodes as slicer_scene
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.result import Result, SegmentedOrgan
from SRCSMSegmenterLib.scene.results import place
from SRCSMSegmenterLib.worker.protocol import WorkerError

pytestmark = pytest.mark.needs_slicer

SHAPE = (9, 70, 60)
AFFINE = np.array([[-1.4, 0.3, 0, 40], [0.3, 1.2, 0.5, -30], [0.1, -0.4, 5.9, 7], [0, 0, 0, 1]])


def straight(affine):
    """With right angles."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    affine = affine.copy()
    affine[:3, :3] = u @ vt * spacing
    return affine


GRID = Geometry(SHAPE[::-1], straight(AFFINE))
SLICES = SliceGrid(GRID, 2)


def ball(middle, radii, shape=SHAPE):
    where = [(x - m) / r for x, m, r in zip(np.indices(shape), middle, radii, strict=True)]
    return sum(x**2 for x in where) < 1


LIVER = ball((4, 25, 20), (4, 13, 11))
SPLEEN = ball((5, 50, 44), (3, 9, 8))
IMAGE = np.where(LIVER, 900, np.where(SPLEEN, 600, 100)).astype(np.int16)
COARSE = LIVER & (np.indices(SHAPE)[2] < 24)
"""The liver, a part of which is missing."""


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture
def scene():
    with empty_scene() as scene:
        yield scene
        for session in list(sessions.values()):
            session.close()


@pytest.fixture(scope="module", autouse=True)
def one_worker():
    """Started once for all tests, with a SAM that knows its way."""
    with pytest.MonkeyPatch.context() as patch:
        modules = ["SRCSMSegmenterLib.worker.tasks", TASKS, "picture_tasks"]
        patch.setattr(worker_host, "_task_modules", modules)
        worker_host.stop_worker()
        yield
        worker_host.stop_worker()


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return picture_sam.save(tmp_path_factory.mktemp("sams") / "sam ü")


def a_scan(geometry=GRID, image=IMAGE, name="scan"):
    return add_volume(geometry, name, image)


def segmented(volume, geometry=GRID, liver=COARSE, spleen=SPLEEN, **more):
    """What SRCSMSegmenter leaves in the scene."""
    labels = np.where(liver, 1, np.where(spleen, 2, 0)).astype(np.uint8)
    organs = (
        SegmentedOrgan("liver", 1, (221, 130, 101), "", 1.0, ((3, 2.0), (6, 1.0))),
        SegmentedOrgan("spleen", 2, (157, 108, 162), "", 1.0),
    )
    return place(Result(Volume(labels, geometry), organs, **more), volume).segmentation


@pytest.fixture
def session(scene, sam):
    volume = a_scan()
    return boxes(segmented(volume), volume, settings=Settings(sam=sam, device="cpu"))


def mask(session, name="liver"):
    return voxels(session.segmentationNode, name, session.volumeNode)


def label(session, name="liver"):
    return next(organ.label for organ in session.organs if organ.name == name)


def configure(session, **changes):
    session.configure(replace(session.settings, **changes))


def wait_for(ready):
    worker = worker_host.worker()
    for _ in range(6000):
        if ready():
            return
        worker.pump(0.05)
    raise AssertionError("it never came")


def settle(session):
    wait_for(
        lambda: (
            session.run is None
            and session.background.busy is None
            and not session.background.schedule
        )
    )


def drag(session, roi, block):
    """As the mouse does."""
    show_block(roi, block, session.volumeNode, session.grid.geometry)
    roi.InvokeCustomModifiedEvent(roi.PointEndInteractionEvent)


def widened(session, organ=None):
    """The bound of the liver where the liver ends."""
    block = session.organ(label(session)).frames.bounds3d()
    return Box3D(block.lower, (33, *block.upper[1:]))


# boxes


def test_every_segment_gets_boxes(session):
    liver, spleen = session.organs
    assert (liver.name, liver.segment, liver.label) == ("liver", "liver", 1)
    assert (spleen.name, spleen.label) == ("spleen", 2)
    np.testing.assert_allclose(spleen.color, np.array((157, 108, 162)) / 255, atol=1e-6)
    assert session.grid.axis == 2
    k, j, i = np.nonzero(COARSE)
    block = read_block(session.bound(1), session.volumeNode, GRID)
    np.testing.assert_allclose(block.lower, (i.min(), j.min(), k.min()), atol=1e-3)
    np.testing.assert_allclose(block.upper, (i.max() + 1, j.max() + 1, k.max() + 1), atol=1e-3)
    assert session.active == 1
    assert session.slice == 4
    assert not session.can_undo


def test_probabilities_decide_where_they_are_known(scene, sam):
    volume = a_scan()
    chance = np.where(LIVER, np.float16(0.6), np.float16(0.1))
    chance[COARSE] = 0.9
    chance[4, 60:65, 2:9] = 0.9  # which the user erased since
    segmentation = segmented(volume, liver=LIVER, probabilities={"liver": chance})
    session = boxes(segmentation, volume, ["liver"], settings=Settings(sam=sam))
    (organ,) = session.organs
    assert organ.frames.effective()[4].x1 == 24
    assert organ.frames.effective()[4].y1 < 45
    added = LIVER.copy()
    added[4, 33:50, 15:24] = True  # and what the user drew
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        added.astype(np.uint8), segmentation, "liver", volume
    )
    (organ,) = boxes(segmentation, volume, ["liver"], settings=Settings(sam=sam)).organs
    assert organ.frames.effective()[4].y1 == 50
    (organ,) = boxes(
        segmentation, volume, ["liver"], box_confidence=0.5, settings=Settings(sam=sam)
    ).organs
    assert organ.frames.effective()[3].x1 == 31


def test_boxes_are_made_once_for_a_segmentation(session):
    again = boxes(
        session.segmentationNode,
        session.volumeNode,
        axis="J",
        settings=Settings(sam=session.settings.sam),
    )
    assert session.closed
    assert saved_boxes() == [again.node]
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2
    rois = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
    assert len([roi for roi in rois if roi.GetAttribute(BOUND)]) == 2
    assert again.grid.axis == 1
    assert open_boxes(again.node) is again


def test_a_segmentation_of_another_grid_is_copied_to_the_volumes(scene, sam):
    volume, other = (
        a_scan(),
        a_scan(Geometry((110, 120, 80), np.diag([1, 1, 1.2, 1])), np.zeros((80, 120, 110))),
    )
    other.SetOrigin(-60, -60, -20)
    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    draw(drawn, "liver", COARSE, volume)
    moved = voxels(drawn, "liver", other)
    elsewhere = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "elsewhere")
    elsewhere.SetReferenceImageGeometryParameterFromVolumeNode(other)
    draw(elsewhere, "liver", moved, other)
    session = boxes(elsewhere, volume, settings=Settings(sam=sam))
    assert session.segmentationNode is not elsewhere
    assert session.segmentationNode.GetName() == "elsewhere refined"
    assert dice(mask(session), COARSE) > 0.9
    refine(session)
    np.testing.assert_array_equal(voxels(elsewhere, "liver", other), moved)


def test_surfaces_are_sampled(scene, sam):
    volume = a_scan()
    segmentation = segmented(volume)
    segmentation.CreateClosedSurfaceRepresentation()
    inner = segmentation.GetSegmentation()
    inner.SetSourceRepresentationName(slicer_scene.SURFACE)
    inner.RemoveRepresentation(slicer_scene.BINARY)
    session = boxes(segmentation, volume, settings=Settings(sam=sam))
    assert session.segmentationNode is not segmentation
    assert dice(mask(session), COARSE) > 0.85
    assert not inner.ContainsRepresentation(slicer_scene.BINARY)


def test_what_makes_no_sense_is_refused(scene, sam):
    volume = a_scan()
    segmentation = segmented(volume)
    before = state()
    with pytest.raises(PromptError, match='no segment "heart"'):
        boxes(segmentation, volume, ["heart"])
    with pytest.raises(PromptError, match="no axis"):
        boxes(segmentation, volume, axis="S")
    with pytest.raises(VolumeError, match="scalar volumes"):
        boxes(segmentation, segmentation)
    assert state() == before


# boxes that SAM chooses


@pytest.fixture
def unsure(scene, sam):
    """The network found a part of the liver, and is unsure of most of that."""
    chance = np.where(LIVER, np.float16(0.3), np.float16(0))
    chance[COARSE] = 0.6
    chance[3:6][(COARSE & (np.indices(SHAPE)[2] < 18))[3:6]] = 0.9
    volume = a_scan()
    found = segmented(volume, probabilities={"liver": chance})
    return boxes(found, volume, settings=Settings(sam=sam, modality="MR", device="cpu")), chance


def reach(session):
    """The slices and the right edge of the liver's boxes."""
    frames = session.organ(1).frames.effective()
    return list(frames), max(box.x1 for box in frames.values())


def test_where_the_network_is_unsure_sam_chooses_the_boxes(unsure):
    session, _ = unsure
    assert [organ.undecided for organ in session.organs] == [True, False]
    assert reach(session) == ([3, 4, 5], 18)
    refine(session, ["liver"])
    organ = session.organ(1)
    assert reach(session) == ([1, 2, 3, 4, 5, 6, 7], 31)
    assert not organ.changed
    assert not organ.undecided
    assert not organ.edited
    assert not organ.mask_prompt
    assert dice(mask(session), LIVER) > 0.93
    session.undo()  # the voxels, not the choice
    np.testing.assert_array_equal(mask(session), COARSE)
    assert reach(session)[1] == 31
    assert not session.can_undo
    again = state_from_json(session.node.GetParameter(BOXES)).organs[0]
    assert again.frames == session.organ(1).frames
    assert (again.undecided, again.mask_prompt, again.keep_unboxed) == (False, False, True)


def test_slices_of_which_a_sure_network_is_unsure_end_empty(scene, sam):
    chance = np.where(COARSE, np.float16(0.9), np.float16(0))
    chance[7][COARSE[7]] = 0.6
    volume = a_scan()
    session = boxes(
        segmented(volume, probabilities={"liver": chance}), volume, settings=Settings(sam=sam)
    )
    refine(session, ["liver"])
    assert not mask(session)[7].any()
    assert mask(session)[6].any()
    session = boxes(segmented(volume, probabilities={"liver": chance}), volume, box_confidence=0.75)
    configure(session, sam=sam)
    refine(session, ["liver"])
    np.testing.assert_array_equal(mask(session)[7], COARSE[7])


def test_sam_chooses_ahead_and_leaves_edited_boxes_alone(unsure):
    session, _ = unsure
    session.ahead = True
    wait_for(lambda: set(session.embeddings.values()) == {"ready"})
    assert reach(session)[1] == 31
    assert not session.can_undo
    before = passes()
    refine(session, ["liver"])
    assert passes() == before
    assert dice(mask(session), LIVER) > 0.93


def test_who_edits_boxes_has_decided_until_they_are_reset(unsure):
    session, _ = unsure
    edited = replace(session.organ(1).frames.effective()[4], y0=13)
    session.edit_box(1, 4, edited)
    refine(session, ["liver"])
    assert reach(session)[0] == [3, 4, 5]
    assert session.organ(1).frames.effective()[4] == edited
    session.reset(1)
    assert reach(session) == ([3, 4, 5], 18)
    refine(session, ["liver"])
    assert reach(session)[1] == 31
    session.edit_box(1, 4, edited)
    session.reset(1)
    assert reach(session)[1] == 31


def test_a_choice_that_comes_after_an_edit_is_dropped(unsure):
    session, _ = unsure
    run = refine(session, ["liver"], wait=False)
    session.edit_box(1, 4, Box(8, 11, 20, 39))
    run.wait()
    assert reach(session)[0] == [3, 4, 5]
    assert session.organ(1).changed


def test_boxes_of_a_given_confidence_are_not_chosen_anew(unsure, sam):
    session, _ = unsure
    session = boxes(
        session.segmentationNode, session.volumeNode, box_confidence=0.5, settings=Settings(sam=sam)
    )
    before = reach(session)
    refine(session, ["liver"])
    assert reach(session) == before


# refining


def test_a_spoiled_box_is_corrected_by_moving_the_roi_and_dice_rises(session):
    assert dice(mask(session), LIVER) < 0.9
    spoiled = session.organ(1).frames.bounds3d()
    drag(session, session.bound(1), Box3D(spoiled.lower, (15, *spoiled.upper[1:])))
    refine(session, ["liver"])
    bad = dice(mask(session), LIVER)
    drag(session, session.bound(1), widened(session))
    assert session.organ(1).changed
    refine(session, ["liver"])
    good = dice(mask(session), LIVER)
    assert good > 0.93 > dice(COARSE, LIVER) > bad
    organ = session.organ(1)
    assert not organ.changed
    assert organ.report.dice == pytest.approx(dice(mask(session), COARSE), abs=1e-6)
    assert organ.report.voxels_before == COARSE.sum()
    np.testing.assert_array_equal(mask(session, "spleen"), SPLEEN)


@pytest.mark.parametrize("axis", ["I", "J", "K"])
@pytest.mark.parametrize("flip", [1, -1])
def test_results_lie_where_they_should_on_any_grid_under_any_transform(scene, sam, axis, flip):
    geometry = Geometry(GRID.size, GRID.affine @ np.diag([1, flip, 1, 1]))
    volume = a_scan(geometry)
    add_transform(volume)
    segmentation = segmented(volume, geometry, LIVER)
    session = boxes(segmentation, volume, axis=axis, settings=Settings(sam=sam))
    assert session.segmentationNode is segmentation
    for organ in session.organs:
        refine(session, [organ.name])
    assert dice(mask(session), LIVER) > 0.93
    assert dice(mask(session, "spleen"), SPLEEN) > 0.9
    outside = ~(ball((4, 25, 20), (5, 15, 13)) | ball((5, 50, 44), (4, 11, 10)))
    assert not (mask(session) | mask(session, "spleen"))[outside].any()


def test_all_or_some_are_refined(session):
    run = refine(session, wait=False)
    assert run.labels == (1, 2)
    run.wait()
    session.set_enabled(1, False)
    assert refine(session, wait=False).labels == (2,)
    settle(session)
    session.set_enabled(2, False)
    with pytest.raises(PromptError, match="no organ with a box"):
        refine(session)
    with pytest.raises(PromptError, match="no boxes of heart"):
        refine(session, ["heart"])


def test_a_box_drawn_on_nothing_becomes_a_segment(scene, sam):
    volume = a_scan()
    add_transform(volume)
    session = boxes(None, volume, settings=Settings(sam=sam))
    assert session.organs == ()
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "drawn")
    roi.CreateDefaultDisplayNodes()
    show_block(roi, Box3D((36, 42, 3), (53, 59, 8)), volume, GRID)
    number = session.add_organ("spleen", roi=roi)
    assert roi.GetScene() is None
    refine(session)
    assert dice(mask(session, "spleen"), SPLEEN) > 0.85
    organ = session.organ(number)
    assert organ.report.dice is None
    segment = session.segmentationNode.GetSegmentation().GetSegment("spleen")
    assert "78961009" in segment.GetTerminology()
    session.undo()
    assert not mask(session, "spleen").any()
    session.undo()
    assert session.segmentationNode.GetSegmentation().GetNumberOfSegments() == 0
    session.redo()
    session.redo()
    assert dice(mask(session, "spleen"), SPLEEN) > 0.85
    with pytest.raises(PromptError, match="covers no slice"):
        session.add_organ("heart", Box3D((0, 0, -9), (5, 5, -3)))
    assert session.organ(session.add_organ("heart")).frames.bounds3d().lower[0] == 20


def test_points_count_where_there_is_a_box(session):
    organ = session.organ(1)
    points = {4: [(10.5, 25.5, False)], 8: [(10.5, 25.5, True)]}
    session.edit(organ.with_points(points))
    run = refine(session, ["liver"], wait=False)
    run.wait()
    assert not mask(session)[4, 25, 10]
    assert mask(session)[3, 25, 10]
    assert [("slice 8" in text) for text in run.messages] == [True]
    session.clear_points(1)
    refine(session, ["liver"])
    assert mask(session)[4, 25, 10]


def test_settings_reach_the_worker(session, sam):
    refine(session)
    loose = mask(session, "spleen").sum()
    heard = []
    session.changed = lambda: heard.append(session.organ(2).changed)
    configure(session, mask_threshold=0.5)
    assert heard == []
    configure(session, mask_threshold=0.9)
    assert heard == [True]
    refine(session)
    assert mask(session, "spleen").sum() < loose
    configure(session, sam="nowhere")
    with pytest.raises(WorkerError, match="nowhere"):
        refine(session)
    configure(session, sam=sam, mosaic="slices", mask_threshold=0.5)
    refine(session)
    assert abs(int(mask(session, "spleen").sum()) - loose) < 0.2 * loose


# neighbours


@pytest.mark.parametrize("rule", ["keep", "overwrite", "overlap"])
def test_neighbours_keep_or_give_what_the_rule_says(scene, sam, rule):
    volume = a_scan()
    segmentation = segmented(volume)
    cyst = np.zeros(SHAPE, bool)
    cyst[3:6, 20:30, 26:36] = True  # half of it in the liver
    draw(segmentation, "cyst", cyst, volume)
    session = boxes(
        segmentation, volume, ["liver", "spleen"], settings=Settings(sam=sam, neighbours=rule)
    )
    before = state()
    session.edit_bound(1, widened(session))
    refine(session, ["liver"])
    shared = mask(session) & mask(session, "cyst")
    np.testing.assert_array_equal(mask(session, "spleen"), SPLEEN)
    if rule == "keep":
        np.testing.assert_array_equal(mask(session, "cyst"), cyst)
        assert not shared.any()
        assert dice(mask(session), LIVER & ~cyst) > 0.93
    elif rule == "overlap":
        np.testing.assert_array_equal(mask(session, "cyst"), cyst)
        assert shared.any()
        assert dice(mask(session), LIVER) > 0.93
    else:
        np.testing.assert_array_equal(mask(session, "cyst"), cyst & ~mask(session))
        assert dice(mask(session), LIVER) > 0.93
    after = {name: mask(session, name) for name in ("liver", "spleen", "cyst")}
    session.undo()
    session.undo()
    assert segments(before) == segments(state())
    session.redo()
    session.redo()
    for name, expected in after.items():
        np.testing.assert_array_equal(mask(session, name), expected)


def segments(found):
    """The segments of a state, without what they are stored in."""
    return [
        {id: set(entry[id][3]) for id in ("liver", "spleen", "cyst") if id in entry}
        for entry in found.values()
        if "grid" in entry
    ]


def test_organs_that_are_refined_together_hand_voxels_to_each_other(scene, sam):
    volume = a_scan()
    wrong = LIVER & (np.indices(SHAPE)[1] < 25)
    segmentation = segmented(volume, liver=LIVER & ~wrong, spleen=wrong)
    layers = segmentation.GetSegmentation().GetNumberOfLayers()
    session = boxes(segmentation, volume, settings=Settings(sam=sam))
    k, j, i = np.nonzero(LIVER)
    session.edit_bound(
        1, Box3D((i.min(), j.min(), k.min()), (i.max() + 1, j.max() + 1, k.max() + 1))
    )
    k, j, i = np.nonzero(SPLEEN)
    session.edit(session.organ(2).with_frames(session.organ(2).frames.reset()))
    session.edit_bound(2, Box3D((35, 40, 2), (53, 60, 9)))
    refine(session)
    assert dice(mask(session), LIVER) > 0.85
    assert not (mask(session) & mask(session, "spleen")).any()
    assert segmentation.GetSegmentation().GetNumberOfLayers() == layers


def test_what_was_drawn_by_hand_since_stays_where_sam_says_nothing_new(session):
    refine(session)
    hand = mask(session).copy()
    hand[2, 60:64, 4:9] = True
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        hand.astype(np.uint8), session.segmentationNode, "liver", session.volumeNode
    )
    session.edit_box(1, 7, Box(12, 18, 30, 33))
    refine(session)
    assert mask(session)[2, 60:64, 4:9].all()
    session.undo()
    session.undo()
    np.testing.assert_array_equal(mask(session), hand)
    session.undo()
    assert mask(session)[2, 60:64, 4:9].all()


# undo


def test_edits_and_refinements_are_undone_and_redone_in_order(session):
    marks = [(session.organs, mask(session))]
    session.edit_bound(1, widened(session))
    marks.append((session.organs, mask(session)))
    refine(session)
    marks.append((session.organs, mask(session)))
    session.switch_off(1, 4)
    marks.append((session.organs, mask(session)))
    refine(session, ["liver"])
    assert not mask(session)[4].any()
    marks.append((session.organs, mask(session)))
    session.keep_coarse(1, True)
    marks.append((session.organs, mask(session)))
    np.testing.assert_array_equal(mask(session), COARSE)
    for step in (session.undo, session.redo):
        order = marks[:-1][::-1] if step == session.undo else marks[1:]
        for organs, expected in order:
            step()
            assert session.organs == organs
            np.testing.assert_array_equal(mask(session), expected)
        assert not (session.can_undo if step == session.undo else session.can_redo)
        step()


def test_a_new_edit_forgets_what_was_undone_and_flags_are_no_edits(session):
    session.edit_box(1, 4, Box(3, 4, 20, 30))
    session.set_shown(1, False)
    session.undo()
    assert session.can_redo
    assert not session.organ(1).shown
    session.edit_box(1, 5, Box(3, 4, 20, 30))
    assert not session.can_redo


def test_the_coarse_mask_is_kept_when_asked_for(session):
    session.edit_bound(1, widened(session))
    refine(session)
    refined = mask(session)
    session.keep_coarse(1, True)
    np.testing.assert_array_equal(mask(session), COARSE)
    assert session.organ(1).kept
    assert refine(session, wait=False).labels == (2,)
    settle(session)
    np.testing.assert_array_equal(mask(session), COARSE)
    session.keep_coarse(1, False)
    np.testing.assert_array_equal(mask(session), refined)
    session.keep_coarse(1, True)
    refine(session, [1])
    np.testing.assert_array_equal(mask(session), refined)
    number = session.add_organ("heart")
    with pytest.raises(PromptError, match="no coarse mask"):
        session.keep_coarse(number, True)


def test_before_and_after_are_toggled_without_touching_voxels(session):
    refine(session)
    before, shown = segments(state()), session.segmentationNode.GetDisplayNode()
    shown.SetSegmentVisibility("spleen", False)
    session.show_before(True)
    old = slicer.util.getNode("scan segmentation before refinement")
    assert session.before_shown
    assert old.GetDisplayVisibility()
    assert old.GetDisplayNode().GetSegmentVisibility("liver")
    assert not old.GetDisplayNode().GetSegmentVisibility("spleen")
    assert not shown.GetSegmentVisibility("liver")
    np.testing.assert_array_equal(voxels(old, "liver", session.volumeNode), COARSE)
    session.show_before(False)
    assert shown.GetSegmentVisibility("liver")
    assert not shown.GetSegmentVisibility("spleen")
    assert not old.GetDisplayVisibility()
    assert segments(state()) == before


def test_resetting_returns_to_the_automatic_boxes(session):
    automatic = [organ.frames for organ in session.organs]
    session.edit_bound(1, widened(session))
    session.edit_box(2, 5, Box(3, 4, 20, 30))
    session.edit_box(2, 6, Box(3, 4, 20, 30))
    assert session.organ(2).edited > 0
    session.reset(2, 5)
    assert list(session.organ(2).frames.edited) == [6]
    session.reset(1)
    assert session.organ(1).frames == automatic[0]
    session.reset()
    assert [organ.frames for organ in session.organs] == automatic
    assert session.organ(2).edited == 0
    session.undo()
    assert list(session.organ(2).frames.edited) == [6]


def test_a_slice_gets_a_box_and_loses_it(session):
    session.switch_off(1)
    assert session.slice not in session.organ(1).frames.effective()
    session.add_slice_box(1)
    assert session.organ(1).edited == 0
    session.add_slice_box(1, 8)
    assert session.organ(1).frames.effective()[8] == session.organ(1).near_box(7)
    session.remove_organ(1)
    assert session.active == 2
    np.testing.assert_array_equal(mask(session), COARSE)


def test_long_histories_forget_their_beginning(session):
    session.history.steps = replace(session.history.steps, limit=3)
    for x in range(3, 8):
        session.edit_box(1, 4, Box(x, 4, 20, 30))
    for _ in range(4):
        session.undo()
    assert session.organ(1).frames.edited[4].x0 == 4
    assert not session.can_undo


def surface(session, name="liver"):
    segment = session.segmentationNode.GetSegmentation().GetSegment(name)
    return segment.GetRepresentation(slicer_scene.SURFACE)


def test_surfaces_follow_when_all_is_redrawn_and_those_of_others_stay(session):
    session.segmentationNode.CreateClosedSurfaceRepresentation()
    spleen, sizes = surface(session, "spleen"), [surface(session).GetBounds()[1::2]]
    session.edit_bound(1, widened(session))
    refine(session, ["liver"])
    sizes.append(surface(session).GetBounds()[1::2])
    session.undo()
    assert surface(session).GetBounds()[1::2] == sizes[0]
    session.redo()
    assert surface(session).GetBounds()[1::2] == sizes[1] != sizes[0]
    assert surface(session, "spleen") is spleen
    session.live = True
    old, heard = surface(session), []
    session.changed = lambda: heard.append((session.background.busy, surface(session) is old))
    session.edit_box(1, 4, Box(8, 11, 25, 39))
    settle(session)
    assert (("redraw", 1, None), True) in heard  # the slice is there, the surface is not yet
    assert surface(session) is not old
    session.keep_coarse(1, True)
    assert surface(session).GetBounds()[1::2] == sizes[0]
    session.switch_off(1, 0)
    for n in range(9):
        session.switch_off(1, n)
    settle(session)


# live


def test_letting_go_of_a_box_redraws_the_slice_and_then_the_organ(session):
    session.live = True
    for n in range(1, 8):
        session.edit_box(1, n, replace(session.organ(1).frames.effective()[n], x1=33))
    session.undo()
    settle(session)
    session.redo()
    start, heard = mask(session), []
    session.changed = lambda: heard.append(mask(session))
    drag(session, session.slice_box(1), SLICES.block(Box(8, 11, 32, 39), 4))
    settle(session)
    first = next(found for found in heard if (found != start).any())
    assert set(np.nonzero((first != start).any(axis=(1, 2)))[0]) == {4}
    assert dice(mask(session)[4], LIVER[4]) > 0.93
    assert dice(mask(session), LIVER) > 0.93
    assert not session.organ(1).changed
    session.undo()  # the box and what followed
    np.testing.assert_array_equal(mask(session), start)
    session.redo()
    assert dice(mask(session), LIVER) > 0.93


def test_the_slice_that_is_looked_at_goes_before_whole_organs_and_embeddings(scene, sam):
    order = []

    class WrittenDown(RefineClient):
        def submit(self, request, *more):
            boxes = request.frames[0].effective()
            slices = list(boxes) if len(boxes) == 1 else "all"
            order.append((request.task, request.frames[0].label, slices))
            return super().submit(request, *more)

    volume = a_scan()
    session = boxes(
        segmented(volume),
        volume,
        settings=Settings(sam=sam, device="cpu"),
        make_client=lambda volume, opening: WrittenDown(worker_host.worker, volume, opening),
    )
    session.ahead = True
    assert session.background.busy == ("embed", 1, None)
    assert [task for task, *_ in order] == ["embed"]
    order.clear()
    session.live = True
    session.edit_box(1, 4, Box(8, 11, 30, 39))
    assert session.background.busy == ("redraw", 1, 4)
    wait_for(lambda: session.background.busy == ("redraw", 1, None))
    session.edit_box(2, 4, Box(36, 42, 52, 58))
    assert session.background.busy == ("redraw", 2, 4)
    settle(session)
    assert order[:5] == [
        ("refine", 1, [4]),
        ("refine", 1, "all"),
        ("refine", 2, [4]),
        ("refine", 2, "all"),
        ("refine", 1, "all"),
    ]
    assert not any(organ.changed for organ in session.organs)
    assert set(session.embeddings.values()) <= {"ready", "running", "waiting"}


def test_live_results_of_boxes_that_moved_on_are_dropped(session):
    session.live = True
    session.edit_box(1, 4, Box(30, 40, 40, 60))
    session.edit_box(1, 4, Box(8, 11, 32, 39))
    settle(session)
    assert dice(mask(session)[4], LIVER[4]) > 0.93
    session.undo()
    settle(session)
    session.undo()
    np.testing.assert_array_equal(mask(session), COARSE)


def test_without_live_nothing_is_redrawn(session):
    session.edit_box(1, 4, Box(8, 11, 32, 39))
    settle(session)
    np.testing.assert_array_equal(mask(session), COARSE)


@pytest.mark.parametrize("quickly", [True, False])
def test_theta_2_redraws_at_once_and_is_undone_in_one_step(session, quickly):
    refine(session)
    start, undone = mask(session, "spleen"), session.history.steps.past
    session.live = True
    for threshold in (0.6, 0.8, 0.95):
        configure(session, mask_threshold=threshold)
        if not quickly:
            settle(session)
    settle(session)
    tight = mask(session, "spleen")
    assert 0 < tight.sum() < start.sum()
    assert not any(organ.changed for organ in session.organs)
    session.undo()
    assert session.settings.mask_threshold == 0.5
    assert session.history.steps.past == undone
    np.testing.assert_array_equal(mask(session, "spleen"), start)
    session.redo()
    assert session.settings.mask_threshold == 0.95
    np.testing.assert_array_equal(mask(session, "spleen"), tight)
    settle(session)
    session.edit_box(1, 4, Box(8, 11, 30, 39))
    configure(session, mask_threshold=0.5)
    settle(session)
    session.undo()
    assert session.settings.mask_threshold == 0.95
    assert 4 in session.organ(1).frames.edited


def test_theta_2_leaves_organs_alone_that_were_never_refined(session):
    refine(session, ["spleen"])
    session.live = True
    configure(session, mask_threshold=0.9)
    settle(session)
    np.testing.assert_array_equal(mask(session), COARSE)
    assert mask(session, "spleen").sum() < SPLEEN.sum()


def test_theta_2_waits_for_the_next_refinement_without_live(session):
    refine(session)
    start = mask(session)
    configure(session, mask_threshold=0.9)
    settle(session)
    np.testing.assert_array_equal(mask(session), start)
    session.undo()
    assert session.settings.mask_threshold == 0.9


# embeddings


def passes():
    return worker_host.worker().submit("looks").wait().values["passes"]


@pytest.mark.parametrize("mosaic", ["crops", "slices", "off"])
def test_embeddings_are_there_before_they_are_needed(session, mosaic):
    configure(session, mosaic=mosaic)
    states = []
    session.changed = lambda: states.append(session.embeddings)
    assert session.embeddings == {1: "waiting", 2: "waiting"}
    session.ahead = True
    assert session.embeddings[1] == "running"
    wait_for(lambda: set(session.embeddings.values()) == {"ready"})
    assert {1: "ready", 2: "running"} in states
    before = passes()
    box = session.organ(1).frames.effective()[4]
    session.edit_box(1, 4, replace(box, y0=box.y0 + 1))
    wait_for(lambda: set(session.embeddings.values()) == {"ready"})
    refine(session)
    assert passes() == before


def test_a_sam_that_is_not_there_is_told_once(session):
    heard = []
    session.message = heard.append
    configure(session, sam="nowhere")
    session.ahead = True
    wait_for(lambda: heard)
    assert "nowhere" in heard[0]
    assert set(session.embeddings.values()) == {"failed"}
    session.edit_box(1, 4, Box(8, 11, 32, 39))
    settle(session)
    assert len(heard) == 1


# finding the way


def test_uncertain_slices_come_from_the_network_and_from_sam(session):
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    align_views(session.volumeNode)
    assert session.uncertain_slices() == [3, 6]
    session.edit_box(1, 5, Box(50, 2, 58, 8))  # nothing is there
    session.edit_box(1, 4, session.organ(1).frames.automatic[4])
    session.jump(0)
    session.next_uncertain()
    assert session.slice == 3
    session.next_uncertain()
    assert session.slice == 6
    session.next_uncertain()
    assert session.slice == 6
    session.next_uncertain(-1)
    assert session.slice == 3
    slicer.mrmlScene.RemoveNode(view)


# cancelling, vanishing


def test_cancelling_leaves_everything_as_it_is(session):
    before, organs, ended = state(), session.organs, []
    run = session.refine(done=ended.append)
    with pytest.raises(PromptError, match="goes on already"):
        session.refine()
    session.cancel()
    with pytest.raises(WorkerError, match="cancelled"):
        run.wait()
    assert run.error.kind == "Cancelled"
    assert ended == [run]
    assert state() == before
    assert session.organs == organs
    refine(session)  # and the next one works


@pytest.mark.parametrize("likely", [None, 0.9, 0.6])
def test_the_command_line_refines_as_a_session_does(scene, sam, likely, monkeypatch):
    """Sure or unsure of its organs, or without probabilities (None)."""
    monkeypatch.setattr(prediction, "decode", picture_sam.decode)  # as in the worker
    masks = {"liver": COARSE, "spleen": SPLEEN}
    coarse, known = masks, {}
    if likely is not None:
        chance = np.where(np.indices(SHAPE)[0] < 4, likely, 0.9)
        known = {name: (each * chance).astype(np.float16) for name, each in masks.items()}
        coarse = known
    volume = a_scan()
    settings = Settings(sam=sam, device="cpu")
    session = boxes(segmented(volume, probabilities=known), volume, settings=settings)
    refine(session)

    model = load_sam(sam, None, "cpu")
    refiner = Refiner(
        Volume(IMAGE, GRID),
        SLICES,
        model,
        modality=guess_modality(IMAGE),
        cache=picture_sam.Pictures(),
    )
    organs = [CoarseOrgan(name, n, coarse[name]) for n, name in enumerate(coarse, start=1)]
    frames = [KeyFrames.from_coarse(o.name, o.label, o.mask, SLICES) for o in organs]
    found = refiner.refine(prompts_as_in_slicer(refiner, frames, organs)).labels.array
    for organ in organs:
        np.testing.assert_array_equal(mask(session, organ.name), found == organ.label)


def pid():
    return worker_host.worker().submit("who").wait().values["pid"]


def test_cancelling_is_instant_and_the_worker_keeps_what_it_knows(session, monkeypatch):
    refine(session)
    process, seen = pid(), passes()
    sent, worker = [], worker_host.worker()
    carry = worker._carry

    def written_down(job, connection):
        arrays = job._request[1]
        sent.extend(arrays() if callable(arrays) else arrays)
        carry(job, connection)

    monkeypatch.setattr(worker, "_carry", written_down)
    session.edit_bound(1, widened(session))
    # From the first progress on the worker computes; its answer may be waiting behind it already.
    run = session.refine(progress=lambda *_: session.run and session.cancel())
    wait_for(lambda: run.finished)
    assert run.error.kind == "Cancelled"
    assert session.run is None
    refine(session)
    assert dice(mask(session), LIVER) > 0.93
    assert dice(mask(session, "spleen"), SPLEEN) > 0.9
    assert pid() == process
    assert sent == []
    assert passes() <= seen + 2


@pytest.mark.parametrize("what", ["voxels", "sam"])
def test_a_result_of_another_volume_or_sam_is_dropped(session, sam, what):
    before, run = mask(session), session.refine()
    if what == "voxels":
        slicer.util.arrayFromVolumeModified(session.volumeNode)
    else:
        configure(session, mosaic="slices")
    wait_for(lambda: run.finished)
    assert "changed meanwhile" in str(run.error)
    np.testing.assert_array_equal(mask(session), before)
    refine(session)


def test_a_worker_that_died_is_told_of_the_volume_again(session):
    refine(session)
    worker_host.worker().stop()
    session.edit_bound(1, widened(session))
    refine(session)
    assert dice(mask(session), LIVER) > 0.93


def test_a_worker_that_is_replaced_mid_run_is_told_all_again(session):
    """By ``useWorker`` of a script, or when a module of Slicer is reloaded."""
    session.ahead = True
    wait_for(lambda: set(session.embeddings.values()) == {"ready"})
    run = session.refine()
    worker_host.use_worker()
    assert run.error.kind == "Cancelled"
    assert session.run is None
    assert "ready" not in session.embeddings.values()
    session.edit_bound(1, widened(session))
    refine(session)
    assert dice(mask(session), LIVER) > 0.93
    wait_for(lambda: set(session.embeddings.values()) == {"ready"})


@pytest.mark.parametrize("what", ["volume", "segmentation", "boxes", "before", "grid", "scene"])
def test_what_vanishes_during_a_run_is_no_exception_but_a_sentence(session, scene, what):
    run = session.refine()
    match what:
        case "volume":
            scene.RemoveNode(session.volumeNode)
        case "segmentation":
            scene.RemoveNode(session.segmentationNode)
        case "boxes":
            scene.RemoveNode(session.node)
        case "before":
            scene.RemoveNode(slicer.util.getNode("scan segmentation before refinement"))
        case "grid":
            session.volumeNode.SetSpacing(2, 2, 2)
        case "scene":
            scene.Clear(0)
    wait_for(lambda: run.finished)
    if what == "before":
        assert run.error is None
        return
    assert {"grid": "grid", "scene": "closed"}.get(what, "removed") in str(run.error)
    assert session.closed == (what != "grid")
    assert session.run is None
    if what != "grid":
        assert slicer.util.getNodesByClass("vtkMRMLMarkupsROINode") == []
        left = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
        assert not any("before" in name for name in left)
        assert len(session.observers) == len(session.views.observers) == 0
    session.undo()
    session.close()


def test_segments_that_were_deleted_come_back_refined(session):
    session.segmentationNode.GetSegmentation().RemoveSegment("liver")
    session.undo()
    session.edit_bound(1, widened(session))
    refine(session)
    assert mask(session).any()


def test_deleting_an_roi_removes_the_organs_boxes(session, scene):
    scene.RemoveNode(session.bound(1))
    assert [organ.label for organ in session.organs] == [2]
    session.undo()
    assert session.bound(1) is not None
    assert [organ.label for organ in session.organs] == [1, 2]


def test_changed_voxels_are_sent_anew(session):
    refine(session)
    slicer.util.arrayFromVolume(session.volumeNode)[:] = np.where(COARSE, 100, 900)
    slicer.util.arrayFromVolumeModified(session.volumeNode)
    assert all(organ.changed for organ in session.organs)
    before = mask(session)
    refine(session, ["spleen"])
    assert mask(session, "spleen").sum() != SPLEEN.sum() or (mask(session) == before).all()


def test_closing_lets_go_of_everything(session):
    nodes = [session.volumeNode, session.bound(1), slicer.mrmlScene]
    session.points.node(True)
    session.close()
    session.close()
    assert session.closed
    assert sessions == {}
    for observers in (session.observers, session.views.observers, session.points.observers):
        assert len(observers) == 0
    assert not nodes[1].GetDisplayNode().GetVisibility()
    assert slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode") == []
    again = open_boxes(session.node)
    assert again.bound(1) is nodes[1]
    assert again.bound(1).GetDisplayNode().GetVisibility()
    assert again.organs == session.organs


# the scene's file


def reopened(scene, tmp_path):
    file = tmp_path / "scène 1.mrb"
    assert scene.WriteToMRB(str(file))
    scene.Clear(0)
    scene.ReadFromMRB(str(file))
    (node,) = saved_boxes()
    return open_boxes(node)


@pytest.mark.parametrize("axis", ["J", "K"])
@pytest.mark.parametrize("flip", [1, -1])
def test_boxes_settings_and_coarse_masks_come_back_from_the_scenes_file(
    scene, sam, tmp_path, axis, flip
):
    geometry = Geometry(GRID.size, GRID.affine @ np.diag([1, flip, 1, 1]))
    volume = a_scan(geometry)
    add_transform(volume)
    session = boxes(
        segmented(volume, geometry),
        volume,
        axis=axis,
        settings=Settings(sam=sam, mask_threshold=0.6),
    )
    settings = session.settings
    session.edit_bound(1, widened(session))
    n = sorted(session.organ(1).frames.effective())[2]
    session.edit_box(1, n, Box(7, 3, 31, 8) if axis == "J" else Box(9, 12, 31, 38))
    session.edit(session.organ(1).with_points({n: [(20.5, 5.5, True)]}))
    session.set_shown(2, False)
    refine(session, ["liver"])
    session.edit_box(2, n + 1 if axis == "K" else 45, Box(36, 4, 50, 7))

    def where(session):
        return [
            slicer.util.arrayFromVTKMatrix(session.bound(organ).GetObjectToWorldMatrix())[:3, 3]
            for organ in (1, 2)
        ]  # fmt: skip

    places, sums = where(session), [mask(session, name).sum() for name in ("liver", "spleen")]
    organs, world = session.organs, mask(session)
    again = reopened(scene, tmp_path)
    assert again.settings == settings
    assert again.grid.geometry.matches(slicer_scene.node_geometry(again.volumeNode))
    np.testing.assert_allclose(where(again), places, atol=1e-3)
    for old, new in zip(organs, again.organs, strict=True):
        assert new.changed == old.changed
        assert new.shown == old.shown
        assert new.report == old.report or geometry.left_handed
        assert len(new.frames.effective()) == len(old.frames.effective())
        assert len(new.frames.edited) == len(old.frames.edited)
    assert [mask(again, name).sum() for name in ("liver", "spleen")] == sums
    turned = world[::-1] if geometry.left_handed else world
    np.testing.assert_array_equal(mask(again), turned)
    if not geometry.left_handed:
        assert again.organs == organs
    # And it goes on: the same boxes give the same masks, and the coarse ones are still known.
    refine(again, ["liver"])
    assert dice(mask(again), turned) > 0.99
    again.keep_coarse(1, True)
    np.testing.assert_array_equal(mask(again), COARSE[::-1] if geometry.left_handed else COARSE)
    assert len(slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")) <= 4
    again.close()


def test_boxes_without_their_volume_or_of_another_grid_are_refused(session, scene):
    node = session.node
    session.close()
    session.volumeNode.SetSpacing(3, 3, 3)
    with pytest.raises(PromptError, match="another grid"):
        open_boxes(node)
    scene.RemoveNode(session.volumeNode)
    with pytest.raises(PromptError, match="lost its volume"):
        open_boxes(node)
    node.SetParameter(BOXES, "{")
    with pytest.raises(PromptError, match="no boxes that can be read"):
        open_boxes(node)


def test_a_scripts_last_change_of_an_roi_is_saved(session):
    show_block(session.bound(1), widened(session), session.volumeNode, GRID)
    slicer.mrmlScene.InvokeEvent(slicer.vtkMRMLScene.StartSaveEvent)
    saved = state_from_json(session.node.GetParameter(BOXES))
    assert saved.organs[0].frames.bounds3d().upper[0] == pytest.approx(33, abs=1e-3)
    assert json.loads(session.node.GetParameter(BOXES))["version"] == 2


def test_two_organs_of_one_name_are_both_meant():
    organs = [SimpleNamespace(name=name, label=label) for label, name in enumerate("aba", 1)]
    session = SimpleNamespace(organs=organs)
    assert logic._labels_of(session, "a") == [1, 3]
    assert logic._labels_of(session, 2) == [2]
    with pytest.raises(PromptError, match="no boxes of c; there are of a, b"):
        logic._labels_of(session, "c")


def test_two_segments_of_one_name_are_both_found():
    segments = {"s1": "a", "s2": "b", "s3": "a"}
    segmentation = SimpleNamespace(
        GetSegmentIDs=lambda: list(segments),
        GetSegment=lambda id: SimpleNamespace(GetName=lambda: segments[id]),
    )
    node = SimpleNamespace(GetSegmentation=lambda: segmentation, GetName=lambda: "node")
    assert segment_ids(node, ["a"]) == ["s1", "s3"]
    assert segment_ids(node, ["s3", "a", "b"]) == ["s3", "s1", "s2"]
    with pytest.raises(PromptError, match="no segment"):
        segment_ids(node, ["c"])
