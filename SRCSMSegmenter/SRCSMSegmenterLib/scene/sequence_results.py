# SPDX-License-Identifier: Apache-2.0
"""Segmentations of a sequence's frames in Slicer's scene."""

from collections.abc import Sequence
from dataclasses import replace

import slicer

from .aside import Aside, directly
from .changes import SceneChange
from .chart import CHART, place_chart, show_chart
from .nodes import browser_of, sequence_of
from .result import Result
from .results import outside_scene, place_table


def place_sequence(
    results: Sequence[Result],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    aside: Aside = directly,
) -> SceneChange:
    """Put the results of all frames of a sequence into the scene, beside the volume.

    The segmentations become a sequence in the volume's browser, so that both are played together.
    Their volumes become a table, with a chart that is shown if there is a view of plots.

    Args:
        results: of each frame, in their order.
        volume_node: shows the sequence that was segmented.
        aside: called before each frame.

    Returns:
        The change, which can be undone; its segmentation shows the browser's frame.

    Raises:
        Cancelled: `aside` raised it; nothing was changed.
    """
    change = SceneChange()
    try:
        _place_segmentations(change, results, volume_node, aside)
        shown = results[browser_of(volume_node).GetSelectedItemNumber()]
        # Certainties are of one frame; the panel measures only volumes anew.
        organs = tuple(replace(organ, least_certain=()) for organ in shown.organs)
        place_table(change, organs, volume_node, shown.labels.geometry.slice_axis)
        place_chart(change, results, volume_node)
    except BaseException:
        change.undo()
        raise
    show_chart(change.segmentation.GetNodeReference(CHART))
    return change


def _place_segmentations(
    change: SceneChange,
    results: Sequence[Result],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    aside: Aside,
) -> None:
    browser, images = browser_of(volume_node), sequence_of(volume_node)
    name = f"{volume_node.GetName()} segmentation"
    sequence = change.add_node("vtkMRMLSequenceNode", name)
    sequence.SetIndexName(images.GetIndexName())
    sequence.SetIndexUnit(images.GetIndexUnit())
    sequence.SetIndexType(images.GetIndexType())
    for frame, result in enumerate(results):
        aside(lambda: None, frame / len(results))
        node = outside_scene(result, sequence.GetName())
        sequence.SetDataNodeAtValue(node, images.GetNthIndexValue(frame))
    browser.AddSynchronizedSequenceNode(sequence)
    browser.SetSaveChanges(sequence, True)  # or corrections would be lost with the next frame
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(sequence)
    change.segmentation = proxy

    def remove() -> None:
        scene, parts = proxy.GetScene(), [proxy, proxy.GetDisplayNode(), proxy.GetStorageNode()]
        browser.RemoveSynchronizedSequenceNode(sequence.GetID())
        for node in parts:
            if node is not None and node.GetScene() is not None:
                scene.RemoveNode(node)

    change.add(remove)
    proxy.CreateDefaultDisplayNodes()
    proxy.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    role = proxy.GetReferenceImageGeometryReferenceRole()
    proxy.SetNodeReferenceID(role, volume_node.GetID())
    change.file_beside(proxy, volume_node)
