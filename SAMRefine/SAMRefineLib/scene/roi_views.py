# SPDX-License-Identifier: Apache-2.0
"""Boxes as ROIs in Slicer's views: around each organ, and around it in the slice that is shown.

An ROI observes the volume's transform and lies along the volume's axes in the space below it, so
that it is exact on any grid and under any linear transform. What the user drags is read back
through its eight corners, never through GetBounds, which is a box along the patient's axes.

Main thread only, as all of MRML.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import slicer
import vtk

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

from ..boxes.boxes import Box3D, SliceGrid
from ..boxes.dragging import differs
from ..refine.organ_state import Organ

PARALLEL = 0.9
"""Least cosine between a slice view's normal and the axis that is sliced."""

BOUND, SLICE_BOX = "SRCSM.Bound", "SRCSM.SliceBox"
"""Attributes of ROIs: the label of the organ that they are around."""


# --- ROIs


def show_block(
    roi: slicer.vtkMRMLMarkupsROINode,
    block: Box3D,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> None:
    """Lay an ROI exactly around a block of a volume's voxels.

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
    """The smallest block of a volume's voxels around an ROI, wherever the ROI comes from.

    Raises:
        PromptError: the ROI has no size.
    """
    corners = np.array(np.meshgrid(*((-0.5, 0.5),) * 3)).reshape(3, -1).T * roi.GetSize()
    to_node = slicer.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())
    points = corners @ to_node[:3, :3].T + to_node[:3, 3]
    return Box3D.around(_transformed(points, roi, volume_node), geometry)


def _transformed(
    points: np.ndarray,
    from_node: slicer.vtkMRMLTransformableNode | None,
    to_node: slicer.vtkMRMLTransformableNode | None,
) -> np.ndarray:
    """Points (n, 3) in a node's space in that of another; None is the world."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        from_node and from_node.GetParentTransformNode(),
        to_node and to_node.GetParentTransformNode(),
        transform,
    )
    return np.array([transform.TransformPoint(point) for point in points])


def world_to_ijk(
    points: np.ndarray, volume_node: slicer.vtkMRMLScalarVolumeNode, geometry: Geometry
) -> np.ndarray:
    """(n, 3) points in the world as voxel indices (i, j, k) of a volume, transforms included."""
    return geometry.to_ijk(_transformed(np.asarray(points), None, volume_node))


def ijk_to_world(
    ijk: np.ndarray, volume_node: slicer.vtkMRMLScalarVolumeNode, geometry: Geometry
) -> np.ndarray:
    """(n, 3) voxel indices as points in the world."""
    return _transformed(geometry.to_ras(ijk), volume_node, None)


# --- slice views


