# SPDX-License-Identifier: Apache-2.0
"""Draw the path from a coarse organ over its boxes to the refined one, with Slicer's own nodes.

    python Testing/helpers/render_refine.py Resources/Screenshots/SAMRefine-path.png

Shown is the spleen of the phantom's MR, as in the Sample Data module, which the shipped network,
trained on CT, finds badly. What a user would do with the mouse is done here: in five slices the
spleen's box is dragged to where the spleen is to be seen.
"""

import sys
from pathlib import Path

import numpy as np
import slicer
from slicer_scene_fixture import start_scene
from slicer_views import View, save

from SAMRefineLib.boxes.boxes import Box
from SAMRefineLib.boxes.key_frames import KeyFrames
from SAMRefineLib.scene.logic import boxes, refine
from SAMRefineLib.scene.roi_views import show_block
from SAMRefineLib.scene.session import RefineSession
from SAMRefineLib.scene.slice_views import ijk_to_world
from SRCSMSegmenterLib.phantom.scans import make_case
from SRCSMSegmenterLib.scene import logic, nodes, worker_host
from SRCSMSegmenterLib.scene.samples import PATIENT, load_phantom

ORGAN, LABEL = "spleen", 4
SIDE = 330
ACROSS_MM = 150.0
KEYS = (0, 1 / 6, 1 / 2, 5 / 6, 1)
"""Slices whose boxes are corrected, as shares of the organ's slices."""


def main(output: Path) -> None:
    """Segment, correct, refine, and draw each step."""
    start_scene()
    try:
        pictures = steps()
    finally:
        worker_host.stop_worker()
    save(np.hstack(pictures), output)


def steps() -> list[np.ndarray]:
    """A column of views for each step."""
    volume = load_phantom("MR")
    image, labels = make_case(PATIENT, "MR")
    truth = labels.array == LABEL
    truth = truth[::-1] if image.geometry.left_handed else truth
    segmentation = logic.segment(volume, model="abdomen-ct")
    id = nodes.organ_segments(segmentation.GetSegmentation())[ORGAN]
    session = boxes(segmentation, volume, [id])
    grid = session.grid
    seen = KeyFrames.from_coarse(ORGAN, 1, truth, grid).effective()
    slices = sorted(seen)
    corrected = [slices[round(share * (len(slices) - 1))] for share in KEYS]
    shown = corrected[2]

    session.set_shown(1, False)
    segmentation.CreateClosedSurfaceRepresentation()
    display = segmentation.GetDisplayNode()
    display.SetSliceIntersectionThickness(5)
    display.SetOpacity2DFill(0.35)
    volume.GetDisplayNode().SetWindowLevelMinMax(
        *np.percentile(slicer.util.arrayFromVolume(volume), (1, 99.8))
    )
    in_slice, in_space = View(SIDE), View(SIDE)
    middle = ijk_to_world(_middle(session, seen[shown], shown), volume, grid.geometry)[0]
    in_slice.show_slice("Axial", volume, middle, middle, ACROSS_MM, along_volume=True)
    in_space.show_3d(zoom=1.2, turned=150)
    caption, dice = (in_slice.write(" ", 0.03, y, (1.0, 1.0, 1.0), size=16) for y in (0.93, 0.03))
    for text in (caption, dice):
        text.GetTextProperty().SetBackgroundColor(0, 0, 0)
        text.GetTextProperty().SetBackgroundOpacity(0.5)

    def picture(title: str) -> np.ndarray:
        caption.SetInput(title)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, id, volume) > 0
        overlap = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        dice.SetInput(f"Dice with the truth {overlap:.2f}")
        print(title, f"{overlap:.3f}")
        return np.vstack([in_slice.picture(), in_space.picture()])

    pictures = [picture("1  Coarse")]
    session.set_shown(1, True)
    for n in corrected:
        session.jump(n)
        if n not in session.organ(1).frames.effective():
            session.add_slice_box(1)
        box = session.slice_box(1)
        show_block(box, grid.block(seen[n], n), volume, grid.geometry)
        box.InvokeCustomModifiedEvent(box.PointEndInteractionEvent)
    session.jump(shown)
    pictures.append(picture("2  Boxes corrected"))
    refine(session)
    session.set_shown(1, False)
    pictures.append(picture("3  Refined by SAM"))
    return pictures


def _middle(session: RefineSession, box: Box, n: int) -> np.ndarray:
    block = session.grid.block(box, n)
    return (np.array([block.lower]) + block.upper) / 2 - 0.5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
