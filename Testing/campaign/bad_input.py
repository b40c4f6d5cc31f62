# SPDX-License-Identifier: Apache-2.0
"""Damaged inputs: each is read rightly or refused in a sentence, soon and in little memory."""

import random
import shutil
from pathlib import Path

from inputs import INPUTS, Input, damaged_file
from mutations import mutate
from record import Trial
from verdicts import Verdict, attempt


class BadInput:
    """A source of damaged inputs, each told by its number."""

    name = "damaged input"

    def __init__(self, folder: Path) -> None:
        """Write a valid input of every kind, and read it."""
        self.folder = folder
        self.whole: dict[str, Verdict] = {}
        for name, kind in INPUTS.items():
            valid = self._of(name)
            valid.mkdir(parents=True)
            kind.write(valid)
            copy = self._copy(name)
            self.whole[name] = attempt(lambda kind=kind, copy=copy: kind.read(copy))
            if self.whole[name].outcome != "accepted":
                raise RuntimeError(f"The valid {name} was not read: {self.whole[name]}")

    def trial(self, number: int, seed: int) -> Trial:
        """Damage an input, chosen by the number, and read it."""
        generator = random.Random(f"{seed} {number}")
        name = list(INPUTS)[number % len(INPUTS)]
        kind, copy = INPUTS[name], self._copy(name)
        path, damage = damaged_file(kind, copy, generator)
        path.write_bytes(mutate(path.read_bytes(), damage, generator))
        kind.seal(copy)
        verdict = attempt(lambda: kind.read(copy))
        outcome = self._compared(name, kind, copy, verdict)
        where = path.relative_to(copy).as_posix()
        return Trial(self.name, name, number, outcome, f"{where}: {verdict.message}"[:300])

    def _of(self, name: str) -> Path:
        return self.folder / name.replace("/", "_") / "valid"

    def _copy(self, name: str) -> Path:
        """Copy the valid input; some readers take what they read away."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._of(name), copy)
        return copy

    def _compared(self, name: str, kind: Input, copy: Path, verdict: Verdict) -> str:
        """Tell whether what was accepted is what another reader reads."""
        if verdict.outcome != "accepted" or kind.other is None:
            return verdict.outcome
        if verdict.result == self.whole[name].result:
            return "accepted"
        other = attempt(lambda: kind.other(copy))
        return "accepted" if other.result == verdict.result else "other voxels"
