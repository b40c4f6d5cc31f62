# SPDX-License-Identifier: Apache-2.0
"""Boxes in the scene that belong to the volume, segmentation and axis chosen in the panel."""

from collections.abc import Callable

import slicer

from SRCSMSegmenterLib.errors import SRCSMError

from ..refine.saved_state import state_from_json
from ..scene.box_nodes import BOXES, SEGMENTATION, VOLUME, has_another_grid, is_outdated
from ..scene.session import RefineSession
from .parameters import Parameters, is_axis_of


def is_of_choice(session: RefineSession, parameters: Parameters) -> bool:
    """Tell whether a session is that of the chosen nodes and axis, on the volume's grid."""
    nodes = session.volumeNode, session.segmentationNode
    chosen = parameters.inputVolume, parameters.segmentation
    current = not session.closed and not is_outdated(session.node)
    same = nodes == chosen and is_axis_of(session.grid, parameters)
    return current and same and not has_another_grid(session.volumeNode, session.grid)


def open_chosen(
    saved: list["slicer.vtkMRMLScriptedModuleNode"],
    parameters: Parameters,
    open_boxes: Callable[["slicer.vtkMRMLScriptedModuleNode"], RefineSession],
    failed: Callable[[str], None],
) -> RefineSession | None:
    """Open the boxes of the chosen nodes and axis; None if the scene has none.

    Args:
        saved: the nodes of the scene's boxes.
        parameters: what is chosen.
        open_boxes: opens the boxes of a node.
        failed: called with the reason if boxes cannot be opened.
    """
    chosen = parameters.inputVolume, parameters.segmentation
    for node in saved:
        nodes = node.GetNodeReference(VOLUME), node.GetNodeReference(SEGMENTATION)
        if None in nodes or nodes != chosen or is_outdated(node):
            continue
        try:
            state = state_from_json(node.GetParameter(BOXES), f'"{node.GetName()}"')
            if is_axis_of(state.grid, parameters):
                return open_boxes(node)
        except SRCSMError as error:
            failed(str(error))
    return None
