# SPDX-License-Identifier: Apache-2.0
"""Draw the panel of SRCSM Segmenter with a result for the phantom into a PNG; no screen is needed.

    python Testing/render_panel.py Resources/Screenshots/SRCSMSegmenter-panel.png

The widgets are the stand-ins of `qt_host`, so fonts and frames differ a little from Slicer's.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import qt_host
import slicer

SIZE = (460, 760)


def main(output: Path) -> None:
    """Press Segment, wait, and draw."""
    sys.modules["slicer.packaging"] = SimpleNamespace(
        load_requirements=lambda path: [], pip_check=lambda requirement: True
    )
    slicer.util.setSliceViewerLayers = lambda **layers: None
    slicer.util.startupEnvironment = lambda: dict(os.environ)
    with (
        tempfile.TemporaryDirectory() as folder,
        qt_host.slicer_with_qt(Path(folder) / "settings.ini", "SRCSMSegmenter") as window,
    ):
        from SRCSMSegmenterLib.slicer_samples import load_phantom

        load_phantom("MR")
        widget = window.self()
        widget.enter()
        widget.ui.segmentButton.click()
        while widget.run is not None:
            slicer.app.processEvents()
            time.sleep(0.02)
        window.resize(*SIZE)
        window.show()
        slicer.app.processEvents()
        window.grab().save(str(output))
        widget.cleanup()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
