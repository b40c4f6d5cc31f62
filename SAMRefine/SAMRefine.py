# SPDX-License-Identifier: Apache-2.0
"""SAMRefine: correct organs with boxes that SAM redraws, in 3D Slicer.

Module, widget, logic and test, which Slicer finds by name. The panel is in SAMRefineLib/panel, the
work on the scene in SAMRefineLib/scene, and a worker process computes. PyTorch is never imported
here.
"""

from functools import partial
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from SAMRefineLib.panel.parameters import Parameters, rename_old_parameters
from SAMRefineLib.panel.widget import RefineWidget
from SAMRefineLib.sam.catalogue import shipped_sam_for
from SAMRefineLib.scene import logic as refine_logic
from SAMRefineLib.scene.requests import TASKS, MakeClient, worker_client
from SRCSMSegmenterLib.panel import packages
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.logic import segment
from SRCSMSegmenterLib.scene.samples import load_phantom


class SAMRefine(ScriptedLoadableModule):
    """The entry of the module in Slicer's list."""

    def __init__(self, parent: "qt.QObject") -> None:
        """Describe the module."""
        super().__init__(parent)
        parent.title = _("SAM Refine")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Markups", "SRCSMSegmenter"]
        parent.contributors = ["SRCSM contributors"]
        parent.helpText = _(
            "Corrects a segmentation with boxes: each organ gets one in every slice, you move "
            "those that are wrong, and SAM redraws the organ within them."
            "<p><b>Research use only. Not for diagnosis.</b></p>"
        )
        parent.acknowledgementText = _(
            "After Wang et al., <i>Leveraging SAM for Single-Source Domain Generalization in "
            "Medical Image Segmentation</i> "
            '(<a href="https://github.com/SARIHUST/SAMMed">SAMMed</a>). SAM is by A. Kirillov et '
            "al., <i>Segment Anything</i>, ICCV 2023."
        )
        register_tasks()


def register_tasks() -> None:
    """Let the worker refine, and SRCSM Segmenter offer it; anew after its library was reloaded."""
    worker_host.add_tasks(TASKS)
    requirements = Path(__file__).with_name("Resources") / "sam-requirements.txt"
    worker_host.offer_refinement(
        worker_host.RefinementOffer("segment_refined", shipped_sam_for, requirements)
    )


class SAMRefineLogic(ScriptedLoadableModuleLogic):
    """Refinement without widgets; see the README for a script to paste."""

    def __init__(self, makeClient: MakeClient = worker_client) -> None:
        """Offer the functions of `scene.logic`; sessions ask the client that `makeClient` makes."""
        super().__init__()
        self.boxes = partial(refine_logic.boxes, make_client=makeClient)
        self.openBoxes = partial(refine_logic.open_boxes, make_client=makeClient)

    savedBoxes = staticmethod(refine_logic.saved_boxes)
    refine = staticmethod(refine_logic.refine)

    def getParameterNode(self) -> Parameters:
        """Return the panel's state in this scene."""
        node = super().getParameterNode()
        rename_old_parameters(node)
        return Parameters(node)

    def stop(self) -> None:
        """End the worker; the next refinement starts it again."""
        worker_host.stop_worker()


class SAMRefineWidget(RefineWidget):
    """The panel, under the name that Slicer looks for."""

    logicClass = SAMRefineLogic


class SAMRefineTest(ScriptedLoadableModuleTest):
    """The test that "Reload and Test" and CTest run inside Slicer; others are in Testing."""

    def runTest(self) -> None:
        """Run the test; Slicer calls this."""
        self.setUp()
        self.test_boxes_of_the_phantom_are_refined()

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_boxes_of_the_phantom_are_refined(self) -> None:
        """Refine a segmentation of the sample data by the worker."""
        requirements = Path(__file__).with_name("Resources") / "sam-requirements.txt"
        if missing := packages.missing(requirements):
            self.skipTest(f"not installed: {', '.join(missing)}")
        volume, logic = load_phantom("MR"), SAMRefineLogic()
        session = logic.boxes(segment(volume, model="abdomen-ct"), volume)
        node = logic.refine(session)
        assert node is session.segmentationNode
        assert all(organ.report is not None for organ in session.organs if organ.frames.effective())
        session.close()
