# SPDX-License-Identifier: Apache-2.0
"""The dialog comes when work takes long, wherever it runs, and its Cancel is heard."""

import sys
import time
from types import SimpleNamespace

import pytest
import qt_host
import slicer

from SRCSMSegmenterLib.errors import Cancelled

pytestmark = pytest.mark.needs_slicer


@pytest.fixture
def dialogs(tmp_path, monkeypatch):
    """The dialogs that were shown; they are cancelled as the test says."""
    packaging = SimpleNamespace(load_requirements=lambda path: [], pip_check=lambda one: True)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    shown = []

    def create(**options):
        nothing = lambda: None  # noqa: E731
        dialog = SimpleNamespace(**options, wasCanceled=False, value=0, show=nothing)
        dialog.closed, dialog.deleteLater = False, nothing
        dialog.close = lambda: setattr(dialog, "closed", True)
        shown.append(dialog)
        return dialog

    with qt_host.slicer_with_qt(tmp_path / "settings.ini", "SRCSMSegmenter"):
        monkeypatch.setattr(slicer.util, "createProgressDialog", create)
        yield shown


def waiting(*arguments, **options):
    from SRCSMSegmenterLib.panel import waiting as module

    return module.waiting(*arguments, **options)


def test_what_is_short_shows_nothing(dialogs):
    with waiting("Reading", patience=60) as aside:
        assert aside(lambda: 7) == 7
    assert dialogs == []


def test_long_work_in_a_thread_shows_how_far_it_is(dialogs):
    with waiting("Reading", patience=0.01) as aside:
        aside(lambda: time.sleep(0.05), 0.25)
        (dialog,) = dialogs
        assert (dialog.labelText, dialog.value, dialog.closed) == ("Reading", 25, False)
    assert dialog.closed


def test_long_work_between_short_pieces_shows_it_too(dialogs):
    """What only the main thread can do is cut into pieces, between which `aside` is called."""
    with waiting("Drawing", patience=0.01) as aside:
        aside(lambda: None, 0.0)
        time.sleep(0.02)
        aside(lambda: None, 0.5)
        assert [dialog.value for dialog in dialogs] == [50]


def test_no_patience_shows_it_before_the_first_piece(dialogs):
    with waiting("Drawing", patience=0) as aside:
        aside(lambda: None)
        assert len(dialogs) == 1


def test_cancel_is_heard_between_pieces(dialogs):
    with waiting("Drawing", patience=0) as aside:
        aside(lambda: None)
        dialogs[0].wasCanceled = True
        with pytest.raises(Cancelled, match="nothing was changed"):
            aside(lambda: None)
    assert dialogs[0].closed


def test_an_error_of_the_work_comes_back(dialogs):
    def fail():
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"), waiting("Reading", patience=0) as aside:
        aside(fail)
    assert dialogs[0].closed
