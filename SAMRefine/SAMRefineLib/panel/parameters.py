# SPDX-License-Identifier: Apache-2.0
"""What the user chose in the panel, kept in the scene and saved with it."""

import enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLScriptedModuleNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Decimals, SingleStep, WithinRange, parameterNodeWrapper

from SRCSMSegmenterLib.panel.parameters import Device

from .sams import BY_MODALITY


class Axis(enum.Enum):
    """The values are those of `boxes.SliceGrid.axis`."""

    ACQUISITION = None
    I = 0  # noqa: E741 - its name
    J = 1
    K = 2

    def label(self) -> str:
        """As the panel writes it."""
        if self is Axis.ACQUISITION:
            return _("As acquired (across the coarsest axis)")
        return _("Across {axis}").format(axis=self.name)


class Neighbours(enum.Enum):
    """The values are those of `organ_state.Neighbours`."""

    KEEP = "keep"
    OVERWRITE = "overwrite"
    OVERLAP = "overlap"

    def label(self) -> str:
        """As the panel writes it."""
        return {
            "keep": _("Keep what they have"),
            "overwrite": _("Give way to the organ"),
            "overlap": _("Overlap with the organ"),
        }[self.value]


OLD_NAMES = {"threshold": "mask_threshold"}
"""Names of parameters in scenes that older versions saved -> their names now."""


def rename_old_parameters(node: vtkMRMLScriptedModuleNode) -> None:
    """Give parameters of a scene that an older version saved the names they have now."""
    for old, new in OLD_NAMES.items():
        if value := node.GetParameter(old):
            node.UnsetParameter(old)
            node.SetParameter(new, value)


@parameterNodeWrapper
class Parameters:
    """The panel's state.

    Attributes:
        segmentation: whose segments get boxes and are redrawn; None to draw boxes on nothing.
        sam: see `sams.sam_cards`.
        axis: across which slices are taken.
        mask_threshold: of SAM's probabilities (the paper's theta 2).
        live: redraw whenever a handle is let go.
        neighbours: what happens to segments that are not redrawn.
        organ: label of the one whose boxes have handles; 0 for none.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    sam: str = BY_MODALITY
    axis: Axis = Axis.ACQUISITION
    mask_threshold: Annotated[float, WithinRange(0.05, 0.95), Decimals(2), SingleStep(0.05)] = 0.5
    live: bool = False
    neighbours: Neighbours = Neighbours.KEEP
    device: Device = Device.AUTO
    organ: int = 0
