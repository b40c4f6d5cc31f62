# SPDX-License-Identifier: Apache-2.0
"""Small valid inputs of every kind, the call that reads each, and a second reader of some."""

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dicom_series
import nibabel
import numpy as np
import score_tables
import SimpleITK as sitk
import style_tiny
import threshold_network
import tiny
import tiny_sam
import torch

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames, boxes_to_json, load_boxes, save_boxes
from SAMRefineLib.refine.organ_state import OrganState, Settings
from SAMRefineLib.refine.saved_state import SavedState, state_from_json, state_to_json
from SAMRefineLib.sam.models import load_sam, save_sam
from srcsm_training.cli.main import command_module, make_parser
from srcsm_training.data.dataset import check_dataset, read_dataset
from srcsm_training.engine.checkpoint import load_checkpoint, save_checkpoint
from srcsm_training.engine.config import read_yaml, to_dict
from srcsm_training.evaluation.scores import read_scores
from srcsm_training.style.prepare import prepare
from srcsm_training.style.slices import read_slices
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle
from SRCSMSegmenterLib.models.hashed_folder import SUMS, sha256
from SRCSMSegmenterLib.terminology import Segment, segment_for
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_labels, write_volume
from SRCSMSegmenterLib.worker.protocol import CorruptMessageError, FileChannel

SCAN, LABELS = "data/imagesTr/a_0000.nii.gz", "data/labelsTr/a.nii.gz"
TINY = Geometry((20, 22, 24), tiny.AFFINE)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Input:
    """A kind of input.

    Attributes:
        write: writes a valid one into an empty folder.
        read: reads it, by what the product does with it; the result is plain.
        damaged: names of the files that are damaged, each with a kind of `mutate`.
        other: a reader of another library; None if there is none.
        seal: makes hashes of the folder right again, so that damage reaches what is behind them.
    """

    write: Callable[[Path], object]
    read: Reader
    damaged: dict[str, str]
    other: Reader | None = None
    seal: Callable[[Path], None] = field(default=lambda folder: None)


def a_scan() -> Volume:
    """Integers of either sign on an oblique grid, smooth enough to compress."""
    k, j, i = np.indices((5, 6, 7))
    affine = np.array([[0.0, -2, 0, 10], [1.5, 0, 0.6, -20], [0.4, 0, 2.5, 30], [0, 0, 0, 1]])
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / 1.6
    return Volume((100 * k - 30 * j + 7 * i).astype(np.int16), Geometry((7, 6, 5), affine))


def fingerprint(array: np.ndarray, affine: np.ndarray) -> tuple[str, list[float]]:
    """Reduce voxels and affine to what is compared."""
    content = np.ascontiguousarray(array, np.float32).tobytes()
    return hashlib.sha256(content).hexdigest(), np.round(affine, 3).ravel().tolist()


def _read(folder: Path, name: str = "", labels: bool = False) -> Any:
    volume = (read_labels if labels else read_volume)(folder / name)
    return fingerprint(volume.array, volume.geometry.affine)


def _write(folder: Path, name: str, compressed: bool = True) -> None:
    scan = a_scan()
    image = sitk.GetImageFromArray(scan.array)
    lps = LPS @ scan.geometry.affine
    image.SetSpacing(scan.geometry.spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.array(scan.geometry.spacing)).ravel().tolist())
    sitk.WriteImage(image, str(folder / name), compressed)


def _write_nifti(folder: Path, name: str, kind: type) -> None:
    scan = a_scan()
    nibabel.save(kind(scan.array.T, scan.geometry.affine), folder / name)


def _by_itk(folder: Path, name: str) -> Any:
    image = sitk.ReadImage(str(folder / name))
    return fingerprint(sitk.GetArrayFromImage(image), _affine(image))


