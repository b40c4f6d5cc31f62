# SPDX-License-Identifier: Apache-2.0
"""ROI views: the 3-D box of each organ and its box in the shown slice, as ROIs.

An ROI observes the volume's transform and lies along the volume's axes in the space below it, so
that it is exact on any grid and under any linear transform. A dragged ROI is read through its eight
corners, never through GetBounds, which is a box along the patient's axes.

Main thread only, as all of MRML.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

from ..boxes.boxes import Box3D, SliceGrid
from ..boxes.dragging import differs
from ..refine.organ_state import OrganState
from .box_nodes import BOUND
from .observers import Observers, remove_node
from .slice_views import between_nodes, shows_slices, slice_in_view, slice_views

SLICE_BOX = "SRCSM.SliceBox"
"""Attributes of ROIs: the label of their organ."""


def show_block(
    roi: slicer.vtkMRMLMarkupsROINode,
    block: Box3D,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> None:
    """Place an ROI exactly around a block of a volume's voxels.

    Raises:
        PromptError: the volume's axes are not at right angles.
    """
    box = block.oriented(geometry)
    modifying = roi.StartModify()
    roi.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    roi.SetSize(*box.size)
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(box.matrix))
    roi.EndModify(modifying)


def read_block(
    roi: slicer.vtkMRMLMarkupsROINode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> Box3D:
    """Return the smallest block of a volume's voxels around an ROI of any origin.

    Raises:
        PromptError: the ROI has no size.
    """
    corners = np.array(np.meshgrid(*((-0.5, 0.5),) * 3)).reshape(3, -1).T * roi.GetSize()
    to_node = slicer.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())
    points = corners @ to_node[:3, :3].T + to_node[:3, 3]
    return Box3D.around(between_nodes(points, roi, volume_node), geometry)


def drawn_roi() -> slicer.vtkMRMLMarkupsROINode | None:
    """Return the ROI that the user drew last with Slicer's markups toolbar, if there is one."""
    selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
    node = selection and slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
    if node is None or not node.IsA("vtkMRMLMarkupsROINode") or min(node.GetSize()) <= 0:
        return None
    return None if node.GetAttribute(BOUND) or node.GetAttribute(SLICE_BOX) else node


@dataclass(frozen=True)
class BoxListener:
    """Functions that `BoxViews` calls.

    Attributes:
        edited: called with an organ after the user's edit; has to end in `BoxViews.show`.
        removed: called with an organ's label after the user deleted its ROI.
        refused: called if an edit is impossible; the ROI is back at its place.
        slice_shown: called with the index of another slice that is shown.
    """

    edited: Callable[[OrganState], None]
    removed: Callable[[int], None]
    refused: Callable[[PromptError], None]
    slice_shown: Callable[[int], None]


