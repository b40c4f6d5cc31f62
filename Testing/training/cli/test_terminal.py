# SPDX-License-Identifier: Apache-2.0
"""What is printed ends no work, and is what is there."""

import io
import os
import subprocess
import sys

import pytest

from srcsm_training.cli.failures import sentence
from srcsm_training.cli.main import main
from srcsm_training.cli.outputs import OutputError, output_files
from srcsm_training.cli.terminal import Terminal, lenient_output
from SRCSMSegmenterLib.errors import DatasetError, VolumeError

PRINTING = """
import sys
from srcsm_training.cli.terminal import lenient_output
with lenient_output():
    for n in range(3):
        print("b_Łódź_肝", flush=True)
    print("error \\udcf6", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
"""


def terminal(encoding):
    content = io.BytesIO()
    return Terminal(io.TextIOWrapper(content, encoding)), content


@pytest.mark.parametrize(
    ("encoding", "printed"), [("cp1252", rb"b_\u0141\xf3d\u017a"), ("utf-8", "b_Łódź".encode())]
)
def test_a_letter_that_cannot_be_printed_is_escaped(encoding, printed):
    stream, content = terminal(encoding)
    print("b_Łódź", end="", file=stream, flush=True)
    assert content.getvalue() in (printed, b"b_\\u0141\xf3d\\u017a")


def test_escape_sequences_are_shown_and_lines_stay_lines():
    stream, content = terminal("utf-8")
    print("a\x1b[2Jb\n\tc\r\udcf6", end="", file=stream, flush=True)
    assert content.getvalue() == b"a\\x1b[2Jb\n\tc\r\\udcf6"


def test_files_are_not_taken_for_streams_that_are_closed(tmp_path):
    """The next file that is opened would be number 2, to which libraries print."""
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", PRINTING]
    assert subprocess.run([*shell, str(tmp_path / "mark")]).returncode == 0
    assert (tmp_path / "mark").read_text() == "done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk")
def test_results_that_are_printed_on_a_full_disk_are_told_as_lost():
    command = [sys.executable, "-m", "srcsm_training", "models", "list", "--json"]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 6
    assert b"Printing failed (No space left on device)" in ended.stderr


def test_a_current_folder_that_was_removed_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["models", "list"]) == 2
    assert "The current folder was removed" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["reader", "descriptor"])
def test_an_output_that_is_closed_ends_nothing(tmp_path, closed):
    read, write = os.pipe()
    command = [sys.executable, "-c", PRINTING, str(tmp_path / "mark")]
    if closed == "reader":
        os.close(read)
        process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    else:
        shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        process = subprocess.run(shell, stderr=subprocess.PIPE)
        os.close(read)
    os.close(write)
    assert (tmp_path / "mark").exists()
    assert process.returncode == 0
    assert process.stderr == b"error \\udcf6\n"


def test_the_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), lenient_output():
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before


def test_errors_are_one_line_but_for_lists():
    assert sentence(VolumeError("a\nb.nii is odd")) == r"a\nb.nii is odd"
    assert sentence(DatasetError("2 faults:\n- a\n- b")) == "2 faults:\n- a\n- b"
    assert "No space left" in sentence(OSError(28, "No space left on device"))
    assert r"\x1b" in sentence(OSError(2, "No such file", "\x1b[2J.nii"))


def test_a_name_that_is_too_long_is_found_out_before_the_work(tmp_path):
    output_files([tmp_path / "a.nii"], tmp_path / f"{'a' * 248}.nii.gz")
    with pytest.raises(OutputError, match="too long"):
        output_files([tmp_path / "a.nii"], tmp_path / f"{'a' * 249}.nii.gz")


def test_modules_of_the_current_folder_are_not_run(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('somebody else')")
    command = [sys.executable, "-m", "srcsm_training", "match", "none.nii.gz", "-o", "out.nii.gz"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "There is no file or folder none.nii.gz" in ended.stderr
    assert ended.returncode == 3
