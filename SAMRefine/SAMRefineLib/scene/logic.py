# SPDX-License-Identifier: Apache-2.0
"""Refinement of organs of the scene with SAM, from boxes that can be edited; without widgets.

    from SAMRefineLib.scene.logic import boxes, refine
    session = boxes(segmentationNode, volumeNode)     # ROIs appear; move them, or
    session.edit_box(session.active, 12, Box(40, 52, 96, 110))
    refine(session)                                   # the segments are redrawn

A session (`session`) is kept in the scene and can be opened again (`open_boxes`). All computing is
done by the worker that SRCSMSegmenter uses. Main thread only.
"""

from collections.abc import Callable, Sequence
from functools import partial

import slicer

from SRCSMSegmenterLib.errors import Cancelled, PromptError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.scene import nodes
from SRCSMSegmenterLib.scene.aside import Aside, directly

from ..boxes.boxes import AXES, Box3D, SliceGrid
from ..boxes.patches import Patch
from ..refine.client import RefineRun
from ..refine.organ_state import DEFAULT_SETTINGS, Settings
from ..refine.saved_state import SavedState, state_from_json
from .box_nodes import (
    BEFORE,
    BOXES,
    MADE,
    SEGMENTATION,
    VOLUME,
    is_outdated,
    remove_boxes,
    saved_boxes,
    when_made,
)
from .masks import add_segment, fits, patches_in, read_layers
from .observers import remove_node
from .requests import MakeClient, worker_client
from .segments import CoarseSegment, copied, new_segmentation, segment_ids
from .session import Progress, RefineSession, sessions


def boxes(
    segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
    volumeNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    organs: Sequence[str] | None = None,
    axis: str | int | None = None,
    box_confidence: float | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    make_client: MakeClient = worker_client,
    aside: Aside = directly,
) -> RefineSession:
    """Put boxes around the segments of a segmentation.

    If the segmentation comes from SRCSMSegmenter, boxes are drawn around voxels with high
    probabilities. If it lies on another grid than the volume's, or is made of surfaces, it is left
    unchanged: its segments are copied to a new one, which is refined. Boxes that were made for it
    before are replaced.

    Args:
        segmentationNode: the segmentation; None makes an empty one, for boxes to be drawn
            (`add_organ`).
        volumeNode: the scan; None takes the segmentation's own.
        organs: names or IDs of segments; None for all.
        axis: the axis that is sliced, "I", "J", "K" or 0, 1, 2; None for the one across which the
            volume was acquired.
        box_confidence: threshold of coarse probabilities (the paper's theta 1). None draws boxes
            around what the network is certain of; if it is too uncertain of an organ, SAM chooses
            its boxes before it refines it (`box_selection`).
        settings: how to refine.
        make_client: makes the client that asks the worker.
        aside: runs what takes long.

    Raises:
        VolumeError: no scalar volume.
        PromptError: the volume is sheared; no such axis, or segment.
        Cancelled: `aside` raised it; the scene is as it was.
    """
    if volumeNode is None and segmentationNode is not None:
        role = segmentationNode.GetReferenceImageGeometryReferenceRole()
        volumeNode = segmentationNode.GetNodeReference(role)
    geometry = nodes.node_geometry(volumeNode)
    grid = SliceGrid(geometry, _axis(axis, geometry))
    Box3D((0, 0, 0), geometry.size).oriented(geometry)  # raises if ROIs are impossible
    outdated = [
        node
        for node in saved_boxes()
        if segmentationNode is not None and node.GetNodeReference(SEGMENTATION) is segmentationNode
    ]
    voxels = slicer.util.arrayFromVolume(volumeNode)
    scan = Volume(aside(voxels.copy, 0.1), geometry)
    target, masks = _target(segmentationNode, volumeNode, organs, geometry, aside)
    states = []
    try:
        for label, (id, mask) in enumerate(masks.items(), start=1):
            segment = CoarseSegment.of(target, id, grid)
            organ = partial(segment.organ, mask, label, grid, box_confidence)
            states.append(aside(organ, 0.3 + 0.7 * label / len(masks)))
    except Cancelled:
        if target is not segmentationNode:
            remove_node(target)
        raise
    for node in outdated:
        _forget(node)
    before = new_segmentation(volumeNode, f"{target.GetName()} before refinement")
    before.SetDisplayVisibility(False)
    for organ in states:
        id = organ.segment
        add_segment(before, geometry, masks[id], id, organ.name, organ.color)
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLScriptedModuleNode", f"{target.GetName()} boxes"
    )
    node.SetAttribute(BOXES, "1")
    node.SetAttribute(MADE, when_made(target))
    for role, other in ((VOLUME, volumeNode), (SEGMENTATION, target), (BEFORE, before)):
        node.SetNodeReferenceID(role, other.GetID())
    saved = SavedState(tuple(states), grid, settings, len(states))
    return RefineSession(node, saved, make_client, scan)


