# SPDX-License-Identifier: Apache-2.0
"""A file is there whole or not at all."""

import pytest

from SRCSMSegmenterLib.atomic import atomic_write


def write_half(path, error):
    with atomic_write(path) as temporary:
        temporary.write_text("ha")
        raise error


def test_what_was_written_appears_under_its_name_alone(tmp_path):
    with atomic_write(tmp_path / "scan é.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("scan é.nii.gz")
        temporary.write_bytes(b"new")
        assert not (tmp_path / "scan é.nii.gz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["scan é.nii.gz"]
    assert (tmp_path / "scan é.nii.gz").read_bytes() == b"new"


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path, OSError("disk full"))
    assert [p.name for p in tmp_path.iterdir()] == ["boxes.json"]
    assert path.read_text() == "old"


def test_an_interruption_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_written_over(tmp_path):
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"whole")
        name = temporary.name
    (tmp_path / name).write_bytes(b"half")
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_that_share_a_file_do_not_share_the_other_name(tmp_path, monkeypatch):
    with atomic_write(tmp_path / "a", shared=True) as first:
        first.write_bytes(b"first")
        monkeypatch.setattr("os.getpid", lambda: 4711)
        with atomic_write(tmp_path / "a", shared=True) as second:
            second.write_bytes(b"second")
        assert first != second
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
