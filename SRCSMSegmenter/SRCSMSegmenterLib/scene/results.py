# SPDX-License-Identifier: Apache-2.0
"""Results of the network as segmentations in Slicer's scene, with their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import slicer
import vtk

from ..terminology import readable
from .aside import Aside, directly
from .changes import SceneChange
from .labelmaps import (
    Labelmap,
    grid_parameter,
    kept_labelmaps,
    layer,
    remove_segments,
    replace_labelmaps,
)
from .measures import (
    TABLE,
    Measure,
    as_table,
    measures,
    remove_tables_with_segmentations,
    slice_axis,
)
from .nodes import (
    BINARY,
    GRID,
    ORGAN_TAG,
    OWN_SUFFIX,
    SURFACE,
    check_target,
    organ_segments,
)
from .probabilities import Drawn, Known, known_of, replace_known
from .result import Result, SegmentedOrgan
from .surfaces import add_surfaces, make_surfaces, surfaces_of


def place(
    result: Result,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    segmentation_node: slicer.vtkMRMLSegmentationNode | None = None,
    aside: Aside = directly,
) -> SceneChange:
    """Put a result into the scene, beside the volume it belongs to.

    Args:
        volume_node: that was segmented.
        segmentation_node: to be updated; None makes a new one. Organs that an earlier result put
            there are replaced; other segments are neither changed nor overwritten, overlaps stay.
        aside: runs what takes long.

    Returns:
        The change, which can be undone.

    Raises:
        Cancelled: `aside` raised it; nothing was changed.
        VolumeError: the segmentation lies elsewhere than the volume, or holds only surfaces;
            nothing was changed.
    """
    if result.labels.array.dtype != np.uint8:
        raise TypeError(f"labels are uint8, not {result.labels.array.dtype}")
    if segmentation_node is not None:
        check_target(segmentation_node, volume_node, result.labels.geometry)
    image = layer(result.labels)
    change = SceneChange()
    try:
        _place_segmentation(change, result, image, volume_node, segmentation_node, aside)
        place_table(change, result.organs, volume_node, result.labels.geometry.slice_axis)
        change.complete()
    except BaseException:
        change.undo()
        raise
    return change


def outside_scene(result: Result, name: str) -> slicer.vtkMRMLSegmentationNode:
    """Make a segmentation of a result that no scene holds, such as a frame of a sequence."""
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    node.GetSegmentation().SetConversionParameter(GRID, grid_parameter(result.labels.geometry))
    _place_segments(SceneChange(), node, result.organs, layer(result.labels))
    for key, value in result.attributes.items():
        node.SetAttribute(f"SRCSM.{key}", value)
    return node


def _place_segmentation(
    change: SceneChange,
    result: Result,
    image: slicer.vtkOrientedImageData,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    node: slicer.vtkMRMLSegmentationNode | None,
    aside: Aside,
) -> None:
    if node is None:
        node = change.add_node("vtkMRMLSegmentationNode", f"{volume_node.GetName()} segmentation")
        node.CreateDefaultDisplayNodes()
    change.segmentation = node
    segmentation = node.GetSegmentation()

    if segmentation.GetNumberOfSegments() == 0:
        change.set(
            node.GetTransformNodeID,
            node.SetAndObserveTransformNodeID,
            volume_node.GetTransformNodeID(),
        )
    # Not SetReferenceImageGeometryParameterFromVolumeNode: of a frame of a sequence it would keep
    # an ID of the sequence's own scene.
    change.set_reference(node, node.GetReferenceImageGeometryReferenceRole(), volume_node.GetID())
    change.set(
        lambda: segmentation.GetConversionParameter(GRID),
        lambda value: segmentation.SetConversionParameter(GRID, value),
        grid_parameter(result.labels.geometry),
    )
    surfaces_shown = segmentation.ContainsRepresentation(SURFACE)
    _place_segments(change, node, result.organs, image, aside)
    if surfaces_shown:
        make_surfaces(node, aside)
    for name, value in result.attributes.items():
        change.set_attribute(node, f"SRCSM.{name}", value)
    _keep_probabilities(change, node, result)
    change.file_beside(node, volume_node)


def _place_segments(
    change: SceneChange,
    node: slicer.vtkMRMLSegmentationNode,
    organs: Sequence[SegmentedOrgan],
    image: slicer.vtkOrientedImageData,
    aside: Aside = directly,
) -> None:
    """Give organs that are there their new voxels, and add the others."""
    segmentation = node.GetSegmentation()
    there = organ_segments(segmentation)
    labelmaps = {there[each.name]: (image, each.label) for each in organs if each.name in there}
    before = kept_labelmaps(segmentation, labelmaps, aside)
    surfaces = {id: one for id, one in surfaces_of(segmentation).items() if id in before}
    change.add(lambda: _replace(node, before, surfaces))
    _replace(node, labelmaps, {}, aside)
    added: list[str] = []
    change.add(lambda: remove_segments(segmentation, added))
    for organ in organs:
        if organ.name not in there:
            added.append(_add_segment(segmentation, organ, image))


def _replace(
    node: slicer.vtkMRMLSegmentationNode,
    labelmaps: Mapping[str, Labelmap],
    surfaces: Mapping[str, vtk.vtkPolyData],
    aside: Aside = directly,
) -> None:
    """Give segments other voxels and surfaces; when voxels change, Slicer drops all surfaces."""
    segmentation = node.GetSegmentation()
    others = {id: one for id, one in surfaces_of(segmentation).items() if id not in labelmaps}
    try:
        replace_labelmaps(segmentation, labelmaps, aside)
    finally:
        add_surfaces(node, others | dict(surfaces))


def _add_segment(
    segmentation: slicer.vtkSegmentation, organ: SegmentedOrgan, image: slicer.vtkOrientedImageData
) -> str:
    """Add an organ's segment and return its ID."""
    segment = slicer.vtkSegment()
    name = readable(organ.name)
    taken = segmentation.GetSegmentIdBySegmentName(name)
    segment.SetName(f"{name}{OWN_SUFFIX}" if taken else name)
    segment.SetColor(*(channel / 255 for channel in organ.color))
    segment.SetTag(segment.GetTerminologyEntryTagName(), organ.terminology)
    segment.SetTag(ORGAN_TAG, organ.name)
    segment.AddRepresentation(BINARY, image)
    segment.SetLabelValue(organ.label)
    id = segmentation.GenerateUniqueSegmentID(organ.name)
    segmentation.AddSegment(segment, id)
    return id


