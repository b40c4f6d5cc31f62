# SPDX-License-Identifier: Apache-2.0
"""Boxes of a segmentation's organs in the scene: edits, undo, navigation, and saving.

Organs are immutable (`organ_state.OrganState`) and have a history (`edit_history`): an edit of
boxes and the change of voxels that followed are undone together. Everything is kept in the scene,
in a node of its own. Main thread only.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.terminology import segment_for

from ..boxes.boxes import Box, Box3D, missed_organ_block, thickened
from ..boxes.key_frames import KeyFrames
from ..refine.organ_state import OrganState
from ..refine.saved_state import SavedState, state_to_json
from .box_nodes import BOXES, SEGMENTATION, VOLUME, remove_boxes
from .changes import VoxelChange
from .differences import different_slices
from .edit_history import EditHistory
from .observers import Observers, remove_node
from .outlines import Outlines
from .point_views import PointViews
from .roi_views import BoxListener, BoxViews, read_block
from .segments import uncertain_slices
from .slice_views import jump_to


class BoxEditor:
    """The organs of a segmentation and their boxes in the views, to be edited.

    Organs are identified by their labels, `OrganState.label`.

    Attributes:
        node: the node that keeps the boxes in the scene.
        volumeNode, segmentationNode: the scan, and the segmentation that is redrawn.
        grid: the slices.
        settings: how to refine.
        changed: callback, called after every change of state.
        message: callback, called with sentences for the user.
        closed: True after `close` or the removal of a node it needs; then nothing has an effect.
        history: organs and their undo history.
        outlines: the segments.
        points: the lists of points.
        views: the ROIs.
        observers: what is observed.
    """

    def __init__(self, node: slicer.vtkMRMLScriptedModuleNode, saved: SavedState) -> None:
        """Take the boxes that a node keeps; a subclass ends with `_update`."""
        self.node = node
        self.volumeNode = node.GetNodeReference(VOLUME)
        self.segmentationNode = node.GetNodeReference(SEGMENTATION)
        self.grid, self.settings = saved.grid, saved.settings
        self.changed: Callable[[], None] = lambda: None
        self.message: Callable[[str], None] = lambda text: None
        self.closed = False
        self.outlines = Outlines(node, self.grid)
        self.history = EditHistory(saved.organs, self.outlines)
        self._highest = saved.highest
        self._active = saved.organs[0].label if saved.organs else None
        self._saved: tuple | None = None
        listener = BoxListener(
            self.edit, self.remove_organ, lambda error: self.message(str(error)), self._on_slice
        )
        self.views = BoxViews(node, self.volumeNode, self.grid, listener)
        self.points = PointViews(self.volumeNode, self.grid, self.edit)
        scene, self.observers = slicer.mrmlScene, Observers()
        self.observers.add(scene, scene.NodeRemovedEvent, self._on_removed)
        self.observers.add(scene, scene.StartCloseEvent, lambda *_: self.close())
        self.observers.add(scene, scene.StartSaveEvent, lambda *_: self.read_boxes())

    # state

    @property
    def organs(self) -> tuple[OrganState, ...]:
        """The organs now."""
        return self.history.organs

    def organ(self, label: int) -> OrganState:
        """Return the organ with a label.

        Raises:
            PromptError: there is none.
        """
        return self.history.organ(label)

    @property
    def active(self) -> int | None:
        """Label of the organ whose boxes have handles and whose points are shown."""
        return self._active

    @active.setter
    def active(self, label: int | None) -> None:
        if label is not None:
            self.organ(label)
        if label != self._active:
            self.read_boxes()
            self._active = label
            self._update()

    @property
    def slice(self) -> int:
        """Index of the slice that is shown."""
        return self.views.slice

    def bound(self, label: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """Return the ROI around an organ; None if it has no box."""
        return self.views.bound(label)

    def slice_box(self, label: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """Return the ROI around an organ in the shown slice."""
        return self.views.slice_box(label)

    # edits

    def read_boxes(self) -> None:
        """Take over ROIs and points that a script changed.

        What the user drags is taken over when it is released, and a script's changes before
        anything else is done.
        """
        if not self.closed:
            self.views.read()
            self.points.read()
            self.read_hand_edits()

    def read_hand_edits(self) -> None:
        """Mark organs whose segments were edited by hand or by a script."""
        if not self._gone() and self._mark_hand_edits():
            self._update()

    def _mark_hand_edits(self) -> bool:
        return self.history.mark_by_hand(self.outlines.edited_by_hand(self.organs))

    def edit(self, *organs: OrganState) -> None:
        """Replace organs by edited ones with the same labels."""
        if not self.closed:
            edited = [organ for organ in organs if organ not in self.organs]
            self._change(self.history.replaced(*organs), edited)

    def edit_box(self, label: int, slice_index: int, box: Box) -> None:
        """Make a box the key frame of a slice; neighbouring slices follow.

        Raises:
            PromptError: no such slice, or the box lies outside it.
        """
        self.edit(self.organ(label).with_box(slice_index, box))

    def edit_bound(self, label: int, block: Box3D) -> None:
        """Drag the 3-D box of an organ; see `dragging.dragged`.

        Raises:
            PromptError: nothing is left within the volume.
        """
        self.edit(self.organ(label).with_bound(block))

    def add_slice_box(self, label: int, slice_index: int | None = None) -> None:
        """Give a slice, by default the shown one, its own box again, or that of the nearest."""
        k, organ = self.slice if slice_index is None else slice_index, self.organ(label)
        organ = organ.with_frames(organ.frames.switch_on(k))
        if k not in organ.frames.effective():
            rows, columns = self.grid.shape
            middle = Box(columns / 4, rows / 4, columns * 3 / 4, rows * 3 / 4)
            organ = organ.with_box(k, organ.near_box(k) or middle)
        self.edit(organ)

    def switch_off(self, label: int, slice_index: int | None = None) -> None:
        """Remove the box of a slice, by default the shown one, which does not show the organ."""
        k, organ = self.slice if slice_index is None else slice_index, self.organ(label)
        self.edit(organ.with_frames(organ.frames.switch_off(k)))

    def reset(self, label: int | None = None, slice_index: int | None = None) -> None:
        """Return to the automatic boxes of a slice, of an organ without its points, or of all."""
        chosen = [organ for organ in self.organs if label in (None, organ.label)]
        fresh = [organ.with_frames(organ.frames.reset(slice_index)) for organ in chosen]
        self.edit(*(organ.with_points({}) if slice_index is None else organ for organ in fresh))

    def clear_points(self, label: int) -> None:
        """Remove the points of an organ."""
        self.edit(self.organ(label).with_points({}))

    def add_organ(
        self,
        name: str,
        block: Box3D | None = None,
        roi: slicer.vtkMRMLMarkupsROINode | None = None,
    ) -> int:
        """Add an organ that was missed, without a coarse mask.

        Args:
            name: its name.
            block: its box; None takes `missed_organ_block` around the shown slice.
            roi: an ROI in place of `block`, which is removed from the scene.

        Returns:
            The organ's label.

        Raises:
            PromptError: the box lies outside the volume.
        """
        self.read_boxes()
        placed = roi is not None or block is not None
        if roi is not None:
            block = thickened(read_block(roi, self.volumeNode, self.grid.geometry), self.grid)
        elif block is None:
            block = missed_organ_block(self.grid, self.slice)
        frames = KeyFrames.drawn(name, self._highest + 1, block, self.grid)
        remove_node(roi)
        self._highest += 1
        color = tuple(channel / 255 for channel in segment_for(name, frames.label).color)
        taken = {organ.segment for organ in self.organs}
        taken |= set(self.segmentationNode.GetSegmentation().GetSegmentIDs())
        id = next(id for id in (name, f"{name}_{frames.label}") if id not in taken)
        self._active = frames.label
        organ = OrganState(frames, id, color, result={})
        # A box that the user has still to move is not redrawn.
        self._change((*self.organs, organ), [organ] if placed else [])
        return frames.label

    def remove_organ(self, label: int) -> None:
        """Remove an organ's boxes and points, but not its segment."""
        if not self.closed:
            self._change(tuple(organ for organ in self.organs if organ.label != label))

    def set_shown(self, label: int, shown: bool) -> None:
        """Show or hide the boxes of an organ."""
        self._amend(replace(self.organ(label), shown=shown))

    def set_enabled(self, label: int, enabled: bool) -> None:
        """Choose whether an organ takes part in the refinement of all organs."""
        self._amend(replace(self.organ(label), enabled=enabled))

    def keep_coarse(self, label: int, keep: bool) -> None:
        """Put an organ's coarse mask back into its segment, or SAM's again.

        Raises:
            PromptError: there is no coarse mask.
        """
        organ = self.organ(label)
        if self.outlines.coarse_mask(organ) is None:
            raise PromptError(f'There is no coarse mask of "{organ.name}".')
        if keep != organ.kept:
            self.read_boxes()
            organ, masks = self.outlines.kept(self.organ(label), keep)
            rule = self.settings.neighbours
            self.history.place([organ], {organ.segment: masks}, rule, amend=False)
            self._update()

    # undo

    @property
    def can_undo(self) -> bool:
        """True if there is a step to undo."""
        return self.history.can_undo

    @property
    def can_redo(self) -> bool:
        """True if there is a step to redo."""
        return self.history.can_redo

    def undo(self) -> None:
        """Undo the last edit, with what was redrawn because of it."""
        self.read_boxes()
        if self.can_undo:
            self._return(self.history.undo, self.history.steps.present.changes)

    def redo(self) -> None:
        """Redo the edit that was undone last."""
        if self.can_redo:
            self._return(self.history.redo, self.history.steps.future[0].changes)

    def _returned(self, mask_threshold: float | None) -> None:
        """Follow the history to another state, and its mask threshold if it has one."""
        if mask_threshold is not None:
            self.settings = replace(self.settings, mask_threshold=mask_threshold)
        self._update()

    def _return(self, go: Callable[[], float | None], changes: Sequence[VoxelChange]) -> None:
        """Undo or redo a step with some changes, and show what it is about."""
        before, mask_threshold = self.organs, go()
        self._mark_hand_edits()  # which undoing left, and their Dice
        self._returned(mask_threshold)
        slices = different_slices(before, self.organs, changes, 2 - self.grid.axis)
        if slices and self._active not in slices:
            self.active = min(slices)
        if slices and self.slice not in slices[self._active]:
            self.jump(min(slices[self._active], key=lambda k: abs(k - self.slice)))

    def _change(self, organs: tuple[OrganState, ...], edited: Sequence[OrganState] = ()) -> None:
        """Record other organs, some of which were edited."""
        self.history.record(organs)
        self._on_edits(edited)
        self.outlines.sync(self.organs)
        self._update()

    def _amend(self, organ: OrganState) -> None:
        """Replace an organ without another step to undo."""
        self.history.amend(self.history.replaced(organ))
        self._update()

    # navigation

    def set_visible(self, visible: bool) -> None:
        """Show or hide all boxes and points, such as while another module is open."""
        self.views.set_visible(visible)
        self.points.set_visible(visible)

    def jump(self, slice_index: int) -> None:
        """Show a slice in all views, centred on the active organ."""
        block = self.organ(self._active).frames.bounds3d() if self._active else None
        jump_to(slice_index, self.volumeNode, self.grid, block)

    def uncertain_slices(self) -> list[int]:
        """List the slices of the active organ to check (`segments.uncertain_slices`)."""
        if self._active is None:
            return []
        return uncertain_slices(self.segmentationNode, self.organ(self._active), self.grid)

    def next_uncertain(self, step: int = 1) -> None:
        """Show the next (1) or previous (-1) uncertain slice of the active organ."""
        beyond = [k for k in self.uncertain_slices() if (k - self.slice) * step > 0]
        if beyond:
            self.jump(min(beyond) if step > 0 else max(beyond))

    @property
    def before_shown(self) -> bool:
        """True if the coarse masks are shown in place of the segments."""
        return self.outlines.before_shown

    def show_before(self, show: bool) -> None:
        """Show the coarse masks in place of the segments, or these again; no voxel changes."""
        if self.outlines.show_before(show, self.organs):
            self.changed()

    # the scene

    def close(self) -> None:
        """Stop and release everything; the nodes stay, so that `open_boxes` can go on."""
        if self.closed:
            return
        if not self._gone():
            self.read_boxes()
            self.show_before(False)
        self._close(remove=False)

    def _close(self, *, remove: bool) -> None:
        self.closed = True
        self._stop()
        self.observers.remove()
        self.outlines.edits.observers.remove()
        self.views.close(remove=remove)
        self.points.close()
        if remove:
            remove_node(self.outlines.before)  # which the node refers to no more if it was removed
            remove_boxes(self.node)
        self.changed()

    def _update(self) -> None:
        """Show and save the present state."""
        labels = [organ.label for organ in self.organs]
        if self._active is not None and self._active not in labels:
            self._active = labels[0] if labels else None
        self.views.show(self.organs, self._active)
        self.points.show(None if self._active is None else self.organ(self._active))
        if (now := (self.organs, self.settings)) != self._saved:
            self._saved = now
            saved = SavedState(self.organs, self.grid, self.settings, self._highest)
            self.node.SetParameter(BOXES, state_to_json(saved))
        self._proceed()
        self.changed()

    def _gone(self) -> bool:
        nodes = (self.node, self.volumeNode, self.segmentationNode)
        return any(node.GetScene() is None for node in nodes)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        if node in (self.node, self.volumeNode, self.segmentationNode):
            self._close(remove=True)

    def _on_slice(self, slice_index: int) -> None:
        """Follow another slice that is shown."""
        self.changed()

    def _on_edits(self, organs: Sequence[OrganState]) -> None:
        """Follow an edit of organs, before it is shown."""

    def _proceed(self) -> None:
        """Go on after every change, before `changed` is called."""
        self.outlines.renew_surfaces()

    def _stop(self) -> None:
        """End what runs, when the boxes are closed."""
