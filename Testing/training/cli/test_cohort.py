# SPDX-License-Identifier: Apache-2.0
"""Scans that arguments and folders name, and how processes share them."""

from pathlib import Path

import pytest

from srcsm_training.cli.cohort import FoundScan, find_scans, own_device, own_share
from srcsm_training.cli.outputs import output_files
from SRCSMSegmenterLib.errors import ConfigError


def touch(folder, *names, content=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def dicom(folder, *names):
    touch(folder, *names, content=bytes(128) + b"DICM...")


def named(folder, found):
    return {scan.path.relative_to(folder).as_posix(): scan.name for scan in found}


def test_a_folder_gives_its_files_and_the_dicom_series_below_it(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.mha", "c.nrrd", "site/d.NII", "site/deeper/e.mhd", "e.raw")
    touch(tmp_path, "._b.nii.gz", ".hidden/f.nii", "a.seg.nrrd", "notes.txt", "empty/notes.txt")
    dicom(tmp_path, "patient/series1/IM0", "patient/series2/IM0", "DICOMDIR")
    assert named(tmp_path, find_scans([tmp_path])) == {
        "a.mha": "a",
        "b.nii.gz": "b",
        "c.nrrd": "c",
        "patient/series1": "patient/series1",
        "patient/series2": "patient/series2",
        "site/d.NII": "site/d",
        "site/deeper/e.mhd": "site/deeper/e",
    }


def test_a_folder_of_dicom_files_is_one_scan_whatever_lies_beside_them(tmp_path):
    dicom(tmp_path, "ct/IM0", "ct/IM1")
    touch(tmp_path, "ct/organs.nii.gz")
    assert find_scans([tmp_path / "ct"]) == [FoundScan(tmp_path / "ct", "ct")]


def test_series_below_a_stray_dicom_file_are_found_too(tmp_path):
    dicom(tmp_path, "all/patient/report", "all/patient/ct/IM0")
    touch(tmp_path, "all/patient/organs.nii.gz", "all/patient/mr/t2.nii.gz")
    assert named(tmp_path, find_scans([tmp_path / "all"])) == {
        "all/patient": "patient",
        "all/patient/ct": "patient/ct",
        "all/patient/mr/t2.nii.gz": "patient/mr/t2",
    }


@pytest.mark.parametrize("head", [b"\x08\x00\x05\x00CS", b"\x02\x00\x00\x00UL"])
def test_dicom_files_without_a_preamble_are_known(tmp_path, head):
    touch(tmp_path, "all/old/IM0", content=head)
    assert named(tmp_path, find_scans([tmp_path / "all"])) == {"all/old": "old"}


def test_files_and_paths_without_a_scan_are_kept_so_that_reading_tells_what_is_wrong(tmp_path):
    touch(tmp_path, "empty/notes.txt", "a.seg.nrrd")
    paths = [tmp_path / name for name in ("absent.nii", "empty", "a.seg.nrrd")]
    names = ["absent", "empty", "a"]
    assert find_scans(paths) == [FoundScan(*scan) for scan in zip(paths, names, strict=True)]


def test_results_below_a_folder_are_not_taken_for_scans(tmp_path):
    touch(tmp_path, "a.nii", "labels/a.nii", "sure.nii")
    found = find_scans([tmp_path], [tmp_path / "labels", tmp_path / "sure.nii"])
    assert named(tmp_path, found) == {"a.nii": "a"}


def test_results_do_not_go_into_a_folder_that_is_searched(tmp_path):
    touch(tmp_path, "scans/a.nii")
    with pytest.raises(ConfigError, match="another folder"):
        find_scans([tmp_path / "scans"], [tmp_path / "." / "scans"])
    find_scans([tmp_path / "scans" / "a.nii"], [tmp_path / "scans"])


def test_links_in_a_circle_give_each_scan_once(tmp_path):
    touch(tmp_path, "site/a.nii")
    (tmp_path / "site" / "up").symlink_to(tmp_path)
    assert named(tmp_path, find_scans([tmp_path])) == {"site/a.nii": "site/a"}


def test_processes_share_items_without_overlap(monkeypatch):
    assert own_share(range(7)) == range(7)
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(list(own_share(range(7))))
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_processes_of_a_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    devices = []
    for number in "012":
        monkeypatch.setenv("LOCAL_RANK", number)
        devices.append(own_device("auto"))
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    assert own_device("cuda:1") == "cuda:1"
    assert own_device("cpu") == "cpu"


def test_a_path_that_is_a_link_keeps_the_name_the_user_gave_it(tmp_path):
    touch(tmp_path, "store/0815.nii")
    (tmp_path / "cohort").mkdir()
    link = tmp_path / "cohort" / "patient.nii"
    link.symlink_to(Path("..") / "store" / "0815.nii")
    assert find_scans([tmp_path / "cohort"]) == [FoundScan(link, "patient")]


def test_a_folder_that_cannot_be_searched_costs_no_other_scan(tmp_path, monkeypatch):
    touch(tmp_path, "a.nii.gz", "secret/b.nii.gz")
    listed = Path.iterdir

    def refuse(folder):
        if folder.name == "secret":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert named(tmp_path, find_scans([tmp_path])) == {"a.nii.gz": "a", "secret": "secret"}


def test_links_that_lead_to_themselves_are_scans_that_cannot_be_read(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "folder").symlink_to("folder")
    found = named(tmp_path, find_scans([tmp_path]))
    assert found == {"a.nii.gz": "a", "loop.nii.gz": "loop"}
    output_files([tmp_path / "loop.nii.gz"], tmp_path / "out.nii.gz")