def _keep_probabilities(
    change: SceneChange, node: slicer.vtkMRMLSegmentationNode, result: Result
) -> None:
    """Keep the result's probabilities, and those of organs that the result did not look for."""
    before, looked_for = known_of(node), {organ.name for organ in result.organs}
    change.add(lambda: replace_known(node, before))
    chances, drawn = (
        {name: value for name, value in each.items() if name not in looked_for}
        for each in (before.probabilities, before.drawn)
    )
    labels = result.labels.array
    drawn |= {organ.name: Drawn(labels, organ.label) for organ in result.organs}
    replace_known(node, Known(chances | dict(result.probabilities), drawn))


def place_table(
    change: SceneChange,
    organs: tuple[SegmentedOrgan, ...],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    axis: int,
) -> None:
    """Put the measures of organs into the table of the change's segmentation, made if need be.

    Args:
        axis: voxel axis along which the least certain slices count: 0, 1 or 2 for I, J or K.
    """
    node = change.segmentation
    table = node.GetNodeReference(TABLE)
    if table is None:
        table = change.add_node("vtkMRMLTableNode", f"{node.GetName()} measures")
        change.set_reference(node, TABLE, table.GetID())
        table.SetColumnUnitLabel("Volume (ml)", "ml")
        table.SetColumnUnitLabel("Uncertainty (mm)", "mm")
        remove_tables_with_segmentations(table.GetScene())
        change.file_beside(table, volume_node)
    change.table = table
    # Rows of organs that this result did not look for stay, but for slices counted otherwise.
    same = slice_axis(node) == axis
    rows = {row.name: row if same else replace(row, least_certain=()) for row in measures(node)}
    names = {organ: readable(organ.name) for organ in organs}
    rows |= {
        name: Measure(name, organ.volume_ml, organ.least_certain) for organ, name in names.items()
    }
    before = vtk.vtkTable()
    before.DeepCopy(table.GetTable())
    change.add(lambda: table.SetAndObserveTable(before))
    table.SetAndObserveTable(as_table(list(rows.values()), axis))
