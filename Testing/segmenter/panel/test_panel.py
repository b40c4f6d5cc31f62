# SPDX-License-Identifier: Apache-2.0
"""The panel: the real .ui file and the real code, on stand-ins for Slicer's widgets.

What a user does is in SRCSMSegmenter/Testing/SRCSMSegmenterPanelTest.py, which Slicer's own test
runner runs too. Here is what needs no Slicer or cannot be seen there.
"""

import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import qt_host
import slicer
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QApplication, QSizePolicy

MODULE_FOLDER = Path(__file__).resolve().parents[3] / "SRCSMSegmenter"
sys.path.insert(0, str(MODULE_FOLDER / "Testing"))

from SRCSMSegmenterPanelTest import (  # noqa: E402
    SRCSMSegmenterPanelTest,  # noqa: F401 - run here
    addVolume,
    placeResult,
)

pytestmark = pytest.mark.needs_slicer

BOUND = qt_host.bound_widgets("SRCSMSegmenter")

UNBOUND = {"model", "skippedOrgans", "show3D", "result"}
"""Parameters that no widget holds as they are; the panel brings them up to date itself."""


@pytest.fixture
def modules():
    """Those that are loaded; the first one's panel is given."""
    return ("SRCSMSegmenter",)


@pytest.fixture(autouse=True)
def window(tmp_path, monkeypatch, modules):
    """The panel in a window, with all packages there."""
    packaging = SimpleNamespace(load_requirements=lambda path: [], pip_check=lambda one: True)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    with qt_host.slicer_with_qt(tmp_path / "settings.ini", *modules) as window:
        yield window


def test_every_parameter_is_bound_to_one_widget_of_its_type(window):
    from SRCSMSegmenterLib.panel.parameters import Device, Parameters, SourceMatching

    assert Parameters.dataTypes.keys() == BOUND.keys() | UNBOUND
    assert not BOUND.keys() & UNBOUND
    expected = {
        "inputVolume": ("NodeComboBox", slicer.vtkMRMLScalarVolumeNode),
        "outputSegmentation": ("NodeComboBox", slicer.vtkMRMLSegmentationNode),
        "frame": ("QSpinBox", int),
        "allFrames": ("QCheckBox", bool),
        "sourceMatching": ("QComboBox", SourceMatching),
        "device": ("QComboBox", Device),
        "keepLargest": ("QCheckBox", bool),
        "refine": ("QCheckBox", bool),
    }
    ui = vars(window.self().ui)
    found = {
        name: (type(ui[widget]).__name__, Parameters.dataTypes[name])
        for name, widget in BOUND.items()
    }
    assert found == expected


def test_a_parameter_on_a_widget_that_cannot_hold_it_is_refused(window):
    parameters, ui = window.self().logic.getParameterNode(), window.self().ui
    with pytest.raises(RuntimeError, match="cannot hold"):
        parameters.connectParametersToGui({"refine": ui.frameSpinBox})
    with pytest.raises(RuntimeError, match="cannot hold"):
        parameters.connectParametersToGui({"model": ui.modelComboBox})
    with pytest.raises(ValueError, match="no parameter volume"):
        parameters.connectParametersToGui({"volume": ui.inputSelector})


def test_the_host_refuses_what_pythonqt_refuses(window):
    ui = window.self().ui
    with pytest.raises(ValueError, match="no signal pressedd"):
        ui.segmentButton.connect("pressedd()", print)
    with pytest.raises(ValueError, match="cannot be"):
        ui.progressBar.value = "half"
    with pytest.raises(TypeError, match="PythonQt takes no text="):
        qt_host.qt.QLabel(text="half")
    with pytest.raises(TypeError, match="PythonQt takes no type="):
        qt_host.qt.QListWidgetItem("liver", type=7)
    with pytest.raises(AttributeError, match=r"it is QHeaderView\.Stretch, not"):
        _ = qt_host.qt.QHeaderView.ResizeMode.Stretch
    with pytest.raises(AttributeError, match=r"it is Qt\.Checked"):
        _ = qt_host.qt.Qt.CheckState.Checked
    assert qt_host.qt.Qt.Checked == Qt.Checked


