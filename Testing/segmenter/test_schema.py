# SPDX-License-Identifier: Apache-2.0
"""Plain values at the door: what fits is converted, what does not is a sentence."""

from dataclasses import dataclass, field

import pytest

from SRCSMSegmenterLib.errors import BundleError, PromptError
from SRCSMSegmenterLib.schema import convert, parse_json


@dataclass(frozen=True)
class Part:
    size: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    other: Part | None = None
    more: dict = field(default_factory=dict)


def faults(value, **options):
    with pytest.raises(BundleError) as caught:
        convert(value, Whole, "it", BundleError, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plain_values_become_the_dataclass():
    whole = convert({"name": "a", "part": {"size": [3, 4]}, "more": {"x": [1]}}, Whole, "", OSError)
    assert whole == Whole("a", Part((3, 4.0)), more={"x": [1]})
    assert isinstance(whole.part.size, tuple)
    assert convert([[1, "2"]], list[tuple[int, str]], "", BundleError) == [(1, "2")]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({}, "it: name is missing."),
        ({"name": 5}, "it: name should be a valid string, not 5."),
        ({"name": "a", "part": 5}, "it: part should hold keys and values, not 5."),
        ({"name": "a", "part": {"sise": 1}}, "it: part.sise is unknown (did you mean size?)."),
        ({"name": "a", "part": {"size": [1, 2, 3]}}, "part.size should have at most 2 values"),
        ({"name": "a", "part": {"size": [1.5, 2]}}, "part.size[0] should be a valid integer"),
        ({"name": "a", "part": {"size": [True, 2]}}, "part.size[0] should be a valid integer"),
        ({"name": "a", "part": {"size": [1, float("nan")]}}, "part.size[1] should be a finite"),
        ({"name": "a", "parts": [{}, 7]}, "it: parts[1] should hold keys and values, not 7."),
        ({"name": "a", "other": {"sise": 1}}, "it: other.sise is unknown (did you mean size?)."),
        ({"name": "a", "other": []}, "it: other should hold keys and values"),
        ({"name": "\ud800"}, "holds text that is no Unicode"),
        (None, "it should hold something, not null."),
        ({"name": {1, 2}}, "it holds no plain values"),
        (dict.fromkeys("abcdefg"), "(and 5 more)"),
    ],
)
def test_what_does_not_fit_is_named(value, fault):
    assert fault in faults(value)


def test_a_complete_value_has_no_defaults():
    given = {"name": "a", "part": {"size": [1, 2]}, "parts": [{}], "other": None}
    assert faults(given, complete=True) == "it lacks parts[0].size, more."
    given |= {"parts": [], "more": {}}
    assert convert(given, Whole, "it", BundleError, complete=True) == Whole("a")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": NaN}', b"\xff\xfe", "[1e5"])
def test_no_json_is_a_sentence(text):
    with pytest.raises(PromptError, match=r"^it (is no JSON|holds NaN)"):
        parse_json(text, "it", PromptError)


def test_a_key_that_is_there_twice_is_refused_at_any_depth():
    for text in ('{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 2, "a": 1}}]'):
        with pytest.raises(PromptError, match="it says 'a' twice"):
            parse_json(text, "it", PromptError)
