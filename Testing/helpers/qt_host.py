# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what Slicer adds to Python, on PySide6, for tests of the panel only.

Slicer's widgets reach Python through PythonQt: properties are attributes (`label.text = "a"`),
signals are connected by their signature (`button.connect("clicked()", f)`). Here, subclasses of
PySide6's widgets have the same, so that the panel's code runs unchanged on the real .ui file.
Anything that PythonQt or Slicer would refuse, such as an unknown signal, a widget class that is
not in the .ui's list or a parameter bound to a widget that cannot hold it, is refused here too.
MRML itself is real, from slicer-core.
"""

import enum
import html
import importlib.util
import os
import sys
import typing
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")
pytest.importorskip(
    "PySide6.QtWidgets",
    reason="Qt cannot be loaded: pip install PySide6-Essentials, and the Debian packages that the "
    "README names",
    exc_type=ImportError,
)
os.environ["QT_QPA_PLATFORM"] = "offscreen"

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from slicer_scene_fixture import start_scene

ROOT = Path(__file__).resolve().parents[2]
OURS = ("SRCSM", "SAMRefine")
"""What the names of our modules and libraries hold."""

VIRTUAL = {"sizeHint", "minimumSizeHint"}
"""Properties of PythonQt that stay methods, as C++ calls them."""


# --- qt and ctk


def _connect(self: QtCore.QObject, signal: str, slot: Callable) -> None:
    normalised = QtCore.QMetaObject.normalizedSignature(signal).data().decode()
    python = normalised.replace("vtkMRMLNode*", "PyObject")
    if self.metaObject().indexOfSignal(python) < 0:
        raise ValueError(f"{type(self).__name__} has no signal {signal}")
    QtCore.QObject.connect(self, QtCore.SIGNAL(python), slot)


@cache
def pythonqt(base: type) -> type:
    """A subclass of a class of PySide6's, used as PythonQt lets one use it."""
    meta = base.staticMetaObject
    names = {meta.property(n).name() for n in range(meta.propertyCount())} - VIRTUAL
    body: dict[str, Any] = {name: _property(name) for name in names}
    # Asked as properties in Slicer: `box.checked`, `button.enabled`, `edit.focus`.
    for getter in ("isChecked", "isEnabled", "isVisible", "hasFocus"):
        body[getter] = property(_refuse)
    body |= {
        "name": _property("objectName"),
        "connect": _connect,
        "className": lambda self: type(self).__name__,
    }
    return type(base.__name__, (base,), body | _without_pythons_ways(base))


@cache
def plain(base: type) -> type:
    """A class of Qt that has no properties, such as an item or a colour, as in PythonQt."""
    if issubclass(base, (enum.Enum, QtGui.QGuiApplication)) or not hasattr(base, "__dict__"):
        return base
    return type(base.__name__, (base,), _without_pythons_ways(base))


class Scope:
    """The name of an enumeration of Qt, which in PythonQt has no values."""

    def __init__(self, owner: type, name: str) -> None:
        self._names = owner.__name__, name

    def __getattr__(self, value: str) -> None:
        owner, name = self._names
        raise AttributeError(f"in PythonQt it is {owner}.{value}, not {owner}.{name}.{value}")


def _without_pythons_ways(base: type) -> dict[str, Any]:
    """What PySide6 adds to Qt for Python and PythonQt does not have."""

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        if named:
            raise TypeError(f"PythonQt takes no {', '.join(named)}=: set properties afterwards")
        base.__init__(self, *arguments)

    scopes = {
        name: Scope(base, name)
        for name in dir(base)
        if isinstance(getattr(base, name), enum.EnumType)
    }
    return {"__init__": init} | scopes


def _refuse(self: QtCore.QObject) -> None:
    raise AttributeError("in PythonQt it is a property: checked, enabled, visible or focus")


