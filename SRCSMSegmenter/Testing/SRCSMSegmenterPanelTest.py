# SPDX-License-Identifier: Apache-2.0
"""What a user does in the panel, and what comes of it; the segmentation itself is played.

Runs in Slicer (CTest, or `slicer.testing.runUnitTest`), and in
Testing/segmenter/panel/test_panel.py on stand-ins for Slicer's widgets.
"""

import contextlib
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import slicer


class PlayedRun:
    """A segmentation that goes on until the test ends it."""

    def __init__(self, done):
        self.error, self.segmentationNode, self._done = None, None, done
        self.cancelled = self.undone = self.editedSince = False
        self.messages = ["Not found: spleen & pancreas."]

    def cancel(self):
        self.cancelled = True
        self.end(error=("Cancelled", "Cancelled; nothing was changed."))

    def undo(self):
        self.undone = True
        slicer.mrmlScene.RemoveNode(self.segmentationNode)

    def end(self, segmentation=None, error=None):
        from SRCSMSegmenterLib.worker.protocol import WorkerError

        self.segmentationNode, self.error = segmentation, error and WorkerError(*error)
        self._done(self)


class PlayedLogic:
    """What the panel asks of the logic, written down."""

    def __init__(self, real):
        self.getParameterNode = real.getParameterNode
        self.asked, self.run, self.stopped, self.refusal = None, None, False, None

    def segment(self, volumeNode, **options):
        if self.refusal:
            raise self.refusal
        self.asked = {"volumeNode": volumeNode, **options}
        self.run = PlayedRun(options["done"])
        return self.run

    def segmentSequence(self, volumeNode, **options):
        return self.segment(volumeNode, allFrames=True, **options)

    def stop(self):
        self.stopped = True


class SRCSMSegmenterPanelTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear()
        self.cleanUps = contextlib.ExitStack()
        self.addCleanup(self.cleanUps.close)
        self.widget = slicer.util.getModuleWidget("SRCSMSegmenter")
        self.ui = self.widget.ui
        real = self.widget.logic
        self.logic = self.widget.logic = PlayedLogic(real)
        self.addCleanup(setattr, self.widget, "logic", real)
        self.packages([])
        self.volume = addVolume("MR", 0.0, 900.0)
        self.widget.enter()

    def tearDown(self):
        self.widget.onCancel()
        slicer.mrmlScene.Clear()

    def packages(self, missing):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        patch = mock.patch.object(slicer_packages, "missing", lambda more: list(missing))
        self.cleanUps.enter_context(patch)

    @property
    def parameters(self):
        return self.logic.getParameterNode()

    def choose(self, combo, text):
        index = [combo.itemText(n) for n in range(combo.count)].index(text)
        combo.currentIndex = index

    def tick(self, organ, ticked):
        import qt

        rows = [self.ui.organList.item(n) for n in range(self.ui.organList.count)]
        row = next(row for row in rows if row.text() == organ)
        row.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)

    def placeResult(self):
        return placeResult(self.volume)

    # Choices

    def test_the_first_volume_and_model_are_chosen_and_segment_can_be_pressed(self):
        self.assertEqual(self.ui.inputSelector.currentNode(), self.volume)
        self.assertEqual(self.ui.modelComboBox.currentText, "abdomen-ct")
        self.assertFalse(shown(self.ui.modelLabel))
        self.ui.infoButton.click()
        self.assertTrue(shown(self.ui.modelLabel))
        self.assertIn("Hounsfield", self.ui.modelLabel.text)
        self.assertIn("CC BY 4.0", self.ui.modelLabel.text)
        self.ui.infoButton.click()
        self.assertTrue(self.ui.segmentButton.enabled)
        self.assertFalse(self.ui.cancelButton.enabled)
        self.assertFalse(shown(self.ui.frameSpinBox))
        self.assertIn("Not for diagnosis", self.ui.noticeLabel.text)

    def test_every_choice_reaches_the_logic(self):
        other = addVolume("CT", -1000.0, 1500.0)
        old = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "old")
        self.ui.inputSelector.setCurrentNode(other)
        self.ui.outputSelector.setCurrentNode(old)
        self.choose(self.ui.modelComboBox, "abdomen-mr")
        self.choose(self.ui.sourceMatchingComboBox, "Off")
        self.choose(self.ui.deviceComboBox, "Processor (CPU)")
        self.tick("right kidney", False)
        self.tick("spleen", False)
        self.ui.segmentButton.click()
        asked = self.logic.asked
        self.assertEqual(asked["volumeNode"], other)
        self.assertEqual(asked["outputSegmentation"], old)
        self.assertEqual(asked["model"], "abdomen-mr")
        self.assertEqual(asked["sourceMatching"], "off")
        self.assertEqual(asked["device"], "cpu")
        self.assertEqual(asked["organs"], ["liver", "left_kidney"])
        self.assertIsNone(asked["frame"])
        self.assertFalse(asked["wait"])

    def test_left_alone_everything_is_automatic(self):
        self.ui.segmentButton.click()
        asked = self.logic.asked
        self.assertEqual((asked["sourceMatching"], asked["device"]), ("auto", "auto"))
        self.assertIsNone(asked["organs"])
        self.assertIsNone(asked["outputSegmentation"])

    def test_a_frame_of_a_sequence_can_be_picked(self):
        proxy = addSequence(frames=5)
        self.ui.inputSelector.setCurrentNode(proxy)
        self.assertTrue(shown(self.ui.frameSpinBox))
        self.assertEqual(self.ui.frameSpinBox.maximum, 4)
        self.ui.segmentButton.click()
        self.assertIsNone(self.logic.asked["frame"])
        self.logic.run.cancel()
        self.ui.frameSpinBox.value = 3
        self.ui.segmentButton.click()
        self.assertEqual(self.logic.asked["frame"], 3)
        self.logic.run.cancel()
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.ui.segmentButton.click()
        self.assertIsNone(self.logic.asked["frame"])

    def test_all_frames_of_a_sequence_can_be_segmented(self):
        self.assertFalse(shown(self.ui.allFramesCheckBox))
        self.ui.inputSelector.setCurrentNode(addSequence(frames=5))
        self.assertTrue(shown(self.ui.allFramesCheckBox))
        self.ui.allFramesCheckBox.checked = True
        self.assertFalse(self.ui.frameSpinBox.enabled)
        self.ui.segmentButton.click()
        self.assertTrue(self.logic.asked["allFrames"])
        self.assertNotIn("frame", self.logic.asked)
        self.logic.run.cancel()
        self.ui.inputSelector.setCurrentNode(self.volume)  # no sequence
        self.ui.segmentButton.click()
        self.assertNotIn("allFrames", self.logic.asked)

    def test_organs_of_another_model_are_all_wanted(self):
        every = self.widget.panel.organs(ticked=True)
        self.tick("liver", False)
        self.parameters.skippedOrgans = ["liver", "an organ that only another model knows"]
        self.assertEqual(len(self.widget.panel.organs(ticked=True)), len(every) - 1)

    def test_what_is_missing_is_in_the_tooltip_of_segment(self):
        self.ui.noOrgansButton.click()
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertEqual(read(self.ui.segmentButton.toolTip), "Tick an organ.")
        slicer.mrmlScene.RemoveNode(self.volume)
        self.widget.update()
        self.assertIn("Choose a volume.", self.ui.segmentButton.toolTip)

    def test_a_volume_without_voxels_cannot_be_segmented(self):
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        self.ui.inputSelector.setCurrentNode(empty)
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertIn("has no voxels", self.ui.segmentButton.toolTip)

    def test_source_matching_off_on_another_modality_is_warned_of(self):
        self.assertFalse(shown(self.ui.warningLabel))
        self.choose(self.ui.sourceMatchingComboBox, "Off")
        self.assertTrue(shown(self.ui.warningLabel))
        self.assertIn("looks like MR", self.ui.warningLabel.text)

    def test_a_thin_slab_is_warned_of(self):
        self.ui.inputSelector.setCurrentNode(addVolume("slab", 0.0, 900.0, spacing=(3, 3, 1)))
        self.assertIn("12 mm thick", self.ui.warningLabel.text)
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.assertFalse(shown(self.ui.warningLabel))

    def test_the_volume_that_is_shown_is_chosen(self):
        shownOne = addVolume("CT", -1000.0, 1500.0)
        views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if not views:
            views = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")]
        for view in views:
            view.SetBackgroundVolumeID(shownOne.GetID())
        self.widget.exit()
        self.parameters.inputVolume = None
        self.widget.enter()
        self.assertEqual(self.ui.inputSelector.currentNode(), shownOne)
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.ui.segmentButton.click()
        for view in views:  # it shows what is worked on
            self.assertEqual(view.GetBackgroundVolumeID(), self.volume.GetID())

    def test_voxels_that_come_after_the_volume_are_noticed(self):
        late = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "late")
        self.ui.inputSelector.setCurrentNode(late)
        self.assertFalse(self.ui.segmentButton.enabled)
        late.SetAndObserveImageData(self.volume.GetImageData())
        waitUntil(lambda: self.ui.segmentButton.enabled)

    def test_all_organs_and_none_are_a_click_away(self):
        every = self.widget.panel.organs(ticked=True)
        self.ui.noOrgansButton.click()
        self.assertEqual(self.widget.panel.organs(ticked=True), [])
        self.tick("spleen", True)
        self.assertEqual(self.widget.panel.organs(ticked=True), ["spleen"])
        self.ui.allOrgansButton.click()
        self.assertEqual(self.widget.panel.organs(ticked=True), every)

    # Refinement at once

    def offer(self, sam):
        """Play another module's offer to refine with a SAM; None for no offer."""
        from SRCSMSegmenterLib.scene import worker_host

        made = sam is not None and worker_host.RefinementOffer(
            "segment_refined", lambda modality: sam, Path("none.txt")
        )
        self.cleanUps.enter_context(mock.patch.object(worker_host, "_refinement", made or None))
        self.widget.enter()

    def test_with_a_sam_organs_are_refined_unless_the_tick_is_taken_away(self):
        self.offer("sam-small-ct")
        self.assertTrue(self.ui.refineCheckBox.enabled)
        self.assertTrue(self.ui.refineCheckBox.checked)
        self.assertIn("sam-small-ct", self.ui.refineCheckBox.toolTip)
        self.ui.segmentButton.click()
        self.assertTrue(self.logic.asked["refine"])
        self.logic.run.cancel()
        self.ui.refineCheckBox.checked = False
        self.ui.segmentButton.click()
        self.assertFalse(self.logic.asked["refine"])

    def test_without_a_sam_the_tick_says_why_and_nothing_is_refined(self):
        for sam, why in (("", "no SAM for this model"), (None, "SAM Refine is not installed")):
            self.offer(sam)
            self.assertFalse(self.ui.refineCheckBox.enabled)
            self.assertIn(why, read(self.ui.refineCheckBox.toolTip))
            self.ui.segmentButton.click()
            self.assertFalse(self.logic.asked["refine"])
            self.logic.run.cancel()

    def test_packages_that_only_sam_lacks_do_not_keep_one_from_segmenting(self):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        lacking = lambda more: ["segment-anything>=1.0"] if more else []  # noqa: E731
        self.cleanUps.enter_context(mock.patch.object(slicer_packages, "missing", lacking))
        self.offer("sam-small-ct")
        self.assertIn("needs segment-anything", read(self.ui.refineCheckBox.toolTip))
        self.assertTrue(self.ui.segmentButton.enabled)

    # The run

    def test_progress_shows_the_stage_and_the_time_left(self):
        self.assertFalse(self.ui.progressBar.enabled)
        self.ui.segmentButton.click()
        self.assertTrue(self.ui.progressBar.enabled)
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertFalse(self.ui.inputsFrame.enabled)
        self.logic.asked["progress"]("network", 0.42, 37.2)
        self.assertEqual(self.ui.progressBar.value, 42)
        self.assertEqual(self.ui.progressLabel.text, "Finding the organs, about 37 s left")
        self.logic.asked["progress"]("resample", 0.9, 200.0)
        self.assertIn("about 3 min left", self.ui.progressLabel.text)

    def test_cancel_stops_the_run_and_changes_nothing(self):
        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        self.ui.segmentButton.click()
        self.assertTrue(self.ui.cancelButton.enabled)
        self.ui.cancelButton.click()
        self.assertTrue(self.logic.run.cancelled)
        self.assertFalse(self.ui.progressBar.enabled)
        self.assertIn("nothing was changed", self.ui.progressLabel.text)
        self.assertFalse(shown(self.ui.messageLabel))
        self.assertTrue(self.ui.segmentButton.enabled)
        after = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(after, before)

    def test_the_end_of_a_run_is_told_in_the_panel_and_the_status_bar(self):
        self.ui.segmentButton.click()
        with mock.patch.object(slicer.util, "showStatusMessage") as status:
            self.logic.run.end(self.placeResult())
        self.assertEqual(self.ui.progressLabel.text, "MR segmentation: done in 0 s")
        status.assert_called_once_with("MR segmentation: done in 0 s", 5000)
        self.assertEqual(self.ui.progressBar.value, 0)

    def test_an_error_is_shown_and_logged_and_one_can_try_again(self):
        self.ui.segmentButton.click()
        self.logic.run.end(error=("DeviceError", "There is no <x>.", "Choose auto.", "trace 17"))
        self.assertTrue(shown(self.ui.messageLabel))
        self.assertEqual(read(self.ui.messageLabel.text), "✖ There is no <x>. Choose auto.")
        self.assertIn("There is no <x>.\ntrace 17", self.ui.logText.plainText)
        self.ui.segmentButton.click()
        self.assertFalse(shown(self.ui.messageLabel))
        self.assertIsNotNone(self.widget.run)

    def test_what_the_logic_refuses_is_shown_and_nothing_runs(self):
        from SRCSMSegmenterLib.errors import VolumeError

        self.logic.refusal = VolumeError("The volume has no voxels.")
        self.ui.segmentButton.click()
        self.assertIn("no voxels", self.ui.messageLabel.text)
        self.assertIsNone(self.widget.run)
        self.assertTrue(self.ui.segmentButton.enabled)

    def test_a_message_leaves_with_the_volume_or_the_scene_it_is_about(self):
        for leave in (
            lambda: self.ui.inputSelector.setCurrentNode(addVolume("CT", -1000.0, 1500.0)),
            slicer.mrmlScene.Clear,
        ):
            self.ui.segmentButton.click()
            self.logic.run.end(error=("DeviceError", "There is no GPU.", "Choose auto."))
            self.assertTrue(shown(self.ui.messageLabel))
            leave()
            self.assertFalse(shown(self.ui.messageLabel))
        self.assertEqual(self.ui.progressLabel.text.strip(), "")

    # The result

    def test_the_result_lists_volumes_and_slices_and_a_click_jumps(self):
        self.assertFalse(shown(self.ui.resultsCollapsibleButton))
        self.ui.segmentButton.click()
        segmentation = self.placeResult()
        self.logic.run.end(segmentation)
        self.assertTrue(shown(self.ui.resultsCollapsibleButton))
        table = self.ui.resultTable
        self.assertEqual(
            [[table.item(row, column).text() for column in (0, 1)] for row in (0, 1)],
            [["liver", "1432.2"], ["right kidney", "160.0"]],
        )
        view = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode")
        if view is None:
            view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
        view.SetOrientationToAxial()
        click(table.cellWidget(0, 2), "7")
        world = [0.0, 0.0, 0.0]
        self.volume.TransformPointToWorld((0.0, 0.0, 7 * self.volume.GetSpacing()[2]), world)
        self.assertAlmostEqual(view.GetSliceToRAS().GetElement(2, 3), world[2], places=3)

    def test_a_result_can_be_undone_once(self):
        self.assertFalse(self.ui.undoButton.enabled)
        self.ui.segmentButton.click()
        self.logic.run.end(self.placeResult())
        self.assertEqual(read(self.ui.resultMessagesLabel.text), "Not found: spleen & pancreas.")
        self.ui.undoButton.click()
        self.assertTrue(self.logic.run.undone)
        self.assertIsNone(self.parameters.result)
        self.assertFalse(shown(self.ui.resultsCollapsibleButton))
        self.assertFalse(self.ui.undoButton.enabled)

    def test_after_undo_the_result_before_is_shown_again(self):
        first = self.placeResult()
        for segmentation in (first, self.placeResult()):
            self.ui.segmentButton.click()
            self.logic.run.end(segmentation)
        self.assertEqual(read(self.ui.resultsCollapsibleButton.toolTip), "MR segmentation_1")
        self.ui.undoButton.click()
        self.assertIs(self.parameters.result, first)
        self.assertEqual(read(self.ui.resultsCollapsibleButton.toolTip), "MR segmentation")
        self.assertFalse(self.ui.undoButton.enabled)

    def test_undo_asks_if_the_segmentation_was_changed_since(self):
        self.ui.segmentButton.click()
        self.logic.run.end(self.placeResult())
        self.assertIn('"MR"', read(self.ui.undoButton.toolTip))
        self.logic.run.editedSince = True
        for answer in (False, True):
            asked = mock.patch.object(slicer.util, "confirmOkCancelDisplay", return_value=answer)
            with asked as question:
                self.ui.undoButton.click()
            question.assert_called_once()
            self.assertEqual(self.logic.run.undone, answer)

    def test_volumes_follow_the_segments(self):
        self.parameters.result = segmentation = self.placeResult()
        text = lambda row: self.ui.resultTable.item(row, 1).text()  # noqa: E731
        waitUntil(lambda: text(0) == "27.0")  # 500 voxels of 54 mm3
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "liver", self.volume)
        mask[6:] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, "liver", self.volume)
        waitUntil(lambda: text(0) == "10.8")
        waitUntil(lambda: text(1) == "21.6")

    def test_the_table_can_be_copied_with_its_units(self):
        import qt

        self.parameters.result = self.placeResult()
        self.ui.copyButton.click()
        self.assertEqual(
            qt.QApplication.clipboard().text(),
            "Organ\tVolume (ml)\tSlices to check first (K, from 0)\n"
            "liver\t1432.250\t7, 4\nright kidney\t160.000\t5\n",
        )

    def test_surfaces_are_shown_at_a_click_and_of_the_next_result_too(self):
        self.parameters.result = segmentation = self.placeResult()
        self.assertFalse(self.ui.show3DButton.checked)
        self.ui.show3DButton.click()
        display = segmentation.GetDisplayNode()
        self.assertTrue(display.GetVisibility3D())
        surface = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
        self.assertTrue(segmentation.GetSegmentation().ContainsRepresentation(surface))
        self.ui.segmentButton.click()
        self.logic.run.end(self.placeResult())
        self.assertTrue(self.ui.show3DButton.checked)
        self.ui.show3DButton.click()
        self.assertFalse(self.parameters.result.GetDisplayNode().GetVisibility3D())

    def test_a_click_on_an_organ_goes_to_its_middle(self):
        self.parameters.result = self.placeResult()
        view = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode")
        if view is None:
            view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
        view.SetOrientationToAxial()
        self.widget.results.onOrganClicked(1, 0)
        world = [0.0, 0.0, 0.0]
        self.volume.TransformPointToWorld((14.5 * 3, 25.5 * 3, 6 * 6), world)
        for axis in range(3):
            there = view.GetSliceToRAS().GetElement(axis, 3)
            self.assertLessEqual(abs(there - world[axis]), 3.1)  # a voxel

    def test_the_result_comes_back_with_the_scene(self):
        self.widget.exit()
        self.parameters.result = self.placeResult()
        self.assertFalse(shown(self.ui.resultsCollapsibleButton))
        self.widget.enter()
        self.assertTrue(shown(self.ui.resultsCollapsibleButton))
        self.assertEqual(self.ui.resultTable.rowCount, 2)

    def test_a_result_that_is_deleted_leaves_the_panel(self):
        self.parameters.result = self.placeResult()
        slicer.mrmlScene.RemoveNode(self.parameters.result)
        self.widget.update()
        self.assertFalse(shown(self.ui.resultsCollapsibleButton))

    def test_the_result_of_a_run_is_kept_when_the_panel_was_left(self):
        self.ui.segmentButton.click()
        self.widget.exit()
        segmentation = self.placeResult()
        self.logic.run.end(segmentation)
        self.widget.enter()
        self.assertEqual(self.parameters.result, segmentation)
        self.assertEqual(self.ui.resultTable.rowCount, 2)

    def test_without_sam_refine_its_button_says_so(self):
        modules = slicer.app.moduleManager().modulesNames()
        if "SAMRefine" in modules:
            self.skipTest("SAM Refine is installed")
        self.parameters.result = self.placeResult()
        self.assertFalse(self.ui.refineButton.enabled)
        self.assertIn("not installed", self.ui.refineButton.toolTip)

    # The training set

    def choosing(self, folder):
        """Play the dialog that asks for a folder."""
        import qt

        return mock.patch.object(
            qt.QFileDialog, "getExistingDirectory", create=True, side_effect=lambda *_: folder
        )

    def test_a_result_is_added_to_a_training_set_and_the_command_shown(self):
        self.parameters.result = self.placeResult()
        self.assertFalse(shown(self.ui.addedLabel))
        with tempfile.TemporaryDirectory() as folder:
            with self.choosing(folder):
                self.ui.trainingSetButton.click()
            self.assertFalse(shown(self.ui.messageLabel))
            self.assertTrue((Path(folder) / "labelsTr" / "MR.nii.gz").is_file())
            text = self.ui.addedLabel.text
            self.assertTrue(shown(self.ui.addedLabel))
            self.assertIn("Training cases there now: 1.", text)
            self.assertIn("srcsm train --data ", text)
            self.assertIn("srcsm train --data ", self.ui.logText.plainText)
            with self.choosing(folder):
                self.ui.trainingSetButton.click()
            self.assertFalse(shown(self.ui.addedLabel))
            self.assertIn("already, as case &quot;MR&quot;", self.ui.messageLabel.text)
            self.assertEqual(len(list(Path(folder).glob("labelsTr/*"))), 1)

    def test_no_folder_chosen_adds_nothing(self):
        self.parameters.result = self.placeResult()
        with self.choosing(""):
            self.ui.trainingSetButton.click()
        self.assertFalse(shown(self.ui.addedLabel))
        self.assertFalse(shown(self.ui.messageLabel))

    # Packages

    def test_missing_packages_are_named_with_their_size_and_installed_on_request(self):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        self.packages([slicer_packages.TORCH, "safetensors>=0.4"])
        self.widget.enter()
        self.assertTrue(shown(self.ui.packagesFrame))
        self.assertIn("PyTorch", self.ui.packagesLabel.text)
        self.assertIn("GB", self.ui.packagesLabel.text)
        self.assertIn("<b>safetensors</b>: less than 1 MB", self.ui.packagesLabel.text)
        self.assertIn("--no-index", self.ui.offlineLabel.text)
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertIn("Install", self.ui.segmentButton.toolTip)
        with mock.patch.object(slicer_packages, "install") as install:
            self.packages([])
            self.ui.installButton.click()
        install.assert_called_once_with([slicer_packages.TORCH, "safetensors>=0.4"], None)
        self.assertFalse(shown(self.ui.packagesFrame))
        self.assertTrue(self.ui.segmentButton.enabled)

    def test_a_failed_installation_says_why(self):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        self.packages([slicer_packages.TORCH])
        self.widget.enter()
        refused = RuntimeError("No network.")
        with mock.patch.object(slicer_packages, "install", side_effect=refused):
            self.ui.installButton.click()
        self.assertIn("No network.", self.ui.messageLabel.text)
        self.assertTrue(shown(self.ui.packagesFrame))

    # Own models

    def test_a_folder_with_a_model_can_be_added_and_taken_off_again(self):
        from SRCSMSegmenterLib.panel import models as slicer_models

        self.assertFalse(self.ui.removeModelButton.enabled)
        models = self.ui.modelComboBox.count
        shipped = slicer_models.shipped_models_folder() / "abdomen-mr"
        with tempfile.TemporaryDirectory(prefix="Modèles à moi ") as folder:
            own = Path(folder).resolve() / "mine"
            shutil.copytree(shipped, own)
            self.widget.addModels(folder)
            self.assertEqual(self.parameters.model, str(own))
            self.assertEqual(self.ui.modelComboBox.count, models + 1)
            self.ui.segmentButton.click()
            self.assertEqual(self.logic.asked["model"], str(own))
            self.logic.run.cancel()
            self.ui.removeModelButton.click()
            self.assertTrue(own.is_dir())
        self.assertEqual(slicer_models.own_models(), [])
        self.assertEqual(self.parameters.model, "abdomen-ct")
        self.assertEqual(self.ui.modelComboBox.count, models)

    def test_a_folder_without_a_model_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            self.widget.addModels(folder)
        self.assertIn("There is no model in", self.ui.messageLabel.text)
        self.assertEqual(self.ui.modelComboBox.currentText, "abdomen-ct")

    def test_a_model_that_is_not_here_any_more_is_named(self):
        self.parameters.model = "/gone/with the drive"
        self.assertIn("/gone/with the drive", self.ui.modelLabel.text)
        self.assertTrue(shown(self.ui.modelLabel))
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertEqual(read(self.ui.segmentButton.toolTip), "Choose a model.")

    # Life cycle

    def test_choices_are_in_the_scene_and_shown_again(self):
        self.choose(self.ui.sourceMatchingComboBox, "On")
        self.tick("spleen", False)
        self.widget.exit()
        self.parameters.keepLargest = False
        self.assertTrue(self.ui.keepLargestCheckBox.checked)
        self.widget.enter()
        self.assertFalse(self.ui.keepLargestCheckBox.checked)
        self.assertEqual(self.ui.sourceMatchingComboBox.currentText, "On")
        self.assertEqual(self.widget.panel.organs(ticked=False), ["spleen"])

    def test_closing_the_scene_ends_the_run_and_starts_afresh(self):
        self.choose(self.ui.sourceMatchingComboBox, "On")
        self.ui.segmentButton.click()
        run = self.logic.run
        slicer.mrmlScene.Clear()
        self.assertTrue(run.cancelled)
        self.assertIsNone(self.widget.run)
        self.widget.enter()
        self.assertIsNone(self.ui.inputSelector.currentNode())
        self.assertEqual(self.ui.sourceMatchingComboBox.currentText, "Automatic")
        self.assertFalse(self.ui.segmentButton.enabled)

    def test_a_scene_loaded_while_the_module_is_open_is_shown(self):
        scene = slicer.mrmlScene
        addVolume("another", 0.0, 900.0)
        self.parameters.result = self.placeResult()
        scene.SetSaveToXMLString(1)
        scene.Commit()
        text = scene.GetSceneXMLString()
        scene.SetSaveToXMLString(0)
        scene.Clear()
        self.assertIsNone(self.ui.inputSelector.currentNode())
        scene.SetLoadFromXMLString(1)
        scene.SetSceneXMLString(text)
        scene.Import()
        scene.SetLoadFromXMLString(0)
        self.assertEqual(self.ui.inputSelector.currentNode().GetName(), "MR")
        self.assertEqual(self.parameters.inputVolume.GetName(), "MR")
        self.assertEqual(self.parameters.result.GetName(), "MR segmentation")

    def test_deleting_the_volume_in_use_does_no_harm(self):
        self.ui.segmentButton.click()
        slicer.mrmlScene.RemoveNode(self.volume)
        self.logic.run.end(error=("VolumeError", "The volume is gone."))
        self.assertIsNone(self.ui.inputSelector.currentNode())
        self.assertFalse(self.ui.segmentButton.enabled)

    def test_other_parameter_nodes_of_the_module_do_no_harm(self):
        ours = self.parameters.parameterNode
        for n in range(3):
            other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", f"other {n}")
            other.SetAttribute("ModuleName", "SRCSMSegmenter")
            other.SetParameter("sourceMatching", "OFF")
        self.widget.exit()
        self.widget.enter()
        self.assertEqual(self.parameters.parameterNode, ours)
        self.assertEqual(self.ui.sourceMatchingComboBox.currentText, "Automatic")

    def test_coming_and_going_leaves_no_observer_behind(self):
        before, left = len(self.widget.Observations), set()
        for _ in range(3):
            self.widget.exit()
            left.add(len(self.widget.Observations))
            self.widget.enter()
        self.assertEqual(len(self.widget.Observations), before)
        self.assertEqual(left, {before - 3})  # the parameter node, and the volume twice