def _by_nibabel(folder: Path, name: str) -> Any:
    """Read the voxels with nibabel, and the grid with ITK, which is followed there.

    Of two forms that differ nibabel follows another. Grids that ITK refuses are nibabel's.
    """
    image = nibabel.load(folder / name)
    array, affine = np.asanyarray(image.dataobj).astype(np.float64), image.affine
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(_header_alone(image.header, folder)))
    with contextlib.suppress(RuntimeError):
        reader.ReadImageInformation()
        affine = _affine(reader)
    return fingerprint(array.reshape(array.shape[:3]).T, affine)


def _header_alone(header: nibabel.Nifti1Header, folder: Path) -> Path:
    """Write what says where voxels lie as NIfTI-1, as ITK does not read NIfTI-2."""
    alone = nibabel.Nifti1Header()
    fields = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
    fields += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")
    with np.errstate(all="ignore"):
        for field in fields:
            alone[field] = header[field]
    alone["magic"], alone["vox_offset"] = b"n+1", 352
    path = folder / "grid.nii"
    path.write_bytes(alone.binaryblock + bytes(4 + 4 * max(1, int(np.prod(alone["dim"][1:4])))))
    return path


def _affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def _volume(name: str, damage: str, compressed: bool = True, body: str = "") -> Input:
    nifti = name.endswith((".nii", ".gz"))
    return Input(
        partial(_write, name=name, compressed=compressed),
        partial(_read, name=name),
        {name: damage} | ({body: "binary"} if body else {}),
        partial(_by_nibabel if nifti else _by_itk, name=name),
    )


