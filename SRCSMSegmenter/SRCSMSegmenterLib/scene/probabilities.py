# SPDX-License-Identifier: Apache-2.0
"""Probabilities of a segmentation's organs, kept for as long as its node is in the scene.

The arrays are mapped from files that have no name any more (worker/protocol.py): they cost address
space, little memory, and leave nothing behind.
"""

from collections.abc import Mapping

import numpy as np
import slicer
import vtk

PROBABILITIES = "SRCSM.Probabilities"
"""Attribute of a segmentation: the key of its entry in the store."""


def probabilities(segmentation_node: slicer.vtkMRMLSegmentationNode) -> Mapping[str, np.ndarray]:
    """Return organ's name -> (K, J, I) probability on the grid of the volume that was segmented.

    Empty if they are gone, as after loading a scene: the segments themselves must do then.
    """
    return _STORE.get(segmentation_node.GetAttribute(PROBABILITIES))


def replace_probabilities(
    node: slicer.vtkMRMLSegmentationNode, entry: Mapping[str, np.ndarray]
) -> None:
    """Keep other probabilities for a segmentation, organ's name -> (K, J, I); none if empty."""
    _STORE.drop(node.GetAttribute(PROBABILITIES))
    node.SetAttribute(PROBABILITIES, _STORE.keep(node.GetScene(), entry) if entry else None)


class _Store:
    """Arrays by key, dropped when the node with that key leaves its scene."""

    def __init__(self) -> None:
        self._entries: dict[str, Mapping[str, np.ndarray]] = {}
        self._keys = 0
        self._watched: set[slicer.vtkMRMLScene] = set()

    def keep(self, scene: slicer.vtkMRMLScene, entry: Mapping[str, np.ndarray]) -> str:
        """Keep an entry; returns its key."""
        if scene not in self._watched:
            self._watched.add(scene)
            scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._forget)
        self._keys += 1
        # The address tells this session's keys from those of a scene that was loaded.
        key = f"{id(self):x}-{self._keys}"
        self._entries[key] = entry
        return key

    def get(self, key: str | None) -> Mapping[str, np.ndarray]:
        """Return the entry of a key; empty if there is none."""
        return self._entries.get(key, {})

    def drop(self, key: str | None) -> None:
        """Drop the entry of a key, if there is one."""
        self._entries.pop(key, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _forget(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        self.drop(node.GetAttribute(PROBABILITIES))


_STORE = _Store()
