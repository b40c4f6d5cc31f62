# SPDX-License-Identifier: Apache-2.0
"""Refining organs of the scene with SAM, from boxes that can be edited; without widgets.

    from SAMRefineLib.scene.logic import boxes, refine
    session = boxes(segmentationNode, volumeNode)     # ROIs appear; move them, or
    session.edit_box(session.active, 12, Box(40, 52, 96, 110))
    refine(session)                                   # the segments are redrawn

A session (`session`) is kept in the scene, and goes on from there (`open_boxes`). All
computing is done by the worker that SRCSMSegmenter uses. Main thread only.
"""

from collections.abc import Callable, Sequence

import slicer

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.scene import nodes as slicer_scene

from ..boxes.boxes import AXES, Box3D, SliceGrid
from ..refine.organ_state import DEFAULT_SETTINGS, Patch, Saved, Settings, organs_from_json
from .masks import add_segment, fits, read_masks
from .roi_views import BOUND, remove_node
from .segments import copied, new_segmentation, organ_of, segment_ids
from .session import (
    BEFORE,
    BOXES,
    SEGMENTATION,
    VOLUME,
    Progress,
    RefineRun,
    RefineSession,
    sessions,
)


def boxes(
    segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
    volumeNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    organs: Sequence[str] | None = None,
    axis: str | int | None = None,
    box_confidence: float | None = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> RefineSession:
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
        box_confidence: of coarse probabilities (the paper's theta 1). None: boxes around what the
            network is sure of; where it is too unsure, SAM chooses before it refines
            (`box_selection`).
        settings: how the session is to refine.

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
        target, masks = new_segmentation(volumeNode, f"{volumeNode.GetName()} refined"), {}
    else:
        ids = segment_ids(segmentationNode, organs)
        if fits(segmentationNode, volumeNode, geometry):
            target, masks = segmentationNode, read_masks(segmentationNode, ids, geometry)
        else:
            target, masks = copied(segmentationNode, ids, volumeNode, geometry)
    before = new_segmentation(volumeNode, f"{target.GetName()} before refinement")
    before.SetDisplayVisibility(False)
    found = []
    for value, (id, mask) in enumerate(masks.items(), start=1):
        organ = organ_of(target, id, mask, value, grid, box_confidence)
        add_segment(before, geometry, Patch.of(mask), id, organ.name, organ.color)
        found.append(organ)
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLScriptedModuleNode", f"{target.GetName()} boxes"
    )
    node.SetAttribute(BOXES, "1")
    for role, other in ((VOLUME, volumeNode), (SEGMENTATION, target), (BEFORE, before)):
        node.SetNodeReferenceID(role, other.GetID())
    saved = Saved(tuple(found), grid, settings, len(found))
    return RefineSession(node, saved)


def saved_boxes() -> list[slicer.vtkMRMLScriptedModuleNode]:
    """The nodes of the scene that keep boxes."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
    return [node for node in nodes if node.GetAttribute(BOXES)]


def open_boxes(node: slicer.vtkMRMLScriptedModuleNode) -> RefineSession:
    """Go on with boxes that the scene holds, such as one that was loaded.

    Raises:
        PromptError: they cannot be read, their volume or segmentation is gone, or is another.
    """
    if (session := sessions.get(node.GetID())) is not None:
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
        saved = saved.mirrored()
    if not fits(segmentation, volume, geometry):
        raise PromptError(
            f'The segmentation "{segmentation.GetName()}" does not lie on the grid of '
            f'"{volume.GetName()}" any more; make new boxes.'
        )
    return RefineSession(node, saved)


def refine(
    session: RefineSession,
    organs: Sequence[str | int] | None = None,
    progress: Progress = lambda stage, fraction, secondsLeft: None,
    log: Callable[[str], None] = lambda line: None,
    done: Callable[[RefineRun], None] = lambda run: None,
    wait: bool = True,
) -> slicer.vtkMRMLSegmentationNode | RefineRun:
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


def _axis(axis: str | int | None, geometry: slicer_scene.Geometry) -> int:
    if axis is None:
        return geometry.coarsest_axis
    if axis not in (*AXES, 0, 1, 2):
        raise PromptError(f'There is no axis {axis!r}; choose "I", "J" or "K".')
    return AXES.index(axis) if isinstance(axis, str) else axis


def _forget(node: slicer.vtkMRMLScriptedModuleNode) -> None:
    """Remove boxes and what belongs to them."""
    before = node.GetNodeReference(BEFORE)
    roles = [node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles())]
    bounds = [node.GetNodeReference(role) for role in roles if role.startswith(BOUND)]
    if (session := sessions.get(node.GetID())) is not None:
        session.close()
    for each in (*bounds, before, node):
        remove_node(each)
