# SPDX-License-Identifier: Apache-2.0
"""`srcsm segment` from process start, compared with a warm process."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from srcsm_training.benchmarks.timing import ORGANS, Table, a_scan, compared, comparison
from srcsm_training.cli.main import main as srcsm
from srcsm_training.engine.config import with_overrides
from srcsm_training.segmentation.presets import preset
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import (
    Description,
    ModelBundle,
    is_bundle,
    save_bundle,
)
from SRCSMSegmenterLib.models.catalogue import shipped_models_folder
from SRCSMSegmenterLib.network import UNet
from SRCSMSegmenterLib.source_matching import SourceHistogram
from SRCSMSegmenterLib.terminology import segment_for

SOFT_TISSUE = IntensityRule("CT", window=(-125, 275))


def tables(folder: Path, data: Path, device: torch.device) -> tuple[Table, ...]:
    """Measure on a real MR with the shipped network, or on stand-ins if these are absent."""
    scan, model = a_scan(data, folder / "phantom-mr"), a_model(folder / "random-weights")
    return (segmentation_table(scan, model, device),)


def segmentation_table(scan: Path, model: Path, device: torch.device) -> Table:
    """Measure `srcsm segment` as a process of its own, and in a process that has run it before."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "labels.seg.nrrd")
        arguments = ["segment", str(scan), "-o", output, "--model", str(model)]
        arguments += ["--device", str(device), "--json"]

        started = time.perf_counter()
        command = [
            sys.executable,
            "-c",
            "import srcsm_training.cli.main as c; raise SystemExit(c.main())",
        ]
        process = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)
        first = parts(process.stdout, time.perf_counter() - started)

        for _ in range(2):
            printed = io.StringIO()
            started = time.perf_counter()
            with contextlib.redirect_stdout(printed):
                if code := srcsm(arguments):
                    raise RuntimeError(f"srcsm segment ended with {code}.")
            warm = parts(printed.getvalue(), time.perf_counter() - started)
    rows = tuple(comparison(part, first[part], warm[part]) for part in first)
    title = f"srcsm segment, {scan.parents[1].name}/{scan.name}, model {model.name}, {device}"
    return Table(title, compared("from process start", "warm"), rows)


def parts(printed: str | bytes, whole: float) -> dict[str, float]:
    """Return the seconds of each part of a segmentation, from its JSON output."""
    (scan,) = json.loads(printed)["scans"]
    stages = scan["seconds"]
    return {"all": whole, "start, imports, model": whole - sum(stages.values()), **stages}


def a_model(folder: Path) -> Path:
    """Return the folder of the shipped network, or write one of its size with random weights."""
    shipped = shipped_models_folder() / "abdomen-ct"
    if is_bundle(shipped):
        return shipped
    config = with_overrides(preset("abdomen-fast"), [f"network.classes={len(ORGANS) + 1}"])
    description = Description(
        name=folder.name,
        task="Nothing: its weights are random",
        labels=tuple(segment_for(organ, n) for n, organ in enumerate(ORGANS, start=1)),
        rule=SOFT_TISSUE,
        grid=config.grid,
        smoothing=config.data.smoothing,
        expects="CT",
        licence="Apache-2.0",
    )
    lower, upper = map(int, SOFT_TISSUE.window)
    values = np.arange(lower + 1, upper)
    histogram = SourceHistogram(values, np.ones_like(values), lower)
    weights = UNet(config.network).state_dict()
    save_bundle(folder, ModelBundle(description, config.network, histogram, weights), "# Random\n")
    return folder