def _target(
    segmentation_node: slicer.vtkMRMLSegmentationNode | None,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    organs: Sequence[str] | None,
    geometry: Geometry,
    aside: Aside,
) -> tuple[slicer.vtkMRMLSegmentationNode, dict[str, Patch]]:
    """Return the segmentation to be refined, and its masks by segment ID; see `boxes`."""
    if segmentation_node is None:
        return new_segmentation(volume_node, f"{volume_node.GetName()} refined"), {}
    ids = segment_ids(segmentation_node, organs)
    if not fits(segmentation_node, volume_node, geometry):
        return copied(segmentation_node, ids, volume_node, geometry, aside)
    layers = read_layers(segmentation_node, ids, geometry)
    return segmentation_node, aside(lambda: patches_in(layers), 0.3)


def open_boxes(
    node: slicer.vtkMRMLScriptedModuleNode, make_client: MakeClient = worker_client
) -> RefineSession:
    """Open boxes that the scene holds, such as those of a loaded scene.

    Args:
        node: the node that keeps the boxes (`saved_boxes`).
        make_client: makes the client that asks the worker.

    Raises:
        PromptError: the boxes cannot be read, their volume or segmentation is gone, or has another
            grid, or the segmentation was made anew.
    """
    if (session := sessions.get(node.GetID())) is not None:
        return session
    source = f'The node "{node.GetName()}"'
    saved = state_from_json(node.GetParameter(BOXES), source)
    volume, segmentation = node.GetNodeReference(VOLUME), node.GetNodeReference(SEGMENTATION)
    if volume is None or segmentation is None:
        raise PromptError(f"{source} has lost its volume or segmentation; make new boxes.")
    if is_outdated(node):
        raise PromptError(f"{source} is of a segmentation that was made anew; make new boxes.")
    geometry = nodes.node_geometry(volume)
    if not saved.grid.geometry.matches(geometry):
        if not saved.grid.geometry.mirrored().matches(geometry):
            raise PromptError(
                f'{source} belongs to another grid than "{volume.GetName()}" has; make new boxes.'
            )
        saved = saved.mirrored()
    if not fits(segmentation, volume, geometry):
        raise PromptError(
            f'The segmentation "{segmentation.GetName()}" does not lie on the grid of '
            f'"{volume.GetName()}" any more; make new boxes.'
        )
    return RefineSession(node, saved, make_client)


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
        session: the boxes.
        organs: names or labels; None for all that are enabled, except those with a coarse mask that
            the SAM was not trained on; it is told in `log` and in `RefineRun.messages` which.
        progress: called with stage, fraction and seconds left (`session.Progress`).
        log: called with lines for the user.
        done: called at the end with the run, whether it succeeded, failed or was cancelled.
        wait: wait for the end, while Slicer goes on drawing.

    Returns:
        The segmentation, or without `wait` the run.

    Raises:
        PromptError: no such organ, or nothing to refine.
        VolumeError: the volume was changed.
        WorkerError: with `wait`, why it failed; its `remedy` tells what to do.
    """
    if organs is not None:
        organs = [label for organ in organs for label in _labels_of(session, organ)]
    run = session.refine(organs, progress, log, done)
    return run.wait() if wait else run


def _labels_of(session: RefineSession, organ: str | int) -> list[int]:
    """Return the labels of the organs of a name, of which there may be several, or one label."""
    found = [each.label for each in session.organs if organ in (each.name, each.label)]
    if not found:
        names = ", ".join(dict.fromkeys(each.name for each in session.organs))
        raise PromptError(f"There are no boxes of {organ}; there are of {names}.")
    return found


def _axis(axis: str | int | None, geometry: Geometry) -> int:
    """Return the number of an axis; None stands for that of the slices."""
    if axis is None:
        return geometry.slice_axis
    if axis not in (*AXES, 0, 1, 2):
        raise PromptError(f'There is no axis {axis!r}; choose "I", "J" or "K".')
    return AXES.index(axis) if isinstance(axis, str) else axis


def _forget(node: slicer.vtkMRMLScriptedModuleNode) -> None:
    """Close boxes, and remove them with their ROIs and coarse masks."""
    if (session := sessions.get(node.GetID())) is not None:
        session.close()
    remove_boxes(node)
