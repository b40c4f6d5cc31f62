# SPDX-License-Identifier: Apache-2.0
"""Background jobs run one at a time, and the shown slice interrupts longer ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.refine.organ_state import OrganState
from SAMRefineLib.refine.runner import BackgroundRunner
from SAMRefineLib.refine.schedule import BackgroundJob, View
from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.geometry import Geometry
from SRCSMSegmenterLib.worker.protocol import WorkerError

GRID = SliceGrid(Geometry((64, 64, 40), np.diag([1.0, 1.0, 3.0, 1.0])), 2)
BOX = Box(10, 10, 30, 30)
LIVER, SPLEEN = (
    OrganState(KeyFrames(name, label, GRID, dict.fromkeys(slices, BOX)), name)
    for label, (name, slices) in enumerate(
        {"liver": range(5, 25), "spleen": range(20, 30)}.items(), start=1
    )
)
ORGANS, VIEW = (LIVER, SPLEEN), View(22, 1, apart=False)


class Host:
    """What a session does with a runner: it goes on whenever a job has ended."""

    def __init__(self):
        self.started, self.runner = [], BackgroundRunner(self.start)

    def start(self, job, organ, view):
        assert (organ.label, view) == (job.label, VIEW)
        self.started.append(job)
        return SimpleNamespace(job=SimpleNamespace(state="running"), cancel=self.end)

    def end(self):
        self.runner.ended()
        self.go_on()

    def go_on(self):
        self.runner.go_on(ORGANS, VIEW)


@pytest.fixture
def host():
    return Host()


def test_redraws_go_before_embeddings_and_one_job_runs_at_a_time(host):
    host.go_on()
    assert host.runner.busy is None
    host.runner.ahead = True
    host.runner.schedule.redraw(SPLEEN, 22)
    host.go_on()
    host.go_on()
    assert host.started == [BackgroundJob("redraw", 2, 22)]
    assert host.runner.redrawing
    host.end()
    host.end()
    assert host.started[1:] == [BackgroundJob("redraw", 2), BackgroundJob("embed", 1)]
    assert not host.runner.redrawing


def test_the_shown_slice_interrupts_a_whole_organ_which_comes_again(host):
    host.runner.schedule.redraw(LIVER, 30)  # it has no box there
    host.go_on()
    host.runner.schedule.redraw(SPLEEN, 22)
    host.go_on()
    assert host.started == [BackgroundJob("redraw", 1), BackgroundJob("redraw", 2, 22)]
    host.end()
    host.end()
    assert host.started[2:] == [BackgroundJob("redraw", 2), BackgroundJob("redraw", 1)]


def test_the_shown_slice_is_not_interrupted(host):
    host.runner.schedule.redraw(LIVER, 22)
    host.go_on()
    host.runner.schedule.redraw(SPLEEN, 22)
    host.go_on()
    assert host.started == [BackgroundJob("redraw", 1, 22)]


def test_embeddings_that_fail_are_not_tried_again_until_they_are_forgotten(host):
    host.runner.ahead = True
    host.go_on()
    assert host.runner.embeddings(ORGANS, VIEW) == {1: "running", 2: "waiting"}
    host.runner.error = WorkerError("BundleError", "There is no such SAM.")
    host.end()
    assert host.runner.busy is None
    assert host.runner.embeddings(ORGANS, VIEW) == {1: "failed", 2: "failed"}
    host.runner.forget_embeddings()
    host.go_on()
    host.runner.schedule.embedded(LIVER, VIEW.wanted(LIVER))
    assert host.runner.embeddings(ORGANS, VIEW) == {1: "ready", 2: "waiting"}


def test_a_job_that_cannot_start_leaves_the_runner_idle(host):
    def refuse(job, organ, view):
        raise VolumeError("another grid")

    runner = BackgroundRunner(refuse)
    runner.schedule.redraw(LIVER, 22)
    with pytest.raises(VolumeError, match="another grid"):
        runner.go_on(ORGANS, VIEW)
    assert runner.busy is None


@pytest.mark.parametrize(("state", "ends"), [("queued", True), ("running", False)])
def test_closing_cancels_what_is_queued_alone(state, ends):
    cancelled = []
    run = SimpleNamespace(job=SimpleNamespace(state=state), cancel=lambda: cancelled.append(state))
    runner = BackgroundRunner(lambda job, organ, view: run)
    runner.schedule.redraw(LIVER, 22)
    runner.go_on(ORGANS, VIEW)
    runner.close()
    assert not runner.schedule
    assert bool(cancelled) == ends
