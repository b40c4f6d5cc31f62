# SPDX-License-Identifier: Apache-2.0
"""What travels between a refinement and its worker, and what is known after each answer."""

from types import SimpleNamespace

import numpy as np
import pytest
from geometries import oblique_left_handed

from SAMRefineLib.boxes.boxes import Box, PointPrompt, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.boxes.patches import Patch
from SAMRefineLib.refine.client import Callbacks, RefineClient, Request, only
from SAMRefineLib.refine.organ_state import OrganState, Settings
from SAMRefineLib.refine.tasks import UNKNOWN_VOLUME
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.worker.protocol import WorkerError

GRID = SliceGrid(oblique_left_handed((5, 4, 3)), 1)
VOLUME = Volume(np.zeros((3, 4, 5), np.int16), GRID.geometry)
COARSE = Patch((1, 0, 2), np.ones((2, 4, 3), bool))
LIVER = KeyFrames("liver", 2, GRID, {1: Box(0, 0, 2, 2)})
CANCELLED = WorkerError("Cancelled", "The work was cancelled; nothing was changed.")


class HeldWorker:
    """Jobs that end when the test says so."""

    def __init__(self):
        self.jobs = []

    def submit(self, task, parameters, arrays, *, progress, log, done, grace):
        job = SimpleNamespace(
            task=task, parameters=parameters, arrays=arrays(), progress=progress, log=log,
            done=done, grace=grace, stage="start", error=None, reply=None, wanted=True,
        )  # fmt: skip
        job.cancel = lambda: setattr(job, "wanted", False)
        self.jobs.append(job)
        return job

    def answer(self, job, labels, changed=()):
        values = {"axis": GRID.axis, "changed": list(changed), "organs": [{"label": 2}]}
        values["chosen"] = None
        job.reply, job.stage = SimpleNamespace(values=values, arrays={"labels": labels}), "combine"
        job.done(job)

    def fail(self, job, error):
        job.error = error
        job.done(job)


@pytest.fixture
def worker():
    return HeldWorker()


@pytest.fixture
def ask(worker):
    client = RefineClient(lambda: worker, VOLUME, {"sam": "s"})

    def ask(task="refine", parameters=None, **callbacks):
        request = Request(task, (LIVER,), parameters or {})
        run = client.submit(request, lambda label: lambda: COARSE, Callbacks(**callbacks))
        return run, worker.jobs[-1]

    return ask


def labels(*values):
    """(K, J, I) with a value for every slice along J."""
    return np.broadcast_to(np.array(values, np.uint8)[None, :, None], (3, 4, 5))


def per_slice(run):
    return [int(each.max()) for each in run.label_map]


def test_the_volume_and_coarse_masks_are_sent_once(worker, ask):
    _, first = ask("embed")
    assert sorted(first.arrays) == ["coarse_2", "first_2", "image"]
    assert first.arrays["coarse_2"].shape == (2, 4, 3)
    assert first.arrays["first_2"].tolist() == [1, 0, 2]
    worker.answer(first, labels(0, 0, 0, 0))
    run, second = ask(parameters={"mask_threshold": 0.5})
    assert second.arrays == {}
    assert second.parameters["mask_threshold"] == 0.5
    assert second.parameters["volume"] == first.parameters["volume"]
    worker.answer(second, labels(0, 2, 2, 0))
    assert run.finished
    assert [each.shape for each in run.label_map] == [(3, 5)] * 4
    assert per_slice(run) == [0, 2, 2, 0]


def test_of_later_results_the_changed_slices_travel_alone(worker, ask):
    worker.answer(ask()[1], labels(0, 2, 2, 0))
    run, job = ask()
    assert not job.parameters["whole"]
    worker.answer(job, np.full((2, 3, 5), 300, np.uint16), changed=(0, 2))
    assert per_slice(run) == [300, 2, 300, 0]
    run, job = ask()
    worker.answer(job, np.zeros((0, 3, 5), np.uint16))
    assert per_slice(run) == [300, 2, 300, 0]


def test_a_cancelled_run_ends_at_once_and_once(worker, ask):
    ends, heard = [], []
    run, job = ask(done=ends.append, progress=lambda *told: heard.append(told))
    job.progress("encode", 0.5)
    run.cancel()
    assert ends == [run]
    assert run.error.kind == "Cancelled"
    assert not job.wanted
    job.progress("encode", 0.6)
    worker.fail(job, CANCELLED)
    assert ends == [run]
    assert heard == [("encode", 0.5)]


def test_after_a_result_that_was_cancelled_all_slices_travel(worker, ask):
    worker.answer(ask()[1], labels(0, 2, 2, 0))
    dropped, late = ask()
    dropped.cancel()
    run, job = ask()  # before the worker noticed
    assert job.parameters["whole"]
    late.stage = "combine"
    worker.fail(late, CANCELLED)
    again, after = ask()
    assert after.parameters["whole"]
    worker.answer(job, labels(0, 0, 2, 2))
    worker.answer(after, labels(2, 0, 0, 2))
    assert per_slice(run) == [0, 0, 2, 2]
    assert per_slice(again) == [2, 0, 0, 2]
    assert not ask()[1].parameters["whole"]


