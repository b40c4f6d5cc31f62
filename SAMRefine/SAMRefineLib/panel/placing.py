# SPDX-License-Identifier: Apache-2.0
"""Buttons that place points with Slicer's own mouse mode, and follow it."""

from collections.abc import Callable, Mapping

import qt
import slicer

from SRCSMSegmenterLib.panel.common import quiet

from ..scene.observers import Observers
from ..scene.point_views import PointViews


class PointPlacing:
    """The two buttons, each pressed for as long as a click into a view places its points.

    Attributes:
        observers: what is observed: the mouse mode, since a button was first pressed.
    """

    def __init__(
        self,
        buttons: Mapping[bool, "qt.QPushButton"],
        points: Callable[[], PointViews | None],
    ) -> None:
        """Prepare.

        Args:
            buttons: for points in the organ (True) and outside (False).
            points: returns the lists of points that are shown, or None.
        """
        self._buttons, self._points = buttons, points
        self.observers = Observers()

    def toggle(self, positive: bool) -> None:
        """Let the next click into a view place a point, or stop if the button was pressed."""
        if self.placed() is positive:
            self.stop()
        else:
            markups = slicer.modules.markups.logic()
            markups.SetActiveList(self._points().node(positive))
            markups.StartPlaceMode(False)
            self._observe()
        self.show()

    def stop(self) -> None:
        """End the mouse mode if it places points of ours."""
        if self.placed() is not None:
            _, interaction = _mouse_nodes()
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.show()

    def placed(self) -> bool | None:
        """Tell whether the next click places a point in the organ or one outside; None: neither."""
        selection, interaction = _mouse_nodes()
        points = self._points()
        if points is None or selection is None or interaction is None:
            return None
        if interaction.GetCurrentInteractionMode() != interaction.Place:
            return None
        return points.kind(slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID() or ""))

    def show(self) -> None:
        """Press the button whose points are being placed, and release the other."""
        placed = self.placed()
        for positive, button in self._buttons.items():
            with quiet(button):
                button.checked = placed is positive

    def close(self) -> None:
        """Stop, and stop observing."""
        self.stop()
        self.observers.remove()

    def _observe(self) -> None:
        self.observers.remove()
        selection, interaction = _mouse_nodes()
        for node, event in (
            (selection, selection.ActivePlaceNodeIDChangedEvent),
            (interaction, interaction.InteractionModeChangedEvent),
        ):
            self.observers.add(node, event, lambda *_: self.show())


def _mouse_nodes() -> tuple:
    """Return the nodes that say what a click into a view does; None for one that is missing."""
    classes = "vtkMRMLSelectionNode", "vtkMRMLInteractionNode"
    return tuple(slicer.mrmlScene.GetFirstNodeByClass(each) for each in classes)
