# SPDX-License-Identifier: Apache-2.0
"""A folder of files is segmented one by one; a bad one is named and does not stop the rest."""

from pathlib import Path

import numpy as np
import pytest
from scene_cases import GRID, an_image

from SRCSMSegmenterLib.errors import BundleError, VolumeError
from SRCSMSegmenterLib.geometry import Volume
from SRCSMSegmenterLib.scene import worker_host
from SRCSMSegmenterLib.scene.folder import segment_folder
from SRCSMSegmenterLib.volume_io import read_labels, write_volume

pytestmark = [pytest.mark.needs_slicer, pytest.mark.usefixtures("one_worker")]


def test_one_bad_file_does_not_keep_the_others_from_being_segmented(model, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_volume(source / "good.nii.gz", Volume(an_image(), GRID))
    (source / "bad.nrrd").write_text("no image")
    (source / "notes.txt").write_text("no scan")
    (source / "._good.nii.gz").write_bytes(b"what macOS leaves")
    (source / "old.seg.nrrd").write_text("no scan either")
    heard = []
    bad, good = segment_folder(
        source, tmp_path / "out", model=model, progress=lambda *news: heard.append(news)
    )
    assert bad.output is None
    assert "bad.nrrd is not an NRRD file" in str(bad.error)
    assert good.error is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.seg.nrrd"]
    labels = read_labels(good.output)
    voxel = GRID.spacing.prod() / 1000
    assert good.volumes_ml["spleen"] == pytest.approx((labels.array == 2).sum() * voxel)
    assert "Taken for CT" in good.messages[0]
    assert {path.name for path, *_ in heard} == {"good.nii.gz"}
    assert heard[-1][1:] == ("resample", 1.0)


def test_a_folder_without_scans_or_with_two_of_one_name_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="holds no scans"):
        segment_folder(tmp_path, tmp_path / "out")
    for name in ("a.nii", "a.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(VolumeError, match="would be one file"):
        segment_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_refined_by_the_task_that_refines_a_volume(model, tmp_path, monkeypatch):
    tasks = ["SRCSMSegmenterLib.worker.tasks", "worker_tasks"]
    offer = worker_host.RefinementOffer("segment_swapped", lambda modality: "played", Path())
    monkeypatch.setattr(worker_host, "_task_modules", tasks)
    monkeypatch.setattr(worker_host, "_refinement", offer)
    worker_host.stop_worker()
    write_volume(tmp_path / "ct.nii.gz", Volume(an_image(), GRID))
    (plain,) = segment_folder(tmp_path, tmp_path / "plain", model=model)
    (refined,) = segment_folder(tmp_path, tmp_path / "refined", model=model, refine=True)
    before, after = (read_labels(each.output).array for each in (plain, refined))
    np.testing.assert_array_equal(after, np.array([0, 2, 1])[before])
    assert refined.messages == (
        *plain.messages,
        "Refined by played; the network's outline stayed in 1 slice.",
    )
    worker_host.stop_worker()


def test_a_folder_is_not_refined_by_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_host, "_refinement", None)
    (tmp_path / "a.nii").touch()
    with pytest.raises(BundleError, match="no module SAM Refine"):
        segment_folder(tmp_path, tmp_path / "out", refine=True)
    assert not (tmp_path / "out").exists()
