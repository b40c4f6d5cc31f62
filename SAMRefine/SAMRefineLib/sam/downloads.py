# SPDX-License-Identifier: Apache-2.0
"""Downloads of checkpoints: resumable, checked and removable, with the standard library alone.

Received bytes are kept in NAME.part. NAME itself appears when the file is complete and has the
right SHA-256.
"""

import hashlib
import http.client
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from SRCSMSegmenterLib.atomic import open_own
from SRCSMSegmenterLib.errors import BundleError, Cancelled

CHUNK = 1024 * 1024
TIMEOUT = 30.0
"""Seconds without a single byte after which a connection counts as broken."""

Progress = Callable[[str, float], None]
"""Called with the stage ("download", "check") and the fraction of it that is done."""


def part_of(path: Path) -> Path:
    """Return the path of an incomplete download."""
    return path.with_name(f"{path.name}.part")


def received(path: Path) -> int:
    """Count the bytes of a download that have arrived; 0 if none was begun."""
    part = part_of(path)
    return part.stat().st_size if _is_own(part) else 0


def _is_own(part: Path) -> bool:
    """Tell whether a file is there that a download may go on with: no link, no pipe."""
    return part.is_file() and not part.is_symlink()


def download(
    url: str,
    path: Path,
    size: int,
    sha256: str,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Fetch a file; an incomplete download is resumed.

    Args:
        url: address of the file.
        path: the file to write.
        size: size of the whole file in bytes.
        sha256: SHA-256 of the whole file; a file with another one is deleted.
        progress: called with the stage ("download", "check") and its fraction done.
        cancelled: asked after every chunk.

    Raises:
        BundleError: no connection, no space, or another SHA-256.
        Cancelled: received bytes are kept for the next time.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_own(part):
            part.unlink(missing_ok=True)
        _check_space(path.parent, size - received(path))
        if received(path) < size:
            _fetch(url, part, size, progress, cancelled)
        received_sha256 = sha256_of(part, progress, cancelled)
        if received_sha256 == sha256:
            os.replace(part, path)
            return
        part.unlink()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BundleError(_reason(url, error)) from error
    raise BundleError(
        f"What {host(url)} sent as {path.name} is not the file that its authors published (its "
        f"SHA-256 is {received_sha256}); it was deleted. Try again, or take the file from "
        "elsewhere."
    )


def sha256_of(
    path: Path,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """Compute the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
        Cancelled: `cancelled` returned True.
    """
    digest, size, done = hashlib.sha256(), max(path.stat().st_size, 1), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            if cancelled():
                raise Cancelled("The check was cancelled.")
            digest.update(chunk)
            done += len(chunk)
            progress("check", done / size)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Delete a downloaded file, complete or not."""
    path.unlink(missing_ok=True)
    part_of(path).unlink(missing_ok=True)


def _fetch(
    url: str, part: Path, size: int, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    """Append the rest of a file of `size` bytes to `part`; for the rest see `download`."""
    start = part.stat().st_size if _is_own(part) else 0
    headers = {"User-Agent": "SlicerSRCSM"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT
    ) as answer:
        if answer.status != 206:  # the server ignores the range and sends the whole file
            start = 0
        with open_own(part, os.O_RDWR | os.O_CREAT) as file:
            file.truncate(start)
            file.seek(start)
            while start < size and (chunk := answer.read(min(CHUNK, size - start))):
                file.write(chunk)
                start += len(chunk)
                progress("download", start / size)
                if cancelled():
                    raise Cancelled("The download was stopped; it can be resumed.")
    if start < size:
        raise http.client.IncompleteRead(b"", size - start)


def _check_space(folder: Path, needed: int) -> None:
    """Raise OSError if the folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            0, f"{folder} has {free / 1e6:.0f} MB free of the {needed / 1e6:.0f} MB it takes"
        )


def _reason(url: str, error: Exception) -> str:
    """Explain to the user why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        what = f"{host(url)} answered {error.code} ({error.reason})"
    elif isinstance(error, urllib.error.URLError):
        what = f"{host(url)} cannot be reached ({error.reason})"
    elif isinstance(error, http.client.IncompleteRead):
        what = f"the connection to {host(url)} broke off"
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
    else:
        what = f"{host(url)} did not answer as expected ({error})"
    return f"The download did not finish: {what}. What has arrived is kept; try again to resume."


def host(url: str) -> str:
    """Return the host of an address, such as "dl.fbaipublicfiles.com"."""
    return urlsplit(url).hostname or url


class InBackground:
    """Work on files in its own thread, to be polled by the thread that started it.

    Attributes:
        stage, fraction: the last progress.
        finished: True after the end, whether it succeeded or failed.
        result: what the work returned.
        error: what it raised; None if it succeeded.
    """

    def __init__(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        """Start; `work` is called with `progress` and `cancelled` (see `download`)."""
        self.stage, self.fraction, self.finished = "", 0.0, False
        self.result: Any = None
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Request its end."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for some seconds."""
        self._thread.join(seconds)

    def _run(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        try:
            self.result = work(self._progress, self._stop.is_set)
        except Exception as error:  # reported to the polling thread
            self.error = error
        self.finished = True

    def _progress(self, stage: str, fraction: float) -> None:
        self.stage, self.fraction = stage, fraction
