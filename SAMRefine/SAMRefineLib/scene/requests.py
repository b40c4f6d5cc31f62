# SPDX-License-Identifier: Apache-2.0
"""Requests of a session about its volume, which is sent to the worker once for every SAM."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer

from SRCSMSegmenterLib.errors import BundleError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.models.catalogue import absolute
from SRCSMSegmenterLib.scene import nodes, worker_host
from SRCSMSegmenterLib.scene.input_warnings import dicom_modality

from ..boxes.boxes import SliceGrid
from ..boxes.patches import Patch
from ..refine.client import Callbacks, RefineClient, RefineRun, Request
from ..refine.organ_state import OrganState, Settings
from ..sam.catalogue import SamCard, default_for, find_sam, read_sam_card

if TYPE_CHECKING:
    from .session import RefineSession

TASKS = "SAMRefineLib.refine.tasks"
"""Module with the worker's tasks."""

MakeClient = Callable[[Volume, Mapping[str, Any]], RefineClient]
"""Makes a client for a volume and the parameters that open it."""


def worker_client(volume: Volume, opening: Mapping[str, Any]) -> RefineClient:
    """Make a client of the worker of this Slicer."""
    worker_host.add_tasks(TASKS)
    return RefineClient(worker_host.worker, volume, opening)


class Requests:
    """Requests about organs of one volume."""

    def __init__(
        self,
        volume_node: slicer.vtkMRMLScalarVolumeNode,
        grid: SliceGrid,
        make_client: MakeClient,
        scan: Volume | None = None,
    ) -> None:
        """Prepare; unless `scan` is given, the volume is read when the first request is sent."""
        self._volume, self._grid, self._make_client = volume_node, grid, make_client
        self._client: RefineClient | None = None
        self._scan = scan
        self._sam: SamCard | None = None

    def send(
        self,
        request: Request,
        settings: Settings,
        coarse: Callable[[OrganState], Callable[[], Patch] | None],
        callbacks: Callbacks,
        session: "RefineSession",
    ) -> RefineRun:
        """Send a request.

        Args:
            request: what to ask.
            settings: the settings of the session.
            coarse: called with an organ if the worker lacks its coarse mask (`client.Coarse`).
            callbacks: functions to call.
            session: the session that asks.
        """
        if self._client is None:
            scan = self._scan or nodes.read_volume(self._volume)
            self._client = self._make_client(scan, self._opening(settings))
        by_label = {organ.label: organ for organ in request.organs}
        return self._client.submit(
            request, lambda label: coarse(by_label[label]), callbacks, session
        )

    def forget(self) -> None:
        """Send the volume anew; runs under way are not current any more."""
        self._client = self._scan = self._sam = None

    def sam(self, settings: Settings) -> SamCard:
        """Return the card of the SAM that is asked: the chosen one, or that of the modality.

        A checkpoint file, and a SAM that only the worker's machine has, have a card that says
        nothing but the name; so has any if the volume has lost its voxels.
        """
        if self._sam is None:
            sam = settings.sam
            try:
                self.require_grid()
                sam = self._opening(settings)["sam"]
                self._sam = read_sam_card(find_sam(sam))
            except VolumeError:  # until it has them again
                return SamCard(Path(sam), "", Path(sam).stem, "", "")
            except BundleError:
                self._sam = SamCard(Path(sam), "", Path(sam).stem, "", "")
        return self._sam

    def is_current(self, run: RefineRun) -> bool:
        """Tell whether a run is about the present volume and SAM."""
        return run.client is self._client

    def require_grid(self) -> None:
        """Raise VolumeError if the volume has another grid than its boxes."""
        if not nodes.node_geometry(self._volume).matches(self._grid.geometry):
            raise VolumeError(
                f'The volume "{self._volume.GetName()}" has another grid than when its boxes '
                "were made; make new boxes."
            )

    def _opening(self, settings: Settings) -> dict[str, Any]:
        """Return the settings that open the volume, with modality and SAM filled in."""
        modality = settings.modality or dicom_modality(self._volume)
        if modality not in ("CT", "MR"):
            modality = guess_modality(slicer.util.arrayFromVolume(self._volume))
        sam = absolute(settings.sam) or default_for(modality)
        return opening(replace(settings, modality=modality, sam=sam))


def opening(settings: Settings) -> dict[str, Any]:
    """Return the settings that open a volume at the worker; others are sent with each request."""
    names = ("sam", "sam_kind", "modality", "mosaic", "device")
    return {name: getattr(settings, name) for name in names}
