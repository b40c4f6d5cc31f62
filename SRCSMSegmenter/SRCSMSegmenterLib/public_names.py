# SPDX-License-Identifier: Apache-2.0
"""Public names of a package, imported on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module


def public_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: its ``__name__``.
        modules: public name -> module of the package that defines it, such as "models.bundle".
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules)
