# SPDX-License-Identifier: Apache-2.0
"""Keys that press buttons of the panel while its module is open."""

from collections.abc import Mapping

import qt
import slicer


class Shortcuts:
    """Keys of Slicer's main window, each for a button.

    Attributes:
        installed: the shortcuts that exist now.
    """

    def __init__(self, buttons: Mapping[str, "qt.QPushButton"]) -> None:
        """Prepare; `buttons` are by key."""
        self.installed: list[qt.QShortcut] = []
        self._buttons = dict(buttons)

    def install(self) -> None:
        """Make the keys press their buttons."""
        self.remove()
        window = slicer.util.mainWindow()
        for key, button in self._buttons.items() if window else ():
            shortcut = qt.QShortcut(window)
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", lambda button=button: button.click())
            self.installed.append(shortcut)

    def remove(self) -> None:
        """Leave the keys to Slicer."""
        for shortcut in self.installed:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self.installed = []
