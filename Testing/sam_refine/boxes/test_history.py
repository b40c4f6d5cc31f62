# SPDX-License-Identifier: Apache-2.0
"""An undo history of states."""

from hypothesis import given, settings
from hypothesis import strategies as st

from SAMRefineLib.boxes.history import History


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=6))
def test_undo_gives_back_every_state_and_redo_every_edit(some):
    history, states = History("start"), ["start"]
    for edit in some:
        before = history.present
        history = history.changed(edit)
        if history.present != before:
            states.append(history.present)
    assert [*history.past, history.present] == states
    for state in reversed(states):
        assert history.present == state
        history = history.undo()
    assert history.present == states[0]
    for state in states:
        assert history.present == state
        history = history.redo()
    assert history.present == states[-1]


def test_an_edit_after_undo_forgets_what_was_undone():
    history = History("a").changed("b").changed("c").undo().changed("d")
    assert history == History("d", past=("a", "b"))
    assert history.redo() == history


def test_an_edit_that_changes_nothing_is_no_step():
    history = History("a").changed("b").undo()
    assert history.changed("a") == history
    assert history.redo().present == "b"


def test_a_long_history_forgets_its_beginning():
    history = History("a", limit=2)
    for state in "bcde":
        history = history.changed(state)
    assert history.past == ("c", "d")
    assert history.undo().undo().undo().present == "c"


def test_an_amended_state_is_undone_together_with_what_it_extends():
    history = History("a").changed("b").amended("b and more")
    assert history.past == ("a",)
    assert history.undo().present == "a"
    assert history.undo().redo().present == "b and more"
