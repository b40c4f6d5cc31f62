# SPDX-License-Identifier: Apache-2.0
"""The panel of SAM Refine: the real .ui files and code, on stand-ins for Slicer's widgets.

What a user does is in SAMRefine/Testing/SAMRefinePanelTest.py, which Slicer's own test runner runs
too. Here is what needs no Slicer or cannot be seen there.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import qt_host
import slicer
import vtk

sys.path.insert(0, str(qt_host.ROOT / "SAMRefine" / "Testing"))

from SAMRefinePanelTest import SAMRefinePanelTest, addSegmentation, addVolume  # noqa: F401

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def modules():
    """Those that are loaded; the first one's panel is given."""
    return ("SAMRefine",)


@pytest.fixture(autouse=True)
def window(tmp_path, monkeypatch, modules):
    """The panel in a window, with all packages there, and no SAM: it would set to work."""
    monkeypatch.setenv("SRCSM_MODELS", str(tmp_path / "Models"))
    packaging = SimpleNamespace(load_requirements=lambda path: [], pip_check=lambda one: True)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    with qt_host.slicer_with_qt(tmp_path / "settings.ini", *modules) as window:
        yield window


READS_A_SCENE = "test_a_scene_that_is_loaded_while_the_panel_is_open_is_shown"
ALONE = "SRCSM_TEST_ALONE"


@pytest.fixture(autouse=True)
def alone(request):
    """Leave the test that reads a scene, which changes the views for good, to its own process."""
    if request.node.name == READS_A_SCENE and ALONE not in os.environ:
        pytest.skip("it runs in a process of its own")


def test_a_scene_is_read_in_a_process_of_its_own():
    test = f"{__file__}::SAMRefinePanelTest::{READS_A_SCENE}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    run = subprocess.run(command, env=os.environ | {ALONE: "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


UNBOUND = {"sam", "organ"}
"""Parameters that no widget holds as they are; the panel brings them up to date itself."""


def test_every_parameter_is_bound_to_one_widget_of_its_type(window):
    from SAMRefineLib.panel.parameters import Axis, NeighbourChoice, Parameters
    from SRCSMSegmenterLib.panel.parameters import Device

    bound = qt_host.bound_widgets("SAMRefine")
    assert Parameters.dataTypes.keys() == bound.keys() | UNBOUND
    assert not bound.keys() & UNBOUND
    ui = vars(window.self().ui)
    assert {
        name: (type(ui[widget]).__name__, Parameters.dataTypes[name])
        for name, widget in bound.items()
    } == {
        "inputVolume": ("NodeComboBox", slicer.vtkMRMLScalarVolumeNode),
        "segmentation": ("NodeComboBox", slicer.vtkMRMLSegmentationNode),
        "axis": ("QComboBox", Axis),
        "mask_threshold": ("SliderWidget", float),
        "live": ("QCheckBox", bool),
        "neighbours": ("QComboBox", NeighbourChoice),
        "device": ("QComboBox", Device),
    }


def test_the_choices_are_the_engines():
    from typing import get_args

    from SAMRefineLib.panel.parameters import NeighbourChoice
    from SAMRefineLib.refine.organ_state import NeighbourRule

    assert {each.value for each in NeighbourChoice} == set(get_args(NeighbourRule))


def test_a_slider_without_a_range_is_refused(window):
    parameters, ui = window.self().logic.getParameterNode(), window.self().ui
    with pytest.raises(RuntimeError, match="cannot hold"):
        parameters.connectParametersToGui({"live": ui.maskThresholdSlider})
    with pytest.raises(ValueError, match=r"mask_threshold is from 0\.05 to 0\.95"):
        parameters.mask_threshold = 0.99


def test_every_control_has_a_tooltip_and_disabled_buttons_say_why(window):
    window.self().startFrom(None, addVolume())
    qt_host.assert_tooltips(window.self().ui)
    for name, widget in vars(window.self().ui).items():
        if type(widget).__name__ == "QPushButton" and not widget.enabled:
            assert qt_host.read(widget.toolTip).endswith("."), name


