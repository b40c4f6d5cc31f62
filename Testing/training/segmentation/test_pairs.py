# SPDX-License-Identifier: Apache-2.0
"""Training on pairs: views of one anatomy, restyled slices where they lie, and a whole run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from restyled import prepared, restyled
from scipy.spatial.transform import Rotation

from srcsm_training.augment.random_convolution import random_convolution
from srcsm_training.augment.spatial import AugmentationConfig, draw_spatial
from srcsm_training.cli.main import main
from srcsm_training.data.cases import prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.engine.checkpoint import CheckpointError, load_checkpoint
from srcsm_training.engine.config import to_dict
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation import pairs
from srcsm_training.segmentation import restyled as laid
from srcsm_training.segmentation.config import OptimisationConfig, PairsConfig, TrainingConfig
from srcsm_training.segmentation.run import run_training
from srcsm_training.style.slices import read_manifest, write_manifest
from SRCSMSegmenterLib.errors import ConfigError, DatasetError
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.inference import segment
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.network import NetworkConfig
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_volume

RULE = IntensityRule("CT", window=(-125, 275))
CPU = torch.device("cpu")
STILL = AugmentationConfig(shift=0.0, contrast=0.0, translation=4.0, elastic=3.0)


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def config(**changes):
    return replace(
        TrainingConfig(
            grid=GridSpec((16, 16, 1), (3.0, 2.75, 3.0)),
            network=NetworkConfig(
                classes=3,
                channels=(4, 6),
                kernel=(3, 3, 1),
                pooling=(2, 2, 1),
                norm="switchable",
                pool_by="max",
                decoder=(5,),
                dropout=0.0,
            ),
            augmentation=STILL,
            optimisation=OptimisationConfig(
                steps=4, batch=4, learning_rate=1e-3, precision="fp32", dice="batch"
            ),
            pairs=PairsConfig(use=True, projection=5),
            random_convolution="off",
            validate_every=2,
        ),
        **changes,
    )


def oblique(folder):
    """`tiny`'s dataset on left-handed grids, turned by ten degrees, one of them permuted."""
    tiny.write_dataset(folder)
    for number, case in enumerate(read_dataset(folder).cases):
        axes = Rotation.from_rotvec(np.radians([8, -6, 4 * number])).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = axes * (np.array(tiny.SPACING) * [-1, 1, 1])
        affine[:3, 3] = (30, -20, 5)
        order = [0, 1, 2] if number else [2, 0, 1]
        for path, read in ((case.image, read_volume), (case.labels, read_labels)):
            array = read(path).array.transpose([2 - n for n in order[::-1]])
            geometry = Geometry(array.shape[::-1], affine[:, [*order, 3]])
            write_volume(path, Volume(np.ascontiguousarray(array), geometry))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return oblique(tmp_path_factory.mktemp("data") / "Dataset001_Tiny")


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    return prepared(data, tmp_path_factory.mktemp("slices") / "ct", size=64, axis="auto")


@pytest.fixture(scope="module")
def styled(source):
    """Folder of a set in two styles: the source's own, and its negative."""
    folder = source.folder / "styled" / "tiny"
    restyled(source, folder, {"same": lambda _, p: p, "negative": lambda _, p: 255 - p})
    return folder


def opened(data, folder, **changes):
    dataset = read_dataset(data)
    chosen = config(pairs=PairsConfig(use=True, styled=(str(folder),), projection=5), **changes)
    return chosen, laid.open_restyled(chosen, dataset, dataset.cases)


def cases_of(data, cache, grid):
    return prepare_cases(read_dataset(data).cases, RULE, 0.0, grid, cache)


# Restyled slices lie where the scan's do


def differences(data, cache, source, name, look):
    """Mean difference of source and restyled view, for 48 windows less those without."""
    folder = source.folder / "styled" / name
    restyled(source, folder, {"same": look})
    chosen, sets = opened(data, folder)
    cases = cases_of(data, cache, chosen.grid)
    found = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        views = pairs.draw_views(cases, sets, chosen, RULE, generator, CPU)
        first, second = views.images
        found += (first - second)[~views.convolved[1]].abs().mean((1, 2, 3, 4)).tolist()
    return found


def test_a_restyled_slice_lies_on_the_scan_it_was_made_of(data, cache, source):
    """One that looks like the source gives the source's view, on oblique and permuted scans; one
    shifted by two pixels, less than a voxel, does not."""
    found = differences(data, cache, source, "copies", lambda _, p: p)
    assert len(found) > 20
    for axis in (0, 1):
        shifted = differences(
            data, cache, source, f"shifted_{axis}", lambda _, p, a=axis: np.roll(p, 2, a)
        )
        assert len(shifted) == len(found)
        assert max(found) < 0.05
        assert np.mean(found) < 0.4 * np.mean(shifted)


