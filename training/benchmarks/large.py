# SPDX-License-Identifier: Apache-2.0
"""`srcsm segment` on large scans: seconds, processor seconds and peak memory of whole processes.

Each row is a process of its own. Beside it stands a plain SimpleITK script that does no more than
reading, smoothing, resampling to a coarse grid, a threshold, resampling back and writing.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from srcsm_training.benchmarks.segment import a_model
from srcsm_training.benchmarks.timing import Row, Table
from srcsm_training.data.phantom import write_dataset
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle
from SRCSMSegmenterLib.terminology import segment_for

SIZES = ((512, 512, 900), (512, 512, 200))
"""(I, J, K) voxels."""

MANY = 117
"""Labels of the row that shows what the number of labels costs."""

COLUMNS = ("seconds", "processor seconds", "peak memory, GiB")

PLAIN = """
import sys
import SimpleITK as sitk
scan = sitk.ReadImage(sys.argv[1])
smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(scan, sitk.sitkFloat32), 2.0)
spacing = (4.0, 4.0, 4.0)
size = [round(n * s / t) for n, s, t in zip(scan.GetSize(), scan.GetSpacing(), spacing)]
frame = scan.GetOrigin(), spacing, scan.GetDirection()
coarse = sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, *frame)
mask = sitk.Cast(coarse > 100, sitk.sitkFloat32)
fine = sitk.Resample(mask, scan, sitk.Transform(), sitk.sitkLinear)
sitk.WriteImage(sitk.Cast(fine > 0.5, sitk.sitkUInt8), sys.argv[2], True)
"""

LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
command, null = [sys.executable, "-c", *sys.argv[1:]], subprocess.DEVNULL
process = subprocess.Popen(command, stdout=null, stderr=null)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
seconds = time.perf_counter() - started
processor_seconds = usage.ru_utime + usage.ru_stime
print(json.dumps((process.returncode, seconds, processor_seconds, usage.ru_maxrss)))
"""
"""Linux counts the peak memory of the process that starts another one as the other's, and this
one holds torch and other rows' arrays: hence a small process between them."""

SEGMENT = "import srcsm_training.cli.main as c; raise SystemExit(c.main())"


def tables(
    folder: Path,
    data: Path,
    device: torch.device,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
) -> list[Table]:
    """Measure on scans of `sizes`, made from a phantom's CT; `data` is not needed."""
    phantom, output = folder / "phantom-ct", folder / "labels.nii.gz"
    write_dataset(phantom, "CT", 1, seed=0)
    (original,) = (phantom / "imagesTr").iterdir()
    few = a_model(folder / "random-weights")
    many = with_copies(few, folder / "many", MANY)
    measured = []
    for size in sizes:
        scan = enlarged(original, folder / "large.nii.gz", size)
        command = [SEGMENT, "segment", str(scan), "-o", str(output), "--device", str(device)]
        command += ["--modality", "CT", "--source-matching", "on", "--model"]
        rows = (
            measure_process(f"srcsm segment, {few.name}", [*command, str(few)]),
            measure_process(f"srcsm segment, its organs as {MANY}", [*command, str(many)]),
            measure_process("plain SimpleITK script", [PLAIN, str(scan), str(output)]),
        )
        title = (
            f"From process start to written labels, {' × '.join(map(str, size))} int16, {device}"
        )
        measured.append(Table(title, COLUMNS, rows))
    return measured


def with_copies(model: Path, folder: Path, organs: int) -> Path:
    """Write a network that finds the organs of another one several times, for the cost of many.

    Each copy of an organ is a little less likely than the one before, so that it never wins.
    """
    bundle = load_bundle(model)
    known = bundle.description.labels
    sources = [1 + n % len(known) for n in range(organs)]
    labels = tuple(segment_for(f"organ {n}", n) for n in range(1, organs + 1))
    weights = dict(bundle.weights)
    for name in ("head.weight", "head.bias"):
        by_class = weights[name].unflatten(0, (bundle.network.classes, -1))
        weights[name] = by_class[[0, *sources]].flatten(0, 1).clone()
    block = len(weights["head.bias"]) // (organs + 1)
    less = torch.tensor([0, *(n // len(known) for n in range(organs))]) * 0.01
    weights["head.bias"] -= less.repeat_interleave(block)
    copies = replace(
        bundle,
        description=replace(
            bundle.description, name=folder.name, labels=labels, airless=(), groups={}
        ),
        network=replace(bundle.network, classes=organs + 1),
        weights=weights,
        offsets=(),
    )
    save_bundle(folder, copies, "# Copies of organs\n")
    return folder


def enlarged(original: Path, path: Path, size: tuple[int, int, int]) -> Path:
    """Write a scan with more voxels, (I, J, K), in the same field of view, and noise of its own.

    Its axes are those of the patient, as of nearly all CTs.
    """
    small = sitk.ReadImage(str(original))
    small.SetDirection(np.rint(small.GetDirection()).tolist())
    spacing = np.multiply(small.GetSize(), small.GetSpacing()) / size
    # The faces of the outer voxels stay where they are.
    half = (spacing - small.GetSpacing()) / 2
    origin = np.array(small.GetOrigin()) + np.reshape(small.GetDirection(), (3, 3)) @ half
    frame = origin.tolist(), spacing.tolist(), small.GetDirection()
    large = sitk.Resample(small, size, sitk.Transform(), sitk.sitkLinear, *frame, -1024)
    noise = np.random.default_rng(0).normal(0, 10, (64, *size[1::-1])).astype(np.int16)
    array = sitk.GetArrayFromImage(large)
    for k in range(0, len(array), len(noise)):
        array[k : k + len(noise)] += noise[: len(array) - k]
    noisy = sitk.GetImageFromArray(array)
    noisy.CopyInformation(large)
    sitk.WriteImage(noisy, str(path), useCompression=True, compressionLevel=1)
    return path


def measure_process(what: str, arguments: Sequence[str]) -> Row:
    """Run Python code with arguments as a process of its own, and measure it.

    Raises:
        RuntimeError: it failed.
    """
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, check=True
    )
    status, seconds, processor_seconds, memory = json.loads(launched.stdout)
    if status:
        raise RuntimeError(f"{what} ended with {status}.")
    unit = 1 << 30 if sys.platform == "darwin" else 1 << 20  # macOS counts bytes, Linux KiB
    return Row(what, (seconds, processor_seconds, memory / unit))
