# SPDX-License-Identifier: Apache-2.0
"""Damaged inputs: each is read rightly or refused in a sentence, soon and in little memory."""

import random
import shutil
from pathlib import Path

from inputs import INPUTS, damaged_file
from mutations import mutate
from record import Trial
from verdicts import Attempts, Verdict


class BadInput:
    """A source of damaged inputs, each told by its number."""

    name = "damaged input"

    def __init__(self, folder: Path) -> None:
        """Write a valid input of every kind, and read it."""
        self.folder, self.copy = folder, folder / "copy"
        self.read = Attempts(lambda name: INPUTS[name].read(self.copy), folder)
        self.read_otherwise = Attempts(lambda name: INPUTS[name].other(self.copy))
        self.whole: dict[str, Verdict] = {}
        for name, kind in INPUTS.items():
            valid = self._of(name)
            valid.mkdir(parents=True)
            kind.write(valid)
            self._copy_valid(name)
            self.whole[name] = self.read(name)
            if self.whole[name].outcome != "accepted":
                raise RuntimeError(f"The valid {name} was not read: {self.whole[name]}")
            if kind.other is not None:
                self._copy_valid(name)
                other = self.read_otherwise(name)
                if other.result != self.whole[name].result:
                    raise RuntimeError(f"The valid {name} was read otherwise: {other}")

    def trial(self, number: int, seed: int) -> Trial:
        """Damage an input, chosen by the number, and read it."""
        generator = random.Random(f"{seed} {number}")
        name = list(INPUTS)[number % len(INPUTS)]
        kind = INPUTS[name]
        self._copy_valid(name)
        path, damage = damaged_file(kind, self.copy, generator)
        path.write_bytes(mutate(path.read_bytes(), damage, generator))
        kind.seal(self.copy)
        verdict = self.read(name)
        outcome = self._compared(name, verdict)
        where = path.relative_to(self.copy).as_posix()
        return Trial(self.name, name, number, outcome, f"{where}: {verdict.message}"[:300])

    def close(self) -> None:
        """End the readers."""
        self.read.close()
        self.read_otherwise.close()

    def _of(self, name: str) -> Path:
        return self.folder / name.replace("/", "_") / "valid"

    def _copy_valid(self, name: str) -> None:
        """Copy the valid input; some readers take what they read away."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self._of(name), self.copy)

    def _compared(self, name: str, verdict: Verdict) -> str:
        """Tell whether what was accepted is what another reader reads."""
        if verdict.outcome != "accepted" or INPUTS[name].other is None:
            return verdict.outcome
        if verdict.result == self.whole[name].result:
            return "accepted"
        other = self.read_otherwise(name)
        return "accepted" if other.result == verdict.result else "other voxels"
