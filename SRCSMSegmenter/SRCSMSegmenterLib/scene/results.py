# SPDX-License-Identifier: Apache-2.0
"""Results of the network as segmentations in Slicer's scene, with their tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..geometry import Geometry, Volume
from ..terminology import readable
from .changes import SceneChange
from .measures import (
    TABLE,
    Measure,
    as_table,
    measures,
    remove_tables_with_segmentations,
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
from .probabilities import probabilities, replace_probabilities


@dataclass(frozen=True)
class SegmentedOrgan:
    """An organ of a result.

    Attributes:
        label: its value in the label map.
        color: RGB, 0-255.
        terminology: the value of the segment tag TerminologyEntry.
        volume_ml: on the volume's own grid.
        least_certain: (slice k, uncertainty in mm), the least certain first; see
            `inference.Segmentation.least_certain`.
    """

    name: str
    label: int
    color: tuple[int, int, int]
    terminology: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A label map with what it shows and how it was made.

    Attributes:
        labels: uint8 (K, J, I).
        organs: those to be shown; other values of `labels` are background.
        probabilities: organ's name -> (K, J, I) on the grid of `labels`, for refinement.
        attributes: kept with the segmentation under "SRCSM.<key>".
    """

    labels: Volume
    organs: tuple[SegmentedOrgan, ...]
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


def place(
    result: Result,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    segmentation_node: slicer.vtkMRMLSegmentationNode | None = None,
) -> SceneChange:
    """Put a result into the scene, beside the volume it belongs to.

    Args:
        volume_node: that was segmented.
        segmentation_node: to be updated; None makes a new one. Organs that an earlier result put
            there are replaced; other segments are neither changed nor overwritten, overlaps stay.

    Returns:
        The change, which can be undone.

    Raises:
        VolumeError: the segmentation lies elsewhere than the volume, or holds only surfaces;
            nothing was changed.
    """
    if result.labels.array.dtype != np.uint8:
        raise TypeError(f"labels are uint8, not {result.labels.array.dtype}")
    if segmentation_node is not None:
        check_target(segmentation_node, volume_node, result.labels.geometry)
    layer = _layer(result.labels)
    change = SceneChange()
    try:
        _place_segmentation(change, result, layer, volume_node, segmentation_node)
        place_table(change, result.organs, volume_node)
        change.complete()
    except BaseException:
        change.undo()
        raise
    return change


def outside_scene(result: Result, name: str) -> slicer.vtkMRMLSegmentationNode:
    """Make a segmentation of a result that no scene holds, such as a frame of a sequence."""
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    layer, segmentation, change = _layer(result.labels), node.GetSegmentation(), SceneChange()
    segmentation.SetConversionParameter(GRID, _grid(result.labels.geometry))
    for organ in result.organs:
        _place_segment(change, segmentation, organ, layer)
    for key, value in result.attributes.items():
        node.SetAttribute(f"SRCSM.{key}", value)
    return node


