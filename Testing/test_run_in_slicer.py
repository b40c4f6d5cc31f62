# SPDX-License-Identifier: Apache-2.0
"""Starting a Slicer with the tests and tutorials, played by a program that reports or crashes."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import run_in_slicer

REPORT = {
    "slicer": "5.12.0",
    "tests": 3,
    "steps": [{"name": "Segment", "seconds": 7.5, "stall_ms": 42.0}],
    "failed": [],
}


@pytest.fixture
def a_slicer(tmp_path):
    """Make a program that stands for Slicer and does what a line of Python says."""

    def made(line):
        program = tmp_path / "my Slicer"
        program.write_text(
            f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n"
            f"output = Path(sys.argv[-1])\n{line}\n"
        )
        program.chmod(0o755)
        return str(program)

    return made


def run(slicer, output):
    return run_in_slicer.main(["--slicer", slicer, "--output", str(output)])


def test_without_a_slicer_it_is_skipped_with_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLICER", raising=False)
    assert run_in_slicer.main([]) == 0
    assert capsys.readouterr().out == "Skipped: there is no Slicer here; give --slicer PATH.\n"
    assert run("/no/such/Slicer", tmp_path) == 1


def test_the_modules_and_the_script_are_given_to_slicer_and_its_report_is_told(
    a_slicer, tmp_path, capsys
):
    line = (
        f"(output / 'report.json').write_text(json.dumps({REPORT} | {{'arguments': sys.argv[1:]}}))"
    )
    assert run(a_slicer(line), tmp_path / "out put") == 0
    told = capsys.readouterr().out
    assert "3 tests" in told
    assert "stood still    42 ms" in told
    given = json.loads((tmp_path / "out put" / "report.json").read_text())["arguments"]
    for module in run_in_slicer.MODULES:
        assert (Path(given[given.index("--additional-module-paths") + 1]).parent / module).is_dir()
    script = Path(given[given.index("--python-script") + 1])
    assert script.name == "in_slicer.py"
    assert script.is_file()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"(output / 'report.json').write_text(json.dumps({REPORT} | {{'failed': ['x: no']}}))",
         "FAILED: x: no"),
        ("sys.exit(3)", "ended (3) without a report"),
    ],
)  # fmt: skip
def test_what_fails_in_slicer_fails_here(a_slicer, tmp_path, capsys, line, told):
    assert run(a_slicer(line), tmp_path / "out") == 1
    assert told in capsys.readouterr().out
    assert os.path.exists(tmp_path / "out" / "slicer.log")
