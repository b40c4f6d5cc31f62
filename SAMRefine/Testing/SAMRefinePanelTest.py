# SPDX-License-Identifier: Apache-2.0
"""What a user does in the panel, and what comes of it; the worker's answers are played.

Runs in Slicer (CTest, or `slicer.testing.runUnitTest`), and in
Testing/sam_refine/panel/test_panel.py on stand-ins for Slicer's widgets.
"""

import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import os
import tempfile
import threading
import time
import unittest
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import slicer

CHECKPOINT = b"no weights, but enough to be fetched" * 50_000


class PlayedClient:
    """In place of the worker: runs are written down, and end when the test says so."""

    def __init__(self, volume, opening):
        self.volume, self.opening, self.runs = volume, opening, []
        PlayedClient.made.append(self)

    made: list = []  # noqa: RUF012 - emptied by every test

    def submit(self, request, coarse, callbacks, session):
        from SAMRefineLib.refine.client import RefineRun

        run = RefineRun(self, request, callbacks, session)
        run.job = SimpleNamespace(state="running", cancel=lambda: None)
        self.runs.append(run)
        return run


def fail(run, *error):
    """End a run with an error."""
    from SRCSMSegmenterLib.worker.protocol import WorkerError

    run.end(WorkerError(*error))


def answer(run, labels, **kept):
    """End a run with a label map; `kept` is of the reports."""
    run.reports = [
        {
            "label": each.label, "name": each.name, "boxes": len(each.effective()),
            "kept": kept, "dice": 0.875, "voxels_before": 10, "voxels_after": 12,
            "predicted_iou": 0.9,
        }
        for each in run.request.frames
    ]  # fmt: skip
    run.label_map = run.request.frames[0].grid.stack(labels)
    run.end()


