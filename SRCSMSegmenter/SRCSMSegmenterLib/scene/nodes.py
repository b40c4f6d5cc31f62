# SPDX-License-Identifier: Apache-2.0
"""Between Slicer's scene and the engine: volume nodes in, segmentations and tables out.

A volume is segmented on its own grid, IJK to RAS, without the transforms above it: those move it
about in the world, and the result, which observes the same transform, moves with it. Every change
to the scene is made together with its inverse, so that a result can be taken back, and one that
fails half-way leaves no trace.

Main thread only, as all of MRML.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import VolumeError
from ..geometry import Geometry, Volume

BINARY = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
SURFACE = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
GRID = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()

ORGAN_TAG = "SRCSM.Organ"
"""Segment tag: the organ that a result put here. Segments without it are the user's."""

PROBABILITIES = "SRCSM.Probabilities"
"""Attribute of a segmentation: the key of its entry in the temporary store."""

TABLE = "SRCSM.Table"
"""Role of a segmentation's reference to its table of measures."""

SLICES_LISTED = 5
"""Least certain slices of an organ that the table lists."""


@dataclass(frozen=True)
class Organ:
    """One organ of a result.

    Attributes:
        value: its label.
        color: RGB, 0-255.
        terminology: the value of the segment tag TerminologyEntry.
        volume_ml: on the volume's own grid.
        least_certain: (slice k, uncertainty in mm), the least certain first; see
            `inference.Segmentation.least_certain`.
    """

    name: str
    value: int
    color: tuple[int, int, int]
    terminology: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """What becomes a segmentation.

    Attributes:
        labels: uint8.
        organs: those to be shown; other values of `labels` are background.
        probabilities: organ's name -> (K, J, I), for refinement.
        attributes: kept with the segmentation under "SRCSM.<key>".
    """

    labels: Volume
    organs: tuple[Organ, ...]
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


class Change:
    """What was changed in the scene, and the way back.

    Attributes:
        segmentation, table: the nodes that hold the result.
    """

    def __init__(self) -> None:
        self.segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self.table: slicer.vtkMRMLTableNode | None = None
        self._inverses: list[Callable[[], None]] = []

    def add(self, inverse: Callable[[], None]) -> None:
        """Remember how to take back what was just done."""
        self._inverses.append(inverse)

    def undo(self) -> None:
        """Return to the state before. What was changed elsewhere since, such as another segment
        of the segmentation, stays; where the segmentation is gone, so is what was to be undone."""
        gone = self.segmentation is None or self.segmentation.GetScene() is None
        while self._inverses:
            inverse = self._inverses.pop()
            if not gone:
                inverse()


# --- volumes in


def read_volume(volume_node: slicer.vtkMRMLScalarVolumeNode, frame: int | None = None) -> Volume:
    """A copy of a node's voxels on the node's own grid, transforms above it left out.

    A copy, as another thread sends it to the worker while the user may edit or delete the node.

    Args:
        frame: of the sequence that the node shows; None for the one shown now.

    Raises:
        VolumeError: no scalar volume, without voxels, or no such frame.
    """
    node = frame_node(volume_node, frame)
    geometry = node_geometry(node)
    return Volume(slicer.util.arrayFromVolume(node).copy(), geometry)


def node_geometry(node: slicer.vtkMRMLScalarVolumeNode) -> Geometry:
    """The grid of a volume node, transforms above it left out.

    Raises:
        VolumeError: no scalar volume, or without voxels.
    """
    # Label maps and vector volumes are derived from scalar volumes, so IsA would let them through.
    if node is None or node.GetClassName() != "vtkMRMLScalarVolumeNode":
        found = "nothing" if node is None else f'"{node.GetName()}", a {node.GetNodeTagName()},'
        raise VolumeError(f"Only scalar volumes can be segmented; {found} was given.")
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise VolumeError(f'The volume "{node.GetName()}" has no voxels; load it again.')
    if image.GetNumberOfScalarComponents() != 1:
        raise VolumeError(f'The volume "{node.GetName()}" does not have one number a voxel.')
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    affine = slicer.util.arrayFromVTKMatrix(matrix)
    affine[:3, 3] += affine[:3, :3] @ image.GetExtent()[::2]  # 0, but for images that were cut out
    return Geometry(image.GetDimensions(), affine)


