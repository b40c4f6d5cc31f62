# SPDX-License-Identifier: Apache-2.0
"""Observers of VTK objects, and removal of nodes."""

from collections.abc import Callable

import slicer
import vtk


class Observers:
    """Observers that are removed together."""

    def __init__(self) -> None:
        """Observe nothing yet."""
        self._observed: list[tuple[vtk.vtkObject, int]] = []

    def __len__(self) -> int:
        """Count the observers."""
        return len(self._observed)

    def add(self, observed: vtk.vtkObject, event: int, call: Callable) -> None:
        """Call a function after an event of an object."""
        self._observed.append((observed, observed.AddObserver(event, call)))

    def remove(self, observed: vtk.vtkObject | None = None) -> None:
        """Remove the observers of an object, or all."""
        for each, tag in self._observed:
            if observed in (None, each):
                each.RemoveObserver(tag)
        self._observed = [pair for pair in self._observed if observed not in (None, pair[0])]


def remove_node(node: slicer.vtkMRMLDisplayableNode | None) -> None:
    """Remove a node and its display nodes from the scene, if they are still there."""
    displays = []
    if node is not None and hasattr(node, "GetNthDisplayNode"):
        displays = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    for each in (*displays, node):
        if each is not None and each.GetScene() is not None:
            each.GetScene().RemoveNode(each)
