# SPDX-License-Identifier: Apache-2.0
"""What a worker can do: a module with a table TASKS of functions, such as this one.

A task is called as task(parameters, arrays, context) and returns its reply (plain JSON values) and
its arrays. Modules with tasks import torch inside them, so that a worker starts at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Context:
    """What a task is given beside its input.

    Attributes:
        progress: to be called with the stage and the fraction of the whole that is done.
        cancelled: to be asked often; where it says so, raise `Cancelled`.
        log: to be called with a line for the user.
        models: kept from one task to the next.
    """

    progress: Callable[[str, float], None]
    cancelled: Callable[[], bool]
    log: Callable[[str], None]
    models: "Models"


class Models:
    """Loaded models and other costly things, the `limit` last used."""

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self._kept: dict[str, Any] = {}

    def get(self, key: str, load: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What is kept under `key`, such as a model's SHA-256, else what `load` returns."""
        value = self._kept.pop(key) if key in self._kept else load()
        self._kept[key] = value
        while len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]
        return value


Task = Callable[
    [dict[str, Any], dict[str, np.ndarray], Context], tuple[dict[str, Any], dict[str, np.ndarray]]
]


def ping(
    parameters: dict[str, Any], arrays: dict[str, np.ndarray], context: Context
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reply with the same."""
    return parameters, arrays


TASKS: dict[str, Task] = {"ping": ping}
