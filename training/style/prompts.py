# SPDX-License-Identifier: Apache-2.0
"""The prompts of an anatomy: the source's own, and the style interventions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from SRCSMSegmenterLib.errors import ConfigError

from ..engine.config import nearest

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


def read_prompts(name: str) -> Prompts:
    """Read a prompts file.

    Args:
        name: of an anatomy, training/configs/prompts_NAME.yaml, or path of a file.

    Raises:
        ConfigError: there is none, or it is no prompts file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"prompts_{name}.yaml"
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        instance, styles = content["instance"], content["styles"]
        prompts = {s: (p,) if isinstance(p, str) else tuple(p) for s, p in styles.items()}
        if not isinstance(instance, str) or not all(prompts.values()):
            raise ValueError("instance is a text, and every style needs a prompt")
        if not all(isinstance(p, str) for ways in prompts.values() for p in ways):
            raise ValueError("prompts are texts")
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix("prompts_") for p in FOLDER.glob("prompts_*.yaml"))
        raise ConfigError(
            f"There are no prompts {path}; give a YAML file or one of {', '.join(known)}."
        ) from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no prompts file, which has a text `instance` and lists under `styles` "
            f"({type(error).__name__}: {error})."
        ) from error
    return Prompts(instance, prompts)
