# SPDX-License-Identifier: Apache-2.0
"""The benchmark of large scans: its scan, its network and its rows; nothing is timed here."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from threshold_network import a_bundle

from srcsm_training.benchmarks import __main__ as bench
from srcsm_training.benchmarks import large
from srcsm_training.benchmarks.timing import Row
from SRCSMSegmenterLib.geometry import GridSpec, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.models.bundle import load_bundle, save_bundle

GRID = GridSpec((10, 9, 8), (3.0, 3.0, 3.0))


@pytest.fixture
def model(tmp_path):
    bundle = a_bundle(GRID)
    labels = tuple(label.name for label in bundle.description.labels)
    grouped = replace(bundle.description, groups={"organs": labels})
    save_bundle(tmp_path / "model", replace(bundle, description=grouped), "# Card\n")
    return tmp_path / "model"


def test_the_large_scan_has_more_voxels_in_the_same_field_of_view(tmp_path):
    small = sitk.GetImageFromArray(np.full((5, 6, 7), 60, np.int16))
    small.SetSpacing((3.0, 2.0, 6.0))
    turned = sitk.Euler3DTransform((0, 0, 0), 0.02, 0.01, -0.03).GetMatrix()
    small.SetDirection(turned)
    small.SetOrigin((5.0, 6.0, 7.0))
    sitk.WriteImage(small, str(tmp_path / "small.nii.gz"))
    path = large.enlarged(tmp_path / "small.nii.gz", tmp_path / "large.nii.gz", (14, 18, 10))
    found = sitk.ReadImage(str(path))
    assert found.GetSize() == (14, 18, 10)
    assert found.GetPixelID() == sitk.sitkInt16
    assert np.allclose(found.GetSpacing(), (1.5, 2 / 3, 3.0))
    assert np.allclose(found.GetOrigin(), (5 - 0.75, 6 - 2 / 3, 7 - 1.5), atol=1e-4)
    assert np.allclose(found.GetDirection(), np.eye(3).ravel(), atol=1e-5)
    inside = sitk.GetArrayFromImage(found)[1:-1, 2:-2, 1:-1]
    assert abs(inside.mean() - 60) < 2
    assert 5 < inside.std() < 15


def test_copies_of_organs_are_as_plausible_but_never_win(model, tmp_path):
    folder = large.with_copies(model, tmp_path / "thirteen", 13)
    random = np.random.default_rng(0)
    scan = GRID.placed(np.zeros(3), np.eye(3))
    volume = Volume(random.uniform(-200, 200, scan.shape), scan)
    options = {"modality": "CT", "source_matching": False, "device": "cpu", "keep_largest": False}
    found, many = (segment(volume, load_bundle(path), **options) for path in (model, folder))
    assert len(many.least_certain) == 13
    assert set(np.unique(many.labels.array)) <= {0, 1, 2}
    assert (many.labels.array == 1).sum() > 10
    assert {1, 2, 3, 12, 13} <= many.probabilities.boxes.keys()
    assert not (found.labels.array == 0)[many.labels.array > 0].any()


def test_a_process_is_measured_without_the_memory_of_this_one_and_its_failure_is_told():
    held = np.ones(32 << 20)  # 256 MiB
    row = large.measure_process("squares", ["print(sum(n * n for n in range(200_000)))"])
    seconds, processor, memory = row.values
    assert row.what == "squares"
    assert seconds > 0
    assert processor > 0
    assert 0.003 < memory < 0.05 < held.nbytes / 2**30  # a Python without packages takes 10 MiB
    with pytest.raises(RuntimeError, match="broken ended with 3"):
        large.measure_process("broken", ["raise SystemExit(3)"])


def test_each_size_has_a_table_with_the_plain_script_beside_it(model, tmp_path, monkeypatch):
    commands = []

    def measured(what, arguments):
        commands.append(arguments)
        return Row(what, (3.0, 5.0, 1.0))

    monkeypatch.setattr(large, "measure_process", measured)

    def small_dataset(folder, *options, **seed):
        (folder / "imagesTr").mkdir(parents=True)
        scan = sitk.Image((4, 5, 6), sitk.sitkInt16)
        sitk.WriteImage(scan, str(folder / "imagesTr" / "ct_0000.nii.gz"))

    monkeypatch.setattr(large, "write_dataset", small_dataset)
    monkeypatch.setattr(large, "a_model", lambda folder: model)
    cpu = torch.device("cpu")
    one, other = large.tables(tmp_path, tmp_path, cpu, sizes=((16, 14, 12), (8, 7, 6)))
    assert "16 × 14 × 12 int16" in one.title
    assert "8 × 7 × 6 int16" in other.title
    assert [row.what for row in one.rows][-1] == "plain SimpleITK script"
    assert commands[0][0] == large.SEGMENT
    assert commands[2][0] == large.PLAIN


def test_with_avx2_the_same_sections_are_measured_in_a_limited_child(monkeypatch):
    calls = []

    class Done:
        returncode = 0

    def run(command, env, check):
        calls.append((command[3:], env["ONEDNN_MAX_CPU_ISA"], env["ATEN_CPU_CAPABILITY"]))
        return Done

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setitem(bench.SECTIONS, "sm", lambda folder, data, device: [])
    assert bench.main(["--only", "sm", "--avx2", "--device", "cpu"]) == 0
    assert calls == [(["--only", "sm", "--device", "cpu"], "AVX2", "avx2")]