class BoxViews:
    """The ROIs of a session's organs, which are read when the user releases one.

    The 3-D boxes, one ROI for each organ, are saved with the scene and referenced by `owner`. The
    boxes of the shown slice are not saved; they follow the slice views.

    Attributes:
        slice: index of the slice that is shown.
        visible: False if all boxes are hidden (`set_visible`).
        observers: what is observed.
    """

    def __init__(
        self,
        owner: slicer.vtkMRMLNode,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        grid: SliceGrid,
        listener: BoxListener,
    ) -> None:
        """Observe the slice views; nothing is shown yet.

        Args:
            owner: the node that references the 3-D boxes.
            volume_node: the scan.
            grid: its slices.
            listener: functions to call.
        """
        self._owner, self._volume, self._grid = owner, volume_node, grid
        self._listener = listener
        self._scene = volume_node.GetScene()
        self._organs: dict[int, OrganState] = {}
        self._active: int | None = None
        self._blocks: dict[slicer.vtkMRMLMarkupsROINode, Box3D] = {}  # as shown
        self._bounds: dict[int, slicer.vtkMRMLMarkupsROINode] = {}
        self._slice_boxes: dict[int, slicer.vtkMRMLMarkupsROINode] = {}
        self._busy, self.visible = False, True
        self.observers = Observers()
        for view in slice_views():
            self._observe_view(view)
        shown = (slice_in_view(view, volume_node, grid) for view in slice_views())
        self.slice = next((k for k in shown if k is not None), grid.count // 2)
        self._along = self._along_slices()
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self.observers.add(volume_node, event, self._on_transform)
        self.observers.add(self._scene, slicer.vtkMRMLScene.NodeAddedEvent, self._on_added)
        self.observers.add(self._scene, slicer.vtkMRMLScene.NodeRemovedEvent, self._on_node_removed)

    def show(self, organs: Iterable[OrganState], active: int | None) -> None:
        """Show the boxes of organs.

        Args:
            organs: the organs.
            active: label of the organ whose boxes have handles, or None.
        """
        self._busy, before = True, self._organs
        self._organs, self._active = {organ.label: organ for organ in organs}, active
        try:
            for label in before.keys() - self._organs.keys():
                self._drop_slice_box(label)
                self._drop_bound(label)
            for organ in self._organs.values():
                self._show_bound(organ)
                self._show_slice_box(organ)
        finally:
            self._busy = False

    def set_visible(self, visible: bool) -> None:
        """Show or hide all boxes, whatever each organ says."""
        if visible != self.visible:
            self.visible = visible
            self.show(self._organs.values(), self._active)

    def bound(self, label: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """Return the ROI around an organ."""
        return self._bounds.get(label)

    def slice_box(self, label: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """Return the ROI around an organ in the shown slice; None before it was shown in one."""
        return self._slice_boxes.get(label)

    def read(self) -> None:
        """Take over ROIs that were changed without an interaction event, such as by a script."""
        for roi in list(self._blocks):
            self._read(roi)

    def close(self, *, remove: bool = False) -> None:
        """Stop observing, and hide the 3-D boxes or remove them."""
        self.observers.remove()
        for label in list(self._organs):
            self._drop_slice_box(label)
            if remove:
                self._drop_bound(label)
            elif (roi := self._bounds.get(label)) and (display := roi.GetDisplayNode()):
                display.SetVisibility(False)
        self._organs, self._blocks, self._bounds = {}, {}, {}

    # showing

    def _show_bound(self, organ: OrganState) -> None:
        block, roi = organ.frames.bounds3d(), self._bounds.get(organ.label)
        if roi is None:
            if block is None:
                return
            role = f"{BOUND}.{organ.label}"
            roi = self._owner.GetNodeReference(role)  # in a loaded scene
            if roi is None:
                roi = self._new(BOUND, organ, f"{organ.name} box")
                self._owner.SetNodeReferenceID(role, roi.GetID())
            else:
                self._watch(roi)
            self._bounds[organ.label] = roi
        self._style(roi, organ, visible=organ.shown and block is not None, flat=False)
        if block is not None:
            self._lay(roi, block)

    def _show_slice_box(self, organ: OrganState) -> None:
        box, roi = organ.frames.effective().get(self.slice), self.slice_box(organ.label)
        if roi is None:
            if box is None or not organ.shown:
                return
            # Not referenced by the owner, as it is not saved.
            roi = self._new(SLICE_BOX, organ, f"{organ.name} slice box")
            self._slice_boxes[organ.label] = roi
            roi.SetSaveWithScene(False)
            roi.SetHideFromEditors(True)
            roi.GetDisplayNode().SetSaveWithScene(False)
        self._style(roi, organ, visible=organ.shown and box is not None, flat=True)
        if box is not None:
            self._lay(roi, self._grid.block(box, self.slice))

    def _new(self, role: str, organ: OrganState, name: str) -> slicer.vtkMRMLMarkupsROINode:
        roi = self._scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        roi.CreateDefaultDisplayNodes()
        roi.SetAttribute(role, str(organ.label))
        self._watch(roi)
        return roi

    def _watch(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
        event = slicer.vtkMRMLMarkupsNode.PointEndInteractionEvent
        self.observers.add(roi, event, lambda caller, event: self._read(caller))

    def _lay(self, roi: slicer.vtkMRMLMarkupsROINode, block: Box3D) -> None:
        if self._blocks.get(roi) != block:
            self._blocks[roi] = block
            show_block(roi, block, self._volume, self._grid.geometry)

    def _style(
        self, roi: slicer.vtkMRMLMarkupsROINode, organ: OrganState, *, visible: bool, flat: bool
    ) -> None:
        roi.CreateDefaultDisplayNodes()  # none if it has one, unless the user deleted that
        active, display = organ.label == self._active, roi.GetDisplayNode()
        roi.SetLocked(not active)
        modifying = display.StartModify()
        display.SetSelectedColor(*organ.color)
        display.SetColor(*organ.color)
        display.SetFillVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        display.SetPointLabelsVisibility(False)
        display.SetHandlesInteractive(active)
        display.SetScaleHandleVisibility(True)
        display.SetTranslationHandleVisibility(True)
        display.SetRotationHandleVisibility(False)  # a rotated box does not fit the grid
        # Slice boxes are dragged in views along the slices, 3-D boxes in the others.
        views = [id for id, along in self._along.items() if along == flat]
        if not flat:
            views += [view.GetID() for view in slicer.util.getNodesByClass("vtkMRMLViewNode")]
        display.SetVisibility(self.visible and visible and bool(views or not self._along))
        display.SetVisibility3D(not flat)
        display.SetViewNodeIDs(views)  # an empty list means all views
        display.EndModify(modifying)

    def _along_slices(self) -> dict[str, bool]:
        """Tell for each slice view by ID whether it lies along the slices."""
        return {
            view.GetID(): shows_slices(view, self._volume, self._grid) for view in slice_views()
        }

    def _drop_bound(self, label: int) -> None:
        self._owner.RemoveNodeReferenceIDs(f"{BOUND}.{label}")
        if roi := self._bounds.pop(label, None):
            self._remove(roi)

    def _drop_slice_box(self, label: int) -> None:
        if roi := self._slice_boxes.pop(label, None):
            self._remove(roi)

    def _remove(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
        self._blocks.pop(roi, None)
        self.observers.remove(roi)
        remove_node(roi)

    # edits

    def _read(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
        """Take an ROI over, or put it back if its place is impossible."""
        shown = self._blocks.get(roi)
        if self._busy or shown is None:
            return
        flat = roi.GetAttribute(SLICE_BOX)
        organ = self._organs[int(flat or roi.GetAttribute(BOUND))]
        try:
            block = read_block(roi, self._volume, self._grid.geometry)
            if not differs(block, shown):
                return
            self._blocks[roi] = block
            if flat:
                organ = organ.with_box(self.slice, self._grid.box_of(block))
            else:
                organ = organ.with_bound(block)
        except PromptError as error:
            del self._blocks[roi]
            self._lay(roi, shown)
            self._listener.refused(error)
            return
        self._listener.edited(organ)

    def _on_transform(self, *_: object) -> None:
        for roi, block in self._blocks.items():
            show_block(roi, block, self._volume, self._grid.geometry)

    def _observe_view(self, view: slicer.vtkMRMLSliceNode) -> None:
        self.observers.add(view, vtk.vtkCommand.ModifiedEvent, self._on_view)

    def _on_view(self, view: slicer.vtkMRMLSliceNode, *_: object) -> None:
        if self._busy:
            return
        slice_index = slice_in_view(view, self._volume, self._grid)
        turned = self._along.get(view.GetID()) != shows_slices(view, self._volume, self._grid)
        another = slice_index not in (None, self.slice)
        if turned or another:
            self.read()
            self.slice = slice_index if another else self.slice
            self._along = self._along_slices()
            self.show(self._organs.values(), self._active)
        if another:
            self._listener.slice_shown(slice_index)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_added(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        if node.IsA("vtkMRMLSliceNode"):
            self._observe_view(node)
        if node.IsA("vtkMRMLSliceNode") or node.IsA("vtkMRMLViewNode"):
            self._along = self._along_slices()
            self.show(self._organs.values(), self._active)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        self.observers.remove(node)
        self._along.pop(node.GetID(), None)
        if self._blocks.pop(node, None) is None:
            return
        if bound := node.GetAttribute(BOUND):
            del self._bounds[int(bound)]
            self._listener.removed(int(bound))
        else:
            del self._slice_boxes[int(node.GetAttribute(SLICE_BOX))]
