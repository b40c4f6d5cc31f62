# SPDX-License-Identifier: Apache-2.0
"""What ``srcsm segment`` writes beside labels: DICOM, tables, pictures, and several volumes."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pytest

from srcsm_training.cli import main as cli
from srcsm_training.data.coarse import read_coarse
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.volume_io import (
    Frames,
    read_frames,
    read_labels,
    read_volume,
    write_frames,
    write_volume,
)


def run(*arguments):
    return cli.main([*map(str, arguments), "--device", "cpu"])


@pytest.fixture
def series(scan, tmp_path):
    """The scan as a DICOM series, T2 axial, beside a localiser."""
    pytest.importorskip("highdicom", reason="highdicom is not installed: srcsm[dicom]")
    from dicom_series import write_slices

    folder, volume = tmp_path / "dicom", read_volume(scan)
    write_slices(folder, volume, "T2 axial")
    localiser = Volume(
        volume.array[:2],
        type(volume.geometry)((*volume.geometry.size[:2], 2), volume.geometry.affine),
    )
    write_slices(tmp_path / "localiser", localiser, "localiser")
    for path in (tmp_path / "localiser").iterdir():
        path.rename(folder / f"localiser-{path.name}")
    return folder


def test_a_series_gets_a_dicom_segmentation_that_refine_reads(models, series, tmp_path, capsys):
    output, expected = tmp_path / "organs.dcm", tmp_path / "organs.seg.nrrd"
    assert run("segment", series, "-o", output) == 3
    listed = capsys.readouterr().err
    assert "T2 axial" in listed
    assert "localiser" in listed
    for path in (output, expected):
        assert run("segment", series, "--series", "T2 axial", "-o", path, "--json") == 0
    labels = read_labels(expected)
    assert set(np.unique(labels.array)) == {0, 1, 2}
    organs = read_coarse(output, None, labels.geometry)
    assert [organ.name for organ in organs] == ["liver", "spleen"]
    for organ in organs:
        assert np.array_equal(organ.mask, labels.array == organ.label)
    import pydicom

    algorithm = (
        pydicom.dcmread(output).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    )
    assert algorithm[0].AlgorithmName == "abdomen-ct"
    assert "source matching" in str(algorithm[0].AlgorithmParameters)
    if shutil.which("dciodvfy"):
        told = subprocess.run(["dciodvfy", "-new", str(output)], capture_output=True, text=True)
        assert told.stderr.split() == ["Segmentation"]


def test_only_a_series_gets_a_dicom_segmentation(models, scan, tmp_path, capsys):
    assert run("segment", scan, "-o", tmp_path / "organs.dcm") == 2
    assert "references a DICOM series" in capsys.readouterr().err


def test_statistics_and_a_preview_are_written_for_each_scan(models, datasets, tmp_path, capsys):
    scans = sorted((datasets["MR"] / "imagesTr").iterdir())
    out = tmp_path / "out"
    more = ("--statistics", out, "--preview", out, "--json")
    assert run("segment", *scans, "-o", out, *more) == 0
    told = json.loads(capsys.readouterr().out)["scans"]
    for scan, entry in zip(scans, told, strict=True):
        name = scan.name.removesuffix("_0000.nii.gz")
        assert entry["statistics"] == str(out / f"{name}_statistics.csv")
        assert entry["preview"] == str(out / f"{name}_preview.png")
        assert (out / f"{name}_preview.png").read_bytes().startswith(b"\x89PNG")
        image, labels = read_volume(scan), read_labels(out / f"{name}.nii.gz").array
        rows = list(csv.DictReader((out / f"{name}_statistics.csv").read_text().splitlines()))
        for row, organ in zip(rows, entry["organs"], strict=True):
            assert (row["scan"], row["organ"]) == (str(scan), organ["name"])
            inside = image.array[labels == organ["label"]]
            assert float(row["volume_ml"]) == pytest.approx(organ["volume_ml"], abs=1e-3)
            assert float(row["mean"]) == pytest.approx(inside.mean(), abs=1e-3)
            assert float(row["sd"]) == pytest.approx(inside.std(), abs=1e-3)
            slices = [str(s["slice"]) for s in organ["least_certain_slices"][:5]]
            assert row["least_certain_slices"].split() == slices


@pytest.mark.parametrize(
    ("option", "name", "ending"),
    [("--statistics", "a.xlsx", ".csv"), ("--preview", "a.jpg", ".png")],
)
def test_other_tables_and_pictures_are_refused(
    models, scan, tmp_path, capsys, option, name, ending
):
    assert run("segment", scan, "-o", tmp_path / "a.nii.gz", option, tmp_path / name) == 2
    assert ending in capsys.readouterr().err


@pytest.fixture
def cine(datasets, tmp_path):
    """Two volumes in one file."""
    first, second = (read_volume(path) for path in sorted((datasets["MR"] / "imagesTr").iterdir()))
    write_frames(tmp_path / "cine.nii.gz", Frames((first, second), 0.05))
    for name, volume in (("0", first), ("1", second)):
        write_volume(tmp_path / f"{name}.nii.gz", volume)
    return tmp_path / "cine.nii.gz"


def test_a_4d_file_is_segmented_volume_by_volume_into_one_file(models, cine, tmp_path, capsys):
    output = tmp_path / "organs.nii.gz"
    more = ("--confidence", tmp_path / "sure.nii.gz", "--statistics", tmp_path / "stats.csv")
    assert run("segment", cine, "-o", output, *more, "--json") == 0
    [entry] = json.loads(capsys.readouterr().out)["scans"]
    frames, sure = read_frames(output), read_frames(tmp_path / "sure.nii.gz")
    assert frames.interval == pytest.approx(0.05)
    assert entry["interval"] == pytest.approx(0.05)
    rows = list(csv.DictReader((tmp_path / "stats.csv").read_text().splitlines()))
    assert [row["frame"] for row in rows] == ["0", "0", "1", "1"]
    for number in range(2):
        alone, alone_sure = tmp_path / "alone.nii.gz", tmp_path / "alone_sure.nii.gz"
        scan = tmp_path / f"{number}.nii.gz"
        assert run("segment", scan, "-o", alone, "--confidence", alone_sure) == 0
        expected = read_labels(alone)
        assert np.array_equal(frames.volumes[number].array, expected.array)
        assert np.array_equal(sure.volumes[number].array, read_volume(alone_sure).array)
        assert frames.volumes[number].geometry.matches(expected.geometry)
        for organ in entry["frames"][number]["organs"]:
            voxels = np.count_nonzero(expected.array == organ["label"])
            assert organ["volume_ml"] == pytest.approx(voxels * expected.geometry.voxel_ml)


def test_the_volumes_of_a_4d_file_are_of_one_modality(models, scan, tmp_path, capsys):
    without_air = read_volume(scan)
    with_air = Volume(without_air.array - 150, without_air.geometry)
    write_frames(tmp_path / "ct.nii.gz", Frames((without_air, with_air)))
    assert run("segment", tmp_path / "ct.nii.gz", "-o", tmp_path / "a.nii.gz") == 0
    printed = capsys.readouterr().out
    assert "(CT, without source matching)" in printed
    assert "Taken for MR" not in printed
    assert "volume 0: CT without air" in printed


def test_the_volumes_of_a_4d_file_are_told_to_people(models, cine, tmp_path, capsys):
    assert run("segment", cine, "-o", tmp_path / "organs.nii.gz") == 0
    printed = capsys.readouterr().out
    assert "ml in each of 2 volumes" in printed
    lines = [line.split() for line in printed.splitlines()]
    (liver,) = (words for words in lines if words[0] == "liver")
    volumes = read_frames(tmp_path / "organs.nii.gz").volumes
    ml = [np.count_nonzero(v.array == 1) * v.geometry.voxel_ml for v in volumes]
    assert liver == ["liver", *(f"{volume:.1f}" for volume in ml)]
    assert printed.count("Taken for MR") == 1
    assert "volume 1: Pieces apart" in printed


def test_files_of_one_volume_do_not_take_several(models, cine, tmp_path, capsys):
    assert run("segment", cine, "-o", tmp_path / "organs.seg.nrrd") == 3
    assert "holds 2 volumes, and organs.seg.nrrd can hold one" in capsys.readouterr().err
    sure = ("--confidence", tmp_path / "sure.nrrd")
    assert run("segment", cine, "-o", tmp_path / "organs.nii.gz", *sure) == 3
    assert "sure.nrrd can hold one" in capsys.readouterr().err
    assert not (tmp_path / "organs.nii.gz").exists()
