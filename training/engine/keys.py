# SPDX-License-Identifier: Apache-2.0
"""Keys of configurations: what they mean, their units, ranges and published values.

What a key means is in the docstring of its dataclass, the rest in the metadata of its field.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.schema import nearest

WIDTH = 100
"""Columns of the help."""


@dataclass(frozen=True)
class Range:
    """The values that a number, every number of a list, or a text may have.

    Attributes:
        least, most: smallest and largest number.
        above, below: bounds that are no values themselves.
        choices: the only texts.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        bounds = (
            ("at least", self.least), ("over", self.above),
            ("at most", self.most), ("under", self.below),
        )  # fmt: skip
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def holds(self, value: Any) -> bool:  # noqa: ANN401 - a value of a configuration
        """Tell whether a value is in the range; None, for what is not set, is."""
        if isinstance(value, tuple | list):
            return all(map(self.holds, value))
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


SHARE = Range(least=0, most=1)
NOT_NEGATIVE = Range(least=0)
POSITIVE = Range(above=0)
COUNT = Range(least=1)


def choice(*choices: str) -> Range:
    """Make the range of a text."""
    return Range(choices=choices)


def key(default: Any, range: Range = Range(), *, unit: str = "", paper: str = "") -> Any:  # noqa: ANN401 - frozen
    """Make the field of a key.

    Args:
        range: values that it may have.
        unit: of its value.
        paper: the published value, in words; "" if there is none.
    """
    return dataclasses.field(
        default=default, metadata={"range": range, "unit": unit, "paper": paper}
    )


@dataclass(frozen=True)
class Settings:
    """A section of a configuration, whose values are checked against their ranges.

    Raises:
        ConfigError: a value is out of its range.
    """

    section: ClassVar[str] = ""
    """Where the section is in the configuration, with a dot behind it, for messages."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata.get("range")
            if allowed and not allowed.holds(value):
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"{self.section}{field.name} is {allowed}, not {shown!r}.")


@dataclass(frozen=True)
class KeyHelp:
    """A key of a configuration and what is known of it.

    Attributes:
        name: with its sections, such as "optimisation.steps".
        value: its value in the configuration; None for a section.
        text: its meaning, range, unit and published value, in sentences.
    """

    name: str
    value: Any
    text: str


def keys_of(config: Any, section: str = "") -> Iterator[KeyHelp]:  # noqa: ANN401
    """Walk through the keys of a configuration dataclass, in their order; sections come first."""
    meanings = _meanings(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), section + field.name
        if dataclasses.is_dataclass(value):
            summary = (type(value).__doc__ or "").strip().split("\n\n")[0]
            yield KeyHelp(name, None, meanings.get(field.name, " ".join(summary.split())))
            yield from keys_of(value, f"{name}.")
        else:
            yield KeyHelp(name, value, _sentences(meanings.get(field.name, ""), field.metadata))


def describe(config: Any, wanted: str = "") -> str:  # noqa: ANN401
    """Describe the keys of a configuration for people.

    Args:
        wanted: a key or a section; "" describes all.

    Raises:
        ConfigError: there is no such key.
    """
    keys = list(keys_of(config))
    inside = f"{wanted}."
    chosen = [k for k in keys if not wanted or k.name == wanted or k.name.startswith(inside)]
    if not chosen:
        known = [k.name for k in keys]
        last = [k.name for k in keys if k.name.rpartition(".")[2] == wanted]
        hint = f" (did you mean {' or '.join(last)}?)" if last else nearest(wanted, known)
        raise ConfigError(f"Unknown configuration key {wanted}{hint}.")
    lines = []
    for key_help in chosen:
        value = key_help.value
        shown = list(value) if isinstance(value, tuple) else value
        is_section = value is None and any(k.name.startswith(f"{key_help.name}.") for k in keys)
        lines.append(key_help.name if is_section else f"{key_help.name} = {_yaml_word(shown)}")
        lines += wrapped(key_help.text, "    ")
    return "\n".join(lines)


def commented(yaml: str, config: Any) -> str:  # noqa: ANN401
    """Put the help of every key as a comment above its line of a YAML text.

    Args:
        yaml: of the configuration, a line per key and indented by two spaces a section.
    """
    texts = {key_help.name: key_help.text for key_help in keys_of(config)}
    lines, sections = [], []
    for line in yaml.splitlines():
        match = re.match(r"( *)(\w+):", line)
        if match:
            depth = len(match[1]) // 2
            sections = [*sections[:depth], match[2]]
            lines += wrapped(texts.get(".".join(sections), ""), f"{match[1]}# ")
        lines.append(line)
    return "\n".join(lines)


def wrapped(text: str, prefix: str) -> list[str]:
    """Break a text into lines that begin with a prefix."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
    )


def _yaml_word(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml_word, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _sentences(meaning: str, about: Any) -> str:  # noqa: ANN401 - a mapping of metadata
    """Put the meaning of a key, its range, unit and published value into sentences."""
    parts = [meaning.rstrip(".")]
    allowed, unit = about.get("range"), about.get("unit")
    told = allowed and allowed.choices and all(f'"{c}"' in meaning for c in allowed.choices)
    bounds = "" if told or not allowed else str(allowed)
    parts.append(", ".join(filter(None, (bounds, f"in {unit}" if unit else ""))))
    parts.append(f"paper: {about['paper']}" if about.get("paper") else "")
    # A unit keeps its small letters.
    return " ".join(
        f"{part if part.startswith('mm ') else part[0].upper() + part[1:]}."
        for part in parts
        if part
    )


@cache
def _meanings(kind: type) -> dict[str, str]:
    """Read what the attributes of a dataclass mean from its docstring and those of its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, found, block = (base.__doc__ or "").partition("Attributes:\n")
        if found:
            for names, text in _entries(textwrap.dedent(block).splitlines()):
                meanings |= dict.fromkeys(names, text)
    return meanings


def _entries(lines: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Yield the names and the text of every entry of a docstring's block of attributes."""
    names, words = [], []
    for line in [*lines, "end:"]:
        entry = re.match(r"([\w, ]+): ?(.*)", line)
        if entry and not line.startswith(" "):
            if names:
                yield names, " ".join(words)
            names, words = re.split(r", *", entry[1]), entry[2].split()
        elif line.startswith(" "):
            words += line.split()
        elif line:
            break
