# SPDX-License-Identifier: Apache-2.0
"""Writers of results, each cut off once before every system call that changes its folder.

It is also cut off in the middle of every write, and finds the disk full at every step. An older
result is there before; afterwards it or the new one is, whole, and the same call goes on.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dicom_series
import numpy as np
import results
import threshold_network
import tiny
import tiny_sam
import torch
from record import Trial
from system_calls import NEEDS_SPACE, Step, Tracer, cut_off, full_from

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames, save_boxes
from SAMRefineLib.sam.downloads import download, sha256_of
from SAMRefineLib.sam.models import save_sam
from srcsm_training.cli.failures import exit_code
from srcsm_training.cli.segmented import SegmentedRecord
from srcsm_training.data.cases import _store
from srcsm_training.engine.checkpoint import save_checkpoint
from srcsm_training.engine.config import write_yaml
from srcsm_training.engine.run_folder import write_text
from srcsm_training.evaluation.preview import write_preview
from srcsm_training.evaluation.scores import write
from srcsm_training.plots import curve_picture
from srcsm_training.style.base import save_model, write_record
from srcsm_training.style.slices import SliceSet, write_manifest, write_picture
from SRCSMSegmenterLib.dataset_file import write_description
from SRCSMSegmenterLib.dicom_segmentation import Algorithm, source_headers, write_segmentation
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.models.bundle import save_bundle
from SRCSMSegmenterLib.organ_statistics import organ_statistics, write_statistics
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import Frames, write_frames, write_labels, write_volume

WAYS = ("cut off", "half a write", "full disk")
GRID = Geometry((9, 8, 7), np.diag([-1.5, -1.5, 3.0, 1.0]))
SEGMENTS = (segment_for("liver", 1), segment_for("spleen", 2))
REFUSALS = (3, 4, 6)
"""Exit codes of the errors that writers raise; the commands turn all of them into 6."""

UNFINISHED = ".part"
"""End of the name of a download that goes on."""

Writer = Callable[[Path, int], object]
"""Called with the folder and 0 for the older result, 1 for the new one."""


def _array(which: int) -> np.ndarray:
    k, j, i = np.indices(GRID.shape)
    return (100 * k - 30 * j + 7 * i + which).astype(np.int16)


def _labels(which: int) -> Volume:
    return Volume((_array(which) > 150 + which).astype(np.uint8) + (_array(0) > 300), GRID)


def _volume(folder: Path, which: int, name: str) -> None:
    write_volume(folder / name, Volume(_array(which), GRID))


def _sequence(folder: Path, which: int) -> None:
    volumes = (Volume(_array(which), GRID), Volume(_array(which + 2), GRID))
    write_frames(folder / "cine.nii.gz", Frames(volumes, 0.5))


def _segmentation(folder: Path, which: int, name: str) -> None:
    write_labels(folder / name, _labels(which), SEGMENTS)


def _dicom(folder: Path, which: int, series: Path) -> None:
    if not series.exists():
        dicom_series.write_slices(series, Volume(_array(0), GRID))
    algorithm, sources = Algorithm("thresholds", "1", {}), source_headers(series, None, GRID)
    write_segmentation(folder / "labels.dcm", _labels(which), SEGMENTS, sources, algorithm)


def _statistics(folder: Path, which: int) -> None:
    rows = organ_statistics(Volume(_array(which), GRID), _labels(which), SEGMENTS, {})
    write_statistics(folder / "statistics.csv", "scan", [rows])


def _preview(folder: Path, which: int) -> None:
    scan = Volume(_array(0), GRID)
    write_preview(folder / "preview.png", scan, _labels(0), SEGMENTS, f"scan {which}")


def _network(folder: Path, which: int) -> None:
    bundle = threshold_network.a_bundle(GridSpec((16, 16, 8), (3.0 + which, 3.0, 5.0)))
    save_bundle(folder / "model", bundle, "# Card\n")


def _sam(folder: Path, which: int) -> None:
    save_sam(folder / "sam", tiny_sam.small_model(which), "# Card\n", "Free\n")


def _checkpoint(folder: Path, which: int) -> None:
    save_checkpoint(folder / "checkpoints" / "last.pt", {"step": torch.full((40, 40), which)})


def _boxes(folder: Path, which: int) -> None:
    frames = KeyFrames("liver", 1, SliceGrid(GRID, 2))
    frames = dataclasses.replace(frames, automatic={2: Box(1, 2, 5 + which, 6)})
    save_boxes(folder / "boxes.json", [frames])


def _curve(folder: Path, which: int) -> None:
    write_text(folder / "curve.csv", f"step,loss\n1,0.{which}\n")
    rows = [{"step": step, "loss": 0.5 + which, "dice": ""} for step in (1, 2)]
    curve_picture(folder / "curve.png", rows, ["liver"])


def _slices(folder: Path, which: int) -> None:
    write_picture(folder / "images/a.png", _array(which)[0].astype(np.uint8))
    write_manifest(SliceSet(folder, "ct", "CT", {"liver": 1}, 8, {"seed": which}, complete=True))


def _style_model(folder: Path, which: int) -> None:
    def save(inside: Path) -> None:
        torch.manual_seed(which)
        style_model().save_pretrained(inside)

    save_model(save, folder / "unet")
    write_record(folder, {"stage": "tune", "weights": str(which)})


def style_model() -> "torch.nn.Module":
    """Make a model of diffusers as small as it gets."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)


