# SPDX-License-Identifier: Apache-2.0
"""Widgets of SRCSMSegmenter.ui: their contents, without knowledge of the scene.

Attributes of widgets are set and read as Qt properties (`label.text = ...`), as in all of Slicer.
"""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from types import SimpleNamespace
from typing import NamedTuple

import qt
from slicer.i18n import tr as _

from ..models.catalogue import ModelCard, OrganCard
from .common import CommonPanel, fit_rows, quiet, readable, swatch

SLICES_SHOWN = 5
ROWS_SHOWN = 8
ORGANS_SHOWN = 6
"""Rows of the table and of the list of organs; of more, they scroll."""

_NAME = qt.Qt.UserRole
_LINK = "#3d8fe0"
"""Colour legible on light and dark; Qt's own stays that of the style in which a text was set."""


class ResultRow(NamedTuple):
    """A row of the result; slices are (number from 0, uncertainty in mm), the worst first."""

    name: str
    color: tuple[int, int, int]
    millilitres: float
    slices: Sequence[tuple[int, float]]


class Panel(CommonPanel):
    """The widgets of the panel; `ui` has one attribute per name in the .ui file."""

    def __init__(self, ui: SimpleNamespace) -> None:
        super().__init__(ui)
        self._results: tuple = ()
        self._organs_of_groups: dict[str, tuple[OrganCard, ...]] = {}
        ui.resultsCollapsibleButton.visible = ui.modelLabel.visible = False
        ui.infoButton.connect("toggled(bool)", lambda shown: self._show_info())
        # It stays, so that nothing jumps under the mouse when a run starts or ends.
        ui.progressFrame.visible = True
        self.show_idle("")
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
        ui.infoButton.enabled = card is not None
        self._show_info()
        ui.removeModelButton.enabled = chosen in own
        ui.removeModelButton.toolTip = (
            _("Take the chosen model off the list. Its files stay.")
            if chosen in own
            else _("Only models that you added can be taken off the list.")
        )

    def _show_info(self) -> None:
        """Show the card if requested, and always if a model is not here."""
        ui = self.ui
        absent = not ui.infoButton.enabled and bool(ui.modelLabel.text)
        ui.modelLabel.visible = ui.infoButton.checked or absent

    def chosen_model(self) -> str:
        """Return the chosen model as the parameter node names it."""
        return self.ui.modelComboBox.itemData(self.ui.modelComboBox.currentIndex)

    def show_organs(self, card: ModelCard | None, skipped: Sequence[str]) -> None:
        """Show the model's organs, ticked unless they are skipped."""
        view, organs = self.ui.organList, card.organs if card else ()
        grouped = _grouped(organs)
        with quiet(view):
            # The rows stay if they can: this is also called while a row is being ticked.
            listed = [organ.name for each in grouped.values() for organ in each]
            if self._organs_of_groups != grouped or self.organs() != listed:
                view.clear()
                self._organs_of_groups = grouped
                for group, members in grouped.items():
                    if group:
                        view.addItem(_row(qt.QListWidgetItem(group), None))
                        view.item(view.count - 1).setFont(_bold(view.font))
                    for organ in members:
                        item = qt.QListWidgetItem(swatch(organ.color), readable(organ.name))
                        view.addItem(_row(item, organ.name))
                fit_rows(view, view.count, ORGANS_SHOWN)
            for item in self._organ_items():
                item.setCheckState(_state([item.data(_NAME) not in skipped]))
            for item, members in self._headings():
                item.setCheckState(_state([organ.name not in skipped for organ in members]))
        for widget in (view, self.ui.allOrgansButton, self.ui.noOrgansButton):
            widget.visible = bool(organs)

    def organs(self, ticked: bool | None = None) -> list[str]:
        """List the organs, all or those that are, or are not, ticked."""
        states = {None: (qt.Qt.Checked, qt.Qt.Unchecked), True: (qt.Qt.Checked,)}
        wanted = states.get(ticked, (qt.Qt.Unchecked,))
        return [item.data(_NAME) for item in self._organ_items() if item.checkState() in wanted]

    def take_tick(self, item: "qt.QListWidgetItem") -> None:
        """Let a tick of a group's heading count for its organs."""
        members = next((members for heading, members in self._headings() if heading == item), ())
        names = [organ.name for organ in members]
        with quiet(self.ui.organList):
            for organ in self._organ_items():
                if organ.data(_NAME) in names:
                    organ.setCheckState(item.checkState())

    def _items(self) -> list["qt.QListWidgetItem"]:
        return [self.ui.organList.item(row) for row in range(self.ui.organList.count)]

    def _organ_items(self) -> list["qt.QListWidgetItem"]:
        return [item for item in self._items() if item.data(_NAME)]

    def _headings(self) -> Iterator[tuple["qt.QListWidgetItem", tuple[OrganCard, ...]]]:
        """Iterate over the headings of groups, and the organs below each."""
        headings = [item for item in self._items() if not item.data(_NAME)]
        groups = (members for group, members in self._organs_of_groups.items() if group)
        yield from zip(headings, groups, strict=True)

    def show_frames(self, count: int, all_frames: bool) -> None:
        """Offer the frames of a sequence; hide the row if there are none."""
        ui = self.ui
        for widget in (ui.frameLabel, ui.frameSpinBox, ui.allFramesCheckBox):
            widget.visible = count > 0
        ui.frameSpinBox.enabled = not all_frames
        if count:
            ui.frameSpinBox.maximum = count - 1

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
        ui.progressBar.enabled = ui.progressBar.textVisible = running
        for row in (ui.inputsFrame, ui.advancedCollapsibleButton, ui.installButton):
            row.enabled = not running

    def show_idle(self, text: str) -> None:
        """Show that nothing runs, and how the last run ended."""
        self.ui.progressBar.value = 0
        self.ui.progressLabel.text = text or "\u00a0"  # a line is kept free for it

    def show_refinement(self, sam: str, lacking: str) -> None:
        """Enable the tick for refinement if there is a SAM for the model.

        Args:
            sam: name of the SAM.
            lacking: why there is none, as a sentence; "" if there is.
        """
        self.ui.refineCheckBox.enabled = not lacking
        self.ui.refineCheckBox.toolTip = lacking or _(
            "Let {sam} redraw the organs in boxes around them. It takes longer, and is mostly "
            "nearer to the truth."
        ).format(sam=sam)

    def stages(self) -> dict[str, str]:
        """See `CommonPanel.stages`."""
        return super().stages() | {
            "prepare": _("Preparing the volume"),
            "network": _("Finding the organs"),
            "resample": _("Bringing the result to the volume's grid"),
            "choose": _("SAM chooses the boxes"),
            "encode": _("SAM looks at the slices"),
            "decode": _("SAM outlines the organs"),
            "combine": _("Combining the outlines"),
        }

    # The result

    def show_results(
        self, name: str, organs: Sequence[ResultRow], axis: str, jump: Callable[[int], None]
    ) -> None:
        """Show the organs' volumes and least certain slices; without organs, hide the section.

        Args:
            name: of the segmentation.
            axis: the one along which slices count: I, J or K.
            jump: called with a slice's number when it is clicked.
        """
        if self._results == (name, axis, *organs):
            return
        self._results = (name, axis, *organs)
        ui, table = self.ui, self.ui.resultTable
        ui.resultsCollapsibleButton.visible = bool(organs)
        # In the tooltip: a header is never narrower than its text, and names can be long.
        ui.resultsCollapsibleButton.toolTip = name
        table.horizontalHeaderItem(2).setText(_("Check first ({axis})").format(axis=axis))
        table.setRowCount(len(organs))
        for row, organ in enumerate(organs):
            name_item = qt.QTableWidgetItem(swatch(organ.color), organ.name)
            name_item.setToolTip(_("Click to go to the middle of the organ."))
            table.setItem(row, 0, name_item)
            millilitres = qt.QTableWidgetItem(f"{organ.millilitres:.1f}")
            millilitres.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            table.setItem(row, 1, millilitres)
            links = qt.QLabel(_links(organ.slices[:SLICES_SHOWN]))
            links.indent = 8
            links.toolTip = _(
                "Slices in which the model is least sure of this organ, the worst first. Click a "
                "slice to see it; slices count from 0 along {axis}."
            ).format(axis=axis)
            links.connect("linkActivated(QString)", lambda number: jump(int(number)))
            table.setCellWidget(row, 2, links)
        fit_rows(table, len(organs), ROWS_SHOWN)

    def table_text(self) -> str:
        """Return the shown table as tab-separated text, with units in its first line."""
        _name, axis, *organs = self._results
        slices = _("Slices to check first ({axis}, from 0)").format(axis=axis)
        lines = [(_("Organ"), _("Volume (ml)"), slices)]
        for organ in organs:
            slices = ", ".join(str(number) for number, _mm in organ.slices[:SLICES_SHOWN])
            lines.append((organ.name, f"{organ.millilitres:.3f}", slices))
        return "\n".join(map("\t".join, lines)) + "\n"

    def show_notes(self, notes: Sequence[str], undo: str) -> None:
        """Show messages of the last run, and what undoing it does; "" if it cannot be undone."""
        ui = self.ui
        ui.resultMessagesLabel.text = "<br>".join(map(escape, notes))
        ui.resultMessagesLabel.visible = bool(notes)
        ui.undoButton.enabled = bool(undo)
        ui.undoButton.toolTip = undo or _("Nothing was segmented since the module was opened.")

    def show_3d_state(self, shown: bool) -> None:
        """Show whether the surfaces of the result are shown."""
        with quiet(self.ui.show3DButton):
            self.ui.show3DButton.checked = shown

    def show_refine(self, installed: bool) -> None:
        """Enable the button that opens SAM Refine if the module is installed."""
        self.ui.refineButton.enabled = installed
        self.ui.refineButton.toolTip = (
            _("Draw boxes around the organs, correct them, and let SAM redraw the outlines.")
            if installed
            else _("The module SAM Refine is not installed.")
        )