@pytest.mark.parametrize("name", ["SRCSMSegmenter", "SRCSMCommon", "SAMRefine"])
def test_custom_widgets_are_given_only_properties_they_have(name):
    for widget in qt_host.ui_file(name).iter("widget"):
        stand_in = qt_host.CUSTOM.get(widget.get("class"))
        if stand_in is not None:
            meta = stand_in.staticMetaObject
            declared = {meta.property(n).name() for n in range(meta.propertyCount())}
            used = {each.get("name") for each in widget.findall("property")}
            assert used - {"SlicerParameterName"} <= declared, widget.get("name")


@pytest.mark.parametrize("name", ["SRCSMSegmenter", "SRCSMCommon", "SAMRefine"])
def test_text_follows_the_style_as_no_widget_has_a_style_sheet(window, name):
    properties = [each.get("name") for each in qt_host.ui_file(name).iter("property")]
    assert "text" in properties
    assert "styleSheet" not in properties
    with pytest.raises(ValueError, match="stays black"):
        window.self().ui.messageLabel.styleSheet = "color: red"


def test_every_control_has_a_tooltip(window):
    qt_host.assert_tooltips(window.self().ui)


def test_rows_make_the_panel_no_wider(window):
    volume = addVolume("a volume with a name that is longer than any panel could be", 0.0, 900.0)
    widget = window.self()
    widget.enter()
    widget.logic.getParameterNode().result = placeResult(volume)
    widget.update()
    assert widget.ui.resultTable.rowCount == 2
    assert window.panel.too_wide() == ""


def test_a_panel_that_widens_itself_is_caught(window):
    """As a table that adjusts to its contents does, with a last column that is stretched."""
    from PySide6.QtWidgets import QAbstractScrollArea

    widget = window.self()
    widget.enter()
    widget.logic.getParameterNode().result = placeResult(addVolume("MR", 0.0, 900.0))
    table = widget.ui.resultTable
    table.setSizeAdjustPolicy(QAbstractScrollArea.AdjustToContents)
    table.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Maximum)
    assert "resultTable makes the panel" in window.panel.too_wide()
    slicer.mrmlScene.Clear(0)
    for _ in range(3):  # layouts within layouts shrink one after another
        slicer.app.processEvents()


def test_nothing_moves_when_a_run_starts_or_ends(window):
    widget, ui = window.self(), window.self().ui
    addVolume("MR", 0.0, 900.0)
    widget.enter()

    def places():
        for _ in range(3):
            slicer.app.processEvents()
        widgets = (ui.segmentButton, ui.cancelButton, ui.progressFrame, ui.logCollapsibleButton)
        return [each.mapTo(window, each.rect.topLeft()).y() for each in widgets]

    before = places()
    widget.panel.show_progress("network", 0.4, 100.0)
    widget.panel.show_state(running=True, lacking=[])
    assert places() == before
    widget.panel.show_idle("Done")
    widget.panel.show_state(running=False, lacking=[])
    assert places() == before


def test_buttons_and_the_result_fit_a_small_screen(window):
    widget, ui = window.self(), window.self().ui
    volume = addVolume("MR", 0.0, 900.0)
    widget.enter()
    widget.logic.getParameterNode().result = placeResult(volume)
    for _ in range(3):
        slicer.app.processEvents()
    # At 1366 x 768, Slicer leaves a module's panel some 540 pixels of height.
    for button in (ui.segmentButton, ui.cancelButton, ui.undoButton, ui.trainingSetButton):
        assert button.mapTo(window, button.rect.bottomLeft()).y() < 400, button.name


