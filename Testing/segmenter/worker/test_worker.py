# SPDX-License-Identifier: Apache-2.0
"""The worker: results, order, cancelling, crashes, deaths, and nothing left behind.

Most tests share one worker process, which has the tasks of worker_tasks.py and never loads torch.
"""

import hmac
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from random_network import a_random_bundle

from srcsm_training.cli import worker as worker_command
from SRCSMSegmenterLib.errors import ConfigError, VolumeError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import ModelBundle, load_bundle, save_bundle
from SRCSMSegmenterLib.worker import authentication, connections
from SRCSMSegmenterLib.worker.client import GRACE, Worker, WorkerError
from SRCSMSegmenterLib.worker.protocol import PROTOCOL, RequestError, as_worker_error
from SRCSMSegmenterLib.worker.server import MOST_STRANGERS, Server
from SRCSMSegmenterLib.worker.tasks import Models, segmented_scan

TESTING = Path(__file__).resolve().parents[2] / "helpers"
TOKEN = "a token of these tests"
PATIENCE = 60.0
"""Seconds until a test gives up; a loaded machine is slow, not wrong."""

ARRAYS = {
    "big-endian": np.arange(24, dtype=">i2").reshape(2, 3, 4),
    "one number": np.array(3.5),
    "empty": np.zeros((0, 3)),
    "columns first": np.asfortranarray(np.arange(60.0).reshape(3, 4, 5)),
    "every second": np.arange(8, dtype=np.float16)[::2],
    "backwards": np.arange(6, dtype=np.uint8)[::-1],
    "bool": np.array([[True], [False]]),
    "of several blocks": np.arange(3 << 20, dtype=np.float64).reshape(3, 1 << 20),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker for all tests that leave it alive."""
    with Worker(["worker_tasks"], folder=tmp_path_factory.mktemp("arrays")) as worker:
        yield worker


@pytest.fixture
def make_worker(tmp_path):
    """Workers of a test's own; their arrays are in tmp_path, and nothing may stay there."""
    made = []

    def make(**options) -> Worker:
        made.append(Worker(**{"tasks": ["worker_tasks"], "folder": tmp_path, **options}))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()
    assert private_folders(tmp_path) == []


def private_folders(parent: Path) -> list[Path]:
    return sorted(parent.glob("srcsm-worker-*"))


def do(worker: Worker, task: str, parameters=None, arrays=None):
    return worker.submit(task, parameters or {}, arrays or {}).wait(PATIENCE)


def failure(worker: Worker, task: str, parameters=None, arrays=None) -> WorkerError:
    with pytest.raises(WorkerError) as raised:
        do(worker, task, parameters, arrays)
    return raised.value


def until(condition, worker: Worker | None = None) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        if worker:
            worker.pump(0.01)
        else:
            time.sleep(0.01)


def at_work(worker: Worker, task: str, parameters=None, **options):
    """A job that has reported its first progress."""
    job = worker.submit(task, parameters or {}, **options)
    until(lambda: job.stage != "start", worker)
    return job


def pid_of(worker: Worker) -> int:
    return do(worker, "where").values["pid"]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead; whoever started it has not asked yet


# Results


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_travel_as_they_are(shared, name):
    array = ARRAYS[name]
    before = array.copy()
    found = do(shared, "double", {}, {name: array}).arrays[name]
    expected = array * 2
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(array, before)
    if found.size:
        found[...] = 1  # a result can be written into


def test_parameters_travel_as_they_are(shared):
    parameters = {"text": 'a "b"\n é 肝 \x00', "none": None, "list": [1, [2.5, {"x": True}]]}
    assert do(shared, "echo", parameters).values == parameters


def test_the_process_stays_and_imports_no_torch(shared):
    first, second = (do(shared, "where").values for _ in range(2))
    assert first["pid"] == second["pid"] != os.getpid()
    assert not first["torch"]


def test_the_client_imports_nothing_heavy():
    code = (
        "import sys, SRCSMSegmenterLib.worker.client, SRCSMSegmenterLib.worker.tasks\n"
        "print({'torch', 'scipy', 'SimpleITK', 'slicer', 'qt', 'vtk'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "set()\n"


def test_models_stay_loaded_from_one_job_to_the_next(shared):
    loads = [do(shared, "count", {"model": m}).values["loads"] for m in "aabaa"]
    assert loads == [1, 1, 2, 2, 2]


def test_the_models_used_last_are_kept():
    models, loaded = Models(limit=2), []
    for key in "abacab":
        assert models.get(key, lambda key=key: loaded.append(key) or key) == key
    assert loaded == ["a", "b", "c", "b"]


def test_callbacks_come_from_pump_alone(shared):
    threads, ends = [], []
    job = shared.submit(
        "many_steps",
        progress=lambda stage, fraction: threads.append(threading.get_ident()),
        done=ends.append,
    )
    time.sleep(0.3)
    assert not threads
    assert not ends
    until(job.poll)
    assert set(threads) == {threading.get_ident()}
    assert ends == [job]


def test_progress_rises_to_the_end_without_a_flood(shared):
    seen = []
    job = shared.submit("many_steps", progress=lambda *step: seen.append(step))
    job.wait(PATIENCE)
    assert seen[0] == ("half", 0.0)
    assert seen[-1] == ("end", 1.0) == (job.stage, job.fraction)
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)
    assert len(seen) < 2000


# Order


def test_jobs_are_done_in_order(shared):
    ended = []
    jobs = [
        shared.submit("echo", {"n": n}, done=lambda job: ended.append(job.reply.values["n"]))
        for n in range(5)
    ]
    assert [job.state for job in jobs] == ["running", *["queued"] * 4]
    jobs[-1].wait(PATIENCE)
    assert ended == [0, 1, 2, 3, 4]


def test_a_queued_job_can_be_cancelled(shared):
    first, second, third = (shared.submit("echo", {"n": n}) for n in range(3))
    second.cancel()
    third.wait(PATIENCE)
    assert [job.state for job in (first, second, third)] == ["done", "cancelled", "done"]


def test_a_job_may_be_submitted_from_the_end_of_another(shared):
    following = []
    shared.submit("echo", done=lambda job: following.append(shared.submit("echo", {"n": 2})))
    until(lambda: following, shared)
    assert following[0].wait(PATIENCE).values == {"n": 2}


# Cancelling


def test_cancelling_acts_within_a_second():
    assert GRACE < 1


@pytest.mark.parametrize("task", ["obedient", "slow_to_write"])
def test_cancelling_leaves_the_worker_warm(make_worker, task):
    worker = make_worker(grace=PATIENCE)
    pid, ends = pid_of(worker), []
    job = worker.submit(task, done=lambda job: ends.append(job.state))
    until(lambda: job.stage != "start", worker)
    job.cancel()
    with pytest.raises(WorkerError) as raised:
        job.wait(PATIENCE)
    assert raised.value.kind == "Cancelled"
    assert ends == ["cancelled"]
    assert pid_of(worker) == pid
    assert files(worker) == []


@pytest.mark.parametrize("task", ["deaf", "busy"])
def test_a_deaf_task_is_killed_with_all_its_processes(make_worker, task):
    worker = make_worker(grace=0.1)
    child = do(worker, "have_child").values["child"]
    pid = pid_of(worker)
    job = at_work(worker, task)
    waiting = worker.submit("where")
    job.cancel()
    until(lambda: job.finished, worker)
    assert (job.state, job.error.kind) == ("cancelled", "Cancelled")
    until(lambda: gone(pid) and gone(child))
    # The next job starts the worker anew.
    assert waiting.wait(PATIENCE).values["pid"] != pid


def test_a_job_can_be_given_more_time_to_notice_than_others(make_worker):
    worker = make_worker(grace=0.01)
    pid = pid_of(worker)
    patient = at_work(worker, "deaf", {"seconds": 0.3}, grace=PATIENCE)
    patient.cancel()
    until(lambda: patient.finished, worker)
    assert patient.state == "cancelled"
    assert pid_of(worker) == pid
    at_work(worker, "deaf").cancel()
    assert pid_of(worker) != pid


def test_cancelling_while_the_worker_starts(make_worker):
    worker = make_worker()
    job = worker.submit("double", {}, {"x": np.arange(3)})
    job.cancel()
    until(lambda: job.finished, worker)
    assert job.state == "cancelled"
    assert do(worker, "echo", {"n": 1}).values == {"n": 1}


def test_cancelling_while_arrays_are_sent(make_worker):
    worker = make_worker(grace=PATIENCE)
    pid = pid_of(worker)
    sent = []

    class Slow(np.ndarray):
        def __getitem__(self, index):
            sent.append(index)
            time.sleep(0.01)
            return super().__getitem__(index)

    job = worker.submit("double", {}, {"x": np.ones((12, 5 << 20), np.uint8).view(Slow)})
    until(lambda: sent, worker)
    job.cancel()
    until(lambda: job.finished, worker)
    assert job.state == "cancelled"
    assert len(sent) < 12 // 3
    assert pid_of(worker) == pid
    assert files(worker) == []


def test_a_result_that_comes_after_the_wish_to_cancel_is_dropped(make_worker):
    worker = make_worker(grace=PATIENCE)
    job = at_work(worker, "deaf", {"seconds": 0.3})
    job.cancel()
    until(lambda: job.finished, worker)
    assert job.state == "cancelled"
    assert job.reply is None
    job.cancel()
    assert job.state == "cancelled"


# Errors


@pytest.mark.parametrize(
    ("parameters", "kind", "sentence"),
    [
        ({"kind": "volume"}, "VolumeError", "The volume is half full."),
        ({"kind": "memory"}, "MemoryError", "Memory ran out."),
        ({"kind": "package"}, "ModuleNotFoundError", "package no_such_package"),
        ({"kind": "file"}, "OSError", "Cannot use /no/such/file"),
        ({"kind": "exit"}, "SystemExit", "a task that ends the program"),
        ({"kind": "unexpected"}, "RuntimeError", "nobody thought of this"),
        ({"kind": "reply"}, "TypeError", "object is not JSON"),
        ({"kind": "array"}, "TypeError", "an array of object does not travel"),
    ],
)
def test_errors_are_data_and_the_worker_lives_on(shared, parameters, kind, sentence):
    pid = pid_of(shared)
    error = failure(shared, "fail", parameters)
    assert error.kind == kind
    assert sentence in error.sentence == str(error)
    assert error.remedy
    assert "worker_tasks.py" in error.details or kind == "TypeError"
    assert pid_of(shared) == pid
    assert files(shared) == []


def test_an_unknown_task_is_named_with_those_there_are(shared):
    error = failure(shared, "segmnet")
    assert error.kind == "UnknownTask"
    assert "'segmnet'" in error.sentence
    assert "double" in error.sentence


@pytest.mark.parametrize("parameters", [{"x": object()}, {"x": {1, 2}}])
def test_parameters_that_are_no_json_are_refused_here(shared, parameters):
    pid = pid_of(shared)
    assert failure(shared, "echo", parameters, {"x": np.zeros(3)}).kind == "TypeError"
    assert pid_of(shared) == pid
    assert files(shared) == []


def test_a_full_disk_is_a_sentence(shared, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "/tmp/x.npy")

    pid = pid_of(shared)
    monkeypatch.setattr("SRCSMSegmenterLib.worker.protocol.tempfile.mkstemp", full)
    error = failure(shared, "double", {}, {"x": np.zeros(3)})
    assert error.sentence == "Cannot use /tmp/x.npy (No space left on device)."
    assert "full" in error.remedy
    monkeypatch.undo()
    assert pid_of(shared) == pid


def test_a_module_of_tasks_that_cannot_be_imported_spares_the_others(make_worker, tmp_path):
    (tmp_path / "broken_tasks.py").write_text("import no_such_package")
    sys.path.append(str(tmp_path))
    try:
        worker = make_worker(tasks=["broken_tasks", "worker_tasks"])
        assert do(worker, "echo", {"n": 1}).values == {"n": 1}
        assert "no_such_package" in failure(worker, "segment").remedy
    finally:
        sys.path.remove(str(tmp_path))


def test_details_hold_where_an_error_comes_from():
    try:
        raise VolumeError("Odd.")
    except VolumeError as error:
        found = as_worker_error(error)
    assert "test_details_hold" in found.details
    assert as_worker_error(found) is found


# The log


def test_long_logs_neither_fill_a_pipe_nor_forge_a_reply(make_worker):
    seen, said = [], []
    worker = make_worker(log=seen.append)
    reply = worker.submit("chatter", log=said.append).wait(PATIENCE)
    assert reply.values == {"read": ""}
    assert said == ["not ASCII: é 肝"]
    until(lambda: seen and "forged" in seen[-1], worker)
    assert list(worker.log) == seen
    assert sum(line.startswith("ooo") for line in seen) == 300
    assert sum(line.startswith("eee") for line in seen) == 300
    assert max(map(len, seen)) < 5000
    assert seen[-2] == " half é done"


# Deaths


@pytest.mark.parametrize(
    ("how", "reason"), [("exit", "exit code 3"), ("kill", "killed"), ("segfault", "exit code -11")]
)
def test_a_crash_is_an_error_and_the_worker_starts_anew(make_worker, tmp_path, how, reason):
    worker = make_worker()
    pid = pid_of(worker)
    error = failure(worker, "die", {"how": how})
    assert error.kind == "WorkerDied"
    assert reason in error.sentence
    assert "last words" in error.details
    assert ("worker_tasks.py" in error.details) == (how == "segfault")
    assert private_folders(tmp_path) == []
    assert pid_of(worker) != pid


def test_killing_an_idle_worker_is_not_noticed(make_worker, tmp_path):
    worker = make_worker()
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not private_folders(tmp_path), worker)
    assert pid_of(worker) != pid