def _property(name: str) -> property:
    def write(self: QtCore.QObject, value: object) -> None:
        if name == "toolTip":
            value = wrapped(value)
        if name == "styleSheet":
            raise ValueError("in Slicer's Qt 5 its text stays black when the style turns dark")
        if not self.setProperty(name, value):
            raise ValueError(f"{type(self).__name__}.{name} cannot be {value!r}")

    return property(lambda self: self.property(name), write)


def wrapped(text: str) -> str:
    """A tooltip as Slicer keeps it: marked up, so that Qt breaks long lines."""
    if not text or text.startswith("<"):
        return text
    return f"<qt>{html.escape(text).replace(chr(10), '<br>')}</qt>"


def read(text: str) -> str:
    """What is read of a text, without its markup."""
    return QtGui.QTextDocumentFragment.fromHtml(text).toPlainText()


class _QtModule(ModuleType):
    """`import qt`: all of Qt under one name."""

    def __getattr__(self, name: str) -> type:
        if name == "QUiLoader":
            return UiLoader
        for module in (QtWidgets, QtGui, QtCore):
            if hasattr(module, name):
                found = getattr(module, name)
                if not isinstance(found, type):
                    return found
                return (pythonqt if issubclass(found, QtCore.QObject) else plain)(found)
        raise AttributeError(f"there is no qt.{name}")


qt = _QtModule("qt")


class CollapsibleButton(pythonqt(QtWidgets.QWidget)):
    """ctkCollapsibleButton: a header, and below it what it holds, which a click hides."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, 22, 0, 0)
        # As CTK's: never narrower than its size hint, and so than that of all it holds.
        self.setSizePolicy(QtWidgets.QSizePolicy.Minimum, QtWidgets.QSizePolicy.Preferred)

    def _button_size(self) -> QtCore.QSize:
        return QtCore.QSize(30 + self.fontMetrics().horizontalAdvance(self._text), 22)

    def sizeHint(self) -> QtCore.QSize:
        button = self._button_size()
        return button if self._collapsed else super().sizeHint().expandedTo(button)

    def minimumSizeHint(self) -> QtCore.QSize:
        button = self._button_size()
        return button if self._collapsed else super().minimumSizeHint().expandedTo(button)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.updateGeometry()
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        self.setMaximumHeight(22 if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)
        self.update()

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _set_collapsed)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        if event.position().y() < 22:
            self._set_collapsed(not self._collapsed)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width - 1, 21)
        option.text = f"{'▸' if self._collapsed else '▾'}  {self._text}"
        painter.drawControl(QtWidgets.QStyle.CE_PushButton, option)


class MRMLWidget(pythonqt(QtWidgets.QWidget)):
    """qMRMLWidget."""

    def setMRMLScene(self, scene: object) -> None:
        self._scene = scene

    def mrmlScene(self) -> object:
        return self._scene


class NodeComboBox(pythonqt(QtWidgets.QWidget)):
    """qMRMLNodeComboBox: the scene's nodes of some classes; no node, where that is allowed."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = pythonqt(QtWidgets.QComboBox)(self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._scene, self._nodes = None, []
        self._values = {"nodeTypes": [], "showChildNodeTypes": True, "noneEnabled": False}
        self._values |= {"noneDisplay": "None", "addEnabled": True, "removeEnabled": True}
        self._box.currentIndexChanged.connect(
            lambda index: self.currentNodeChanged.emit(self.currentNode())
        )

    def _declare(kind: object, name: str) -> QtCore.Property:
        def write(self: "NodeComboBox", value: object) -> None:
            self._values[name] = value
            self._fill()

        return QtCore.Property(kind, lambda self: self._values[name], write)

    nodeTypes = _declare("QStringList", "nodeTypes")
    noneDisplay = _declare(str, "noneDisplay")
    showChildNodeTypes = _declare(bool, "showChildNodeTypes")
    noneEnabled = _declare(bool, "noneEnabled")
    addEnabled = _declare(bool, "addEnabled")
    removeEnabled = _declare(bool, "removeEnabled")

    def setMRMLScene(self, scene: "slicer.vtkMRMLScene") -> None:
        self._scene = scene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent)
        tags = [scene.AddObserver(event, lambda *_: self._fill()) for event in events]
        self.destroyed.connect(lambda: [scene.RemoveObserver(tag) for tag in tags])
        self._fill()

    def currentNode(self) -> "slicer.vtkMRMLNode | None":
        index = self._box.currentIndex
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def setCurrentNode(self, node: "slicer.vtkMRMLNode | None") -> None:
        # Slicer picks the first node where none is not allowed.
        self._box.setCurrentIndex(self._nodes.index(node) if node in self._nodes else 0)

    def _fill(self) -> None:
        if self._scene is None:
            return
        current = self.currentNode()
        found = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        self._nodes = [None] * self._values["noneEnabled"]
        self._nodes += [n for n in found if n.GetClassName() in self._values["nodeTypes"]]
        blocked = self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems([n.GetName() if n else self._values["noneDisplay"] for n in self._nodes])
        self.setCurrentNode(current)
        self._box.blockSignals(blocked)
        if self.currentNode() is not current:
            self.currentNodeChanged.emit(self.currentNode())


