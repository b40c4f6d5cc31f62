# SPDX-License-Identifier: Apache-2.0
"""Style swap: the ControlNet steers the *original* U-Net (DGInStyle, ECCV 2024).

A picture's anatomy comes from the slice's mask, its style from the prompt. The result is a set of
slices (slices.py). Each picture is written atomically and its seed follows from its name, so the
next call makes only those that are missing. Process p of P makes every P-th picture of the plan.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel

from SRCSMSegmenterLib.devices import DTYPES
from SRCSMSegmenterLib.errors import ConfigError

from ..engine.accelerator import Computing, accelerator_for
from ..engine.config import to_dict
from ..engine.limits import Limits
from ..engine.run_folder import write_environment
from .base import BaseModel, load_base
from .config import SamplingConfig, StyleConfig
from .control import conditions, load_control
from .diffusion import generate, place_frozen
from .prompts import Prompts, read_prompts
from .slices import (
    Slice,
    SliceSet,
    StageResult,
    begin_set,
    file_sha256,
    manifest_sha256,
    read_picture,
    read_slices,
    write_manifest,
    write_picture,
)
from .tune import load_tuned


@dataclass(frozen=True)
class PlannedPicture:
    """A picture to draw: the slice, its style, the prompt and the seed."""

    slice: Slice
    style: str
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the restyled slice."""
        return f"{self.slice.name}_{self.style}"

    @property
    def image(self) -> str:
        """The path in the set."""
        return f"images/{self.name}.png"


