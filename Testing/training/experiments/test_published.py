# SPDX-License-Identifier: Apache-2.0
"""Published settings: each domain the only source once, from a download's files to the table."""

import numpy as np
import pytest
import SimpleITK as sitk
import tiny

from srcsm_training.data.downloads import prepare_download
from srcsm_training.evaluation.evaluate import parse_label_map
from srcsm_training.experiments import published
from srcsm_training.segmentation.presets import PRESETS
from srcsm_training.segmentation.published import SETTINGS, published_setting
from SRCSMSegmenterLib.errors import ConfigError

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
    given = [
        "--setting",
        "prostate-six-sites",
        "--preset",
        "tiny",
        "--data",
        str(tmp_path / "data"),
    ]
    given += ["--domains", *(folder.name for folder in folders), "--seeds", "0", "--steps", "1"]
    given += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    for source in folders:
        for mode in ("off", "smoothed"):
            tiny.forget_accelerator()
            run = f"published_prostate-six-sites_tiny_{source.name}_{mode}_0"
            assert published.main([*given, "--only", run]) == 0
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
    (tmp_path / "results" / f"{run}.csv").unlink()
    assert published.main([*given, "--report"]) == 0
    assert f"No scores: {run}" in capsys.readouterr().out


def test_each_domain_is_the_source_once_and_never_a_target_of_itself():
    setting = SETTINGS["prostate-six-sites"]
    runs = published.runs_of("prostate-six-sites", setting, (0, 1))
    assert len(runs) == len({run.name for run in runs}) == 6 * 2 * 2
    assert all(len(run.targets) == 5 and run.source not in run.targets for run in runs)
    cine = published.runs_of("cine", SETTINGS["cine"], (0,))
    assert {run.targets for run in cine} == {("Dataset221_HeartMnMs2",)}
    assert {run.label_map for run in cine} == {"1:1,5:2,2:3"}


def test_runs_on_cut_scans_are_runs_of_their_own():
    whole, cut = (published.runs_of("cine", SETTINGS["cine"], (0,), cut) for cut in (False, True))
    assert not {run.name for run in whole} & {run.name for run in cut}
    assert {run.cut_to_labels for run in cut} == {True}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_preset_and_a_label_map_that_reads(name):
    setting = published_setting(name)
    assert setting.sam or setting.preset in PRESETS
    assert all(setting.targets_of(source) for source in setting.sources)
    if setting.label_map:
        parse_label_map(setting.label_map)


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean whole-heart"):
        published_setting("whole-hart")
