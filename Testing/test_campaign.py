# SPDX-License-Identifier: Apache-2.0
"""A sample of the campaign, and that the campaign sees what goes wrong."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import record
import verdicts
from record import Trial

from SRCSMSegmenterLib.errors import VolumeError

TESTING = Path(__file__).parent

SAMPLE = {"bad_input": 80, "writers": 8, "faults": 3, "unruly": 6, "load": 2}
"""Trials of each part; the seed makes them the same in every run of the tests."""


def fail(error):
    def call(_):
        raise error

    return call


@pytest.fixture
def attempt(tmp_path):
    """Return a function that tries a call in a child, which is ended with the test."""
    started = []

    def once(call, argument=None):
        started.append(verdicts.Attempts(call, tmp_path))
        return started[-1](argument)

    yield once
    for attempts in started:
        attempts.close()


def test_what_is_returned_and_what_is_refused_is_told_apart(attempt):
    assert attempt(lambda n: [n, "a"], 1) == verdicts.Verdict("accepted", "", [1, "a"])
    refused = attempt(fail(VolumeError("No scan.")))
    assert refused == verdicts.Verdict("refused", "No scan.")


def test_the_calls_after_one_that_killed_its_child_are_served(monkeypatch):
    monkeypatch.setattr(verdicts, "CALLS", 3)
    attempts = verdicts.Attempts(lambda n: os.getpid() if n else os._exit(5))
    ended = [attempts(n) for n in (1, 1, 0, 1, 1, 1, 1)]
    attempts.close()
    assert [verdict.outcome for verdict in ended] == ["accepted"] * 2 + ["died"] + ["accepted"] * 4
    assert ended[2].message == "exit code 5"
    first, second, third, *more, last = [v.result for v in ended if v.result]
    assert first == second != third == more[0] == more[1] != last


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (fail(ValueError("raw")), "raw error"),
        (fail(VolumeError("\x1b[31m")), "unreadable message"),
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), "died"),
        (lambda _: bytearray(6 << 30), "raw error"),
        (lambda _: os.system("true"), "reached out"),
        (lambda _: os.open("/dev/full", os.O_WRONLY), "reached out"),
    ],
)
def test_every_fault_has_its_outcome(attempt, call, outcome):
    assert attempt(call).outcome == outcome


def test_a_file_may_be_written_within_the_folder(attempt, tmp_path):
    assert attempt(lambda _: (tmp_path / "a").write_text("b")).outcome == "accepted"


def test_a_call_without_end_is_ended(attempt, monkeypatch):
    monkeypatch.setattr(verdicts, "SECONDS", 0.5)
    assert attempt(lambda _: time.sleep(60)).outcome == "hangs"


def test_a_record_counts_what_held_and_lists_what_failed(tmp_path):
    path = tmp_path / "trials.jsonl"
    for number, outcome in enumerate(("accepted", "refused", "raw error", "raw error")):
        record.append(path, Trial("damaged input", "NRRD", number, outcome))
    with path.open("a") as file:
        file.write('{"part": "cut o')
    table = record.table(record.read(path))
    assert "| damaged input | 4 | 2 | 2 |" in table
    assert "| damaged input | NRRD | raw error | 2 |" in table


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="its system calls are Linux's"
)
def test_a_sample_of_the_campaign_holds(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTING / "helpers"), "OMP_NUM_THREADS": "1"}
    for part, trials in SAMPLE.items():
        command = [sys.executable, str(TESTING / "campaign"), "--only", part]
        command += ["--trials", str(trials), "--budget", "30", "--out", str(tmp_path)]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(record.read(tmp_path / "trials.jsonl")) == sum(SAMPLE.values())
