# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, stopped, cut off between two steps, or that find the disk full.

Afterwards no result is half-written, what was there before is whole, and the same command goes on
to the result of an undisturbed run.
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import threshold_network
import tiny
import tiny_sam
import yaml
from record import Trial

from SAMRefineLib.sam.models import save_sam
from srcsm_training.cli.main import main
from srcsm_training.engine.config import to_dict
from srcsm_training.evaluation.scores import read_scores
from srcsm_training.style.slices import read_slices
from SRCSMSegmenterLib.geometry import GridSpec
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle
from SRCSMSegmenterLib.volume_io import read_labels

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
"""Audit events that change a folder; a run may be cut off before any of them."""

SPACE = 20_000
"""Bytes that a file may grow to while the disk is full."""

KINDS = ("SIGKILL", "SIGTERM", "cut off", "full disk")

CODES = {"SIGKILL": (), "SIGTERM": (0, 130, 143), "cut off": (), "full disk": (0, 6)}
"""Exit codes of a disturbed run that ended by itself; 0 is that of a run that was done before."""


@dataclass(frozen=True)
class Command:
    """A command whose results are checked.

    Attributes:
        line: arguments, of the folders of inputs and of outputs.
        read: reads the results that lie in the folder of outputs, if there are any; whatever it
            returns must be what an undisturbed run gives.
    """

    line: Callable[[Path, Path], list[str]]
    read: Callable[[Path], object]


def _segmented(name: str) -> Command:
    def line(inputs: Path, outputs: Path) -> list[str]:
        scan = inputs / "data" / "imagesTr" / "a_0000.nii.gz"
        fixed = ["--model", str(inputs / "model"), "--device", "cpu", "--modality", "CT"]
        return ["segment", str(scan), "-o", str(outputs / name), *fixed]

    return Command(line, lambda outputs: _array(outputs / name))


def _refined(inputs: Path, outputs: Path) -> list[str]:
    scan = inputs / "data" / "imagesTr" / "a_0000.nii.gz"
    fixed = ["--model", str(inputs / "model"), "--device", "cpu", "--modality", "CT"]
    sam = ["--refine", "--sam", str(inputs / "sam")]
    return ["segment", str(scan), "-o", str(outputs / "refined.nii.gz"), *fixed, *sam]


def _trained(inputs: Path, outputs: Path) -> list[str]:
    fixed = ["--config", str(inputs / "tiny.yaml"), "--device", "cpu", "--preset", "abdomen-tiny"]
    places = ["--data", str(inputs / "data"), "--cache", str(inputs / "cache")]
    return ["train", *places, *fixed, "--out", str(outputs / "run")]


def _evaluated(inputs: Path, outputs: Path) -> list[str]:
    fixed = ["--model", str(inputs / "model"), "--device", "cpu", "--worst", "1"]
    return ["evaluate", "--data", str(inputs / "data"), "--out", str(outputs / "scores"), *fixed]


def _sliced(inputs: Path, outputs: Path) -> list[str]:
    return ["style", "prepare", "--data", str(inputs / "data"), "--out", str(outputs / "slices")]


def _array(path: Path) -> object:
    return read_labels(path).array.tobytes() if path.exists() else None


def _weights(outputs: Path) -> object:
    if not (outputs / "run" / "model").exists():
        return None
    weights = load_bundle(outputs / "run" / "model").weights
    return [value.numpy().tobytes() for _, value in sorted(weights.items())]


def _scores(outputs: Path) -> object:
    path = outputs / "scores" / "cases.csv"
    return read_scores(path)["dice"].round(4).tolist() if path.exists() else None


def _slices(outputs: Path) -> object:
    folder = outputs / "slices"
    if not (folder / "manifest.json").exists():
        return None
    return [one.image for one in read_slices(folder).slices]


COMMANDS = {
    "segment": _segmented("labels.nii.gz"),
    "segment to .seg.nrrd": _segmented("labels.seg.nrrd"),
    "segment --refine": Command(_refined, lambda outputs: _array(outputs / "refined.nii.gz")),
    "train": Command(_trained, _weights),
    "evaluate": Command(_evaluated, _scores),
    "style prepare": Command(_sliced, _slices),
}


