# SPDX-License-Identifier: Apache-2.0
"""Dialog with a bar and a button Cancel for what takes longer than a frame."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import Cancelled
from ..scene.aside import Aside

FRAME_S = 0.02
PATIENCE_S = 0.1
"""Seconds that may pass before the dialog is shown."""

T = TypeVar("T")


@contextmanager
def waiting(text: str, patience: float = PATIENCE_S) -> Iterator[Aside]:
    """Run functions in a thread; if they take long, a modal dialog tells how far they are.

    No event is processed before the dialog keeps the user from changing anything meanwhile.

    Args:
        text: what is going on.
        patience: seconds without the dialog; 0 shows it at once, as before work on the main thread
            that cannot be cut into short pieces.
    """
    dialog, shown, patient_until = None, 0, time.monotonic() + patience

    def aside(function: Callable[[], T], done: float | None = None) -> T:
        nonlocal dialog, shown
        outcome: Future = Future()
        thread = threading.Thread(target=_run, args=(function, outcome), daemon=True)
        thread.start()
        thread.join(max(0.0, patient_until - time.monotonic()))
        while thread.is_alive() or dialog is not None or time.monotonic() >= patient_until:
            finished = not thread.is_alive()
            if finished and done is not None:
                shown = round(100 * done)
            dialog = dialog or _dialog(text)
            dialog.value = shown
            slicer.app.processEvents()
            if dialog.wasCanceled:
                # The thread ends by itself, and nobody asks for its result.
                raise Cancelled(_("Stopped; nothing was changed."))
            if finished:
                break
            thread.join(FRAME_S)
        return outcome.result()

    try:
        yield aside
    finally:
        if dialog is not None:
            dialog.close()
            dialog.deleteLater()


def _dialog(text: str) -> "qt.QProgressDialog":
    """Show a dialog that keeps the user from everything but Cancel."""
    dialog = slicer.util.createProgressDialog(
        labelText=text,
        windowTitle=_("Please wait"),
        windowModality=qt.Qt.ApplicationModal,
        autoClose=False,
        autoReset=False,
    )
    dialog.show()
    return dialog


def _run(function: Callable[[], T], outcome: "Future[T]") -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:
        outcome.set_exception(error)
