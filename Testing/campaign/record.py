# SPDX-License-Identifier: Apache-2.0
"""Trials of the campaign: a line of JSON each, which a stopped campaign goes on from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HELD = ("accepted", "refused", "held")
"""Outcomes as they should be; any other is a fault."""


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        part: of the campaign.
        kind: of input or fault.
        number: by which it is made again.
    """

    part: str
    kind: str
    number: int
    outcome: str
    detail: str = ""

    @property
    def held(self) -> bool:
        """Whether the outcome is as it should be."""
        return self.outcome in HELD


def append(path: Path, trial: Trial) -> None:
    """Add a trial to a record."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial)) + "\n")


def read(path: Path) -> list[Trial]:
    """Read a record; a last line that was cut off does not count."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Trial(**json.loads(line)) for line in lines[:-1]]


def table(trials: Sequence[Trial]) -> str:
    """Format the counts, and the kinds that failed, as Markdown."""
    lines = ["| | tried | held | failed |", "| --- | --- | --- | --- |"]
    for part in dict.fromkeys(trial.part for trial in trials):
        held = Counter(trial.held for trial in trials if trial.part == part)
        lines.append(f"| {part} | {held.total()} | {held[True]} | {held[False]} |")
    failed = Counter((t.part, t.kind, t.outcome) for t in trials if not t.held)
    if failed:
        lines += ["", "| failed | kind | how | times |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(key)} | {count} |" for key, count in sorted(failed.items())]
    return "\n".join(lines)
