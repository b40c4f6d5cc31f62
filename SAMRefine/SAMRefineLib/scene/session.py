# SPDX-License-Identifier: Apache-2.0
"""A session: the organs of a segmentation, their boxes in the views, and what SAM makes of them.

What a session knows is immutable (`organ_state.Organ`) and has a history: an edit of boxes and the
change of voxels that followed from it are undone together. It is kept in the scene, in a node of
its own. Sessions are made by `logic`. Main thread only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError, SRCSMError, VolumeError
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.measures import measures
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.worker.protocol import WorkerError, as_worker_error

from ..boxes.boxes import Box, Box3D
from ..boxes.key_frames import History, KeyFrames, boxes_from_json
from ..refine.acceptance import NO_BOX
from ..refine.client import Request
from ..refine.organ_state import Organ, Report, Saved, Settings, organs_to_json, unpacked
from ..refine.schedule import Agenda, Errand, View
from .masks import Change, apply, joined, read_masks, redrawn, renew_surfaces
from .point_views import PointViews
from .requests import Requests, only, opening
from .roi_views import BoxViews, Observers, jump_to, read_block, remove_node
from .segments import coarse_chances, organ_tag, sync_segments

BOXES = "SRCSM.Boxes"
"""Attribute of the node that keeps a session in the scene, and the name of its parameter."""

VOLUME, SEGMENTATION, BEFORE = "SRCSM.Volume", "SRCSM.Segmentation", "SRCSM.Before"
"""Roles of its references; the last is to the coarse masks."""

FEW = 2
"""Slices to both sides of the one shown that a new box covers."""

STEPS = 100
"""Edits and refinements that can be undone. What they need is some KB a slice that changed."""

Progress = Callable[[str, float, float | None], None]
"""Called with the stage ("load", "choose", "encode", "combine"), the fraction of it that is done,
and None: how many seconds are left cannot be told."""

sessions: dict[str, "RefineSession"] = {}
"""Those that are open, by the ID of their node."""


@dataclass(frozen=True)
class State:
    """What can be returned to.

    Attributes:
        changes: of segments, made on the way here from the state before, one for each at most.
        mask_thresholds: theta 2 before and after, where that was moved on the way here.
    """

    organs: tuple[Organ, ...]
    changes: tuple[Change, ...] = ()
    mask_thresholds: tuple[float, float] | None = None


class RefineRun:
    """A refinement under way. The scene changes once, when the result is complete.

    Attributes:
        values: labels of the organs that are refined.
        finished: True at the end, however it ended.
        error: what went wrong; kind "Cancelled" where it was cancelled.
        messages: what the user should know of the result, a sentence each.
    """

    def __init__(self, session: "RefineSession", values: tuple[int, ...]) -> None:
        self.session, self.values = session, values
        self.finished = False
        self.error: WorkerError | None = None
        self.messages: list[str] = []
        self._request: Request | None = None

    def cancel(self) -> None:
        """Stop it at once; the scene stays as it is."""
        if not self.finished:
            self._request.cancel()

    def wait(self) -> slicer.vtkMRMLSegmentationNode:
        """Until it is finished; Slicer goes on drawing.

        Raises:
            WorkerError: it failed or was cancelled.
        """
        while not self.finished:
            worker_host.wait_for(self._request)
        if self.error is not None:
            raise self.error
        return self.session.segmentationNode


class RefineSession:
    """The organs of a segmentation, their boxes in the views, and what SAM makes of them.

    Organs are named by their labels, `Organ.value`.

    Attributes:
        node: which keeps it all in the scene.
        volumeNode, segmentationNode: the scan, and what is redrawn.
        grid: the slices.
        settings: see `configure`.
        changed: set it, to be called whenever anything here is another.
        message: set it, to be called with sentences for the user.
        closed: True once a node it needs was removed, or `close` called; then it does nothing.
        run: the refinement that goes on, or None.
        points: the lists of points (`point_views.PointViews`).
    """

    def __init__(self, node: slicer.vtkMRMLScriptedModuleNode, saved: Saved) -> None:
        """See `boxes` and `open_boxes`."""
        self.node = node
        self.volumeNode = node.GetNodeReference(VOLUME)
        self.segmentationNode = node.GetNodeReference(SEGMENTATION)
        self.grid, self.settings = saved.grid, saved.settings
        self.changed: Callable[[], None] = lambda: None
        self.message: Callable[[str], None] = lambda text: None
        self.closed, self.run = False, None
        self._highest = saved.highest
        self._slid: tuple | None = None  # the past of the step in which theta 2 is being moved
        self._history = History(State(saved.organs))
        self._active = saved.organs[0].value if saved.organs else None
        self._kept: tuple | None = None
        self._requests = Requests(self.volumeNode, self.grid)
        self._voxels = _voxels(self.volumeNode)
        self._live, self._ahead = False, False
        self._agenda = Agenda()
        self._busy: Errand | None = None  # what the worker does for us unasked
        self._background: Request | None = None
        self._stale: set[str] = set()  # segments whose surfaces are still those of before
        self._failed: WorkerError | None = None
        self._views = BoxViews(
            node,
            self.volumeNode,
            self.grid,
            self._edit,
            self.remove_organ,
            lambda error: self.message(str(error)),
            self._on_slice,
        )
        self.points = PointViews(self.volumeNode, self.grid, self._edit)
        scene, self._observers = slicer.mrmlScene, Observers()
        self._observers.add(scene, scene.NodeRemovedEvent, self._on_removed)
        self._observers.add(scene, scene.StartCloseEvent, lambda *_: self.close())
        self._observers.add(scene, scene.StartSaveEvent, lambda *_: self.read_boxes())
        self._observers.add(self.volumeNode, vtk.vtkCommand.ModifiedEvent, self._on_volume)
        sessions[node.GetID()] = self
        self._update()

    # what there is

    @property
    def organs(self) -> tuple[Organ, ...]:
        """As they are now."""
        return self._history.present.organs

    def organ(self, value: int) -> Organ:
        """That with a label.

        Raises:
            PromptError: there is none.
        """
        for organ in self.organs:
            if organ.value == value:
                return organ
        raise PromptError(f"There is no organ with the label {value}.")

    @property
    def active(self) -> int | None:
        """Label of the organ whose boxes have handles and whose points are shown."""
        return self._active

    @active.setter
    def active(self, value: int | None) -> None:
        if value is not None:
            self.organ(value)
        if value != self._active:
            self.read_boxes()
            self._active = value
            self._update()

    @property
    def slice(self) -> int:
        """Number of the slice that is shown."""
        return self._views.slice

    def bound(self, value: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """The ROI around an organ; None while it has no box."""
        return self._views.bound(value)

    def slice_box(self, value: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """The ROI around an organ in the slice that is shown."""
        return self._views.slice_box(value)

    def configure(self, settings: Settings) -> None:
        """Change how the session refines; what was moved live is redrawn at once."""
        if settings == self.settings:
            return
        before, self.settings = self.settings, settings
        if opening(settings) != opening(before):
            self._forget_answers()
            return
        organs = tuple(replace(organ, changed=True) for organ in self.organs)
        if self._live and settings.mask_threshold != before.mask_threshold:
            self._slide(before.mask_threshold, organs)
        else:
            self._set_present(organs)
        self._update()

    def _slide(self, before: float, organs: tuple[Organ, ...]) -> None:
        """Redraw with another theta 2, at once; all the places that it takes on the way from one
        value to another are one step to be undone."""
        if self._slid is None or self._slid is not self._history.past:
            self._remember(State(organs, mask_thresholds=(before, self.settings.mask_threshold)))
            self._slid = self._history.past
        else:
            state = self._history.present
            moved = state.mask_thresholds[0], self.settings.mask_threshold
            self._history = replace(
                self._history, present=replace(state, organs=organs, mask_thresholds=moved)
            )
        for organ in organs:
            if organ.enabled and not organ.kept and organ.report is not None:
                self._agenda.redraw(organ, self.slice)

    # what the user does to boxes and points

    def read_boxes(self) -> None:
        """Take over ROIs and points that a script changed. Whatever the user drags is taken over as
        soon as it is let go of, and a script's changes before anything else is done."""
        if not self.closed:
            self._views.read()
            self.points.read()

    def edit_box(self, value: int, n: int, box: Box) -> None:
        """Make a box that of a slice, a key frame; neighbours follow.

        Raises:
            PromptError: no such slice, or the box lies outside it.
        """
        self._edit(self.organ(value).with_box(n, box))

    def edit_bound(self, value: int, block: Box3D) -> None:
        """Drag the 3-D box of an organ; see `dragging.dragged`.

        Raises:
            PromptError: nothing is left within the volume.
        """
        self._edit(self.organ(value).with_bound(block))

    def add_slice_box(self, value: int, n: int | None = None) -> None:
        """Give a slice, the shown one by default, a box: its own again, or that of the nearest."""
        n, organ = self.slice if n is None else n, self.organ(value)
        organ = organ.with_frames(organ.frames.switch_on(n))
        if n not in organ.frames.effective():
            rows, columns = self.grid.shape
            middle = Box(columns / 4, rows / 4, columns * 3 / 4, rows * 3 / 4)
            organ = organ.with_box(n, organ.near_box(n) or middle)
        self._edit(organ)

    def switch_off(self, value: int, n: int | None = None) -> None:
        """Leave a slice, the shown one by default, without a box: the organ is not in it."""
        organ = self.organ(value)
        self._edit(organ.with_frames(organ.frames.switch_off(self.slice if n is None else n)))

    def reset(self, value: int | None = None, n: int | None = None) -> None:
        """Return to the automatic boxes: of a slice, of an organ with its points, or of all."""
        chosen = [organ for organ in self.organs if value in (None, organ.value)]
        fresh = [organ.with_frames(organ.frames.reset(n)) for organ in chosen]
        self._edit(*(organ.with_hints({}) if n is None else organ for organ in fresh))

    def clear_points(self, value: int) -> None:
        """Remove the points of an organ."""
        self._edit(self.organ(value).with_hints({}))

    def add_organ(
        self,
        name: str,
        block: Box3D | None = None,
        roi: slicer.vtkMRMLMarkupsROINode | None = None,
    ) -> int:
        """Add an organ that was missed, with a box drawn on nothing.

        Args:
            block: the box; None takes a third of the slices around the one that is shown.
            roi: in its place, an ROI that the user drew; it is removed from the scene.

        Returns:
            The organ's label.

        Raises:
            PromptError: the box lies outside the volume.
        """
        self.read_boxes()
        if roi is not None:
            block = read_block(roi, self.volumeNode, self.grid.geometry)
        elif block is None:
            (rows, columns), n = self.grid.shape, self.slice
            third = Box(columns / 3, rows / 3, columns * 2 / 3, rows * 2 / 3)
            block = self.grid.block(third, n - FEW, n + FEW)
        frames = KeyFrames.drawn(name, self._highest + 1, block, self.grid)
        remove_node(roi)
        self._highest += 1
        label = segment_for(name, frames.value)
        color = tuple(channel / 255 for channel in label.color)
        taken = {organ.segment for organ in self.organs}
        taken |= set(self.segmentationNode.GetSegmentation().GetSegmentIDs())
        id = next(id for id in (name, f"{name}_{frames.value}") if id not in taken)
        self._active = frames.value
        organ = Organ(frames, id, color, result={})
        self._change((*self.organs, organ), edited=[organ])
        return frames.value

    def remove_organ(self, value: int) -> None:
        """Remove an organ's boxes and points; its segment stays as it is."""
        if not self.closed:
            self._change(tuple(organ for organ in self.organs if organ.value != value))

    def set_shown(self, value: int, shown: bool) -> None:
        """Show or hide the boxes of an organ."""
        self._flag(value, shown=shown)

    def set_enabled(self, value: int, enabled: bool) -> None:
        """Have an organ take part when all are refined, or not."""
        self._flag(value, enabled=enabled)

    def keep_coarse(self, value: int, keep: bool) -> None:
        """Put an organ's coarse mask back into its segment, or SAM's again.

        Raises:
            PromptError: there is no coarse mask.
        """
        organ = self.organ(value)
        coarse = self._coarse_mask(organ)
        if coarse is None:
            raise PromptError(f'There is no coarse mask of "{organ.name}".')
        if keep == organ.kept:
            return
        self.read_boxes()
        organ, masks = self.organ(value), self.grid.stack(coarse)
        if not keep and organ.result is not None:
            masks = [self._mask(organ.result.get(n)) for n in range(self.grid.count)]
        changes = self._redrawn({organ.segment: dict(enumerate(masks))})
        self._draw(changes)
        self._change(self._with(replace(organ, kept=keep)), changes)

    # undo

    @property
    def can_undo(self) -> bool:
        """There is something to undo."""
        return bool(self._history.past)

    @property
    def can_redo(self) -> bool:
        """There is something to redo."""
        return bool(self._history.future)

    def undo(self) -> None:
        """Take back the last edit, with what was redrawn because of it."""
        self.read_boxes()
        if self.run is None and self.can_undo:
            state = self._history.present
            self._draw(state.changes, backwards=True)
            if state.mask_thresholds:
                self.settings = replace(self.settings, mask_threshold=state.mask_thresholds[0])
            self._return_to(self._history.undo())

    def redo(self) -> None:
        """Do again what was undone last."""
        if self.run is None and self.can_redo:
            history = self._history.redo()
            self._draw(history.present.changes)
            if history.present.mask_thresholds:
                threshold = history.present.mask_thresholds[1]
                self.settings = replace(self.settings, mask_threshold=threshold)
            self._return_to(history)

    # refining

    def refine(
        self,
        values: Iterable[int] | None = None,
        progress: Progress = lambda stage, fraction, secondsLeft: None,
        log: Callable[[str], None] = lambda line: None,
        done: Callable[[RefineRun], None] = lambda run: None,
    ) -> RefineRun:
        """Redraw organs; see the function `refine`.

        Args:
            values: labels; None for those that are enabled and whose coarse mask is not kept.

        Raises:
            PromptError: nothing to refine, or a refinement goes on already.
            VolumeError: the volume was changed.
        """
        self.read_boxes()
        if self.run is not None:
            raise PromptError("A refinement goes on already; wait for it, or cancel it.")
        if values is None:
            chosen = [organ for organ in self.organs if organ.enabled and not organ.kept]
        else:
            chosen = [self.organ(value) for value in values]
        chosen = [organ for organ in chosen if organ.frames.effective()]
        if not chosen:
            raise PromptError("There is no organ with a box to refine; draw a box, or enable one.")
        self._requests.require_grid()
        self._agenda.clear()
        run = self.run = RefineRun(self, tuple(organ.value for organ in chosen))
        if self._busy is not None:
            self._background.cancel()
        run.messages = [
            f'A point of "{organ.name}" in slice {n} does not count, as there is no box.'
            for organ in chosen
            for n in organ.hints.keys() - organ.usable_hints().keys()
        ]
        run._request = self._submit(
            "refine",
            chosen,
            progress=lambda stage, fraction: progress(stage, fraction, None),
            log=log,
            done=lambda request: self._finish(run, chosen, request, done),
        )
        self.changed()
        return run

    def cancel(self) -> None:
        """Stop the refinement that goes on, if there is one; nothing is changed."""
        self._agenda.clear()
        if self.run is not None:
            self.run.cancel()

    @property
    def live(self) -> bool:
        """Redraw after each edit: the slice at once, then the organ."""
        return self._live

    @live.setter
    def live(self, live: bool) -> None:
        self._live = live
        if not live:
            self._agenda.clear()

    @property
    def ahead(self) -> bool:
        """Compute embeddings before they are needed, while nothing else is to be done."""
        return self._ahead

    @ahead.setter
    def ahead(self, ahead: bool) -> None:
        self._ahead = ahead
        self._go_on()

    @property
    def embeddings(self) -> dict[int, str]:
        """Label -> "ready", "running", "waiting" or "failed", of the organs that have boxes, near
        the slice that is shown where every slice has its own."""

        def state(value: int, ready: bool) -> str:
            if ready:
                return "ready"
            if self._busy == Errand("embed", value):
                return "running"
            return "waiting" if self._failed is None else "failed"

        found = self._agenda.embeddings(self.organs, self._view)
        return {value: state(value, ready) for value, ready in found.items()}

    # finding the way

    def jump(self, n: int) -> None:
        """Show a slice in all views, at the active organ."""
        block = self.organ(self._active).frames.bounds3d() if self._active else None
        jump_to(n, self.volumeNode, self.grid, block)

    def uncertain_slices(self, value: int | None = None) -> list[int]:
        """Where to look: slices in which SAM was not trusted, or the network was least certain.

        Args:
            value: label of the organ; None takes the active one.
        """
        value = self._active if value is None else value
        if value is None:
            return []
        organ = self.organ(value)
        kept = organ.report.kept if organ.report else {}
        found = {n for n, reason in kept.items() if reason != NO_BOX}
        tag = organ_tag(self.segmentationNode, organ.segment)
        if self.grid.axis == 2:
            for measure in measures(self.segmentationNode):
                if measure.name == tag:
                    found |= {k for k, _ in measure.least_certain}
        return sorted(found)

    def next_uncertain(self, step: int = 1) -> None:
        """Show the next (1) or previous (-1) uncertain slice of the active organ."""
        beyond = [n for n in self.uncertain_slices() if (n - self.slice) * step > 0]
        if beyond:
            self.jump(min(beyond) if step > 0 else max(beyond))

    @property
    def before_shown(self) -> bool:
        """The coarse masks are shown in place of the segments."""
        before = self._before()
        return before is not None and bool(before.GetDisplayVisibility())

    def show_before(self, show: bool) -> None:
        """Show the coarse masks in place of the segments, or these again; no voxel is changed."""
        before = self._before()
        if before is None or show == self.before_shown:
            return
        before.SetAndObserveTransformNodeID(self.segmentationNode.GetTransformNodeID())
        old, new = before.GetDisplayNode(), self.segmentationNode.GetDisplayNode()
        source, target = (new, old) if show else (old, new)
        segmentations = [node.GetSegmentation() for node in (before, self.segmentationNode)]
        for organ in self.organs:
            if all(segmentation.GetSegment(organ.segment) for segmentation in segmentations):
                visible = source.GetSegmentVisibility(organ.segment)
                target.SetSegmentVisibility(organ.segment, visible)
                if show:
                    new.SetSegmentVisibility(organ.segment, False)
        before.SetDisplayVisibility(show)
        self.changed()

    def close(self) -> None:
        """Let go of everything; the nodes stay, and `open_boxes` goes on."""
        if self.closed:
            return
        if not self._gone():
            self.read_boxes()
            self.show_before(False)
        self._close(remove=False)

    # states

    def _edit(self, *organs: Organ) -> None:
        """Organs as they are after an edit."""
        if self.closed:
            return
        edited = [organ for organ in organs if organ not in self.organs]
        self._change(self._with(*organs), edited=edited)

    def _with(self, *organs: Organ) -> tuple[Organ, ...]:
        """All organs, these in place of those with their labels."""
        new = {organ.value: organ for organ in organs}
        return tuple(new.get(organ.value, organ) for organ in self.organs)

    def _change(
        self,
        organs: tuple[Organ, ...],
        changes: Sequence[Change] = (),
        edited: Sequence[Organ] = (),
    ) -> None:
        """A new state that can be undone; organs that were edited may be redrawn at once."""
        self._remember(State(organs, tuple(changes)))
        if self._live:
            for organ in edited:
                self._agenda.redraw(organ, self.slice)
        self._sync_segments()
        self._update()

    def _remember(self, state: State) -> None:
        history = self._history.changed(state)
        self._history = replace(history, past=history.past[-STEPS:])

    def _set_present(self, organs: Iterable[Organ], changes: Sequence[Change] = ()) -> None:
        """The same state, more of it."""
        state = self._history.present
        present = replace(state, organs=tuple(organs), changes=joined(state.changes, changes))
        self._history = replace(self._history, present=present)

    def _flag(self, value: int, **flags: bool) -> None:
        self._set_present(self._with(replace(self.organ(value), **flags)))
        self._update()

    def _return_to(self, history: History[State]) -> None:
        flags = {organ.value: (organ.shown, organ.enabled) for organ in self.organs}
        self._agenda.clear()
        self._history = history
        self._set_present(
            replace(organ, shown=shown, enabled=enabled)
            for organ in self.organs
            for shown, enabled in [flags.get(organ.value, (organ.shown, organ.enabled))]
        )
        self._sync_segments()
        self._update()

    def _update(self) -> None:
        """Show and keep the present state."""
        values = [organ.value for organ in self.organs]
        if self._active is not None and self._active not in values:
            self._active = values[0] if values else None
        self._views.show(self.organs, self._active)
        self.points.show(None if self._active is None else self.organ(self._active))
        if (now := (self.organs, self.settings)) != self._kept:
            self._kept = now
            text = organs_to_json(self.organs, self.grid, self.settings, highest=self._highest)
            self.node.SetParameter(BOXES, text)
        self._go_on()
        if self._stale and not self._agenda and (self._busy is None or self._busy.kind == "embed"):
            ids, self._stale = self._stale, set()
            renew_surfaces(self.segmentationNode, ids)
        self.changed()

    def _sync_segments(self) -> None:
        sync_segments(
            self.segmentationNode, self.organs, self.grid.geometry, owner=self.node.GetID()
        )

    # results

    def _finish(
        self,
        run: RefineRun,
        asked: list[Organ],
        request: Request,
        done: Callable[[RefineRun], None],
    ) -> None:
        self.run = None
        try:
            if error := self._lost(request) or request.error:
                raise error
            self._place(request, self._adopt(request, asked), None, amend=False)
        except Exception as error:  # to whoever waits; here it would end in the event loop
            run.error = as_worker_error(error)
        run.finished = True
        if not self.closed:
            self._update()
        done(run)

    def _adopt(self, request: Request, asked: Sequence[Organ]) -> list[Organ]:
        """Take over the boxes that SAM chose, but for organs that were edited meanwhile.

        Returns:
            The organs that were asked about as they were answered.
        """
        if request.chosen is None:
            return list(asked)
        frames = {each.value: each for each in boxes_from_json(request.chosen["boxes"])}

        def decided(organ: Organ) -> Organ:
            boxes = frames.get(organ.value)
            return organ if boxes is None else organ.with_choice(boxes, request.chosen)

        before = {organ.value: organ.frames for organ in asked}
        self._set_present(
            decided(organ)
            if organ.awaits_choice and organ.frames == before.get(organ.value)
            else organ
            for organ in self.organs
        )
        return [decided(organ) for organ in asked]

    def _place(
        self, request: Request, asked: Sequence[Organ], only: int | None, *, amend: bool
    ) -> None:
        """Draw what SAM found.

        Args:
            asked: the organs as they were when it was asked.
            only: the slice to be redrawn; None for all.
            amend: undo it together with the edit before.
        """
        reports = {row["value"]: Report.of(row) for row in request.reports}
        numbers = range(self.grid.count) if only is None else [only]
        now, wanted, new = {organ.value: organ for organ in self.organs}, {}, []
        for each in asked:
            organ = now.get(each.value)
            if organ is None:
                continue  # removed meanwhile
            masks = {n: request.labels[n] == each.value for n in numbers}
            if only is None:
                after = organ.with_result(each, reports[each.value], masks)
                if organ.result is not None and not organ.kept:
                    # Slices of which SAM says what it said before keep what was drawn there since.
                    last, found = organ.result, after.result
                    masks = {n: mask for n, mask in masks.items() if found.get(n) != last.get(n)}
            else:
                after = organ.with_slice(only, masks[only])
            wanted[organ.segment] = masks
            new.append(after)
        self._sync_segments()
        changes = self._redrawn(wanted)
        self._draw(changes)
        if amend:
            self._set_present(self._with(*new), changes)
        else:
            self._remember(State(self._with(*new), tuple(changes)))

    def _mask(self, content: bytes | None) -> np.ndarray:
        """(rows, columns) of what is kept of a slice."""
        shape = self.grid.shape
        return np.zeros(shape, bool) if content is None else unpacked(content, shape)

    def _redrawn(self, wanted: Mapping[str, Mapping[int, np.ndarray]]) -> list[Change]:
        return redrawn(self.segmentationNode, self.grid, wanted, self.settings.neighbours)

    def _draw(self, changes: Iterable[Change], *, backwards: bool = False) -> None:
        self._stale |= apply(
            changes, self.segmentationNode, self.grid.geometry, backwards=backwards
        )

    def _before(self) -> slicer.vtkMRMLSegmentationNode | None:
        return self.node.GetNodeReference(BEFORE)

    def _coarse_mask(self, organ: Organ) -> np.ndarray | None:
        """bool (K, J, I), of the node that keeps the coarse masks."""
        before = self._before()
        if not organ.coarse or before is None:
            return None
        return read_masks(before, [organ.segment], self.grid.geometry).get(organ.segment)

    def _coarse_of(self, organ: Organ) -> np.ndarray | None:
        """Probabilities, where they are still there, or a mask."""
        mask = self._coarse_mask(organ)
        if mask is None:
            return None
        return coarse_chances(self.segmentationNode, organ.segment, mask, self.grid)

    # the worker

    def _submit(
        self, task: str, organs: Sequence[Organ], frames: Mapping[int, KeyFrames] | None = None,
        **more: Any,  # noqa: ANN401
    ) -> Request:  # fmt: skip
        """See `Requests.submit`."""
        return self._requests.submit(task, organs, self.settings, self._coarse_of, frames, **more)

    @property
    def _view(self) -> View:
        return View(self.slice, self._active, apart=self.settings.mosaic == "off")

    def _go_on(self) -> None:
        """Do what is to be done unasked, one thing at a time: redraw, or compute embeddings."""
        if self.closed or self.run is not None:
            return
        if self._busy is not None:
            if self._agenda.urgent and self._busy.n is None:
                self._agenda.put_off(self._busy)
                self._background.cancel()  # which goes on with the slice that is looked at
            return
        try:
            if (redraw := self._agenda.next_redraw(self.organs)) is not None:
                self._redraw(*redraw)
            elif self._ahead and self._failed is None:
                self._embed()
        except SRCSMError as error:
            self._busy = None
            self.message(str(error))

    def _redraw(self, organ: Organ, n: int | None) -> None:
        self._requests.require_grid()
        frames = {} if n is None else {organ.value: only(organ.frames, {n})}
        self._busy, past = Errand("redraw", organ.value, n), self._history.past
        self._background = self._submit(
            "refine", [organ], frames, done=lambda request: self._redrawn_live(request, organ, past)
        )

    def _redrawn_live(self, request: Request, asked: Organ, past: tuple) -> None:
        n, self._busy = self._busy.n, None
        current = not self.closed and self._history.past is past and self.run is None
        organ = next((o for o in self.organs if o.value == asked.value), None)
        try:
            if error := self._lost(request) or request.error:
                raise error
            # Where the user went on meanwhile, another step is waiting.
            if current and organ is not None and (organ.frames, organ.hints) == (
                asked.frames, asked.hints,
            ):  # fmt: skip
                self._place(request, self._adopt(request, [asked]), n, amend=True)
        except Exception as error:
            if (told := as_worker_error(error)).kind != "Cancelled":
                self._agenda.clear()
                self._tell(told)
        if not self.closed:
            self._update()

    def _embed(self) -> None:
        view = self._view
        organ = self._agenda.next_embedding(self.organs, view)
        if organ is None:
            return
        self._requests.require_grid()
        wanted = view.wanted(organ)
        self._busy = Errand("embed", organ.value)
        self._background = self._submit(
            "embed",
            [organ],
            {organ.value: only(organ.frames, wanted)},
            done=lambda request: self._embedded_ahead(request, organ, wanted),
        )

    def _embedded_ahead(self, request: Request, organ: Organ, slices: frozenset[int]) -> None:
        self._busy, error = None, request.error
        if self.closed:
            return
        if error is None:
            if request.chosen is not None:
                (organ,) = self._adopt(request, [organ])
                slices = frozenset(organ.frames.effective())
            self._agenda.embedded(organ, slices)
        elif error.kind != "Cancelled":
            self._failed = error
            self._tell(error)
        self._update()

    def _tell(self, error: WorkerError) -> None:
        if error.kind != "Cancelled" and not self.closed:
            self.message(f"{error} {error.remedy}".strip())

    def _forget_answers(self) -> None:
        """The volume or the SAM is another now."""
        self._requests.forget()
        self._failed = None
        if self._busy is not None:
            self._background.cancel()
        self._agenda.forget_embeddings()
        self._set_present([replace(organ, changed=True) for organ in self.organs])
        self._update()

    # what vanishes

    def _lost(self, request: Request) -> WorkerError | None:
        """Why a result has no place in the scene any more."""
        if self.closed or self._gone():
            sentence = "The volume or its segmentation was removed meanwhile; nothing was changed."
            return WorkerError("VolumeError", sentence)
        if not self._requests.is_current(request):
            sentence = "The volume or the SAM was changed meanwhile; nothing was redrawn."
            return WorkerError("VolumeError", sentence, "Refine again.")
        try:
            self._requests.require_grid()
        except VolumeError as error:
            return as_worker_error(error)
        return None

    def _gone(self) -> bool:
        nodes = (self.node, self.volumeNode, self.segmentationNode)
        return any(node.GetScene() is None for node in nodes)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        if node in (self.node, self.volumeNode, self.segmentationNode):
            self._close(remove=True)

    def _on_volume(self, *_: object) -> None:
        if (voxels := _voxels(self.volumeNode)) != self._voxels:
            self._voxels = voxels
            self._forget_answers()

    def _on_slice(self, n: int) -> None:
        self._go_on()
        self.changed()

    def _close(self, *, remove: bool) -> None:
        self.closed = True
        sessions.pop(self.node.GetID(), None)
        self._agenda.clear()
        self.cancel()
        if self._background is not None and self._background.job.state == "queued":
            self._background.cancel()  # what runs is let run: it ends in the worker's cache
        self._observers.remove()
        self._views.close(remove=remove)
        self.points.close()
        if remove and self.node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(self.node)
        self.changed()


def _voxels(volume_node: slicer.vtkMRMLScalarVolumeNode) -> tuple[object, int] | None:
    """What is another when a volume's voxels are."""
    image = volume_node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    return None if scalars is None else (scalars, scalars.GetMTime())