def _write_segmentation(folder: Path) -> None:
    labels = (np.indices((5, 6, 7)).sum(0) // 5).astype(np.uint8)
    segments = [segment_for("liver", 1), segment_for("spleen", 2), segment_for("stomach", 3)]
    write_labels(folder / "labels.seg.nrrd", Volume(labels, a_scan().geometry), segments)


def _write_series(folder: Path, write: Callable[[Path, Volume], object]) -> None:
    scan = a_scan()
    write(folder, Volume(scan.array[:3], Geometry((7, 6, 3), scan.geometry.affine)))


def _read_dataset(folder: Path) -> Any:
    dataset = read_dataset(folder)
    return [check_dataset(dataset), sorted(dataset.labels.items())]


def _write_config(folder: Path) -> None:
    (folder / "config.yaml").write_text(json.dumps(to_dict(tiny.config()), indent=1))


def _write_bundle(folder: Path) -> None:
    save_bundle(
        folder, threshold_network.a_bundle(GridSpec((8, 8, 4), (3.0, 3.0, 5.0))), "# Card\n"
    )


def _read_bundle(folder: Path) -> Any:
    bundle = load_bundle(folder)
    finite = all(value.isfinite().all() for value in bundle.weights.values())
    return [finite, bundle.unet()(torch.zeros(1, 1, 4, 8, 8)).isfinite().all().item()]


def _write_sam(folder: Path) -> None:
    save_sam(folder, tiny_sam.small_model(), "# Card\n", "Free\n")


def _read_sam(folder: Path) -> Any:
    model = load_sam(folder, device="cpu")
    return all(value.isfinite().all().item() for value in model.sam.state_dict().values())


def _seal(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = (
        f"{sha256(path.read_bytes())}  {path.relative_to(folder).as_posix()}" for path in paths
    )
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def _write_boxes(folder: Path) -> None:
    grid = SliceGrid(a_scan().geometry, 2)
    frames = KeyFrames(
        "liver", 1, grid, {1: Box(1, 1, 4, 4), 3: Box(2, 1, 5, 4)}, {2: Box(1, 1, 5, 5)}
    )
    (folder / "boxes.json").write_text(boxes_to_json([frames]))


def _write_scores(folder: Path) -> None:
    score_tables.dice_table(score_tables.OFF).to_csv(folder / "cases.csv", index=False)


def _write_checkpoint(folder: Path) -> None:
    state = {"identity": {"a": 1}, "weights": {"w": torch.ones(3, 4)}, "progress": {"step": 3}}
    save_checkpoint(folder / "last.pt", state)


def _read_checkpoint(folder: Path) -> Any:
    return sorted(load_checkpoint(folder / "last.pt"))


def _write_slices(folder: Path) -> None:
    data = tiny.write_dataset(folder.parent / "data", cases=1)
    prepare(data, folder, style_tiny.config(), limits=style_tiny.SILENT)


def _read_slices(folder: Path) -> Any:
    return len(read_slices(folder).slices)


def _write_message(folder: Path) -> None:
    message = {"id": 3, "task": "segment", "parameters": {"model": "abdomen-ct", "device": "cpu"}}
    np.save(folder / "volume.npy", np.arange(24.0).reshape(2, 3, 4))
    line = json.dumps(message | {"arrays": {"volume": "volume.npy"}})
    (folder / "message").write_text(line)


def _read_message(folder: Path) -> Any:
    line = (folder / "message").read_bytes().replace(b"\n", b" ") + b"\n"
    try:
        message, arrays = FileChannel(io.BytesIO(line), io.BytesIO(), folder).receive()
    except CorruptMessageError:
        return "told to be corrupt"  # the worker answers with a refusal
    return [sorted(message), {name: array.shape for name, array in arrays.items()}]


def _write_for_commands(folder: Path) -> None:
    """Write what commands read: a dataset of one case, label maps, boxes, networks."""
    tiny.write_dataset(folder / "data", cases=1)
    for name in ("maps", "download/images", "download/masks"):
        (folder / name).mkdir(parents=True)
    scan, labels = read_volume(folder / SCAN), read_labels(folder / LABELS)
    write_labels(folder / "maps/a.nii", labels, tiny_segments())
    (folder / "maps/dataset.json").write_text(json.dumps({"labels": tiny.LABELS}))
    sure = Volume((labels.array > 0) * np.float32(0.9), labels.geometry)
    write_volume(folder / "sure.nii", sure)
    save_boxes(folder / "boxes.json", _boxes_around(labels))
    write_volume(folder / "download/images/1_t2.mha", scan)
    write_volume(folder / "download/masks/1_t2.mha", labels)
    bundle = threshold_network.a_bundle(GridSpec((8, 8, 4), (6.0, 6.0, 10.0)))
    save_bundle(folder / "model", bundle, "# Card\n")
    save_sam(folder / "sam", tiny_sam.small_model(), "# Card\n", "Free\n")


def tiny_segments() -> list[Segment]:
    """Return the labels of the tiny dataset."""
    return [segment_for(name, value) for name, value in tiny.LABELS.items() if value]


def _boxes_around(labels: Volume) -> list[KeyFrames]:
    grid = SliceGrid(labels.geometry, 2)
    boxes = {k: Box(3, 4, 9, 15) for k in (8, 9, 10)}
    return [KeyFrames(segment.name, segment.value, grid, boxes) for segment in tiny_segments()]


def _run(folder: Path, line: str) -> str:
    """Run a command, whose errors are raised; {f} stands for the folder."""
    command = line.format(f=folder).split()
    command_module(command[0]).run(make_parser().parse_args(command))
    return "done"


def _command(line: str, damaged: dict[str, str]) -> Input:
    return Input(_write_for_commands, partial(_run, line=line), damaged)


def _write_session(folder: Path) -> None:
    organ = OrganState(_boxes_around(Volume(np.ones((24, 22, 20), np.uint8), TINY))[0], "Segment_1")
    state = SavedState((organ,), organ.frames.grid, Settings(), 3)
    (folder / "session.json").write_text(state_to_json(state))


def _read_session(folder: Path) -> Any:
    return len(state_from_json((folder / "session.json").read_text(errors="replace")).organs)


INPUTS = {
    "NIfTI": _volume("scan.nii", "header", compressed=False),
    "NIfTI, gzip": _volume("scan.nii.gz", "binary"),
    "NIfTI-2": Input(
        partial(_write_nifti, name="scan.nii", kind=nibabel.Nifti2Image),
        partial(_read, name="scan.nii"),
        {"scan.nii": "header"},
        partial(_by_nibabel, name="scan.nii"),
    ),
    "NIfTI, pair": Input(
        partial(_write_nifti, name="scan.hdr", kind=nibabel.Nifti1Pair),
        partial(_read, name="scan.hdr"),
        {"scan.hdr": "header", "scan.img": "binary"},
        partial(_by_nibabel, name="scan.hdr"),
    ),
    "NRRD": _volume("scan.nrrd", "text", compressed=False),
    "NRRD, gzip": _volume("scan.nrrd", "text"),
    "NRRD, detached": _volume("scan.nhdr", "text", body="scan.raw.gz"),
    "MetaImage": _volume("scan.mha", "text", compressed=False),
    "MetaImage, zlib": _volume("scan.mha", "text"),
    "MetaImage, detached": _volume("scan.mhd", "text", body="scan.zraw"),
    "segmentation": Input(
        _write_segmentation,
        partial(_read, name="labels.seg.nrrd", labels=True),
        {"labels.seg.nrrd": "text"},
        partial(_by_itk, name="labels.seg.nrrd"),
    ),
    "DICOM series": Input(
        partial(_write_series, write=dicom_series.write_slices), _read, {"2.dcm": "binary"}
    ),
    "Enhanced DICOM": Input(
        partial(_write_series, write=dicom_series.write_enhanced), _read, {"*.dcm": "binary"}
    ),
    "dataset.json": Input(
        partial(tiny.write_dataset, cases=1), _read_dataset, {"dataset.json": "json"}
    ),
    "configuration": Input(
        _write_config,
        lambda folder: to_dict(read_yaml(folder / "config.yaml", tiny.config())),
        {"config.yaml": "json"},
    ),
    "network": Input(
        _write_bundle,
        _read_bundle,
        {
            "configs/metadata.json": "json",
            "configs/network.json": "json",
            "configs/source_histogram.json": "json",
            "models/model.safetensors": "binary",
        },
        seal=_seal,
    ),
    "network's files": Input(_write_bundle, _read_bundle, {"*/*": "binary", SUMS: "text"}),
    "SAM": Input(_write_sam, _read_sam, {"*.json": "json", "*.safetensors": "binary"}, seal=_seal),
    "boxes": Input(
        _write_boxes, lambda folder: len(load_boxes(folder / "boxes.json")), {"boxes.json": "json"}
    ),
    "scores": Input(
        _write_scores, lambda folder: len(read_scores(folder / "cases.csv")), {"cases.csv": "text"}
    ),
    "checkpoint": Input(_write_checkpoint, _read_checkpoint, {"last.pt": "binary"}),
    "manifest of slices": Input(_write_slices, _read_slices, {"*.json": "json"}),
    "session": Input(_write_session, _read_session, {"session.json": "json"}),
    "evaluate --predictions": _command(
        "evaluate --data {f}/data --predictions {f}/maps --worst 0 --out {f}/out",
        {"maps/a.nii": "header", "maps/dataset.json": "json"},
    ),
    "refine": _command(
        f"refine {{f}}/{SCAN} --modality CT --boxes {{f}}/boxes.json --coarse {{f}}/maps/a.nii "
        "--coarse-confidence {f}/sure.nii --sam {f}/sam --device cpu -o {f}/fine.nii.gz",
        {"boxes.json": "json", "maps/a.nii": "header", "sure.nii": "header"},
    ),
    "match": _command(
        f"match {{f}}/{SCAN} --source-images {{f}}/data/imagesTr -o {{f}}/matched.nii.gz",
        {SCAN: "binary"},
    ),
    "prepare-data": _command(
        "prepare-data spider {f}/download {f}/out", {"download/*/1_t2.mha": "text"}
    ),
    "worker's message": Input(
        _write_message, _read_message, {"message": "json", "volume.npy": "binary"}
    ),
}


def damaged_file(kind: Input, folder: Path, generator: random.Random) -> tuple[Path, str]:
    """Choose a file to damage, and how."""
    pattern, damage = generator.choice(sorted(kind.damaged.items()))
    return generator.choice(sorted(folder.glob(pattern))), damage
