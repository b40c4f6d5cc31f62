# SPDX-License-Identifier: Apache-2.0
"""Configurations of trainings: typed dataclasses, YAML files and overrides."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import BundleError, ConfigError
from SRCSMSegmenterLib.schema import convert, nearest

from .keys import COUNT, NOT_NEGATIVE, POSITIVE, Range, Settings, choice, commented, key

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""What may be asked for; "auto" is the fastest that the device trains in (accelerator.py)."""

SCHEDULES = {"constant": None, "cosine": (100, 0.0), "icm": (10, 1e-6)}
"""Schedule of the learning rate -> how many times as long as its warm-up it is, and the last rate;
None: constant."""


SMOOTHING = Range(least=0, below=1)


@dataclass(frozen=True)
class CasesConfig(Settings):
    """The choice of the cases to train on.

    Attributes:
        cases: shell patterns of the case names to use; all by default.
        validation: shell patterns of the cases held out, or () to hold out fold `fold`.
        folds: number of folds; case n of the sorted names belongs to fold n modulo `folds`.
            0 holds out none.
        fold: the fold held out for validation.
        modality: "auto" (by the name of the channel, or the first image), "CT" or "MR".
    """

    cases: tuple[str, ...] = ("*",)
    validation: tuple[str, ...] = ()
    folds: int = key(5, NOT_NEGATIVE, paper="a fixed split")
    fold: int = key(0, NOT_NEGATIVE)
    modality: str = key("auto", choice("auto", "CT", "MR"))

    section: ClassVar[str] = "data."

    def __post_init__(self) -> None:
        super().__post_init__()
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

    window: tuple[float, ...] = key((), unit="HU", paper="[-1023, 1024]")
    maximum_percentile: float = key(100.0, Range(above=0, most=100), unit="%", paper="100")
    smoothing: float = key(1.0, NOT_NEGATIVE, unit="mm", paper="1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.window) not in (0, 2):
            raise ConfigError(f"data.window is [] or [lower, upper] in HU, not {self.window}.")


@dataclass(frozen=True)
class StepsConfig(Settings):
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

    steps: int = key(50_000, COUNT)
    batch: int = key(1, COUNT)
    accumulation: int = key(1, COUNT)
    learning_rate: float = key(5e-5, POSITIVE)
    schedule: str = key("constant", choice(*SCHEDULES))
    ema: float = key(0.999, SMOOTHING)
    precision: str = key("auto", choice(*PRECISIONS))


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

    l2: float = key(1e-6, NOT_NEGATIVE)
    clip_factor: float = key(5.0, POSITIVE)
    clip_start: float = key(10.0, POSITIVE)
    clip_rate: float = key(0.01, Range(least=0, most=1))
    nan_redraws: int = key(100, NOT_NEGATIVE)
    patience: int = key(0, NOT_NEGATIVE)

    section: ClassVar[str] = "optimisation."

    def gradient_limit(self, norm: float) -> float:
        """Return the longest gradient, given the running mean of the clipped norms."""
        return self.clip_factor * norm


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any configuration dataclass
    """Convert to plain dictionaries, lists, numbers and strings, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def from_dict(values: dict[str, Any], base: Any) -> Any:  # noqa: ANN401
    """Put values, nested like the configuration dataclass `base`, into it.

    Raises:
        ConfigError: an unknown key (with the nearest right one), or a value of the wrong type.
    """
    return convert(_merged(values, base), type(base), "The configuration", ConfigError)


def parse_yaml(text: str, what: str) -> Any:  # noqa: ANN401
    """Parse YAML as people mean it: 5e-5 is a number, on and off are text, as in YAML 1.2.

    Args:
        what: name of the text in the error.

    Raises:
        ConfigError: no YAML, or with aliases, which could make a short text endlessly long.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is no YAML ({' '.join(str(error).split())}).") from error


def read_yaml(path: Path, base: Any) -> Any:  # noqa: ANN401
    """Put a configuration file into `base`.

    Raises:
        ConfigError: it cannot be read, or as `from_dict`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"Cannot read the configuration {path} ({reason}).") from error
    return from_dict(parse_yaml(text, f"The configuration {path}") or {}, base)


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
        place[name] = parse_yaml(text, f"The value of the override {override}")
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
    """Format a configuration as YAML for people: lists on one line, help as comments."""
    plain = to_dict(config)
    return commented(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=1000), config)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _merged(values: Any, base: Any, where: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Return the plain values of `base` with others put in; a single one stands for a list of it.

    Raises:
        ConfigError: an unknown key, or no keys at all.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'The configuration'} needs keys and values, not {values!r}.")
    merged = to_dict(base)
    for last, value in values.items():
        name = f"{where}.{last}" if where else str(last)
        if last not in merged:
            raise ConfigError(f"Unknown configuration key {name}{nearest(last, merged)}.")
        current = getattr(base, last)
        if dataclasses.is_dataclass(current):
            value = _merged(value, current, name)
        elif isinstance(current, tuple) and isinstance(value, str | int | float):
            value = [value]
        merged[last] = value
    return merged


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, with every list on one line and every other key on its own."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True),
)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with YAML 1.2's numbers and booleans, without aliases, each key once."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
        """Compose a node as the safe loader does, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Construct a mapping as the safe loader does, unless it has a key twice."""
        scalars = [name for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        for number, scalar in enumerate(scalars):
            if scalar.value in [other.value for other in scalars[:number]]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {scalar.value!r} is there twice", scalar.start_mark
                )
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"({_pattern})$"), _first
    )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ConfigError if `value` is none of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}, not {value!r}.")


@contextmanager
def reading_start() -> Iterator[None]:
    """Report that a trained network to start from cannot be read as a fault of the configuration.

    Raises:
        ConfigError: the context raised a BundleError.
    """
    try:
        yield
    except BundleError as error:
        raise ConfigError(f"start: {error}") from error