def frame_count(volume_node: slicer.vtkMRMLScalarVolumeNode) -> int:
    """Number of frames of the sequence that a volume shows; 0 where it shows none."""
    sequence = _sequence(volume_node)
    return sequence.GetNumberOfDataNodes() if sequence else 0


def frame_node(
    volume_node: slicer.vtkMRMLScalarVolumeNode, frame: int | None
) -> slicer.vtkMRMLScalarVolumeNode:
    """The node that holds a frame; it need not be the one that is shown, which stays.

    Raises:
        VolumeError: no such frame.
    """
    if frame is None:
        return volume_node
    count = frame_count(volume_node)
    if not 0 <= frame < count:
        raise VolumeError(
            f'There is no frame {frame} of "{volume_node.GetName()}": it shows a sequence of '
            f"{count}, counted from 0."
        )
    return _sequence(volume_node).GetNthDataNode(frame)


def _sequence(volume_node: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLSequenceNode | None:
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume_node)
    return browser.GetSequenceNode(volume_node) if browser else None


# --- results out


def place(
    result: Result,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    segmentation_node: slicer.vtkMRMLSegmentationNode | None = None,
) -> Change:
    """Put a result into the scene, beside the volume it belongs to.

    Args:
        segmentation_node: to be updated; None makes a new one. Organs that an earlier result put
            there are replaced; other segments are neither changed nor overwritten, overlaps stay.

    Raises:
        VolumeError: the segmentation lies elsewhere than the volume, or holds only surfaces;
            nothing was changed.
    """
    if result.labels.array.dtype != np.uint8:
        raise TypeError(f"labels are uint8, not {result.labels.array.dtype}")
    if segmentation_node is not None:
        check_target(segmentation_node, volume_node, result.labels.geometry)
    layer = _layer(result.labels)
    change = Change()
    try:
        _place_segmentation(change, result, layer, volume_node, segmentation_node)
        _place_table(change, result.organs, volume_node)
    except BaseException:
        change.undo()
        raise
    return change


def check_target(
    node: slicer.vtkMRMLSegmentationNode,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    geometry: Geometry,
) -> None:
    """See whether a result on this grid could be put into a segmentation.

    Raises:
        VolumeError: see `place`.
    """
    segmentation, name = node.GetSegmentation(), node.GetName()
    if segmentation.GetNumberOfSegments() == 0:
        return
    if segmentation.GetSourceRepresentationName() != BINARY:
        raise VolumeError(
            f'The segmentation "{name}" is made of surfaces, not of voxels; choose a new one.'
        )
    grid = reference_geometry(node)
    same_transform = node.GetTransformNodeID() == volume_node.GetTransformNodeID()
    # Slicer mirrors left-handed volumes when it reads them, but not segmentations.
    voxels = (geometry, geometry.mirrored())
    if not same_transform or (grid is not None and not any(map(grid.matches, voxels))):
        raise VolumeError(
            f'The segmentation "{name}" does not lie on the grid of "{volume_node.GetName()}"; '
            "choose a new one."
        )


def reference_geometry(node: slicer.vtkMRMLSegmentationNode) -> Geometry | None:
    """The grid that a segmentation is drawn on; None where none is set."""
    grid = node.GetSegmentation().GetConversionParameter(GRID)
    if not grid:
        return None
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(grid, image, False)
    image.GetImageToWorldMatrix(matrix)
    affine = slicer.util.arrayFromVTKMatrix(matrix)
    affine[:3, 3] += affine[:3, :3] @ image.GetExtent()[::2]
    return Geometry(image.GetDimensions(), affine)


