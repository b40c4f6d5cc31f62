# SPDX-License-Identifier: Apache-2.0
"""What a session asks the worker about its volume, which goes there once for every SAM."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import slicer

from SRCSMSegmenterLib.errors import VolumeError
from SRCSMSegmenterLib.modality import guess_modality
from SRCSMSegmenterLib.scene import nodes, worker_host
from SRCSMSegmenterLib.scene.input_warnings import dicom_modality

from ..boxes.boxes import SliceGrid
from ..boxes.key_frames import KeyFrames
from ..refine.client import RefineClient, Request
from ..refine.organ_state import Organ, Settings

TASKS = "SAMRefineLib.refine.tasks"
"""Module with the worker's tasks."""


class Requests:
    """Asks about organs of one volume."""

    def __init__(self, volume_node: slicer.vtkMRMLScalarVolumeNode, grid: SliceGrid) -> None:
        self._volume, self._grid = volume_node, grid
        self._client: RefineClient | None = None

    def submit(
        self,
        task: str,
        organs: Sequence[Organ],
        settings: Settings,
        coarse: Callable[[Organ], np.ndarray | None],
        frames: Mapping[int, KeyFrames] | None = None,
        **more: Any,  # noqa: ANN401 - of `RefineClient.submit`
    ) -> Request:
        """Ask for "embed" or "refine".

        Args:
            coarse: the coarse mask of an organ, or None; asked where the worker lacks it.
            frames: other boxes for some of the organs, by label.
        """
        if self._client is None:
            worker_host.add_tasks(TASKS)
            volume = nodes.read_volume(self._volume)
            self._client = RefineClient(worker_host.worker(), volume, self._opening(settings))
        frames = frames or {}
        given = [organ.with_frames(frames.get(organ.value, organ.frames)) for organ in organs]
        by_value = {organ.value: organ for organ in organs}
        return self._client.submit(
            task,
            [organ.frames for organ in given],
            lambda value: coarse(by_value[value]),
            hints={organ.value: organ.usable_hints() for organ in given},
            choose=[
                organ.value
                for organ in organs
                if organ.awaits_choice and (task == "embed" or not frames)
            ],
            mask_prompt=[
                organ.value for organ in organs if organ.mask_prompt and settings.mask_prompt
            ],
            keep_unboxed=[organ.value for organ in organs if organ.keep_unboxed],
            mask_threshold=settings.mask_threshold,
            **more,
        )

    def forget(self) -> None:
        """The volume or the SAM is another now: what was asked is not current any more."""
        self._client = None

    def is_current(self, request: Request) -> bool:
        """It was asked of the volume and the SAM as they are."""
        return request.client is self._client

    def require_grid(self) -> None:
        """Raise VolumeError where the volume has another grid than its boxes."""
        if not nodes.node_geometry(self._volume).matches(self._grid.geometry):
            raise VolumeError(
                f'The volume "{self._volume.GetName()}" has another grid than when its boxes '
                "were made; make new boxes."
            )

    def _opening(self, settings: Settings) -> dict[str, Any]:
        """The same for every request: with names where the user left them open."""
        modality = settings.modality or dicom_modality(self._volume)
        if modality not in ("CT", "MR"):
            modality = guess_modality(np.array(self._volume.GetImageData().GetScalarRange()))
        sam = settings.sam or f"sam-small-{modality.lower()}"
        return opening(replace(settings, modality=modality, sam=sam))


def opening(settings: Settings) -> dict[str, Any]:
    """What opens a session of the worker; other settings go with every request."""
    names = ("sam", "sam_kind", "modality", "mosaic", "device")
    return {name: getattr(settings, name) for name in names}


def only(frames: KeyFrames, slices: Iterable[int]) -> KeyFrames:
    """The boxes of some slices alone, as they are; SAM is shown the same pictures of them."""
    boxes, slices = frames.effective(), frozenset(slices)
    off = frozenset(range(frames.grid.count)) - slices
    return replace(frames, edited={n: boxes[n] for n in slices}, off=off, limit=None)
