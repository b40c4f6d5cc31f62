# SPDX-License-Identifier: Apache-2.0
"""Configurations of trainings: typed dataclasses, YAML files and overrides."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""What may be asked for; "auto" is the fastest that the device trains in (accelerator.py)."""

SCHEDULES = {"constant": None, "cosine": (100, 0.0), "icm": (10, 1e-6)}
"""Schedule of the learning rate -> how many times as long as its warm-up it is, and the last rate;
None: constant."""


@dataclass(frozen=True)
class CasesConfig:
    """The choice of the cases to train on.

    Attributes:
        cases: shell patterns of the case names to use; all by default.
        validation: shell patterns of the cases held out, or () to hold out fold `fold`.
        folds: number of folds; case n of the sorted names belongs to fold n modulo `folds`.
            0 holds out none.
        fold: the fold held out for validation.
        modality: "auto" (the dataset's first channel name), "CT" or "MR".
    """

    cases: tuple[str, ...] = ("*",)
    validation: tuple[str, ...] = ()
    folds: int = 5
    fold: int = 0
    modality: str = "auto"

    def __post_init__(self) -> None:
        one_of("data.modality", self.modality, ("auto", "CT", "MR"))
        if not 0 <= self.fold < max(1, self.folds):
            raise ConfigError(f"data.fold counts from 0 to data.folds - 1, and is {self.fold}.")


@dataclass(frozen=True)
class ScansConfig(CasesConfig):
    """The choice of the cases, and the intensity rule of their images.

    Attributes:
        window: CT only, HU; () takes the range that every training image is clipped to, or the
            full range if they are not clipped.
        maximum_percentile: MR only; see `IntensityRule`.
        smoothing: sigma in mm of the Gaussian on the image's own grid.
    """

    window: tuple[float, ...] = ()
    maximum_percentile: float = 100.0
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.window) not in (0, 2):
            raise ConfigError(f"data.window is [] or [lower, upper] in HU, not {self.window}.")


@dataclass(frozen=True)
class StepsConfig:
    """The steps of a training, whatever is trained.

    Attributes:
        steps: optimiser steps.
        batch: samples of a forward pass and process.
        accumulation: forward passes of a step, whose gradients are averaged.
        learning_rate: Adam's.
        schedule: "constant", "cosine" down to 0 at the last step after a warm-up of 1 %, or "icm":
            down to 1e-6 after a warm-up of 10 % (Chen et al. 2025).
        ema: decay of the average of the weights that is validated and kept instead of the last
            weights; 0: no average.
        precision: "auto", the fastest that the device trains in, "fp32", "bf16" or "fp16".
    """

    steps: int = 50_000
    batch: int = 1
    accumulation: int = 1
    learning_rate: float = 5e-5
    schedule: str = "constant"
    ema: float = 0.999
    precision: str = "auto"

    section: ClassVar[str] = ""
    """Section of the configuration, with a dot behind it, for messages."""

    def __post_init__(self) -> None:
        section = self.section
        one_of(f"{section}schedule", self.schedule, tuple(SCHEDULES))
        one_of(f"{section}precision", self.precision, PRECISIONS)
        for name in ("steps", "batch", "accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{section}{name} must be at least 1.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"{section}ema is at least 0 and under 1, not {self.ema}.")


@dataclass(frozen=True)
class Recipe(StepsConfig):
    """The optimisation of a network with random convolution (Thaler et al. 2026).

    Attributes:
        l2: weight of the L2 term on the U-Net's convolution kernels without its head's, or on all
            parameters of another network.
        clip_factor: gradients are clipped at this multiple of their norm's running mean.
        clip_start: running mean at step 0.
        clip_rate: update rate of the running mean, which is fed with the clipped norm.
        nan_redraws: how often random convolution is drawn anew for a batch whose loss is not finite
            before the training gives up.
        patience: validations without a better Dice after which the training ends; 0: it goes on.
    """

    l2: float = 1e-6
    clip_factor: float = 5.0
    clip_start: float = 10.0
    clip_rate: float = 0.01
    nan_redraws: int = 100
    patience: int = 0

    section: ClassVar[str] = "optimisation."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 0:
            raise ConfigError("optimisation.patience is 0 or more.")

    def gradient_limit(self, norm: float) -> float:
        """Return the longest gradient, given the running mean of the clipped norms."""
        return self.clip_factor * norm


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any configuration dataclass
    """Convert to plain dictionaries, lists, numbers and strings, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def from_dict(values: dict[str, Any], base: Any, where: str = "") -> Any:  # noqa: ANN401
    """Put values, nested like the configuration dataclass `base`, into it.

    Raises:
        ConfigError: an unknown key (with the nearest right one), or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'The configuration'} needs keys and values, not {values!r}.")
    known = {f.name: f for f in dataclasses.fields(base)}
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"Unknown configuration key {name}{nearest(key, known)}.")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            changes[key] = from_dict(value, current, name)
        else:
            changes[key] = _converted(value, hints[key], name)
    return dataclasses.replace(base, **changes)


def read_yaml(path: Path, base: Any) -> Any:  # noqa: ANN401
    """Put a configuration file into `base`."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error}.") from error
    return from_dict(values, base)


def with_overrides(config: Any, overrides: list[str]) -> Any:  # noqa: ANN401
    """Put command-line overrides such as ``optimisation.steps=2000`` into a configuration."""
    merged: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f'An override reads key=value, not "{override}".')
        *parents, name = key.strip().split(".")
        place = merged
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{override} follows an override of {parent} as a whole.")
        try:
            place[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of the override {override} is no YAML.") from error
    # All at once: two of them may only fit together, such as a window and its pooling.
    return from_dict(merged, config)


def configured(config: Any, file: Path | None, overrides: list[str]) -> Any:  # noqa: ANN401
    """Put a file, if one is given, and then the overrides into a configuration."""
    return with_overrides(read_yaml(file, config) if file else config, overrides)


def write_yaml(path: Path, config: Any) -> None:  # noqa: ANN401
    """Write the full configuration; the file appears complete or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def as_yaml(config: Any) -> str:  # noqa: ANN401
    """Format a configuration as YAML for people, short lists on one line."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None).rstrip()


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _converted(value: Any, hint: Any, name: str) -> Any:  # noqa: ANN401
    """Convert to the annotated type: numbers, strings, booleans, tuples of them, or None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _converted(value, next(a for a in arguments if a is not type(None)), name)
    if origin is tuple:
        items = [value] if isinstance(value, str | int | float) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{name} needs a list, not {value!r}.")
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise ConfigError(f"{name} needs {len(arguments)} values, not {value!r}.")
        return tuple(_converted(item, arguments[0], name) for item in items)
    if hint is str and isinstance(value, bool):
        value = "on" if value else "off"  # what YAML reads as booleans
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float | str) and not isinstance(value, bool),
        str: isinstance(value, str),
    }
    try:
        if fits[hint] and (hint is not float or math.isfinite(float(value))):
            return hint(value)  # float("5e-5"): YAML reads that as text
    except ValueError:
        pass
    raise ConfigError(f"{name} needs a value of type {hint.__name__}, not {value!r}.")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Word a suggestion, ' (did you mean ...?)'; "" if no known name is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ConfigError if `value` is none of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {value!r}.")