def _layer(labels: Volume) -> slicer.vtkOrientedImageData:
    """One image of all organs, as Slicer shares one among segments that do not overlap."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(labels.geometry.size)
    image.GetPointData().SetScalars(numpy_to_vtk(labels.array.ravel(), deep=True))
    image.SetGeometryFromImageToWorldMatrix(_matrix(labels.geometry))
    return image


def _matrix(geometry: Geometry) -> vtk.vtkMatrix4x4:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(geometry.affine.ravel())
    return matrix


def _place_segmentation(
    change: Change,
    result: Result,
    layer: slicer.vtkOrientedImageData,
    volume_node: slicer.vtkMRMLScalarVolumeNode,
    node: slicer.vtkMRMLSegmentationNode | None,
) -> None:
    if node is None:
        node = _add_node(change, "vtkMRMLSegmentationNode", f"{volume_node.GetName()} segmentation")
        node.CreateDefaultDisplayNodes()
    change.segmentation = node
    segmentation = node.GetSegmentation()

    if segmentation.GetNumberOfSegments() == 0:
        _set(
            change,
            node.GetTransformNodeID,
            node.SetAndObserveTransformNodeID,
            volume_node.GetTransformNodeID(),
        )
    # Not SetReferenceImageGeometryParameterFromVolumeNode: of a frame of a sequence it would keep
    # an ID of the sequence's own scene.
    role = node.GetReferenceImageGeometryReferenceRole()
    _set(
        change,
        lambda: node.GetNodeReferenceID(role),
        lambda value: node.SetNodeReferenceID(role, value),
        volume_node.GetID(),
    )
    _set(
        change,
        lambda: segmentation.GetConversionParameter(GRID),
        lambda value: segmentation.SetConversionParameter(GRID, value),
        slicer.vtkSegmentationConverter.SerializeImageGeometry(
            _matrix(result.labels.geometry), layer.GetExtent()
        ),
    )
    # Where voxels change, Slicer forgets all surfaces.
    surfaces_shown = segmentation.ContainsRepresentation(SURFACE)
    change.add(lambda: surfaces_shown and segmentation.CreateRepresentation(SURFACE))
    for organ in result.organs:
        _place_segment(change, segmentation, organ, layer)
    if surfaces_shown:
        segmentation.CreateRepresentation(SURFACE)
    for name, value in result.attributes.items():
        _set_attribute(change, node, f"SRCSM.{name}", value)
    _keep_probabilities(change, node, result)
    _file_beside(change, node, volume_node)


def _place_segment(
    change: Change,
    segmentation: slicer.vtkSegmentation,
    organ: Organ,
    layer: slicer.vtkOrientedImageData,
) -> None:
    id = organ_segments(segmentation).get(organ.name)
    if id is not None:
        before = _own_labelmap(segmentation.GetSegment(id))
        change.add(lambda: _replace_labelmap(segmentation, id, before, 1))
        _replace_labelmap(segmentation, id, layer, organ.value)
        return
    segment = slicer.vtkSegment()
    name = organ.name.replace("_", " ")
    taken = segmentation.GetSegmentIdBySegmentName(name)
    segment.SetName(f"{name} (SRCSM)" if taken else name)
    segment.SetColor(*(channel / 255 for channel in organ.color))
    segment.SetTag(segment.GetTerminologyEntryTagName(), organ.terminology)
    segment.SetTag(ORGAN_TAG, organ.name)
    segment.AddRepresentation(BINARY, layer)
    segment.SetLabelValue(organ.value)
    id = segmentation.GenerateUniqueSegmentID(organ.name)
    segmentation.AddSegment(segment, id)
    change.add(lambda: segmentation.GetSegment(id) and segmentation.RemoveSegment(id))


def organ_segments(segmentation: slicer.vtkSegmentation) -> dict[str, str]:
    """Organ's name -> ID of the segment that holds it, of those that results put there."""
    found, value = {}, vtk.reference("")
    for id in segmentation.GetSegmentIDs():
        if segmentation.GetSegment(id).GetTag(ORGAN_TAG, value):
            found[str(value)] = id
    return found