def _grouped(organs: Sequence[OrganCard]) -> dict[str, tuple[OrganCard, ...]]:
    """Return organs by group; without groups all are under "", and with some the rest are last."""
    names = [*dict.fromkeys(organ.group for organ in organs if organ.group)]
    rest = _("Other") if names else ""
    groups = {name: tuple(o for o in organs if o.group == name) for name in names}
    if others := tuple(organ for organ in organs if not organ.group):
        groups[rest] = groups.get(rest, ()) + others
    return groups


def _row(item: "qt.QListWidgetItem", name: str | None) -> "qt.QListWidgetItem":
    """Make a row that can be ticked, of an organ or, without a name, the heading of a group."""
    item.setData(_NAME, name)
    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
    return item


def _state(ticked: Sequence[bool]) -> "qt.Qt.CheckState":
    if all(ticked):
        return qt.Qt.Checked
    return qt.Qt.PartiallyChecked if any(ticked) else qt.Qt.Unchecked


def _bold(font: "qt.QFont") -> "qt.QFont":
    bold = qt.QFont(font)
    bold.setBold(True)
    return bold


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
    return "&nbsp; ".join(
        f'<a href="{number}" title="{mm:.1f} mm" style="color:{_LINK}">{number}</a>'
        for number, mm in slices
    )