class SliderWidget(pythonqt(QtWidgets.QWidget)):
    """ctkSliderWidget: a slider and a spin box that show one number."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = pythonqt(QtWidgets.QSlider)(QtCore.Qt.Horizontal)
        self._box = pythonqt(QtWidgets.QDoubleSpinBox)()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._tell)
        self._slider.valueChanged.connect(self._slid)

    def _scale(self) -> None:
        step = self._box.singleStep
        blocked = self._slider.blockSignals(True)
        self._slider.setRange(round(self.minimum / step), round(self.maximum / step))
        self._slider.setValue(round(self.value / step))
        self._slider.blockSignals(blocked)

    def _slid(self, steps: int) -> None:
        self._box.setValue(steps * self._box.singleStep)

    def _tell(self, value: float) -> None:
        self._scale()
        self.valueChanged.emit(value)

    def _declare(kind: object, name: str) -> QtCore.Property:
        def write(self: "SliderWidget", value: object) -> None:
            getattr(self._box, f"set{name[0].upper()}{name[1:]}")(value)
            self._scale()

        return QtCore.Property(kind, lambda self: getattr(self._box, name), write)

    value = _declare(float, "value")
    minimum = _declare(float, "minimum")
    maximum = _declare(float, "maximum")
    singleStep = _declare(float, "singleStep")
    decimals = _declare(int, "decimals")


CUSTOM = {
    "ctkCollapsibleButton": CollapsibleButton,
    "ctkSliderWidget": SliderWidget,
    "qMRMLWidget": MRMLWidget,
    "qMRMLNodeComboBox": NodeComboBox,
}


for _name, _class in CUSTOM.items():
    # They go by Slicer's names.
    _class.inherits = lambda self, name, own=_name, kind=_class: (
        name == own or super(kind, self).inherits(name)
    )


class UiLoader(QtUiTools.QUiLoader):
    """Makes a .ui file's widgets of the classes above."""

    def createWidget(
        self, class_name: str, parent: QtWidgets.QWidget | None = None, name: str = ""
    ) -> QtWidgets.QWidget:
        widget = (CUSTOM.get(class_name) or getattr(qt, class_name))(parent)
        widget.setObjectName(name)
        if class_name == "QTableWidget":  # its parts are PythonQt's as well
            header = pythonqt(QtWidgets.QHeaderView)(QtCore.Qt.Horizontal, widget)
            header.setSectionsClickable(True)
            widget.setHorizontalHeader(header)
        if class_name == "QComboBox":
            widget.lineEdit = lambda: _line_edit(widget)
        return widget


def _line_edit(box: QtWidgets.QComboBox) -> QtWidgets.QLineEdit | None:
    """The line of an editable combo box, as PythonQt gives it."""
    edit = QtWidgets.QComboBox.lineEdit(box)
    if edit is not None and not isinstance(edit, pythonqt(QtWidgets.QLineEdit)):
        box.setLineEdit(pythonqt(QtWidgets.QLineEdit)(box))
        edit = QtWidgets.QComboBox.lineEdit(box)
    return edit


