# SPDX-License-Identifier: Apache-2.0
"""Published downloads as they are unpacked, and their way into nnU-Net raw datasets."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SRCSMSegmenterLib.atomic import atomic_write
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.schema import nearest
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_volume

Found = tuple[str, str, Path, tuple[Path, ...]]
"""Dataset, name of the case, image, and label maps, of which there are two for two lungs."""


@dataclass(frozen=True)
class Download:
    """A published download.

    Attributes:
        layout: where its files are, for the user.
        datasets: name of each dataset that it becomes -> modality.
        labels: name -> label, without the background.
        values: label of its files -> ours; a value that is not named is a fault.
        find: lists the cases in its folder.
    """

    layout: str
    datasets: dict[str, str]
    labels: dict[str, int]
    values: dict[int, int]
    find: Callable[[Path], Iterator[Found]]


HEART = {
    "left_ventricle": 1, "right_ventricle": 2, "left_atrium": 3, "right_atrium": 4,
    "myocardium": 5, "aorta": 6, "pulmonary_artery": 7,
}  # fmt: skip
CINE = {"left_ventricle": 1, "myocardium": 2, "right_ventricle": 3}
SITES = {
    "RUNMC": "Dataset311_ProstateRUNMC", "BMC": "Dataset312_ProstateBMC",
    "I2CVB": "Dataset313_ProstateI2CVB", "UCL": "Dataset314_ProstateUCL",
    "BIDMC": "Dataset315_ProstateBIDMC", "HK": "Dataset316_ProstateHK",
}  # fmt: skip
SITE_FOLDERS = {site: (site,) for site in SITES} | {"I2CVB": ("I2CVB", "HCRUDB")}
"""Folders of the six sites; the third has had two names."""


def _mmwhs(source: Path) -> Iterator[Found]:
    for modality, dataset in (("ct", "Dataset211_HeartCT"), ("mr", "Dataset212_HeartMR")):
        for image in sorted(source.glob(f"{modality}_train/*_image.nii.gz")):
            labels = image.with_name(image.name.replace("_image", "_label"))
            yield dataset, image.name.removesuffix("_image.nii.gz"), image, (labels,)


def _mnms2(source: Path) -> Iterator[Found]:
    for labels in sorted(source.glob("**/*_SA_E[DS]_gt.nii.gz")):
        case = labels.name.removesuffix("_gt.nii.gz")
        yield "Dataset221_HeartMnMs2", case, labels.with_name(f"{case}.nii.gz"), (labels,)


def _six_sites(source: Path) -> Iterator[Found]:
    for site, dataset in SITES.items():
        for folder in SITE_FOLDERS[site]:
            for labels in sorted((source / folder).glob("*_[sS]egmentation.nii.gz")):
                case = re.sub("_[sS]egmentation.nii.gz$", "", labels.name)
                image = labels.with_name(f"{case}.nii.gz")
                yield dataset, f"{site.lower()}_{case.lower()}", image, (labels,)


def _verse(source: Path) -> Iterator[Found]:
    for labels in sorted(source.glob("**/derivatives/*/*_seg-vert_msk.nii.gz")):
        case = labels.name.removesuffix("_seg-vert_msk.nii.gz")
        folder = labels.parents[2] / "rawdata" / labels.parent.name
        yield "Dataset401_SpineCT", case, folder / f"{case}_ct.nii.gz", (labels,)


def _spider(source: Path) -> Iterator[Found]:
    for labels in sorted(source.glob("masks/*_t2.mha")):
        yield "Dataset402_SpineMR", labels.stem, source / "images" / labels.name, (labels,)


def _montgomery(source: Path) -> Iterator[Found]:
    for image in sorted(source.glob("CXR_png/*.png")):
        lungs = tuple(
            source / "ManualMask" / f"{side}Mask" / image.name for side in ("left", "right")
        )
        yield "Dataset411_ChestXray", image.stem, image, lungs


DOWNLOADS = {
    "mm-whs": Download(
        "ct_train/ct_train_1001_image.nii.gz, ..._label.nii.gz; mr_train/... (MM-WHS 2017)",
        {"Dataset211_HeartCT": "CT", "Dataset212_HeartMR": "MR"},
        HEART,
        # 421 is 420 in one case of the download.
        {500: 1, 600: 2, 420: 3, 421: 3, 550: 4, 205: 5, 820: 6, 850: 7},
        _mmwhs,
    ),
    "mnms-2": Download(
        "001/001_SA_ED.nii.gz, 001_SA_ED_gt.nii.gz, 001_SA_ES... (M&Ms-2)",
        {"Dataset221_HeartMnMs2": "MR"},
        CINE,
        {1: 1, 2: 2, 3: 3},
        _mnms2,
    ),
    "prostate-six-sites": Download(
        "RUNMC/Case00.nii.gz, Case00_segmentation.nii.gz; BMC, I2CVB (or HCRUDB), UCL, BIDMC, HK "
        "(Liu et al., SAML)",
        dict.fromkeys(SITES.values(), "MR"),
        {"prostate": 1},
        {1: 1, 2: 1},  # zones of the prostate, in two of the sites
        _six_sites,
    ),
    "verse": Download(
        "rawdata/sub-verse004/sub-verse004_ct.nii.gz, derivatives/sub-verse004/"
        "sub-verse004_seg-vert_msk.nii.gz (VerSe)",
        {"Dataset401_SpineCT": "CT"},
        {"lumbar_vertebrae": 1},
        # 20 to 25 are L1 to L6; 1 to 19 are cervical and thoracic, 26 to 28 sacrum, coccyx, T13.
        {value: int(20 <= value <= 25) for value in range(1, 29)},
        _verse,
    ),
    "spider": Download(
        "images/1_t2.mha, masks/1_t2.mha (SPIDER)",
        {"Dataset402_SpineMR": "MR"},
        {"lumbar_vertebrae": 1},
        # Vertebrae are counted from L5 upwards, 1 to 5 being lumbar; 100 is the canal, from 101 on
        # parts of vertebrae, from 201 on discs.
        {value: int(value <= 5) for value in (*range(1, 26), *range(100, 126), *range(201, 226))},
        _spider,
    ),
    "montgomery": Download(
        "CXR_png/MCUCXR_0001_0.png, ManualMask/leftMask/..., rightMask/... (Montgomery X-rays)",
        {"Dataset411_ChestXray": "MR"},
        {"lung": 1},
        {1: 1, 255: 1},
        _montgomery,
    ),
}
"""The downloads by name. An X-ray is read as an MR is: without units, scaled by its own values."""

XRAY_PIXEL = 0.0875
"""mm, of the Montgomery X-rays; PNG files hold none."""


def prepare_download(
    name: str,
    source: Path,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, case: None,
) -> list[Path]:
    """Write the datasets of a download as nnU-Net raw folders.

    Cases of an earlier call that was stopped are kept; `dataset.json` comes last.

    Args:
        name: one of `DOWNLOADS`.
        source: folder of the unpacked download.
        out: folder of the datasets, created if it does not exist.
        progress: called as progress(done, total, case name) after every case.

    Returns:
        The folders of the datasets.

    Raises:
        ConfigError: the name is unknown.
        DatasetError: no case is there, files are missing, or a label map has unknown values or
            lies on another grid; the message lists all missing files.
        VolumeError: a file cannot be read or written.
    """
    if name not in DOWNLOADS:
        known = ", ".join(DOWNLOADS)
        raise ConfigError(f'No download "{name}"{nearest(name, DOWNLOADS)}; there are: {known}.')
    download = DOWNLOADS[name]
    found = list(download.find(Path(source)))
    if not found:
        raise DatasetError(f"{source} is not {name} as unpacked; expected: {download.layout}.")
    files = [path for *_, image, labels in found for path in (image, *labels)]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise DatasetError("\n- ".join([f"{source} is incomplete; missing:", *missing]))
    for done, case in enumerate(found, start=1):
        _write_case(download, case, out)
        progress(done, len(found), case[1])
    folders = [out / dataset for dataset in dict.fromkeys(dataset for dataset, *_ in found)]
    for folder in folders:
        description = {
            "channel_names": {"0": download.datasets[folder.name]},
            "labels": {"background": 0, **download.labels},
            "numTraining": sum(dataset == folder.name for dataset, *_ in found),
            "file_ending": ".nii.gz",
        }
        with atomic_write(folder / "dataset.json") as temporary:
            temporary.write_text(json.dumps(description, indent=1), encoding="utf-8")
    return folders


def _write_case(download: Download, case: Found, out: Path) -> None:
    dataset, name, image_path, label_paths = case
    image_file = out / dataset / "imagesTr" / f"{name}_0000.nii.gz"
    label_file = out / dataset / "labelsTr" / f"{name}.nii.gz"
    if image_file.exists() and label_file.exists():
        return
    image = _read(image_path, read_volume)
    labels = np.zeros(image.geometry.shape, np.uint8)
    for path in label_paths:
        volume = _read(path, read_labels)
        if not volume.geometry.matches(image.geometry, tolerance=0.05):
            raise DatasetError(f"{path} lies on another grid than {image_path}.")
        present = set(np.unique(volume.array).tolist()) - {0}
        if unknown := sorted(present - download.values.keys()):
            raise DatasetError(f"{path} has the values {unknown}, which are none of its labels.")
        for value in present:
            labels[volume.array == value] = download.values[value]
    for path, volume in ((image_file, image), (label_file, Volume(labels, image.geometry))):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, volume)


def _read(path: Path, read: Callable[[Path], Volume]) -> Volume:
    """Read a volume, or a PNG as a coronal slice that is looked at from the front."""
    if path.suffix != ".png":
        return read(path)
    from matplotlib.image import imread

    pixels = imread(path)
    grey = pixels if pixels.ndim == 2 else pixels[..., :3].mean(axis=2)
    array = np.rint(grey * (255 if grey.dtype.kind == "f" else 1)).astype(np.int16)[None]
    affine = np.array([[-XRAY_PIXEL, 0, 0, 0], [0, 0, -1, 0], [0, -XRAY_PIXEL, 0, 0], [0, 0, 0, 1]])
    return Volume(array, Geometry(array.shape[::-1], affine))
