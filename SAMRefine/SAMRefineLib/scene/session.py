# SPDX-License-Identifier: Apache-2.0
"""A session: boxes of organs in the scene, and the refinement of the organs by the worker.

Sessions are made by `logic`. Main thread only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError, SRCSMError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.worker.protocol import WorkerError, as_worker_error

from ..refine.answers import with_choices, with_results
from ..refine.client import Callbacks, RefineRun, Request
from ..refine.familiarity import left_alone, organs_to_refine, unfamiliar
from ..refine.organ_state import OrganState, Settings
from ..refine.runner import BackgroundRunner
from ..refine.saved_state import SavedState
from ..refine.schedule import BackgroundJob, View
from ..sam.catalogue import SamCard
from .box_editor import BoxEditor
from .box_nodes import is_outdated
from .requests import MakeClient, Requests, opening, worker_client

Progress = Callable[[str, float, float | None], None]
"""Called with the stage ("load", "choose", "encode", "combine"), the fraction of it that is done,
and None, as the seconds that are left are unknown."""

sessions: dict[str, "RefineSession"] = {}
"""The open sessions by the ID of their node."""


class RefineSession(BoxEditor):
    """Boxes of organs in the scene, and the refinement of the organs by the worker.

    Attributes:
        run: the refinement under way, or None.
        background: redraws and embeddings that nobody requested.
    """

    def __init__(
        self,
        node: slicer.vtkMRMLScriptedModuleNode,
        saved: SavedState,
        make_client: MakeClient = worker_client,
        scan: Volume | None = None,
    ) -> None:
        """Open a session; see `logic.boxes` and `logic.open_boxes`.

        Args:
            node: the node that keeps the boxes in the scene.
            saved: the state that it holds.
            make_client: makes the client that asks the worker.
            scan: a copy of the volume; None reads it when it is first needed.
        """
        super().__init__(node, saved)
        self.run: RefineRun | None = None
        self._requests = Requests(self.volumeNode, self.grid, make_client, scan)
        self._voxels = _voxel_token(self.volumeNode)
        self.background = BackgroundRunner(self._start_in_background)
        self.observers.add(self.volumeNode, vtk.vtkCommand.ModifiedEvent, self._on_volume)
        sessions[node.GetID()] = self
        worker_host.listen_to_losses(self._on_loss)
        self._update()

    def undo(self) -> None:
        """Undo the last edit, with what was redrawn because of it, unless a refinement runs."""
        if self.run is None:
            super().undo()

    def redo(self) -> None:
        """Redo the edit that was undone last, unless a refinement runs."""
        if self.run is None:
            super().redo()

    def configure(self, settings: Settings) -> None:
        """Change the settings; in live mode another mask threshold redraws refined organs."""
        if settings == self.settings:
            return
        before, self.settings = self.settings, settings
        if opening(settings) != opening(before):
            self._forget_answers()
            return
        organs = tuple(replace(organ, changed=True) for organ in self.organs)
        thresholds = before.mask_threshold, settings.mask_threshold
        if self.live and thresholds[0] != thresholds[1]:
            self.history.record_threshold(organs, *thresholds)
            for organ in organs:
                if organ.enabled and not organ.kept and organ.report is not None:
                    self.background.schedule.redraw(organ, self.slice)
        else:
            self.history.amend(organs)
        self._update()

    # refinement

    @property
    def sam(self) -> SamCard:
        """The card of the SAM that is asked."""
        return self._requests.sam(self.settings)

    @property
    def unfamiliar(self) -> list[OrganState]:
        """The organs that the SAM was not trained on, so that it may draw them badly."""
        return unfamiliar(self.organs, self.sam)

    @property
    def left_alone(self) -> list[OrganState]:
        """The ticked organs that *Refine all* leaves alone; they are redrawn only if named."""
        return left_alone(self.organs, self.sam)

    def refine(
        self,
        labels: Iterable[int] | None = None,
        progress: Progress = lambda stage, fraction, secondsLeft: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[RefineRun], None] = lambda run: None,
    ) -> RefineRun:
        """Redraw organs; see the function `logic.refine`.

        Args:
            labels: labels of organs; None for those that are ticked, but those `left_alone`.
            progress, log, done: see `logic.refine`.

        Raises:
            PromptError: nothing to refine, or a refinement is running.
            VolumeError: the volume was changed, or the segmentation made anew.
        """
        self.read_boxes()
        if self.run is not None:
            raise PromptError("A refinement goes on already; wait for it, or cancel it.")
        asked = None if labels is None else [self.organ(label) for label in labels]
        chosen, messages = organs_to_refine(self.organs, asked, self.sam)
        if not chosen:
            sentence = "There is no organ with a box to refine; draw a box, or enable one."
            raise PromptError(" ".join(messages) or sentence)
        self._require_current()
        self.background.schedule.clear()

        def finish(run: RefineRun) -> None:
            if not self.closed:
                self._update()
            for message in run.messages if run.error is None else ():
                log(message)
            done(run)

        callbacks = Callbacks(
            lambda stage, fraction: progress(stage, fraction, None), log, self._take_result, finish
        )
        run = self.run = self._send(Request.about("refine", chosen, self.settings), callbacks)
        run.messages = messages + [
            f'A point of "{organ.name}" in slice {k} does not count, as there is no box.'
            for organ in chosen
            for k in organ.points.keys() - organ.usable_points().keys()
        ]
        self.background.cancel()
        self.changed()
        return run

    def wait_for(self, run: RefineRun) -> slicer.vtkMRMLSegmentationNode:
        """Wait for a run; see `RefineRun.wait`."""
        while not run.finished:
            worker_host.wait_for(run)
        if run.error is not None:
            raise run.error
        return self.segmentationNode

    def cancel(self) -> None:
        """Stop the refinement under way, if there is one; nothing is changed."""
        self.background.schedule.clear()
        if self.run is not None:
            self.run.cancel()

    def _require_current(self) -> None:
        """Raise VolumeError if the volume or the segmentation is not that of the boxes any more."""
        self._requests.require_grid()
        if is_outdated(self.node):
            raise VolumeError(
                f'The segmentation "{self.segmentationNode.GetName()}" was made anew since its '
                "boxes were made; make new boxes."
            )
        volume, segmentation = self.volumeNode, self.segmentationNode
        if volume.GetTransformNodeID() != segmentation.GetTransformNodeID():
            raise VolumeError(
                f'"{volume.GetName()}" and "{segmentation.GetName()}" lie under different '
                "transforms; put both under one, or under none."
            )

    def _send(self, request: Request, callbacks: Callbacks) -> RefineRun:
        coarse = self.outlines.coarse_probabilities
        return self._requests.send(request, self.settings, coarse, callbacks, self)

    def _take_result(self, run: RefineRun) -> None:
        """Draw the result of a refinement; raises why it cannot."""
        self.run = None
        self._check(run)
        self._place(run, None, amend=False)

    def _place(self, run: RefineRun, slice_index: int | None, *, amend: bool) -> None:
        """Take over and draw an answer.

        Args:
            run: the finished run.
            slice_index: the slice to be redrawn; None for all.
            amend: extend the last step of the history.
        """
        self._mark_hand_edits()
        asked = self._adopt_choices(run)
        organs = self.organs
        organs, masks = self.outlines.aside(lambda: with_results(organs, asked, run, slice_index))
        self.history.place(organs, masks, self.settings.neighbours, amend=amend)

    def _adopt_choices(self, run: RefineRun) -> list[OrganState]:
        """Take over boxes that SAM chose; return the organs that were asked about with them."""
        organs, asked = with_choices(self.organs, run)
        if run.chosen is not None:
            self.history.amend(organs)
        return asked

    def _check(self, run: RefineRun) -> None:
        """Raise WorkerError if a run failed, or if its result has no place in the scene."""
        if self._gone():
            sentence = "The volume or its segmentation was removed meanwhile; nothing was changed."
            raise WorkerError("VolumeError", sentence)
        if self.closed:
            sentence = "The boxes were closed meanwhile; nothing was changed."
            raise WorkerError("Cancelled", sentence)
        if not self._requests.is_current(run):
            sentence = "The volume or the SAM was changed meanwhile; nothing was redrawn."
            raise WorkerError("VolumeError", sentence, "Refine again.")
        try:
            self._require_current()
        except VolumeError as error:
            raise as_worker_error(error) from error
        if run.error is not None:
            raise run.error

    # background jobs

    @property
    def live(self) -> bool:
        """True if each edit redraws the shown slice at once, and then the organ."""
        return self.background.live

    @live.setter
    def live(self, live: bool) -> None:
        self.background.live = live
        if not live:
            self.background.schedule.clear()

    @property
    def ahead(self) -> bool:
        """True if embeddings are computed ahead of need while nothing else is to be done."""
        return self.background.ahead

    @ahead.setter
    def ahead(self, ahead: bool) -> None:
        self.background.ahead = ahead
        self._go_on()

    @property
    def embeddings(self) -> dict[int, str]:
        """By label: "ready", "running", "waiting" or "failed", for organs with boxes.

        If every slice has an embedding of its own, those near the shown slice count.
        """
        return self.background.embeddings(self.organs, self._view)

    @property
    def _view(self) -> View:
        left = frozenset(organ.label for organ in self.left_alone)
        return View(self.slice, self._active, self.settings.mosaic == "off", left)

    def _go_on(self) -> None:
        """Start the next background job if nothing runs."""
        if self.closed or self.run is not None:
            return
        try:
            self.background.go_on(self.organs, self._view)
        except SRCSMError as error:
            self.message(str(error))

    def _start_in_background(self, job: BackgroundJob, organ: OrganState, view: View) -> RefineRun:
        self._require_current()
        if job.kind == "embed":
            wanted = view.wanted(organ)
            request = Request.about("embed", [organ], self.settings, wanted)
            callbacks = Callbacks(
                answered=lambda run: self._take_embeddings(run, wanted), done=self._embedded
            )
        else:
            slices = None if job.slice_index is None else {job.slice_index}
            request, past = Request.about("refine", [organ], self.settings, slices), self._past
            callbacks = Callbacks(
                answered=lambda run: self._take_redraw(run, job, past), done=self._redrawn
            )
        return self._send(request, callbacks)

    @property
    def _past(self) -> tuple:
        return self.history.steps.past

    def _take_redraw(self, run: RefineRun, job: BackgroundJob, past: tuple) -> None:
        """Draw a redraw unless the user went on meanwhile; raises why it cannot."""
        self.background.ended()
        self._check(run)
        (asked,) = run.request.organs
        organ = next((organ for organ in self.organs if organ.label == asked.label), None)
        if self._past is not past or self.run is not None or organ is None:
            return
        if (organ.frames, organ.points) == (asked.frames, asked.points):
            self._place(run, job.slice_index, amend=True)

    def _redrawn(self, run: RefineRun) -> None:
        if run.error is not None and run.error.kind != "Cancelled":
            self.background.schedule.clear()
            self._tell(run.error)
        if not self.closed:
            self._update()

    def _take_embeddings(self, run: RefineRun, slices: frozenset[int]) -> None:
        self.background.ended()
        if self.closed or run.error is not None:
            return
        (organ,) = self._adopt_choices(run)
        if run.chosen is not None:
            slices = frozenset(organ.frames.effective())
        self.background.schedule.embedded(organ, slices)

    def _embedded(self, run: RefineRun) -> None:
        if self.closed:
            return
        if run.error is not None and run.error.kind != "Cancelled":
            self.background.error = run.error
            self._tell(run.error)
        self._update()

    def _tell(self, error: WorkerError) -> None:
        if not self.closed:
            self.message(error.told)

    # changes of boxes and scene

    def _on_edits(self, organs: Sequence[OrganState]) -> None:
        if self.live:
            for organ in organs:
                self.background.schedule.redraw(organ, self.slice)

    def _returned(self, mask_threshold: float | None) -> None:
        self.background.schedule.clear()
        super()._returned(mask_threshold)

    def _proceed(self) -> None:
        self._go_on()
        if not self.background.redrawing:
            super()._proceed()

    def _stop(self) -> None:
        sessions.pop(self.node.GetID(), None)
        worker_host.listen_to_losses(self._on_loss, listen=False)
        self.cancel()
        self.background.close()

    def _on_slice(self, slice_index: int) -> None:
        self._go_on()
        super()._on_slice(slice_index)

    def _forget_answers(self) -> None:
        """Send the volume anew, and mark all organs as changed."""
        self._requests.forget()
        self.background.forget_embeddings()
        self.history.amend([replace(organ, changed=True) for organ in self.organs])
        self._update()

    def _on_loss(self) -> None:
        """Forget the embeddings that the worker lost; they are computed when something is done."""
        self.background.schedule.forget_embeddings()
        self.changed()

    def _on_volume(self, *_: object) -> None:
        if (voxels := _voxel_token(self.volumeNode)) != self._voxels:
            self._voxels = voxels
            self._forget_answers()


def _voxel_token(volume_node: slicer.vtkMRMLScalarVolumeNode) -> tuple[object, int] | None:
    """Return a token that changes whenever the voxel data change."""
    image = volume_node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    return None if scalars is None else (scalars, scalars.GetMTime())