PARENT = """
import sys, time
sys.path.insert(0, {testing!r})
from SRCSMSegmenterLib.worker.client import Worker
worker = Worker(["worker_tasks"], folder={folder!r})
print(worker.submit("where").wait().values["pid"], flush=True)
{rest}
"""


def start_parent(folder: Path, rest: str) -> tuple[subprocess.Popen, int]:
    """Another program with a worker; the worker's pid."""
    code = PARENT.format(testing=str(TESTING), folder=str(folder), rest=rest)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("task", ["obedient", "deaf", "busy", None])
def test_the_worker_dies_with_its_parent(tmp_path, task):
    rest = (
        f"job = worker.submit({task!r})\nwhile job.stage == 'start': job.poll()\n" if task else ""
    )
    parent, pid = start_parent(tmp_path, f"{rest}print('ready', flush=True)\ntime.sleep(600)")
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    until(lambda: gone(pid) and not private_folders(tmp_path))


def test_a_program_that_ends_without_a_word_leaves_nothing(tmp_path):
    parent, pid = start_parent(tmp_path, "worker.submit('deaf')")
    assert parent.wait(PATIENCE) == 0
    until(lambda: gone(pid) and not private_folders(tmp_path))


def test_a_worker_that_nobody_holds_ends(make_worker, tmp_path):
    worker = Worker(["worker_tasks"], folder=tmp_path)
    pid = pid_of(worker)
    del worker
    until(lambda: gone(pid) and not private_folders(tmp_path))


