# SPDX-License-Identifier: Apache-2.0
"""Parts that the panels of both modules share: the widgets of SRCSMCommon.ui and a few more."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import qt
import slicer
from slicer.i18n import tr as _

from ..terminology import readable

if TYPE_CHECKING:
    from ..training_set import AddedCase

ROW_MARGIN = 6
"""Pixels of a row of a list or table above and below its text."""

STATUS_MS = 5000
"""How long a message stays in the status bar."""

WARNING = '<span style="color:#c58a00">&#9888;</span>'
FAULT = '<span style="color:#d0453a">&#10006;</span>'
DONE = '<span style="color:#3c9a3c">&#10004;</span>'
"""Marks of a message, legible on light and dark."""

COMMON_UI = Path(__file__).resolve().parents[2] / "Resources" / "UI" / "SRCSMCommon.ui"


def load_ui(path: str) -> "qt.QWidget":
    """Load a module's .ui file and put the common parts into its holders for them.

    `slicer.util.childWidgetVariables` then finds the widgets of both.
    """
    widget, common = slicer.util.loadUI(path), slicer.util.loadUI(str(COMMON_UI))
    ui, parts = map(slicer.util.childWidgetVariables, (widget, common))
    ui.headHolder.layout().addWidget(parts.headFrame)
    ui.statusHolder.layout().addWidget(parts.statusFrame)
    ui.logHolder.layout().addWidget(parts.logCollapsibleButton)
    common.deleteLater()
    return widget


class CommonPanel:
    """The widgets of a panel; `ui` has one attribute per name in the two .ui files."""

    def __init__(self, ui: SimpleNamespace) -> None:
        self.ui = ui
        for row in (
            ui.packagesFrame,
            ui.warningLabel,
            ui.messageLabel,
            ui.progressFrame,
            ui.addedLabel,
        ):
            row.visible = False
        self.wheelGuard = WheelGuard()
        for widget in vars(ui).values():
            self.wheelGuard.watch(widget)

    # What is missing or odd

    def show_missing(self, sizes: dict[str, str], help: str) -> None:
        """Show which packages are missing, how large they are, and what to do without internet."""
        self.ui.packagesFrame.visible = bool(sizes)
        rows = "".join(f"<li><b>{escape(p)}</b>: {escape(s)}</li>" for p, s in sizes.items())
        self.ui.packagesLabel.text = (
            _("To compute, these packages have to be downloaded once:") + f"<ul>{rows}</ul>"
        )
        self.ui.offlineLabel.text = help

    def show_outdated(self, text: str) -> None:
        """Show that this Slicer is too old, in place of packages to install."""
        self.ui.packagesFrame.visible = True
        self.ui.packagesLabel.text = marked(FAULT, escape(text))
        self.ui.installButton.visible = False
        self.ui.offlineCollapsibleButton.visible = False

    def show_installing(self, going_on: bool) -> None:
        """Show that the installation takes a while, or that it is over."""
        button = self.ui.installButton
        button.enabled = not going_on
        button.text = _("Installing (some minutes)...") if going_on else _("Install")

    def show_warnings(self, warnings: Sequence[str]) -> None:
        """Show warnings about the input; none hides them."""
        self.ui.warningLabel.text = marked(WARNING, "<br>".join(map(escape, warnings)))
        self.ui.warningLabel.visible = bool(warnings)

    def show_message(self, text: str) -> None:
        """Show why there is no result; "" hides the message."""
        self.ui.messageLabel.text = marked(FAULT, escape(text))
        self.ui.messageLabel.visible = bool(text)

    def show_added(self, case: "AddedCase | None") -> None:
        """Show a case that was added to a training set and how to train on it; None hides it."""
        self.ui.addedLabel.visible = case is not None
        if case is None:
            return
        command, model = case.train_command(), str(case.model)
        lines = [
            _('Added as case "{name}" to {folder}. Training cases there now: {n}.').format(
                name=escape(case.name), folder=escape(str(case.folder)), n=case.cases
            ),
            _("To train on them, paste this into a terminal:"),
            f"<code>{escape(command)}</code>",
            _("Then add the folder {model} under <i>Own models</i> in SRCSM Segmenter.").format(
                model=f"<code>{escape(model)}</code>"
            ),
        ]
        if case.absent:
            absent = ", ".join(map(readable, case.absent))
            lines.insert(1, _("It teaches that this scan has no {organs}.").format(organs=absent))
        self.ui.addedLabel.text = marked(DONE, "<br>".join(lines))
        self.log(command)

    # What is going on

    def show_progress(self, stage: str, fraction: float, seconds_left: float | None) -> None:
        """Show a stage, the fraction done (0 to 1) and the time left."""
        self.ui.progressBar.value = round(100 * fraction)
        left = "" if seconds_left is None else ", " + time_left(seconds_left)
        self.ui.progressLabel.text = self.stages().get(stage, stage) + left

    def stages(self) -> dict[str, str]:
        """Return the name of each stage for the user, by the name that progress gives it."""
        return {"": _("Starting"), "start": _("Starting"), "load": _("Loading the model")}

    def log(self, line: str) -> None:
        """Add a line to the log."""
        self.ui.logText.appendPlainText(line)


def marked(mark: str, text: str) -> str:
    """Put a mark before a text (HTML); "" stays "".

    The mark alone has a colour: with a style sheet, a widget of Qt 5 keeps the text colour of the
    light style when Slicer changes to the dark one.
    """
    return f"{mark} {text}" if text else ""


def duration(seconds: float) -> str:
    """Write a duration with its unit: 7 s, 2 min 5 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def time_left(seconds: float) -> str:
    """Write a duration in words."""
    if seconds < 1:
        return _("nearly done")
    if seconds < 90:
        return _("about {n} s left").format(n=round(seconds))
    return _("about {n} min left").format(n=round(seconds / 60))


