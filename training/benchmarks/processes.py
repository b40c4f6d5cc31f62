# SPDX-License-Identifier: Apache-2.0
"""Training on several processes of the CPU: samples per second, a core each."""

import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from srcsm_training.benchmarks.timing import Row, Table
from srcsm_training.data.phantom import write_dataset
from srcsm_training.experiments.reports import REPOSITORY
from srcsm_training.segmentation.presets import preset

WARM_UP = 3


def tables(
    folder: Path, data: Path, device: torch.device, name: str = "abdomen-fast", steps: int = 10
) -> list[Table]:
    """Compare samples per second of one process and of one for each core, at most four.

    Args:
        folder: for a phantom and the runs.
        data, device: not used; the training is on the CPU and on a phantom.
        name: of the preset.
    """
    write_dataset(folder / "processes-ct", "CT", 1, seed=0)
    batch, counts = preset(name).optimisation.batch, (1, min(4, os.cpu_count() or 1))
    rates = [
        count * batch / seconds_per_step(folder, name, steps, count)
        for count in sorted(set(counts))
    ]
    rows = [
        Row(f"{count} process{'es' if count > 1 else ''}", (rate, rate / rates[0]))
        for count, rate in zip(sorted(set(counts)), rates, strict=True)
    ]
    title = f"Training on processes of the CPU, {name}, a thread each"
    return [Table(title, ("samples/s", "times one process"), tuple(rows))]


def seconds_per_step(folder: Path, name: str, steps: int, processes: int) -> float:
    """Train some steps with `accelerate launch`, and return the median after the first few."""
    run = folder / f"processes-{processes}"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
    command += [str(processes), str(REPOSITORY / "training" / "train.py"), "--preset", name]
    command += ["--data", str(folder / "processes-ct"), "--cache", str(folder / "cache")]
    command += ["--out", str(run), "--set", f"optimisation.steps={steps}", "data.folds=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    with (run / "curve.csv").open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return statistics.median(seconds[min(WARM_UP, len(seconds) - 1) :])
