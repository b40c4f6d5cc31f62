# SPDX-License-Identifier: Apache-2.0
"""Names from files and of files: which may be used, and how they are shown."""

import re

UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal or a file's header acts on instead of showing them: control characters
with line breaks and escapes, changes of the direction of writing; and what is no character."""


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of an organ or a model: one line, not empty."""
    return bool(text.strip()) and not UNSHOWN.search(text)


def shown(text: object) -> str:
    """Return a text, such as a path, on one line, with escapes for what cannot be shown."""
    return UNSHOWN.sub(lambda match: repr(match[0])[1:-1], str(text))


def shown_lines(text: str) -> str:
    """Return a text like `shown`, but with its line breaks and tabs."""
    return UNSHOWN.sub(lambda m: m[0] if m[0] in "\n\r\t" else repr(m[0])[1:-1], text)
