# SPDX-License-Identifier: Apache-2.0
"""Messages and exit codes of errors."""

import os
import re

from SRCSMSegmenterLib.errors import (
    BundleError,
    Cancelled,
    ConfigError,
    DatasetError,
    DeviceError,
    PromptError,
    SourceMatchingError,
    SRCSMError,
    VolumeError,
)
from SRCSMSegmenterLib.texts import shown

from .console import INTERRUPTED

LINE_BREAK = re.compile(r"\n(?!- )")
"""A line break in an error, unless an item of a list follows."""

EXIT_CODES = (
    (ConfigError, 2),
    ((VolumeError, SourceMatchingError, DatasetError, PromptError), 3),
    (BundleError, 4),
    (DeviceError, 5),
    (Cancelled, INTERRUPTED),
    ((SRCSMError, OSError), 6),
)
"""Exit code of each kind of error, the first that matches; any other error exits with 1."""

EXTRAS = {
    "training": ("accelerate", "filelock", "matplotlib", "monai", "pandas", "tensorboard", "yaml"),
    "dicom": ("highdicom",),
    "refine": ("segment_anything", "torchvision"),
    "style": ("PIL", "diffusers", "peft", "transformers"),
}
"""Packages of each extra, by the names in import statements."""


LONGEST = 1500
"""Characters of what the user is told."""


def exit_code(error: Exception) -> int:
    """Return the exit code for an error."""
    return next((code for kinds, code in EXIT_CODES if isinstance(error, kinds)), 1)


def sentence(error: Exception) -> str:
    """Return an error as a sentence for the user."""
    if isinstance(error, SRCSMError):
        return _shortened(LINE_BREAK.sub(r"\\n", str(error)))
    if isinstance(error, OSError) and error.filename:
        name = shown(os.fsdecode(error.filename))
        return f"Cannot use {name} ({error.strerror}); is it there, writable, not full?"
    if isinstance(error, OSError) and error.strerror:
        return f"A file cannot be read or written ({error.strerror}); is there space on the disk?"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
        wanted = f"'srcsm[{extra}]'" if extra else "srcsm"
        return f"This needs the package {package}: pip install {wanted}."
    return f"Unexpected {type(error).__name__}: {error}. Run again with --debug and report it."


def _shortened(text: str) -> str:
    """Cut out the middle of a text that shows a value of endless length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-295:]}"
