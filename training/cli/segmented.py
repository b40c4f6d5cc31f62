# SPDX-License-Identifier: Apache-2.0
"""Record of the scans that were segmented into a folder, so that a stopped command can go on."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from SRCSMSegmenterLib.atomic import append_line
from SRCSMSegmenterLib.errors import DatasetError
from SRCSMSegmenterLib.schema import convert_keys, parse_json

from .cohort import process_number

Stamp = list[int]
"""Size in bytes and time of the last change in ns."""

LINE = {"scan": str, "changed": Stamp, "results": dict[str, Stamp], "settings": dict[str, Any]}
"""Keys of a line."""


@dataclass(frozen=True)
class SegmentedRecord:
    """A line of JSON per segmented scan, in a file per process that shares the work.

    A result counts only as long as it is the very file that was written then, so neither an older
    result of other settings nor one of a scan that was exchanged is taken for this command's.

    Attributes:
        folder: folder of the results.
        settings: plain values on which the labels depend.
    """

    folder: Path
    settings: dict[str, Any]

    def add(self, scan: Path, results: Sequence[Path]) -> None:
        """Add a scan whose results have just been written.

        Raises:
            OSError: the record cannot be written.
        """
        line = json.dumps(
            {
                "scan": os.path.abspath(scan),
                "changed": _stamp(scan),
                "results": {self._name(path): _stamp(path) for path in results},
                "settings": self.settings,
            }
        )
        number = process_number()
        name = "segmented.jsonl" if number == 0 else f"segmented-{number}.jsonl"
        append_line(self.folder / name, line)

    def differences(self, scan: Path, results: Sequence[Path]) -> list[str] | None:
        """Compare recorded results with those that this command would write.

        Returns:
            Names of the settings that differ, and "scan" if the scan was changed; [] if the results
            are this command's; None if there are none, or none that were recorded.
        """
        if not all(path.exists() for path in results):
            return None
        stamps = {self._name(path): _stamp(path) for path in results}
        for line in self._lines[next(iter(stamps))]:
            if stamps.items() <= line["results"].items():
                then = line["settings"]
                keys = sorted(self.settings.keys() | then.keys())
                differing = [key for key in keys if self.settings.get(key) != then.get(key)]
                return ["scan"] * (line["changed"] != _stamp(scan)) + differing
        return None

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    @cached_property
    def _lines(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of all processes by the names of results."""
        lines = defaultdict(list)
        for path in filter(Path.is_file, sorted(self.folder.glob("segmented*.jsonl"))):
            for text in path.read_text("utf-8", errors="replace").splitlines():
                try:
                    line = convert_keys(parse_json(text, "", DatasetError), LINE, "", DatasetError)
                except DatasetError:
                    continue  # the process was killed while it wrote this line
                for name in line["results"]:
                    lines[name].append(line)
        return lines


def earlier_results(paths: Sequence[Path]) -> list[Path]:
    """List the results that are recorded in folders, or below them."""
    results = []
    for folder in filter(Path.is_dir, paths):
        for record in sorted({path.parent for path in folder.rglob("segmented*.jsonl")}):
            results += [record / name for name in SegmentedRecord(record, {})._lines]
    return results


def _stamp(path: Path) -> Stamp:
    """Tell the state of a file, or of the files of a folder."""
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return [sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
