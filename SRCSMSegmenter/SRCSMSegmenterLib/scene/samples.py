# SPDX-License-Identifier: Apache-2.0
"""Phantom pair, CT and MR of one patient who does not exist, for Slicer's Sample Data module.

The worker computes them in some seconds, while Slicer goes on; nothing is downloaded.
"""

import numpy as np
import slicer

from ..errors import Cancelled
from ..geometry import Geometry, Volume
from .aside import Waiting, unshown
from .worker_host import wait_for, worker

PATIENT = 103
"""The phantom's seed: a patient whom no network was trained on, chosen to be an easy one."""

MODALITIES = ("CT", "MR")


def load_phantom(modality: str, waiting: Waiting = unshown) -> slicer.vtkMRMLScalarVolumeNode:
    """Add the phantom's scan to the scene, and show it.

    Args:
        modality: "CT" or "MR".
        waiting: shows that it takes some seconds.

    Raises:
        Cancelled: the user does not want it any more; the scene is as it was.
        WorkerError: the worker could not be started.
    """
    job = worker().submit("phantom", {"patient": PATIENT, "modality": modality})
    with waiting("Making the phantom on this computer") as aside:
        wait_for(job, aside)
    reply = job.wait()
    image = Volume(reply.arrays["image"], Geometry.from_json(reply.values))
    if image.geometry.left_handed:  # Slicer reads no file as left-handed either
        image = Volume(image.array[::-1], image.geometry.mirrored())
    name = slicer.mrmlScene.GenerateUniqueName(f"Phantom {modality}")
    node = slicer.util.addVolumeFromArray(image.array, image.geometry.affine, name)
    # The usual window of the abdomen; MR has a scale of its own, and some very bright fluid.
    low, high = (-160, 240) if modality == "CT" else np.percentile(image.array, (1, 98))
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(low, high)
    if hasattr(slicer, "app"):
        slicer.util.setSliceViewerLayers(background=node, fit=True, rotateToVolumePlane=True)
    return node


def register_sample_data(waiting: Waiting = unshown) -> None:
    """Offer the pair in the Sample Data module; to be called when Slicer has started.

    Args:
        waiting: see `load_phantom`.
    """
    from SampleData import SampleDataLogic

    def load(modality: str) -> list[slicer.vtkMRMLScalarVolumeNode]:
        try:
            return [load_phantom(modality, waiting)]
        except Cancelled:
            return []

    for modality in MODALITIES:
        SampleDataLogic.registerCustomSampleDataSource(
            category="SRCSM",
            sampleName=f"SRCSMPhantom{modality}",
            uris=[],
            fileNames=[],
            nodeNames=[],
            customDownloader=lambda source, modality=modality: load(modality),
        )