def _layer(labels: Volume) -> slicer.vtkOrientedImageData:
    """Make one image of all organs, as Slicer shares one among segments that do not overlap."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(labels.geometry.size)
    image.GetPointData().SetScalars(numpy_to_vtk(labels.array.ravel(), deep=True))
    image.SetGeometryFromImageToWorldMatrix(_matrix(labels.geometry))
    return image


def _matrix(geometry: Geometry) -> vtk.vtkMatrix4x4:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(geometry.affine.ravel())
    return matrix


def _grid(geometry: Geometry) -> str:
    """Write a grid as the conversion parameter `GRID` has it."""
    extent = [end for size in geometry.size for end in (0, size - 1)]
    return slicer.vtkSegmentationConverter.SerializeImageGeometry(_matrix(geometry), extent)


def _place_segmentation(
    change: SceneChange,
    result: Result,
    layer: slicer.vtkOrientedImageData,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    node: slicer.vtkMRMLSegmentationNode | None,
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
        _grid(result.labels.geometry),
    )
    # When voxels change, Slicer forgets all surfaces.
    surfaces_shown = segmentation.ContainsRepresentation(SURFACE)
    change.add(lambda: surfaces_shown and segmentation.CreateRepresentation(SURFACE))
    for organ in result.organs:
        _place_segment(change, segmentation, organ, layer)
    if surfaces_shown:
        segmentation.CreateRepresentation(SURFACE)
    for name, value in result.attributes.items():
        change.set_attribute(node, f"SRCSM.{name}", value)
    _keep_probabilities(change, node, result)
    change.file_beside(node, volume_node)


def _place_segment(
    change: SceneChange,
    segmentation: slicer.vtkSegmentation,
    organ: SegmentedOrgan,
    layer: slicer.vtkOrientedImageData,
) -> None:
    id = organ_segments(segmentation).get(organ.name)
    if id is not None:
        before = _own_labelmap(segmentation.GetSegment(id))
        change.add(lambda: _replace_labelmap(segmentation, id, before, 1))
        _replace_labelmap(segmentation, id, layer, organ.label)
        return
    segment = slicer.vtkSegment()
    name = readable(organ.name)
    taken = segmentation.GetSegmentIdBySegmentName(name)
    segment.SetName(f"{name}{OWN_SUFFIX}" if taken else name)
    segment.SetColor(*(channel / 255 for channel in organ.color))
    segment.SetTag(segment.GetTerminologyEntryTagName(), organ.terminology)
    segment.SetTag(ORGAN_TAG, organ.name)
    segment.AddRepresentation(BINARY, layer)
    segment.SetLabelValue(organ.label)
    id = segmentation.GenerateUniqueSegmentID(organ.name)
    segmentation.AddSegment(segment, id)
    change.add(lambda: segmentation.GetSegment(id) and segmentation.RemoveSegment(id))


def _replace_labelmap(
    segmentation: slicer.vtkSegmentation,
    id: str,
    labelmap: slicer.vtkOrientedImageData,
    label: int,
) -> None:
    segment = segmentation.GetSegment(id)
    if segment is None:
        return  # the user removed it before undoing
    segmentation.ClearSegment(id)  # from a layer that others share, its voxels alone
    segment.RemoveAllRepresentations()
    segment.SetLabelValue(label)
    segment.AddRepresentation(BINARY, labelmap)


def _own_labelmap(segment: slicer.vtkSegment) -> slicer.vtkOrientedImageData:
    """Copy a segment's voxels to an image of 0 and 1 of its own, cropped to them."""
    from scipy.ndimage import find_objects  # when needed: Slicer loads this file at its start

    labelmap, matrix = segment.GetRepresentation(BINARY), vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    own = slicer.vtkOrientedImageData()
    own.SetGeometryFromImageToWorldMatrix(matrix)
    scalars = labelmap.GetPointData().GetScalars()
    if scalars is None:
        return own
    mask = vtk_to_numpy(scalars).reshape(labelmap.GetDimensions()[::-1]) == segment.GetLabelValue()
    inside = find_objects(mask.astype(np.uint8))
    if inside:
        box, first = inside[0], labelmap.GetExtent()[::2]
        ends = [(at.start + n, at.stop - 1 + n) for at, n in zip(box[::-1], first, strict=True)]
        own.SetExtent(*sum(ends, ()))
        own.GetPointData().SetScalars(numpy_to_vtk(mask[box].ravel().astype(np.uint8), deep=True))
    return own


def _keep_probabilities(
    change: SceneChange, node: slicer.vtkMRMLSegmentationNode, result: Result
) -> None:
    """Keep the result's probabilities, and those of organs that the result did not look for."""
    before, looked_for = probabilities(node), {organ.name for organ in result.organs}
    change.add(lambda: replace_probabilities(node, before))
    others = {name: array for name, array in before.items() if name not in looked_for}
    replace_probabilities(node, others | dict(result.probabilities))


def place_table(
    change: SceneChange,
    organs: tuple[SegmentedOrgan, ...],
    volume_node: slicer.vtkMRMLScalarVolumeNode,
) -> None:
    """Put the measures of organs into the table of the change's segmentation, made if need be."""
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
    # Rows of organs that this result did not look for stay.
    rows = {row.name: row for row in measures(node)}
    names = {organ: readable(organ.name) for organ in organs}
    rows |= {
        name: Measure(name, organ.volume_ml, organ.least_certain) for organ, name in names.items()
    }
    before = vtk.vtkTable()
    before.DeepCopy(table.GetTable())
    change.add(lambda: table.SetAndObserveTable(before))
    table.SetAndObserveTable(as_table(list(rows.values())))
