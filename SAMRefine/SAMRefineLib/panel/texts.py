# SPDX-License-Identifier: Apache-2.0
"""Texts of the panel that depend on the volume, the segmentation and the boxes."""

from collections.abc import Iterable

import slicer
from slicer.i18n import tr as _

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.panel import models
from SRCSMSegmenterLib.scene.nodes import node_geometry

from ..boxes.boxes import SliceGrid
from ..refine.familiarity import names_of
from ..refine.organ_state import OrganState
from ..scene.box_nodes import SEGMENTATION, is_outdated, saved_boxes
from ..scene.edit_history import State
from ..scene.masks import fits
from ..scene.session import RefineSession
from .parameters import Parameters

PLANES = ("sagittal", "coronal", "axial")
"""Names of slices across R, A and S."""


def lacking_volume(volume: "slicer.vtkMRMLScalarVolumeNode | None") -> list[str]:
    """Explain why boxes cannot be made on a volume; empty if they can."""
    if volume is None:
        return [_("Choose a volume.")]
    try:
        node_geometry(volume)
    except VolumeError as error:
        return [str(error)]
    return []


def segmentation_warnings(parameters: Parameters) -> list[str]:
    """Warn if the chosen segmentation is newer than its boxes, or has another grid."""
    volume, segmentation = parameters.inputVolume, parameters.segmentation
    if lacking_volume(volume) or segmentation is None:
        return []
    boxes = [n for n in saved_boxes() if n.GetNodeReference(SEGMENTATION) is segmentation]
    if any(map(is_outdated, boxes)):
        return [_("The segmentation was made anew. Make boxes replaces those of the one before.")]
    if fits(segmentation, volume, node_geometry(volume)):
        return []
    return [
        _(
            "The segmentation does not lie on the volume's grid. It stays as it is; its organs are "
            "copied to a new one, which is refined."
        )
    ]


def axis_text(parameters: Parameters) -> str:
    """Describe the slices of the chosen volume along the chosen axis; "" without a volume."""
    if lacking_volume(parameters.inputVolume):
        return ""
    geometry, axis = node_geometry(parameters.inputVolume), parameters.axis.value
    grid = SliceGrid(geometry, geometry.slice_axis if axis is None else axis)
    plane = PLANES[int(abs(geometry.direction[:, grid.axis]).argmax())]
    return _("{n} {plane} slices, {mm:.1f} mm apart").format(
        n=grid.count, plane=plane, mm=grid.thickness
    )


def organ_help(organs: Iterable[OrganState]) -> str:
    """Tell what to do first with boxes; "" once an organ was refined."""
    organs = list(organs)
    if not organs:
        return _("Add an organ, then move its box over it.")
    if all(organ.report is None for organ in organs):
        return _(
            "Scroll through the slices and drag what does not fit: a slice's own box in the "
            "slice views, the box around the whole organ in the other views."
        )
    return ""


def refine_texts(session: RefineSession) -> tuple[str, str]:
    """Tell what *Refine organ* and *Refine all* do, and which organs the SAM does not know."""
    one, all_organs = (
        _("Have SAM redraw the chosen organ."),
        _("Have SAM redraw all ticked organs."),
    )
    strangers = session.unfamiliar
    if session.active in [organ.label for organ in strangers]:
        one += "\n" + _("{sam} was not trained on it: check the result.").format(
            sam=session.sam.name
        )
    if left := session.left_alone:
        all_organs += "\n" + _("{sam} was not trained on these, which stay: {organs}.").format(
            sam=session.sam.name, organs=names_of(left)
        )
    return one, all_organs


def step_text(before: State, after: State) -> str:
    """Tell what a step of the history did, as a noun phrase."""
    if after.mask_thresholds:
        return _("mask threshold from {old:.2f} to {new:.2f}").format(
            old=after.mask_thresholds[0], new=after.mask_thresholds[1]
        )
    old = {organ.label: organ for organ in before.organs}
    labels = {organ.label for organ in after.organs}
    if added := [organ for organ in after.organs if organ.label not in old]:
        return _("addition of {organs}").format(organs=names_of(added))
    if removed := [organ for organ in before.organs if organ.label not in labels]:
        return _("removal of {organs}").format(organs=names_of(removed))
    # An edit that was redrawn at once is an edit.
    for attribute, text in {
        "frames": _("boxes of {organs}"),
        "points": _("points of {organs}"),
        "kept": _("column Keep of {organs}"),
        "report": _("refinement of {organs}"),
    }.items():
        if changed := [
            organ
            for organ in after.organs
            if getattr(organ, attribute) != getattr(old[organ.label], attribute)
        ]:
            return text.format(organs=names_of(changed))
    return _("refinement of {organs}").format(organs=names_of(after.organs))  # with an equal report


def missed_organ_names(organs: Iterable[OrganState]) -> list[str]:
    """List organs of the known networks that have no boxes yet."""
    known = models.model_cards().values()
    names = dict.fromkeys(organ.name for card in known for organ in card.organs)
    taken = {organ.name.replace(" ", "_") for organ in organs}
    return [name for name in names if name not in taken]