# --- slicer.parameterNodeWrapper


class Minimum(NamedTuple):
    """Annotation: the least value."""

    minimum: int


class WithinRange(NamedTuple):
    """Annotation: the least and the greatest value."""

    minimum: float
    maximum: float


class _Store(NamedTuple):
    """How values of a type are kept in a parameter node, by the names Slicer gives them."""

    default: Any
    write: Callable[[Any, str, Any], None]
    read: Callable[[Any, str], Any]


def _store(kind: type) -> _Store:
    if kind is bool:
        return _Store(False, _put_text, lambda node, name: node.GetParameter(name) == "True")
    if kind in (int, float, str):
        return _Store(kind(), _put_text, lambda node, name: kind(node.GetParameter(name)))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _Store(
            next(iter(kind)),
            lambda node, name, value: node.SetParameter(name, value.name),
            lambda node, name: kind[node.GetParameter(name)],
        )
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return _Store(None, _put_node, lambda node, name: node.GetNodeReference(name))
    if kind == list[str]:
        return _Store([], _put_list, _get_list)
    raise TypeError(f"a parameter node holds no {kind}")


def _put_text(node: Any, name: str, value: object) -> None:
    node.SetParameter(name, str(value))


def _put_node(node: Any, name: str, value: Any) -> None:
    node.SetParameter(name, "")
    node.SetNodeReferenceID(name, value.GetID() if value else None)


def _put_list(node: Any, name: str, values: list[str]) -> None:
    with slicer.util.NodeModify(node):
        node.SetParameter(f"{name}_len", str(len(values)))
        for n, value in enumerate(values):
            node.SetParameter(f"{name}_{n}", value)


def _get_list(node: Any, name: str) -> list[str]:
    return [node.GetParameter(f"{name}_{n}") for n in range(int(node.GetParameter(f"{name}_len")))]


def parameter_node_wrapper(cls: type) -> type:
    """Typed attributes kept in a vtkMRMLScriptedModuleNode, and bound to widgets."""
    kinds, notes = {}, {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        notes[name] = {type(note): note for note in getattr(hint, "__metadata__", ())}
        if unused := notes[name].keys() - {Minimum, WithinRange}:
            raise TypeError(f"Slicer warns of the unused annotations {unused}: set them in the .ui")
        kinds[name] = typing.get_args(hint)[0] if notes[name] else hint
    defaults = {name: getattr(cls, name, _store(kind).default) for name, kind in kinds.items()}

    def field(name: str) -> property:
        kind, store = kinds[name], _store(kinds[name])

        def write(self: Any, value: Any) -> None:
            accepted = typing.get_origin(kind) or kind
            node_kind = isinstance(accepted, type) and issubclass(accepted, slicer.vtkMRMLNode)
            if not isinstance(value, accepted) and not (node_kind and value is None):
                raise TypeError(f"{name} is a {kind}, not {value!r}")
            least, most = _bounds(notes[name])
            if kind in (int, float) and not least <= value <= most:
                raise ValueError(f"{name} is from {least} to {most}, not {value}")
            store.write(self.parameterNode, name, value)

        return property(lambda self: store.read(self.parameterNode, name), write)

    def init(self: Any, node: Any) -> None:
        self.parameterNode, self._bound = node, {}
        for name, value in defaults.items():
            held = f"{name}_len" if kinds[name] == list[str] else name
            if not node.GetParameter(held) and held not in node.GetParameterNames():
                setattr(self, name, value)

    def connect(self: Any, widgets: dict[str, QtWidgets.QWidget]) -> int:
        unknown = widgets.keys() - kinds.keys()
        if unknown:
            raise ValueError(f"there is no parameter {', '.join(unknown)}")
        bindings = {n: _binding(w, kinds[n], notes[n]) for n, w in widgets.items()}

        def show(*_: object) -> None:
            if self._showing:
                return
            self._showing = True
            for name, binding in bindings.items():
                binding.write(getattr(self, name))
            self._showing = False

        def take(name: str) -> None:
            if not self._showing:
                setattr(self, name, bindings[name].read())

        self._showing = False
        show()
        links = []
        for name, binding in bindings.items():
            if getattr(self, name) is None:  # a selector that knows no "None" picks the first node
                take(name)
            slot = lambda *_, name=name: take(name)  # noqa: E731
            binding.signal.connect(slot)
            links.append((binding.signal, slot))
        observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show)
        tag = len(self._bound)
        self._bound[tag] = (links, observer)
        return tag

    def disconnect(self: Any, tag: int) -> None:
        links, observer = self._bound.pop(tag)
        for signal, slot in links:
            signal.disconnect(slot)
        self.parameterNode.RemoveObserver(observer)

    for name in kinds:
        setattr(cls, name, field(name))
    cls.__init__, cls.connectParametersToGui, cls.disconnectGui = init, connect, disconnect
    cls.dataTypes = kinds
    return cls


