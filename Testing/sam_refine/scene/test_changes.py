# SPDX-License-Identifier: Apache-2.0
"""Changes of segments that are joined, undone and done again, to the voxel."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import slicer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scene_cases import add_volume, draw, voxels
from slicer_scene_fixture import empty_scene

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.refine.answers import result_masks
from SAMRefineLib.refine.client import RefineRun
from SAMRefineLib.refine.organ_state import Settings
from SAMRefineLib.scene.changes import apply, changes_to, joined
from SAMRefineLib.scene.logic import boxes, refine
from SAMRefineLib.scene.masks import read_layers
from SRCSMSegmenterLib.errors import Cancelled
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.worker.protocol import WorkerError

pytestmark = pytest.mark.needs_slicer

SHAPE = (4, 9, 8)
GEOMETRY = Geometry(SHAPE[::-1], np.diag([1.0, 1.0, 4.0, 1.0]))
GRID = SliceGrid(GEOMETRY, 2)
NAMES = ("liver", "spleen", "other")


def a_segmentation():
    """A volume and a segmentation with three segments side by side on it."""
    volume = add_volume(GEOMETRY, "scan", np.zeros(SHAPE, np.int16))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for n, name in enumerate(NAMES):
        mask = np.zeros(SHAPE, bool)
        mask[1:3, 2:7, 2 * n : 2 * n + 2] = True
        draw(segmentation, name, mask, volume)
    return volume, segmentation


def drawn(segmentation, volume):
    return {name: voxels(segmentation, name, volume) for name in NAMES}


def assert_same(found, expected, touched=False):
    """Compare voxels, but for those that were touched by hand."""
    for name in NAMES:
        unlike = (found[name] != expected[name]) & ~np.asarray(touched)
        assert not unlike.any(), name


@given(
    seed=st.integers(0, 2**32 - 1),
    redraws=st.integers(1, 5),
    neighbours=st.sampled_from(["keep", "overwrite", "overlap"]),
)
@settings(max_examples=25, deadline=None)
def test_joined_changes_do_what_they_do_one_after_the_other(seed, redraws, neighbours):
    rng = np.random.default_rng(seed)
    with empty_scene():
        volume, segmentation = a_segmentation()
        before, changes = drawn(segmentation, volume), ()
        for _ in range(redraws):
            wanted = {
                name: {int(n): rng.random(GRID.shape) < 0.5 for n in rng.choice(4, 2, False)}
                for name in rng.choice(NAMES[:2], rng.integers(1, 3), replace=False)
            }
            more = changes_to(read_layers(segmentation, NAMES, GEOMETRY), GRID, wanted, neighbours)
            apply(more, segmentation, GEOMETRY)
            changes = joined(changes, more)
        after = drawn(segmentation, volume)
        for _ in range(2):
            apply(changes, segmentation, GEOMETRY, backwards=True)
            assert_same(drawn(segmentation, volume), before)
            apply(changes, segmentation, GEOMETRY)
            assert_same(drawn(segmentation, volume), after)


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("backwards", [False, True])
def test_drawing_that_is_cancelled_changes_nothing(steps, backwards):
    told = []

    def aside(function, done):
        if len(told) == steps:
            raise Cancelled("Stopped.")
        told.append(done)

    with empty_scene():
        volume, segmentation = a_segmentation()
        rng = np.random.default_rng(2)
        wanted = {name: {n: rng.random(GRID.shape) < 0.5 for n in range(4)} for name in NAMES}
        changes = changes_to(read_layers(segmentation, NAMES, GEOMETRY), GRID, wanted, "keep")
        if backwards:
            apply(changes, segmentation, GEOMETRY)
        before = drawn(segmentation, volume)
        with pytest.raises(Cancelled):
            apply(changes, segmentation, GEOMETRY, backwards=backwards, aside=aside)
        assert_same(drawn(segmentation, volume), before)
        assert told == [n / 6 for n in range(steps)]


class RandomClient:
    """SAM's answers are random masks, and come when the test says so."""

    def __init__(self, volume, opening):
        self.runs = []
        RandomClient.current = self

    @property
    def waiting(self):
        return [run for run in self.runs if not run.finished]

    def submit(self, request, coarse, callbacks, session):
        run = RefineRun(self, request, callbacks, session)
        run.job = SimpleNamespace(state="running", cancel=lambda: None)
        self.runs.append(run)
        return run

    def answer(self, rng):
        """Answer what was asked first."""
        run = self.waiting[0]
        run.label_map = rng.choice([0, *run.labels], (GRID.count, *GRID.shape))
        run.reports = [
            {
                "label": label, "boxes": 1, "kept": {}, "dice": 0.5, "voxels_before": 1,
                "voxels_after": 1, "predicted_iou": 0.5,
            }
            for label in run.labels
        ]  # fmt: skip
        run.end()


