# SPDX-License-Identifier: Apache-2.0
"""An organ that is being refined, all that is known of it, and how it is kept with a scene."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry

from ..boxes.boxes import Box, Box3D, SliceGrid
from ..boxes.dragging import dragged, mirrored
from ..boxes.key_frames import KeyFrames, boxes_from_json, boxes_to_json

PointPrompt = tuple[float, float, bool]
"""A point in a slice: x, y in edge coordinates, and whether it lies in the organ."""

Neighbours = Literal["keep", "overwrite", "overlap"]
"""What happens to voxels that a refined organ shares with segments that are not being refined: they
stay the others', become the organ's, or belong to both."""

FORMAT = "srcsm-refinement"
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How to refine.

    Attributes:
        sam: name of a shipped SAM, folder or file; "" takes the shipped one of the modality.
        sam_kind: of a file that is not recognised, such as "medsam".
        modality: "CT" or "MR"; None takes what DICOM says, else guesses.
        mosaic: see `prediction.MosaicMode`.
        mask_threshold: of SAM's probabilities (the paper's theta 2).
        mask_prompt: False shows SAM no coarse mask of any organ; see `Organ.mask_prompt`.
        device: see `devices.resolve_device`.
        neighbours: see `Neighbours`.
    """

    sam: str = ""
    sam_kind: str | None = None
    modality: str | None = None
    mosaic: str = "crops"
    mask_threshold: float = 0.5
    mask_prompt: bool = True
    device: str = "auto"
    neighbours: Neighbours = "keep"


DEFAULT_SETTINGS = Settings()

OLD_NAMES = {"threshold": "mask_threshold"}
"""Names of settings in texts that older versions wrote -> their names now."""


@dataclass(frozen=True)
class Report:
    """What the last refinement did to an organ; see `refiner.OrganReport`."""

    boxes: int
    kept: Mapping[int, str]
    dice: float | None
    voxels_before: int
    voxels_after: int
    predicted_iou: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Report":
        """From JSON; what else the row holds is left out."""
        known = {each.name: row[each.name] for each in fields(cls)}
        return cls(**{**known, "kept": {int(n): str(why) for n, why in row["kept"].items()}})


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask that is False beyond a block.

    Attributes:
        first: the block's first voxel (k, j, i).
        mask: bool.
    """

    first: tuple[int, int, int]
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> "Patch":
        """Of a bool array (K, J, I), which may be written to afterwards."""
        planes = _extent(mask.any(axis=(1, 2)))
        seen = mask[planes].any(axis=0)  # the whole array is looked at but once
        block = planes, _extent(seen.any(axis=1)), _extent(seen.any(axis=0))
        return cls(tuple(part.start for part in block), mask[block].copy())

    @property
    def block(self) -> tuple[slice, slice, slice]:
        """Where in a (K, J, I) array it lies."""
        return tuple(slice(n, n + m) for n, m in zip(self.first, self.mask.shape, strict=True))

    def whole(self, shape: tuple[int, int, int]) -> np.ndarray:
        """bool (K, J, I)."""
        found = np.zeros(shape, bool)
        found[self.block] = self.mask
        return found


def _extent(flags: np.ndarray) -> slice:
    """From the first to the last that is True."""
    found = np.flatnonzero(flags)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def packed(mask: np.ndarray) -> bytes:
    """A bool mask of a slice in a few hundred bytes, as long histories are made of them."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpacked(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The mask that `packed` was given."""
    bits = np.frombuffer(zlib.decompress(content), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).view(bool)


def _packed(masks: Mapping[int, np.ndarray]) -> dict[int, bytes]:
    """Of the slices that show something."""
    return {n: packed(mask) for n, mask in masks.items() if mask.any()}