@pytest.mark.parametrize("name", ["modelComboBox", "deviceComboBox", "inputSelector"])
def test_the_wheel_scrolls_the_panel_and_turns_no_value(window, name):
    addVolume("first", 0.0, 900.0)
    addVolume("second", 0.0, 900.0)
    window.self().enter()
    widget = vars(window.self().ui)[name]
    box = widget if widget.inherits("QComboBox") else widget.findChild(qt_host.qt.QComboBox)
    before, at = box.currentIndex, QPointF(5, 5)
    event = QWheelEvent(at, at, QPoint(), QPoint(0, -120), Qt.NoButton, Qt.NoModifier,
                        Qt.NoScrollPhase, False)  # fmt: skip
    slicer.app.processEvents()
    QApplication.sendEvent(box, event)
    assert box.currentIndex == before
    assert box.focusPolicy == Qt.StrongFocus


def test_organs_of_a_model_with_groups_stand_below_headings_that_tick_them_all(window):
    widget, panel, view = window.self(), window.self().panel, window.self().ui.organList
    widget.enter()
    card = widget._cards["abdomen-ct"]
    groups = {"liver": "Digestive", "stomach": "Digestive", "aorta": "Vessels"}
    organs = tuple(replace(organ, group=groups.get(organ.name, "")) for organ in card.organs[:8])
    widget._cards["abdomen-ct"] = replace(card, organs=organs)
    widget.update()
    rows = [view.item(row).text() for row in range(view.count)]
    assert rows[:6] == ["Digestive", "liver", "stomach", "Vessels", "aorta", "Other"]
    assert sorted(panel.organs()) == sorted(organ.name for organ in organs)
    heading = view.item(0)
    heading.setCheckState(Qt.Unchecked)
    assert panel.organs(ticked=False) == ["liver", "stomach"]
    assert widget._parameterNode.skippedOrgans == ["liver", "stomach"]
    view.item(2).setCheckState(Qt.Checked)
    assert heading.checkState() == Qt.PartiallyChecked
    heading.setCheckState(Qt.Checked)
    assert panel.organs(ticked=False) == []
    widget.ui.noOrgansButton.click()
    assert panel.organs(ticked=True) == []
    assert view.item(5).checkState() == Qt.Unchecked


def test_disabled_buttons_say_why(window):
    ui = window.self().ui
    for button in (ui.segmentButton, ui.cancelButton, ui.removeModelButton, ui.refineButton):
        assert not button.enabled
        assert button.toolTip


def test_settings_of_an_older_scene_are_read(window):
    """A parameter node that knows only some of the parameters, as an older version saved it."""
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("SRCSMSegmenter")
    node.SetParameter("sourceMatching", "OFF")
    window.self().exit()
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.AddNode(node)
    window.self().enter()
    assert window.self().ui.sourceMatchingComboBox.currentText == "Off"
    assert window.self().logic.getParameterNode().frame == -1


def test_reloading_takes_the_new_library_and_leaves_nothing_of_the_old(window):
    old, library = window.self(), sys.modules["SRCSMSegmenterLib.panel.panel"]
    old.onReload()
    assert window.self() is not old
    assert sys.modules["SRCSMSegmenterLib.panel.panel"] is not library
    assert old.Observations == []
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "after")
    window.self().ui.inputSelector.setCurrentNode(volume)
    assert window.self().logic.getParameterNode().inputVolume is volume


@pytest.mark.parametrize("modules", [("SRCSMSegmenter", "SAMRefine")])
@pytest.mark.parametrize("opened", [True, False])
def test_reloading_takes_sam_refine_along_which_goes_on_refining(window, opened):
    old = sys.modules["SAMRefine"]
    if not opened:
        del slicer.modules.SAMRefineWidget
    window.self().onReload()
    host = sys.modules["SRCSMSegmenterLib.scene.worker_host"]
    assert host.refinement().task == "segment_refined"
    assert "SAMRefineLib.refine.tasks" in host._task_modules
    assert sys.modules["SAMRefine"] is not old
    assert sys.modules["SAMRefineLib.scene.requests"].worker_host is host
    if opened:
        widget = slicer.modules.samrefine.widgetRepresentation().self()
        assert widget is slicer.modules.SAMRefineWidget
        assert type(widget) is sys.modules["SAMRefine"].SAMRefineWidget