def own(session, voxels):
    """The voxels that the session's state says its organs have; others' as they are."""
    masks = {
        organ.segment: np.stack(list(result_masks(organ.result, GRID).values()))
        for organ in session.organs
    }
    return voxels | masks


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(
        st.sampled_from(
            ["edit", "move", "undo", "redo", "answer", "answer all", "paint", "restart"]
        )
    ),
    neighbours=st.sampled_from(["keep", "overwrite", "overlap"]),
)
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_whatever_is_redrawn_live_undo_and_redo_find_every_states_own_voxels(
    seed, steps, neighbours
):
    rng = np.random.default_rng(seed)
    with empty_scene():
        volume, segmentation = a_segmentation()
        session = boxes(
            segmentation,
            volume,
            NAMES[:2],
            settings=Settings(sam="any", neighbours=neighbours),
            make_client=RandomClient,
        )
        refine(session, wait=False)
        RandomClient.current.answer(rng)
        session.live = True
        session.read_hand_edits()
        past, future = [None], []  # the voxels of each state when it was left
        touched, painted = np.zeros(SHAPE, bool), set()
        for step in [*steps, "answer all", "undo", "redo"]:
            now, known = drawn(segmentation, volume), len(session.history.steps.past)
            match step:
                case "edit":
                    x, y = rng.integers(0, 4, 2).tolist()
                    session.edit_box(1, int(rng.integers(1, 3)), Box(x, y, x + 3, y + 4))
                case "move":
                    theta = round(float(rng.uniform(0.1, 0.9)), 2)
                    session.configure(replace(session.settings, mask_threshold=theta))
                case "answer" if RandomClient.current.waiting:
                    RandomClient.current.answer(rng)
                case "answer all":
                    while RandomClient.current.waiting:
                        RandomClient.current.answer(rng)
                case "undo" if len(past) > 1:
                    session.undo()
                    future.append(now)
                    assert_same(drawn(segmentation, volume), past.pop(), touched)
                case "redo" if future:
                    session.redo()
                    past.append(now)
                    assert_same(drawn(segmentation, volume), future.pop(), touched)
                case "paint":
                    name, k = rng.choice(NAMES), int(rng.integers(4))
                    mask = now[name].copy()
                    mask[k, :2, :3] ^= rng.random((2, 3)) < 0.7
                    touched[k, :2, :3] = True
                    new = {str(name)} if (mask != now[name]).any() else set()
                    painted |= new
                    slicer.util.updateSegmentBinaryLabelmapFromArray(
                        mask.astype(np.uint8), segmentation, name, volume
                    )
                case "restart":
                    for run in RandomClient.current.waiting:
                        run.end(WorkerError("Cancelled", "The worker was stopped."))
                    for listener in worker_host._listeners:
                        listener()
            if step in ("edit", "move") and len(session.history.steps.past) > known:
                past.append(now)
                future = []
            if neighbours == "overlap":  # nothing stands in an organ's way
                now = drawn(segmentation, volume)
                assert_same(now, own(session, now), touched)
            session.read_hand_edits()
            marked = {organ.name for organ in session.organs if organ.by_hand}
            assert marked <= painted
            if step == "paint":
                assert new - {"other"} <= marked
        session.close()
