# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there, and never code."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from srcsm_training.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from srcsm_training.engine.run_folder import state_to_resume
from SRCSMSegmenterLib import atomic

OLDER = {"step": 1, "weights": torch.arange(3.0)}
STATE = {
    "step": 2,
    "nan": float("nan"),
    "curve": [{"step": 1, "dice": [0.25, 0.5]}],
    "weights": {"a": torch.arange(60_000.0), "b": torch.tensor([1, 2], dtype=torch.bfloat16)},
}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", OLDER)
    return tmp_path / "run" / "checkpoints" / "last.pt"


def assert_is_older(path):
    assert load_checkpoint(path)["step"] == 1
    assert load_checkpoint(path)["weights"].tolist() == [0, 1, 2]
    assert os.listdir(path.parent) == ["last.pt"]


def test_what_is_loaded_is_what_was_saved_and_replaces_the_older(path):
    save_checkpoint(path, STATE)
    loaded = load_checkpoint(path)
    assert loaded["step"] == 2
    assert loaded["nan"] != loaded["nan"]
    assert loaded["curve"] == STATE["curve"]
    for name, value in STATE["weights"].items():
        assert torch.equal(loaded["weights"][name], value)
        assert loaded["weights"][name].dtype == value.dtype
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_file_that_cannot_grow_leaves_the_older_one_whole(path):
    """A real failing write, as on a full disk, in a process of its own."""
    pytest.importorskip("resource")  # not on Windows
    code = f"""
import resource, torch
from pathlib import Path
from srcsm_training.engine.checkpoint import CheckpointError, save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path({str(path)!r}), {{"weights": torch.zeros(60_000)}})
except CheckpointError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert str(path) in found
    assert "File too large" in found
    assert found.count("\n") == 1
    assert_is_older(path)


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_full_disk_at_the_last_moment_leaves_the_older_one_whole(monkeypatch, path, step):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, step, full)
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            save_checkpoint(path, STATE)
    assert str(path) in str(caught.value)
    assert_is_older(path)


def test_the_bytes_are_on_disk_before_the_name_is(monkeypatch, path):
    steps = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            atomic.os,
            name,
            lambda *args, name=name, original=original: steps.append(name) or original(*args),
        )
    save_checkpoint(path, STATE)
    assert steps == ["fsync", "replace"]


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another run folder"):
        save_checkpoint(tmp_path / "file" / "last.pt", OLDER)


def test_a_half_written_file_of_a_killed_process_does_no_harm(path):
    with pytest.raises(FileNotFoundError), atomic.atomic_write(path) as temporary:
        temporary.unlink()
    temporary.write_bytes(b"half")
    os.utime(temporary, (0, 0))
    assert load_checkpoint(path)["step"] == 1
    save_checkpoint(path, STATE)
    assert load_checkpoint(path)["step"] == 2
    assert os.listdir(path.parent) == ["last.pt"]


@pytest.mark.parametrize("content", [[1], 5, {}, {"a": 1}, {"identity": {}, "network": 5}])
def test_a_file_that_holds_something_else_is_no_checkpoint(path, content):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        state_to_resume(path.parents[1], {})


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_checkpoint_cut_short_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"no checkpoint", b"\x80\x02}q\x00X", b"PK\x03\x04" + bytes(99), bytes(999)]
)
def test_a_file_of_something_else_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt \(No such file"):
        load_checkpoint(tmp_path / "none.pt")


class Malicious:
    def __reduce__(self):
        return (os.mkdir, (os.environ["SRCSM_TEST_TRAP"],))


def test_loading_runs_no_code(monkeypatch, tmp_path):
    trap = tmp_path / "sprung"
    monkeypatch.setenv("SRCSM_TEST_TRAP", str(trap))
    torch.save({"step": Malicious()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "last.pt")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert trap.exists()  # the trap works
