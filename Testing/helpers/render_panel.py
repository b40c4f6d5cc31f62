# SPDX-License-Identifier: Apache-2.0
"""Draw a module's panel with a result for the phantom into a PNG; no screen is needed.

    python Testing/helpers/render_panel.py SRCSMSegmenter \\
        Resources/Screenshots/SRCSMSegmenter-panel.png
    python Testing/helpers/render_panel.py SAMRefine Resources/Screenshots/SAMRefine-panel.png

The widgets are the stand-ins of `qt_host`, so fonts and frames differ a little from Slicer's.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import qt_host
import slicer

SIZE = 400, 768
"""Pixels that a panel has on a small screen."""


def main(module: str, output: Path) -> None:
    """Press the panel's buttons, wait, and draw."""
    sys.modules["slicer.packaging"] = SimpleNamespace(
        load_requirements=lambda path: [], pip_check=lambda requirement: True
    )
    slicer.util.setSliceViewerLayers = lambda **layers: None
    slicer.util.startupEnvironment = lambda: dict(os.environ)
    modules = sorted(("SRCSMSegmenter", "SAMRefine"), key=lambda name: name != module)
    with (
        tempfile.TemporaryDirectory() as folder,
        qt_host.slicer_with_qt(Path(folder) / "settings.ini", *modules) as window,
    ):
        from SRCSMSegmenterLib.scene.samples import load_phantom

        volume, widget = load_phantom("MR"), window.self()
        {"SRCSMSegmenter": segmented, "SAMRefine": refined}[module](widget, volume)
        window.panel.resize(*SIZE)
        window.panel.show()
        for _ in range(3):
            slicer.app.processEvents()
        window.panel.grab().save(str(output))
        widget.cleanup()


def segmented(widget: object, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    """A click on Segment."""
    widget.enter()
    widget.ui.segmentButton.click()
    wait_while(lambda: widget.run is not None)


def refined(widget: object, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Boxes, one of them changed after all were refined."""
    from SRCSMSegmenterLib.scene import logic

    segmentation = logic.segment(volume, model="abdomen-ct")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    widget.enter()
    widget.startFrom(segmentation, volume)
    widget.ui.refineAllButton.click()
    wait_while(lambda: widget.session.run is not None)
    spleen = next(organ.label for organ in widget.session.organs if organ.name == "spleen")
    widget.ui.organTable.selectRow(spleen - 1)
    widget.ui.nextUncertainButton.click()
    n = widget.session.slice
    box = widget.session.organ(spleen).frames.effective()[n]
    widget.session.edit_box(spleen, n, replace(box, x0=box.x0 - 3))
    wait_while(lambda: "ahead" in widget.ui.embeddingLabel.text)


def wait_while(condition: Callable[[], bool]) -> None:
    """Leave the event loop to Qt meanwhile, as Slicer does."""
    while condition():
        slicer.app.processEvents()
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
