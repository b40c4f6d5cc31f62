# SPDX-License-Identifier: Apache-2.0
"""Fetching checkpoints, from a server of this machine."""

import hashlib
import os
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from SAMRefineLib.sam import downloads
from SAMRefineLib.sam.downloads import InBackground, download, part_of, received, remove
from SRCSMSegmenterLib.errors import BundleError, Cancelled

CONTENT = os.urandom(3_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(socketserver.ThreadingTCPServer):
    """Serves `content`; knows Range unless told not to, and may hang up early."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.hang_up_after, self.status = CONTENT, True, None, None
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/sam.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            size = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.write(body[: server.hang_up_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Modèles à moi" / "sam.pth"


def fetch(server, path, **options):
    download(server.url, path, len(CONTENT), SHA256, **options)


def test_a_file_arrives_whole_and_tells_how_far_it_is(server, path):
    told = []
    fetch(server, path, progress=lambda *news: told.append(news))
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()
    assert [stage for stage, _ in told] == sorted((s for s, _ in told), reverse=True)
    for stage in ("download", "check"):
        fractions = [fraction for name, fraction in told if name == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_what_was_cancelled_is_resumed_from_where_it_stopped(server, path):
    with pytest.raises(Cancelled):
        fetch(server, path, cancelled=lambda: True)
    kept = received(path)
    assert 0 < kept < len(CONTENT)
    assert not path.exists()
    fetch(server, path)
    assert server.asked == [None, f"bytes={kept}-"]
    assert path.read_bytes() == CONTENT


def test_a_connection_that_breaks_off_keeps_what_has_arrived(server, path):
    server.hang_up_after = 2_000_000
    with pytest.raises(BundleError, match=r"broke off.*try again to resume"):
        fetch(server, path)
    assert received(path) == 2_000_000
    server.hang_up_after = None
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_cannot_resume_starts_again(server, path):
    server.ranges = False
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(b"x" * 1000)
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_another_file_than_promised_is_deleted(server, path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(BundleError, match="is not the file that its authors published"):
        fetch(server, path)
    assert not path.exists()
    assert received(path) == 0


def test_a_whole_part_is_only_checked(server, path):
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    fetch(server, path)
    assert server.asked == []
    assert path.read_bytes() == CONTENT


def test_nothing_is_written_through_a_link_and_no_pipe_is_waited_for(server, path):
    path.parent.mkdir()
    thesis = path.with_name("thesis.txt")
    thesis.write_text("years of work")
    part_of(path).symlink_to(thesis)
    assert received(path) == 0
    fetch(server, path)
    assert thesis.read_text() == "years of work"
    path.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(part_of(path))
        fetch(server, path)
        assert path.read_bytes() == CONTENT


def test_more_than_promised_is_not_read(server, path):
    server.content = CONTENT + b"more"
    fetch(server, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_names_the_server_and_its_answer(server, path, status):
    server.status = status
    with pytest.raises(BundleError, match=f"127.0.0.1 answered {status}"):
        fetch(server, path)


def test_no_connection_is_told(path):
    with pytest.raises(BundleError, match=r"127\.0\.0\.1 cannot be reached"):
        download("http://127.0.0.1:1/sam.pth", path, 10, SHA256)


def test_no_space_is_told_before_anything_is_fetched(server, path, monkeypatch):
    free = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(BundleError, match="has 1 MB free of the 4 MB"):
        fetch(server, path)
    assert server.asked == []


def test_removing_leaves_nothing(server, path):
    with pytest.raises(Cancelled):
        fetch(server, path, cancelled=lambda: True)
    remove(path)
    assert received(path) == 0
    fetch(server, path)
    remove(path)
    assert list(path.parent.iterdir()) == []
    remove(path)  # nothing there: nothing to do


def test_in_the_background_it_ends_with_a_result_or_an_error(server, path):
    job = InBackground(lambda *calls: fetch(server, path, progress=calls[0], cancelled=calls[1]))
    job.wait(60)
    assert (job.finished, job.error, job.stage, job.fraction) == (True, None, "check", 1.0)
    job = InBackground(lambda progress, cancelled: downloads.sha256_of(path, progress, cancelled))
    job.wait(60)
    assert job.result == SHA256
    stopped = InBackground(lambda progress, cancelled: wait_for(cancelled))
    stopped.stop()
    stopped.wait(60)
    assert isinstance(stopped.error, Cancelled)


def wait_for(cancelled):
    while not cancelled():
        pass
    raise Cancelled("stopped")
