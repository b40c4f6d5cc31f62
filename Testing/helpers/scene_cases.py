# SPDX-License-Identifier: Apache-2.0
"""Volumes, results and drawn segments in Slicer's scene, for tests."""

from dataclasses import replace

import numpy as np
import slicer
import vtk
from geometries import oblique_left_handed

from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.scene.nodes import BINARY
from SRCSMSegmenterLib.scene.nodes import GRID as GRID_PARAMETER
from SRCSMSegmenterLib.scene.probabilities import PROBABILITIES
from SRCSMSegmenterLib.scene.result import Result, SegmentedOrgan
from SRCSMSegmenterLib.terminology import segment_for, terminology_entry

GRID = oblique_left_handed((9, 7, 5))
TURN = np.array([[0.6, -0.8, 0, 12], [0.8, 0.6, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1.0]])


def add_volume(geometry=GRID, name="scan", array=None):
    if array is None:
        array = np.arange(np.prod(geometry.size), dtype=np.int16).reshape(geometry.shape)
    return slicer.util.addVolumeFromArray(array, geometry.affine, name)


def add_transform(node, matrix=TURN):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def organ(name, value, volume_ml=1.5, least_certain=((2, 3.25), (0, 1.5))):
    label = segment_for(name, value)
    return SegmentedOrgan(
        name, value, label.color, terminology_entry(label), volume_ml, least_certain
    )


def some_labels(geometry=GRID, seed=1, values=3):
    labels = np.random.default_rng(seed).integers(0, values, geometry.shape).astype(np.uint8)
    labels.flat[: values - 1] = range(1, values)  # none is absent, however small the grid
    return labels


def some_result(geometry=GRID, seed=1, **other):
    labels = some_labels(geometry, seed)
    chances = {"liver": (labels == 1).astype(np.float16), "right_kidney": labels / np.float16(2)}
    return replace(
        Result(
            Volume(labels, geometry),
            (organ("liver", 1), organ("right_kidney", 2, 0.25, ())),
            chances,
            {"Model": "abdomen-ct", "Date": "2026-11-21T04:00:00+00:00"},
        ),
        **other,
    )


def voxels(segmentation, id, volume):
    """(K, J, I) bool on the volume's grid, as Slicer finds them, transforms and all."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, id, volume) > 0


def labelmap_affine(segmentation, id):
    matrix = vtk.vtkMatrix4x4()
    labelmap = segmentation.GetSegmentation().GetSegment(id).GetRepresentation(BINARY)
    labelmap.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def draw(segmentation, name, mask, volume):
    """A segment of the user's own."""
    id = segmentation.GetSegmentation().AddEmptySegment(name, name, (0.1, 0.2, 0.3))
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), segmentation, id, volume
    )
    return id


def state():
    """All that a user could notice of the scene."""
    found = {}
    nodes = slicer.util.getNodesByClass("vtkMRMLNode")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for node in nodes:
        roles = [
            node.GetNthNodeReferenceRole(n) for n in range(node.GetNumberOfNodeReferenceRoles())
        ]
        item = hierarchy.GetItemByDataNode(node)
        found[node.GetID()] = {
            "name": node.GetName(),
            "attributes": {name: node.GetAttribute(name) for name in node.GetAttributeNames()},
            "references": {role: id for role in roles if (id := node.GetNodeReferenceID(role))},
            "filed": hierarchy.GetItemName(hierarchy.GetItemParent(item)) if item else None,
        }
        # A key of the temporary store stands for what is kept there.
        found[node.GetID()]["attributes"].pop(PROBABILITIES, None)
        if node.IsA("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            found[node.GetID()]["grid"] = segmentation.GetConversionParameter(GRID_PARAMETER)
            for id in segmentation.GetSegmentIDs():
                segment, tags = segmentation.GetSegment(id), vtk.reference("")
                segment.GetTag(segment.GetTerminologyEntryTagName(), tags)
                image = slicer.vtkOrientedImageData()
                node.GetBinaryLabelmapRepresentation(id, image)
                points = [
                    image.GetPoint(n)
                    for n in range(image.GetNumberOfPoints())
                    if image.GetPointData().GetScalars().GetValue(n)
                ]
                found[node.GetID()][id] = segment.GetName(), segment.GetColor(), str(tags), points
        if node.IsA("vtkMRMLTableNode"):
            table = node.GetTable()
            found[node.GetID()]["table"] = [
                [str(table.GetValue(row, column)) for column in range(table.GetNumberOfColumns())]
                for row in range(table.GetNumberOfRows())
            ]
    return found


def a_sequence(frames=3):
    """A volume node that shows frames 10, 11, ... and the browser; each frame is shifted."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for n in range(frames):
        affine = GRID.affine.copy()
        affine[2, 3] += n
        node = add_volume(Geometry(GRID.size, affine), f"frame {n}")
        slicer.util.arrayFromVolume(node)[:] = 10 + n
        sequence.SetDataNodeAtValue(node, str(n))
        slicer.mrmlScene.RemoveNode(node)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence), browser


def an_image(geometry=GRID, seed=0):
    """HU around a bright middle, with noise: all three labels are there."""
    k, j, i = np.indices(geometry.shape)
    away = sum(((x - (n - 1) / 2) / n) ** 2 for x, n in zip((k, j, i), geometry.shape, strict=True))
    noise = np.random.default_rng(seed).normal(0, 60, geometry.shape)
    image = np.where(away < 0.06, 170, np.where(away < 0.15, -20, -180)) + noise
    image[0, 0, 0] = -1000
    return image.astype(np.int16)


def a_scan(geometry=GRID, name="scan"):
    return add_volume(geometry, name, an_image(geometry))
