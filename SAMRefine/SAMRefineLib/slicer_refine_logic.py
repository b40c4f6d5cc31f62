# SPDX-License-Identifier: Apache-2.0
"""Refining organs of the scene with SAM, from boxes that can be edited; without widgets.

    from SAMRefineLib.slicer_refine_logic import boxes, refine
    session = boxes(segmentationNode, volumeNode)     # ROIs appear; move them, or
    session.edit_box(session.active, 12, Box(40, 52, 96, 110))
    refine(session)                                   # the segments are redrawn

What a session knows is immutable (`organs.Organ`) and has a history: an edit of boxes and the
change of voxels that followed from it are undone together. It is kept in the scene, in a node of
its own, and goes on from there (`open_boxes`). All computing is done by the worker that
SRCSMSegmenter uses. Main thread only.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib import slicer_logic, slicer_scene
from SRCSMSegmenterLib.errors import PromptError, SRCSMError, VolumeError
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.slicer_scene import ORGAN_TAG
from SRCSMSegmenterLib.terminology import segment_for, terminology_entry
from SRCSMSegmenterLib.worker_protocol import WorkerError, as_worker_error

from .bounds import mirrored
from .boxes import AXES, Box, Box3D, SliceGrid, acquisition_axis
from .coarse import SURE, UNSURE, sureness
from .key_frames import History, KeyFrames, boxes_from_json
from .organs import (
    Organ,
    Patch,
    Report,
    Saved,
    Settings,
    organs_from_json,
    organs_to_json,
    packed,
    unpacked,
)
from .refine_client import RefineClient, Request
from .slicer_boxes import BOUND, BoxViews, Observers, jump_to, read_block, remove_node
from .slicer_masks import (
    Change,
    add_segment,
    any_mask,
    apply,
    fits,
    lay_on,
    read_masks,
    redrawn,
    renew_surfaces,
)
from .slicer_prompts import PointViews
from .trust import NO_BOX

BOXES = "SRCSM.Boxes"
"""Attribute of the node that keeps a session in the scene, and the name of its parameter."""

VOLUME, SEGMENTATION, BEFORE = "SRCSM.Volume", "SRCSM.Segmentation", "SRCSM.Before"
"""Roles of its references; the last is to the coarse masks."""

DRAWN = "SRCSM.Drawn"
"""Segment tag: made for a box that was drawn on nothing."""

NEAR = 4
"""Slices to both sides of the one shown whose embeddings are computed ahead, where every slice has
one of its own."""

FEW = 2
"""Slices to both sides of the one shown that a new box covers."""

STEPS = 100
"""Edits and refinements that can be undone. What they need is some KB a slice that changed."""

SURELY_EDITED = 0.2
"""A voxel of a segment to which the network gave less than this was drawn by hand."""

Progress = Callable[[str, float, float | None], None]
"""Called with the stage ("load", "choose", "encode", "combine"), the fraction of it that is done,
and None: how many seconds are left cannot be told."""


@dataclass(frozen=True)
class State:
    """What can be returned to.

    Attributes:
        changes: of segments, made on the way here from the state before.
        thresholds: theta 2 before and after, where that was moved on the way here.
    """

    organs: tuple[Organ, ...]
    changes: tuple[Change, ...] = ()
    thresholds: tuple[float, float] | None = None


# --- sessions

_sessions: dict[str, "RefineSession"] = {}


def boxes(
    segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
    volumeNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    organs: Sequence[str] | None = None,
    axis: str | int | None = None,
    threshold: float | None = None,
    **settings: Any,  # noqa: ANN401
) -> "RefineSession":
    """Put boxes around the segments of a segmentation.

    The segmentation may come from SRCSMSegmenter, whose probabilities then tell what is sure enough
    for a box, or from anywhere else. One on another grid than the volume's, or made of surfaces, is
    left as it is: its segments are copied to a new one, which is refined. Boxes that were made for
    it before are replaced.

    Args:
        segmentationNode: None makes an empty one, for boxes to be drawn (`add_organ`).
        volumeNode: the scan; None takes the segmentation's own.
        organs: names or IDs of segments; None for all.
        axis: across which slices are taken, "I", "J", "K" or 0, 1, 2; None for the one across which
            the volume was acquired.
        threshold: of coarse probabilities (the paper's theta 1). None: boxes around what the
            network is sure of; where it is too unsure, SAM chooses before it refines (`choice`).
        settings: see `organs.Settings`.

    Raises:
        VolumeError: no scalar volume.
        PromptError: the volume is sheared; no such axis, or segment.
    """
    if volumeNode is None and segmentationNode is not None:
        role = segmentationNode.GetReferenceImageGeometryReferenceRole()
        volumeNode = segmentationNode.GetNodeReference(role)
    geometry = slicer_scene.node_geometry(volumeNode)
    grid = SliceGrid(geometry, _axis(axis, geometry))
    Box3D((0, 0, 0), geometry.size).oriented(geometry)  # or there are no ROIs on it
    for node in saved_boxes():
        if segmentationNode is not None and node.GetNodeReference(SEGMENTATION) is segmentationNode:
            _forget(node)
    if segmentationNode is None:
        target, masks = _new_segmentation(volumeNode, f"{volumeNode.GetName()} refined"), {}
    else:
        ids = _chosen(segmentationNode, organs)
        if fits(segmentationNode, volumeNode, geometry):
            target, masks = segmentationNode, read_masks(segmentationNode, ids, geometry)
        else:
            target, masks = _copied(segmentationNode, ids, volumeNode, geometry)
    before = _new_segmentation(volumeNode, f"{target.GetName()} before refinement")
    before.SetDisplayVisibility(False)
    found = [
        _organ(target, id, mask, value, grid, threshold, before)
        for value, (id, mask) in enumerate(masks.items(), start=1)
    ]
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLScriptedModuleNode", f"{target.GetName()} boxes"
    )
    node.SetAttribute(BOXES, "1")
    for role, other in ((VOLUME, volumeNode), (SEGMENTATION, target), (BEFORE, before)):
        node.SetNodeReferenceID(role, other.GetID())
    saved = Saved(tuple(found), grid, Settings(**settings), len(found))
    return RefineSession(node, saved)


def saved_boxes() -> list[slicer.vtkMRMLScriptedModuleNode]:
    """The nodes of the scene that keep boxes."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
    return [node for node in nodes if node.GetAttribute(BOXES)]


def open_boxes(node: slicer.vtkMRMLScriptedModuleNode) -> "RefineSession":
    """Go on with boxes that the scene holds, such as one that was loaded.

    Raises:
        PromptError: they cannot be read, their volume or segmentation is gone, or is another.
    """
    if (session := _sessions.get(node.GetID())) is not None:
        return session
    where = f'The node "{node.GetName()}"'
    saved = organs_from_json(node.GetParameter(BOXES), where)
    volume, segmentation = node.GetNodeReference(VOLUME), node.GetNodeReference(SEGMENTATION)
    if volume is None or segmentation is None:
        raise PromptError(f"{where} has lost its volume or segmentation; make new boxes.")
    geometry = slicer_scene.node_geometry(volume)
    if not saved.grid.geometry.matches(geometry):
        if not saved.grid.geometry.mirrored().matches(geometry):
            raise PromptError(
                f'{where} belongs to another grid than "{volume.GetName()}" has; make new boxes.'
            )
        saved = _mirrored(saved)
    if not fits(segmentation, volume, geometry):
        raise PromptError(
            f'The segmentation "{segmentation.GetName()}" does not lie on the grid of '
            f'"{volume.GetName()}" any more; make new boxes.'
        )
    return RefineSession(node, saved)


def refine(
    session: "RefineSession",
    organs: Sequence[str | int] | None = None,
    progress: Progress = lambda stage, fraction, secondsLeft: None,
    log: Callable[[str], None] = lambda line: None,
    done: Callable[["RefineRun"], None] = lambda run: None,
    wait: bool = True,
) -> "slicer.vtkMRMLSegmentationNode | RefineRun":
    """Redraw organs.

    Args:
        session: of `boxes`.
        organs: names or labels; None for all that are enabled.
        log: called with lines for the user.
        done: called at the end, however it ends.
        wait: until it is done; Slicer goes on drawing meanwhile.

    Returns:
        The segmentation, or without `wait` the run.

    Raises:
        PromptError: no such organ, or nothing to refine; VolumeError: the volume was changed.
        WorkerError: with `wait`, what went wrong; its `remedy` says what to do.
    """
    names = {organ.name: organ.value for organ in session.organs}
    if organs is not None:
        unknown = [organ for organ in organs if organ not in (*names, *names.values())]
        if unknown:
            raise PromptError(
                f"There are no boxes of {unknown[0]}; there are of {', '.join(names)}."
            )
        organs = [names.get(organ, organ) for organ in organs]
    run = session.refine(organs, progress, log, done)
    return run.wait() if wait else run


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
            slicer_logic.wait_for(slicer_logic.worker(), self._request)
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
        points: the lists of points (`slicer_prompts.PointViews`).
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
        self._client: RefineClient | None = None
        self._kept: tuple | None = None
        self._voxels = _voxels(self.volumeNode)
        self._live, self._ahead = False, False
        self._steps: list[tuple[int, int | None]] = []
        self._embedded: dict[int, tuple[KeyFrames, frozenset[int]]] = {}
        # What the worker does for us unasked: "redraw" or "embed", of which organ, in which slice,
        # None for all.
        self._busy: tuple[str, int, int | None] | None = None
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
        _sessions[node.GetID()] = self
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

    def configure(self, **changes: Any) -> None:  # noqa: ANN401
        """Change settings; see `organs.Settings`."""
        settings = replace(self.settings, **changes)
        if settings == self.settings:
            return
        before, self.settings = self.settings, settings
        if _opening(settings) != _opening(before):
            self._forget_client()
            return
        organs = tuple(replace(organ, changed=True) for organ in self.organs)
        if self._live and settings.threshold != before.threshold:
            self._slide(before.threshold, organs)
        else:
            self._set_present(organs)
        self._update()

    def _slide(self, before: float, organs: tuple[Organ, ...]) -> None:
        """Redraw with another theta 2, at once; all the places that it takes on the way from one
        value to another are one step to be undone."""
        if self._slid is None or self._slid is not self._history.past:
            self._remember(State(organs, thresholds=(before, self.settings.threshold)))
            self._slid = self._history.past
        else:
            state = self._history.present
            thresholds = state.thresholds[0], self.settings.threshold
            self._history = replace(
                self._history, present=replace(state, organs=organs, thresholds=thresholds)
            )
        for organ in organs:
            if organ.enabled and not organ.kept and organ.report is not None:
                self._add_steps(organ)

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
        """Drag the 3-D box of an organ; see `bounds.dragged`.

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
            if state.thresholds:
                self.settings = replace(self.settings, threshold=state.thresholds[0])
            self._return_to(self._history.undo())

    def redo(self) -> None:
        """Do again what was undone last."""
        if self.run is None and self.can_redo:
            history = self._history.redo()
            self._draw(history.present.changes)
            if history.present.thresholds:
                threshold = history.present.thresholds[1]
                self.settings = replace(self.settings, threshold=threshold)
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
        self._check_volume()
        self._steps.clear()
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
        self._steps.clear()
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
            self._steps.clear()

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
        found = {}
        for organ in self.organs:
            if organ.enabled and (wanted := self._near(organ)):
                found[organ.value] = "waiting"
                if self._is_embedded(organ, wanted):
                    found[organ.value] = "ready"
                elif self._busy == ("embed", organ.value, None):
                    found[organ.value] = "running"
                elif self._failed is not None:
                    found[organ.value] = "failed"
        return found

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
        tag = self._tag(organ)
        if self.grid.axis == 2:
            for measure in slicer_scene.measures(self.segmentationNode):
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
                self._add_steps(organ)
        self._sync_segments()
        self._update()

    def _remember(self, state: State) -> None:
        history = self._history.changed(state)
        self._history = replace(history, past=history.past[-STEPS:])

    def _set_present(self, organs: Iterable[Organ], changes: Sequence[Change] = ()) -> None:
        """The same state, more of it."""
        state = self._history.present
        present = replace(state, organs=tuple(organs), changes=(*state.changes, *changes))
        self._history = replace(self._history, present=present)

    def _flag(self, value: int, **flags: bool) -> None:
        self._set_present(self._with(replace(self.organ(value), **flags)))
        self._update()

    def _return_to(self, history: History[State]) -> None:
        flags = {organ.value: (organ.shown, organ.enabled) for organ in self.organs}
        self._steps.clear()
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
        if self._stale and not self._steps and (self._busy is None or self._busy[0] == "embed"):
            ids, self._stale = self._stale, set()
            renew_surfaces(self.segmentationNode, ids)
        self.changed()

    def _sync_segments(self) -> None:
        """Every organ has a segment; one made for a box that is gone is gone as well if empty."""
        segmentation, geometry = self.segmentationNode.GetSegmentation(), self.grid.geometry
        wanted = {organ.segment for organ in self.organs}
        for id in list(segmentation.GetSegmentIDs()):
            drawn = _tag(segmentation.GetSegment(id), DRAWN) == self.node.GetID()
            if drawn and id not in wanted:
                mask = read_masks(self.segmentationNode, [id], geometry)[id]
                if not mask.any():
                    segmentation.RemoveSegment(id)
        empty = Patch.of(np.zeros((0, 0, 0), bool))
        for organ in self.organs:
            if segmentation.GetSegment(organ.segment) is None:
                label = segment_for(organ.name, organ.value)
                entry = slicer.vtkSegment.GetTerminologyEntryTagName()
                tags = {entry: terminology_entry(label), DRAWN: self.node.GetID()}
                add_segment(
                    self.segmentationNode, geometry, empty, organ.segment, organ.name,
                    organ.color, tags,
                )  # fmt: skip

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
            if organ.value not in frames:
                return organ
            return replace(
                organ,
                frames=frames[organ.value],
                mask_prompt=organ.value in request.chosen["mask_prompt"],
                keep_unboxed=organ.value in request.chosen["keep_unboxed"],
                undecided=False,
            )

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
        reports = {row["value"]: row for row in request.reports}
        numbers = range(self.grid.count) if only is None else [only]
        now, wanted, new = {organ.value: organ for organ in self.organs}, {}, []
        for each in asked:
            organ = now.get(each.value)
            if organ is None:
                continue  # removed meanwhile
            masks = {n: request.labels[n] == each.value for n in numbers}
            found = {n: packed(mask) for n, mask in masks.items() if mask.any()}
            last = None if organ.kept else organ.result
            if only is None:
                same = (organ.frames, organ.hints) == (each.frames, each.hints)
                report = _report(reports[each.value])
                organ = replace(organ, report=report, changed=not same, kept=False, result=found)
                if last is not None:
                    # Slices of which SAM says what it said before keep what was drawn there since.
                    masks = {n: m for n, m in masks.items() if found.get(n) != last.get(n)}
                    # The same objects again: histories share them.
                    same = {n: last[n] for n in found if last.get(n) == found[n]}
                    organ = replace(organ, result=found | same)
            elif last is not None:
                rest = {n: content for n, content in last.items() if n != only}
                organ = replace(organ, result=rest | found)
            wanted[organ.segment] = masks
            new.append(organ)
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

    def _tag(self, organ: Organ) -> str:
        """What SRCSMSegmenter calls an organ."""
        segment = self.segmentationNode.GetSegmentation().GetSegment(organ.segment)
        return _tag(segment, ORGAN_TAG) if segment else ""

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
        chances = _probabilities(self.segmentationNode, self._tag(organ), self.grid)
        return _corrected(chances, mask)

    # the worker

    def _submit(
        self, task: str, organs: Sequence[Organ], frames: Mapping[int, KeyFrames] | None = None,
        **more: Any,  # noqa: ANN401
    ) -> Request:  # fmt: skip
        """Ask about organs, with other boxes for some of them."""
        if self._client is None:
            volume = slicer_scene.read_volume(self.volumeNode)
            settings = replace(self.settings, modality=self._modality())
            settings = replace(
                settings, sam=settings.sam or f"sam-small-{settings.modality.lower()}"
            )
            self._client = RefineClient(slicer_logic.worker(), volume, _opening(settings))
        given = [(frames or {}).get(organ.value, organ.frames) for organ in organs]
        by_value = {organ.value: organ for organ in organs}
        return self._client.submit(
            task,
            given,
            lambda value: self._coarse_of(by_value[value]),
            hints={
                boxes.value: {
                    n: hints
                    for n, hints in by_value[boxes.value].hints.items()
                    if n in boxes.effective()
                }
                for boxes in given
            },
            choose=[
                organ.value
                for organ in organs
                if organ.awaits_choice and (task == "embed" or not frames)
            ],
            mask_prompt=[
                organ.value for organ in organs if organ.mask_prompt and self.settings.mask_prompt
            ],
            keep_unboxed=[organ.value for organ in organs if organ.keep_unboxed],
            threshold=self.settings.threshold,
            **more,
        )

    def _modality(self) -> str:
        known = self.settings.modality or slicer_logic.dicom_modality(self.volumeNode)
        if known in ("CT", "MR"):
            return known
        return guess_modality(np.array(self.volumeNode.GetImageData().GetScalarRange()))

    def _add_steps(self, organ: Organ) -> None:
        """Have an organ redrawn that was edited: the slice that is shown, then all."""
        rest = [step for step in self._steps if step[0] != organ.value]
        if self.slice in organ.frames.effective():
            rest.insert(0, (organ.value, self.slice))
        self._steps = [*rest, (organ.value, None)]

    def _go_on(self) -> None:
        """Do what is to be done unasked, one thing at a time: redraw, or compute embeddings."""
        if self.closed or self.run is not None:
            return
        if self._busy is not None:
            if self._steps and self._steps[0][1] is not None and self._busy[2] is None:
                self._make_way()
            return
        try:
            while self._steps:
                value, n = self._steps.pop(0)
                organ = next((organ for organ in self.organs if organ.value == value), None)
                if organ is not None and {n} <= {None, *organ.frames.effective()}:
                    self._redraw(organ, n)
                    return
            if self._ahead and self._failed is None:
                self._embed()
        except SRCSMError as error:
            self._busy = None
            self.message(str(error))

    def _make_way(self) -> None:
        """The slice that the user looks at comes before all that takes longer."""
        kind, value, _ = self._busy
        if kind == "redraw" and (value, None) not in self._steps:
            self._steps.append((value, None))
        self._background.cancel()  # which goes on with the slice

    def _redraw(self, organ: Organ, n: int | None) -> None:
        self._check_volume()
        frames = {} if n is None else {organ.value: _only(organ.frames, {n})}
        self._busy, past = ("redraw", organ.value, n), self._history.past
        self._background = self._submit(
            "refine", [organ], frames, done=lambda request: self._redrawn_live(request, organ, past)
        )

    def _redrawn_live(self, request: Request, asked: Organ, past: tuple) -> None:
        n, self._busy = self._busy[2], None
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
                self._steps.clear()
                self._tell(told)
        if not self.closed:
            self._update()

    def _near(self, organ: Organ) -> frozenset[int]:
        """The slices whose embeddings an organ wants ahead."""
        slices = frozenset(organ.frames.effective())
        if self.settings.mosaic == "off":
            slices &= frozenset(range(self.slice - NEAR, self.slice + NEAR + 1))
        return slices

    def _is_embedded(self, organ: Organ, wanted: frozenset[int]) -> bool:
        frames, slices = self._embedded.get(organ.value, (None, frozenset()))
        return frames == organ.frames and wanted <= slices

    def _embed(self) -> None:
        """The embeddings of one organ: of the active one, else of the one nearest to the slice that
        is shown."""

        def urgency(organ: Organ) -> tuple[bool, int]:
            nearest = min(abs(n - self.slice) for n in organ.frames.effective())
            return organ.value != self._active, nearest

        waiting = [
            organ
            for organ in self.organs
            if organ.enabled and (near := self._near(organ)) and not self._is_embedded(organ, near)
        ]
        if not waiting:
            return
        organ = min(waiting, key=urgency)
        near = self._near(organ)
        self._check_volume()
        self._busy = ("embed", organ.value, None)
        self._background = self._submit(
            "embed",
            [organ],
            {organ.value: _only(organ.frames, near)},
            done=lambda request: self._embedded_ahead(request, organ, near),
        )

    def _embedded_ahead(self, request: Request, organ: Organ, slices: frozenset[int]) -> None:
        self._busy, error = None, request.error
        if self.closed:
            return
        if error is None:
            if request.chosen is not None:
                (organ,) = self._adopt(request, [organ])
                slices = frozenset(organ.frames.effective())
            frames, before = self._embedded.get(organ.value, (None, frozenset()))
            slices |= before if frames == organ.frames else frozenset()
            self._embedded[organ.value] = organ.frames, slices
        elif error.kind != "Cancelled":
            self._failed = error
            self._tell(error)
        self._update()

    def _tell(self, error: WorkerError) -> None:
        if error.kind != "Cancelled" and not self.closed:
            self.message(f"{error} {error.remedy}".strip())

    def _forget_client(self) -> None:
        """The volume or the SAM is another now."""
        self._client, self._failed = None, None
        if self._busy is not None:
            self._background.cancel()
        self._embedded.clear()
        self._set_present([replace(organ, changed=True) for organ in self.organs])
        self._update()

    # what vanishes

    def _check_volume(self) -> None:
        geometry = slicer_scene.node_geometry(self.volumeNode)
        if not geometry.matches(self.grid.geometry):
            raise VolumeError(
                f'The volume "{self.volumeNode.GetName()}" has another grid than when its boxes '
                "were made; make new boxes."
            )

    def _lost(self, request: Request) -> WorkerError | None:
        """Why a result has no place in the scene any more."""
        if self.closed or self._gone():
            sentence = "The volume or its segmentation was removed meanwhile; nothing was changed."
            return WorkerError("VolumeError", sentence)
        if request.client is not self._client:
            sentence = "The volume or the SAM was changed meanwhile; nothing was redrawn."
            return WorkerError("VolumeError", sentence, "Refine again.")
        try:
            self._check_volume()
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
            self._forget_client()

    def _on_slice(self, n: int) -> None:
        self._go_on()
        self.changed()

    def _close(self, *, remove: bool) -> None:
        self.closed = True
        _sessions.pop(self.node.GetID(), None)
        self._steps.clear()
        self.cancel()
        if self._background is not None and self._background.job.state == "queued":
            self._background.cancel()  # what runs is let run: it ends in the worker's cache
        self._observers.remove()
        self._views.close(remove=remove)
        self.points.close()
        if remove and self.node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(self.node)
        self.changed()


# --- from segments to organs


def _axis(axis: str | int | None, geometry: slicer_scene.Geometry) -> int:
    if axis is None:
        return acquisition_axis(geometry)
    if axis not in (*AXES, 0, 1, 2):
        raise PromptError(f'There is no axis {axis!r}; choose "I", "J" or "K".')
    return AXES.index(axis) if isinstance(axis, str) else axis


def _chosen(node: slicer.vtkMRMLSegmentationNode, organs: Sequence[str] | None) -> list[str]:
    segmentation = node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs())
    if organs is None:
        return ids
    found = []
    for organ in organs:
        id = organ if organ in ids else segmentation.GetSegmentIdBySegmentName(organ)
        if not id:
            raise PromptError(f'The segmentation "{node.GetName()}" has no segment "{organ}".')
        found.append(id)
    return found


def _organ(
    target: slicer.vtkMRMLSegmentationNode,
    id: str,
    mask: np.ndarray,
    value: int,
    grid: SliceGrid,
    threshold: float | None,
    before: slicer.vtkMRMLSegmentationNode,
) -> Organ:
    """A segment with automatic boxes; its voxels are copied to `before`."""
    segment = target.GetSegmentation().GetSegment(id)
    name, color = segment.GetName(), segment.GetColor()
    coarse = _corrected(_probabilities(target, _tag(segment, ORGAN_TAG), grid), mask)
    theta1 = SURE if threshold is None else threshold
    frames = KeyFrames.from_coarse(name, value, coarse, grid, threshold=theta1)
    add_segment(before, grid.geometry, Patch.of(mask), id, name, color)
    result = {n: packed(shown) for n, shown in enumerate(grid.stack(mask)) if shown.any()}
    return Organ(
        frames,
        id,
        tuple(color),
        coarse=bool(result),
        keep_unboxed=threshold is not None,
        undecided=threshold is None and sureness(coarse) < UNSURE,
        result=result,
    )


def _probabilities(
    node: slicer.vtkMRMLSegmentationNode, organ: str, grid: SliceGrid
) -> np.ndarray | None:
    found = slicer_scene.probabilities(node).get(organ)
    return found if found is not None and found.shape == grid.geometry.shape else None


def _corrected(chances: np.ndarray | None, mask: np.ndarray) -> np.ndarray:
    """Probabilities in agreement with a mask, which may have been edited since they were found: at
    least a half in it, less outside; the mask itself where there are none."""
    if chances is None:
        return mask
    inside = np.where(chances < SURELY_EDITED, np.float16(1), np.maximum(chances, np.float16(0.5)))
    outside = np.where(chances < 0.5, chances, np.float16(0))
    return np.where(mask, inside, outside)


def _new_segmentation(
    volume_node: slicer.vtkMRMLScalarVolumeNode, name: str
) -> slicer.vtkMRMLSegmentationNode:
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    node.CreateDefaultDisplayNodes()
    lay_on(node, volume_node)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volume_node)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    own = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(parent, node)
    hierarchy.SetItemParent(own, parent)
    return node


def _copied(
    node: slicer.vtkMRMLSegmentationNode,
    ids: Sequence[str],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: slicer_scene.Geometry,
) -> tuple[slicer.vtkMRMLSegmentationNode, dict[str, np.ndarray]]:
    """A segmentation on the volume's grid with segments of another, and their masks."""
    masks = {id: any_mask(node, id, volume_node) for id in ids}
    target = _new_segmentation(volume_node, f"{node.GetName()} refined")
    entry = slicer.vtkSegment.GetTerminologyEntryTagName()
    for id, mask in masks.items():
        segment = node.GetSegmentation().GetSegment(id)
        tags = {entry: segment.GetTerminology() or ""}
        name, color = segment.GetName(), segment.GetColor()
        add_segment(target, geometry, Patch.of(mask), id, name, color, tags)
    return target, masks


def _voxels(volume_node: slicer.vtkMRMLScalarVolumeNode) -> tuple[object, int] | None:
    """What is another when a volume's voxels are."""
    image = volume_node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    return None if scalars is None else (scalars, scalars.GetMTime())


def _tag(segment: slicer.vtkSegment, name: str) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def _report(row: Mapping[str, Any]) -> Report:
    names = [field.name for field in dataclasses.fields(Report)]
    kept = {int(n): reason for n, reason in row["kept"].items()}
    return Report(**{name: row[name] for name in names} | {"kept": kept})


def _only(frames: KeyFrames, slices: Iterable[int]) -> KeyFrames:
    """The boxes of some slices alone, as they are; SAM is shown the same pictures of them."""
    boxes, slices = frames.effective(), frozenset(slices)
    off = frozenset(range(frames.grid.count)) - slices
    return replace(frames, edited={n: boxes[n] for n in slices}, off=off, limit=None)


def _opening(settings: Settings) -> dict[str, Any]:
    """What opens a session of the worker; other settings go with every request."""
    names = ("sam", "sam_kind", "modality", "mosaic", "device")
    return {name: getattr(settings, name) for name in names}


def _mirrored(saved: Saved) -> Saved:
    organs, size = [], saved.grid.geometry.size[2]
    for organ in saved.organs:
        hints = organ.hints
        if saved.grid.axis == 2:
            hints = {size - 1 - n: points for n, points in hints.items()}
        else:
            hints = {n: tuple((x, size - y, p) for x, y, p in some) for n, some in hints.items()}
        organs.append(replace(organ, frames=mirrored(organ.frames), hints=hints))
    grid = SliceGrid(saved.grid.geometry.mirrored(), saved.grid.axis)
    return replace(saved, organs=tuple(organs), grid=grid)


def _forget(node: slicer.vtkMRMLScriptedModuleNode) -> None:
    """Remove boxes and what belongs to them."""
    before = node.GetNodeReference(BEFORE)
    roles = [node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles())]
    bounds = [node.GetNodeReference(role) for role in roles if role.startswith(BOUND)]
    if (session := _sessions.get(node.GetID())) is not None:
        session.close()
    for each in (*bounds, before, node):
        remove_node(each)
