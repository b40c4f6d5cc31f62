# SPDX-License-Identifier: Apache-2.0
"""Changes to the scene, each made together with its inverse.

So a result can be taken back, and one that fails half-way leaves no trace.
"""

from collections.abc import Callable

import slicer

from .nodes import BINARY


class SceneChange:
    """The changes that a result made to the scene.

    Attributes:
        segmentation, table: the nodes that hold the result.
    """

    def __init__(self) -> None:
        self.segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self.table: slicer.vtkMRMLTableNode | None = None
        self._inverses: list[Callable[[], None]] = []
        self._voxels: dict[str, int] = {}

    def complete(self) -> None:
        """Remember the segments as they are now, the change being made."""
        self._voxels = _modified(self.segmentation)

    @property
    def edited_since(self) -> bool:
        """Whether segments were changed, added or removed since; undoing may take that along."""
        gone = self.segmentation is None or self.segmentation.GetScene() is None
        return not gone and _modified(self.segmentation) != self._voxels

    def add(self, inverse: Callable[[], None]) -> None:
        """Remember how to take back what was just done."""
        self._inverses.append(inverse)

    def undo(self) -> None:
        """Return to the state before; do nothing if the segmentation was deleted.

        What was changed elsewhere since, such as another segment, stays.
        """
        gone = self.segmentation is None or self.segmentation.GetScene() is None
        while self._inverses:
            inverse = self._inverses.pop()
            if not gone:
                inverse()

    def add_node(self, class_name: str, name: str) -> slicer.vtkMRMLNode:
        """Add a node to the scene under a name that no other node has."""
        scene = slicer.mrmlScene
        node = scene.CreateNodeByClass(class_name)
        node.UnRegister(None)  # it was made with a reference that nobody holds
        node.SetName(scene.GenerateUniqueName(name))
        if class_name == "vtkMRMLSegmentationNode":
            # First: widgets that see the node come complain that it has no display node.
            display = scene.AddNewNodeByClass("vtkMRMLSegmentationDisplayNode")
            node.SetAndObserveDisplayNodeID(display.GetID())
        scene.AddNode(node)

        def remove() -> None:
            display = node.GetDisplayNode() if hasattr(node, "GetDisplayNode") else None
            for each in (node, display):
                if each is not None and each.GetScene() is not None:
                    scene.RemoveNode(each)

        self.add(remove)
        return node

    def set(
        self, get: Callable[[], str | None], put: Callable[[str | None], None], value: str | None
    ) -> None:
        """Call `put` with a value; undoing calls it with what `get` returns now."""
        before = get()
        self.add(lambda: put(before))
        put(value)

    def set_reference(self, node: slicer.vtkMRMLNode, role: str, id: str) -> None:
        """Refer from a node to the node of an ID."""
        self.set(
            lambda: node.GetNodeReferenceID(role),
            lambda value: node.SetNodeReferenceID(role, value),
            id,
        )

    def set_attribute(self, node: slicer.vtkMRMLNode, name: str, value: str) -> None:
        """Set an attribute of a node."""
        self.set(
            lambda: node.GetAttribute(name),
            lambda value: node.SetAttribute(name, value),
            value,
        )

    def file_beside(
        self, node: slicer.vtkMRMLNode, volume_node: slicer.vtkMRMLScalarVolumeNode
    ) -> None:
        """Move a node into the subject hierarchy's folder, usually a study, that holds a volume.

        A node that the user has filed already stays where it is.
        """
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
        top = hierarchy.GetSceneItemID()
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(top, node)
        volume_item = hierarchy.GetItemByDataNode(volume_node)
        parent = hierarchy.GetItemParent(volume_item) if volume_item else top
        if hierarchy.GetItemParent(item) == top:
            hierarchy.SetItemParent(item, parent)
            self.add(lambda: hierarchy.SetItemParent(item, top))


def _modified(node: slicer.vtkMRMLSegmentationNode) -> dict[str, int]:
    """Return when the voxels of each segment were changed last, by its ID."""
    segmentation = node.GetSegmentation()
    labelmaps = {
        id: segmentation.GetSegment(id).GetRepresentation(BINARY)
        for id in segmentation.GetSegmentIDs()
    }
    return {id: image.GetMTime() if image else 0 for id, image in labelmaps.items()}