class _Binding(NamedTuple):
    signal: Any
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _bounds(notes: dict[type, Any]) -> tuple[float, float]:
    """The least and the greatest value that annotations allow."""
    if WithinRange in notes:
        return notes[WithinRange]
    return notes[Minimum].minimum if Minimum in notes else float("-inf"), float("inf")


def _binding(widget: QtWidgets.QWidget, kind: type, notes: dict[type, Any]) -> _Binding:
    """What Slicer's guiConnectors bind: exactly these classes, to exactly these types."""
    is_class = isinstance(kind, type)
    if type(widget) is qt.QCheckBox and kind is bool:
        return _Binding(
            widget.toggled, lambda: widget.checked, lambda value: setattr(widget, "checked", value)
        )
    if type(widget) is qt.QSpinBox and kind is int:
        least, most = _bounds(notes)
        widget.setRange(max(least, -(2**31)), min(most, 2**31 - 1))
        return _Binding(
            widget.valueChanged, lambda: widget.value, lambda value: setattr(widget, "value", value)
        )
    if type(widget) is SliderWidget and kind is float:
        if WithinRange not in notes:
            raise RuntimeError("a slider needs a range")
        widget.minimum, widget.maximum = notes[WithinRange]
        return _Binding(
            widget.valueChanged, lambda: widget.value, lambda value: setattr(widget, "value", value)
        )
    if type(widget) is qt.QComboBox and is_class and issubclass(kind, enum.Enum):
        members = list(kind)
        widget.clear()
        widget.addItems([kind.label(member) for member in members])
        return _Binding(
            widget.currentIndexChanged,
            lambda: members[widget.currentIndex],
            lambda value: widget.setCurrentIndex(members.index(value)),
        )
    if type(widget) is NodeComboBox and is_class and issubclass(kind, slicer.vtkMRMLNode):
        widget.nodeTypes = [kind.__name__]
        return _Binding(widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode)
    raise RuntimeError(f"a {type(widget).__name__} cannot hold a {kind}")


# --- slicer.ScriptedLoadableModule and slicer.app


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: MRMLWidget | None = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename: str) -> str:
        return str(ROOT / self.moduleName / "Resources" / filename)

    def setup(self) -> None:
        pass

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    def __init__(self) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> "slicer.vtkMRMLScriptedModuleNode":
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(scene.GenerateUniqueName(self.moduleName))
            node = scene.AddNode(node)
        return node


class ModuleWindow(MRMLWidget):
    """qSlicerScriptedLoadableModuleWidget: what holds a module's panel.

    Attributes:
        panel: the ModulePanel that shows it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.isEntered = True
        QtWidgets.QVBoxLayout(self).setContentsMargins(6, 6, 6, 6)
        self._name = name
        self.reload()

    def reload(self) -> None:
        """Make the panel, of the module's code as it is loaded now."""
        self._widget = getattr(sys.modules[self._name], f"{self._name}Widget")(self)
        self._widget.setup()
        setattr(slicer.modules, f"{self._name}Widget", self._widget)

    def self(self) -> ScriptedLoadableModuleWidget:
        return self._widget