class SAMRefinePanelTest(unittest.TestCase):
    def setUp(self):
        from SAMRefine import SAMRefineLogic
        from SAMRefineLib.panel import sams

        slicer.mrmlScene.Clear()
        self.cleanUps = contextlib.ExitStack()
        self.addCleanup(self.cleanUps.close)
        self.folder = Path(self.cleanUps.enter_context(tempfile.TemporaryDirectory()))
        PlayedClient.made = []
        for patch in (
            mock.patch.dict(os.environ, SRCSM_MODELS=str(self.folder / "Models")),
            mock.patch.object(sams, "downloads_folder", lambda: self.folder / "Downloads"),
        ):
            self.cleanUps.enter_context(patch)
        self.addShipped("sam-small-ct")
        self.widget = slicer.util.getModuleWidget("SAMRefine")
        logic, self.widget.logic = self.widget.logic, SAMRefineLogic(makeClient=PlayedClient)
        self.addCleanup(lambda: setattr(self.widget, "logic", logic))
        self.ui = self.widget.ui
        self.packages([])
        addView()
        self.volume = addVolume()
        self.segmentation = addSegmentation(self.volume)
        self.widget.enter()

    def tearDown(self):
        self.widget.onCancel()
        slicer.mrmlScene.Clear()

    def packages(self, missing):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        patch = mock.patch.object(slicer_packages, "missing", lambda more: list(missing))
        self.cleanUps.enter_context(patch)

    def addShipped(self, name, organs=()):
        folder = self.folder / "Models" / name
        folder.mkdir(parents=True, exist_ok=True)
        training = {"validation_dice": dict.fromkeys(organs, 0.9)}
        config = {"kind": "small", "name": "Small SAM, CT", "training": training}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "README.md").write_text("- Expects: slices and boxes\n- Licence: CC BY 4.0\n")
        (folder / "SHA256SUMS").write_text("")

    @property
    def parameters(self):
        return self.widget.logic.getParameterNode()

    @property
    def session(self):
        return self.widget.session

    def start(self):
        self.widget.startFrom(self.segmentation, self.volume)
        return self.session

    def runs(self):
        return [run for client in PlayedClient.made for run in client.runs]

    def asked(self, task="refine"):
        return [run for run in self.runs() if run.request.task == task]

    def answerAll(self, labels):
        while waiting := [run for run in self.runs() if not run.finished]:
            answer(waiting[0], labels)

    def item(self, organ, column):
        table = self.ui.organTable
        row = next(n for n in range(table.rowCount) if table.item(n, 2).text() == organ)
        return table.item(row, column)

    def tick(self, organ, column, ticked):
        import qt

        self.item(organ, column).setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)

    def ticked(self, organ, column):
        import qt

        return self.item(organ, column).checkState() == qt.Qt.Checked

    def choose(self, combo, text):
        combo.currentIndex = [combo.itemText(n) for n in range(combo.count)].index(text)

    def click(self, button):
        self.assertTrue(button.enabled, f"{button.name}: {button.toolTip}")
        button.click()

    def refined(self, organ=1):
        """Refine all; the organ grows by a voxel."""
        self.click(self.ui.refineAllButton)
        labels = np.zeros(SHAPE, np.uint8)
        labels[LIVER] = organ
        labels[8, 24, 11:15] = organ
        answer(self.asked()[-1], labels, **{"5": "SAM is unsure"})

    def voxels(self, name="liver"):
        segmentation = self.session.segmentationNode
        id = segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)
        array = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, id, self.volume)
        return int((array > 0).sum())

    # Boxes

    def test_the_panel_makes_the_boxes_that_a_script_makes(self):
        """Whatever the mask threshold is: boxes are drawn by the network's own confidence."""
        liver, spleen = np.zeros((2, *SHAPE), np.float16)
        liver[LIVER], spleen[SPLEEN] = 0.6, 0.9
        liver[LIVER[0], LIVER[1], 8:12] = 0.9
        chances = {"liver": liver, "spleen": spleen}
        self.segmentation = addSegmentation(self.volume, probabilities=chances)
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.ui.segmentationSelector.setCurrentNode(self.segmentation)
        for threshold in (0.5, 0.9):
            self.ui.maskThresholdSlider.value = threshold
            self.click(self.ui.boxesButton)
            made = self.session.organs
            script = self.widget.logic.boxes(self.segmentation, self.volume)
            self.assertEqual(made, script.organs)
            self.assertEqual([organ.awaits_choice for organ in made], [True, False])
            self.assertEqual(made[0].frames.effective()[8].x1, 12)
            script.close()
            slicer.mrmlScene.RemoveNode(script.node)
            self.widget.update()

    def test_boxes_are_made_of_the_segmentation_at_a_click(self):
        self.assertTrue(shown(self.ui.boxesButton))
        self.assertFalse(shown(self.ui.organsCollapsibleButton))
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.ui.segmentationSelector.setCurrentNode(self.segmentation)
        self.click(self.ui.boxesButton)
        self.assertFalse(shown(self.ui.boxesButton))
        self.assertTrue(shown(self.ui.organsCollapsibleButton))
        table = self.ui.organTable
        names = [table.item(row, 2).text() for row in range(table.rowCount)]
        self.assertEqual(names, ["liver", "spleen"])
        self.assertEqual(self.item("liver", 4).text(), "coarse")
        self.assertTrue(self.ticked("spleen", 1))
        self.assertIn("Not for diagnosis", self.ui.noticeLabel.text)
        self.assertEqual(self.ui.axisLabel.text, "16 axial slices, 5.0 mm apart")
        self.assertIn("automatic box", self.ui.sliceLabel.text)  # the views show the organ

    def test_what_is_missing_for_boxes_is_in_the_tooltip(self):
        slicer.mrmlScene.RemoveNode(self.volume)
        self.widget.update()
        self.assertFalse(self.ui.boxesButton.enabled)
        self.assertEqual(read(self.ui.boxesButton.toolTip), "Choose a volume.")

    def test_a_segmentation_on_another_grid_is_copied_and_warned_of(self):
        other = addVolume(spacing=(4, 3, 2))
        self.ui.inputSelector.setCurrentNode(other)
        self.ui.segmentationSelector.setCurrentNode(self.segmentation)
        self.assertIn("copied to a new one", self.ui.warningLabel.text)
        self.click(self.ui.boxesButton)
        self.assertFalse(shown(self.ui.warningLabel))
        self.assertNotEqual(self.parameters.segmentation, self.segmentation)
        self.assertEqual(self.parameters.segmentation, self.session.segmentationNode)

    def test_a_missed_organ_is_added_with_a_box_in_the_middle(self):
        self.start()
        self.assertFalse(self.ui.addOrganButton.enabled)
        self.assertIn("name", self.ui.addOrganButton.toolTip)
        self.ui.newOrganComboBox.setEditText("left kidney")
        self.click(self.ui.addOrganButton)
        self.assertEqual(self.item("left kidney", 4).text(), "new")
        organ = self.session.organs[-1]
        self.assertEqual(self.session.active, organ.label)
        self.assertEqual(self.parameters.organ, organ.label)
        box = organ.frames.effective()[self.session.slice]
        self.assertEqual((box.x0, box.x1, box.y0, box.y1), (10, 20, 12, 24))

    def test_a_roi_that_was_drawn_becomes_the_box_of_a_missed_organ(self):
        session = self.start()
        roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
        roi.CreateDefaultDisplayNodes()
        selection, _ = mouseNodes()
        selection.SetActivePlaceNodeID(session.bound(1).GetID())  # not one of ours
        self.assertIsNone(drawnRoi())
        selection.SetActivePlaceNodeID(roi.GetID())
        self.assertIsNone(drawnRoi())  # it has no size yet
        roi.SetSize(9, 12, 10)
        roi.SetCenter(30, 40, 34.5)
        self.ui.newOrganComboBox.setEditText("tumour")
        self.click(self.ui.addOrganButton)
        self.assertIsNone(roi.GetScene())
        found = session.organs[-1].frames.bounds3d()
        np.testing.assert_allclose(found.upper, (12, 15.833333, 8), atol=1e-4)
        self.ui.newOrganComboBox.setEditText("another")
        self.click(self.ui.addOrganButton)

    def test_boxes_can_be_drawn_on_nothing(self):
        self.ui.segmentationSelector.setCurrentNode(None)
        self.click(self.ui.boxesButton)
        self.assertIn("Add an organ", self.ui.organHelpLabel.text)
        self.assertFalse(self.ui.refineAllButton.enabled)
        self.assertIn("no organ yet", self.ui.refineAllButton.toolTip)
        self.ui.newOrganComboBox.setEditText("tumour")
        self.click(self.ui.addOrganButton)
        self.assertTrue(self.ui.refineAllButton.enabled)

    def test_removing_an_organ_leaves_its_segment(self):
        self.start()
        self.click(self.ui.removeOrganButton)
        self.assertEqual([organ.name for organ in self.session.organs], ["spleen"])
        self.assertEqual(self.segmentation.GetSegmentation().GetNumberOfSegments(), 2)
        self.click(self.ui.undoButton)
        self.assertEqual(self.ui.organTable.rowCount, 2)

    def test_a_row_that_is_clicked_is_the_one_to_correct(self):
        self.start()
        self.ui.organTable.selectRow(1)
        self.assertEqual(self.session.active, 2)
        self.assertEqual(self.parameters.organ, 2)

    def test_ticks_show_use_and_keep_organs(self):
        self.start()
        self.tick("spleen", 0, False)
        self.tick("spleen", 1, False)
        self.assertFalse(self.session.organ(2).shown)
        self.assertFalse(self.session.organ(2).enabled)
        self.refined()
        self.assertEqual(self.asked()[-1].labels, (1,))
        before = self.voxels()
        self.tick("liver", 6, True)
        self.assertEqual(self.item("liver", 4).text(), "kept")
        self.assertEqual(self.voxels(), before - 4)

    def test_what_cannot_be_kept_is_said_and_unticked(self):
        self.ui.segmentationSelector.setCurrentNode(None)
        self.click(self.ui.boxesButton)
        self.ui.newOrganComboBox.setEditText("tumour")
        self.click(self.ui.addOrganButton)
        self.tick("tumour", 6, True)
        self.assertIn("no coarse mask", self.ui.messageLabel.text)
        self.assertFalse(self.ticked("tumour", 6))

    # Slices

    def test_the_box_of_a_slice_is_taken_away_added_and_reset(self):
        session = self.start()
        session.jump(8)
        self.widget.show()
        n = session.slice
        self.assertIn("automatic box", self.ui.sliceLabel.text)
        self.assertFalse(self.ui.addBoxButton.enabled)
        self.assertFalse(self.ui.resetBoxButton.enabled)
        self.click(self.ui.removeBoxButton)
        self.assertNotIn(n, session.organ(1).frames.effective())
        self.assertIn("taken away", self.ui.sliceLabel.text)
        self.assertEqual(self.item("liver", 3).text(), "1")
        self.click(self.ui.addBoxButton)
        self.assertIn(n, session.organ(1).frames.effective())
        self.click(self.ui.removeBoxButton)
        self.click(self.ui.resetBoxButton)
        self.assertEqual(self.item("liver", 3).text(), "")

    def test_an_edited_box_counts_and_is_reset_with_the_organ(self):
        from SAMRefineLib.boxes.boxes import Box

        session = self.start()
        session.edit_box(1, 6, Box(3, 4, 13, 15))
        self.assertNotEqual(self.item("liver", 3).text(), "")
        self.click(self.ui.resetOrganButton)
        self.assertEqual(self.item("liver", 3).text(), "")
        session.edit_box(2, 6, Box(3, 4, 13, 15))
        self.click(self.ui.resetAllButton)
        self.assertEqual(self.item("spleen", 3).text(), "")

    def test_points_are_placed_with_slicers_own_mouse_mode(self):
        session = self.start()
        session.jump(8)
        self.widget.show()
        node = session.points.node(True)
        selection, interaction = mouseNodes()
        self.click(self.ui.positivePointButton)
        self.assertEqual(selection.GetActivePlaceNodeID(), node.GetID())
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.Place)
        self.click(self.ui.negativePointButton)
        self.assertEqual(selection.GetActivePlaceNodeID(), session.points.node(False).GetID())
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.assertFalse(self.ui.clearPointsButton.enabled)
        world = [0.0, 0.0, 0.0]
        self.volume.TransformPointToWorld((36.0, 54.0, 5.0 * session.slice), world)
        node.AddControlPointWorld(world)
        session.points.read()
        self.assertEqual(list(session.organ(1).points), [session.slice])
        self.click(self.ui.clearPointsButton)
        self.assertEqual(node.GetNumberOfControlPoints(), 0)

    def test_a_point_button_is_pressed_for_as_long_as_points_are_placed(self):
        session = self.start()
        session.jump(8)
        self.widget.show()
        selection, interaction = mouseNodes()
        buttons = self.ui.positivePointButton, self.ui.negativePointButton

        def pressed():
            return [button.checked for button in buttons]

        self.click(buttons[0])
        self.assertEqual(pressed(), [True, False])
        self.click(buttons[1])
        self.assertEqual(pressed(), [False, True])
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)  # placed, or Esc
        self.assertEqual(pressed(), [False, False])
        self.click(buttons[0])
        selection.SetActivePlaceNodeID(session.bound(1).GetID())  # something else is placed
        self.assertEqual(pressed(), [False, False])
        self.click(buttons[1])
        self.click(buttons[1])
        self.assertEqual(pressed(), [False, False])
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.ViewTransform)
        self.click(buttons[0])
        self.widget.exit()  # no point is placed for a panel that is not seen
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.ViewTransform)
        self.widget.enter()
        self.assertEqual(pressed(), [False, False])

    def test_unsure_slices_are_a_click_or_a_key_away(self):
        session = self.start()
        self.assertFalse(self.ui.nextUncertainButton.enabled)
        self.refined()
        session.jump(3)
        self.widget.show()
        self.assertFalse(self.ui.previousUncertainButton.enabled)
        self.click(self.ui.nextUncertainButton)
        self.assertEqual(session.slice, 5)

    # Refining

    def test_refine_all_redraws_and_says_what_it_did(self):
        session = self.start()
        before = self.voxels()
        self.refined()
        self.assertEqual(self.asked()[-1].labels, (1, 2))
        self.assertEqual(self.voxels(), before + 4)
        self.assertEqual(self.item("liver", 4).text(), "refined")
        self.assertEqual(self.item("liver", 5).text(), "0.88")
        self.assertIn("SAM is unsure (1)", self.item("liver", 4).toolTip())
        self.assertIn("SAM redrew liver, spleen in", self.ui.resultLabel.text)
        self.assertIn("SAM is unsure (2)", self.ui.logText.plainText)
        self.assertFalse(session.organ(1).changed)
        self.click(self.ui.removeBoxButton if self.ui.removeBoxButton.enabled else
                   self.ui.addBoxButton)  # fmt: skip
        self.assertEqual(self.item("liver", 4).text(), "changed")

    def test_refine_organ_asks_about_the_chosen_one_alone(self):
        self.start()
        self.ui.organTable.selectRow(1)
        self.click(self.ui.refineOrganButton)
        self.assertEqual(self.asked()[-1].labels, (2,))

    def test_refine_all_leaves_organs_alone_that_the_sam_does_not_know(self):
        self.addShipped("sam-small-ct", ["spleen"])
        self.start()
        self.choose(self.ui.samComboBox, "Small SAM, CT")
        self.assertIn("0 of 2", self.ui.embeddingLabel.text)  # the active one and the spleen
        self.ui.organTable.selectRow(1)
        self.assertIn("0 of 1", self.ui.embeddingLabel.text)
        tip = read(self.ui.refineAllButton.toolTip)
        self.assertIn("Small SAM, CT was not trained on these, which stay: liver.", tip)
        self.click(self.ui.refineAllButton)
        self.assertEqual(self.asked()[-1].labels, (2,))
        labels = np.zeros(SHAPE, np.uint8)
        labels[SPLEEN] = 2
        before = self.voxels()
        answer(self.asked()[-1], labels)
        told = "not trained on these, which stay as they are unless you refine them by themselves"
        self.assertIn(f"{told}: liver.", self.ui.resultLabel.text)
        self.assertEqual(self.ui.logText.plainText.count(told), 1)
        self.assertEqual(self.item("liver", 4).text(), "coarse")
        self.assertEqual(self.voxels(), before)

        self.ui.organTable.selectRow(0)
        self.assertIn("not trained on it: check", read(self.ui.refineOrganButton.toolTip))
        self.click(self.ui.refineOrganButton)
        self.assertEqual(self.asked()[-1].labels, (1,))
        answer(self.asked()[-1], labels)
        self.assertIn("so check them: liver.", self.ui.resultLabel.text)

        self.tick("spleen", 1, False)
        self.click(self.ui.refineAllButton)
        self.assertIsNone(self.session.run)
        self.assertIn("refine them by themselves: liver.", self.ui.messageLabel.text)

    def test_every_choice_reaches_the_worker(self):
        session = self.start()
        self.ui.maskThresholdSlider.value = 0.75
        self.choose(self.ui.deviceComboBox, "Processor (CPU)")
        self.choose(self.ui.neighboursComboBox, "Overlap with the organ")
        self.choose(self.ui.samComboBox, "Small SAM, CT")
        self.click(self.ui.refineAllButton)
        run = self.asked()[-1]
        self.assertEqual(run.request.parameters["mask_threshold"], 0.75)
        self.assertEqual(run.client.opening["device"], "cpu")
        self.assertEqual(run.client.opening["sam"], "sam-small-ct")
        self.assertEqual(session.settings.neighbours, "overlap")

    def test_progress_is_shown_and_what_it_depends_on_is_locked(self):
        self.start()
        self.click(self.ui.refineAllButton)
        self.assertTrue(shown(self.ui.progressFrame))
        self.assertFalse(self.ui.refineAllButton.enabled)
        self.assertEqual(read(self.ui.refineAllButton.toolTip), "A refinement is running.")
        self.assertFalse(self.ui.inputsFrame.enabled)
        self.assertFalse(self.ui.advancedCollapsibleButton.enabled)
        self.asked()[-1].callbacks.progress("encode", 0.42)
        self.assertEqual(self.ui.progressBar.value, 42)
        self.assertEqual(self.ui.progressLabel.text, "SAM looks at the slices")

    def test_cancel_changes_nothing(self):
        session = self.start()
        before = self.voxels()
        self.click(self.ui.refineAllButton)
        self.click(self.ui.cancelButton)
        self.assertIsNone(session.run)
        self.assertEqual(self.voxels(), before)
        self.assertFalse(shown(self.ui.progressFrame))
        self.assertFalse(shown(self.ui.messageLabel))
        self.assertFalse(self.ui.undoButton.enabled)
        self.assertTrue(self.ui.refineAllButton.enabled)

    def test_an_error_is_shown_and_logged_and_one_can_try_again(self):
        self.start()
        self.click(self.ui.refineAllButton)
        fail(self.asked()[-1], "DeviceError", "There is no <x>.", "Choose auto.", "trace 17")
        self.assertEqual(read(self.ui.messageLabel.text), "✖ There is no <x>. Choose auto.")
        self.assertIn("There is no <x>.\ntrace 17", self.ui.logText.plainText)
        self.refined()
        self.assertFalse(shown(self.ui.messageLabel))

    def test_the_corrected_segmentation_is_added_to_a_training_set(self):
        import qt

        self.assertFalse(self.ui.trainingSetButton.enabled)
        self.assertEqual(read(self.ui.trainingSetButton.toolTip), "Make boxes first.")
        self.start()
        self.refined()
        folder = self.folder / "Dataset7_Own"
        chosen = mock.patch.object(
            qt.QFileDialog, "getExistingDirectory", create=True, side_effect=lambda *_: str(folder)
        )
        with chosen:
            self.click(self.ui.trainingSetButton)
        self.assertIn("srcsm train --data ", self.ui.addedLabel.text)
        description = json.loads((folder / "dataset.json").read_text())
        self.assertEqual(description["labels"], {"background": 0, "liver": 1, "spleen": 2})
        self.assertEqual(description["numTraining"], 1)

    def test_undo_and_redo_of_a_refinement(self):
        self.start()
        self.assertEqual(read(self.ui.undoButton.toolTip), "There is nothing to undo.")
        before = self.voxels()
        self.refined()
        self.click(self.ui.undoButton)
        self.assertEqual(self.voxels(), before)
        self.assertEqual(self.item("liver", 4).text(), "coarse")
        self.click(self.ui.redoButton)
        self.assertEqual(self.voxels(), before + 4)
        self.assertFalse(self.ui.redoButton.enabled)

    def test_undo_and_redo_say_what_they_undo(self):
        from SAMRefineLib.boxes.boxes import Box

        session = self.start()
        session.jump(6)
        self.refined()
        undo, redo = "Undo: refinement of liver, spleen. Key: Z.", ""
        self.assertEqual(read(self.ui.undoButton.toolTip), undo)
        session.edit_box(2, 6, Box(3, 4, 13, 15))
        self.assertEqual(read(self.ui.undoButton.toolTip), "Undo: boxes of spleen. Key: Z.")
        self.click(self.ui.undoButton)
        redo = "Redo: boxes of spleen. Key: Y."
        self.assertEqual(read(self.ui.undoButton.toolTip), undo)
        self.assertEqual(read(self.ui.redoButton.toolTip), redo)
        session.keep_coarse(1, True)
        self.assertIn("column Keep of liver", self.ui.undoButton.toolTip)
        session.remove_organ(2)
        self.assertIn("removal of spleen", self.ui.undoButton.toolTip)
        session.add_organ("left_kidney")
        self.assertIn("addition of left kidney", self.ui.undoButton.toolTip)
        self.ui.liveCheckBox.checked = True
        self.ui.maskThresholdSlider.value = 0.7
        self.assertIn("mask threshold from 0.50 to 0.70", self.ui.undoButton.toolTip)

    def test_an_outline_that_is_edited_by_hand_is_called_so(self):
        self.start()
        self.refined()
        self.widget.exit()  # to the Segment Editor
        array = np.zeros(SHAPE, np.uint8)
        array[LIVER] = 1
        array[3:6] = 0
        id = self.segmentation.GetSegmentation().GetSegmentIdBySegmentName("liver")
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, self.segmentation, id, self.volume)
        self.widget.enter()
        self.assertEqual(self.item("liver", 4).text(), "edited")
        self.assertIn("Edited by hand", self.item("liver", 4).toolTip())
        self.assertEqual(self.item("liver", 5).text(), "0.80")  # 6 slices of 9: 12 / 15
        self.assertEqual(self.item("spleen", 4).text(), "refined")
        before = self.voxels()
        self.click(self.ui.undoButton)  # of the refinement: the edit stays
        self.assertEqual(self.voxels(), before)
        self.assertEqual(self.item("liver", 4).text(), "edited")
        self.assertEqual(self.item("liver", 5).text(), "0.80")
        self.assertEqual(self.item("spleen", 4).text(), "coarse")
        self.widget.closeSession()
        self.widget.update()
        self.assertEqual(self.item("liver", 4).text(), "edited")
        self.tick("liver", 6, True)  # the outline from before
        self.assertEqual(self.item("liver", 4).text(), "kept")
        self.assertEqual(self.voxels(), 9 * 14 * 12)

    def test_an_outline_that_cannot_come_back_is_not_called_refined(self):
        self.start()
        self.refined()
        self.tick("liver", 6, True)
        self.widget.closeSession()  # as with a scene that is saved and loaded
        self.widget.update()
        self.tick("liver", 6, False)
        self.assertEqual(self.item("liver", 4).text(), "coarse")
        self.assertEqual(self.item("liver", 5).text(), "")

    def test_tooltips_name_the_key_of_buttons_that_work(self):
        self.start()
        self.assertEqual(
            read(self.ui.refineOrganButton.toolTip), "Have SAM redraw the chosen organ. Key: D."
        )
        self.assertEqual(read(self.ui.redoButton.toolTip), "There is nothing to redo.")

    def test_before_and_after_are_a_click_apart_and_change_no_voxel(self):
        session = self.start()
        self.refined()
        voxels = self.voxels()
        self.click(self.ui.beforeButton)
        self.assertTrue(session.before_shown)
        self.assertTrue(self.ui.beforeButton.checked)
        self.assertEqual(self.ui.beforeButton.text, "After")
        self.click(self.ui.beforeButton)
        self.assertFalse(session.before_shown)
        self.assertEqual(self.voxels(), voxels)

    def test_live_redraws_the_slice_and_then_the_organ(self):
        from SAMRefineLib.boxes.boxes import Box

        session = self.start()
        session.jump(6)
        self.ui.liveCheckBox.checked = True
        self.assertTrue(session.live)
        self.answerAll(np.zeros(SHAPE, np.uint8))
        session.edit_box(1, 6, Box(3, 4, 13, 15))
        first = self.asked()[-1]
        self.assertEqual(list(first.request.frames[0].effective()), [6])
        answer(first, np.zeros(SHAPE, np.uint8))
        whole = self.asked()[-1]
        self.assertGreater(len(whole.request.frames[0].effective()), 3)

    def test_live_follows_the_threshold_and_undo_takes_both_back(self):
        self.start()
        self.refined()
        self.ui.liveCheckBox.checked = True
        before = self.voxels()
        for value in (0.6, 0.7):
            self.ui.maskThresholdSlider.value = value
        self.answerAll(np.zeros(SHAPE, np.uint8))
        self.assertEqual(self.asked()[-1].request.parameters["mask_threshold"], 0.7)
        self.assertEqual(self.voxels(), 0)
        self.click(self.ui.undoButton)
        self.assertEqual(self.voxels(), before)
        self.assertAlmostEqual(self.ui.maskThresholdSlider.value, 0.5)
        self.click(self.ui.redoButton)
        self.assertAlmostEqual(self.ui.maskThresholdSlider.value, 0.7)
        self.assertEqual(self.voxels(), 0)

    def test_how_far_sam_has_looked_ahead_is_shown(self):
        self.start()
        self.assertIn("at once: 0 of 2", self.ui.embeddingLabel.text)
        answer(self.asked("embed")[0], np.zeros(SHAPE, np.uint8))
        self.assertIn("at once: 1 of 2", self.ui.embeddingLabel.text)
        answer(self.asked("embed")[1], np.zeros(SHAPE, np.uint8))
        self.assertIn("redrawn at once", self.ui.embeddingLabel.text)

    def test_what_sam_has_seen_is_forgotten_with_its_worker(self):
        from SRCSMSegmenterLib.scene import worker_host

        session = self.start()
        self.answerAll(np.zeros(SHAPE, np.uint8))
        self.assertIn("SAM has seen all organs", self.ui.embeddingLabel.text)
        for listener in worker_host._listeners:  # as after the end of its process
            listener()
        self.assertIn("at once: 0 of 2", self.ui.embeddingLabel.text)
        self.assertEqual(len(self.asked("embed")), 2)  # it is started again when it is needed
        session.edit_box(2, 6, replace(session.organ(2).frames.effective()[6], y0=25))
        self.answerAll(np.zeros(SHAPE, np.uint8))
        self.assertIn("SAM has seen all organs", self.ui.embeddingLabel.text)
        session.close()
        self.assertEqual(worker_host._listeners, [])

    # SAMs

    def test_the_sams_card_is_shown_on_request_and_the_choice_kept(self):
        self.assertIn("scan's modality", self.ui.samComboBox.currentText)
        self.assertFalse(shown(self.ui.samLabel))
        self.click(self.ui.infoButton)
        self.assertTrue(shown(self.ui.samLabel))
        self.assertIn("CC BY 4.0", self.ui.samLabel.text)
        self.assertNotIn("Trained on", self.ui.samLabel.text)  # it does not say
        self.click(self.ui.infoButton)
        self.assertFalse(shown(self.ui.samLabel))
        self.choose(self.ui.samComboBox, "Small SAM, CT")
        self.assertEqual(self.parameters.sam, "sam-small-ct")
        self.assertFalse(shown(self.ui.downloadFrame))

    def test_the_card_lists_the_organs_that_the_sam_was_trained_on(self):
        self.addShipped("sam-small-ct", ["spleen", "left_kidney", "liver"])
        self.widget.enter()
        said = "<b>Trained on:</b> left kidney, liver, spleen. Others stay with Refine all."
        self.assertIn(said, self.ui.samLabel.text)
        self.addShipped("sam-small-mr", ["liver"])  # the row is of both
        self.widget.enter()
        self.assertIn("<b>Trained on:</b> liver. Others", self.ui.samLabel.text)

    def test_a_chosen_sam_that_is_gone_is_told_without_a_click(self):
        self.parameters.sam = "sam-gone"
        self.assertTrue(shown(self.ui.samLabel))
        self.assertIn("sam-gone is not here", self.ui.samLabel.text)
        self.assertFalse(self.ui.infoButton.enabled)

    def test_a_sam_that_is_not_here_says_where_it_comes_from_and_fetches_nothing(self):
        self.start()
        with mock.patch("urllib.request.urlopen") as opened:
            self.choose(self.ui.samComboBox, "SAM ViT-B (not here yet)")
            self.assertTrue(shown(self.ui.downloadFrame))
        opened.assert_not_called()
        text = self.ui.downloadButton.text
        self.assertEqual(text, "Download 375 MB, dl.fbaipublicfiles.com, Apache-2.0")
        self.assertIn("sam_vit_b_01ec64.pth once, under the licence Apache-2.0",
                      self.ui.downloadButton.toolTip)  # fmt: skip
        self.assertFalse(self.ui.refineAllButton.enabled)
        self.assertIn("Download the SAM", self.ui.refineAllButton.toolTip)

    def test_a_download_is_fetched_at_a_click_and_removed_at_another(self):
        self.start()
        with serving(self.folder / "Server") as url, official(url):
            self.widget.enter()
            self.choose(self.ui.samComboBox, "SAM ViT-B (not here yet)")
            self.click(self.ui.downloadButton)
            self.assertTrue(shown(self.ui.downloadProgressFrame))
            self.assertFalse(shown(self.ui.downloadButton))
            waitWhile(lambda: shown(self.ui.downloadProgressFrame))
            path = self.folder / "Downloads" / "sam_vit_b_01ec64.pth"
            self.assertEqual(path.read_bytes(), CHECKPOINT)
            self.assertEqual(self.ui.samComboBox.currentText, "SAM ViT-B")
            self.assertFalse(shown(self.ui.downloadFrame))
            self.assertTrue(self.ui.refineAllButton.enabled)
            self.click(self.ui.removeSamButton)
            self.assertFalse(path.exists())
            self.assertTrue(shown(self.ui.downloadButton))

    def test_a_download_that_fails_says_why(self):
        with serving(self.folder / "Server") as url, official(url, file="absent.pth"):
            self.widget.enter()
            self.choose(self.ui.samComboBox, "SAM ViT-B (not here yet)")
            self.click(self.ui.downloadButton)
            waitWhile(lambda: shown(self.ui.downloadProgressFrame))
        self.assertIn("answered 404", self.ui.messageLabel.text)
        self.assertTrue(shown(self.ui.downloadButton))

    def test_what_has_arrived_of_a_download_is_shown(self):
        part = self.folder / "Downloads" / "sam_vit_b_01ec64.pth.part"
        part.parent.mkdir()
        part.write_bytes(b"0" * 2_000_000)
        self.choose(self.ui.samComboBox, "SAM ViT-B (not here yet)")
        self.assertIn("Resume: 2 MB of 375 MB", self.ui.downloadButton.text)

    def test_an_official_file_of_the_users_is_recognised(self):
        from SAMRefineLib.refine.organ_state import Settings

        own = self.folder / "mein Modell.pth"
        own.write_bytes(CHECKPOINT)
        with official("http://127.0.0.1:1"):
            self.widget.sams.addFile(str(own))
            waitWhile(lambda: shown(self.ui.downloadProgressFrame))
        self.assertEqual(self.parameters.sam, str(own.resolve()))
        self.assertEqual(self.ui.samComboBox.currentText, "SAM ViT-B")
        self.assertEqual(self.widget.sams.chosen_in(Settings()).sam_kind, "vit_b")
        self.click(self.ui.removeSamButton)
        self.assertTrue(own.exists())
        self.assertEqual(self.parameters.sam, "")

    def test_an_unknown_file_is_medsam_only_if_the_user_says_so(self):
        from SAMRefineLib.refine.organ_state import Settings

        own = self.folder / "medsam_vit_b.pth"
        own.write_bytes(b"weights")
        for said, kind in ((False, None), (True, "medsam")):
            with mock.patch.object(slicer.util, "confirmYesNoDisplay", return_value=said) as ask:
                self.widget.sams.addFile(str(own))
                waitWhile(lambda: shown(self.ui.downloadProgressFrame))
            self.assertIn(hashlib.sha256(b"weights").hexdigest(), ask.call_args[0][0])
            self.assertEqual(self.widget.sams.chosen_in(Settings()).sam_kind, kind)
            self.assertEqual(shown(self.ui.messageLabel), not said)
        self.click(self.ui.removeSamButton)

    def test_a_folder_without_a_sam_is_refused(self):
        self.widget.sams.addFolder(str(self.folder))
        self.assertIn("holds no SAM", self.ui.messageLabel.text)

    # Packages

    def test_missing_packages_are_named_and_boxes_can_be_made_without_them(self):
        from SRCSMSegmenterLib.panel import packages as slicer_packages

        needed = [slicer_packages.TORCH, slicer_packages.TORCHVISION, "segment-anything>=1.0"]
        self.packages(needed)
        self.widget.enter()
        for name in ("PyTorch", "torchvision", "segment-anything"):
            self.assertIn(name, self.ui.packagesLabel.text)
        self.assertIn("segment-anything", self.ui.offlineLabel.text)
        self.start()
        self.assertFalse(self.ui.refineAllButton.enabled)
        self.assertIn("Install", self.ui.refineAllButton.toolTip)
        self.assertEqual(self.runs(), [])
        with mock.patch.object(slicer_packages, "install") as install:
            self.packages([])
            self.ui.installButton.click()
        install.assert_called_once_with(needed, self.widget.requirements)
        self.assertTrue(self.widget.requirements.is_file())
        self.assertTrue(self.ui.refineAllButton.enabled)

    # Life cycle

    def test_boxes_come_back_with_the_scene_and_the_choices_too(self):
        session = self.start()
        session.switch_off(1, 8)
        self.ui.maskThresholdSlider.value = 0.6
        self.widget.closeSession()
        self.widget.update()
        self.assertIsNot(self.session, session)
        self.assertEqual(self.session.organ(1).frames.off, frozenset({8}))
        self.assertAlmostEqual(self.ui.maskThresholdSlider.value, 0.6)

    def test_a_scene_that_is_loaded_while_the_panel_is_open_is_shown(self):
        session = self.start()
        session.switch_off(1, 8)
        self.refined()
        self.ui.maskThresholdSlider.value = 0.6
        self.ui.organTable.selectRow(1)
        file = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(file))
        session.switch_off(2, 5)  # which the file does not know
        slicer.mrmlScene.ReadFromMRB(file, True)
        self.assertTrue(session.closed)
        self.assertIsNotNone(self.session)
        self.assertEqual(self.ui.inputSelector.currentNode().GetName(), "MR")
        self.assertIs(self.session.volumeNode, self.ui.inputSelector.currentNode())
        self.assertEqual(self.session.organ(1).frames.off, frozenset({8}))
        self.assertEqual(self.session.organ(2).frames.off, frozenset())
        self.assertEqual(self.session.active, 2)
        self.assertAlmostEqual(self.ui.maskThresholdSlider.value, 0.6)
        self.assertEqual(self.item("spleen", 5).text(), "0.88")
        self.volume = self.session.volumeNode
        self.refined()
        self.assertIn("SAM redrew", self.ui.resultLabel.text)

    def test_boxes_that_are_closed_during_a_run_are_no_fault(self):
        self.start()
        self.click(self.ui.refineAllButton)
        self.widget.startFrom(self.segmentation, addVolume(name="other"))  # from the other module
        self.assertFalse(shown(self.ui.messageLabel))
        self.assertIn("boxes were closed", self.ui.logText.plainText)

    def test_slices_that_sam_did_not_redraw_are_not_counted_as_redrawn(self):
        session = self.start()
        session.remove_organ(2)
        session.add_organ("cyst")
        asked = sum(len(organ.frames.effective()) for organ in session.organs)
        self.refined()  # one slice of each is doubtful
        text = read(self.ui.resultLabel.text)
        self.assertIn(f"SAM redrew liver, cyst in {asked - 1} slices.", text)
        self.assertIn("The coarse outline stayed in 1 slice: SAM is unsure (1).", text)
        self.assertIn("Check 1 slice, for SAM's outline may be wrong: SAM is unsure (1).", text)

    def test_another_volume_or_axis_lets_go_of_the_boxes_and_coming_back_finds_them(self):
        session = self.start()
        other = addVolume(name="other")
        self.ui.inputSelector.setCurrentNode(other)
        self.assertTrue(session.closed)
        self.assertIsNone(self.session)
        self.assertTrue(shown(self.ui.boxesButton))
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.assertIsNotNone(self.session)
        self.choose(self.ui.axisComboBox, "Across I")
        self.assertIsNone(self.session)
        self.choose(self.ui.axisComboBox, "Across K")
        self.assertIsNotNone(self.session)

    def test_closing_the_scene_mid_run_starts_afresh(self):
        session = self.start()
        self.click(self.ui.refineAllButton)
        run = session.run
        slicer.mrmlScene.Clear()
        self.assertTrue(run.finished)
        self.assertTrue(session.closed)
        self.assertIsNone(self.session)
        self.widget.enter()
        self.assertIsNone(self.ui.inputSelector.currentNode())
        self.assertFalse(shown(self.ui.organsCollapsibleButton))
        self.assertFalse(shown(self.ui.progressFrame))

    def test_deleting_what_is_in_use_mid_run_does_no_harm(self):
        for name in ("volume", "segmentation"):
            session = self.start()
            self.click(self.ui.refineAllButton)
            slicer.mrmlScene.RemoveNode(getattr(self, name))
            self.assertTrue(session.closed)
            self.assertIsNone(self.session)
            self.assertFalse(shown(self.ui.progressFrame))
            self.volume, self.segmentation = None, None
            slicer.mrmlScene.Clear()
            addView()
            self.volume = addVolume()
            self.segmentation = addSegmentation(self.volume)
            self.widget.enter()

    def test_deleting_what_is_in_use_leaves_nothing_of_the_boxes_behind(self):
        for name, opened in itertools.product(("volume", "segmentation"), (True, False)):
            before = nodeNames()
            self.start()
            self.assertIn("liver box", nodeNames() - before)
            if not opened:
                self.ui.inputSelector.setCurrentNode(addVolume(name="other"))
                self.assertIsNone(self.session)
                before.add("other")
            removed = getattr(self, name)
            slicer.mrmlScene.RemoveNode(removed)
            self.assertEqual(nodeNames(), before - {removed.GetName()})
            self.assertIsNone(self.session)
            slicer.mrmlScene.Clear()
            addView()
            self.volume = addVolume()
            self.segmentation = addSegmentation(self.volume)
            self.widget.enter()

    def test_what_was_said_of_other_boxes_or_scenes_is_gone(self):
        self.start()
        self.refined()
        self.assertTrue(shown(self.ui.resultLabel))
        other = addVolume(name="other")
        self.ui.inputSelector.setCurrentNode(other)
        self.assertFalse(shown(self.ui.resultLabel))
        self.ui.inputSelector.setCurrentNode(self.volume)
        self.refined()
        slicer.mrmlScene.RemoveNode(self.segmentation)
        self.assertFalse(shown(self.ui.resultLabel))
        self.segmentation = addSegmentation(self.volume)
        self.start()
        self.refined()
        self.widget.panel.show_message("an error")
        slicer.mrmlScene.Clear()
        self.widget.enter()
        self.assertFalse(shown(self.ui.resultLabel))
        self.assertFalse(shown(self.ui.messageLabel))

    def test_boxes_of_a_segmentation_that_was_made_anew_are_not_used(self):
        self.segmentation.SetAttribute("SRCSM.Date", "2026-01-01T00:00:00+00:00")
        session = self.start()
        self.refined()
        self.widget.exit()
        self.segmentation.SetAttribute("SRCSM.Date", "2026-01-02T00:00:00+00:00")
        with self.assertRaisesRegex(Exception, "made anew"):
            session.refine()
        self.widget.enter()
        self.assertTrue(session.closed)
        self.assertIsNone(self.session)
        self.assertIn("made anew", self.ui.warningLabel.text)
        self.assertFalse(shown(self.ui.resultLabel))
        with self.assertRaisesRegex(Exception, "made anew"):
            self.widget.logic.openBoxes(session.node)
        self.click(self.ui.boxesButton)
        self.assertEqual(self.item("liver", 4).text(), "coarse")
        self.assertEqual(self.widget.logic.savedBoxes(), [self.session.node])
        self.assertFalse(shown(self.ui.warningLabel))

    def test_the_volume_that_is_shown_is_chosen_and_what_is_worked_on_is_shown(self):
        scene = slicer.mrmlScene
        scene.Clear()
        addView()
        first, second = addVolume(name="first"), addVolume(name="second")
        classes = "vtkMRMLSliceCompositeNode"
        view = scene.GetFirstNodeByClass(classes) or scene.AddNewNodeByClass(classes)
        view.SetBackgroundVolumeID(second.GetID())
        self.widget.enter()
        self.parameters.inputVolume = None
        self.widget.enter()
        self.assertEqual(self.ui.inputSelector.currentNode(), second)
        self.ui.inputSelector.setCurrentNode(first)
        self.ui.segmentationSelector.setCurrentNode(None)
        self.click(self.ui.boxesButton)
        self.assertEqual(view.GetBackgroundVolumeID(), first.GetID())

    def test_a_volume_that_loses_its_voxels_is_told_in_a_sentence(self):
        self.start()
        self.volume.SetAndObserveImageData(None)
        self.widget.update()
        self.assertEqual(self.ui.organTable.rowCount, 2)
        self.click(self.ui.refineAllButton)
        self.assertIn("has no voxels", self.ui.messageLabel.text)

    def test_a_volume_whose_voxels_come_after_it_can_be_boxed(self):
        late = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "late")
        self.ui.inputSelector.setCurrentNode(late)
        self.assertFalse(self.ui.boxesButton.enabled)
        late.CopyOrientation(self.volume)
        late.SetAndObserveImageData(self.volume.GetImageData())
        waitWhile(lambda: not self.ui.boxesButton.enabled)

    def test_a_volume_that_moves_away_from_its_segmentation_is_not_refined(self):
        session = self.start()
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        self.volume.SetAndObserveTransformNodeID(transform.GetID())
        self.click(self.ui.refineAllButton)
        self.assertEqual(self.asked(), [])
        self.assertIn("lie under different transforms", read(self.ui.messageLabel.text))
        self.segmentation.SetAndObserveTransformNodeID(transform.GetID())
        self.refined()
        self.assertIs(self.session, session)
        self.assertFalse(shown(self.ui.messageLabel))

    def test_boxes_of_another_grid_give_way_to_new_ones(self):
        """As after a transform was hardened: a sentence, and the button that it speaks of."""
        self.start()
        self.volume.SetSpacing(2, 2, 2)
        self.widget.update()
        self.assertIsNone(self.session)
        self.assertIn("make new boxes", read(self.ui.messageLabel.text))
        self.click(self.ui.boxesButton)
        self.assertFalse(shown(self.ui.messageLabel))
        self.assertTrue(self.session.organs)

    def test_a_box_whose_display_was_deleted_gets_another(self):
        session = self.start()
        slicer.mrmlScene.RemoveNode(session.bound(1).GetDisplayNode())
        self.click(self.ui.resetAllButton)
        self.assertFalse(session.bound(1).GetDisplayNode().GetFillVisibility())

    def test_the_active_organ_comes_back(self):
        self.start()
        self.ui.organTable.selectRow(1)
        self.widget.exit()
        self.widget.closeSession()
        self.widget.enter()
        self.assertEqual(self.session.active, 2)
        self.assertEqual(self.widget.panel.selected_organ(), 2)
        self.session.switch_off(1, 8)
        self.session.undo()  # goes to the organ that it changes
        self.assertEqual(self.session.active, 1)
        self.ui.maskThresholdSlider.value = 0.6
        self.assertEqual(self.session.active, 1)

    def test_a_roi_that_is_deleted_takes_its_organ_along(self):
        session = self.start()
        slicer.mrmlScene.RemoveNode(session.bound(2))
        self.assertEqual(self.ui.organTable.rowCount, 1)
        self.click(self.ui.undoButton)
        self.assertEqual(self.ui.organTable.rowCount, 2)

    def test_the_result_of_a_run_is_kept_when_the_panel_was_left(self):
        self.start()
        before = self.voxels()
        self.click(self.ui.refineAllButton)
        self.widget.exit()
        labels = np.zeros(SHAPE, np.uint8)
        labels[LIVER] = 1
        labels[8, 24, 11:15] = 1
        answer(self.asked()[-1], labels)
        self.widget.enter()
        self.assertEqual(self.voxels(), before + 4)
        self.assertEqual(self.item("liver", 4).text(), "refined")
        self.click(self.ui.undoButton)
        self.assertEqual(self.voxels(), before)

    def test_away_from_the_module_nothing_is_done_unasked(self):
        session = self.start()
        self.ui.liveCheckBox.checked = True
        self.widget.exit()
        self.assertFalse(session.live)
        self.assertFalse(session.ahead)
        self.widget.enter()
        self.assertTrue(session.live)

    def test_boxes_are_hidden_while_another_module_is_open(self):
        session = self.start()
        box = session.slice_box(session.active)
        self.assertTrue(box.GetDisplayNode().GetVisibility())
        self.widget.exit()
        self.assertFalse(box.GetDisplayNode().GetVisibility())
        session.set_shown(session.active, True)  # as a script may meanwhile
        self.assertFalse(box.GetDisplayNode().GetVisibility())
        self.widget.enter()
        self.assertTrue(box.GetDisplayNode().GetVisibility())

    def test_a_second_click_adds_no_second_organ(self):
        session, before = self.start(), len(self.session.organs)
        session.live = True
        line = self.ui.newOrganComboBox.lineEdit()
        line.setText("stomach")
        self.click(self.ui.addOrganButton)
        self.assertEqual(len(session.organs), before + 1)
        self.assertFalse(self.ui.addOrganButton.enabled)
        self.widget.onOrganEntered()
        self.assertEqual(len(session.organs), before + 1)
        # Its box is not where the organ is yet: nothing is redrawn.
        self.assertFalse(session.background.redrawing)
        self.ui.newOrganComboBox.lineEdit().setText("duodenum")
        self.widget.onOrganEntered()
        self.assertEqual(len(session.organs), before + 2)

    def test_making_boxes_can_be_cancelled(self):
        from SRCSMSegmenterLib.panel import waiting

        nothing = lambda: None  # noqa: E731
        dialog = SimpleNamespace(
            wasCanceled=True, value=0, show=nothing, close=nothing, deleteLater=nothing
        )
        self.parameters.segmentation = self.segmentation
        count = slicer.mrmlScene.GetNumberOfNodes()
        with (
            mock.patch.object(waiting, "PATIENCE_S", -1.0),
            mock.patch.object(waiting, "_dialog", lambda text: dialog),
        ):
            slow = lambda function: lambda *a: (time.sleep(0.1), function(*a))[1]  # noqa: E731
            with mock.patch.object(waiting, "_run", slow(waiting._run)):
                self.widget.onMakeBoxes()
        self.assertIsNone(self.session)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        self.widget.onMakeBoxes()
        self.assertIsNotNone(self.session)

    def test_the_head_of_a_column_ticks_all_or_none(self):
        session = self.start()
        self.tick(session.organs[0].name, 1, False)
        self.widget.onColumnClicked(1)
        self.assertTrue(all(organ.enabled for organ in session.organs))
        self.widget.onColumnClicked(1)
        self.assertFalse(any(organ.enabled for organ in session.organs))
        self.widget.onColumnClicked(2)  # names have no ticks

    def test_undo_shows_the_slice_that_it_changes(self):
        session = self.start()
        boxes = session.organ(1).frames.effective()
        first, last = min(boxes), max(boxes)
        box = boxes[first]
        session.edit_box(1, first, replace(box, x1=box.x1 + 1))
        session.jump(last)
        session.active = None
        session.undo()
        self.assertEqual(session.active, 1)
        self.assertLess(session.slice, last)
        session.jump(last)
        session.redo()
        self.assertLess(session.slice, last)

    def test_coming_and_going_leaves_no_observer_and_no_key_behind(self):
        self.start()
        before, keys = len(self.widget.Observations), len(self.widget.shortcuts.installed)
        for _ in range(3):
            self.widget.exit()
            self.assertLess(len(self.widget.Observations), before)
            self.assertEqual(self.widget.shortcuts.installed, [])
            self.widget.enter()
        self.assertEqual(len(self.widget.Observations), before)
        self.assertEqual(len(self.widget.shortcuts.installed), keys)


