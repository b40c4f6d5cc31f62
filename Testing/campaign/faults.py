# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, stopped, cut off between two steps, find the disk full, or are not alone.

Afterwards no result is half-written, what was there before is whole, no raw error was printed, and
the same command goes on to the result of an undisturbed run.
"""

import contextlib
import gc
import io
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import diffusers  # noqa: F401 - before the forks
import matplotlib.backends.backend_agg  # noqa: F401
import results
from commands import COMMANDS, Command, write_inputs, write_style_inputs
from PIL import Image
from record import Trial
from system_calls import Tracer, cut_off, full_from

import SAMRefineLib
import srcsm_training
import SRCSMSegmenterLib
from srcsm_training.cli.main import main

KINDS = ("SIGKILL", "cut off", "full disk", "SIGINT", "small disk", "two at once", "SIGTERM")

CODES = {
    "SIGTERM": (0, 130),
    "SIGINT": (0, 130),
    "full disk": (0, 6),
    "small disk": (0, 6),
    "two at once": (0,),
}
"""Exit codes of a disturbed run that ended by itself; 0 is that of a run that was done before."""

VARIES = (
    "curve", "environment.json", "last.pt", "README.md", results.SUMS, "training.json", "events.",
    "cases.partial", "validation_", "worst_",
)  # fmt: skip
"""How names of files begin that tell of the run itself; they have to be readable alone."""

NEIGHBOUR = "thesis.txt"
"""A file of the user's that no command knows."""


@dataclass
class Undisturbed:
    """An undisturbed run.

    Attributes:
        result: every file's content.
        older: content of the files that may be there before.
        seconds: of the run.
        steps: system calls that changed the folder.
        size: bytes of the result.
    """

    result: dict[str, str]
    older: dict[str, str]
    seconds: float
    steps: int
    size: int