@dataclass(frozen=True)
class Organ:
    """An organ; every edit gives a new object.

    Attributes:
        frames: its boxes.
        segment: ID of the segment that it is drawn into.
        color: RGB, 0-1.
        coarse: True where there is a coarse mask.
        hints: points beside the boxes, by slice number.
        shown: its boxes are to be seen.
        enabled: it takes part when all are refined.
        kept: the user decided to keep the coarse mask.
        changed: its boxes or points changed since it was last refined.
        report: of that refinement.
        mask_prompt, keep_unboxed: see `refiner.OrganPrompt`.
        undecided: the network is so unsure of it that SAM has to tell which automatic boxes are
            better (`box_selection`), and has not been asked yet.
        result: what it found, `packed`, by slice number; slices without anything are left out. None
            where that is not known, as it is not saved.
    """

    frames: KeyFrames
    segment: str
    color: tuple[float, float, float] = (1.0, 1.0, 0.0)
    coarse: bool = False
    hints: Mapping[int, tuple[PointPrompt, ...]] = field(default_factory=dict)
    shown: bool = True
    enabled: bool = True
    kept: bool = False
    changed: bool = True
    report: Report | None = None
    mask_prompt: bool = True
    keep_unboxed: bool = True
    undecided: bool = False
    result: Mapping[int, bytes] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """As the user reads it."""
        return self.frames.name

    @property
    def value(self) -> int:
        """Its label."""
        return self.frames.value

    @property
    def awaits_choice(self) -> bool:
        """SAM is to choose its boxes; not while they are edited: who edits them has decided."""
        return self.undecided and not self.hints and self.frames == self.frames.reset()

    @property
    def edited(self) -> int:
        """Number of slices whose box is not the automatic one."""
        automatic, boxes = self.frames.automatic, self.frames.effective()
        return sum(automatic.get(n) != boxes.get(n) for n in automatic.keys() | boxes.keys())

    def with_frames(self, frames: KeyFrames) -> "Organ":
        """With other boxes."""
        return self if frames == self.frames else replace(self, frames=frames, changed=True)

    def with_hints(self, hints: Mapping[int, tuple[PointPrompt, ...]]) -> "Organ":
        """With other points."""
        hints = {n: tuple(points) for n, points in sorted(hints.items()) if points}
        return self if hints == self.hints else replace(self, hints=hints, changed=True)

    def with_bound(self, bound: Box3D) -> "Organ":
        """With its 3-D box dragged; see `dragging.dragged`."""
        return self.with_frames(dragged(self.frames, bound))

    def with_box(self, n: int, box: Box) -> "Organ":
        """With a box of its own in a slice, a key frame."""
        return self.with_frames(self.frames.edit(n, box))

    def with_choice(self, frames: KeyFrames, chosen: Mapping[str, Any]) -> "Organ":
        """With the boxes that SAM chose; see `tasks.refine`."""
        return replace(
            self,
            frames=frames,
            mask_prompt=self.value in chosen["mask_prompt"],
            keep_unboxed=self.value in chosen["keep_unboxed"],
            undecided=False,
        )

    def with_slice(self, n: int, mask: np.ndarray) -> "Organ":
        """With one slice redrawn, bool (rows, columns); see `with_result` for the rest."""
        if self.kept or self.result is None:
            return self
        rest = {other: content for other, content in self.result.items() if other != n}
        return replace(self, result=rest | _packed({n: mask}))

    def with_result(
        self, asked: "Organ", report: Report, masks: Mapping[int, np.ndarray]
    ) -> "Organ":
        """Refined.

        Args:
            asked: the organ when SAM was asked; edited since, it counts as changed.
            masks: bool (rows, columns) of every slice.
        """
        found, last = _packed(masks), {} if self.kept else self.result or {}
        # The same objects again where SAM says what it said before: histories share them.
        found |= {n: last[n] for n in found if last.get(n) == found[n]}
        same = (self.frames, self.hints) == (asked.frames, asked.hints)
        return replace(self, report=report, changed=not same, kept=False, result=found)

    def near_box(self, n: int) -> Box | None:
        """The box of the slice nearest to n that has one: a start for one in n."""
        boxes = self.frames.effective()
        return boxes[min(boxes, key=lambda other: abs(other - n))] if boxes else None

    def usable_hints(self) -> dict[int, tuple[PointPrompt, ...]]:
        """Points in slices with a box; SAM takes no others."""
        boxes = self.frames.effective()
        return {n: points for n, points in self.hints.items() if n in boxes}