WIDEST = 400
"""Pixels that a module's panel may take of a small screen, its scroll bar included."""


class ModulePanel(QtWidgets.QScrollArea):
    """qSlicerModulePanel: scrolls a module's panel up and down, never sideways.

    A module's panel is never narrower than its size hint there, and Slicer widens the dock to that.
    """

    def __init__(self, window: ModuleWindow) -> None:
        super().__init__()
        content = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(window, 1)
        window.setSizePolicy(QtWidgets.QSizePolicy.Minimum, window.sizePolicy.verticalPolicy())
        self.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarAlwaysOff)
        self.setWidgetResizable(True)
        self.setWidget(content)
        self.resize(WIDEST, 768)
        window.panel = self

    def minimumSizeHint(self) -> QtCore.QSize:
        bar = self.verticalScrollBar().sizeHint().width()
        width = self.widget().minimumSizeHint().width() + bar
        return QtCore.QSize(width, super().minimumSizeHint().height())

    def too_wide(self) -> str:
        """What makes the panel too wide, or wider and wider, as Slicer lets it grow; else ""."""
        for _ in range(4):
            QtWidgets.QApplication.processEvents()
            least = self.minimumSizeHint().width()
            if least > WIDEST:
                wide = [each for each in self._visible() if each.sizeHint().width() > least - 50]
                name = wide[-1].property("objectName")
                return f"{name} makes the panel {least} pixels wide"
            self.resize(self.width() + 50, self.height())
        return ""

    def _visible(self) -> list[QtWidgets.QWidget]:
        """The widgets that are shown, each before what it holds."""
        ignored = QtWidgets.QSizePolicy.Ignored
        return [
            widget
            for widget in self.widget().findChildren(QtWidgets.QWidget)
            if not widget.visibleRegion().isEmpty()
            and widget.property("sizePolicy").horizontalPolicy() != ignored
        ]


class App:
    """slicer.app, as far as the module asks it."""

    applicationVersion = "5.13.0"

    def __init__(self, settings: Path, modules: Sequence[str]) -> None:
        self.slicerUserSettingsFilePath = str(settings)
        self._settings = qt.QSettings(str(settings), QtCore.QSettings.IniFormat)
        self.modules = list(modules)
        self.connected: list[tuple[str, Callable]] = []

    def userSettings(self) -> QtCore.QSettings:
        return self._settings

    def connect(self, signal: str, slot: Callable) -> None:
        self.connected.append((signal, slot))

    def processEvents(self) -> None:
        QtWidgets.QApplication.processEvents()

    def layoutManager(self) -> SimpleNamespace:
        """One without views, as of a layout of tables alone."""
        return SimpleNamespace(
            threeDViewCount=0,
            sliceViewNames=tuple,
            mrmlSliceLogics=vtk.vtkCollection,
        )

    def moduleManager(self) -> "App":
        return self

    def modulesNames(self) -> list[str]:
        return self.modules

    def module(self, name: str) -> SimpleNamespace:
        return getattr(slicer.modules, name.lower())


