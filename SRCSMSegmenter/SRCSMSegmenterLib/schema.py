# SPDX-License-Identifier: Apache-2.0
"""Plain values from files and messages, checked against annotated dataclasses by pydantic.

The check is strict: the keys of the dataclass and no others, numbers that are numbers, all finite.
Ranges and other rules are annotations (`annotated_types`, `pydantic.Field`) or in the dataclass's
``__post_init__``, whose errors pass unchanged.
"""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from .errors import SRCSMError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MOST_FAULTS = 3
"""Faults that one message lists."""

LONGEST_VALUE = 60
"""Characters of a value that a message shows."""

WORDS = {
    "bool_type": "should be true or false",
    "dataclass_type": "should hold keys and values",
    "dict_type": "should hold keys and values",
    "json_invalid": "holds text that is no Unicode",
    "too_long": "should have at most {max_length} values",
    "tuple_type": "should be a list",
}
"""Our words for some of pydantic's kinds of faults; the other kinds' messages are used."""


def parse_json(content: bytes | str, where: str, error: type[SRCSMError]) -> Any:  # noqa: ANN401
    """Parse JSON without NaN and infinity, and with each key once.

    Args:
        where: name of the content in the error.
        error: class of the error.

    Raises:
        SRCSMError: of the class `error`; no JSON.
    """

    def refuse(constant: str) -> None:
        raise error(f"{where} holds {constant}.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise error(f"{where} says {twice[0]!r} twice.")
        return dict(pairs)

    try:
        return json.loads(content, parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as reason:
        raise error(f"{where} is no JSON ({reason}).") from reason


def convert(
    value: object, kind: type[T], where: str, error: type[SRCSMError], *, complete: bool = False
) -> T:
    """Convert plain values, such as JSON's, to a dataclass or another annotated type.

    Args:
        where: name of the value in the error.
        error: class of the error.
        complete: defaults do not count, all keys must be given.

    Raises:
        SRCSMError: of the class `error`, with the faults; or from the dataclass itself.
    """
    from pydantic import ValidationError

    try:
        result = _adapter(kind).validate_json(json.dumps(value))
    except ValidationError as faults:
        listed = [_clause(fault, where, kind) for fault in faults.errors(include_url=False)]
        more = f" (and {len(listed) - MOST_FAULTS} more)" if len(listed) > MOST_FAULTS else ""
        first, *others = listed[:MOST_FAULTS]
        others = "".join(f"; {clause.removeprefix(f'{where}: ')}" for clause in others)
        raise error(f"{first}{others}{more}.") from None
    except (TypeError, ValueError, RecursionError) as reason:
        raise error(f"{where} holds no plain values ({reason}).") from reason
    if result is None:
        raise error(f"{where} should hold something, not null.")
    if complete and (absent := ", ".join(_absent(result, value))):
        raise error(f"{where} lacks {absent}.")
    return result


def convert_keys(
    content: object, kinds: Mapping[str, type], where: str, error: type[SRCSMError]
) -> dict[str, Any]:
    """Convert what some keys of an object hold, whatever other keys there are.

    Args:
        kinds: key -> annotated type.
        where: name of the object in the error.
        error: class of the error.

    Raises:
        SRCSMError: of the class `error`; no object, or a key is missing or holds something else.
    """
    if not isinstance(content, dict):
        raise error(f"{where} should hold keys and values.")
    if missing := ", ".join(key for key in kinds if key not in content):
        raise error(f"{where} lacks {missing}.")
    return {
        key: convert(content[key], kind, f"{where}: {key}", error) for key, kind in kinds.items()
    }


def nearest(name: object, known: Iterable[str]) -> str:
    """Word a suggestion, ' (did you mean ...?)'; "" if no known name is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


@cache
def _adapter(kind: type) -> "TypeAdapter":
    from pydantic import ConfigDict, TypeAdapter

    # In a union, dataclasses inherit this configuration; by themselves they may be given none.
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(kind | None, config=config)


def _clause(fault: dict[str, Any], where: str, kind: type) -> str:
    """Word one of pydantic's faults, such as "boxes.json: size[0] should be a valid integer"."""
    *parents, last = fault["loc"] or ("",)
    name = f"{where}: {_name(fault['loc'])}" if fault["loc"] else where
    if fault["type"] == "missing":
        return f"{name} is missing"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{name} is unknown{nearest(last, _fields(kind, parents))}"
    message = WORDS.get(fault["type"]) or fault["msg"].replace("Input should", "should")
    shown = json.dumps(fault["input"], default=repr)
    if len(shown) > LONGEST_VALUE:
        shown = f"{shown[:LONGEST_VALUE]}..."
    return f"{name} {message.format(**fault.get('ctx', {}))}, not {shown}"


def _name(place: Iterable[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def _fields(kind: Any, place: Iterable[str | int]) -> list[str]:  # noqa: ANN401
    """List the keys of the dataclass at a place within another; none if there is no dataclass."""
    for part in place:
        field = getattr(kind, "__dataclass_fields__", {}).get(part)
        kinds = (get_args(field.type) or (field.type,)) if field else ()
        kind = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    return [field.name for field in dataclasses.fields(kind)] if kind else []


def _absent(result: object, given: Any, place: tuple[str | int, ...] = ()) -> Iterator[str]:  # noqa: ANN401
    """Name the fields that were not given but took their defaults."""
    if isinstance(result, tuple | list):
        for n, (item, plain) in enumerate(zip(result, given, strict=True)):
            yield from _absent(item, plain, (*place, n))
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            inside = (*place, field.name)
            if field.name not in given:
                yield _name(inside)
            else:
                yield from _absent(getattr(result, field.name), given[field.name], inside)
