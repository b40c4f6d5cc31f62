# SPDX-License-Identifier: Apache-2.0
"""Fetching a checkpoint, on request only: resumable, checked, removable; standard library alone.

What has arrived waits in NAME.part; NAME itself appears when it is whole and has the right SHA-256.
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

from SRCSMSegmenterLib.errors import BundleError, Cancelled

CHUNK = 1024 * 1024
TIMEOUT = 30.0
"""Seconds without a single byte after which a connection counts as broken."""

Progress = Callable[[str, float], None]
"""Called with the stage ("download", "check") and the fraction of it that is done."""


def part_of(path: Path) -> Path:
    """Where a download waits until it is whole."""
    return path.with_name(f"{path.name}.part")


def received(path: Path) -> int:
    """Bytes of a download that have arrived so far; 0 where none was begun."""
    return part_of(path).stat().st_size if part_of(path).exists() else 0


def download(
    url: str,
    path: Path,
    size: int,
    sha256: str,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Fetch a file, from where an earlier try left off.

    Args:
        size: of the whole file in bytes.
        sha256: of the whole file; one with another is deleted.

    Raises:
        BundleError: no connection, no space, or not the file that was promised.
        Cancelled: what has arrived is kept for the next time.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, size - received(path))
        if received(path) < size:
            _fetch(url, part, size, progress, cancelled)
        found = sha256_of(part, progress, cancelled)
        if found == sha256:
            os.replace(part, path)
            return
        part.unlink()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BundleError(_reason(url, error)) from error
    raise BundleError(
        f"What {_host(url)} sent as {path.name} is not the file that its authors published (its "
        f"SHA-256 is {found}); it was deleted. Try again, or take the file from elsewhere."
    )


def sha256_of(
    path: Path,
    progress: Progress = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
        Cancelled: `cancelled` said so.
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
    """Delete a downloaded file and what there is of it."""
    path.unlink(missing_ok=True)
    part_of(path).unlink(missing_ok=True)


def _fetch(
    url: str, part: Path, size: int, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "SlicerSRCSM"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT
    ) as answer:
        if answer.status != 206:  # the server sends all of it, whatever was asked for
            start = 0
        with open(part, "r+b" if start else "wb") as file:
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
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            0, f"{folder} has {free / 1e6:.0f} MB free of the {needed / 1e6:.0f} MB it takes"
        )


def _reason(url: str, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        what = f"{_host(url)} answered {error.code} ({error.reason})"
    elif isinstance(error, urllib.error.URLError):
        what = f"{_host(url)} cannot be reached ({error.reason})"
    elif isinstance(error, http.client.IncompleteRead):
        what = f"the connection to {_host(url)} broke off"
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
    else:
        what = f"{_host(url)} did not answer as expected ({error})"
    return f"The download did not finish: {what}. What has arrived is kept; try again to resume."


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


class InBackground:
    """Work on files in a thread of its own; who started it asks now and then how far it is.

    Attributes:
        stage, fraction: how far it is.
        finished: True at the end, however it ended.
        result: what the work returned.
        error: what it raised; None where it went well.
    """

    def __init__(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        """Start; `work` is called with `progress` and `cancelled`, see `download`."""
        self.stage, self.fraction, self.finished = "", 0.0, False
        self.result: Any = None
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended."""
        self._thread.join(seconds)

    def _run(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        try:
            self.result = work(self._progress, self._stop.is_set)
        except Exception as error:  # handed to whoever asks
            self.error = error
        self.finished = True

    def _progress(self, stage: str, fraction: float) -> None:
        self.stage, self.fraction = stage, fraction