def waitUntil(condition, seconds=20):
    """Leave the event loop to Qt until something is so."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        slicer.app.processEvents()
        time.sleep(0.01)


def read(text):
    """Return what is read of a text: Slicer marks up tooltips, to wrap them."""
    import qt

    document = qt.QTextDocument()
    document.setHtml(text)
    return document.toPlainText()


def shown(widget):
    """Not hidden, whether or not the module is the one that Slicer shows now."""
    return not widget.isHidden()


def click(label, link):
    """As if a link of a label were clicked."""
    signal = label.linkActivated
    (signal.emit if hasattr(signal, "emit") else signal)(link)


def addVolume(name, low, high, spacing=(3, 3, 6)):
    """Add a volume of 40 x 40 x 12 voxels with intensities from low to high."""
    rng = np.random.default_rng(4)
    array = rng.uniform(low, high, (12, 40, 40)).astype(np.float32)
    array.flat[:2] = low, high
    return slicer.util.addVolumeFromArray(array, np.diag([*spacing, 1.0]), name)


def placeResult(volume):
    """Place a result in the scene, as the logic does."""
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.scene import nodes, results
    from SRCSMSegmenterLib.scene.result import Result, SegmentedOrgan

    geometry = nodes.node_geometry(volume)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[4:9, 10:20, 10:20] = 1
    labels[4:9, 22:30, 10:20] = 2
    organs = (
        SegmentedOrgan("liver", 1, (221, 130, 101), "", 1432.25, ((7, 3.1), (4, 2.0))),
        SegmentedOrgan("right_kidney", 2, (185, 102, 83), "", 160.0, ((5, 1.0),)),
    )
    result = Result(Volume(labels, geometry), organs)
    return results.place(result, volume).segmentation


def addSequence(frames):
    """Return the volume that a sequence browser shows of a sequence."""
    scene = slicer.mrmlScene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for n in range(frames):
        frame = addVolume(f"frame {n}", 0.0, 900.0 + n)
        sequence.SetDataNodeAtValue(frame, str(n))
        scene.RemoveNode(frame)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence)