def _replace_labelmap(
    segmentation: slicer.vtkSegmentation,
    id: str,
    labelmap: slicer.vtkOrientedImageData,
    value: int,
) -> None:
    segment = segmentation.GetSegment(id)
    if segment is None:
        return  # the user removed it before undoing
    segmentation.ClearSegment(id)  # from a layer that others share, its voxels alone
    segment.RemoveAllRepresentations()
    segment.SetLabelValue(value)
    segment.AddRepresentation(BINARY, labelmap)


def _own_labelmap(segment: slicer.vtkSegment) -> slicer.vtkOrientedImageData:
    """A segment's voxels as an image of 0 and 1 of its own, cut to where they are."""
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
    change: Change, node: slicer.vtkMRMLSegmentationNode, result: Result
) -> None:
    """In the temporary store; organs that this result did not look for keep theirs."""

    def put(entry: Mapping[str, np.ndarray]) -> None:
        _STORE.drop(node.GetAttribute(PROBABILITIES))
        node.SetAttribute(PROBABILITIES, _STORE.keep(node.GetScene(), entry) if entry else None)

    before, looked_for = probabilities(node), {organ.name for organ in result.organs}
    change.add(lambda: put(before))
    kept = {name: array for name, array in before.items() if name not in looked_for}
    put(kept | dict(result.probabilities))


def _place_table(
    change: Change, organs: tuple[Organ, ...], volume_node: slicer.vtkMRMLScalarVolumeNode
) -> None:
    node = change.segmentation
    table = node.GetNodeReference(TABLE)
    if table is None:
        table = _add_node(change, "vtkMRMLTableNode", f"{node.GetName()} measures")
        _set(
            change,
            lambda: node.GetNodeReferenceID(TABLE),
            lambda value: node.SetNodeReferenceID(TABLE, value),
            table.GetID(),
        )
        _file_beside(change, table, volume_node)
    change.table = table
    # Those of organs that this result did not look for stay.
    rows = {row.name: row for row in measures(node)}
    rows |= {
        organ.name: Measure(organ.name, organ.volume_ml, organ.least_certain) for organ in organs
    }
    before = vtk.vtkTable()
    before.DeepCopy(table.GetTable())
    change.add(lambda: table.SetAndObserveTable(before))
    table.SetAndObserveTable(_table(list(rows.values())))


# --- what a segmentation with a result holds


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures; see `Organ`. Slices are those listed, at most 5."""

    name: str
    volume_ml: float
    least_certain: tuple[tuple[int, float], ...]


_COLUMNS = ("Organ", "Volume (ml)", "Least certain slices (K)", "Uncertainty (mm)")


def measures(segmentation_node: slicer.vtkMRMLSegmentationNode) -> list[Measure]:
    """Volumes and least certain slices, from the segmentation's table; empty where it has none."""
    node = segmentation_node.GetNodeReference(TABLE)
    table = node.GetTable() if node else vtk.vtkTable()
    columns = [table.GetColumnByName(name) for name in _COLUMNS]
    if None in columns:
        return []
    found = []
    for row in range(table.GetNumberOfRows()):
        name, volume, slices, uncertainties = (column.GetValue(row) for column in columns)
        pairs = zip(map(int, slices.split()), map(float, uncertainties.split()), strict=True)
        found.append(Measure(name, float(volume), tuple(pairs)))
    return found


