# SPDX-License-Identifier: Apache-2.0
"""Folders whose every file is listed in SHA256SUMS (for `sha256sum -c`).

The SHA-256 of SHA256SUMS is the folder's identity: it names one exact content. If files and
SHA256SUMS are changed consistently, verification passes but the identity changes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..atomic import atomic_folder, read_regular, recover
from ..errors import BundleError

SUMS = "SHA256SUMS"


def read_folder(folder: Path, required: tuple[str, ...]) -> tuple[dict[str, bytes], list[str]]:
    """Read and check every listed file, so that the checked bytes are used; list the faults.

    Args:
        required: paths that must be there, listed or not.

    Returns:
        Path in the folder -> content, SHA256SUMS included; and the faults, a clause each:
        missing, altered, unlisted and unreadable files, and links. A whole folder has none.
    """
    recover(folder)
    try:
        sums = read_regular(folder / SUMS)
        listed = {path: digest for digest, path in _entries(sums.decode("utf-8"))}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return {}, [f"{SUMS} cannot be read ({reason})"]
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    } - {SUMS}
    files, faults = {SUMS: sums}, []
    for path in sorted({*required, *listed, *present}):
        if path not in present:
            faults.append(f"{path} is missing")
        elif path not in listed:
            faults.append(f"{path} is not listed in {SUMS}")
        elif (folder / path).is_symlink():
            faults.append(f"{path} is a link")
        else:
            try:
                files[path] = read_regular(folder / path)
            except OSError as error:
                faults.append(f"{path} cannot be read ({error.strerror})")
                continue
            if sha256(files[path]) != listed[path]:
                faults.append(f"{path} is altered")
    return files, faults


def read_whole_folder(folder: Path, required: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files of a folder that has no faults.

    Raises:
        BundleError: it has faults; the message lists all of them.
    """
    files, faults = read_folder(folder, required)
    if faults:
        raise BundleError(
            f"The model folder {folder} is incomplete or altered and was not loaded; fetch it "
            f"anew: {'; '.join(faults)}."
        )
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> str:
    """Write files and their SHA256SUMS; an older folder is replaced when the new one is whole.

    Args:
        files: path in the folder, with "/", -> content.

    Returns:
        The folder's identity.

    Raises:
        BundleError: it cannot be written.
    """
    sums = "".join(f"{sha256(files[path])}  {path}\n" for path in sorted(files)).encode()
    try:
        with atomic_folder(folder) as temporary:
            for path, content in {**files, SUMS: sums}.items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                with open(temporary / path, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        raise BundleError(
            f"Cannot write the model folder {folder} ({error.strerror}); nothing was changed."
        ) from error
    return sha256(sums)


def is_empty(folder: Path) -> bool:
    """Tell whether a path is a folder without anything in it."""
    return folder.is_dir() and not any(folder.iterdir())


def sha256(content: bytes) -> str:
    """Compute the SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def to_json(value: dict[str, Any]) -> bytes:
    """Write indented JSON; NaN and infinity are refused with a ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def check_format(version: Any, current: int, remedy: str) -> None:  # noqa: ANN401
    """Refuse a format version other than the current one.

    Args:
        remedy: what to do if the folder's format is older than the current one.

    Raises:
        BundleError: it is another.
    """
    if version != current:
        newer = isinstance(version, int) and version > current
        remedy = "update this program" if newer else remedy
        raise BundleError(f"its format is {version!r}, this program reads {current}; {remedy}.")


def _entries(sums: str) -> Iterator[tuple[str, str]]:
    for line in sums.splitlines():
        digest, separator, path = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"odd line {line[:80]!r}")
        yield digest, path
