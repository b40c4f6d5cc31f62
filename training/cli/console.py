# SPDX-License-Identifier: Apache-2.0
"""What several commands share: finding models, placing outputs, talking to the user."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from SRCSMSegmenterLib import endings
from SRCSMSegmenterLib.endings import LABELS, WRITABLE
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError, VolumeError
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle
from SRCSMSegmenterLib.models.catalogue import find_model

SECONDS_BETWEEN_LINES = 30.0


class OutputError(SRCSMError):
    """A result cannot be written."""


def say(line: str) -> None:
    """A line for the user; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def speaks() -> bool:
    """False in all but the first of the processes that `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def print_json(content: Any) -> None:  # noqa: ANN401 - plain JSON values
    """Results for programs."""
    print(json.dumps(content, indent=1))


@contextmanager
def progress_display(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield show(done, total, note): a bar on a terminal, else a line now and then; on stderr."""
    if not speaks():
        yield lambda done, total, note: None
        return
    bar = None
    last = time.monotonic()

    def show_bar(done: int, total: int, note: str) -> None:
        nonlocal bar
        if bar is None:
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            layout += "[{elapsed}<{remaining}{postfix}]"
            # A training that is resumed starts in the middle.
            bar = tqdm(desc=what, total=total, initial=max(0, done - 1), bar_format=layout)
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)

    def show_line(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {done} of {total}, {note}")

    try:
        yield show_bar if sys.stderr.isatty() else show_line
    finally:
        if bar is not None:
            bar.close()


def load_model(model: str) -> ModelBundle:
    """The bundle of a name or folder.

    Raises:
        BundleError: unknown, incomplete or altered.
    """
    return load_bundle(find_model(model))


def output_files(
    scans: Sequence[Path],
    output: Path,
    ending: str = ".nii.gz",
    *,
    labels: bool = True,
    taken: Sequence[Path] = (),
) -> list[Path]:
    """The file for each scan: `output` itself, or one named after the scan in the folder `output`.

    A folder is made where it does not exist; the folder of a file has to exist.

    Args:
        ending: of the files in a folder.
        labels: label maps are written, which .seg.nrrd is for.
        taken: other results; they and the scans must not be written over.

    Raises:
        ConfigError: another ending, or a file would be written over.
        OutputError: the folder cannot be written to.
    """
    if len(scans) > 1 or output.is_dir() or not output.suffix:
        with making(output):
            output.mkdir(parents=True, exist_ok=True)
        files = [output / f"{endings.stem(scan)}{ending}" for scan in scans]
    else:
        files = [output]
    known = LABELS if labels else WRITABLE
    if endings.ending(files[0]) not in known:
        raise ConfigError(f"{output} needs one of the endings {', '.join(known)}.")
    used = {path.resolve() for path in (*scans, *taken)}
    for path in files:
        if path.resolve() in used:
            raise ConfigError(f"{path} would be written over; choose another output.")
        used.add(path.resolve())
    check_writable(files[0].parent)
    return files


def make_folder(folder: Path) -> None:
    """Make a folder where it does not exist, and find out now whether it can be written to.

    Raises:
        OutputError: it cannot.
    """
    with making(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Find out now, not after the work, that a folder cannot be written to.

    Raises:
        OutputError: it cannot.
    """
    with making(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Turn an operating system's error into a sentence."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write to {path} ({error.strerror}); choose another folder."
        ) from error


@contextmanager
def writing() -> Iterator[None]:
    """A volume that cannot be written is a fault of the output, not of the scan."""
    try:
        yield
    except VolumeError as error:
        raise OutputError(str(error)) from error