def shows_slices(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> bool:
    """True where a view lies along the slices, or nearly so."""
    return _slice_and_slope(view, volume_node, grid)[1] >= PARALLEL


def slice_in_view(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> int | None:
    """The number of the slice that a view shows; None where it cuts across them, or beyond."""
    n, cosine = _slice_and_slope(view, volume_node, grid)
    return n if cosine >= PARALLEL and 0 <= n < grid.count else None


def _slice_and_slope(
    view: slicer.vtkMRMLSliceNode, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid
) -> tuple[int, float]:
    to_world = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
    at, right, up = world_to_ijk(
        to_world[:3, 3] + ((0, 0, 0), to_world[:3, 0], to_world[:3, 1]), volume_node, grid.geometry
    )
    # A transform may shear what is above the volume: its planes stay planes, normals do not.
    normal = np.cross(*(np.array((right - at, up - at)) * grid.geometry.spacing))
    return round(at[grid.axis]), abs(normal[grid.axis]) / float(np.linalg.norm(normal))


def align_views(volume_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Turn all slice views into the planes of a volume, where its slice boxes are rectangles."""
    for view in _slice_views():
        view.RotateToVolumePlane(volume_node)


def jump_to(
    n: int, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid, block: Box3D | None
) -> None:
    """Show a slice in all views, at the middle of a block or of the volume."""
    ijk = (np.array(grid.geometry.size) - 1) / 2
    if block is not None:
        ijk = (np.array(block.lower) + block.upper) / 2 - 0.5
    ijk[grid.axis] = n
    world = ijk_to_world(ijk[None], volume_node, grid.geometry)[0]
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        volume_node.GetScene(), *world, slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )


# --- all boxes of a refinement


class Observers:
    """What is observed, to be let go of at once."""

    def __init__(self) -> None:
        self._observed: list[tuple[vtk.vtkObject, int]] = []

    def add(self, of: vtk.vtkObject, event: int, call: Callable) -> None:
        """Have a function called after an event."""
        self._observed.append((of, of.AddObserver(event, call)))

    def remove(self, of: vtk.vtkObject | None = None) -> None:
        """Those of an object, all by default."""
        for each, tag in self._observed:
            if of in (None, each):
                each.RemoveObserver(tag)
        self._observed = [pair for pair in self._observed if of not in (None, pair[0])]


class BoxViews:
    """The ROIs of a refinement's organs: shown, and read back when the user lets go of one.

    The bounds, one ROI for each organ, are kept with the scene, referenced by `owner`. The boxes of
    the slice that is shown are not; they follow the slice views.
    """

    def __init__(
        self,
        owner: slicer.vtkMRMLNode,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        grid: SliceGrid,
        edited: Callable[[Organ], None],
        removed: Callable[[int], None],
        refused: Callable[[PromptError], None],
        slice_shown: Callable[[int], None],
    ) -> None:
        """Nothing is shown yet.

        Args:
            edited: called with an organ as it is after the user's edit; has to end in `show`.
            removed: called with an organ's label when the user deleted its ROI.
            refused: called when an edit made no sense; the ROI is back where it was.
            slice_shown: called with its number when another slice is shown.
        """
        self._owner, self._volume, self._grid = owner, volume_node, grid
        self._edited, self._removed = edited, removed
        self._refused, self._slice_shown = refused, slice_shown
        self._scene = volume_node.GetScene()
        self._organs: dict[int, Organ] = {}
        self._active: int | None = None
        self._blocks: dict[slicer.vtkMRMLMarkupsROINode, Box3D] = {}  # as they are shown
        self._bounds: dict[int, slicer.vtkMRMLMarkupsROINode] = {}
        self._slice_boxes: dict[int, slicer.vtkMRMLMarkupsROINode] = {}
        self._busy = False
        self._observers = Observers()
        for view in _slice_views():
            self._observe_view(view)
        shown = (slice_in_view(view, volume_node, grid) for view in _slice_views())
        self.slice = next((n for n in shown if n is not None), grid.count // 2)
        self._along = self._along_slices()
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._observers.add(volume_node, event, self._on_transform)
        self._observers.add(self._scene, slicer.vtkMRMLScene.NodeAddedEvent, self._on_added)
        self._observers.add(
            self._scene, slicer.vtkMRMLScene.NodeRemovedEvent, self._on_node_removed
        )

    def show(self, organs: Iterable[Organ], active: int | None) -> None:
        """Show these organs' boxes, those of the active one with handles.

        Args:
            active: its label.
        """
        self._busy, before = True, self._organs
        self._organs, self._active = {organ.value: organ for organ in organs}, active
        try:
            for value in before.keys() - self._organs.keys():
                self._drop_slice_box(value)
                self._drop_bound(value)
            for organ in self._organs.values():
                self._show_bound(organ)
                self._show_slice_box(organ)
        finally:
            self._busy = False

    def bound(self, value: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """The ROI around an organ."""
        return self._bounds.get(value)

    def slice_box(self, value: int) -> slicer.vtkMRMLMarkupsROINode | None:
        """The ROI around an organ in the slice that is shown; None until it was shown in one."""
        return self._slice_boxes.get(value)

    def read(self) -> None:
        """Take over ROIs that were changed in ways that say no word, such as by a script."""
        for roi in list(self._blocks):
            self._read(roi)

    def close(self, *, remove: bool = False) -> None:
        """Observe nothing any more, hide the bounds, or remove them."""
        self._observers.remove()
        for value in list(self._organs):
            self._drop_slice_box(value)
            if remove:
                self._drop_bound(value)
            elif (roi := self._bounds.get(value)) and (display := roi.GetDisplayNode()):
                display.SetVisibility(False)
        self._organs, self._blocks, self._bounds = {}, {}, {}

    # showing

    def _show_bound(self, organ: Organ) -> None:
        block, roi = organ.frames.bounds3d(), self._bounds.get(organ.value)
        if roi is None:
            if block is None:
                return
            role = f"{BOUND}.{organ.value}"
            roi = self._owner.GetNodeReference(role)  # of a scene that was loaded
            if roi is None:
                roi = self._new(BOUND, organ, f"{organ.name} box")
                self._owner.SetNodeReferenceID(role, roi.GetID())
            else:
                self._watch(roi)
            self._bounds[organ.value] = roi
        self._style(roi, organ, visible=organ.shown and block is not None, flat=False)
        if block is not None:
            self._lay(roi, block)

    def _show_slice_box(self, organ: Organ) -> None:
        box, roi = organ.frames.effective().get(self.slice), self.slice_box(organ.value)
        if roi is None:
            if box is None or not organ.shown:
                return
            # Not a reference of the owner's, which is saved, as this is not.
            roi = self._new(SLICE_BOX, organ, f"{organ.name} slice box")
            self._slice_boxes[organ.value] = roi
            roi.SetSaveWithScene(False)
            roi.SetHideFromEditors(True)
            roi.GetDisplayNode().SetSaveWithScene(False)
        self._style(roi, organ, visible=organ.shown and box is not None, flat=True)
        if box is not None:
            self._lay(roi, self._grid.block(box, self.slice))

    def _new(self, role: str, organ: Organ, name: str) -> slicer.vtkMRMLMarkupsROINode:
        roi = self._scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        roi.CreateDefaultDisplayNodes()
        roi.SetAttribute(role, str(organ.value))
        self._watch(roi)
        return roi

    def _watch(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
        event = slicer.vtkMRMLMarkupsNode.PointEndInteractionEvent
        self._observers.add(roi, event, lambda caller, event: self._read(caller))

    def _lay(self, roi: slicer.vtkMRMLMarkupsROINode, block: Box3D) -> None:
        if self._blocks.get(roi) != block:
            self._blocks[roi] = block
            show_block(roi, block, self._volume, self._grid.geometry)

    def _style(
        self, roi: slicer.vtkMRMLMarkupsROINode, organ: Organ, *, visible: bool, flat: bool
    ) -> None:
        active, display = organ.value == self._active, roi.GetDisplayNode()
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
        display.SetRotationHandleVisibility(False)  # a turned box is none of this grid
        # Each where it can be dragged sensibly: in the slices, and across them.
        views = [id for id, along in self._along.items() if along == flat]
        if not flat:
            views += [view.GetID() for view in slicer.util.getNodesByClass("vtkMRMLViewNode")]
        display.SetVisibility(visible and bool(views or not self._along))
        display.SetVisibility3D(not flat)
        display.SetViewNodeIDs(views)  # none: all there are
        display.EndModify(modifying)

    def _along_slices(self) -> dict[str, bool]:
        """Slice view's ID -> whether it lies along the slices."""
        return {
            view.GetID(): shows_slices(view, self._volume, self._grid) for view in _slice_views()
        }

    def _drop_bound(self, value: int) -> None:
        self._owner.RemoveNodeReferenceIDs(f"{BOUND}.{value}")
        if roi := self._bounds.pop(value, None):
            self._remove(roi)

    def _drop_slice_box(self, value: int) -> None:
        if roi := self._slice_boxes.pop(value, None):
            self._remove(roi)

    def _remove(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
        self._blocks.pop(roi, None)
        self._observers.remove(roi)
        remove_node(roi)

    # what the user does

    def _read(self, roi: slicer.vtkMRMLMarkupsROINode) -> None:
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
            self._refused(error)
            return
        self._edited(organ)

    def _on_transform(self, *_: object) -> None:
        for roi, block in self._blocks.items():
            show_block(roi, block, self._volume, self._grid.geometry)

    def _observe_view(self, view: slicer.vtkMRMLSliceNode) -> None:
        self._observers.add(view, vtk.vtkCommand.ModifiedEvent, self._on_view)

    def _on_view(self, view: slicer.vtkMRMLSliceNode, *_: object) -> None:
        if self._busy:
            return
        n = slice_in_view(view, self._volume, self._grid)
        turned = self._along.get(view.GetID()) != shows_slices(view, self._volume, self._grid)
        another = n not in (None, self.slice)
        if turned or another:
            self.read()
            self.slice = n if another else self.slice
            self._along = self._along_slices()
            self.show(self._organs.values(), self._active)
        if another:
            self._slice_shown(n)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_added(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        if node.IsA("vtkMRMLSliceNode"):
            self._observe_view(node)
        if node.IsA("vtkMRMLSliceNode") or node.IsA("vtkMRMLViewNode"):
            self._along = self._along_slices()
            self.show(self._organs.values(), self._active)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        self._observers.remove(node)
        self._along.pop(node.GetID(), None)
        if self._blocks.pop(node, None) is None:
            return
        if bound := node.GetAttribute(BOUND):
            del self._bounds[int(bound)]
            self._removed(int(bound))
        else:
            del self._slice_boxes[int(node.GetAttribute(SLICE_BOX))]


def remove_node(node: slicer.vtkMRMLDisplayableNode | None) -> None:
    """Remove a node, where it is still there, and how it is displayed."""
    displays = []
    if node is not None and hasattr(node, "GetNthDisplayNode"):
        displays = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    for each in (*displays, node):
        if each is not None and each.GetScene() is not None:
            each.GetScene().RemoveNode(each)


def _slice_views() -> Sequence[slicer.vtkMRMLSliceNode]:
    return slicer.util.getNodesByClass("vtkMRMLSliceNode")