angles = st.floats(-0.5, 0.5)


@settings(max_examples=30)
@given(st.tuples(angles, angles, angles), st.tuples(*[st.floats(-40, 40)] * 3), st.booleans())
def test_a_window_is_laid_into_a_plane_the_shortest_way(turn, place, flipped):
    grid = GridSpec((16, 12, 1), (3.0, 2.0, 5.0))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ np.diag([-1.5, -1.5, 4.0])
    if flipped:
        affine[:3, 0] *= -1
    affine[:3, 3] = (3.0, -7.0, 11.0)
    plane = Geometry((40, 40, 1), affine)
    window = grid.placed(np.array(place), np.eye(3))
    moved = laid.into_plane(window, plane, grid)
    corners = np.array([[0, 0, 0], [15, 0, 0], [0, 11, 0], [15, 11, 0]])
    np.testing.assert_allclose(plane.to_ijk(moved.to_ras(corners))[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(moved.direction.T @ moved.direction, np.eye(3), atol=1e-9)
    assert np.linalg.det(moved.direction) == pytest.approx(1)
    normal = affine[:3, 2] / 4
    # The angle of the turn is that between the normals, and the move is along the plane's.
    tilt = np.arccos(np.clip(normal[2], -1, 1))
    assert Rotation.from_matrix(moved.direction).magnitude() == pytest.approx(tilt, abs=1e-6)
    away = moved.centre - window.centre
    np.testing.assert_allclose(np.cross(away, normal), 0, atol=1e-6)


def test_a_plane_across_the_networks_slices_is_refused():
    grid = GridSpec((16, 12, 1), (3.0, 2.0, 5.0))
    sagittal = np.eye(4)[:, [1, 2, 0, 3]]
    with pytest.raises(DatasetError, match="across"):
        laid.into_plane(grid.placed(np.zeros(3), np.eye(3)), Geometry((9, 9, 1), sagittal), grid)


def test_a_transform_within_the_plane_leaves_the_third_axis_alone():
    wild = AugmentationConfig(rotation=(0.3, 0.3, 0.3))
    draw = draw_spatial(wild, torch.Generator().manual_seed(1))
    flat = laid.in_plane(draw)
    assert flat.matrix[2].tolist() == flat.matrix[:, 2].tolist() == [0, 0, 1]
    assert (flat.matrix[:2, :2] == draw.matrix[:2, :2]).all()
    assert flat.translation.tolist() == [*draw.translation[:2], 0]
    assert (flat.control[2] == 0).all()
    assert torch.equal(flat.control[:2], draw.control[:2])
    assert draw.control[2].any()


def test_the_nearest_slice_is_taken_within_a_slices_thickness(data, styled):
    chosen, sets = opened(data, styled)
    scan = sets[0].scans["a"]
    generator = torch.Generator().manual_seed(0)
    thickness = scan.slices[0].geometry.spacing[2]
    assert thickness == pytest.approx(3.0)
    last = int(scan.places.argmax())
    for offset, expected in ((0.4, True), (2.9, True), (3.1, False)):
        centre = scan.slices[last].geometry.centre + scan.normal * offset
        window = chosen.grid.placed(centre, np.eye(3))
        found = laid.nearest_slice("a", window, sets, generator)
        assert (found is scan.slices[last]) == expected
        assert (found is None) != expected
    assert laid.nearest_slice("unknown", window, sets, generator) is None


# Views


@pytest.mark.parametrize("mode", ["off", "hard"])
@pytest.mark.parametrize("with_styles", [False, True])
def test_which_views_there_are(data, cache, styled, mode, with_styles):
    """The table at the head of pairs.py."""
    chosen, sets = opened(data, styled, random_convolution=mode)
    sets = sets if with_styles else ()
    cases = cases_of(data, cache, chosen.grid)
    views = pairs.draw_views(cases, sets, chosen, RULE, torch.Generator().manual_seed(4), CPU)
    count = 3 if mode == "hard" and with_styles else 2
    assert views.images.shape == (count, 4, 1, 1, 16, 16)
    assert views.labels.shape == (4, 1, 16, 16)
    assert views.convolved.shape == (count, 4)
    assert views.convolved[0].tolist() == [mode == "hard"] * 4
    if count == 3:
        assert views.convolved[1].all()
    if with_styles:
        assert not views.convolved[-1].all()
    else:
        assert views.convolved[-1].all()


def test_random_convolution_is_applied_where_it_is_due_and_nowhere_else(data, cache, styled):
    chosen, sets = opened(data, styled)
    cases = cases_of(data, cache, chosen.grid)
    views = pairs.draw_views(cases, sets, chosen, RULE, torch.Generator().manual_seed(4), CPU)
    where = torch.tensor([[False, True, False, False], [True, False, False, True]])
    views = replace(views, convolved=where)
    looks = pairs.convolved(views, chosen, torch.Generator().manual_seed(9))
    assert torch.equal(looks[~where], views.images[~where])
    labels = torch.stack([views.labels[1], views.labels[0], views.labels[3]])
    expected = random_convolution(
        views.images[where], labels, "smoothed", torch.Generator().manual_seed(9)
    )
    assert torch.equal(looks[where], expected)
    assert not torch.equal(looks[where], views.images[where])


def test_each_view_has_its_own_intensities(data, cache):
    chosen = config(augmentation=replace(STILL, shift=0.2, contrast=0.2, strong=1.0))
    cases = cases_of(data, cache, chosen.grid)
    views = pairs.draw_views(cases, (), chosen, RULE, torch.Generator().manual_seed(0), CPU)
    assert (views.images[0] - views.images[1]).abs().mean() > 0.02
    assert views.images.min() >= -1
    assert views.images.max() <= 1


# What is refused


def test_settings_that_do_not_go_together(data, styled):
    dataset = read_dataset(data)
    for changes, said in (
        ({"pairs": PairsConfig(styled=(str(styled),))}, "pairs.use=true"),
        ({"optimisation": OptimisationConfig(batch=1)}, "optimisation.batch"),
        (
            {
                "pairs": PairsConfig(use=True, styled=(str(styled),)),
                "grid": GridSpec((16, 16, 2), (3.0, 2.75, 3.0)),
            },
            "one slice",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            laid.open_restyled(config(**changes), dataset, dataset.cases)
    no_contrast = config(
        pairs=PairsConfig(use=True, contrast=0.0), optimisation=OptimisationConfig(batch=1)
    )
    assert laid.open_restyled(no_contrast, dataset, dataset.cases) == ()


def test_a_source_set_is_no_restyled_set(data, source):
    with pytest.raises(DatasetError, match="style swap"):
        opened(data, source.folder)


def test_labels_of_another_dataset_are_refused(data, source):
    folder = source.folder / "styled" / "other"
    found = restyled(source, folder, {"same": lambda _, p: p})
    write_manifest(replace(found, labels={"liver": 1, "spleen": 2, "kidney": 3}))
    with pytest.raises(DatasetError, match="kidney"):
        opened(data, folder)


def test_another_scan_of_the_same_name_is_refused(tmp_path, data, source):
    other = tiny.write_dataset(tmp_path / "Dataset001_Tiny")
    folder = source.folder / "styled" / "again"
    restyled(source, folder, {"same": lambda _, p: p})
    with pytest.raises(DatasetError, match="another a"):
        opened(other, folder)


def test_a_set_whose_pictures_changed_is_refused(data, source):
    folder = source.folder / "styled" / "changed"
    found = restyled(source, folder, {"same": lambda _, p: p})
    picture = folder / found.slices[3].image
    picture.write_bytes(picture.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="altered"):
        opened(data, folder)


def test_slices_set_aside_are_not_trained_on(data, source):
    folder = source.folder / "styled" / "aside"
    found = restyled(source, folder, {"same": lambda _, p: p, "two": lambda _, p: 255 - p})
    rejected = [replace(s, rejected="bad" if s.style == "two" else "") for s in found.slices]
    write_manifest(replace(found, slices=tuple(rejected)))
    _, (opened_set,) = opened(data, folder)
    assert {len(s.pictures) for scan in opened_set.scans.values() for s in scan.slices} == {1}
    write_manifest(replace(found, slices=tuple(replace(s, rejected="bad") for s in found.slices)))
    with pytest.raises(DatasetError, match="set aside"):
        opened(data, folder)


# A whole run


def a_run(data, cache, output, chosen, **limits):
    tiny.forget_accelerator()
    return run_training(
        data,
        chosen,
        output,
        device="cpu",
        cache=cache,
        limits=Limits(say=lambda line: None, **limits),
    )


def trained_on(styled, **changes):
    return config(pairs=PairsConfig(use=True, styled=(str(styled),), projection=5), **changes)


def test_the_result_is_a_bundle_that_segments_scans(tmp_path, data, cache, styled):
    result = a_run(data, cache, tmp_path / "run", trained_on(styled))
    assert result.finished
    assert 0 <= result.best_dice <= 1
    bundle = load_bundle(result.model)
    assert not any("projection" in name for name in bundle.weights)
    assert bundle.network.norm == "switchable"
    scan = read_volume(read_dataset(data).cases[1].image)
    found = segment(scan, bundle, modality="CT", device="cpu")
    assert found.labels.array.shape == scan.array.shape
    assert (tmp_path / "run" / "previews" / "pairs.png").exists()
    card = (result.model / "docs" / "README.md").read_text("utf-8")
    assert "restyled by diffusion; weight of contrast: 1" in card


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, data, cache, styled):
    chosen = trained_on(styled, random_convolution="smoothed")
    whole = a_run(data, cache, tmp_path / "whole", chosen)
    steps = iter(range(1, 9))
    stopped = a_run(
        data, cache, tmp_path / "parts", chosen, stop_requested=lambda: next(steps) == 3
    )
    assert (stopped.steps, stopped.finished) == (3, False)
    parts = a_run(data, cache, tmp_path / "parts", chosen)
    first, second = (load_bundle(run.model).weights for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_pictures_do_not_resume(tmp_path, data, cache, source):
    folder = source.folder / "styled" / "mine"
    restyled(source, folder, {"same": lambda _, p: p})
    steps = iter(range(1, 9))
    chosen = trained_on(folder)
    a_run(data, cache, tmp_path / "run", chosen, stop_requested=lambda: next(steps) == 2)
    restyled(source, folder, {"same": lambda _, p: 255 - p})
    with pytest.raises(CheckpointError, match="another set of cases"):
        a_run(data, cache, tmp_path / "run", chosen)


def test_every_setting_of_pairs_changes_the_training(tmp_path, data, cache, styled):
    short = replace(config().optimisation, steps=2)
    base = trained_on(styled, optimisation=short, validate_every=0)
    runs = {
        "base": base,
        "contrast": replace(base, pairs=replace(base.pairs, contrast=0.0)),
        "weight": replace(base, pairs=replace(base.pairs, contrast=0.5)),
        "temperature": replace(base, pairs=replace(base.pairs, temperature=0.5)),
        "projection": replace(base, pairs=replace(base.pairs, projection=7)),
        "styled": replace(base, pairs=replace(base.pairs, styled=())),
        "use": replace(base, pairs=PairsConfig()),
        "src": replace(base, random_convolution="smoothed"),
    }
    heads = {}
    for name, chosen in runs.items():
        a_run(data, cache, tmp_path / name, chosen)
        network = load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["network"]
        heads[name] = network["head.weight" if name == "use" else "unet.head.weight"]
    names = list(heads)
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            assert not torch.equal(heads[one], heads[other]), (one, other)


def test_views_that_look_alike_are_brought_together(tmp_path, data, cache, styled):
    """Contrast falls over a few dozen steps, and segmentation is learnt beside it."""
    recipe = replace(config().optimisation, steps=40, learning_rate=5e-3, batch=6)
    chosen = trained_on(styled, optimisation=recipe, validate_every=0)
    losses = []
    original = pairs.nt_xent

    def recorded(projected, temperature):
        value = original(projected, temperature)
        losses.append(float(value.detach()))
        return value

    pairs.nt_xent = recorded
    try:
        a_run(data, cache, tmp_path / "run", chosen)
    finally:
        pairs.nt_xent = original
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_pairs_are_trained_from_the_command_line(tmp_path, data, cache, styled, capsys):
    arguments = ["train", "--data", str(data), "--preset", "icm-fast", "--device", "cpu"]
    arguments += ["--cache", str(cache), "--out", str(tmp_path / "run"), "--set"]
    arguments += ["grid.size=[32,32,1]", "network.channels=[4,6]", "network.decoder=[4]"]
    arguments += ["optimisation.steps=2", "optimisation.batch=2", "data.folds=3"]
    arguments += [f"pairs.styled=[{styled}]"]
    assert main(arguments) == 0
    assert "Network:" in capsys.readouterr().out
    dry = [*arguments[:5], "--dry-run", "--set", "pairs.styled=[nowhere]"]
    assert main(dry) == 3
    assert "nowhere" in capsys.readouterr().err


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {testing!r})
sys.path.append({testing!r} + "/../..")
from Testing.training.segmentation import test_pairs
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation.run import run_training
torch.set_num_threads(1)
chosen = test_pairs.trained_on({styled!r})
run_training(
    Path({data!r}), chosen, Path({output!r}), device="cpu", cache=Path({cache!r}),
    limits=Limits(say=lambda line: None),
)
"""


@pytest.mark.slow
def test_two_processes_train_on_pairs(tmp_path, data, cache, styled):
    script = tmp_path / "script.py"
    script.write_text(
        TWO_PROCESSES.format(
            testing=str(Path(__file__).resolve().parents[2] / "helpers"),
            data=str(data),
            output=str(tmp_path / "run"),
            cache=str(cache),
            styled=str(styled),
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_bundle(tmp_path / "run" / "model").weights


def test_the_configuration_of_pairs_is_kept(tmp_path, data, cache, styled):
    a_run(data, cache, tmp_path / "run", trained_on(styled))
    bundle = load_bundle(tmp_path / "run" / "model")
    kept = bundle.description.training["config"]["pairs"]
    assert kept == to_dict(trained_on(styled))["pairs"]
    assert read_manifest(styled).source == "../.."
