# SPDX-License-Identifier: Apache-2.0
"""A worker that dies, hangs or answers garbage, and jobs that are cancelled at random times.

The client says one sentence, starts the worker again if need be, and does all other jobs.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from mutations import mutate
from record import Trial

from SRCSMSegmenterLib.worker.client import Job, Worker
from SRCSMSegmenterLib.worker.protocol import PROTOCOL

KINDS = ("dies", "is killed", "hangs", "is stopped", "answers garbage", "is cancelled")

PATIENCE = 60.0
LONGEST = 500
"""Characters of an error that counts as a sentence."""

FIRST_TIME = """
import json, os, sys, time
garbage, mark = sys.argv[1:3]
if os.path.exists(mark):
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
open(mark, "x").close()
print(json.dumps({"hello": {"protocol": %d, "tasks": []}}), flush=True)
sys.stdin.readline()
with open(garbage, "rb") as file:
    sys.stdout.buffer.write(file.read())
sys.stdout.flush()
time.sleep(600)
"""
"""What answers garbage when it is first started, and is a worker from the second time on."""


class Unruly:
    """A source of jobs that go wrong in the middle of others, each told by its number."""

    name = "unruly worker"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial(self, number: int, seed: int) -> Trial:
        """Queue jobs of which the second goes wrong, and look at what became of all."""
        generator = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        command = self._garbage(generator) if kind == "answers garbage" else None
        with Worker(["worker_tasks"], command=command, folder=self.folder, grace=0.3) as worker:
            fault = self._fault(worker, kind, generator)
        if not fault and (left := list(self.folder.glob("srcsm-worker-*"))):
            fault = f"left behind: {left[0].name}"
        outcome = "failed" if fault else "held"
        return Trial(self.name, kind, number, outcome, fault)

    def _fault(self, worker: Worker, kind: str, generator: random.Random) -> str:
        array = np.arange(generator.randrange(1, 100_000))
        # What answers garbage does so to the first job, the others begin after one that is done.
        before = [] if kind == "answers garbage" else [worker.submit("double", {}, {"a": array})]
        pid = before[0].wait(PATIENCE).values["pid"] if before else 0
        victim = self._victim(worker, kind, generator)
        after = [worker.submit("double", {}, {"a": array}) for _ in range(3)]
        self._disturb(worker, pid, victim, kind, generator)
        if kind == "answers garbage" and victim.error is None and victim.finished:
            return ""  # the damage left it a right answer; the next job would not be answered
        end = time.monotonic() + PATIENCE
        while not all(job.finished for job in (victim, *after)):
            worker.pump(0.05)
            if time.monotonic() > end:
                return "a job never ended"
        for job in (*before, *after):
            if job.error:
                return f"another job failed: {job.error}"
            if not np.array_equal(job.reply.arrays["a"], 2 * array):
                return "another job's array"
        return _unclear(victim, kind)

    def _victim(self, worker: Worker, kind: str, generator: random.Random) -> Job:
        if kind == "dies":
            return worker.submit("die", {"how": generator.choice(("exit", "kill", "segfault"))})
        task = {"hangs": "deaf", "answers garbage": "echo"}.get(kind, "obedient")
        return worker.submit(task)

    def _disturb(
        self, worker: Worker, pid: int, victim: Job, kind: str, generator: random.Random
    ) -> None:
        """Do to the worker what is to be done after a random delay, and cancel if it hangs."""
        end = time.monotonic() + generator.uniform(0, 0.5)
        while time.monotonic() < end and not victim.finished:
            worker.pump(0.01)
        if kind in ("is killed", "is stopped"):
            number = signal.SIGKILL if kind == "is killed" else signal.SIGSTOP
            os.kill(pid, number)
        if kind == "answers garbage":
            end = time.monotonic() + 3
            while time.monotonic() < end and not victim.finished:
                worker.pump(0.05)
        if kind not in ("dies", "is killed"):
            victim.cancel()

    def _garbage(self, generator: random.Random) -> list[str]:
        """Write an answer that is damaged, or random bytes, and return the worker that sends it."""
        answers = ({"id": 1, "reply": {}}, {"id": 1, "progress": ["a", 0.5]}, {"id": 1, "log": "a"})
        line = json.dumps(generator.choice(answers)).encode()
        line = mutate(line, generator.choice(("json", "binary", "text")), generator)
        if generator.random() < 0.2:
            line = generator.randbytes(generator.randrange(1, 5000))
        garbage, mark = self.folder / "garbage", self.folder / "mark"
        garbage.write_bytes(line + b"\n" * generator.randrange(2))
        mark.unlink(missing_ok=True)
        return [sys.executable, "-c", FIRST_TIME % PROTOCOL, str(garbage), str(mark)]


def _unclear(victim: Job, kind: str) -> str:
    """Describe what is wrong with how a job ended; "" if nothing is."""
    if victim.error is None:
        return "" if kind in ("answers garbage", "is cancelled") else "it was done"
    sentence = victim.error.sentence
    if "\n" in sentence or not sentence.endswith(".") or len(sentence) > LONGEST:
        return f"no sentence: {sentence[:LONGEST]}"
    wanted = {"dies": "WorkerDied", "is killed": "WorkerDied"}.get(kind)
    if wanted and victim.error.kind != wanted:
        return f"{victim.error.kind}: {sentence}"
    return ""
