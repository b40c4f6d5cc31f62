# SPDX-License-Identifier: Apache-2.0
"""Parameters of the panel, which are kept in the scene and saved with it."""

import enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLScriptedModuleNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from SRCSMSegmenterLib.panel.parameters import Device

from ..boxes.boxes import SliceGrid
from ..refine.organ_state import Settings
from .sams import BY_MODALITY

MASK_THRESHOLDS = 0.05, 0.95
"""Range of the slider of the mask threshold."""


class Axis(enum.Enum):
    """The axis that is sliced, with the values of `boxes.SliceGrid.axis`."""

    ACQUISITION = None
    I = 0  # noqa: E741 - its name
    J = 1
    K = 2

    def label(self) -> str:
        """Return the text in the panel."""
        if self is Axis.ACQUISITION:
            return _("As acquired")
        return _("Across {axis}").format(axis=self.name)


class NeighbourChoice(enum.Enum):
    """The rule for segments that are not refined: `organ_state.NeighbourRule`."""

    KEEP = "keep"
    OVERWRITE = "overwrite"
    OVERLAP = "overlap"

    def label(self) -> str:
        """Return the text in the panel."""
        return {
            "keep": _("Keep what they have"),
            "overwrite": _("Give way to the organ"),
            "overlap": _("Overlap with the organ"),
        }[self.value]


OLD_NAMES = {"threshold": "mask_threshold"}
"""Names of parameters in scenes of older versions -> their names now."""


def rename_old_parameters(node: vtkMRMLScriptedModuleNode) -> None:
    """Rename the parameters of a scene that an older version saved."""
    for old, new in OLD_NAMES.items():
        if text := node.GetParameter(old):
            node.UnsetParameter(old)
            node.SetParameter(new, text)


def shown_mask_threshold(settings: Settings) -> float:
    """Return the slider's position for a mask threshold, which a script may have set."""
    least, most = MASK_THRESHOLDS
    return round(min(max(settings.mask_threshold, least), most), 2)


@parameterNodeWrapper
class Parameters:
    """The panel's state.

    Attributes:
        inputVolume: the scan.
        segmentation: the segmentation to get boxes and to be redrawn; None to start without.
        sam: key of a SAM, see `sams.sam_cards`.
        axis: the axis that is sliced.
        mask_threshold: threshold of SAM's probabilities (the paper's theta 2).
        live: redraw when a handle is released.
        neighbours: rule for segments that are not redrawn.
        device: the device that computes.
        organ: label of the active organ; 0 for none.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    sam: str = BY_MODALITY
    axis: Axis = Axis.ACQUISITION
    mask_threshold: Annotated[float, WithinRange(*MASK_THRESHOLDS)] = 0.5
    live: bool = False
    neighbours: NeighbourChoice = NeighbourChoice.KEEP
    device: Device = Device.AUTO
    organ: int = 0


def is_axis_of(grid: SliceGrid, parameters: Parameters) -> bool:
    """Tell whether slices lie along the chosen axis."""
    axis = parameters.axis.value
    return grid.axis == (grid.geometry.slice_axis if axis is None else axis)