def _prepared(folder: Path, which: int) -> None:
    tensors = {"image": torch.full((2, 3), which), "labels": torch.zeros(2), "affine": torch.eye(4)}
    _store(folder / "cache/a.safetensors", tensors)


def _record(folder: Path, which: int) -> None:
    scan = folder / f"scan{which}.txt"
    if not scan.exists():
        scan.write_text("scan")
    SegmentedRecord(folder, {"model": "thresholds"}).add(scan, [scan])


def _download(folder: Path, which: int, source: Path) -> None:
    source.mkdir(exist_ok=True)
    served = source / f"{which}.pth"
    if not served.exists():
        served.write_bytes(bytes([which]) * 3000)
    target = folder / f"sam{which}.pth"
    if not target.exists():
        download(served.as_uri(), target, 3000, sha256_of(served))


def writers(inputs: Path) -> dict[str, Writer]:
    """List the writers by what they write."""
    return {
        "NIfTI": partial(_volume, name="scan.nii"),
        "NIfTI, gzip": partial(_volume, name="scan.nii.gz"),
        "NIfTI, sequence": _sequence,
        "NRRD": partial(_volume, name="scan.nrrd"),
        "MetaImage": partial(_volume, name="scan.mha"),
        "label map": partial(_segmentation, name="labels.nii.gz"),
        ".seg.nrrd": partial(_segmentation, name="labels.seg.nrrd"),
        "DICOM SEG": partial(_dicom, series=inputs / "series"),
        "statistics": _statistics,
        "preview": _preview,
        "network": _network,
        "SAM": _sam,
        "checkpoint": _checkpoint,
        "boxes": _boxes,
        "curve": _curve,
        "configuration": lambda folder, which: write_yaml(
            folder / "config.yaml", tiny.config(steps=6 + which)
        ),
        "dataset.json": lambda folder, which: write_description(folder, {"numTraining": which}),
        "scores": lambda folder, which: write(
            folder / "scores/cases.csv", f"case,dice\na,{which}\n"
        ),
        "slices": _slices,
        "style's model": _style_model,
        "prepared case": _prepared,
        "record of a cohort": _record,
        "download": partial(_download, source=inputs / "served"),
    }


@dataclasses.dataclass(frozen=True)
class Known:
    """What a writer does undisturbed: the older result, the new one, and all ways to disturb it."""

    before: dict[str, str]
    after: dict[str, str]
    trials: list[tuple[str, int]]


class Writers:
    """A source of cut-off writers, a trial for each step and way."""

    name = "cut-off writer"

    def __init__(self, folder: Path) -> None:
        """Prepare the folders."""
        self.folder, inputs = folder / "outputs", folder / "inputs"
        inputs.mkdir()
        self.writers = writers(inputs)
        self.known: dict[str, Known] = {}

    def trial(self, number: int, seed: int) -> Trial | None:
        """Cut a writer off, look at what is left, and call it again; None after the last one."""
        rest = number
        for name in self.writers:
            known = self._known(name)
            if rest < len(known.trials):
                return self._trial(name, number, *known.trials[rest])
            rest -= len(known.trials)
        return None

    def _known(self, name: str) -> "Known":
        """Call a writer undisturbed, the first time it is asked for, and count its steps."""
        if name not in self.known:
            self._empty()
            self.writers[name](self.folder, 0)
            before = results.snapshot(self.folder)
            tracer = Tracer(self.folder)
            if code := tracer.run(partial(self._write, name)):
                raise RuntimeError(f"{name} failed undisturbed, with exit code {code}.")
            trials = [(way, step.number) for step in tracer.steps for way in ways(step)]
            self.known[name] = Known(before, results.snapshot(self.folder), trials)
        return self.known[name]

    def _trial(self, name: str, number: int, way: str, step: int) -> Trial:
        self._empty()
        self.writers[name](self.folder, 0)
        decide = full_from(step) if way == "full disk" else cut_off(step, way == "half a write")
        code = Tracer(self.folder, decide).run(partial(self._write, name))
        fault = self._fault(name, way, code)
        outcome, detail = ("failed", f"step {step}: {fault}") if fault else ("held", "")
        return Trial(self.name, f"{name}, {way}", number, outcome, detail)

    def _write(self, name: str) -> int:
        try:
            self.writers[name](self.folder, 1)
        except Exception as error:
            return exit_code(error)
        return 0

    def _fault(self, name: str, way: str, code: int) -> str:
        """Describe what a cut-off writer left; "" if nothing is wrong."""
        before, after = self.known[name].before, self.known[name].after
        try:
            left = results.snapshot(self.folder)
        except Exception as error:
            return f"half-written: {error}"[:300]
        if lost := before.keys() - left.keys():
            return f"lost: {sorted(lost)}"
        for file, content in left.items():
            if content not in (before.get(file), after.get(file)) and not file.endswith(UNFINISHED):
                return f"neither the older nor the new: {file}"
        if way == "full disk":
            if code not in (0, *REFUSALS) or (code == 0 and left != after):
                return f"exit code {code} on a full disk"
            if parts := [path.name for path in self.folder.rglob(".*")]:
                return f"left behind: {parts[:3]}"
        self.writers[name](self.folder, 1)
        return "" if results.snapshot(self.folder) == after else "another result when called again"

    def _empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()


def ways(step: Step) -> Iterator[str]:
    """Yield the ways in which a step is disturbed."""
    yield "cut off"
    if step.name == "write" and step.size > 1:
        yield "half a write"
    if step.name in NEEDS_SPACE:
        yield "full disk"
