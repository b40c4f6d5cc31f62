# SPDX-License-Identifier: Apache-2.0
"""The worker process that all of Slicer's modules share (worker/client.py). Main thread only."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import slicer

from ..errors import BundleError, Cancelled
from ..geometry import Volume
from ..models.catalogue import absolute
from ..worker.client import Job, Worker
from .aside import Aside, directly

PUMP_MS = 20

_task_modules = ["SRCSMSegmenterLib.worker.tasks"]
_worker: Worker | None = None
_timer: object = None
_listeners: list[Callable[[], None]] = []


@dataclass(frozen=True)
class SegmentSettings:
    """Parameters of the task "segment" (worker/tasks.py), but for the scan's grid.

    Attributes:
        organs: names of those wanted; None for all.
        modality: "CT" or "MR"; None if neither the user nor the file says it.
        refine: let the task of the `RefinementOffer` do it.
    """

    model: str
    source_matching: str
    organs: Sequence[str] | None
    modality: str | None
    device: str
    keep_largest: bool
    probabilities: bool = True
    refine: bool = False

    def __post_init__(self) -> None:
        if self.organs is not None:  # a list might change while a run goes on
            object.__setattr__(self, "organs", tuple(self.organs))


@dataclass(frozen=True)
class RefinementOffer:
    """Refinement of segmentations, which another module offers.

    Attributes:
        task: the worker's task that segments as "segment" does, and refines the result.
        sam_for: name of the SAM for a network, by the modality it was trained on; "" if it is not
            there.
        requirements: file with the packages it needs beside those of the whole extension.
    """

    task: str
    sam_for: Callable[[str], str]
    requirements: Path


_refinement: RefinementOffer | None = None


def worker() -> Worker:
    """Return the worker, made on first use. If there is Qt, a timer pumps it."""
    if _worker is None:
        use_worker()
    return _worker


def use_worker(address: str | None = None, token: str = "") -> None:
    """Compute in a process of this machine, or by ``srcsm worker --listen`` on another.

    Args:
        address: "host:port", such as the near end of an SSH tunnel; None for this machine.
        token: which that worker printed.
    """
    global _worker, _timer
    before = _worker, _timer
    environment = slicer.util.startupEnvironment() if hasattr(slicer, "app") else None
    _worker = Worker(_task_modules, environment=environment, address=address, token=token)
    _worker.lost = _tell_listeners
    _timer = _started_timer(_worker.pump)
    _end(*before)


def add_tasks(module: str) -> None:
    """Have the worker load a module with a table TASKS (worker/tasks.py).

    Other modules of Slicer call this before they ask for the worker. A worker that was started
    without the module is ended; the next job starts it again.
    """
    if module not in _task_modules:
        _task_modules.append(module)
        if _worker is not None:
            _worker.stop()


def offer_refinement(offer: RefinementOffer) -> None:
    """Let segmentations be refined at once; the offer's task is one of a module of `add_tasks`."""
    global _refinement
    _refinement = offer


def refinement() -> RefinementOffer | None:
    """Return the offer to refine segmentations; None if no module makes one."""
    return _refinement


def check_refinement() -> RefinementOffer:
    """Return the offer to refine segmentations.

    Raises:
        BundleError: no module makes one.
    """
    if _refinement is None:
        raise BundleError("There is no module SAM Refine; segment without it.")
    return _refinement


def stop_worker() -> None:
    """End the worker and its jobs; the next segmentation starts it again."""
    global _worker, _timer
    before = _worker, _timer
    _worker = _timer = None
    _end(*before)


def _end(worker: Worker | None, timer: object) -> None:
    """End a worker that has been replaced already: who hears of it may go on with another."""
    if timer is not None:
        timer.stop()
    if worker is not None:
        worker.stop()


def listen_to_losses(listener: Callable[[], None], *, listen: bool = True) -> None:
    """Call a function when the worker has lost all that it had loaded and cached, or stop that.

    It is called after a worker was stopped, killed or replaced, or died; it must not submit jobs.
    """
    if listen:
        _listeners.append(listener)
    elif listener in _listeners:
        _listeners.remove(listener)


def _tell_listeners() -> None:
    for listener in [*_listeners]:
        listener()


def submit_segment(volume: Volume, settings: SegmentSettings, **callbacks: Callable) -> Job:
    """Submit the task "segment", or the one that refines too.

    Args:
        volume: the scan, (K, J, I) raw intensities.
        callbacks: progress, log, done of `Worker.submit`.

    Raises:
        BundleError: no module offers to refine.
    """
    parameters, task = asdict(settings) | volume.geometry.to_json(), "segment"
    parameters["model"] = absolute(parameters["model"])
    if parameters.pop("refine"):
        task = check_refinement().task
    return worker().submit(task, parameters, {"image": volume.array}, **callbacks)


def wait_for(job: Job, aside: Aside = directly) -> None:
    """Wait until a job is finished, while Slicer goes on drawing.

    Raises:
        Cancelled: `aside`, which is called again and again, raised it; the job is cancelled.
    """
    try:
        while not job.finished:
            worker().pump(PUMP_MS / 1000)
            if hasattr(slicer, "app"):
                slicer.app.processEvents()
            aside(lambda: None)
    except (KeyboardInterrupt, Cancelled):
        job.cancel()
        raise


def _started_timer(call: Callable[[], None]) -> object:
    try:
        import qt
    except ImportError:
        return None
    timer = qt.QTimer()
    timer.setInterval(PUMP_MS)
    timer.connect("timeout()", call)
    timer.start()
    return timer
