# SPDX-License-Identifier: Apache-2.0
"""Style swap: the ControlNet steers the *original* U-Net (DGInStyle, ECCV 2024).

What the picture shows comes from the slice's mask, how it looks from the prompt. The result is a
set of slices (slices.py) whose files are the record of what is done: each appears whole or not at
all, its seed follows from its name, and whatever is not there yet is made by the next call.
Process p of P makes every P-th picture of the plan.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from SRCSMSegmenterLib.devices import DTYPES
from SRCSMSegmenterLib.errors import ConfigError, DatasetError

from ..engine.accelerator import accelerator_for
from ..engine.checkpoint import without_precision
from ..engine.config import to_dict
from ..engine.run_folder import write_environment
from .base import load_base
from .config import StyleConfig
from .control import conditions, load_control
from .diffusion import generate, place_frozen
from .prompts import Prompts, read_prompts
from .slices import (
    MANIFEST,
    Slice,
    SliceSet,
    StageResult,
    file_sha256,
    manifest_sha256,
    read_manifest,
    read_picture,
    read_slices,
    write_manifest,
    write_picture,
)
from .tune import load_tuned


@dataclass(frozen=True)
class PlannedPicture:
    """A picture to make: in which style a slice, asked for how, from which seed."""

    slice: Slice
    style: str
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """Of the restyled slice."""
        return f"{self.slice.name}_{self.style}"

    @property
    def image(self) -> str:
        """Its path in the set."""
        return f"images/{self.name}.png"


def swap(
    slices_folder: Path,
    base_name: str,
    control_run: Path,
    folder: Path,
    config: StyleConfig,
    *,
    tuned: Path | None = None,
    device: str = "auto",
    download: bool = False,
    say: Callable[[str], None] = print,
    max_minutes: float = math.inf,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Make the restyled slices, or those that an earlier call did not come to.

    Args:
        control_run: run folder of the ControlNet.
        folder: of the restyled set.
        tuned: draw with this tuning's U-Net instead of the original one; only the paper's
            ablation does so, the style then stays the source's.
        progress: called with the pictures that are there and all of them, after every batch.

    Raises:
        DatasetError: the slices, or pictures made before, changed; `folder` holds others.
        ConfigError: a style without prompts, masks with labels the ControlNet never saw, a size
            it was not trained on.
        BundleError, DeviceError, StyleError.
    """
    started = time.monotonic()
    slices = read_slices(slices_folder)
    prompts = read_prompts(config.prompts)
    computing = accelerator_for(device, config.swap.precision, "swap")
    accelerator = computing.accelerator
    tell = say if accelerator.is_main_process else (lambda line: None)
    wishes = plan(slices, prompts, config)
    computing.introduce(tell)
    base = load_base(base_name, download=download, say=tell)
    control, record = load_control(control_run, base)
    _check_fit(slices, record, control_run)
    unet, tuning = load_tuned(tuned, base) if tuned else (base.unet, {})
    models = {
        "base": base.record(),
        "control": record["weights"],
        "control_tuned": record["tuned"],
        "unet": tuning.get("weights", base.identity["unet"]),
    }
    settings = {
        "stage": "swap",
        "slices": manifest_sha256(slices),
        "seed": config.seed,
        "precision": computing.precision,
        "sampling": to_dict(config.sampling),
        "wishes": _digest([[w.name, w.prompt, w.seed] for w in wishes]),
    }
    restyled = _begun(Path(folder), slices, settings, models)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_manifest(restyled)
        write_environment(restyled.folder, computing, tell)

    place_frozen(base, accelerator.device, computing.precision)
    dtype = DTYPES[computing.precision]
    unet.to(accelerator.device, dtype)
    control.to(accelerator.device, dtype)
    share = wishes[accelerator.process_index :: accelerator.num_processes]
    missing = [w for w in share if not (restyled.folder / w.image).exists()]
    tell(f"{len(wishes)} pictures in all.")
    for first in range(0, len(missing), config.swap.batch):
        if time.monotonic() - started > max_minutes * 60 or stop_requested():
            break
        batch = missing[first : first + config.swap.batch]
        masks = np.stack([read_picture(slices, w.slice.mask) for w in batch])
        drawn = generate(
            base,
            unet,
            [w.prompt for w in batch],
            [w.seed for w in batch],
            slices.size,
            config.sampling,
            control,
            conditions(masks, slices.labels, record["colours"]),
        )
        for wish, picture in zip(batch, drawn, strict=True):
            write_picture(restyled.folder / wish.image, picture)
        progress(len(share) - len(missing) + first + len(batch), len(share))
    accelerator.wait_for_everyone()
    there = [w for w in wishes if (restyled.folder / w.image).exists()]
    finished = len(there) == len(wishes)
    if accelerator.is_main_process:
        known = {s.name: s for s in restyled.slices}
        made = tuple(known.get(w.name) or _restyled(w, slices, restyled.folder) for w in there)
        write_manifest(replace(restyled, slices=made, complete=finished))
    accelerator.wait_for_everyone()
    return StageResult(len(there), len(wishes), restyled.folder if finished else None)


