# SPDX-License-Identifier: Apache-2.0
"""Volumes of a segmentation's table that follow its segments while the panel is open."""

from collections.abc import Callable

import qt
import slicer
import vtk

from ..scene.measures import measures, remeasure

QUIET_MS = 300
"""Time after the last edit before volumes are measured."""

EVENTS = (
    slicer.vtkSegmentation.SourceRepresentationModified,
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
)


class Remeasuring:
    """Timer that measures one organ at a time, so that Slicer never stands still."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Prepare; `changed` is called when volumes in the table are others."""
        self._changed = changed
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._observed: list[tuple[vtk.vtkObject, int]] = []
        self._due: list[str] = []
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._measure)

    def follow(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Follow a segmentation; None follows none. What it missed meanwhile is made up for."""
        if node is self._node:
            return
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._node, self._observed = node, []
        self._timer.stop()
        if node is not None:
            segmentation = node.GetSegmentation()
            self._observed = [
                (segmentation, segmentation.AddObserver(event, self._edited)) for event in EVENTS
            ]
            self._edited()

    def _edited(self, caller: object = None, event: object = None) -> None:
        self._due = [row.name for row in measures(self._node)]
        self._timer.start(QUIET_MS)

    def _measure(self) -> None:
        if not self._due or self._node.GetScene() is None:
            self._timer.stop()
            return
        self._timer.start(0)  # the next one at once, but after what the user does
        if remeasure(self._node, self._due.pop(0)):
            self._changed()
