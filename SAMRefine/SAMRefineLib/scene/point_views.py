# SPDX-License-Identifier: Apache-2.0
"""Point views: control points in the active organ and outside, in two lists.

The lists are views of `organ_state.OrganState.points`. They are made on demand and not saved. Main
thread only, as all of MRML.
"""

from collections.abc import Callable, Mapping

import numpy as np
import slicer

from ..boxes.boxes import PointPrompt, SliceGrid
from ..refine.organ_state import OrganState
from .observers import Observers, remove_node
from .slice_views import ijk_to_world, world_to_ijk

COLORS = {True: (0.2, 0.9, 0.3), False: (0.95, 0.25, 0.2)}
NAMES = {True: "in the organ", False: "beside the organ"}
CLOSE = 1e-3
"""Pixels; a shorter movement of a point is rounding."""

Points = Mapping[int, tuple[PointPrompt, ...]]
"""Points by slice index."""


class PointViews:
    """The two lists of points of the active organ.

    Attributes:
        observers: what is observed.
    """

    def __init__(
        self,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        grid: SliceGrid,
        edited: Callable[[OrganState], None],
    ) -> None:
        """Prepare; nothing is shown yet.

        Args:
            volume_node: the scan.
            grid: its slices.
            edited: called with the organ after the user's edit.
        """
        self._volume, self._grid, self._edited = volume_node, grid, edited
        self._scene = volume_node.GetScene()
        self._nodes: dict[bool, slicer.vtkMRMLMarkupsFiducialNode] = {}
        self._organ: OrganState | None = None
        self._shown: Points = {}
        self._busy = False
        self.observers = Observers()
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self.observers.add(volume_node, event, lambda *_: self._fill())

    def show(self, organ: OrganState | None) -> None:
        """Show the points of an organ in place of those before."""
        self._organ, points = organ, organ.points if organ else {}
        if _differ(points, self._shown):
            self._shown = points
            self._fill()

    def set_visible(self, visible: bool) -> None:
        """Show or hide the lists."""
        for node in self._nodes.values():
            if node.GetScene() is not None and node.GetDisplayNode() is not None:
                node.GetDisplayNode().SetVisibility(visible)

    def node(self, positive: bool) -> slicer.vtkMRMLMarkupsFiducialNode:
        """Return a list to place points in, those in the organ or those outside."""
        node = self._nodes.get(positive)
        if node is None or node.GetScene() is None:
            node = self._scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", NAMES[positive])
            node.CreateDefaultDisplayNodes()
            node.SetControlPointLabelFormat("+" if positive else "-")
            node.SetSaveWithScene(False)
            node.GetDisplayNode().SetSaveWithScene(False)
            node.GetDisplayNode().SetSelectedColor(*COLORS[positive])
            self._nodes[positive] = node
            for name in ("EndInteraction", "PositionDefined", "Removed"):
                event = getattr(slicer.vtkMRMLMarkupsNode, f"Point{name}Event")
                self.observers.add(node, event, lambda *_: self.read())
            self._fill()
        return node

    def kind(self, node: slicer.vtkMRMLNode | None) -> bool | None:
        """Tell whether a node is the list of points in the organ or outside; None if neither."""
        return next((kind for kind, each in self._nodes.items() if each is node), None)

    def read(self) -> None:
        """Take over placed, moved and removed points; those outside the volume are ignored."""
        if self._busy or self._organ is None:
            return
        lists = {kind: node for kind, node in self._nodes.items() if node.GetScene() is not None}
        placed = {
            k: [point for point in some if point.positive not in lists]
            for k, some in self._shown.items()
        }
        rows, columns = self._grid.shape
        for positive, node in lists.items():
            for world in _defined(node):
                slice_index, x, y = self._in_slice(world)
                if 0 <= slice_index < self._grid.count and 0 <= x <= columns and 0 <= y <= rows:
                    placed.setdefault(slice_index, []).append(PointPrompt(x, y, positive))
        points = {k: tuple(some) for k, some in placed.items() if some}
        if _differ(points, self._shown):
            self._shown = points
            self._edited(self._organ.with_points(points))

    def close(self) -> None:
        """Remove the lists and stop observing."""
        self.observers.remove()
        for node in self._nodes.values():
            remove_node(node)
        self._nodes, self._organ, self._shown = {}, None, {}

    def _fill(self) -> None:
        """Write the points into the lists."""
        self._busy = True
        try:
            for positive, node in self._nodes.items():
                if node.GetScene() is None:
                    continue
                node.RemoveAllControlPoints()
                for slice_index, points in self._shown.items():
                    for point in points:
                        if point.positive == positive:
                            node.AddControlPointWorld(self._in_world(slice_index, point))
        finally:
            self._busy = False

    def _in_slice(self, world: np.ndarray) -> tuple[int, float, float]:
        """Convert a point (3,) in the world in mm to a slice index, x and y in pixels."""
        grid = self._grid
        (ijk,) = world_to_ijk(world[None], self._volume, grid.geometry)
        x, y = ijk[[grid.column_axis, grid.row_axis]] + 0.5
        return round(ijk[grid.axis]), float(x), float(y)

    def _in_world(self, slice_index: int, point: PointPrompt) -> np.ndarray:
        """Convert a point of a slice to a point (3,) in the world in mm."""
        grid, ijk = self._grid, np.zeros(3)
        place = slice_index, point.x - 0.5, point.y - 0.5
        ijk[[grid.axis, grid.column_axis, grid.row_axis]] = place
        return ijk_to_world(ijk[None], self._volume, grid.geometry)[0]


def _defined(node: slicer.vtkMRMLMarkupsFiducialNode) -> list[np.ndarray]:
    """Return the placed points, (3,) in the world in mm; one more may follow the mouse."""
    return [
        np.array(node.GetNthControlPointPositionWorld(n))
        for n in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(n) == node.PositionDefined
    ]


def _differ(one: Points, other: Points) -> bool:
    """Tell whether points differ by more than rounding."""
    if one.keys() != other.keys():
        return True
    for slice_index, some in one.items():
        if len(some) != len(other[slice_index]):
            return True
        pair = [np.array(sorted(points), float) for points in (some, other[slice_index])]
        if np.abs(pair[0] - pair[1]).max() > CLOSE:
            return True
    return False
