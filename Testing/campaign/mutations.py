# SPDX-License-Identifier: Apache-2.0
"""Random damage to the content of files: bytes, lines of text, JSON values."""

import json
import random
import re
from typing import Any

EXTREMES = (
    "0", "-1", "1", "2", "3.5", "1e-30", "1e30", "-1e300", "nan", "inf", "65536", "4294967295",
    "9223372036854775807", "99999999999999999999", "", "x", "true", "[]", "../../x", "/dev/zero",
)  # fmt: skip
"""Words that replace a word of a text."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 1e308, 10**30, "", "x", "x" * 5000, "a\nb", "\x1b[31m",
    "../x", "\ud800", [], {}, [[]], [1, 2, 3], {"a": 1}, float("nan"), float("inf"),
)  # fmt: skip
"""Values that replace a JSON value."""


def mutate(content: bytes, kind: str, generator: random.Random) -> bytes:
    """Damage content once to three times.

    Args:
        kind: "binary", "header" (damage within the first 1000 bytes), "text" or "json".
    """
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        choices = {"binary": _bytes, "header": _header, "text": _line, "json": _json}
        damage = choices[kind] if generator.random() < 0.85 else _bytes
        content = damage(content, generator)
    return content


def _bytes(content: bytes, generator: random.Random, end: int | None = None) -> bytes:
    """Flip, replace, cut out, insert or cut off bytes."""
    if not content:
        return b"\0"
    place = generator.randrange(min(end or len(content), len(content)))
    length = generator.choice((1, 1, 2, 4, 8, 100))
    before, after = content[:place], content[place + length :]
    kind = generator.randrange(6)
    if kind == 0:
        flipped = content[place] ^ (1 << generator.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind == 1:
        return before + generator.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * length + after
    if kind == 2:
        return before + generator.randbytes(length) + after
    if kind == 3:
        return before + after
    if kind == 4:
        return before + generator.randbytes(length) + content[place:]
    return before


def _header(content: bytes, generator: random.Random) -> bytes:
    return _bytes(content, generator, end=1000)


def _line(content: bytes, generator: random.Random) -> bytes:
    """Drop, repeat or change one line of the first 60; what follows may be binary."""
    lines = content.split(b"\n")
    place = generator.randrange(min(len(lines), 60))
    kind = generator.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(generator.randrange(len(lines)), lines[place])
    else:
        words = list(re.finditer(rb"[^\s,;:=()\[\]{}]+", lines[place]))
        if words:
            word, new = generator.choice(words), generator.choice(EXTREMES).encode()
            lines[place] = lines[place][: word.start()] + new + lines[place][word.end() :]
    return b"\n".join(lines)


def _json(content: bytes, generator: random.Random) -> bytes:
    """Replace, drop or repeat one value; nest one deeply."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, generator)
    places = list(_places(value))
    if not places:
        return json.dumps(generator.choice(VALUES)).encode()
    parent, key = generator.choice(places)
    kind = generator.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind == 2 and isinstance(parent, dict):
        parent[generator.choice(("x", "", f"{key} ", "\n"))] = parent[key]
    elif kind == 3:
        deep = b"[" * 2000 + b"]" * 2000
        parent[key] = "DEEP"
        return json.dumps(value).encode().replace(b'"DEEP"', deep, 1)
    else:
        parent[key] = generator.choice(VALUES)
    return json.dumps(value).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """List (container, key) of every value within a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    places = []
    for key in keys:
        places.append((value, key))
        if isinstance(value[key], dict | list):
            places += _places(value[key])
    return places