def _table(rows: list[Measure]) -> vtk.vtkTable:
    table, strings = vtk.vtkTable(), vtk.vtkStringArray
    columns = [strings(), vtk.vtkDoubleArray(), strings(), strings()]
    for name, column in zip(_COLUMNS, columns, strict=True):
        column.SetName(name)
        table.AddColumn(column)
    for row in rows:
        listed = row.least_certain[:SLICES_LISTED]
        slices, uncertainties = (str(k) for k, _ in listed), (f"{mm:.2f}" for _, mm in listed)
        values = row.name, round(row.volume_ml, 3), " ".join(slices), " ".join(uncertainties)
        for column, value in zip(columns, values, strict=True):
            column.InsertNextValue(value)
    return table


def probabilities(segmentation_node: slicer.vtkMRMLSegmentationNode) -> Mapping[str, np.ndarray]:
    """Organ's name -> (K, J, I) probability on the grid of the volume that was segmented.

    Empty where they are gone, as after loading a scene: the segments themselves must do then.
    """
    return _STORE.get(segmentation_node.GetAttribute(PROBABILITIES))


def jump_to_slice(volume_node: slicer.vtkMRMLScalarVolumeNode, k: int) -> None:
    """Centre the slice views on the middle of slice `k` of a volume, transforms included."""
    geometry = node_geometry(volume_node)
    i, j, _ = (np.array(geometry.size) - 1) / 2
    world = [0.0, 0.0, 0.0]
    volume_node.TransformPointToWorld(geometry.to_ras((i, j, k)), world)
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        volume_node.GetScene(), *world, slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )


class _Store:
    """Arrays that live as long as a scene's node, mapped from files that have no name any more
    (worker/protocol.py): they cost address space, little memory, and leave nothing behind."""

    def __init__(self) -> None:
        self._entries: dict[str, Mapping[str, np.ndarray]] = {}
        self._keys = 0
        self._watched: set[slicer.vtkMRMLScene] = set()

    def keep(self, scene: slicer.vtkMRMLScene, entry: Mapping[str, np.ndarray]) -> str:
        if scene not in self._watched:
            self._watched.add(scene)
            scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._forget)
        self._keys += 1
        # The address tells this session's keys from those of a scene that was loaded.
        key = f"{id(self):x}-{self._keys}"
        self._entries[key] = entry
        return key

    def get(self, key: str | None) -> Mapping[str, np.ndarray]:
        return self._entries.get(key, {})

    def drop(self, key: str | None) -> None:
        self._entries.pop(key, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _forget(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        self.drop(node.GetAttribute(PROBABILITIES))


_STORE = _Store()


# --- reversible changes


def _add_node(change: Change, class_name: str, name: str) -> slicer.vtkMRMLNode:
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass(class_name, scene.GenerateUniqueName(name))

    def remove() -> None:
        display = node.GetDisplayNode() if hasattr(node, "GetDisplayNode") else None
        for each in (node, display):
            if each is not None and each.GetScene() is not None:
                scene.RemoveNode(each)

    change.add(remove)
    return node


def _set(
    change: Change,
    get: Callable[[], str | None],
    put: Callable[[str | None], None],
    value: str | None,
) -> None:
    before = get()
    change.add(lambda: put(before))
    put(value)


def _set_attribute(change: Change, node: slicer.vtkMRMLNode, name: str, value: str) -> None:
    _set(
        change,
        lambda: node.GetAttribute(name),
        lambda value: node.SetAttribute(name, value),
        value,
    )


def _file_beside(
    change: Change, node: slicer.vtkMRMLNode, volume_node: slicer.vtkMRMLScalarVolumeNode
) -> None:
    """Into the folder of the subject hierarchy, usually a study, that holds the volume; a node
    that the user has filed already stays there."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    top = hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(top, node)
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    parent = hierarchy.GetItemParent(volume_item) if volume_item else top
    if hierarchy.GetItemParent(item) == top:
        hierarchy.SetItemParent(item, parent)
        change.add(lambda: hierarchy.SetItemParent(item, top))
