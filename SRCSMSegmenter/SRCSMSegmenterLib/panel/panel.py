# SPDX-License-Identifier: Apache-2.0
"""Widgets of SRCSMSegmenter.ui: what they show, without knowledge of the scene.

Attributes of widgets are set and read as Qt properties (`label.text = ...`), as in all of Slicer.
"""

from collections.abc import Callable, Sequence
from html import escape
from types import SimpleNamespace
from typing import NamedTuple

import qt
from slicer.i18n import tr as _

from ..models.catalogue import ModelCard
from .common import CommonPanel, fit_rows, quiet, readable, swatch

SLICES_SHOWN = 5
ROWS_SHOWN = 8
"""Rows of the table; of more, it scrolls."""

_NAME = qt.Qt.UserRole


class ResultRow(NamedTuple):
    """A row of the result; slices are (k from 0, uncertainty in mm), the worst first."""

    name: str
    color: tuple[int, int, int]
    millilitres: float
    slices: Sequence[tuple[int, float]]


class Panel(CommonPanel):
    """The widgets of the panel; `ui` has one attribute per name in the .ui file."""

    def __init__(self, ui: SimpleNamespace) -> None:
        super().__init__(ui)
        self._results: tuple = ()
        ui.resultsCollapsibleButton.visible = False
        header = ui.resultTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)

    # What to choose from

    def show_models(self, cards: dict[str, ModelCard], chosen: str, own: Sequence[str]) -> None:
        """Show the models and the card of the chosen one.

        Args:
            cards: by what the parameter node calls the models.
            own: models that the user may take off the list.
        """
        ui, box = self.ui, self.ui.modelComboBox
        with quiet(box):
            if [box.itemData(n) for n in range(box.count)] != list(cards):
                box.clear()
                for key, card in cards.items():
                    box.addItem(card.name, key)
                    box.setItemData(box.count - 1, str(card.folder), qt.Qt.ToolTipRole)
            box.currentIndex = box.findData(chosen)
        card = cards.get(chosen)
        ui.modelLabel.text = _card_text(card) if card else _absent_text(chosen)
        ui.removeModelButton.enabled = chosen in own
        ui.removeModelButton.toolTip = (
            _("Take the chosen model off the list. Its files stay.")
            if chosen in own
            else _("Only models that you added can be taken off the list.")
        )

    def chosen_model(self) -> str:
        """Return what the parameter node calls the chosen model."""
        return self.ui.modelComboBox.itemData(self.ui.modelComboBox.currentIndex)

    def show_organs(self, card: ModelCard | None, skipped: Sequence[str]) -> None:
        """Show the model's organs, ticked unless they are skipped."""
        view, organs = self.ui.organList, card.organs if card else ()
        with quiet(view):
            # The rows stay if they can: this is also called while a row is being ticked.
            if [item.data(_NAME) for item in self._organ_items()] != [o.name for o in organs]:
                view.clear()
                for organ in organs:
                    item = qt.QListWidgetItem(swatch(organ.color), readable(organ.name))
                    item.setData(_NAME, organ.name)
                    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                    view.addItem(item)
            for item in self._organ_items():
                ticked = item.data(_NAME) not in skipped
                item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
        view.visible = bool(organs)

    def organs(self, ticked: bool) -> list[str]:
        """List the organs that are, or are not, ticked."""
        state = qt.Qt.Checked if ticked else qt.Qt.Unchecked
        return [item.data(_NAME) for item in self._organ_items() if item.checkState() == state]

    def _organ_items(self) -> list["qt.QListWidgetItem"]:
        return [self.ui.organList.item(row) for row in range(self.ui.organList.count)]

    def show_frames(self, count: int) -> None:
        """Offer the frames of a sequence; hide the row if there are none."""
        self.ui.frameLabel.visible = self.ui.frameSpinBox.visible = count > 0
        if count:
            self.ui.frameSpinBox.maximum = count - 1

    # The run

    def show_state(self, running: bool, lacking: Sequence[str]) -> None:
        """Enable Segment or Cancel, and say in tooltips why the other does not work."""
        ui = self.ui
        ui.segmentButton.enabled = not running and not lacking
        ui.segmentButton.toolTip = (
            _("A segmentation is running.")
            if running
            else "\n".join(lacking)
            or _("Find the organs in the volume (a few seconds to minutes).")
        )
        ui.cancelButton.enabled = running
        ui.cancelButton.toolTip = (
            _("Stop; the scene stays as it is.") if running else _("Nothing is running.")
        )
        ui.progressFrame.visible = running
        for row in (ui.inputsFrame, ui.advancedCollapsibleButton, ui.installButton):
            row.enabled = not running

    def stages(self) -> dict[str, str]:
        """See `CommonPanel.stages`."""
        return super().stages() | {
            "prepare": _("Preparing the volume"),
            "network": _("Finding the organs"),
            "resample": _("Bringing the result to the volume's grid"),
        }

    # The result

    def show_results(
        self, name: str, organs: Sequence[ResultRow], jump: Callable[[int], None]
    ) -> None:
        """Show the organs' volumes and least certain slices; without organs, hide the section.

        Args:
            name: of the segmentation.
            jump: called with a slice's k when it is clicked.
        """
        if self._results == (name, *organs):
            return
        self._results = (name, *organs)
        ui, table = self.ui, self.ui.resultTable
        ui.resultsCollapsibleButton.visible = bool(organs)
        # In the tooltip: a header is never narrower than its text, and names can be long.
        ui.resultsCollapsibleButton.toolTip = name
        table.setRowCount(len(organs))
        for row, organ in enumerate(organs):
            table.setItem(row, 0, qt.QTableWidgetItem(swatch(organ.color), readable(organ.name)))
            millilitres = qt.QTableWidgetItem(f"{organ.millilitres:.1f}")
            millilitres.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            table.setItem(row, 1, millilitres)
            links = qt.QLabel(_links(organ.slices[:SLICES_SHOWN]))
            links.indent = 8
            links.toolTip = _(
                "Slices in which the model is least sure of this organ, the worst first. Click a "
                "slice to see it; slices count from 0 (K)."
            )
            links.connect("linkActivated(QString)", lambda k: jump(int(k)))
            table.setCellWidget(row, 2, links)
        fit_rows(table, len(organs), ROWS_SHOWN)

    def show_notes(self, notes: Sequence[str], undoable: bool) -> None:
        """Show messages of the last run, and whether it can be undone."""
        ui = self.ui
        ui.resultMessagesLabel.text = "<br>".join(map(escape, notes))
        ui.resultMessagesLabel.visible = bool(notes)
        ui.undoButton.enabled = undoable
        ui.undoButton.toolTip = (
            _("Take the last result out of the scene again.")
            if undoable
            else _("Nothing was segmented since the module was opened.")
        )

    def show_refine(self, installed: bool) -> None:
        """Enable the button that opens SAM Refine if the module is installed."""
        self.ui.refineButton.enabled = installed
        self.ui.refineButton.toolTip = (
            _("Draw boxes around the organs, correct them, and let SAM redraw the outlines.")
            if installed
            else _("The module SAM Refine is not installed.")
        )


def _card_text(card: ModelCard) -> str:
    # As small print: what it was made from, and what may be done with it.
    return "{task}.<br><b>{expects_label}</b> {expects}<br><b>{licence_label}</b> {licence}".format(
        task=escape(card.task.rstrip(".")),
        expects_label=_("Expects:"),
        expects=escape(card.expects),
        licence_label=_("Licence:"),
        licence=escape(card.licence),
    )


def _absent_text(key: str) -> str:
    if not key:
        return ""
    return escape(_("The model {model} is not here; choose another.").format(model=key))


def _links(slices: Sequence[tuple[int, float]]) -> str:
    return "&nbsp; ".join(f'<a href="{k}" title="{mm:.1f} mm">{k}</a>' for k, mm in slices)