@contextmanager
def slicer_with_qt(settings: Path, *names: str) -> Iterator[ModuleWindow]:
    """Slicer's names for the stand-ins, while in use, and modules' panels in windows; the first
    one's is given.

    Whatever was imported meanwhile is forgotten afterwards.
    """
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    application.setStyle("Fusion")
    start_scene().Clear(0)
    modules, before = _stand_ins(), dict(sys.modules)
    # What an observer or a slot raises ends in the event loop, and nobody would hear of it.
    raised: list[BaseException] = []
    hook, sys.excepthook = sys.excepthook, lambda kind, error, trace: raised.append(error)
    sys.modules.update(modules)
    slicer.app = App(settings, names)
    slicer.qSlicerScriptedLoadableModuleWidget = ModuleWindow
    main, windows, panels = pythonqt(QtWidgets.QMainWindow)(), {}, []
    util = slicer.util.mainWindow, slicer.util.selectModule
    slicer.util.mainWindow = lambda: main

    def select(name: str) -> None:
        for other in names:
            if windows[other].isEntered and other != name:
                windows[other].isEntered = False
                windows[other].self().exit()
        windows[name].isEntered = True
        windows[name].self().enter()

    slicer.util.selectModule = select
    try:
        for name in names:  # all of them before any panel, as at Slicer's start
            getattr(load_module(name), name)(SimpleNamespace())
        for name in names:
            windows[name] = ModuleWindow(name)
            representation = lambda name=name: windows[name]  # noqa: E731
            held = SimpleNamespace(path=str(path_of(name)), widgetRepresentation=representation)
            setattr(slicer.modules, name.lower(), held)
            panels.append(ModulePanel(windows[name]))
            panels[-1].show()
        yield windows[names[0]]
        faults = [fault for panel in panels if (fault := panel.too_wide())]
        for window in windows.values():
            window.self().cleanup()
        assert not faults, faults
        assert not raised, repr(raised)
    finally:
        for panel in panels:
            panel.deleteLater()
            application.sendPostedEvents(panel, QtCore.QEvent.DeferredDelete)
        sys.excepthook = hook
        slicer.mrmlScene.Clear(0)
        main.deleteLater()
        slicer.util.mainWindow, slicer.util.selectModule = util
        del slicer.app, slicer.qSlicerScriptedLoadableModuleWidget
        for name in [name for name in sys.modules if name in modules or _ours(name)]:
            del sys.modules[name]
            package, _, child = name.rpartition(".")
            if package in before and name not in before:
                vars(before[package]).pop(child, None)
        sys.modules.update({name: module for name, module in before.items() if _ours(name)})


def _ours(name: str) -> bool:
    return any(part in name for part in OURS)


def _stand_ins() -> dict[str, Any]:
    return {
        "qt": qt,
        "ctk": SimpleNamespace(
            ctkCollapsibleButton=CollapsibleButton, ctkSliderWidget=SliderWidget
        ),
        "slicer.i18n": SimpleNamespace(tr=str, translate=lambda context, text: text),
        "slicer.ScriptedLoadableModule": SimpleNamespace(
            ScriptedLoadableModule=ScriptedLoadableModule,
            ScriptedLoadableModuleWidget=ScriptedLoadableModuleWidget,
            ScriptedLoadableModuleLogic=ScriptedLoadableModuleLogic,
            ScriptedLoadableModuleTest=object,
        ),
        "slicer.parameterNodeWrapper": SimpleNamespace(
            parameterNodeWrapper=parameter_node_wrapper,
            Minimum=Minimum,
            WithinRange=WithinRange,
        ),
    }


def path_of(name: str) -> Path:
    """A module's file."""
    return ROOT / name / f"{name}.py"


def load_module(name: str) -> ModuleType:
    """A module's file as Slicer loads it."""
    spec = importlib.util.spec_from_file_location(name, path_of(name))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- what both panels' tests ask


def ui_file(name: str) -> ElementTree.Element:
    """A module's .ui file; "SRCSMCommon" for what the modules share."""
    folder = name if path_of(name).exists() else "SRCSMSegmenter"
    return ElementTree.parse(ROOT / folder / "Resources" / "UI" / f"{name}.ui").getroot()


def bound_widgets(name: str) -> dict[str, str]:
    """Parameter -> name of its widget, from a module's .ui file."""
    return {
        mark.findtext("string"): widget.get("name")
        for widget in ui_file(name).iter("widget")
        for mark in widget.findall("property[@name='SlicerParameterName']")
    }


CONTROLS = {"QPushButton", "QComboBox", "QSpinBox", "QCheckBox", "QListWidget", "QTableWidget"}
CONTROLS |= {"NodeComboBox", "SliderWidget"}


def assert_tooltips(ui: SimpleNamespace) -> None:
    """Every control says what it does."""
    for name, widget in vars(ui).items():
        if type(widget).__name__ in CONTROLS:
            assert widget.toolTip, name
