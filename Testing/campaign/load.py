# SPDX-License-Identifier: Apache-2.0
"""The worker under load: jobs queued and cancelled at random, and clients without its token."""

import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import Trial

from srcsm_training.cli.worker import TOKEN_VARIABLE
from SRCSMSegmenterLib.worker.client import Job, Worker, WorkerError

JOBS = 200
"""Jobs queued at a time."""

CLIENTS = 50
PATIENCE = 120.0
GROWTH = 100 << 20
"""Bytes by which the worker may grow over the campaign."""

TOKEN = "the token of this campaign"

SERVER = """
import sys
from srcsm_training.cli import main, worker
worker.TASKS = ["worker_tasks"]
sys.exit(main.main(["worker", "--listen", "0"]))
"""


class Load:
    """A worker of the campaign's own, and one behind a socket."""

    name = "load"

    def __init__(self, folder: Path) -> None:
        """Start both workers."""
        self.worker = Worker(["worker_tasks"], folder=folder)
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, TOKEN_VARIABLE: TOKEN}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = ""
        while not self.address and (line := self.server.stderr.readline()):
            found = re.search(r"127\.0\.0\.1:\d+", line)
            self.address = found[0] if found else ""
        if not self.address:
            raise RuntimeError("The worker behind a socket did not start.")
        threading.Thread(target=self.server.stderr.read, daemon=True).start()
        self.first_memory: int | None = None

    def trial(self, number: int, seed: int) -> Trial:
        """Queue and cancel jobs, or send strangers to the socket."""
        generator = random.Random(f"{seed} {number}")
        kind, trial = (("jobs", self._jobs), ("strangers", self._strangers))[number % 2]
        fault = trial(generator)
        return Trial(self.name, kind, number, "failed" if fault else "held", fault)

    def close(self) -> None:
        """End both workers."""
        self.worker.stop()
        self.server.terminate()
        self.server.wait(PATIENCE)

    def _jobs(self, generator: random.Random) -> str:
        array = np.arange(generator.randrange(1, 10_000), dtype=np.int32)
        jobs = [self._submitted(generator, array) for _ in range(JOBS)]
        end = time.monotonic() + PATIENCE
        unwanted = {job for job in jobs if generator.random() < 0.5 or job.task == "obedient"}
        for job in sorted(unwanted, key=lambda job: generator.random()):
            job.cancel()
            self.worker.pump(generator.uniform(0, 0.01))
        while not all(job.finished for job in jobs):
            self.worker.pump(0.05)
            if time.monotonic() > end:
                return f"{sum(not job.finished for job in jobs)} jobs never ended"
        return self._wrong(jobs, array) or self._grown()

    def _submitted(self, generator: random.Random, array: np.ndarray) -> Job:
        task = generator.choice(("double", "double", "echo", "obedient", "fail"))
        parameters = {"kind": "volume"} if task == "fail" else {"n": generator.randrange(100)}
        return self.worker.submit(task, parameters, {"a": array} if task == "double" else {})

    def _wrong(self, jobs: Sequence[Job], array: np.ndarray) -> str:
        for job in jobs:
            if job.state == "failed" and job.task != "fail":
                return f"{job.task} failed: {job.error}"
            doubled = job.state == "done" and job.task == "double"
            if doubled and not np.array_equal(job.reply.arrays["a"], 2 * array):
                return "another job's array"
        return ""

    def _grown(self) -> str:
        pid = self.worker.submit("where").wait(PATIENCE).values["pid"]
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        memory = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))
        self.first_memory = self.first_memory or memory
        grown = memory - self.first_memory
        return f"the worker grew by {grown >> 20} MiB" if grown > GROWTH else ""

    def _strangers(self, generator: random.Random) -> str:
        """Connect without the token, all at once; the owner is served all the same."""
        threads = [
            threading.Thread(target=_intrude, args=(self.address, generator.randbytes(40), n))
            for n in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            with Worker(address=self.address, token=TOKEN) as owner:
                reply = owner.submit("echo", {"n": 7}).wait(PATIENCE)
        except (WorkerError, TimeoutError) as error:
            return f"the owner was not served: {error}"
        for thread in threads:
            thread.join(PATIENCE)
        if self.server.poll() is not None:
            return f"the server ended with {self.server.returncode}"
        return "" if reply.values == {"n": 7} else "another reply"


def _intrude(address: str, content: bytes, number: int) -> None:
    """Send a wrong token, bytes at random, or nothing."""
    host, port = address.rsplit(":", 1)
    if number % 3 == 0:
        with Worker(address=address, token=content.hex()) as stranger:
            try:
                stranger.submit("echo", {}).wait(PATIENCE)
            except (WorkerError, TimeoutError):
                return
            os._exit(70)  # a stranger was served
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            if number % 3 == 1:
                connection.sendall(content)
            connection.settimeout(2)
            connection.recv(1000)
    except OSError:
        return