def plan(slices: SliceSet, prompts: Prompts, config: StyleConfig) -> list[PlannedPicture]:
    """Every picture to make; the same for the same slices, prompts, styles and seed.

    Raises:
        ConfigError: no prompts for a style.
    """
    kept = slices.kept()
    own = {s.style for s in kept}
    styles = config.swap.styles or tuple(style for style in prompts.styles if style not in own)
    wishes = []
    for s in kept[:: config.swap.every]:
        chosen = styles
        if 0 < config.swap.per_slice < len(styles):
            draw = np.random.default_rng(_number(config.seed, s.name))
            numbers = sorted(draw.choice(len(styles), config.swap.per_slice, replace=False))
            chosen = [styles[n] for n in numbers]
        for style in chosen:
            ways, seed = prompts.of(style), _number(config.seed, s.name, style)
            wishes.append(PlannedPicture(s, style, ways[seed % len(ways)], seed))
    return wishes


def _check_fit(slices: SliceSet, record: dict[str, Any], control_run: Path) -> None:
    """Refuse slices that the ControlNet was not made for, before anything is drawn."""
    shown = {name for s in slices.kept() for name in s.pixels}
    if strange := sorted(shown - record["colours"].keys()):
        raise ConfigError(
            f"The masks of {slices.folder} show labels that the ControlNet of {control_run} never "
            f"saw: {', '.join(strange)}; train it on slices that have them, or leave them out."
        )
    if slices.size != record["size"]:
        raise ConfigError(
            f"The slices of {slices.folder} have {slices.size} pixels a side, the ControlNet of "
            f"{control_run} was trained on {record['size']}; prepare slices of that size."
        )


def _begun(
    folder: Path, source: SliceSet, settings: dict[str, Any], models: dict[str, Any]
) -> SliceSet:
    """The set that an earlier call began, or a new one."""
    if (folder / MANIFEST).exists():
        old = read_manifest(folder)
        if (without_precision(old.settings), old.models) != (without_precision(settings), models):
            raise DatasetError(
                f"{folder} holds pictures that were made of other slices, by other models or with "
                "other settings; choose another folder, or give the same options to go on."
            )
        return replace(read_slices(folder, incomplete=True), complete=False)
    return SliceSet(
        folder,
        source.name,
        source.modality,
        source.labels,
        source.size,
        settings,
        source=_relative(source.folder, folder),
        models=models,
    )


def _restyled(wish: PlannedPicture, source: SliceSet, folder: Path) -> Slice:
    """The manifest's entry of a picture that is there."""
    return replace(
        wish.slice,
        name=wish.name,
        image=wish.image,
        mask=_relative(source.folder / wish.slice.mask, folder),
        image_sha256=file_sha256(folder / wish.image),
        style=wish.style,
        prompt=wish.prompt,
        seed=wish.seed,
        source=wish.slice.name,
    )


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()


def _number(*what: object) -> int:
    """A number that follows from what it is for, up to 2**48, which JSON keeps exactly."""
    return int(_digest(list(map(str, what)))[:12], 16)


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