class WheelGuard(qt.QObject):
    """Event filter by which the wheel scrolls the panel, and turns only a number with the focus."""

    def eventFilter(self, widget: "qt.QObject", event: "qt.QEvent") -> bool:
        """Leave the wheel to the panel."""
        if event.type() != qt.QEvent.Wheel:
            return False
        if widget.focus and not widget.inherits("QComboBox"):
            return False
        event.ignore()
        return True

    def watch(self, widget: "qt.QWidget") -> None:
        """Guard a widget and its parts if the wheel would change their values."""
        if any(map(widget.inherits, ("QComboBox", "QAbstractSpinBox", "QSlider"))):
            widget.focusPolicy = qt.Qt.StrongFocus  # by default the wheel takes the focus
            widget.installEventFilter(self)
        elif any(map(widget.inherits, _COMPOSITE)):
            for child in widget.children():
                self.watch(child)


_COMPOSITE = ("qMRMLNodeComboBox", "ctkSliderWidget", "ctkDoubleSlider", "ctkDoubleSpinBox")


@contextmanager
def quiet(widget: "qt.QWidget") -> Iterator[None]:
    """Block the widget's Qt signals."""
    blocked = widget.blockSignals(True)
    try:
        yield
    finally:
        widget.blockSignals(blocked)


def fit_rows(view: "qt.QAbstractItemView", rows: int, most: int) -> None:
    """Make a list or table as high as its rows, or as `most` of them, and let it scroll.

    Qt's own way, to adjust the view to its contents, makes a panel in Slicer wider and wider.
    """
    if view.inherits("QTableView"):
        height = view.fontMetrics().height() + ROW_MARGIN
        view.verticalHeader().setDefaultSectionSize(height)
        view.horizontalHeader().setFixedHeight(height)
        shown = min(rows, most) + 1
    else:
        height, shown = view.sizeHintForRow(0), min(rows, most)
    view.setFixedHeight(shown * height + 2 * view.frameWidth)


def swatch(color: Sequence[int]) -> "qt.QIcon":
    """Draw a small square of a colour (RGB, 0-255)."""
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*color))
    return qt.QIcon(pixmap)
