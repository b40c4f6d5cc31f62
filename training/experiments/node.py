# SPDX-License-Identifier: Apache-2.0
"""Tests, benchmarks and trainings on a node with a GPU but without network, scans and SimpleITK.

    python -m srcsm_training.experiments.node --packed packed --runs runs.txt --minutes 9 --out out

It runs the tests that need a GPU, the benchmarks that need no scans, and the trainings on packed
datasets (`srcsm pack-data`) until the time is up; the same command goes on with what is left.

RUNS has a line for each training: its name, train or train-sam, the packed dataset, options.

    abdomen-ct  train      Dataset101_AbdomenCT  --preset abdomen-fast --set regions.share=0.75
    sam-ct      train-sam  Dataset101_AbdomenCT  --set regions.share=0.75

OUT gets tests.txt, benchmarks.md, log.txt, and the run folder of each training by its name.
"""

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from srcsm_training.data.packed import SUFFIX
from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError, SRCSMError

from .reports import REPOSITORY

PACKAGES = (
    *("torch", "numpy", "scipy", "safetensors", "accelerate", "filelock", "yaml"),
    *("matplotlib", "pandas", "PIL", "tensorboard", "tqdm"),
)
"""Packages that a training imports, by the names in import statements."""

STEPS = ("tests", "benchmarks", "trainings")
BENCHMARKS = ("sm", "src", "step")
"""Sections of the benchmarks that need no scans."""

RESERVE = 0.5
"""Minutes of a training's share for its start, its last checkpoint and its export."""


@dataclass(frozen=True)
class Training:
    """A line of RUNS.

    Attributes:
        command: "train" or "train-sam".
        dataset: name of the packed dataset.
        options: further options of the command.
    """

    name: str
    command: str
    dataset: str
    options: tuple[str, ...]

    def finished(self, out: Path) -> bool:
        """Tell whether the trained network is there."""
        return (out / self.name / "model").exists()


def read_runs(path: Path) -> list[Training]:
    """Read the trainings of a file; "#" starts a comment.

    Raises:
        ConfigError: a line that is no training, or one name for two.
    """
    trainings: dict[str, Training] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if len(words) < 3 or words[1] not in ("train", "train-sam") or words[0] in trainings:
            raise ConfigError(
                f"{path}, line {number}: a training is a name of its own, train or train-sam, a "
                f"dataset and options, not {line!r}."
            )
        trainings[words[0]] = Training(*words[:3], tuple(words[3:]))
    return list(trainings.values())


def check_node(packed: Path, trainings: Sequence[Training]) -> None:
    """Check before the work that packages and packed datasets are there.

    Raises:
        ConfigError: some are missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"This node lacks the packages {', '.join(missing)}; bring them as wheels (pip "
            "download) and install them with pip install --no-index."
        )
    for training in trainings:
        if not (path := packed_dataset(packed, training)).is_file():
            raise ConfigError(f"{training.name}: {path} does not exist; see srcsm pack-data.")


def packed_dataset(packed: Path, training: Training) -> Path:
    """Return the path of a training's dataset."""
    return packed / f"{training.dataset}{SUFFIX}"


def tests_command() -> list[str]:
    """Return the command that runs the tests that need a GPU.

    Files that do not import without other packages, as those of SAM, are errors beside the others.
    """
    files = sorted(REPOSITORY.glob("Testing/**/test_*.py"))
    marked = [str(file) for file in files if "mark.needs_gpu" in file.read_text(encoding="utf-8")]
    options = ["-m", "needs_gpu", "-q", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *marked]


def benchmarks_command() -> list[str]:
    """Return the command that prints the benchmarks."""
    return [sys.executable, "-m", "srcsm_training.benchmarks", "--only", *BENCHMARKS]


def train_all(
    trainings: Sequence[Training],
    packed: Path,
    out: Path,
    jobs: int,
    deadline: float,
    say: Callable[[str], None],
) -> bool:
    """Go on with the unfinished trainings, each for its share of the time until the deadline.

    Args:
        jobs: trainings side by side.
        deadline: as `time.monotonic`.

    Returns:
        Whether none failed.
    """
    waiting = [training for training in trainings if not training.finished(out)]

    def go_on(index: int) -> bool:
        training = waiting[index]
        rounds = math.ceil((len(waiting) - index) / jobs)
        minutes = (deadline - time.monotonic()) / 60 / rounds - RESERVE
        if minutes <= 0:
            say(f"{training.name}: no time left.")
            return True
        command = [sys.executable, "-m", "srcsm_training", training.command]
        command += ["--data", str(packed_dataset(packed, training)), "--out"]
        command += [str(out / training.name), "--max-minutes", f"{minutes:.2f}", *training.options]
        say(f"{training.name}: {minutes:.1f} minutes")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        state = "finished" if training.finished(out) else f"exit code {done.returncode}"
        say(f"{done.stdout}{done.stderr}{training.name}: {state}")
        return done.returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(go_on, range(len(waiting)))))


def capture(command: Sequence[str], path: Path, deadline: float) -> str:
    """Write what a command prints into a file, unless the file exists; return what became of it."""
    if path.exists():
        return "there already"
    left = max(0.0, deadline - time.monotonic())
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=left,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no time left"
    with atomic_write(path) as temporary:
        temporary.write_bytes(done.stdout)
    return f"exit code {done.returncode}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, and return 1 if a training failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, required=True, help="folder of packed datasets")
    parser.add_argument("--runs", type=Path, required=True, help="file of the trainings")
    parser.add_argument("--minutes", type=float, required=True, help="until all has stopped")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default: 1)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args(argv)
    deadline, out = time.monotonic() + 60 * arguments.minutes, arguments.out
    out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, flush=True)
        with open(out / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    try:
        trainings = read_runs(arguments.runs)
        check_node(arguments.packed, trainings)
    except (SRCSMError, OSError) as error:
        parser.error(str(error))
    if "tests" in arguments.only:
        say(f"tests: {capture(tests_command(), out / 'tests.txt', deadline)}")
    if "benchmarks" in arguments.only:
        say(f"benchmarks: {capture(benchmarks_command(), out / 'benchmarks.md', deadline)}")
    if "trainings" in arguments.only:
        jobs = arguments.jobs
        return 0 if train_all(trainings, arguments.packed, out, jobs, deadline, say) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