SHAPE = (16, 36, 30)
LIVER = (slice(3, 12), slice(10, 24), slice(8, 20))
SPLEEN = (slice(4, 9), slice(26, 33), slice(10, 18))


def nodeNames():
    """Names of the nodes of the scene that a user may see."""
    classes = "vtkMRMLDisplayableNode", "vtkMRMLScriptedModuleNode"
    nodes = [node for each in classes for node in slicer.util.getNodesByClass(each)]
    return {node.GetName() for node in nodes if not node.GetHideFromEditors()}


def drawnRoi():
    from SAMRefineLib.scene.roi_views import drawn_roi

    return drawn_roi()


def read(text):
    """Return what is read of a text: Slicer marks up tooltips, to wrap them."""
    import qt

    document = qt.QTextDocument()
    document.setHtml(text)
    return document.toPlainText()


def shown(widget):
    """Not hidden, whether or not the module is the one that Slicer shows now."""
    return not widget.isHidden()


def waitWhile(condition):
    """Leave the event loop to Qt meanwhile, as Slicer does."""
    end = time.monotonic() + 60
    while condition():
        slicer.app.processEvents()
        time.sleep(0.01)
        assert time.monotonic() < end, "it takes too long"


def addView():
    """Add a slice view if Slicer has none."""
    scene = slicer.mrmlScene
    if scene.GetFirstNodeByClass("vtkMRMLSliceNode") is None:
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
        view.SetOrientationToAxial()