def organs_to_json(
    organs: Sequence[Organ], grid: SliceGrid, settings: Settings, *, highest: int
) -> str:
    """All that is kept with a scene. There may be no organs."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(settings),
        "highest": highest,
        "grid": {**grid.geometry.to_json(), "axis": grid.axis},
        "boxes": boxes_to_json([organ.frames for organ in organs]) if organs else None,
        "organs": [
            {
                "segment": organ.segment,
                "color": list(organ.color),
                "coarse": organ.coarse,
                "hints": {str(n): [list(p) for p in hints] for n, hints in organ.hints.items()},
                "shown": organ.shown,
                "enabled": organ.enabled,
                "kept": organ.kept,
                "changed": organ.changed,
                "report": organ.report and asdict(organ.report),
                "mask_prompt": organ.mask_prompt,
                "keep_unboxed": organ.keep_unboxed,
                "undecided": organ.undecided,
            }
            for organ in organs
        ],
    }
    return json.dumps(content, allow_nan=False)


@dataclass(frozen=True)
class Saved:
    """What `organs_to_json` wrote; `highest` is the largest label that was ever given."""

    organs: tuple[Organ, ...]
    grid: SliceGrid
    settings: Settings
    highest: int

    def mirrored(self) -> "Saved":
        """On the grid that counts slices from the other end; see `Geometry.mirrored`."""
        size, axis = self.grid.geometry.size[2], self.grid.axis

        def hints(organ: Organ) -> dict[int, tuple[PointPrompt, ...]]:
            if axis == 2:
                return {size - 1 - n: points for n, points in organ.hints.items()}
            return {
                n: tuple((x, size - y, p) for x, y, p in some) for n, some in organ.hints.items()
            }

        organs = tuple(
            replace(organ, frames=mirrored(organ.frames), hints=hints(organ))
            for organ in self.organs
        )
        return replace(self, organs=organs, grid=SliceGrid(self.grid.geometry.mirrored(), axis))


def organs_from_json(text: str, where: str = "This text") -> Saved:
    """What `organs_to_json` wrote; `where` names it in errors.

    Raises:
        PromptError: not such text, of a newer version, or damaged.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        if content["version"] != VERSION:
            raise PromptError(
                f"{where} has version {content['version']} of the format, this software reads "
                f"{VERSION}; update it."
            )
        given = content["grid"]
        grid = SliceGrid(Geometry.from_json(given), given["axis"])
        frames = boxes_from_json(content["boxes"], where) if content["boxes"] else ()
        for each in frames:
            each.require(grid)
        organs = tuple(
            _organ(each, entry) for each, entry in zip(frames, content["organs"], strict=True)
        )
        settings = Settings(
            **{OLD_NAMES.get(name, name): value for name, value in content["settings"].items()}
        )
        return Saved(organs, grid, settings, max(content["highest"], 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(f"{where} holds no boxes that can be read ({error!r}).") from error


def _organ(frames: KeyFrames, entry: dict[str, Any]) -> Organ:
    return Organ(
        frames,
        str(entry["segment"]),
        tuple(map(float, entry["color"])),
        bool(entry["coarse"]),
        {
            int(n): tuple((float(x), float(y), bool(positive)) for x, y, positive in hints)
            for n, hints in entry["hints"].items()
        },
        *(bool(entry[name]) for name in ("shown", "enabled", "kept", "changed")),
        entry["report"] and Report.of(entry["report"]),
        *(bool(entry[name]) for name in ("mask_prompt", "keep_unboxed", "undecided")),
    )
