# SPDX-License-Identifier: Apache-2.0
"""Saved state of a session: organs, grid and settings as JSON text in the scene.

Version 1 held the boxes as a text within the text, with a second copy of the grid, and called
points hints; it can still be read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

from ..boxes.boxes import PointPrompt, SliceGrid
from ..boxes.dragging import mirrored
from ..boxes.key_frames import KeyFrames, boxes_from_json, frames_from_json, frames_to_json
from .organ_state import OrganState, Report, Settings

FORMAT = "srcsm-refinement"
VERSION = 2

OLD_SETTINGS = {"threshold": "mask_threshold"}
"""Names of settings in texts of older versions -> their names now."""


@dataclass(frozen=True)
class SavedState:
    """The state of a session.

    Attributes:
        organs: the organs.
        grid: the slices.
        settings: the settings.
        highest: the largest label that was ever given.
    """

    organs: tuple[OrganState, ...]
    grid: SliceGrid
    settings: Settings
    highest: int

    def mirrored(self) -> "SavedState":
        """Return the same organs in space on the grid with the K axis reversed."""
        size, axis = self.grid.geometry.size[2], self.grid.axis

        def points(organ: OrganState) -> dict[int, tuple[PointPrompt, ...]]:
            if axis == 2:
                return {size - 1 - k: some for k, some in organ.points.items()}
            return {
                k: tuple(point._replace(y=size - point.y) for point in some)
                for k, some in organ.points.items()
            }

        def doubtful(organ: OrganState) -> tuple[int, ...]:
            return tuple(size - 1 - k for k in organ.doubtful) if axis == 2 else organ.doubtful

        organs = tuple(
            replace(
                organ,
                frames=mirrored(organ.frames),
                points=points(organ),
                doubtful=doubtful(organ),
            )
            for organ in self.organs
        )
        return replace(self, organs=organs, grid=SliceGrid(self.grid.geometry.mirrored(), axis))


def state_to_json(state: SavedState) -> str:
    """Write the state of a session, which may have no organs, as text."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(state.settings),
        "highest": state.highest,
        "grid": {**state.grid.geometry.to_json(), "axis": state.grid.axis},
        "organs": [
            {
                "boxes": frames_to_json(organ.frames),
                "segment": organ.segment,
                "color": list(organ.color),
                "coarse": organ.coarse,
                "points": {str(k): [list(p) for p in some] for k, some in organ.points.items()},
                "shown": organ.shown,
                "enabled": organ.enabled,
                "kept": organ.kept,
                "changed": organ.changed,
                "report": organ.report and asdict(organ.report),
                "mask_prompt": organ.mask_prompt,
                "keep_unboxed": organ.keep_unboxed,
                "undecided": organ.undecided,
                "doubtful": list(organ.doubtful),
                "by_hand": organ.by_hand,
            }
            for organ in state.organs
        ],
    }
    return json.dumps(content, allow_nan=False)


def state_from_json(text: str, source: str = "This text") -> SavedState:
    """Read the state of a session, of this version or an older one.

    Args:
        text: what `state_to_json` wrote.
        source: the name of the text in errors.

    Raises:
        PromptError: another format, a newer version, or damaged.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        if content["version"] not in range(1, VERSION + 1):
            raise PromptError(
                f"{source} has version {content['version']} of the format, this software reads "
                f"{VERSION}; update it."
            )
        grid = SliceGrid(Geometry.from_json(content["grid"]), content["grid"]["axis"])
        entries = content["organs"]
        if content["version"] == 1:
            frames = _frames_of_version_1(content["boxes"], grid, source)
        else:
            frames = [frames_from_json(entry["boxes"], grid) for entry in entries]
        organs = tuple(_organ(*each) for each in zip(frames, entries, strict=True))
        settings = Settings(
            **{OLD_SETTINGS.get(name, name): chosen for name, chosen in content["settings"].items()}
        )
        return SavedState(organs, grid, settings, max(content["highest"], 0))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise PromptError(f"{source} holds no boxes that can be read ({error!r}).") from error


def _frames_of_version_1(text: str | None, grid: SliceGrid, source: str) -> Sequence[KeyFrames]:
    """Read the text with the boxes of version 1; None if there were no organs."""
    frames = boxes_from_json(text, source) if text else ()
    for each in frames:
        each.require(grid)
    return frames


def _organ(frames: KeyFrames, entry: Mapping[str, Any]) -> OrganState:
    points = entry["points"] if "points" in entry else entry["hints"]
    return OrganState(
        frames,
        str(entry["segment"]),
        tuple(map(float, entry["color"])),
        bool(entry["coarse"]),
        {
            int(k): tuple(
                PointPrompt(float(x), float(y), bool(positive)) for x, y, positive in some
            )
            for k, some in points.items()
        },
        *(bool(entry[name]) for name in ("shown", "enabled", "kept", "changed")),
        entry["report"] and Report.from_json(entry["report"]),
        *(bool(entry[name]) for name in ("mask_prompt", "keep_unboxed", "undecided")),
        tuple(int(k) for k in entry.get("doubtful", ())),  # older versions had none, nor the next
        bool(entry.get("by_hand", False)),
    )