class Faults:
    """A source of disturbed runs, each told by its number."""

    name = "disturbed run"

    def __init__(self, folder: Path) -> None:
        """Write the inputs, and import what the runs need once for all of them."""
        self.inputs, self.outputs = folder / "inputs", folder / "outputs"
        self.log = folder / "log"
        self.inputs.mkdir()
        self.outputs.mkdir()
        self.undisturbed: dict[str, Undisturbed] = {}
        self.given: dict[str, tuple[int, int]] = {}
        self.kinds = KINDS if self._may_mount() else [k for k in KINDS if k != "small disk"]
        self._make(write_inputs)
        self._warm_up()

    def trial(self, number: int, seed: int) -> Trial:
        """Disturb a run, chosen by the number, look at what it left, and run it again."""
        generator = random.Random(f"{seed} {number}")
        name = list(COMMANDS)[number % len(COMMANDS)]
        kind = self.kinds[(number + number // len(COMMANDS)) % len(self.kinds)]
        self._known(name)
        with self._disk() if kind == "small disk" else contextlib.nullcontext():
            before = self._prepare(name, generator)
            fault = self._disturbed(name, kind, generator) or self._fault(name, kind, before)
        outcome = "failed" if fault else "held"
        return Trial(self.name, f"{name}, {kind}", number, outcome, fault)

    def _make(self, write: Callable[[Path], None]) -> None:
        """Make inputs in a child: a process that has trained cannot fork others that do."""
        if code := self._run(partial(write, self.inputs)):
            raise RuntimeError(f"The inputs could not be made ({code}): {self.log.read_text()}")
        self.given = _stamps(self.inputs)

    def _known(self, name: str) -> Undisturbed:
        """Run a command undisturbed, the first time it is asked for."""
        if name not in self.undisturbed:
            command = COMMANDS[name]
            if "/style/" in command.line and not (self.inputs / "style").exists():
                self._make(write_style_inputs)
            older = {}
            if command.other:
                self._empty()
                self._expect(name, command, other=True)
                older = results.snapshot(self.outputs)
            self._empty()
            started = time.monotonic()
            self._expect(name, command)
            seconds = time.monotonic() - started
            result = results.snapshot(self.outputs)
            self._empty()
            tracer = Tracer(self.outputs)
            self._run(partial(self._call, command), tracer=tracer)
            size = sum(path.stat().st_size for path in self.outputs.rglob("*"))
            known = Undisturbed(result, older, seconds, len(tracer.steps), size)
            self.undisturbed[name] = known
        return self.undisturbed[name]

    def _expect(self, name: str, command: Command, *, other: bool = False) -> None:
        if code := self._run(partial(self._call, command, other=other)):
            raise RuntimeError(f"{name} failed undisturbed ({code}): {self.log.read_text()}")

    def _prepare(self, name: str, generator: random.Random) -> dict[str, str]:
        """Leave nothing, a result of other options, or the command's own; return what is left."""
        self._empty()
        (self.outputs / NEIGHBOUR).write_text("years of work")
        command = COMMANDS[name]
        earlier = generator.choice(("none", "none", "other" if command.other else "own"))
        if earlier != "none":
            self._expect(name, command, other=earlier == "other")
        return results.snapshot(self.outputs)

    def _disturbed(self, name: str, kind: str, generator: random.Random) -> str:
        """Run a command and disturb it; return what is wrong with how it ended."""
        known, call = self._known(name), partial(self._call, COMMANDS[name])
        step = generator.randint(1, max(1, known.steps))
        delay = generator.uniform(0, known.seconds)
        if kind == "cut off":
            code = self._run(
                call, tracer=Tracer(self.outputs, cut_off(step, delay < known.seconds / 3))
            )
        elif kind == "full disk":
            code = self._run(call, tracer=Tracer(self.outputs, full_from(step)))
        elif kind == "small disk":
            extra = generator.randint(1, 1 + known.size // 1024)
            self._resize(used=True, extra=extra)
            code = self._run(call)
            self._resize(used=False, extra=1 << 20)
        elif kind == "two at once":
            code = self._two(call, generator.choice((None, delay)))
        else:
            code = self._run(call, delay=delay, number=getattr(signal, kind))
        said = self.log.read_text(errors="replace")
        if "Traceback" in said or "Exception ignored" in said:
            return f"raw error: {said[-600:]}"
        if code > 0 and code not in CODES.get(kind, ()):
            return f"exit code {code}: {said[-400:]}"
        if code > 0 and code != 130 and "srcsm: error: " not in said:
            return f"exit code {code} without a word: {said[-200:]}"
        if kind in ("full disk", "SIGINT") and (left := _hidden(self.outputs)):
            return f"left behind: {', '.join(left[:3])}"
        return ""

    def _fault(self, name: str, kind: str, before: dict[str, str]) -> str:
        """Describe what a disturbed run left; "" if nothing is wrong."""
        known, command = self.undisturbed[name], COMMANDS[name]
        try:
            left = results.snapshot(self.outputs)
        except Exception as error:
            return f"half-written: {error}"[:300]
        if lost := sorted(before.keys() - left.keys()):
            return f"lost: {lost[:3]}"
        if left[NEIGHBOUR] != before[NEIGHBOUR]:
            return "another file of the user's was changed"
        for file, content in left.items():
            finals = (known.result.get(file), known.older.get(file), before.get(file))
            if file.startswith(command.final) and not _varies(file) and content not in finals:
                return f"another result: {file}"
        if code := self._run(partial(self._call, command)):
            return f"exit code {code} when run again: {self.log.read_text()[-400:]}"
        again = results.snapshot(self.outputs)
        del again[NEIGHBOUR]
        for file, content in known.result.items():
            if not _varies(file) and again.get(file) != content:
                return f"another result when run again: {file}"
        others = again.keys() - known.result.keys() - before.keys()
        if foreign := sorted(file for file in others if not _varies(file)):
            return f"more files when run again: {foreign[:3]}"
        return "" if _stamps(self.inputs) == self.given else "the inputs were changed"

    def _call(self, command: Command, *, other: bool = False) -> int:
        return main(command.arguments(self.inputs, self.outputs, other=other))

    def _two(self, call: Callable[[], int], delay: float | None) -> int:
        """Run a command twice at once; kill one of the two if there is a delay."""
        first = os.fork()
        if first == 0:
            self._execute(call)
        if delay is not None and os.fork() == 0:
            time.sleep(delay)
            os.kill(first, signal.SIGKILL)
            os._exit(0)
        code = self._run(call)
        while True:
            try:
                child, status = os.wait()
            except ChildProcessError:
                return code
            if child == first and code == 0:
                code = max(0, os.waitstatus_to_exitcode(status))

    def _run(
        self,
        call: Callable[[], int],
        *,
        tracer: Tracer | None = None,
        delay: float | None = None,
        number: int = 0,
    ) -> int:
        """Call in a child, and send it a signal after a delay; return its exit code.

        The code is negative if a signal ended it. What it prints goes to the log.
        """
        self.log.write_bytes(b"")
        if tracer:
            return tracer.run(partial(self._execute, call))
        child = os.fork()
        if child == 0:
            self._execute(call)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _execute(self, call: Callable[[], int]) -> None:
        """Call, and leave without the parent's clean-up."""
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream, target in ((0, nothing), (1, nothing), (2, log)):
            os.dup2(target, stream)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 1
        try:
            code = call() or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:
            code = 130  # outside of `main`, before it began
        except BaseException as error:
            os.write(2, f"Traceback of {type(error).__name__}: {error}".encode())
        os._exit(code)

    def _empty(self) -> None:
        for path in self.outputs.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Put the outputs on a disk of their own."""
        mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "srcsm-campaign", str(self.outputs)]
        subprocess.run(mount, check=True, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            subprocess.run(["umount", str(self.outputs)], check=True)

    def _may_mount(self) -> bool:
        try:
            with self._disk():
                return True
        except (OSError, subprocess.CalledProcessError):
            return False

    def _resize(self, used: bool, extra: int) -> None:
        """Give the disk what is used, and some KiB more."""
        state = os.statvfs(self.outputs)
        pages = (state.f_blocks - state.f_bfree) * (state.f_frsize // 1024) if used else 0
        option = f"remount,size={pages + extra}k"
        subprocess.run(["mount", "-o", option, str(self.outputs)], check=True)

    def _warm_up(self) -> None:
        """Import, in this process, what its children would import each for itself."""
        for package in (srcsm_training, SRCSMSegmenterLib, SAMRefineLib):
            for module in walk_packages(package.__path__, f"{package.__name__}."):
                if not {"scene", "panel", "__main__", "benchmarks", "experiments"} & {
                    *module.name.split(".")
                }:
                    import_module(module.name)
        Image.init()
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            self._call(COMMANDS["match"])
        gc.collect()
        gc.freeze()  # or every child copies it all


def _varies(file: str) -> bool:
    return Path(file).name.startswith(VARIES)


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    judged = folder / "style/styled/manifest.json"  # of bad slices, by style check
    files = [path for path in folder.rglob("*") if path.is_file() and path != judged]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