def test_rows_make_the_panel_no_wider(window):
    volume = addVolume()
    window.self().startFrom(addSegmentation(volume), volume)
    assert window.self().ui.organTable.rowCount == 2
    assert window.panel.too_wide() == ""


@pytest.mark.parametrize(
    "name", ["samComboBox", "axisComboBox", "inputSelector", "neighboursComboBox"]
)
def test_the_wheel_turns_no_value(window, name):
    from PySide6.QtCore import QPoint, QPointF, Qt
    from PySide6.QtGui import QWheelEvent
    from PySide6.QtWidgets import QApplication

    addVolume()
    addVolume(name="second")
    window.self().enter()
    widget = vars(window.self().ui)[name]
    box = widget if widget.inherits("QComboBox") else widget.findChild(qt_host.qt.QComboBox)
    before, at = box.currentIndex, QPointF(5, 5)
    event = QWheelEvent(at, at, QPoint(), QPoint(0, -120), Qt.NoButton, Qt.NoModifier,
                        Qt.NoScrollPhase, False)  # fmt: skip
    QApplication.sendEvent(box, event)
    assert box.count > before + 1
    assert box.currentIndex == before


def test_keys_press_buttons_while_the_module_is_open(window):
    from PySide6.QtGui import QShortcut

    def keys():
        return {
            shortcut.key.toString(): shortcut
            for shortcut in slicer.util.mainWindow().findChildren(QShortcut)
        }

    widget, volume = window.self(), addVolume()
    widget.startFrom(addSegmentation(volume), volume)
    widget.session.switch_off(1, 8)
    assert keys().keys() == {"P", "N", "D", "Z", "Y", "C"}
    for key in keys():
        assert f"<b>{key}</b>" in widget.ui.shortcutsLabel.text
    keys()["Z"].activated.emit()
    assert not widget.session.can_undo
    keys()["Y"].activated.emit()
    assert widget.session.can_undo
    keys()["D"].activated.emit()  # there is no SAM: its button is disabled
    assert widget.session.run is None
    widget.exit()
    assert keys() == {}


def test_a_panel_that_is_made_but_not_opened_takes_no_keys_and_does_nothing(window):
    window.self().cleanup()
    window.isEntered = False
    window.reload()
    widget = window.self()
    addSegmentation(addVolume())
    assert widget.shortcuts.installed == []
    assert widget._parameterNode is None
    slicer.mrmlScene.Clear(0)
    assert widget._parameterNode is None
    widget.enter()
    assert len(widget.shortcuts.installed) == 6


def test_starting_from_elsewhere_opens_the_module(window):
    widget, volume = window.self(), addVolume()
    widget.exit()
    window.isEntered = False
    widget.startFrom(addSegmentation(volume), volume)
    assert window.isEntered
    assert len(widget.session.organs) == 2


def test_settings_of_an_older_scene_are_read(window):
    """A parameter node that knows only some of the parameters, as an older version saved it."""
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("SAMRefine")
    node.SetParameter("axis", "J")
    window.self().exit()
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.AddNode(node)
    window.self().enter()
    assert window.self().ui.axisComboBox.currentText == "Across J"
    assert window.self().logic.getParameterNode().mask_threshold == 0.5


def test_a_scene_with_the_old_name_of_the_mask_threshold_is_read(window):
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("SAMRefine")
    node.SetParameter("threshold", "0.7")
    window.self().exit()
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.AddNode(node)
    window.self().enter()
    assert window.self().logic.getParameterNode().mask_threshold == 0.7
    assert window.self().ui.maskThresholdSlider.value == 0.7


def test_reloading_goes_on_with_the_boxes_and_leaves_nothing_of_the_old(window):
    old, volume = window.self(), addVolume()
    segmentation = addSegmentation(volume)
    old.startFrom(segmentation, volume)
    old.session.switch_off(1, 8)
    session = old.session
    old.onReload()
    new = window.self()
    assert new is not old
    assert session.closed
    assert old.Observations == []
    assert old.shortcuts.installed == []
    assert new.session.organ(1).frames.off == frozenset({8})
    assert type(new.session) is not type(session)


