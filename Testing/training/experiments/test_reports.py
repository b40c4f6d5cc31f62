# SPDX-License-Identifier: Apache-2.0
"""What experiments share: scores are kept, nothing is run twice unasked, reports are printed."""

import argparse

import pandas as pd
import pytest

from srcsm_training.experiments import reports
from srcsm_training.experiments.reports import (
    missing_runs,
    read_results,
    show_report,
    without_empty_rows,
    write_report,
    write_results,
)


def parsed(*given):
    parser = argparse.ArgumentParser()
    reports.add_options(parser)
    return parser.parse_args([*map(str, given)])


def test_runs_with_scores_are_named_with_the_way_to_repeat_them(tmp_path, capsys):
    table = pd.DataFrame({"case": ["a"], "dice": [0.5]})
    write_results("done", table, tmp_path / "new")
    pd.testing.assert_frame_equal(read_results("done", tmp_path / "new"), table)
    given = ("--results", tmp_path / "new")
    assert missing_runs(["done", "open"], parsed(*given)) == ["open"]
    printed = capsys.readouterr().out
    assert str(tmp_path / "new" / "done.csv") in printed
    assert "--force" in printed
    assert "--results FOLDER" in printed
    assert "open" not in printed
    assert missing_runs(["done", "open"], parsed(*given, "--force")) == ["done", "open"]
    assert missing_runs(["done"], parsed("--results", tmp_path)) == ["done"]
    assert read_results("done", tmp_path) is None


def test_a_report_is_printed_unless_it_is_to_be_written(monkeypatch, capsys):
    written = []
    monkeypatch.setattr(reports, "write_report", lambda *given: written.append(given))
    show_report("mark", "| table |", parsed("--report"))
    assert (capsys.readouterr().out, written) == ("| table |\n", [])
    show_report("mark", "| table |", parsed("--report", "--write"))
    assert (capsys.readouterr().out, written) == ("", [("mark", "| table |")])


def test_rows_without_a_score_are_not_written():
    table = [
        "| training | SM | liver | mean Dice | ASSD mm |",
        "| --- | --- | --- | --- | --- |",
        "| CT→MR plain | off | 0.502 | 0.260 | 27.0 |",
        "| CT→MR thirteen | off | – | – | – |",
        "| CT→MR | nothing: network alone | – | 10 | 0.830 | | | – |",
        "| CT→MR swap | 0.500 | – | – |",
        "",
        "A line – with a dash.",
    ]
    written = without_empty_rows("\n".join(table)).splitlines()
    assert written == [line for line in table if "thirteen" not in line]


def test_a_report_is_put_between_its_marks(tmp_path):
    document = tmp_path / "B.md"
    document.write_text("a\n<!-- x -->\nold\n<!-- /x -->\n<!-- y -->\nkept\n<!-- /y -->\n")
    write_report("x", "new\nlines", document)
    expected = "a\n<!-- x -->\nnew\nlines\n<!-- /x -->\n<!-- y -->\nkept\n<!-- /y -->\n"
    assert document.read_text("utf-8") == expected
    with pytest.raises(ValueError, match="lacks the marks"):
        write_report("z", "new", document)
    assert document.read_text("utf-8") == expected