@pytest.mark.parametrize("stage", ["start", "encode"])
def test_changes_are_told_of_the_result_that_was_known_when_they_were_asked_for(worker, ask, stage):
    """An embedding that is cancelled, or fails, while a refinement waits makes it unknown."""
    worker.answer(ask()[1], labels(0, 2, 2, 0))
    ahead, embedding = ask("embed")
    ahead.cancel()
    run, job = ask()
    assert not job.parameters["whole"]
    embedding.stage = stage
    worker.fail(embedding, CANCELLED)
    worker.answer(job, np.full((1, 3, 5), 2, np.uint8), changed=(0,))
    assert run.finished
    assert run.error is None
    assert per_slice(run) == [2, 2, 2, 0]
    worker.answer(ask()[1], np.zeros((1, 3, 5), np.uint8), changed=(1,))


@pytest.mark.parametrize(("stage", "sent"), [("start", True), ("encode", False)])
def test_what_has_surely_arrived_is_not_sent_again_after_cancelling(worker, ask, stage, sent):
    run, job = ask()
    job.stage = stage
    run.cancel()
    worker.fail(job, CANCELLED)
    assert ("image" in ask()[1].arrays) == sent


def test_all_is_sent_again_after_an_error(worker, ask):
    run, job = ask()
    job.stage = "encode"
    worker.fail(job, WorkerError("WorkerDied", "It died."))
    assert run.error.kind == "WorkerDied"
    _, job = ask()
    assert sorted(job.arrays) == ["coarse_2", "first_2", "image"]
    assert job.parameters["whole"]


def test_a_worker_that_has_forgotten_is_told_once_more(worker, ask):
    worker.answer(ask()[1], labels(0, 2, 2, 0))
    ends = []
    run, job = ask(done=ends.append)
    forgotten = WorkerError(UNKNOWN_VOLUME, "Who?")
    worker.fail(job, forgotten)
    assert ends == []
    again = worker.jobs[-1]
    assert again is not job
    assert sorted(again.arrays) == ["coarse_2", "first_2", "image"]
    assert again.parameters["whole"]
    worker.answer(again, labels(0, 2, 0, 0))
    assert per_slice(run) == [0, 2, 0, 0]
    run, job = ask(done=ends.append)
    worker.fail(job, forgotten)
    worker.fail(worker.jobs[-1], forgotten)
    assert run.error is forgotten
    assert ends[1:] == [run]


def test_a_run_that_was_cancelled_is_not_sent_again(worker, ask):
    run, job = ask()
    run.cancel()
    worker.fail(job, WorkerError(UNKNOWN_VOLUME, "Who?"))
    assert len(worker.jobs) == 1


def test_a_run_whose_answer_cannot_be_taken_over_fails(worker, ask):
    def full(run):
        raise WorkerError("VolumeError", "There is no place for it.")

    ends = []
    run, job = ask(answered=full, done=ends.append)
    worker.answer(job, labels(0, 2, 2, 0))
    assert ends == [run]
    assert str(run.error) == "There is no place for it."


def test_a_request_about_organs_holds_what_the_worker_has_to_know():
    frames = KeyFrames("liver", 2, GRID, {1: Box(0, 0, 2, 2), 2: Box(0, 0, 3, 3)})
    points = {1: (PointPrompt(1, 1, False),), 3: (PointPrompt(1, 2),)}
    liver = OrganState(frames, "L", points=points, keep_unboxed=False)
    spleen = OrganState(KeyFrames("spleen", 4, GRID, {0: Box(0, 0, 1, 1)}), "S", undecided=True)
    request = Request.about("refine", [liver, spleen], Settings(mask_threshold=0.75))
    assert request.organs == (liver, spleen)
    assert request.frames == (liver.frames, spleen.frames)
    assert request.parameters == {
        "points": {"2": {"1": [[1, 1, False]]}, "4": {}},
        "choose": [4],
        "mask_prompt": [2, 4],
        "keep_unboxed": [4],
        "mask_threshold": 0.75,
    }
    of_a_slice = Request.about("refine", [spleen], Settings(mask_prompt=False), {0})
    assert of_a_slice.parameters["choose"] == []
    assert of_a_slice.parameters["mask_prompt"] == []
    assert Request.about("embed", [spleen], Settings(), {0}).parameters["choose"] == [4]


def test_the_boxes_of_some_slices_stay_as_they_are():
    frames = KeyFrames("liver", 2, GRID, {0: Box(0, 0, 2, 2), 2: Box(0, 0, 3, 3)})
    frames = frames.edit(3, Box(1, 1, 4, 3))
    assert only(frames, {2}).effective() == {2: frames.effective()[2]}
    assert only(frames, {2}).automatic == frames.automatic
