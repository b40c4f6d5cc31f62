# SPDX-License-Identifier: Apache-2.0
"""Draw what Slicer shows of a result: three slice views and a 3-D view, into a PNG.

    python Testing/helpers/render_result.py Resources/Screenshots/SRCSMSegmenter-MR.png

Shown is the phantom, as in the Sample Data module. See slicer_views.py for what is needed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import slicer
from slicer_scene_fixture import start_scene
from slicer_views import COLORS, View, save

from SRCSMSegmenterLib.scene import logic, nodes, worker_host
from SRCSMSegmenterLib.scene.measures import measures
from SRCSMSegmenterLib.scene.samples import load_phantom

SIDE = 400
ACROSS_MM = 330.0
UP = (0, 0, 25)
"""mm from the right kidney's middle to where the planes meet: through as many organs as can be."""


def main() -> None:
    """Segment the phantom and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--modality", choices=("CT", "MR"), default="MR")
    parser.add_argument("--model", default="abdomen-ct")
    options = parser.parse_args()
    start_scene()
    try:
        volume = load_phantom(options.modality)
        segmentation = logic.segment(volume, model=options.model)
    finally:
        worker_host.stop_worker()
    save(four_views(volume, segmentation), options.output)


def four_views(
    volume: slicer.vtkMRMLScalarVolumeNode, segmentation: slicer.vtkMRMLSegmentationNode
) -> np.ndarray:
    """A volume with its segmentation, as in Slicer's Four-Up layout."""
    centre = nodes.node_geometry(volume).centre
    segments = segmentation.GetSegmentation()
    organs = nodes.organ_segments(segments)
    point = np.add(segmentation.GetSegmentCenterRAS(organs["right_kidney"]), UP)

    def sliced(name: str) -> np.ndarray:
        view = View(SIDE)
        view.show_slice(name, volume, point, centre, ACROSS_MM)
        view.write(name, 0.02, 0.02, COLORS[name])
        return view.picture()

    segmentation.CreateClosedSurfaceRepresentation()
    space = View(SIDE)
    space.show_3d()
    for row, measure in enumerate(measures(segmentation)):
        text = f"{measure.name}  {measure.volume_ml:.0f} ml"
        space.write(text, 0.6, 0.19 - 0.05 * row, (0.1, 0.1, 0.2))
    above = np.hstack([sliced("Axial"), space.picture()])
    return np.vstack([above, np.hstack([sliced("Coronal"), sliced("Sagittal")])])


if __name__ == "__main__":
    sys.exit(main())
