# SPDX-License-Identifier: Apache-2.0
"""Choice of a SAM in the panel: the list, the user's own files, and downloads."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SRCSMSegmenterLib.errors import Cancelled, SRCSMError

from ..refine.organ_state import Settings
from ..sam.catalogue import SamCard, kind_of
from ..sam.checkpoints import CHECKPOINTS
from ..sam.downloads import InBackground, download, received, remove, sha256_of
from . import sams
from .panel import RefinePanel

WATCH_MS = 200


class SamChooser:
    """The rows of the panel about SAMs.

    Attributes:
        cards: cards by key (`sams.sam_cards`).
        chosen: the key of the chosen SAM.
        work: the download or check that runs, or None.
        timer: the timer that polls it.
    """

    def __init__(self, panel: RefinePanel, picked: Callable[[str], None]) -> None:
        """Connect the widgets.

        Args:
            panel: the panel.
            picked: called with a key when the user picks a SAM, or one was added or removed.
        """
        self.cards: dict[str, SamCard] = {}
        self.chosen = ""
        self._panel, self._picked = panel, picked
        self.work: InBackground | None = None
        self._finish: Callable[[InBackground], None] = lambda work: None
        self.timer = qt.QTimer()
        self.timer.setInterval(WATCH_MS)
        self.timer.connect("timeout()", self._watch)
        ui = panel.ui
        ui.samComboBox.connect("currentIndexChanged(int)", self.onPicked)
        ui.downloadButton.connect("clicked()", self.onDownload)
        ui.stopDownloadButton.connect("clicked()", self.stop)
        ui.addSamButton.connect("clicked()", self.onAddFile)
        ui.addSamFolderButton.connect("clicked()", self.onAddFolder)
        ui.removeSamButton.connect("clicked()", self.onRemove)

    def show(self, chosen: str) -> None:
        """Show the list and the card of the chosen SAM."""
        self.chosen, card = chosen, self.cards.get(chosen)
        self._panel.show_sams(self.cards, chosen)
        self._panel.show_removal(card, own=chosen in sams.own_sams())
        absent = card if card and card.origin and not card.present else None
        self._panel.show_download(
            absent, received(absent.path) if absent else 0, running=self.work is not None
        )

    def refresh(self) -> None:
        """List the existing SAMs anew."""
        self.cards = sams.sam_cards()

    def lacking(self) -> list[str]:
        """Explain why the chosen SAM cannot be used; empty if it can."""
        card = self.cards.get(self.chosen)
        if card is None:
            return [_("Choose a SAM.")]
        if not card.present:
            return [_("Download the SAM, add its file (Advanced), or choose another.")]
        return []

    def chosen_in(self, settings: Settings) -> Settings:
        """Return settings with the chosen SAM."""
        card = self.cards.get(self.chosen)
        if card is None or self.chosen == sams.BY_MODALITY:
            return replace(settings, sam="", sam_kind=None)
        kind = card.kind if card.kind in CHECKPOINTS else None
        # A shipped SAM is given by name, as the worker may run on another machine.
        shipped = self.chosen == card.path.name
        return replace(settings, sam=self.chosen if shipped else str(card.path), sam_kind=kind)

    def onPicked(self, index: int) -> None:
        """Take over another choice."""
        if index >= 0:
            self._picked(self._panel.chosen_sam())

    # downloads

    def onDownload(self) -> None:
        """Download the chosen SAM, which the button described with size and origin."""
        card = self.cards[self.chosen]
        origin = card.origin
        fetch = partial(download, origin.url, card.path, origin.bytes, origin.sha256)
        self.start(fetch, self._fetched)

    def _fetched(self, work: InBackground) -> None:
        if work.error is None:
            self._panel.log(_("Downloaded {path}.").format(path=self.cards[self.chosen].path))

    def stop(self) -> None:
        """Stop a download or a check; received bytes are kept."""
        if self.work is not None:
            self.work.stop()

    def close(self) -> None:
        """Stop a download or a check without waiting for its end."""
        self.stop()
        self.timer.stop()
        self.work = None

    def start(self, work: Callable, finish: Callable[[InBackground], None]) -> None:
        """Run work on files in the background unless some runs; `finish` is called at its end."""
        if self.work is None:
            self._panel.show_message("")
            self._panel.show_download_progress("", 0.0)
            self.work, self._finish = InBackground(work), finish
            self.timer.start()
            self.show(self.chosen)

    def _watch(self) -> None:
        work = self.work
        self._panel.show_download_progress(work.stage, work.fraction)
        if not work.finished:
            return
        self.timer.stop()
        self.work = None
        if work.error is not None and not isinstance(work.error, Cancelled):
            self._panel.show_message(str(work.error))
        self._finish(work)
        self._changed(self.chosen)

    def _changed(self, chosen: str) -> None:
        self.refresh()
        self.show(chosen)
        self._picked(chosen)

    # the user's own SAMs

    def onAddFile(self) -> None:
        """Ask the user for a checkpoint file."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("A checkpoint of SAM or MedSAM"), "", "*.pth *.pt"
        )
        if path:
            self.addFile(path)

    def addFile(self, path: str) -> None:
        """Check a checkpoint file and choose it."""
        check = partial(sha256_of, Path(path))
        self.start(check, lambda work: self._checked(path, work))

    def _checked(self, path: str, work: InBackground) -> None:
        if work.error is not None:
            return
        kind = kind_of(work.result)
        if kind is None and slicer.util.confirmYesNoDisplay(
            _(
                "{path} is none of the official SAM files; its SHA-256 is {sha256}.\n\nIs it "
                "MedSAM's {medsam}? Its authors publish no checksum to check it against: say yes "
                "only if you trust where you have it from."
            ).format(path=path, sha256=work.result, medsam=CHECKPOINTS["medsam"].file)
        ):
            kind = "medsam"
        if kind is None:
            self._panel.show_message(
                _(
                    "{path} was not added: it is none of the official SAM files, or is truncated."
                ).format(path=path)
            )
            return
        self.chosen = sams.add_sam(Path(path), kind)

    def onAddFolder(self) -> None:
        """Ask the user for the folder of a SAM of this program."""
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of a SAM that srcsm train-sam made")
        )
        if folder:
            self.addFolder(folder)

    def addFolder(self, folder: str) -> None:
        """Add the SAM in a folder and choose it."""
        try:
            key = sams.add_sam(Path(folder))
        except SRCSMError as error:
            self._panel.show_message(str(error))
            return
        self._panel.show_message("")
        self._changed(key)

    def onRemove(self) -> None:
        """Remove the chosen SAM from the list, or delete its download."""
        if self.chosen in sams.own_sams():
            sams.forget_sam(self.chosen)
        else:
            remove(self.cards[self.chosen].path)
        self.refresh()
        self._changed(self.chosen if self.chosen in self.cards else next(iter(self.cards), ""))
