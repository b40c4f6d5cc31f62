# SPDX-License-Identifier: Apache-2.0
"""A file or folder is there whole or not at all."""

import os
import time
from contextlib import nullcontext

import pytest

from SRCSMSegmenterLib.atomic import (
    STALE,
    append_line,
    atomic_folder,
    atomic_write,
    recover,
    recover_all,
)


def write_half(path, error):
    with atomic_write(path) as temporary:
        temporary.write_text("ha")
        raise error


def test_what_was_written_appears_under_its_name_alone(tmp_path):
    with atomic_write(tmp_path / "scan é.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
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


def test_what_a_killed_process_left_is_removed_by_a_later_write_of_that_file(tmp_path):
    with atomic_write(tmp_path / "a") as temporary:
        left, young, other = (temporary.with_name(f"{temporary.name}{n}") for n in range(3))
        other = other.with_name(other.name.replace(".part-", ".part-0"))
        for path in (left, young, other):
            path.write_bytes(b"half")
    long_ago = time.time() - 2 * STALE
    for path in (left, other):
        os.utime(path, (long_ago, long_ago))
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", young, other])


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "a") as first:
        first.write_bytes(b"first")
        with atomic_write(tmp_path / "a") as second:
            second.write_bytes(b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    """Neither through the target's own, nor through one with the temporary's name."""
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "a").symlink_to(tmp_path / "thesis.txt")
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    temporary.symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_name_as_long_as_a_disk_takes_can_be_written(tmp_path):
    path = tmp_path / f"{'é' * 124}.nii.gz"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_result_may_be_read_by_those_who_may_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    with atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


# lines


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "record"
    append_line(path, "é")
    path.write_bytes(path.read_bytes() + b"half")
    append_line(path, "two")
    append_line(path, "three")
    assert path.read_text("utf-8") == "é\nhalf\ntwo\nthree\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are a POSIX matter")
def test_no_line_goes_through_a_link_or_waits_for_a_pipe(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "thesis.txt")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere", "pipe"):
        with pytest.raises(OSError, match="link"):
            append_line(tmp_path / name, "a line")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "absent").exists()


# folders


def put(folder, content):
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text(content)


class Killed(BaseException):
    """Nothing after it is done, as after kill -9."""


def killed_after(steps, monkeypatch):
    """Let the process die after some of the system calls that replace a folder."""
    for name in ("replace", "unlink", "rmdir"):
        real = getattr(os, name)

        def call(*arguments, real=real, **options):
            nonlocal steps
            if steps == 0:
                raise Killed
            steps -= 1
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("steps", range(5))
def test_a_folder_is_the_old_or_the_new_one_wherever_its_replacement_is_cut_off(
    tmp_path, monkeypatch, steps
):
    folder = tmp_path / "model"
    put(folder, "old")
    with monkeypatch.context() as patch:
        killed_after(steps, patch)
        with pytest.raises(Killed) if steps < 4 else nullcontext():
            put(folder, "new")
    recover_all(tmp_path)
    assert (folder / "a").read_text() == ("old" if steps < 2 else "new")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".old")]
    put(folder, "newer")
    assert (folder / "a").read_text() == "newer"


def test_a_folder_that_fails_leaves_the_older_one_alone(tmp_path):
    put(tmp_path / "model", "old")
    with pytest.raises(TypeError):
        put(tmp_path / "model", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "old"


def test_a_reader_between_the_two_renames_takes_nothing_from_the_writer(tmp_path, monkeypatch):
    """The reader puts the old folder back; the writer tries again."""
    folder = tmp_path / "model"
    put(folder, "old")
    replace, seen = os.replace, []

    def slow(source, target):
        replace(source, target)
        if not seen:
            seen.append((source, target))
            recover(folder)
            assert (folder / "a").read_text() == "old"

    monkeypatch.setattr(os, "replace", slow)
    put(folder, "new")
    assert (folder / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