def test_ending_stops_the_worker_and_observes_nothing(window):
    widget, stopped = window.self(), []
    widget.logic.stop = lambda: stopped.append(True)
    widget.cleanup()
    assert stopped == [True]
    assert widget.Observations == []
    slicer.mrmlScene.Clear(0)  # must not reach the panel
    assert widget._parameterNode is None


def test_the_logic_only_forwards(window):
    from SRCSMSegmenterLib.scene import folder, logic, worker_host

    made = sys.modules["SRCSMSegmenter"].SRCSMSegmenterLogic()
    assert made.segment is logic.segment
    assert made.segmentFolder is folder.segment_folder
    assert made.useWorker is worker_host.use_worker
    assert type(window.self().logic) is type(made)


def wait_while(condition):
    """Leave the event loop to Qt meanwhile, as Slicer does."""
    while condition():
        slicer.app.processEvents()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_click_segments_the_phantom_and_another_cancels(window, monkeypatch):
    from SRCSMSegmenterLib.scene.samples import load_phantom

    monkeypatch.setattr(slicer.util, "setSliceViewerLayers", lambda **layers: None)
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(os.environ))
    volume = load_phantom("MR")
    widget, ui = window.self(), window.self().ui
    widget.enter()
    ui.segmentButton.click()
    wait_while(lambda: widget.run is not None)
    assert ui.messageLabel.text == ""
    assert "done in" in ui.progressLabel.text
    found = [ui.resultTable.item(row, 0).text() for row in range(ui.resultTable.rowCount)]
    assert found[:4] == ["liver", "right kidney", "left kidney", "spleen"]
    assert len(found) == 13
    result = widget.logic.getParameterNode().result
    assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is volume
    ui.segmentButton.click()
    wait_while(lambda: ui.progressBar.value < 10)
    ui.cancelButton.click()
    wait_while(lambda: widget.run is not None)
    assert ui.messageLabel.isHidden()
    assert "nothing was changed" in ui.logText.plainText
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


@pytest.mark.parametrize("modules", [("SRCSMSegmenter", "SAMRefine"), ("SAMRefine",)])
def test_an_outdated_slicer_is_told_which_one_is_needed(window, monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # as in Slicer 5.10
    monkeypatch.setattr(qt_host.App, "applicationVersion", "5.10.0")
    window.self().cleanup()
    window.reload()
    widget, ui = window.self(), window.self().ui
    widget.enter()
    sentence = "SRCSM needs 3D Slicer 5.12 or newer; this is Slicer 5.10.0."
    assert not ui.packagesFrame.isHidden()
    assert sentence in ui.packagesLabel.text
    assert ui.installButton.isHidden()
    assert ui.offlineCollapsibleButton.isHidden()
    assert widget.lackingPackages() == [sentence]
    if widget.moduleName == "SRCSMSegmenter":
        assert not ui.segmentButton.enabled
        assert sentence in qt_host.read(ui.segmentButton.toolTip)


@pytest.mark.parametrize("name", ["SRCSMSegmenter", "SAMRefine"])
def test_no_two_widgets_of_a_panel_lie_in_one_cell(name):
    path = MODULE_FOLDER.parent / name / "Resources" / "UI" / f"{name}.ui"
    for layout in ElementTree.parse(path).iter("layout"):
        cells = [(item.get("row"), item.get("column")) for item in layout.findall("item")]
        cells = [cell for cell in cells if cell != (None, None)]
        assert len(cells) == len(set(cells)), layout.get("name")