@dataclass(frozen=True)
class SwapModels:
    """The models of a swap.

    Attributes:
        base: folder or name of the base model, see `load_base`.
        control: run folder of the ControlNet.
        tuned: run folder of a tuning, whose U-Net draws instead of the original one; only the
            paper's ablation does so, the style then stays the source's.
        download: fetch a base that is not on this machine.
    """

    base: str
    control: Path
    tuned: Path | None = None
    download: bool = False


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The models in memory.

    Attributes:
        base: its U-Net is the one that draws.
        record: of the ControlNet.
        identity: names and SHA-256 of all, for the manifest.
    """

    base: BaseModel
    control: ControlNetModel
    record: dict[str, Any]
    identity: dict[str, Any]


def swap(
    slices_folder: Path,
    models: SwapModels,
    folder: Path,
    config: StyleConfig,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> StageResult:
    """Draw the restyled slices that are not in the folder yet.

    Args:
        folder: of the restyled set.
        progress: called with the pictures that are there and all of them, after every batch.

    Raises:
        DatasetError: the slices, or pictures made before, changed; `folder` holds others.
        ConfigError: a style without prompts, masks with labels the ControlNet never saw, a size
            it was not trained on.
        BundleError, DeviceError, StyleError.
    """
    time_is_up = limits.start()
    slices = read_slices(slices_folder)
    prompts = read_prompts(config.prompts)
    computing = accelerator_for(device, config.swap.precision, "swap")
    accelerator = computing.accelerator
    planned = plan(slices, prompts, config)
    tell = computing.introduce(limits.say)
    loaded = _load(models, tell)
    _check_fit(slices, loaded.record, models.control)
    restyled = begin_set(_new_set(Path(folder), slices, planned, config, computing, loaded))
    accelerator.wait_for_everyone()
    if computing.main:
        write_manifest(restyled)
        write_environment(restyled.folder, computing, tell)

    place_frozen(loaded.base, accelerator.device, computing.precision)
    for network in (loaded.base.unet, loaded.control):
        network.to(accelerator.device, DTYPES[computing.precision])
    share = planned[accelerator.process_index :: accelerator.num_processes]
    missing = [p for p in share if not (restyled.folder / p.image).exists()]
    tell(f"{len(planned)} pictures in all.")
    for first in range(0, len(missing), config.swap.batch):
        if time_is_up():
            break
        batch = missing[first : first + config.swap.batch]
        _draw(batch, slices, restyled.folder, loaded, config.sampling)
        progress(len(share) - len(missing) + first + len(batch), len(share))
    accelerator.wait_for_everyone()
    there = [p for p in planned if (restyled.folder / p.image).exists()]
    finished = len(there) == len(planned)
    if computing.main:
        known = {s.name: s for s in restyled.slices}
        made = tuple(known.get(p.name) or _restyled(p, slices, restyled.folder) for p in there)
        write_manifest(replace(restyled, slices=made, complete=finished))
    accelerator.wait_for_everyone()
    return StageResult(len(there), len(planned), restyled.folder if finished else None)


def plan(slices: SliceSet, prompts: Prompts, config: StyleConfig) -> list[PlannedPicture]:
    """Plan every picture to draw; the same for the same slices, prompts, styles and seed.

    Raises:
        ConfigError: no prompts for a style.
    """
    kept = slices.kept()
    own = {s.style for s in kept}
    styles = config.swap.styles or tuple(style for style in prompts.styles if style not in own)
    planned = []
    for s in kept[:: config.swap.every]:
        chosen = styles
        if 0 < config.swap.per_slice < len(styles):
            draw = np.random.default_rng(_number(config.seed, s.name))
            numbers = sorted(draw.choice(len(styles), config.swap.per_slice, replace=False))
            chosen = [styles[n] for n in numbers]
        for style in chosen:
            ways, seed = prompts.of(style), _number(config.seed, s.name, style)
            planned.append(PlannedPicture(s, style, ways[seed % len(ways)], seed))
    return planned


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


def _load(models: SwapModels, tell: Callable[[str], None]) -> _Loaded:
    """Load the models onto the CPU.

    Raises:
        BundleError: see `load_base`, `load_control` and `load_tuned`.
    """
    base = load_base(models.base, download=models.download, say=tell)
    control, record = load_control(models.control, base)
    unet, tuning = load_tuned(models.tuned, base) if models.tuned else (base.unet, {})
    identity = {
        "base": base.record(),
        "control": record["weights"],
        "control_tuned": record["tuned"],
        "unet": tuning.get("weights", base.identity["unet"]),
    }
    return _Loaded(replace(base, unet=unet), control, record, identity)


def _draw(
    batch: Sequence[PlannedPicture],
    slices: SliceSet,
    folder: Path,
    loaded: _Loaded,
    sampling: SamplingConfig,
) -> None:
    """Draw planned pictures together, and write each into the folder of the restyled set."""
    masks = np.stack([read_picture(slices, planned.slice.mask) for planned in batch])
    pictures = generate(
        loaded.base,
        loaded.base.unet,
        [planned.prompt for planned in batch],
        [planned.seed for planned in batch],
        slices.size,
        sampling,
        loaded.control,
        conditions(masks, slices.labels, loaded.record["colours"]),
    )
    for planned, picture in zip(batch, pictures, strict=True):
        write_picture(folder / planned.image, picture)


def _new_set(
    folder: Path,
    source: SliceSet,
    planned: Sequence[PlannedPicture],
    config: StyleConfig,
    computing: Computing,
    loaded: _Loaded,
) -> SliceSet:
    settings = {
        "stage": "swap",
        "slices": manifest_sha256(source),
        "seed": config.seed,
        "precision": computing.precision,
        "sampling": to_dict(config.sampling),
        "wishes": _digest([[p.name, p.prompt, p.seed] for p in planned]),
    }
    return SliceSet(
        folder,
        source.name,
        source.modality,
        source.labels,
        source.size,
        settings,
        source=_relative(source.folder, folder),
        models=loaded.identity,
    )


def _restyled(planned: PlannedPicture, source: SliceSet, folder: Path) -> Slice:
    """Make the manifest's entry of a picture that was drawn."""
    return replace(
        planned.slice,
        name=planned.name,
        image=planned.image,
        mask=_relative(source.folder / planned.slice.mask, folder),
        image_sha256=file_sha256(folder / planned.image),
        style=planned.style,
        prompt=planned.prompt,
        seed=planned.seed,
        source=planned.slice.name,
    )


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()


def _number(*what: object) -> int:
    """Derive a number from what it is for, up to 2**48, which JSON keeps exactly."""
    return int(_digest(list(map(str, what)))[:12], 16)


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
