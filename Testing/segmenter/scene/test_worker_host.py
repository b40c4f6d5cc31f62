# SPDX-License-Identifier: Apache-2.0
"""One worker for all modules: pumped by a timer if there is Qt, with the tasks of all of them."""

import sys
from types import SimpleNamespace

import pytest

from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.worker.protocol import WorkerError

pytestmark = [pytest.mark.needs_slicer, pytest.mark.usefixtures("one_worker")]


def test_where_there_is_qt_a_timer_pumps_the_worker_until_it_is_stopped(monkeypatch):
    timers = []

    class QTimer:
        def __init__(self):
            self.running = False
            timers.append(self)

        def setInterval(self, milliseconds):
            self.interval = milliseconds

        def connect(self, signal, call):
            assert signal == "timeout()"
            self.call = call

        def start(self):
            self.running = True

        def stop(self):
            self.running = False

    worker_host.stop_worker()
    monkeypatch.setitem(sys.modules, "qt", SimpleNamespace(QTimer=QTimer))
    job = worker_host.worker().submit("ping", {"x": 1})
    (timer,) = timers
    assert timer.running
    assert timer.interval <= 100
    while not job.finished:
        timer.call()
    assert job.reply.values == {"x": 1}
    worker_host.stop_worker()
    assert not timer.running


def test_a_module_adds_its_tasks_to_a_worker_that_runs(monkeypatch):
    monkeypatch.setattr(worker_host, "_task_modules", ["SRCSMSegmenterLib.worker.tasks"])
    worker_host.stop_worker()
    before = worker_host.worker()
    with pytest.raises(WorkerError, match="no task 'echo'"):
        before.submit("echo", {"x": 1}).wait()
    worker_host.add_tasks("worker_tasks")
    assert worker_host.worker() is before
    assert before.submit("ping", {"x": 1}).wait().values == {"x": 1}
    assert before.submit("echo", {"x": 1}).wait().values
    worker_host.add_tasks("worker_tasks")  # again: what runs goes on
    assert before.submit("ping", {"x": 2}).wait().values == {"x": 2}
    worker_host.stop_worker()


def test_who_listens_hears_that_a_worker_was_stopped_or_replaced(monkeypatch):
    monkeypatch.setattr(worker_host, "_listeners", [])
    worker_host.stop_worker()
    heard, worker = [], worker_host.worker

    def listener():
        heard.append(worker_host._worker)

    worker_host.listen_to_losses(listener)
    first = worker()
    first.submit("ping").wait()
    worker_host.use_worker()
    second = worker()
    assert second is not first
    assert heard == [second]  # a listener that goes on takes the new one
    second.submit("ping").wait()
    worker_host.stop_worker()
    assert heard == [second, None]
    worker_host.listen_to_losses(listener, listen=False)
    worker().submit("ping").wait()
    worker_host.stop_worker()
    assert len(heard) == 2
