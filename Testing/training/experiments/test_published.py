# SPDX-License-Identifier: Apache-2.0
"""Published settings: each domain the only source once, from a download's files to the table."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tiny

from srcsm_training.data.dataset import choose_cases, read_dataset
from srcsm_training.data.downloads import prepare_download
from srcsm_training.evaluation.evaluate import parse_label_map
from srcsm_training.evaluation.scores import METRICS
from srcsm_training.experiments import published
from srcsm_training.experiments.published import Series
from srcsm_training.experiments.reports import write_results
from srcsm_training.segmentation.presets import PRESETS
from srcsm_training.segmentation.published import ACDC, SEQUENCES, SETTINGS

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def two_sites(folder):
    """The download of the six sites with two cases of two of them."""
    for site, first in (("RUNMC", 0), ("BMC", 4)):
        (folder / site).mkdir(parents=True)
        for number in range(2):
            image, labels = tiny.phantom(first + number, "MR")
            for suffix, array in (("", image), ("_segmentation", labels.astype(np.uint8))):
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing(tiny.SPACING)
                sitk.WriteImage(volume, str(folder / site / f"Case{number:02d}{suffix}.nii.gz"))


def test_a_setting_runs_from_the_download_to_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SRCSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "tiny", tiny.config())
    two_sites(tmp_path / "download")
    folders = prepare_download("prostate-six-sites", tmp_path / "download", tmp_path / "data")
    sources = tuple(folder.name for folder in folders)
    prostate = replace(SETTINGS["prostate-six-sites"], preset="tiny", sources=sources)
    given = ["--setting", "prostate-six-sites", "--preset", "tiny"]
    given += ["--data", str(tmp_path / "data")]
    given += ["--domains", *sources, "--seeds", "0", "--steps", "1"]
    given += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    series = Series("prostate-six-sites", prostate, (0,), changes=("optimisation.steps=1",))
    for run in series.runs():
        tiny.forget_accelerator()
        assert published.main([*given, "--only", run.name]) == 0
    capsys.readouterr()
    assert published.main([*given, "--report"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Scans: whole\n")
    assert "No scores" not in text
    assert "| method | SM | Dataset311_ProstateRUNMC | Dataset312_ProstateBMC |" in text
    for method in ("plain", "SRC"):
        assert f"| {method} | on |" in text
    assert "| SRC | plain | Dataset311_ProstateRUNMC | off | mean | 2 |" in text  # two cases of BMC
    assert "SAMMed 79.54" in text
    (tmp_path / "results" / f"{run.name}.csv").unlink()
    assert published.main([*given, "--report"]) == 0
    assert f"No scores: {run.name}" in capsys.readouterr().out


def test_each_domain_is_the_source_once_and_never_a_target_of_itself():
    runs = Series("prostate-six-sites", SETTINGS["prostate-six-sites"], (0, 1)).runs()
    assert len(runs) == len({run.name for run in runs}) == 6 * 2 * 2
    assert all(len(run.targets) == 5 and run.source not in run.targets for run in runs)
    cine = Series("cine", SETTINGS["cine"], (0,)).runs()
    assert {run.targets for run in cine} == {("Dataset221_HeartMnMs2",)}
    assert {run.label_map for run in cine} == {"1:1,5:2,2:3"}


def test_cut_scans_and_other_labels_are_scores_of_their_own_of_the_same_trainings():
    whole, cut = (Series("cine", SETTINGS["cine"], (0,), cut=cut).runs() for cut in (False, True))
    assert not {run.name for run in whole} & {run.name for run in cut}
    assert [run.training for run in whole] == [run.training for run in cut]
    assert {run.cut_to_labels for run in cut} == {True}
    seven, four = (
        Series(name, SETTINGS[name], (0,)).runs() for name in ("whole-heart", "whole-heart-4")
    )
    assert not {run.name for run in seven} & {run.name for run in four}
    assert [run.training for run in seven] == [run.training for run in four]


def test_other_steps_and_settings_are_trainings_of_their_own():
    names = set()
    for changes in ((), ("optimisation.steps=5",), ("optimisation.steps=5", "regions.share=1")):
        runs = Series("abdomen", SETTINGS["abdomen"], (0,), changes=changes).runs()
        names |= {run.training for run in runs}
        assert all(set(changes) <= set(run.settings) for run in runs)
    assert len(names) == 3 * 2 * 2


def hearts(folder):
    """MS-CMRSeg and ACDC with the names of the real cases, and no scans to speak of."""
    numbers = {"bssfp": (*range(1, 26), *range(32, 46)), "lge": (*range(1, 26), *range(38, 46))}
    names = {
        sequence: [f"{sequence}_{number:02d}" for number in own]
        for sequence, own in numbers.items()
    }
    names["acdc"] = ["patient001_frame01", "patient010_frame12"]
    for name, cases in zip((*SEQUENCES, ACDC), names.values(), strict=True):
        (folder / name).mkdir()
        dataset = tiny.write_dataset(folder / name, 1, "MR")
        for case in cases:
            for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
                (dataset / path.replace("/a", f"/{case}")).hardlink_to(dataset / path)
        for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
            (dataset / path).unlink()
        description = json.loads((dataset / "dataset.json").read_text())
        description["numTraining"] = len(cases)
        (dataset / "dataset.json").write_text(json.dumps(description))
    return names


def test_hearts_are_tested_on_the_same_patients_or_on_others(tmp_path):
    names = hearts(tmp_path)
    expected = {"heart-sequences": (39, 33), "heart-sequences-clean": (29, 10)}
    for setting in expected:
        for run in Series(setting, SETTINGS[setting], (0,)).runs():
            source = choose_cases(read_dataset(tmp_path / run.source), run.cases)
            numbers = {case.name.split("_")[1] for case in source.cases}
            other, acdc = (
                choose_cases(read_dataset(tmp_path / target), run.test_cases)
                for target in run.targets
            )
            assert [case.name for case in acdc.cases] == names["acdc"]
            both = numbers & {case.name.split("_")[1] for case in other.cases}
            if run.source == SEQUENCES[0]:
                assert (len(source.cases), len(other.cases)) == expected[setting]
            assert (len(both) > 0) == (setting == "heart-sequences")


REAL = {
    "heart-sequences": {
        "Dataset201_HeartBSSFP": ("bssfp_01", "bssfp_11"),
        "Dataset202_HeartLGE": ("lge_01", "lge_38"),
        "Dataset203_HeartACDC": ("patient001_frame01",),
    },
    "prostate-six-sites": {
        "Dataset301_ProstateT2": ("p158_001", "pr12_0"),
        "Dataset302_ProstatePROMISE12": ("case00", "case02"),
    },
}
"""Setting -> real datasets, and the cases of them that a test takes."""


def take_cases(source, cases, target):
    """Link some cases of a dataset into a dataset of their own."""
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / kind).mkdir(parents=True)
        for case in cases:
            (target / kind / f"{case}{ending}").symlink_to(source / kind / f"{case}{ending}")
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = len(cases)
    (target / "dataset.json").write_text(json.dumps(description))


@pytest.mark.slow
@pytest.mark.needs_data
@pytest.mark.parametrize("name", REAL)
def test_a_setting_runs_on_real_scans(name, data_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SRCSM_CACHE", str(tmp_path / "cache"))
    for dataset, cases in REAL[name].items():
        take_cases(data_folder / dataset, cases, tmp_path / "data" / dataset)
    given = ["--setting", name, "--preset", f"{name.split('-')[0]}-fast", "--seeds", "0"]
    given += ["--set", "network.channels=[4,8,8,8]", "--steps", "2", "--data", f"{tmp_path}/data"]
    given += ["--runs", f"{tmp_path}/runs", "--results", f"{tmp_path}/results"]
    if name.startswith("prostate"):
        given += ["--domains", *REAL[name]]
    for run in published.series_of(published.parse(given)).runs():
        tiny.forget_accelerator()
        assert published.main([*given, "--only", run.name]) == 0
    capsys.readouterr()
    assert published.main([*given, "--report"]) == 0
    text = capsys.readouterr().out
    assert "No scores" not in text
    table, tests = text.split("Wilcoxon")
    for method, matching in itertools.product(("plain", "SRC"), ("off", "on")):
        assert f"| {method} | {matching} |" in table
    assert "| SRC | plain |" in tests
    assert "nan" not in table


def test_a_run_that_does_not_exist_is_answered_with_the_nearest(tmp_path, capsys):
    given = ["--setting", "cine", "--only", "published_cine_cine-paper_Dataset211_HeartCT_srk_0"]
    assert published.main([*given, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "did you mean published_cine_cine-paper_Dataset211_HeartCT_src_0" in error


def test_data_that_are_not_there_are_named(tmp_path, capsys):
    run = "published_cine_cine-paper_Dataset211_HeartCT_src_0"
    given = ["--setting", "cine", "--only", run, "--data", str(tmp_path)]
    assert published.main([*given, "--results", str(tmp_path)]) == 3
    assert "Dataset221_HeartMnMs2" in capsys.readouterr().err


def test_targets_that_a_setting_names_are_columns_of_their_own(tmp_path):
    series = Series("heart-sequences", SETTINGS["heart-sequences"], (0,), ("src",))
    for run in series.runs():
        rows = [
            {"dataset": target, "case": case, "dice": dice}
            for target, dice in zip(run.targets, (0.5, 0.75), strict=True)
            for case in ("a", "b")
        ]
        table = pd.DataFrame(rows).assign(source_matching="off", label="heart", status="scored")
        other = dict.fromkeys(set(METRICS) - {"dice"}, 1.0)
        write_results(run.name, table.assign(**other), tmp_path)
    text = published.report(series, tmp_path)
    heads = [f"{source}→{target}" for source in SEQUENCES for target in (*SEQUENCES, ACDC)]
    heads = [head for head in heads if len(set(head.split("→"))) == 2]
    assert f"| method | SM | {' | '.join(heads)} |" in text
    assert "| SRC | off | 0.500 | 0.750 | 0.500 | 0.750 |" in text
    assert "Wilcoxon" not in text  # of a single method


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_preset_and_a_label_map_that_reads(name):
    setting = SETTINGS[name]
    assert setting.sam or setting.preset in PRESETS
    assert all(setting.targets_of(source) for source in setting.sources)
    if setting.label_map:
        parse_label_map(setting.label_map)
