# SPDX-License-Identifier: Apache-2.0
"""SRCSMSegmenter: find organs in a scan of any modality, in 3D Slicer.

The classes that Slicer looks for by name. The panel is in SRCSMSegmenterLib/panel/widget.py, the
work on the scene in SRCSMSegmenterLib/scene/logic.py; a worker process computes. PyTorch is never
imported here.
"""

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from SRCSMSegmenterLib.panel import packages
from SRCSMSegmenterLib.panel.parameters import Parameters
from SRCSMSegmenterLib.panel.waiting import waiting
from SRCSMSegmenterLib.panel.widget import SegmenterWidget
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.folder import segment_folder
from SRCSMSegmenterLib.scene.logic import segment
from SRCSMSegmenterLib.scene.measures import measures
from SRCSMSegmenterLib.scene.samples import load_phantom, register_sample_data
from SRCSMSegmenterLib.scene.sequence import segment_sequence
from SRCSMSegmenterLib.scene.training_set import add_to_training_set


class SRCSMSegmenter(ScriptedLoadableModule):
    """Entry of the module in Slicer's list."""

    def __init__(self, parent: "qt.QObject") -> None:
        super().__init__(parent)
        parent.title = _("SRCSM Segmenter")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Sequences", "Plots"]
        parent.contributors = ["SRCSM contributors"]
        parent.helpText = _(
            "Finds organs in a CT or MR volume with a network that was trained on one modality "
            "and works on others. Choose a volume and a model, and press Segment."
            "<p><b>Research use only. Not for diagnosis.</b></p>"
        )
        parent.acknowledgementText = _(
            "The method is by F. Thaler et al., <i>Semantic-Aware Random Convolution and Source "
            "Matching for Domain Generalization in Medical Image Segmentation</i>, IEEE Access, "
            '2026, <a href="https://arxiv.org/abs/2512.01510">arXiv 2512.01510</a>.'
        )
        slicer.app.connect("startupCompleted()", lambda: register_sample_data(waiting))


class SRCSMSegmenterLogic(ScriptedLoadableModuleLogic):
    """Segmentation without widgets; see the README for a script to paste."""

    def getParameterNode(self) -> Parameters:
        """Return the panel's state in this scene."""
        return Parameters(super().getParameterNode())

    segment = staticmethod(segment)
    segmentSequence = staticmethod(segment_sequence)
    segmentFolder = staticmethod(segment_folder)
    addToTrainingSet = staticmethod(add_to_training_set)
    useWorker = staticmethod(worker_host.use_worker)

    def stop(self) -> None:
        """End the worker; the next segmentation starts it again."""
        worker_host.stop_worker()


class SRCSMSegmenterWidget(SegmenterWidget):
    """The panel, under the name that Slicer looks for."""

    logicClass = SRCSMSegmenterLogic


class SRCSMSegmenterTest(ScriptedLoadableModuleTest):
    """Test that "Reload and Test" and CTest run inside Slicer; the panel's are in Testing."""

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_the_phantoms_organs_are_found()

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_the_phantoms_organs_are_found(self) -> None:
        """Segment the sample data with the worker."""
        if missing := packages.missing():
            self.skipTest(f"not installed: {', '.join(missing)}")
        volume = load_phantom("MR")
        node = SRCSMSegmenterLogic().segment(volume, model="abdomen-ct")
        volumes = {measure.name: measure.volume_ml for measure in measures(node)}
        assert len(volumes) == node.GetSegmentation().GetNumberOfSegments()
        assert volumes["liver"] > 100
