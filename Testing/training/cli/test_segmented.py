# SPDX-License-Identifier: Apache-2.0
"""The record of segmented scans: what counts as done, and what does not."""

import os
from dataclasses import replace

import pytest

from srcsm_training.cli.outputs import output_files
from srcsm_training.cli.segmented import SegmentedRecord, earlier_results
from SRCSMSegmenterLib.errors import ConfigError


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(b"scan")
    return path


@pytest.fixture
def results(tmp_path):
    (tmp_path / "labels").mkdir()
    paths = [tmp_path / "labels" / name for name in ("scan.nii.gz", "scan_confidence.nii.gz")]
    for path in paths:
        path.write_bytes(b"result")
    return paths


@pytest.fixture
def record(scan, results):
    record = SegmentedRecord(results[0].parent, {"model": "a", "modality": None})
    record.add(scan, results)
    return replace(record)  # as another process finds it


def test_results_of_these_settings_are_there(record, scan, results):
    assert record.differences(scan, results) == []
    assert record.differences(scan, results[:1]) == []


def test_without_a_result_or_its_line_a_scan_is_missing(record, scan, results):
    other = results[0].with_name("other.nii.gz")
    other.write_bytes(b"result")
    assert record.differences(scan, [other]) is None
    assert record.differences(scan, [*results, other]) is None
    results[1].unlink()
    assert record.differences(scan, results) is None


def test_settings_that_differ_are_named(record, scan, results):
    other = replace(record, settings={"model": "b", "modality": None, "series": "1"})
    assert other.differences(scan, results) == ["model", "series"]


def test_a_scan_that_was_exchanged_is_told(record, scan, results):
    scan.write_bytes(b"another scan")
    assert record.differences(scan, results) == ["scan"]


def test_a_series_with_a_slice_more_is_another_scan(tmp_path, results):
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM0").write_bytes(b"slice")
    record = SegmentedRecord(results[0].parent, {})
    record.add(series, results)
    (series / "IM1").write_bytes(b"slice")
    assert record.differences(series, results) == ["scan"]


def test_a_result_that_someone_else_wrote_over_does_not_count(record, scan, results):
    results[0].write_bytes(b"edited")
    os.utime(results[0], ns=(1, 1))
    assert record.differences(scan, results) is None


def test_a_result_made_again_with_other_settings_is_of_those(record, scan, results):
    other = SegmentedRecord(record.folder, {"model": "b", "modality": None})
    for path in results:
        path.write_bytes(b"other result")
    other.add(scan, results)
    assert replace(record).differences(scan, results) == ["model"]
    assert replace(other).differences(scan, results) == []


def test_lines_of_all_processes_count_and_half_written_ones_are_passed_over(
    record, scan, results, monkeypatch
):
    path = record.folder / "segmented.jsonl"
    text = path.read_text("utf-8")
    path.write_text(text[: len(text) // 2], "utf-8")
    assert replace(record).differences(scan, results) is None
    monkeypatch.setenv("RANK", "1")
    record.add(scan, results)
    assert (record.folder / "segmented-1.jsonl").exists()
    assert replace(record).differences(scan, results) == []


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"scan": "a", "changed": [1, 2], "results": ["scan.nii.gz"], "settings": {}}',
        '{"scan": "a", "changed": [1, 2], "results": {"scan.nii.gz": [1, 2]}, "settings": 3}',
        "[" * 5000,
    ],
)
def test_lines_of_another_form_are_passed_over(record, scan, results, line):
    path = record.folder / "segmented.jsonl"
    path.write_text(f"{line}\n{path.read_text('utf-8')}{line}\n", "utf-8")
    assert replace(record).differences(scan, results) == []


def test_the_record_is_neither_a_link_nor_a_pipe(record, scan, results, tmp_path):
    path = record.folder / "segmented.jsonl"
    path.unlink()
    (tmp_path / "thesis.txt").write_text("years of work")
    path.symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(OSError, match="link"):
        record.add(scan, results)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        assert replace(record).differences(scan, results) is None


def test_results_of_earlier_calls_are_found_by_their_records(record, results, tmp_path):
    assert earlier_results([tmp_path, tmp_path / "scan.nii"]) == results
    assert earlier_results([tmp_path / "none"]) == []


def test_two_scans_of_one_name_are_named(tmp_path):
    scans = [tmp_path / "ct.nii", tmp_path / "mr.nii", tmp_path / "ct.nrrd"]
    with pytest.raises(ConfigError, match=r"ct\.nii and .*ct\.nrrd would both be written"):
        output_files(scans, tmp_path / "labels")


def test_several_scans_do_not_share_a_file(tmp_path):
    scans = [tmp_path / "ct.nii", tmp_path / "mr.nii"]
    with pytest.raises(ConfigError, match="2 scans; give a folder"):
        output_files(scans, tmp_path / "labels.nii.gz")
    assert not list(tmp_path.iterdir())
