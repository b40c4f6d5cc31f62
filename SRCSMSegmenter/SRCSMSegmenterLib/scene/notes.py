# SPDX-License-Identifier: Apache-2.0
"""Notes on a result, a sentence each, made of the reply to the task "segment"."""

from typing import Any

from ..terminology import readable


def result_notes(values: dict[str, Any]) -> list[str]:
    """List remarks on a result, a sentence each.

    Args:
        values: of the reply (worker/tasks.py).
    """
    return [*values["messages"], *_refined(values), *_absent(values)]


def _refined(values: dict[str, Any]) -> list[str]:
    """Say which SAM redrew the organs, and where it did not; nothing if none did."""
    if "refinement" not in values:
        return []
    sam, organs = (values["refinement"][key] for key in ("sam", "organs"))
    kept = sum(len(organ["kept"]) for organ in organs)
    stayed = f"; the network's outline stayed in {counted(kept, 'slice')}" if kept else ""
    return [f"Refined by {sam['name']}{stayed}."]


def _absent(values: dict[str, Any]) -> list[str]:
    """Write which organs were not found; nothing if all were."""
    names = [
        readable(organ) for organ, millilitres in values["volumes_ml"].items() if not millilitres
    ]
    return [f"Not found: {', '.join(names)}."] if names else []


def counted(number: int, thing: str) -> str:
    """Write a number of things: 1 slice, 2 slices."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
