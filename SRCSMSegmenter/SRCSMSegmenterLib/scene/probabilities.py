# SPDX-License-Identifier: Apache-2.0
"""Probabilities of a segmentation's organs, kept for as long as its node is in the scene.

With them the organs are kept as they were drawn, so that later edits by hand are noticed.

The arrays are mapped from files that have no name any more (worker/protocol.py): they cost address
space, little memory, and leave nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk

PROBABILITIES = "SRCSM.Probabilities"
"""Attribute of a segmentation: the key of its entry in the store."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """An organ as the network's result drew it.

    Attributes:
        labels: label map, (K, J, I) on the grid of the probabilities.
        label: the organ's value in it.
    """

    labels: np.ndarray
    label: int


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a segmentation's organs, by the organ's name.

    Attributes:
        probabilities: (K, J, I) on the grid of the volume that was segmented.
        drawn: the organs as they were drawn first.
    """

    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    drawn: Mapping[str, Drawn] = field(default_factory=dict)


NOTHING_KNOWN = Known()


def known_of(segmentation_node: slicer.vtkMRMLSegmentationNode) -> Known:
    """Return what is known of a segmentation's organs.

    Nothing if it is gone, as after loading a scene: the segments themselves must do then.
    """
    return _STORE.get(segmentation_node.GetAttribute(PROBABILITIES))


def probabilities(segmentation_node: slicer.vtkMRMLSegmentationNode) -> Mapping[str, np.ndarray]:
    """Return organ's name -> (K, J, I) probability; see `known_of`."""
    return known_of(segmentation_node).probabilities


def replace_known(node: slicer.vtkMRMLSegmentationNode, known: Known) -> None:
    """Keep other things known of a segmentation; none if there are no probabilities."""
    _STORE.drop(node.GetAttribute(PROBABILITIES))
    key = _STORE.keep(node.GetScene(), known) if known.probabilities else None
    node.SetAttribute(PROBABILITIES, key)


class _Store:
    """Arrays by key, dropped when the node with that key leaves its scene."""

    def __init__(self) -> None:
        self._entries: dict[str, Known] = {}
        self._keys = 0
        self._watched: set[slicer.vtkMRMLScene] = set()

    def keep(self, scene: slicer.vtkMRMLScene, entry: Known) -> str:
        """Keep an entry; returns its key."""
        if scene not in self._watched:
            self._watched.add(scene)
            scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._forget)
        self._keys += 1
        # The address tells this session's keys from those of a scene that was loaded.
        key = f"{id(self):x}-{self._keys}"
        self._entries[key] = entry
        return key

    def get(self, key: str | None) -> Known:
        """Return the entry of a key; an empty one if there is none."""
        return self._entries.get(key, NOTHING_KNOWN)

    def drop(self, key: str | None) -> None:
        """Drop the entry of a key, if there is one."""
        self._entries.pop(key, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _forget(self, scene: object, event: str, node: slicer.vtkMRMLNode) -> None:
        self.drop(node.GetAttribute(PROBABILITIES))


_STORE = _Store()