class Faults:
    """A source of disturbed runs, each told by its number."""

    name = "disturbed run"

    def __init__(self, folder: Path) -> None:
        """Write the inputs, and run every command undisturbed."""
        self.inputs, self.outputs = folder / "inputs", folder / "outputs"
        tiny.write_dataset(self.inputs / "data")
        grid = GridSpec((16, 16, 8), (3.0, 3.0, 5.0))
        save_bundle(self.inputs / "model", threshold_network.a_bundle(grid), "# Card\n")
        save_sam(self.inputs / "sam", tiny_sam.small_model(), "# Card\n", "Free\n")
        config = yaml.safe_dump(to_dict(tiny.config(steps=6)))
        (self.inputs / "tiny.yaml").write_text(config)
        self.whole: dict[str, object] = {}
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        for name, command in COMMANDS.items():
            self._empty()
            started = time.monotonic()
            code, steps = self._run(name, lambda: None, count=True)
            self.seconds[name] = time.monotonic() - started
            if code:
                raise RuntimeError(f"{name} failed undisturbed, with exit code {code}.")
            self.whole[name], self.steps[name] = command.read(self.outputs), steps

    def trial(self, number: int, seed: int) -> Trial:
        """Disturb a run, chosen by the number, look at what it left, and run it again."""
        generator = random.Random(f"{seed} {number}")
        name = list(COMMANDS)[number % len(COMMANDS)]
        kind = KINDS[number // len(COMMANDS) % len(KINDS)]
        self._empty()
        if generator.random() < 0.5:
            self._run(name, lambda: None)  # results of before are there
        code = self._disturbed(name, kind, generator)
        fault = self._fault(name, kind, code)
        return Trial(self.name, f"{name}, {kind}", number, "failed" if fault else "held", fault)

    def _disturbed(self, name: str, kind: str, generator: random.Random) -> int:
        if kind == "full disk":
            return self._run(name, _fill_disk)[0]
        if kind == "cut off":
            step = generator.randint(1, max(1, self.steps[name]))
            return self._run(name, lambda: _cut_off(self.outputs, step))[0]
        delay = generator.uniform(0, self.seconds[name])
        return self._run(name, lambda: None, delay=delay, number=getattr(signal, kind))[0]

    def _fault(self, name: str, kind: str, code: int) -> str:
        """Describe what a disturbed run did wrong; "" if nothing."""
        whole, read = self.whole[name], COMMANDS[name].read
        if code > 0 and code not in CODES[kind]:
            return f"exit code {code}"
        try:
            left = read(self.outputs)
        except Exception as error:
            return f"half-written: {type(error).__name__}: {error}"[:300]
        if left is not None and left != whole:
            return "another result"
        again, _ = self._run(name, lambda: None)
        if again:
            return f"exit code {again} when it was run again"
        if read(self.outputs) != whole:
            return "another result when it was run again"
        parts = [path.name for path in self.outputs.rglob(".*") if path.is_file()]
        return f"left behind: {', '.join(parts[:3])}" if parts and kind == "full disk" else ""

    def _empty(self) -> None:
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir()

    def _run(
        self,
        name: str,
        prepare: Callable[[], None],
        *,
        delay: float | None = None,
        number: int = 0,
        count: bool = False,
    ) -> tuple[int, int]:
        """Run a command in a child, and send it a signal after a delay.

        Returns:
            Its exit code, negative for the signal that ended it, and the steps it took if these
            are counted.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self._execute(name, prepare, writer if count else None)
        os.close(writer)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, number)
        with os.fdopen(reader) as pipe:
            steps = len(pipe.read())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), steps

    def _execute(self, name: str, prepare: Callable[[], None], counter: int | None) -> None:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if counter is not None:
            _watch(self.outputs, lambda: os.write(counter, b"."))
        prepare()
        try:
            code = main(COMMANDS[name].line(self.inputs, self.outputs))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            code = 1
        os._exit(code)


def _watch(folder: Path, step: Callable[[], object]) -> None:
    """Call before every step that changes a folder."""
    inside = str(folder)

    def hook(event: str, arguments: tuple) -> None:
        if event in STEPS and str(arguments[0]).startswith(inside):
            reads = event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if not reads:
                step()

    sys.addaudithook(hook)


def _cut_off(folder: Path, step: int) -> None:
    """Let the process die before a step, counted from 1."""
    left = iter(range(step - 1))
    _watch(folder, lambda: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def _fill_disk() -> None:
    """Let files grow to `SPACE` only; the system says so as it does of a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SPACE, SPACE))