def mouseNodes():
    """Those that say what a click into a view does."""
    classes = "vtkMRMLSelectionNode", "vtkMRMLInteractionNode"
    scene = slicer.mrmlScene
    return [scene.GetFirstNodeByClass(each) or scene.AddNewNodeByClass(each) for each in classes]


def addVolume(spacing=(3, 3, 5), name="MR"):
    """Add a volume of `SHAPE` with axial slices."""
    array = np.random.default_rng(4).uniform(0, 900, SHAPE).astype(np.float32)
    return slicer.util.addVolumeFromArray(array, np.diag([*spacing, 1.0]), name)


def addSegmentation(volume, **more):
    """Two organs, as SRCSMSegmenter leaves them in the scene."""
    from SRCSMSegmenterLib.geometry import Volume
    from SRCSMSegmenterLib.scene import nodes, results
    from SRCSMSegmenterLib.scene.result import Result, SegmentedOrgan

    geometry = nodes.node_geometry(volume)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[LIVER], labels[SPLEEN] = 1, 2
    organs = (
        SegmentedOrgan("liver", 1, (221, 130, 101), "", 1432.25),
        SegmentedOrgan("spleen", 2, (157, 108, 162), "", 160.0),
    )
    result = Result(Volume(labels, geometry), organs, **more)
    return results.place(result, volume).segmentation


@contextlib.contextmanager
def serving(folder):
    """Serve `CHECKPOINT` on this machine, and yield the address."""
    folder.mkdir()
    (folder / "sam_vit_b_01ec64.pth").write_bytes(CHECKPOINT)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def official(url, file="sam_vit_b_01ec64.pth"):
    """As if SAM ViT-B were `CHECKPOINT`, to be had from a server of this machine."""
    from SAMRefineLib.sam.checkpoints import CHECKPOINTS

    entry = replace(
        CHECKPOINTS["vit_b"],
        sha256=hashlib.sha256(CHECKPOINT).hexdigest(),
        bytes=len(CHECKPOINT),
        url=f"{url}/{file}",
    )
    with mock.patch.dict(CHECKPOINTS, vit_b=entry):
        yield
