# SPDX-License-Identifier: Apache-2.0
"""Names: which may be used, and that what is printed is what is there."""

import pytest

from SRCSMSegmenterLib.texts import is_name, shown, shown_lines


@pytest.mark.parametrize(
    "name", ["liver", "L3 (left)", "肝", "Łódź", "a\u00a0b", "naïve", "کبد\u200cچرب"]
)
def test_what_people_write_is_a_name_and_shown_as_it_is(name):
    assert is_name(name)
    assert shown(name) == name


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("liver\n\nx", r"liver\n\nx"),
        ("a\rb", r"a\rb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("nul\0", r"nul\x00"),
        ("\ud800", r"\ud800"),
        ("Gr\udcf6ße", r"Gr\udcf6ße"),
        ("a\u2028b", r"a\u2028b"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_what_would_act_is_no_name_and_escaped(text, seen):
    assert not is_name(text)
    assert shown(text) == seen


def test_a_blank_is_no_name():
    assert not is_name("")
    assert not is_name("  ")


def test_lines_stay_lines():
    assert shown_lines("a\n\tb\x1bc") == "a\n\tb\\x1bc"