def test_ending_closes_the_session_and_leaves_no_observer_or_timer(window, monkeypatch):
    from SRCSMSegmenterLib.scene import worker_host

    stopped = []
    monkeypatch.setattr(worker_host, "stop_worker", lambda: stopped.append(True))
    volume = addVolume()
    segmentation = addSegmentation(volume)
    nodes = [volume, segmentation, slicer.mrmlScene]
    before = [each.HasObserver(vtk.vtkCommand.ModifiedEvent) for each in nodes]
    widget = window.self()
    widget.startFrom(segmentation, volume)
    session = widget.session
    widget.cleanup()
    assert stopped == [True]
    assert session.closed
    assert widget.Observations == []
    assert widget.shortcuts.installed == []
    assert not widget.sams.timer.active
    assert [each.HasObserver(vtk.vtkCommand.ModifiedEvent) for each in nodes] == before
    event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
    assert not volume.HasObserver(event)
    slicer.mrmlScene.Clear(0)  # must not reach the panel
    assert widget._parameterNode is None


def test_a_download_under_way_ends_with_the_panel(window, monkeypatch):
    from SAMRefineLib.sam.downloads import InBackground
    from SRCSMSegmenterLib.errors import Cancelled

    def endless(progress, cancelled):
        while not cancelled():
            pass
        raise Cancelled("stopped")

    sams = window.self().sams
    sams.start(endless, lambda work: None)
    work = sams.work
    assert isinstance(work, InBackground)
    assert sams.timer.active
    window.self().cleanup()
    work.wait(60)
    assert work.finished
    assert not sams.timer.active


def test_the_logic_only_forwards(window):
    logic = sys.modules["SAMRefine"].SAMRefineLogic()
    work = sys.modules["SAMRefineLib.scene.logic"]
    assert logic.boxes.func is work.boxes
    assert logic.openBoxes.func is work.open_boxes
    assert logic.savedBoxes is work.saved_boxes
    assert logic.refine is work.refine


@pytest.mark.parametrize("modules", [("SRCSMSegmenter", "SAMRefine")])
def test_the_segmenters_button_leads_here(window, modules):
    slicer.util.selectModule("SRCSMSegmenter")
    segmenter, volume = window.self(), addVolume()
    segmentation = addSegmentation(volume)
    segmenter.logic.getParameterNode().result = segmentation
    assert segmenter.ui.refineButton.enabled
    segmenter.ui.refineButton.click()
    refine = slicer.util.getModuleWidget("SAMRefine")
    assert not window.isEntered
    assert refine.session.segmentationNode is segmentation
    assert [organ.name for organ in refine.session.organs] == ["liver", "spleen"]


@pytest.mark.slow
def test_clicks_refine_with_a_real_worker(window, tmp_path, monkeypatch):
    import os

    from SAMRefinePanelTest import waitWhile
    from tiny_sam import small_model

    from SAMRefineLib.sam.models import save_sam

    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(os.environ))
    save_sam(tmp_path / "sam-tiny", small_model(), "# tiny\n\n- Licence: none\n", "none")
    widget, volume = window.self(), addVolume()
    widget.startFrom(addSegmentation(volume), volume)
    widget.sams.addFolder(str(tmp_path / "sam-tiny"))
    assert widget.ui.refineAllButton.enabled
    waitWhile(lambda: "looking ahead" in widget.ui.embeddingLabel.text)
    assert "redrawn at once" in widget.ui.embeddingLabel.text
    widget.ui.refineAllButton.click()
    waitWhile(lambda: widget.session.run is not None)
    assert widget.ui.messageLabel.text == ""
    assert widget.ui.resultLabel.text.startswith("SAM redrew liver, spleen")
    assert all(organ.report is not None for organ in widget.session.organs)