def test_stopping_cancels_what_is_left_and_a_new_job_starts_anew(make_worker, tmp_path):
    worker, ended = make_worker(), []
    pid = pid_of(worker)
    jobs = [worker.submit("deaf", done=ended.append) for _ in range(2)]
    worker.stop()
    assert ended == jobs
    assert [job.state for job in jobs] == ["cancelled", "cancelled"]
    assert gone(pid)
    assert private_folders(tmp_path) == []
    worker.stop()
    assert pid_of(worker) != pid


def test_a_process_that_ended_is_told_as_a_loss(make_worker):
    worker, losses = make_worker(), []
    worker.lost = lambda: losses.append(True)
    worker.stop()
    assert losses == []  # nothing was loaded yet
    os.kill(pid_of(worker), signal.SIGKILL)  # while nothing is to be done
    until(lambda: worker.pump() or losses)
    pid_of(worker)
    assert losses == [True]
    job = worker.submit("deaf")
    until(lambda: worker.pump() or job.stage == "deaf")
    worker.stop()
    worker.stop()
    assert losses == [True, True]
    assert job.state == "cancelled"


def test_folders_of_the_dead_are_removed_and_those_of_the_living_are_not(make_worker, tmp_path):
    living = make_worker()
    pid_of(living)
    # Killed both at once, so that neither can clean up.
    parent, pid = start_parent(tmp_path, "time.sleep(600)")
    for process in (pid, parent.pid):
        os.kill(process, signal.SIGSTOP)
    for process in (pid, parent.pid):
        os.kill(process, signal.SIGKILL)
    parent.wait()
    until(lambda: gone(pid))
    young = tmp_path / "srcsm-worker-young"
    young.mkdir()
    [used, *_] = private_folders_of(living)
    [dead] = set(private_folders(tmp_path)) - {used, young}
    for folder in (used, dead):
        long_ago = time.time() - 2 * connections.YOUNG
        os.utime(folder, (long_ago, long_ago))
    pid_of(make_worker())
    assert not dead.exists()
    assert used.exists()
    assert young.exists()
    young.rmdir()
    assert do(living, "double", {}, {"x": np.array([2])}).arrays["x"] == [4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are a POSIX matter")
def test_folders_that_others_left_in_the_same_place_hold_nobody_up(make_worker, tmp_path):
    (tmp_path / "thesis.txt").write_bytes(connections.MARK)
    for name in ("pipe", "device", "link"):
        (tmp_path / f"{connections.FOLDER_PREFIX}{name}").mkdir()
    lock = {f.name.rpartition("-")[2]: f / connections.LOCK for f in private_folders(tmp_path)}
    os.mkfifo(lock["pipe"])
    lock["device"].symlink_to("/dev/zero")
    lock["link"].symlink_to(tmp_path / "thesis.txt")
    for path in lock.values():
        os.utime(path.parent, (0, 0))
    pid_of(make_worker())
    assert all(path.is_symlink() or path.is_fifo() for path in lock.values())
    for path in lock.values():
        path.unlink()
        path.parent.rmdir()


# Files and folders


def private_folders_of(worker: Worker) -> list[Path]:
    return [worker._connection.channel._folder]


def files(worker: Worker) -> list[str]:
    """What is in the private folder now, but for the lock."""
    [folder] = private_folders_of(worker)
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def test_arrays_are_for_this_user_alone_and_vanish_with_the_job(make_worker, tmp_path):
    worker = make_worker()
    reply = do(worker, "double", {}, {"x": np.arange(4)})
    [folder] = private_folders(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert files(worker) == []
    worker.stop()
    assert not folder.exists()
    assert reply.arrays["x"].tolist() == [0, 2, 4, 6]


def test_folders_may_have_blanks_and_any_letters(make_worker, tmp_path, monkeypatch):
    odd = tmp_path / "Übung 肝 'mit' Leer zeichen"
    odd.mkdir()
    (odd / "odd_tasks.py").write_bytes((TESTING / "worker_tasks.py").read_bytes())
    monkeypatch.syspath_prepend(str(odd))
    monkeypatch.setenv("SRCSM_TEST_NAME", str(odd))
    monkeypatch.setenv("LC_ALL", "C")  # which makes Python take file names for ASCII
    worker = make_worker(folder=odd, tasks=["odd_tasks"])
    assert do(worker, "double", {}, {"é 肝": np.arange(3)}).arrays["é 肝"].tolist() == [0, 2, 4]
    found = do(worker, "where").values
    assert found["environment"] == {"SRCSM_TEST_NAME": str(odd)}
    assert found["file"] == str(odd / "odd_tasks.py")
    worker.stop()
    assert private_folders(odd) == []


@pytest.mark.parametrize(
    "side", [256, pytest.param(1024, marks=pytest.mark.slow)], ids=["17 MB", "1 GB"]
)
def test_a_large_volume_is_mapped_not_copied(make_worker, side):
    volume = np.zeros((side, side, side), np.uint8)
    volume[side // 2, side // 2, side // 2] = 7
    worker = make_worker()
    pid_of(worker)
    found = do(worker, "middle", {}, {"image": volume}).values
    assert found["found"] == 7
    assert found["grown"] < 4 << 20
    assert volume[0, 0, 0] == 0
    before = anonymous_memory()
    large = do(worker, "large", {"bytes": side**3}).arrays["large"]
    assert large.shape == (side**3,)
    assert large[-1] == 1
    assert anonymous_memory() - before < 8 << 20


def anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# The worker's side of the line


@pytest.fixture
def bare(tmp_path):
    """A worker's process without a client."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    (folder / connections.LOCK).write_bytes(connections.MARK)
    options = ["--folder", str(folder), "--tasks", "worker_tasks"]
    process = subprocess.Popen(
        [sys.executable, "-m", "SRCSMSegmenterLib.worker", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTING)},
    )
    assert json.loads(process.stdout.readline())["hello"]["protocol"] == PROTOCOL
    yield process
    process.stdin.close()
    process.wait(PATIENCE)
    process.stdout.close()


def ask(process: subprocess.Popen, *lines: bytes | dict) -> None:
    for line in lines:
        process.stdin.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    process.stdin.flush()


def answers(process: subprocess.Popen) -> dict:
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize(
    ("line", "number", "said"),
    [
        (b"\n", None, "no JSON"),
        (b'{"id": 3, "task": "ec\n', None, "no JSON"),
        (b"\xff\xfe\x00 binary\n", None, "no JSON"),
        (b"[" * 100_000 + b"\n", None, "no JSON"),
        (b"[1, 2]\n", None, "no JSON object, but list"),
        (b'{"task": "echo"}\n', None, "no id"),
        (b'{"id": "3", "task": "echo"}\n', None, "no id"),
        (b'{"cancel": [3]}\n', None, "no id"),
        (b'{"id": 3, "task": ["echo"]}\n', 3, "no task ['echo']"),
        (b'{"id": true, "task": "echo"}\n', None, "no id"),
        (b'{"id": 3, "task": "echo", "parameters": [1]}\n', 3, "should be keys and values"),
        (b'{"id": 3, "arrays": {"x": "no-such.npy"}}\n', 3, "no-such.npy"),
        (b'{"id": 3, "arrays": {"x": "../../etc/passwd"}}\n', 3, "no name of a file"),
        (b'{"id": 3, "arrays": ["x.npy"]}\n', 3, "arrays"),
    ],
)
def test_a_corrupted_request_gets_an_error_and_the_worker_lives_on(bare, line, number, said):
    ask(bare, line, {"id": 4, "task": "echo", "parameters": {"n": 4}})
    refused = answers(bare)
    assert refused["id"] == number
    assert said in refused["error"]["sentence"]
    assert answers(bare) == {"id": 4, "reply": {"n": 4}, "arrays": {}}


def test_an_array_that_would_run_code_is_refused(bare, tmp_path):
    np.save(tmp_path / "arrays" / "x.npy", np.array([{}]), allow_pickle=True)
    ask(bare, {"id": 3, "task": "echo", "arrays": {"x": "x.npy"}})
    assert "Python objects" in answers(bare)["error"]["sentence"]


def test_an_array_with_a_damaged_header_is_refused(bare, tmp_path):
    path = tmp_path / "arrays" / "x.npy"
    np.save(path, np.arange(6))
    path.write_bytes(path.read_bytes().replace(b"{", b"((", 1))
    ask(bare, {"id": 3, "task": "echo", "arrays": {"x": "x.npy"}})
    assert answers(bare)["error"]["kind"] == "CorruptMessage"


def test_requests_that_wait_are_done_in_order_and_can_be_cancelled(bare):
    requests = [{"id": n, "task": "echo", "parameters": {"n": n}} for n in (5, 6, 7)]
    ask(bare, {"id": 4, "task": "obedient"}, *requests, {"cancel": 6}, {"cancel": 4})
    replies = []
    while len(replies) < 4:
        message = answers(bare)
        if "progress" not in message:
            replies.append((message["id"], message.get("error", {}).get("kind")))
    assert replies == [(4, "Cancelled"), (5, None), (6, "Cancelled"), (7, None)]


def test_the_end_of_its_input_is_the_end_of_the_worker(bare, tmp_path):
    ask(bare, {"id": 4, "task": "busy"}, b'{"id": 5, "task": "half a li')
    answers(bare)
    bare.stdin.close()
    assert bare.wait(PATIENCE) == 0
    assert not (tmp_path / "arrays").exists()


def test_a_folder_that_is_not_its_own_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for content in (None, b"something"):
        if content:
            (tmp_path / connections.LOCK).write_bytes(content)
        command = [sys.executable, "-m", "SRCSMSegmenterLib.worker", "--folder", str(tmp_path)]
        subprocess.run(command, input=b"", stdout=subprocess.DEVNULL, timeout=PATIENCE)
        assert (tmp_path / "thesis.txt").exists()


# How it is started


def test_modules_of_the_current_folder_are_not_imported(make_worker, tmp_path, monkeypatch):
    hostile = tmp_path / "scans"
    hostile.mkdir()
    (hostile / "numpy.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    monkeypatch.chdir(hostile)
    for inherited in ("", os.pathsep, f"{os.pathsep}/absent{os.pathsep}"):
        monkeypatch.setenv("PYTHONPATH", inherited)
        assert do(make_worker(), "echo", {"n": 1}).values == {"n": 1}
    assert not (tmp_path / "RAN").exists()


def test_a_command_that_is_not_there_is_a_sentence(make_worker, tmp_path):
    error = failure(make_worker(command=["/no/such/PythonSlicer"]), "echo")
    assert error.kind == "WorkerAbsent"
    assert "/no/such/PythonSlicer" in error.sentence
    assert private_folders(tmp_path) == []


def test_a_worker_that_does_not_come_up_tells_why(make_worker):
    code = "import sys; print('no licence for Python', file=sys.stderr); sys.exit(7)"
    error = failure(make_worker(command=[sys.executable, "-c", code]), "echo")
    assert error.kind == "WorkerAbsent"
    assert "exit code 7" in error.sentence
    assert error.details == "no licence for Python"


def test_a_worker_of_another_version_is_refused(make_worker):
    code = 'print(\'{"hello": {"protocol": 99}}\', flush=True); input()'
    worker = make_worker(command=[sys.executable, "-c", code])
    assert "version 99" in failure(worker, "echo").sentence
    assert "version 99" in failure(worker, "echo").sentence


def test_an_answer_that_makes_no_sense_is_an_error(make_worker):
    code = 'print(\'{"hello": {"protocol": 2}}\\nnonsense\', flush=True); input()'
    error = failure(make_worker(command=[sys.executable, "-c", code]), "echo")
    assert error.kind == "CorruptMessage"
    assert "no JSON" in error.sentence


def test_an_answer_to_another_job_is_not_taken_for_this_ones(make_worker):
    lines = ['{"hello": {"protocol": 2}}', '{"id": 7, "log": "late"}', '{"id": 7, "reply": {}}']
    code = "".join(f"print('{line}', flush=True);" for line in lines) + "input()"
    error = failure(make_worker(command=[sys.executable, "-c", code]), "echo")
    assert error.kind == "CorruptMessage"
    assert "that of another job" in error.sentence


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """PythonSlicer as it is: a program that prints, starts Python as its child, and waits."""
    path = tmp_path / "bin" / "PythonSlicer"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho starting\n"{sys.executable}" "$@"\nexit $?\n')
    path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_python_slicer_is_taken_where_it_is_and_killed_with_its_child(launcher, make_worker):
    worker = make_worker(grace=0.1)
    pid = pid_of(worker)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert str(launcher) in Path(f"/proc/{parent}/cmdline").read_text()
    job = at_work(worker, "deaf")
    job.cancel()
    until(lambda: job.finished, worker)
    until(lambda: gone(pid) and gone(parent))
    assert "killed" in failure(worker, "die", {"how": "kill"}).sentence


def test_a_module_that_is_not_there_is_refused_before_anything_starts(make_worker):
    error = failure(make_worker(tasks=["no_such_tasks"]), "echo")
    assert (error.kind, error.sentence) == (
        "ModuleNotFoundError",
        "The package no_such_tasks is not installed.",
    )


def test_the_environment_is_the_one_given(make_worker, monkeypatch):
    monkeypatch.setenv("SRCSM_TEST_OURS", "1")
    given = {k: v for k, v in os.environ.items() if not k.startswith("SRCSM_TEST")}
    worker = make_worker(environment={**given, "SRCSM_TEST_GIVEN": "2"})
    assert do(worker, "where").values["environment"] == {"SRCSM_TEST_GIVEN": "2"}


@pytest.mark.parametrize(
    "answer",
    [
        {"progress": 5},
        {"progress": ["network"]},
        {"progress": ["network", "half"]},
        {"log": 5},
        {"error": "odd"},
        {"error": {"kind": 5, "sentence": "x"}},
        {"error": {"kind": "x", "sentence": "x", "surprise": "x"}},
        {"reply": [1]},
    ],
)
def test_an_answer_of_another_form_is_an_error(make_worker, answer):
    hello = json.dumps({"hello": {"protocol": PROTOCOL}})
    code = f"print({hello!r}); print({json.dumps({'id': 1, **answer})!r}, flush=True); input()"
    error = failure(make_worker(command=[sys.executable, "-c", code]), "echo")
    assert (error.kind, error.sentence) == (
        "CorruptMessage",
        "The worker's answer cannot be read (it is of another form).",
    )


# Over a socket


@pytest.fixture(scope="module")
def server():
    """``srcsm worker`` with the tasks for tests; its process and its address."""
    code = (
        "from srcsm_training.cli import main as cli\n"
        "from srcsm_training.cli import worker\n"
        "worker.TASKS = ['worker_tasks']\n"
        "cli.main(['worker', '--listen', '0'])"
    )
    paths = {"PYTHONPATH": str(TESTING), worker_command.TOKEN_VARIABLE: TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **paths},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    address = process.stderr.readline().split()[4].rstrip(";")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield process, address
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def remote(server):
    with Worker(address=server[1], token=TOKEN) as worker:
        yield worker


def test_the_server_is_on_this_machine_alone_unless_told(server):
    assert server[1].startswith("127.0.0.1:")


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_travel_over_a_socket_as_they_are(remote, name):
    array = ARRAYS[name]
    found = do(remote, "double", {}, {name: array}).arrays[name]
    assert (found.dtype, found.shape) == ((array * 2).dtype, array.shape)
    np.testing.assert_array_equal(found, array * 2)


def test_progress_log_and_errors_come_over_a_socket(remote):
    seen, said = [], []
    job = remote.submit("many_steps", progress=lambda *step: seen.append(step))
    job.wait(PATIENCE)
    assert seen[-1] == ("end", 1.0)
    remote.submit("chatter", log=said.append).wait(PATIENCE)
    assert said == ["not ASCII: é 肝"]
    error = failure(remote, "fail", {"kind": "volume"})
    assert (error.kind, error.sentence) == ("VolumeError", "The volume is half full.")
    assert "worker_tasks.py" in error.details
    assert failure(remote, "die", {"how": "kill"}).kind == "WorkerDied"


@pytest.mark.parametrize("task", ["obedient", "deaf"])
def test_cancelling_over_a_socket(remote, task):
    pid = pid_of(remote)
    job = at_work(remote, task)
    job.cancel()
    until(lambda: job.finished, remote)
    assert job.state == "cancelled"
    assert (pid_of(remote) == pid) == (task == "obedient")


def test_who_hangs_up_cancels_the_job(remote, server):
    pid = pid_of(remote)
    at_work(remote, "deaf")
    remote.stop()
    until(lambda: gone(pid))
    with Worker(address=server[1], token=TOKEN) as another:
        assert pid_of(another) != pid


def test_two_clients_share_one_worker(remote, server):
    with Worker(address=server[1], token=TOKEN) as another:
        assert pid_of(another) == pid_of(remote)
        first, second = at_work(remote, "obedient"), another.submit("echo", {"n": 2})
        another.pump(0.3)
        assert not second.finished
        first.cancel()
        assert second.wait(PATIENCE).values == {"n": 2}


@pytest.mark.parametrize("token", ["", "another token, long enough"])
def test_without_the_token_nobody_is_let_in(server, token):
    with Worker(address=server[1], token=token) as worker:
        error = failure(worker, "echo")
    assert error.kind == "WorkerAbsent"
    assert "token" in error.sentence


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b""])
def test_the_server_outlives_those_who_speak_otherwise(server, remote, words):
    host, port = server[1].split(":")
    with socket_to(host, int(port)) as stranger:
        stranger.sendall(words)
    assert do(remote, "echo", {"n": 1}).values == {"n": 1}


@pytest.mark.parametrize(
    "message", [b"no JSON", b"[]", b'{"task": "echo"}', b'{"id": 1, "parameters": 3}', b'{"id": 2}']
)
def test_a_corrupted_request_over_a_socket_gets_an_error(remote, server, message):
    pid_of(remote)
    channel = remote._connection.channel
    channel._connection.send_bytes(message)
    until(lambda: not channel.quiet())
    answer, _ = channel.receive()
    assert answer["error"]["kind"] in ("CorruptMessage", "UnknownTask")
    assert do(remote, "echo", {"n": 1}).values == {"n": 1}


def test_a_number_of_a_request_that_is_not_finished_is_refused(remote):
    pid_of(remote)
    channel = remote._connection.channel
    for task in ("obedient", "echo"):
        channel._connection.send_bytes(json.dumps({"id": 7, "task": task}).encode())
    while "error" not in (answer := channel.receive()[0]):
        pass
    assert "request 7 is not finished" in answer["error"]["sentence"]
    channel.send({"cancel": 7})
    while (answer := channel.receive()[0]).get("error", {}).get("kind") != "Cancelled":
        pass
    assert do(remote, "echo", {"n": 1}).values == {"n": 1}


@pytest.mark.parametrize("block", [b"x" * 8, b""])
def test_a_block_of_another_length_than_announced_ends_that_connection_alone(server, remote, block):
    with Worker(address=server[1], token=TOKEN) as other:
        pid_of(other)
        channel = other._connection.channel
        request = {"id": 9, "task": "echo", "arrays": {"a": ["<f4", [1]]}}
        channel._connection.send_bytes(json.dumps(request).encode())
        channel._connection.send_bytes(block)
        with pytest.raises((EOFError, OSError)):
            channel.receive()
    assert do(remote, "echo", {"n": 1}).values == {"n": 1}


def test_a_flood_of_strangers_keeps_nobody_out_for_good(server):
    host, port = server[1].split(":")
    strangers = [socket_to(host, int(port)) for _ in range(3 * MOST_STRANGERS)]
    for stranger in strangers:
        stranger.close()
    with Worker(address=server[1], token=TOKEN) as worker:
        assert do(worker, "echo", {"n": 1}).values == {"n": 1}


def test_accepting_goes_on_after_it_failed():
    """As when there are too many open files."""

    class Listening:
        def __init__(self):
            self.calls = iter([OSError(24, "Too many open files"), None])

        def fileno(self):
            return 5

        def accept(self):
            if error := next(self.calls):
                raise error
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Server(Listening(), TOKEN, None, print)._accept()


@pytest.mark.parametrize("other", [authentication, multiprocessing.connection])
@pytest.mark.parametrize("token", [b"the token", b"another"])
def test_a_token_is_proved_to_this_programs_and_to_pythons_own_functions(other, token):
    ours, theirs = multiprocessing.Pipe()

    def prove(deliver, answer, connection, token, results):
        try:
            deliver(connection, token)
            answer(connection, token)
            results.append(True)
        except multiprocessing.AuthenticationError:
            results.append(False)

    results = []
    own = (authentication.deliver_challenge, authentication.answer_challenge)
    thread = threading.Thread(target=prove, args=(*own, ours, b"the token", results))
    thread.start()
    answered = (other.answer_challenge, other.deliver_challenge)
    prove(*answered, theirs, token, results) if token == b"the token" else None
    if token != b"the token":
        with pytest.raises(multiprocessing.AuthenticationError):
            other.answer_challenge(theirs, token)
    thread.join()
    assert set(results) == {token == b"the token"}


def test_the_digest_is_sha_256():
    ours, theirs = multiprocessing.Pipe()
    ours.send_bytes(b"#CHALLENGE#{sha256}random")
    ours.send_bytes(b"#WELCOME#")
    authentication.answer_challenge(theirs, b"key")
    mac = hmac.new(b"key", b"{sha256}random", "sha256").digest()
    assert ours.recv_bytes() == b"{sha256}" + mac


def socket_to(host: str, port: int):
    import socket

    return socket.create_connection((host, port))


def test_an_address_where_nothing_listens_is_a_sentence():
    with Worker(address="127.0.0.1:1", token=TOKEN) as worker:
        error = failure(worker, "echo")
    assert error.kind == "WorkerAbsent"
    assert "No worker answers at 127.0.0.1:1" in error.sentence


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("7654", ("127.0.0.1", 7654)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text, address):
    assert worker_command.parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "127.0.0.1", "127.0.0.1:x", "1:2:70000", "a b:3", ":-1"]
)
def test_bad_addresses_are_refused(text):
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:7654"):
        worker_command.parse_address(text)


def test_a_token_is_made_where_none_is_given(monkeypatch, capsys, tmp_path):
    from types import SimpleNamespace as Namespace

    monkeypatch.delenv(worker_command.TOKEN_VARIABLE, raising=False)
    made = [worker_command.read_token(Namespace(token_file=None)) for _ in range(2)]
    assert made[0] != made[1]
    assert min(map(len, made)) >= 24
    assert f"Token for the clients: {made[0]}\n" in capsys.readouterr().err

    monkeypatch.setenv(worker_command.TOKEN_VARIABLE, "token of the environment")
    assert worker_command.read_token(Namespace(token_file=None)) == "token of the environment"
    file = tmp_path / "token"
    file.write_text("token of the file\n")
    assert worker_command.read_token(Namespace(token_file=file)) == "token of the file"
    assert capsys.readouterr().err == ""
    for content in ("", "short"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="16 characters"):
            worker_command.read_token(Namespace(token_file=file))
    with pytest.raises(ConfigError, match="Cannot read"):
        worker_command.read_token(Namespace(token_file=tmp_path / "absent"))


# Segmenting

AFFINE = np.array([[0, -2.0, 0, 5], [2.5, 0, 0.3, -7], [0, 0, 3.0, 11], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random network of a liver and a spleen, trained on CT."""
    folder = tmp_path_factory.mktemp("models") / "Leber 肝"
    save_bundle(folder, a_random_bundle("abdomen"), "# The card\n")
    return folder


@pytest.fixture(scope="module")
def torch_worker(tmp_path_factory):
    with Worker(folder=tmp_path_factory.mktemp("arrays")) as worker:
        yield worker


def a_scan(modality: str) -> Volume:
    image = tiny.phantom(7, modality)[0]
    return Volume(image, Geometry(image.shape[::-1], AFFINE))


def request(volume: Volume, model: Path, **parameters) -> tuple[str, dict, dict]:
    options = {"model": str(model), "device": "cpu", "keep_largest": False, **parameters}
    options |= volume.geometry.to_json()
    return "segment", options, {"image": volume.array}


@pytest.mark.parametrize("matching", [True, False])
def test_the_worker_segments_as_the_library_does(torch_worker, model, matching):
    volume = a_scan("MR")
    expected = segment(
        volume,
        load_bundle(model),
        modality="MR",
        source_matching=matching,
        device="cpu",
        keep_largest=False,
    )
    choice = "on" if matching else "off"
    reply = do(torch_worker, *request(volume, model, modality="MR", source_matching=choice))
    np.testing.assert_array_equal(reply.arrays["labels"], expected.labels.array)
    for label in (1, 2):
        block = expected.probabilities.block(label)
        np.testing.assert_array_equal(reply.arrays[f"probability_{label}"], block.values)
        assert tuple(reply.values["first"][str(label)]) == block.first
    dtypes = {name: str(array.dtype) for name, array in reply.arrays.items()}
    assert dtypes == {"labels": "uint8", "probability_1": "float16", "probability_2": "float16"}

    values = reply.values
    assert values["labels"][1]["name"] == "spleen"
    assert values["labels"][1]["value"] == 2
    assert values["labels"][1]["color"] == [157, 108, 162]
    assert "SCT^78961009^Spleen" in values["labels"][1]["terminology"]
    for label in (1, 2):
        name = ("liver", "spleen")[label - 1]
        voxels = (expected.labels.array == label).sum()
        assert values["volumes_ml"][name] == pytest.approx(voxels * 2.5 * 2 * 3 / 1000)
        found = [tuple(row) for row in values["least_certain"][name]]
        assert found == expected.least_certain[label]
    assert sum(values["volumes_ml"].values()) > 0
    assert values["model"]["identity"] == load_bundle(model).identity
    assert values["model"]["name"] == "abdomen"
    assert (values["modality"], values["source_matching"]) == ("MR", matching)
    assert values["device"] == "cpu"
    assert list(values["seconds"]) == ["prepare", "network", "resample"]
    assert values["messages"] == expected.messages == []


@pytest.mark.parametrize(("modality", "matching"), [("CT", False), ("MR", True)])
def test_source_matching_is_for_the_other_modality(torch_worker, model, modality, matching):
    volume = a_scan(modality)
    values = do(torch_worker, *request(volume, model)).values
    assert (values["modality"], values["source_matching"]) == (modality, matching)
    assert len(values["messages"]) == 1
    assert f"Taken for {modality}" in values["messages"][0]


def test_only_the_organs_asked_for_are_labelled(torch_worker, model):
    volume = a_scan("CT")
    everything = do(torch_worker, *request(volume, model))
    spleen = do(torch_worker, *request(volume, model, organs=["spleen"], probabilities=False))
    labels = everything.arrays["labels"]
    assert set(np.unique(labels)) >= {1, 2}
    np.testing.assert_array_equal(spleen.arrays["labels"], np.where(labels == 2, 2, 0))
    assert list(spleen.arrays) == ["labels"]
    assert [label["value"] for label in spleen.values["labels"]] == [2]
    assert list(spleen.values["volumes_ml"]) == list(spleen.values["least_certain"]) == ["spleen"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_largest_piece_alone_or_all_pieces(torch_worker, model, keep):
    volume = a_scan("CT")
    bundle, options = load_bundle(model), {"modality": "CT", "source_matching": False}
    expected = segment(volume, bundle, device="cpu", keep_largest=keep, **options)
    found = do(torch_worker, *request(volume, model, modality="CT", keep_largest=keep))
    np.testing.assert_array_equal(found.arrays["labels"], expected.labels.array)


@pytest.mark.parametrize(
    ("parameters", "kind", "said"),
    [
        ({"model": "no-such-model"}, "BundleError", "no-such-model"),
        ({"organs": ["heart"]}, "BundleError", "heart"),
        ({"device": "cuda:99"}, "DeviceError", "cuda:99"),
        ({"size": [1, 2, 3]}, "VolumeError", "does not fit"),
    ],
)
def test_what_cannot_be_segmented_is_refused(torch_worker, model, parameters, kind, said):
    task, options, arrays = request(a_scan("CT"), model)
    error = failure(torch_worker, task, {**options, **parameters}, arrays)
    assert error.kind == kind
    assert said in error.sentence
    assert error.remedy


def test_a_model_that_was_replaced_is_loaded_anew(torch_worker, model, tmp_path):
    volume, folder = a_scan("CT"), tmp_path / "model"
    bundle = load_bundle(model)
    identities = []
    for scale in (1, 2):
        weights = {name: scale * value for name, value in bundle.weights.items()}
        other = ModelBundle(bundle.description, bundle.network, bundle.histogram, weights)
        identities.append(save_bundle(folder, other, ""))
        values = do(torch_worker, *request(volume, folder)).values
        assert values["model"]["identity"] == identities[-1]
    assert identities[0] != identities[1]


def test_models_are_described_after_a_check_of_their_files(torch_worker, model, tmp_path):
    [found, absent] = do(
        torch_worker, "describe_models", {"models": [str(model), str(tmp_path)]}
    ).values["models"]
    assert (found["folder"], found["name"], found["modality"]) == (str(model), "abdomen", "CT")
    assert found["identity"] == load_bundle(model).identity
    assert [label["name"] for label in found["labels"]] == ["liver", "spleen"]
    assert absent["folder"] == str(tmp_path)
    assert "neither a model folder" in absent["error"]
    shipped = do(torch_worker, "describe_models").values["models"]
    assert {row["name"] for row in shipped} >= {"abdomen-ct", "abdomen-mr"}


def test_devices_are_named(torch_worker):
    assert do(torch_worker, "devices").values["devices"][-1] == "cpu"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "lacks model, size, affine"),
        ({"model": 5, "size": [1, 1, 1], "affine": []}, "model should be a valid string, not 5"),
        ({"model": "m", "size": [1, 1], "affine": []}, r"size: \[2\] is missing"),
        ({"model": "m", "size": [1, 1, 1], "affine": []}, "lacks the array image"),
        (
            {"model": "m", "size": [1, 1, 1], "affine": [], "source_matching": "maybe"},
            "source_matching should be 'on', 'off' or 'auto'",
        ),
        ({"model": "m", "size": [1, 1, 1], "affine": [], "keep_largest": "no"}, "true or false"),
    ],
)
def test_missing_and_odd_parameters_are_named(parameters, said):
    with pytest.raises(RequestError, match=said):
        segmented_scan(parameters, {}, None)
