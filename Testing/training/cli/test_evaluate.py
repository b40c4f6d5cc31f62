# SPDX-License-Identifier: Apache-2.0
"""``srcsm evaluate`` on label maps that other tools wrote."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

from srcsm_training.cli import main as cli
from srcsm_training.cli.label_maps import label_map_for
from srcsm_training.data.dataset import Dataset
from SRCSMSegmenterLib.errors import DatasetError


@pytest.fixture
def dataset(tmp_path):
    return tiny.write_dataset(tmp_path / "Dataset001_Tiny", 2, "MR")


@pytest.fixture
def folders(dataset, tmp_path):
    """Two tools that both found the truth."""
    for name in ("nnunet", "other"):
        shutil.copytree(dataset / "labelsTr", tmp_path / name)
    return [tmp_path / "nnunet", tmp_path / "other"]


def run(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_tools_are_scored_side_by_side_and_compared_with_the_first(
    dataset, folders, tmp_path, capsys
):
    out = tmp_path / "out"
    given = ["--predictions", *folders, "--name", "nnU-Net", "other", "--data", dataset]
    assert run(*given, "--out", out, "--worst", 0, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["methods"]) == ["nnU-Net", "other"]
    [test] = told["comparison"]["tests"]
    assert (test["method"], test["against"], test["first"]) == ("other", "nnU-Net", 1.0)
    assert {path.name for path in out.iterdir()} == {
        "nnU-Net",
        "other",
        "comparison.json",
        "comparison.md",
    }


def test_one_tool_is_scored_like_a_network(dataset, folders, tmp_path, capsys):
    given = ["--predictions", folders[0], "--data", dataset, "--cut-to-labels", "--tolerance", 1]
    assert run(*given, "--out", tmp_path / "out", "--worst", 1) == 0
    text = capsys.readouterr().out
    assert "| Dice | nnunet | - | 1.000 |" in text
    assert "cut to the slices that the labels span" in text
    assert "surface Dice at 1 mm" in text
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == [
        "Dataset001_Tiny_a.png"
    ]


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("markdown", "| metric | dataset | method |"),
        ("latex", r"\begin{tabular}{lllllll}"),
        ("csv", "method,dataset,source_matching,label,"),
    ],
)
def test_a_table_for_a_paper_is_all_that_is_printed(
    dataset, folders, tmp_path, capsys, form, start
):
    given = ["--predictions", *folders, "--data", dataset, "--out", tmp_path / "out", "--worst", 0]
    assert run(*given, "--table", form) == 0
    assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--name", "one"), "a name for each folder"),
        (("--name", "one", "one"), "named one"),
        (("--name", "a/b", "two"), "a/b"),
        (("--map-labels", "third=1:1"), "third"),
        (("--keep-largest",), "needs --model"),
        (("--map-labels", "1:1", "2:2"), "two label maps"),
    ],
)
def test_names_and_label_maps_that_fit_no_tool_are_refused(
    dataset, folders, tmp_path, capsys, extra, word
):
    given = ["--predictions", *folders, "--data", dataset, "--out", tmp_path / "out"]
    assert run(*given, *extra) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_label_map_may_be_that_of_one_tool(dataset, folders, tmp_path, capsys):
    given = ["--predictions", *folders, "--data", dataset, "--out", tmp_path / "out", "--worst", 0]
    assert run(*given, "--map-labels", "nnunet=1:1,2:2", "other=2:1,1:2", "--json") == 0
    told = json.loads(capsys.readouterr().out)["methods"]
    assert [told[name]["means"][0]["dice_mean"] for name in ("nnunet", "other")] == [1, 0]


@pytest.mark.parametrize("inner", [False, True])
def test_labels_are_matched_by_the_names_of_the_tools_own_dataset_json(
    dataset, folders, tmp_path, capsys, inner
):
    folder = folders[0]
    if inner:
        folder = tmp_path / "both" / dataset.name
        shutil.copytree(folders[0], folder)
    names = {"background": 0, "Spleen": 1, "liver": 2, "aorta": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    tool = folder.parent if inner else folder
    given = ["--predictions", tool, "--data", dataset, "--out", tmp_path / "out", "--worst", 0]
    assert run(*given, "--json") == 0
    captured = capsys.readouterr()
    told = "on Dataset001_Tiny, labels matched by name: 2:1 liver, 1:2 Spleen; not in it: aorta."
    assert f"{tool.name} {told}\n" in captured.err
    metrics = json.loads(captured.out)["metrics"]
    assert metrics["settings"]["map_labels"] == "2:1,1:2"
    assert metrics["means"][0]["dice_mean"] == 0  # its label maps are the truth's, not so named


def test_labels_that_names_do_not_tell_are_refused_with_those_that_they_do(
    dataset, folders, tmp_path, capsys
):
    names = {"labels": {"background": 0, "aorta": 1, "spleen": 2}}
    (folders[0] / "dataset.json").write_text(json.dumps(names))
    given = ["--predictions", folders[0], "--data", dataset, "--out", tmp_path / "out"]
    assert run(*given) == 3
    told = capsys.readouterr().err
    assert "1 aorta, 2 spleen" in told
    assert "such as --map-labels 2:2 for those of one name" in told
    assert not (tmp_path / "out").exists()


LIVER_AND_SPLEEN = {"liver": 1, "spleen": 2}


@pytest.mark.parametrize(
    ("named", "labels", "expected"),
    [
        ({1: "liver", 2: "spleen"}, LIVER_AND_SPLEEN, None),
        ({1: "Liver", 2: "SPLEEN"}, LIVER_AND_SPLEEN, None),
        ({1: "spleen", 2: "liver"}, LIVER_AND_SPLEEN, {2: 1, 1: 2}),
        ({1: "liver", 2: "aorta", 3: "spleen"}, LIVER_AND_SPLEEN, {1: 1, 3: 2}),
        ({1: "kidney_right"}, {"right_kidney": 4}, {1: 4}),
        ({}, LIVER_AND_SPLEEN, None),
    ],
)
def test_label_maps_follow_from_names(named, labels, expected):
    dataset = Dataset(Path("D"), "D", "CT", labels, ())
    assert label_map_for("tool", named, dataset, None)[0] == expected


def test_a_hundred_labels_without_a_counterpart_are_counted():
    named = {1: "liver", 2: "spleen"} | {value: f"rib {value}" for value in range(3, 103)}
    told = label_map_for("tool", named, Dataset(Path("D"), "D", "CT", LIVER_AND_SPLEEN, ()), None)[
        1
    ]
    assert (
        told == "tool on D, labels matched by name: 1:1 liver, 2:2 spleen; not in it: 100 others."
    )


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ({1: "liver"}, LIVER_AND_SPLEEN),
        ({1: "liver", 2: "Liver", 3: "spleen"}, LIVER_AND_SPLEEN),
        ({1: "liver", 2: "spleen"}, {"liver": 1, "Liver": 2}),
    ],
)
def test_names_that_leave_a_label_out_or_fit_several_make_no_label_map(named, labels):
    with pytest.raises(DatasetError, match="--map-labels"):
        label_map_for("tool", named, Dataset(Path("D"), "D", "CT", labels, ()), None)


@pytest.mark.parametrize(("names", "code"), [(("cyst", "lump"), 3), (("Tumour", "CYST"), 0)])
def test_names_that_no_list_of_terms_has_are_compared_too(
    dataset, folders, tmp_path, capsys, names, code
):
    text = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(text.replace("liver", "tumour").replace("spleen", "cyst"))
    (folders[0] / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, names[0]: 1, names[1]: 2}})
    )
    given = ["--predictions", folders[0], "--data", dataset, "--out", tmp_path / "out"]
    assert run(*given, "--worst", 0) == code
    assert ("1 cyst, 2 lump" in capsys.readouterr().err) == (code == 3)


def test_a_label_that_tables_would_mix_up_is_refused(dataset, folders, tmp_path, capsys):
    text = (dataset / "dataset.json").read_text()
    (dataset / "dataset.json").write_text(text.replace("spleen", "mean"))
    given = ["--predictions", folders[0], "--data", dataset, "--out", tmp_path / "out"]
    assert run(*given, "--worst", 0) == 3
    assert 'a label "mean"' in capsys.readouterr().err
