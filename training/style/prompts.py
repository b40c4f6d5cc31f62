# SPDX-License-Identifier: Apache-2.0
"""The prompts of an anatomy: the source's own, and the style interventions."""

from dataclasses import dataclass
from pathlib import Path

from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.schema import convert, nearest

from ..engine.config import parse_yaml

FOLDER = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Prompts:
    """The prompts of one anatomy.

    Attributes:
        instance: what the source slices are called while the U-Net and the ControlNet learn them.
        styles: style -> ways to ask for it, of which one is drawn.
    """

    instance: str
    styles: dict[str, tuple[str, ...]]

    def of(self, style: str) -> tuple[str, ...]:
        """Return the prompts of a style.

        Raises:
            ConfigError: it has none.
        """
        if style not in self.styles:
            raise ConfigError(
                f'No prompts for the style "{style}"{nearest(style, self.styles)}; there are some '
                f"for {', '.join(self.styles)}."
            )
        return self.styles[style]


@dataclass(frozen=True)
class _File:
    """Contents of a prompts file."""

    instance: str
    styles: dict[str, str | tuple[str, ...]]


def read_prompts(name: str) -> Prompts:
    """Read a prompts file.

    Args:
        name: of an anatomy, training/configs/prompts_NAME.yaml, or path of a file.

    Raises:
        ConfigError: there is none, or it is no prompts file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"prompts_{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix("prompts_") for p in FOLDER.glob("prompts_*.yaml"))
        raise ConfigError(
            f"There are no prompts {path}; give a YAML file or one of {', '.join(known)}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The prompts {path} cannot be read ({reason}).") from error
    where = f"The prompts {path}"
    content = convert(parse_yaml(text, where), _File, where, ConfigError)
    styles = {s: (ways,) if isinstance(ways, str) else ways for s, ways in content.styles.items()}
    if empty := [style for style, ways in styles.items() if not ways]:
        raise ConfigError(f'{where} have none for the style "{empty[0]}".')
    return Prompts(content.instance, styles)
