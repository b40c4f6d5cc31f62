# SPDX-License-Identifier: Apache-2.0
"""Display of the panel: the widgets of SAMRefine.ui, without the scene.

Attributes of widgets are set and read as Qt properties (`label.text = ...`), as in all of Slicer.
"""

from collections.abc import Mapping, Sequence
from html import escape
from types import SimpleNamespace

import qt
from slicer.i18n import tr as _

from SRCSMSegmenterLib.panel.common import CommonPanel, fit_rows, quiet, readable, swatch

from ..boxes.boxes import AXES, SliceGrid
from ..refine.organ_state import OrganState
from ..sam.catalogue import SamCard, megabytes
from ..sam.downloads import host
from .organ_texts import box_text, state_help, state_text

SHOW, USE, NAME, EDITED, STATE, DICE, KEEP = range(7)
"""Columns of the table of organs."""

TICKS = {SHOW: "shown", USE: "enabled", KEEP: "kept"}
"""Columns with a check box, and the attribute of an organ that it shows."""

ROWS_SHOWN = 8
"""Rows of the table; of more, it scrolls."""

_KEY = qt.Qt.UserRole


class RefinePanel(CommonPanel):
    """The widgets of the panel; `ui` has one attribute per name in the .ui files."""

    def __init__(self, ui: SimpleNamespace) -> None:
        super().__init__(ui)
        self._keys: dict[str, str] = {}
        ui.infoButton.connect("toggled(bool)", lambda shown: self._show_info())
        for row in (ui.downloadFrame, ui.resultLabel, ui.organTable, ui.embeddingLabel):
            row.visible = False
        ui.newOrganComboBox.lineEdit().setPlaceholderText(_("An organ that was missed"))
        header = ui.organTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(NAME, qt.QHeaderView.Stretch)

    def stages(self) -> dict[str, str]:
        """Return the texts of stages; see `CommonPanel.stages`."""
        return super().stages() | {
            "choose": _("SAM chooses the boxes"),
            "encode": _("SAM looks at the slices"),
            "decode": _("SAM outlines the organs"),
            "combine": _("Combining the outlines"),
        }

    # SAMs

    def show_sams(self, cards: dict[str, SamCard], chosen: str) -> None:
        """Show the SAMs by key, and the card of the chosen one."""
        ui, box = self.ui, self.ui.samComboBox
        names = {
            key: card.name if card.present else _("{name} (not here yet)").format(name=card.name)
            for key, card in cards.items()
        }
        listed = {box.itemData(n): box.itemText(n) for n in range(box.count)}
        with quiet(box):
            if listed != names:
                box.clear()
                for key, name in names.items():
                    box.addItem(name, key)
                    box.setItemData(box.count - 1, str(cards[key].path), qt.Qt.ToolTipRole)
            box.currentIndex = box.findData(chosen)
        text = _card_text(cards[chosen]) if chosen in cards else _absent_text(chosen)
        ui.samLabel.text, ui.infoButton.enabled = text, chosen in cards
        self._show_info()

    def _show_info(self) -> None:
        """Show the card if requested, and always if a SAM is not here."""
        ui = self.ui
        absent = not ui.infoButton.enabled and bool(ui.samLabel.text)
        ui.samLabel.visible = ui.infoButton.checked or absent

    def chosen_sam(self) -> str:
        """Return the key of the SAM that is picked."""
        return self.ui.samComboBox.itemData(self.ui.samComboBox.currentIndex)

    def show_removal(self, card: SamCard | None, own: bool) -> None:
        """Show whether the chosen SAM can be removed, and what is deleted.

        Args:
            card: card of the chosen SAM, if it exists.
            own: True if the user added it.
        """
        button = self.ui.removeSamButton
        downloaded = card is not None and card.origin is not None and card.present and not own
        button.enabled = own or downloaded
        button.text = _("Delete download") if downloaded else _("Remove")
        if downloaded:
            size = megabytes(card.origin.bytes)
            button.toolTip = _("Delete {path} ({size}).").format(path=card.path, size=size)
        elif own:
            button.toolTip = _("Take the chosen SAM off the list. Its files stay.")
        else:
            button.toolTip = _("Only SAMs that you added or downloaded can be removed.")

    def show_download(self, card: SamCard | None, received: int, running: bool) -> None:
        """Show size, origin and licence of a download, or its progress.

        Args:
            card: card of a SAM to be downloaded; None hides the row unless a download runs.
            received: bytes from an earlier try.
            running: True while a download runs.
        """
        ui = self.ui
        ui.downloadFrame.visible = running or card is not None
        ui.downloadButton.visible = not running
        ui.downloadProgressFrame.visible = running
        if card is not None:
            size, origin = megabytes(card.origin.bytes), host(card.origin.url)
            if received:
                size = _("{n} of {size}").format(n=megabytes(received), size=size)
            text = _("Download {size}, {origin}, {licence}")
            if received:
                text = _("Resume: {size}, {origin}, {licence}")
            ui.downloadButton.text = text.format(size=size, origin=origin, licence=card.licence)
            ui.downloadButton.toolTip = _(
                "Fetch {url} once, under the licence {licence}, into {folder}. Nothing is sent, "
                "and nothing is fetched before you click."
            ).format(url=card.origin.url, licence=card.licence, folder=card.path.parent)

    def show_download_progress(self, stage: str, fraction: float) -> None:
        """Show the progress of a download or a check."""
        bar = self.ui.downloadProgressBar
        bar.value = round(100 * fraction)
        bar.format = _("checking %p%") if stage == "check" else "%p%"

    # organs

    def show_organs(
        self, organs: Sequence[OrganState], active: int, dice: Mapping[str, float]
    ) -> None:
        """List the organs and select the active one.

        Args:
            organs: the organs.
            active: label of the active one.
            dice: Dice of the outlines before and now, by segment ID, of organs edited by hand.
        """
        table = self.ui.organTable
        table.visible = bool(organs)
        with quiet(table):
            # Rows are kept if possible: this is also called while one is being ticked.
            if [self._label(row) for row in range(table.rowCount)] != [o.label for o in organs]:
                table.setRowCount(len(organs))
                for row, organ in enumerate(organs):
                    self._make_row(row, organ.label)
                fit_rows(table, len(organs), ROWS_SHOWN)
            for row, organ in enumerate(organs):
                self._show_row(row, organ, dice)
            chosen = next((row for row, organ in enumerate(organs) if organ.label == active), -1)
            if chosen < 0:
                table.clearSelection()
            elif chosen not in self._selected():
                table.selectRow(chosen)

    def _make_row(self, row: int, label: int) -> None:
        for column in range(KEEP + 1):
            item = qt.QTableWidgetItem()
            item.setData(_KEY, label)
            flags = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable
            if column in TICKS:
                flags |= qt.Qt.ItemIsUserCheckable
            item.setFlags(flags)
            if column in (EDITED, DICE):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            self.ui.organTable.setItem(row, column, item)

    def _show_row(self, row: int, organ: OrganState, dice: Mapping[str, float]) -> None:
        table = self.ui.organTable
        for column, name in TICKS.items():
            state = qt.Qt.Checked if getattr(organ, name) else qt.Qt.Unchecked
            table.item(row, column).setCheckState(state)
        item = table.item(row, NAME)
        item.setText(readable(organ.name))
        item.setIcon(swatch([round(255 * channel) for channel in organ.color]))
        table.item(row, EDITED).setText(str(organ.edited) if organ.edited else "")
        table.item(row, STATE).setText(state_text(organ))
        table.item(row, STATE).setToolTip(state_help(organ))
        now = organ.report.dice if organ.report else None
        now = dice.get(organ.segment) if organ.by_hand else now
        table.item(row, DICE).setText("" if now is None else f"{now:.2f}")

    def organ_of(self, item: "qt.QTableWidgetItem") -> int:
        """Return the label of the organ of a table item."""
        return item.data(_KEY)

    def ticked(self, item: "qt.QTableWidgetItem") -> tuple[str, bool] | None:
        """Return the attribute that an item shows, and its state; None for items without a box."""
        name = TICKS.get(item.column())
        return name and (name, item.checkState() == qt.Qt.Checked)

    def selected_organ(self) -> int:
        """Return the label of the selected organ; 0 for none."""
        rows = self._selected()
        return self._label(rows[0]) if rows else 0

    def _selected(self) -> list[int]:
        return sorted({item.row() for item in self.ui.organTable.selectedItems()})

    def _label(self, row: int) -> int | None:
        item = self.ui.organTable.item(row, NAME)
        return item.data(_KEY) if item else None

    def show_organ_help(self, text: str) -> None:
        """Tell what to do next; "" hides the text."""
        self.ui.organHelpLabel.text = escape(text)
        self.ui.organHelpLabel.visible = bool(text)

    def show_new_organs(self, names: Sequence[str]) -> None:
        """Offer names for an organ that was missed."""
        box = self.ui.newOrganComboBox
        if [box.itemData(n) for n in range(box.count)] != list(names):
            with quiet(box):
                box.clear()
                for name in names:
                    box.addItem(readable(name), name)
                box.setCurrentIndex(-1)
                box.setEditText("")

    def new_organ(self) -> str:
        """Return the name of the organ to be added; "" if none is given."""
        return self.ui.newOrganComboBox.currentText.strip()

    def clear_new_organ(self) -> None:
        """Forget the name of the organ that was added."""
        box = self.ui.newOrganComboBox
        with quiet(box):
            box.setCurrentIndex(-1)
            box.setEditText("")

    def tick_column(self, column: int) -> str | None:
        """Return the attribute that all organs of a column can be ticked for; None for others."""
        return TICKS.get(column) if column in (SHOW, USE) else None

    # the slice

    def show_slice(self, slice_index: int, grid: SliceGrid, organ: OrganState | None) -> None:
        """Show the index of the slice and the box that the organ has in it."""
        text = _("{n} of {count} ({axis})").format(
            n=slice_index, count=grid.count - 1, axis=AXES[grid.axis]
        )
        self.ui.sliceLabel.text = f"{text}<br>{box_text(organ, slice_index)}" if organ else text

    def show_embeddings(self, states: Mapping[int, str]) -> None:
        """Show for how many organs the embeddings exist.

        Args:
            states: by label, "ready", "running", "waiting" or "failed"; none hides the text.
        """
        ready, count = sum(state == "ready" for state in states.values()), len(states)
        if "failed" in states.values():
            text = _("SAM could not look ahead; see the message above.")
        elif ready == count:
            text = _("SAM has seen all organs: they are redrawn at once.")
        else:
            text = _("SAM is looking ahead. Organs that are redrawn at once: {ready} of {count}.")
            text = text.format(ready=ready, count=count)
        self.ui.embeddingLabel.text = text
        self.ui.embeddingLabel.visible = bool(states)

    # buttons

    def show_button(self, button: "qt.QPushButton", effect: str, lacking: Sequence[str]) -> None:
        """Enable a button if nothing is lacking; its tooltip tells its effect or what lacks."""
        button.enabled = not lacking
        if key := self._keys.get(button.name):
            effect = _("{effect} Key: {key}.").format(effect=effect, key=key)
        button.toolTip = "\n".join(lacking) or effect

    def show_running(self, running: bool) -> None:
        """Show whether a refinement runs, and lock what it depends on."""
        ui = self.ui
        ui.progressFrame.visible = running
        self.show_button(
            ui.cancelButton,
            _("Stop; the segmentation stays as it is."),
            [] if running else [_("Nothing is running.")],
        )
        ui.advancedCollapsibleButton.enabled = not running
        ui.inputsFrame.enabled = not running
        ui.installButton.enabled = not running

    def show_before(self, before: bool) -> None:
        """Show whether the outlines from before are in the views."""
        button = self.ui.beforeButton
        with quiet(button):
            button.checked = before
        button.text = _("After") if before else _("Before")

    def show_result(self, text: str) -> None:
        """Show what the last refinement did; "" hides the text."""
        self.ui.resultLabel.text = escape(text)
        self.ui.resultLabel.visible = bool(text)

    def show_axis(self, text: str) -> None:
        """Describe the slices along the chosen axis; "" hides the text."""
        self.ui.axisLabel.text = text
        self.ui.axisLabel.visible = bool(text)

    def show_shortcuts(self, keys: Sequence[tuple[str, str, "qt.QPushButton"]]) -> None:
        """Show keys and their effects; tooltips of their buttons name them."""
        self._keys = {button.name: key for key, _effect, button in keys}
        parts = (f"<b>{escape(key)}</b> {escape(effect)}" for key, effect, _button in keys)
        self.ui.shortcutsLabel.text = _("Keys: {list}.").format(list=", ".join(parts))


def _card_text(card: SamCard) -> str:
    lines = [(_("Expects:"), f"{card.expects.rstrip('.')}.")]
    if card.organs:
        organs = ", ".join(sorted(map(readable, card.organs)))
        stay = _("{organs}. Others stay with Refine all.").format(organs=organs)
        lines.append((_("Trained on:"), stay))
    lines.append((_("Licence:"), card.licence))
    return "<br>".join(f"<b>{label}</b> {escape(text)}" for label, text in lines)


def _absent_text(key: str) -> str:
    if not key:
        return ""
    return escape(_("The SAM {name} is not here; choose another.").format(name=key))
