# SPDX-License-Identifier: Apache-2.0
"""Points beside the boxes: two lists of control points in Slicer's views, those in the organ and
those beside it, for the organ that is being worked on.

They are views of what `organ_state.Organ` holds, made when first asked for, and not saved.
Main thread only, as all of MRML.
"""

from collections.abc import Callable, Mapping

import numpy as np
import slicer

from ..boxes.boxes import SliceGrid
from ..refine.organ_state import Organ, PointPrompt
from .roi_views import Observers, ijk_to_world, remove_node, world_to_ijk

COLORS = {True: (0.2, 0.9, 0.3), False: (0.95, 0.25, 0.2)}
NAMES = {True: "in the organ", False: "beside the organ"}
CLOSE = 1e-3
"""Pixels; a point that moved by less was not moved."""

Hints = Mapping[int, tuple[PointPrompt, ...]]


class PointViews:
    """The two lists of points of the active organ."""

    def __init__(
        self,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        grid: SliceGrid,
        edited: Callable[[Organ], None],
    ) -> None:
        """Nothing is shown yet.

        Args:
            edited: called with the organ as it is after the user's edit.
        """
        self._volume, self._grid, self._edited = volume_node, grid, edited
        self._scene = volume_node.GetScene()
        self._nodes: dict[bool, slicer.vtkMRMLMarkupsFiducialNode] = {}
        self._organ: Organ | None = None
        self._shown: Hints = {}
        self._busy = False
        self._observers = Observers()
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._observers.add(volume_node, event, lambda *_: self._fill())

    def show(self, organ: Organ | None) -> None:
        """Show the points of an organ, those before no more."""
        self._organ, hints = organ, organ.hints if organ else {}
        if _differ(hints, self._shown):
            self._shown = hints
            self._fill()

    def node(self, positive: bool) -> slicer.vtkMRMLMarkupsFiducialNode:
        """The list into which points can be placed, such as by a qMRMLMarkupsPlaceWidget."""
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
                self._observers.add(node, event, lambda *_: self.read())
            self._fill()
        return node

    def read(self) -> None:
        """Take over what was placed, moved or removed; points outside the volume do not count."""
        if self._busy or self._organ is None:
            return
        lists = {kind: node for kind, node in self._nodes.items() if node.GetScene() is not None}
        found = {n: [hint for hint in h if hint[2] not in lists] for n, h in self._shown.items()}
        for positive, node in lists.items():
            for point in _defined(node):
                n, x, y = self._in_slice(point)
                rows, columns = self._grid.shape
                if 0 <= n < self._grid.count and 0 <= x <= columns and 0 <= y <= rows:
                    found.setdefault(n, []).append((x, y, positive))
        hints = {n: tuple(points) for n, points in found.items() if points}
        if _differ(hints, self._shown):
            self._shown = hints
            self._edited(self._organ.with_hints(hints))

    def close(self) -> None:
        """Remove the lists; observe nothing any more."""
        self._observers.remove()
        for node in self._nodes.values():
            remove_node(node)
        self._nodes, self._organ, self._shown = {}, None, {}

    def _fill(self) -> None:
        self._busy = True
        try:
            for positive, node in self._nodes.items():
                if node.GetScene() is None:
                    continue
                node.RemoveAllControlPoints()
                for n, hints in self._shown.items():
                    for x, y, kind in hints:
                        if kind == positive:
                            node.AddControlPointWorld(self._in_world(n, x, y))
        finally:
            self._busy = False

    def _in_slice(self, world: np.ndarray) -> tuple[int, float, float]:
        grid = self._grid
        (ijk,) = world_to_ijk(world[None], self._volume, grid.geometry)
        x, y = ijk[[grid.column_axis, grid.row_axis]] + 0.5
        return round(ijk[grid.axis]), float(x), float(y)

    def _in_world(self, n: int, x: float, y: float) -> np.ndarray:
        grid, ijk = self._grid, np.zeros(3)
        ijk[[grid.axis, grid.column_axis, grid.row_axis]] = n, x - 0.5, y - 0.5
        return ijk_to_world(ijk[None], self._volume, grid.geometry)[0]


def _defined(node: slicer.vtkMRMLMarkupsFiducialNode) -> list[np.ndarray]:
    """Positions in the world of the points that are placed; one may follow the mouse."""
    return [
        np.array(node.GetNthControlPointPositionWorld(n))
        for n in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(n) == node.PositionDefined
    ]


def _differ(one: Hints, other: Hints) -> bool:
    if one.keys() != other.keys():
        return True
    for n, hints in one.items():
        if len(hints) != len(other[n]):
            return True
        if np.abs(np.array(sorted(hints), float) - np.array(sorted(other[n]), float)).max() > CLOSE:
            return True
    return False
