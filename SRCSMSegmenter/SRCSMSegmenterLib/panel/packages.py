# SPDX-License-Identifier: Apache-2.0
"""Packages that Slicer's Python lacks: their names, sizes and installation on request."""

import importlib
import platform
import re
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _

TORCH = "torch>=2.3"
TORCHVISION = "torchvision>=0.18"
FROM_EXTENSION = (TORCH, TORCHVISION)
"""Installed by Slicer's PyTorch extension, which knows which build fits the graphics card."""

SLICER = "5.12"
"""The oldest Slicer that has `slicer.packaging`."""

REQUIREMENTS = Path(__file__).resolve().parents[2] / "Resources" / "requirements.txt"


def outdated_slicer() -> str:
    """Return a sentence that names the Slicer that is needed if this one is older, else ""."""
    try:
        importlib.import_module("slicer.packaging")
    except ImportError:
        return _("SRCSM needs 3D Slicer {needed} or newer; this is Slicer {version}.").format(
            needed=SLICER, version=slicer.app.applicationVersion
        )
    return ""


def missing(more: Path | None = None) -> list[str]:
    """List the requirements that are not met, PyTorch first, without importing them.

    Needs a Slicer that is not outdated (`outdated_slicer`).

    Args:
        more: file with requirements beside those of the whole extension.
    """
    from slicer.packaging import load_requirements, pip_check

    files = (REQUIREMENTS, more) if more else (REQUIREMENTS,)
    listed = [str(each) for file in files for each in load_requirements(file)]
    needed = dict.fromkeys([TORCH, *sorted(listed, key=lambda each: each not in FROM_EXTENSION)])
    return [each for each in needed if not pip_check(each)]


def described(requirements: list[str]) -> dict[str, str]:
    """Return the size of each download in words, by package name."""
    sizes = {
        "PyTorch": _("0.2 GB; with an NVIDIA graphics card 3 GB"),
        "torchvision": _("less than 10 MB"),
        "pydantic": _("less than 3 MB"),
    }
    names = ["PyTorch" if r == TORCH else _name(r) for r in requirements]
    return {name: sizes.get(name, _("less than 1 MB")) for name in names}


def install(requirements: list[str], more: Path | None = None) -> None:
    """Install packages; the user has been told their names and sizes, and clicked.

    Args:
        more: see `missing`.

    Raises:
        RuntimeError: something was not installed; the message says what to do.
    """
    if set(requirements) & set(FROM_EXTENSION):
        _torch_logic().installTorch(
            torchVersionRequirement=TORCH.removeprefix("torch"),
            torchvisionVersionRequirement=TORCHVISION.removeprefix("torchvision"),
        )
    slicer.packaging.pip_ensure(
        [r for r in requirements if r not in FROM_EXTENSION],
        prompt_install=False,
        requester="SRCSM",
    )
    importlib.invalidate_caches()
    if left := missing(more):
        raise RuntimeError(
            _("Not installed: {packages}. Restart Slicer and try again.").format(
                packages=", ".join(left)
            )
        )


def _torch_logic() -> "PyTorchUtilsLogic":  # noqa: F821 - of Slicer's PyTorch extension
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        slicer.app.extensionsManagerModel().installExtensionFromServer("PyTorch", False)
        raise RuntimeError(
            _(
                "PyTorch comes with Slicer's PyTorch extension. Get it from the Extensions Manager "
                "if it is not there yet, restart Slicer, and press Install again."
            )
        ) from None
    return PyTorchUtilsLogic()


def offline_help(requirements: list[str]) -> str:
    """Explain as HTML how to install packages without internet."""
    packages = " ".join(map(_name, requirements))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = f"{platform.system()} {platform.machine()}"
    fetch = f"python -m pip download --python-version {version} --only-binary :all: -d wheels"
    return _(
        "<p>1. On a computer with internet and the same system ({system}):<br>"
        "<code>{fetch} {packages}</code></p>"
        "<p>2. Bring the folder <code>wheels</code> here.</p>"
        "<p>3. In Slicer's Python console, with the folder's full path:<br>"
        "<code>slicer.util.pip_install(\"--no-index --find-links '/path/to/wheels' "
        '{packages}")</code></p>'
    ).format(system=system, fetch=fetch, packages=packages)


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]
