# SPDX-License-Identifier: Apache-2.0
"""srcsm boxes, srcsm refine, srcsm segment --refine, and SAMs among srcsm models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from threshold_network import a_bundle
from tiny_sam import FOUR_TILES

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.key_frames import KeyFrames, load_boxes, save_boxes
from SAMRefineLib.sam.models import SamModel, build_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from srcsm_training.cli import main as cli
from srcsm_training.cli.tables import ranges, refinement_text
from SRCSMSegmenterLib.geometry import Geometry, GridSpec, Volume
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import Description, ModelBundle, save_bundle
from SRCSMSegmenterLib.network import NetworkConfig, UNet
from SRCSMSegmenterLib.organ_positions import Offset
from SRCSMSegmenterLib.source_matching import fit, to_integers
from SRCSMSegmenterLib.terminology import segment_for
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_labels, write_volume

RULE = IntensityRule("CT", window=(-200.0, 300.0))
SEGMENTS = (segment_for("liver", 1), segment_for("spleen", 2))


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Shipped models: a random network abdomen-ct and random SAMs of both modalities."""
    torch.manual_seed(3)
    network = NetworkConfig(classes=3, channels=(4, 6), norm="instance", dropout=0.0)
    bundle = ModelBundle(
        Description(
            "abdomen-ct",
            "Two",
            SEGMENTS,
            RULE,
            GridSpec((16, 16, 8), (3.0, 2.75, 6.0)),
            1.0,
            "",
            "",
        ),
        network,
        fit([to_integers(tiny.phantom(5, "CT")[0], RULE)]),
        UNet(network).state_dict(),
    )
    folder = tmp_path / "models"
    save_bundle(folder / "abdomen-ct", bundle, "# The card\n")
    for name in ("sam-small-ct", "sam-small-mr"):
        sam = SamModel(build_sam("small", FOUR_TILES), name, "small", SRCSM, FOUR_TILES)
        save_sam(folder / name, sam, "# The SAM's card\n", "None")
    monkeypatch.setenv("SRCSM_MODELS", str(folder))
    return folder


@pytest.fixture
def files(tmp_path):
    """A scan, its coarse label map and the probabilities of that."""
    image, labels = tiny.phantom(1, "MR")
    tiny.write_case(tmp_path / "data", "a", image, labels)
    scan = read_volume(tmp_path / "data/imagesTr/a_0000.nii.gz")
    coarse = tmp_path / "coarse.seg.nrrd"
    write_labels(coarse, Volume(labels, scan.geometry), SEGMENTS)
    sure = np.where(labels > 0, 0.9, 1.0).astype(np.float32)
    sure[9:] = 0.6
    write_volume(tmp_path / "sure.nii.gz", Volume(sure, scan.geometry))
    return {
        "scan": tmp_path / "data/imagesTr/a_0000.nii.gz",
        "coarse": coarse,
        "sure": tmp_path / "sure.nii.gz",
        "labels": labels,
        "geometry": scan.geometry,
    }


def run(*arguments):
    return cli.main([*map(str, arguments)])


def refused(capsys, code, *arguments):
    """The one sentence that a command says when it exits with `code`."""
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("srcsm: error: ")
    return printed.err


def test_boxes_lie_around_what_is_sure(files, tmp_path, capsys):
    out = tmp_path / "boxes.json"
    options = ("--coarse", files["coarse"], "--coarse-confidence", files["sure"], "--json")
    assert run("boxes", files["scan"], "-o", out, *options, "--pictures", tmp_path / "p") == 0
    said = json.loads(capsys.readouterr().out)
    # Voxels of 2.5 x 2 x 3 mm: slices lie across K.
    liver, spleen = load_boxes(out)
    liver.require(SliceGrid(files["geometry"], 2))
    labels = files["labels"]
    assert (liver.name, liver.label, spleen.name, spleen.label) == ("liver", 1, "spleen", 2)
    shown = [n for n in range(24) if (labels[n] == 1).any()]
    assert sorted(liver.automatic) == [n for n in shown if n < 9]
    n = shown[2]
    rows, columns = np.nonzero(labels[n] == 1)
    expected = Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert liver.automatic[n] == expected
    assert said["axis"] == "K"
    assert said["organs"][0]["slices_without_box"] == [n for n in shown if n >= 9]
    assert [Path(path).name for path in said["pictures"]] == ["a_0000_liver.png"]
    assert (tmp_path / "p/a_0000_liver.png").stat().st_size > 10_000


def test_boxes_say_which_organ_has_none(files, tmp_path, capsys):
    out = tmp_path / "boxes.json"
    options = ("--coarse", files["coarse"], "--coarse-confidence", files["sure"])
    assert run("boxes", files["scan"], "-o", out, *options, "--box-confidence", 0.95) == 0
    printed = capsys.readouterr()
    assert "no box for liver" in printed.err
    assert "0 boxes; shown without a box in" in printed.out


def test_boxes_take_every_option(files, tmp_path):
    out = tmp_path / "boxes.json"
    run("boxes", files["scan"], "-o", out, "--coarse", files["coarse"], "--axis", "J")
    assert load_boxes(out)[0].grid.axis == 1
    run("boxes", files["scan"], "-o", out, "--coarse", files["coarse"], "--shrink", 4)
    edges = [box.edges for box in load_boxes(out)[0].automatic.values()]
    assert all(x0 % 4 == y0 % 4 == 0 for x0, y0, _, _ in edges)
    labels = files["labels"].copy()
    labels[1, 0:2, 18:20] = 1
    stray = tmp_path / "stray.nii.gz"
    write_labels(stray, Volume(labels, files["geometry"]), SEGMENTS)
    run("boxes", files["scan"], "-o", out, "--coarse", stray)
    filtered = load_boxes(out)[0]
    run("boxes", files["scan"], "-o", out, "--coarse", stray, "--unfiltered")
    unfiltered = load_boxes(out)[0]
    assert filtered.name == "label 1"
    assert unfiltered.automatic[1].x1 == 20
    assert 1 not in filtered.automatic or filtered.automatic[1].x1 < 18


def test_boxes_segment_the_scan_first_where_there_is_no_coarse_mask(files, models, tmp_path):
    out = tmp_path / "boxes.json"
    assert run("boxes", files["scan"], "-o", out, "--box-confidence", 0.3, "--device", "cpu") == 0
    assert [organ.name for organ in load_boxes(out)] == ["liver", "spleen"]


def test_boxes_lie_around_the_piece_that_segment_keeps(files, models, tmp_path):
    """Of a liver in two places the one by the spleen, although the other is larger."""
    grid = GridSpec((12, 12, 4), (3.0, 3.0, 6.0))
    beside = Offset(1, 2, (0.0, 0.0, 6.0), np.eye(3).tolist())
    save_bundle(models / "two", replace(a_bundle(grid), offsets=(beside,)), "# The card\n")
    array = np.full((4, 12, 12), -200, np.int16)
    array[0, 2:10, 2:10] = -20
    array[2, 3:9, 3:9] = -20
    array[3, 3:9, 3:9] = 150
    scan, out = tmp_path / "two.nii.gz", tmp_path / "boxes.json"
    write_volume(scan, Volume(array, Geometry((12, 12, 4), np.diag([3.0, 3.0, 6.0, 1.0]))))
    options = ("--model", "two", "--modality", "CT", "--device", "cpu", "--box-confidence", 0.5)
    assert run("boxes", scan, "-o", out, *options) == 0
    assert list(load_boxes(out)[0].automatic) == [2]
    assert run("boxes", scan, "-o", out, *options, "--unfiltered") == 0
    assert list(load_boxes(out)[0].automatic) == [0, 2]


def test_boxes_of_one_organ_and_the_mask_of_another_are_refused(files, models, tmp_path, capsys):
    boxes, swapped = tmp_path / "boxes.json", tmp_path / "swapped.seg.nrrd"
    run("boxes", files["scan"], "-o", boxes, "--coarse", files["coarse"])
    other = [segment_for("spleen", 1), segment_for("liver", 2)]
    write_labels(swapped, Volume(files["labels"], files["geometry"]), other)
    capsys.readouterr()
    refine = ("refine", files["scan"], "--boxes", boxes, "-o", tmp_path / "fine.nii.gz")
    said = refused(capsys, 3, *refine, "--coarse", swapped)
    assert "Label 1 is liver in" in said
    assert "and spleen in" in said


def test_it_is_said_that_organs_without_names_are_all_redrawn(files, liver_sam, tmp_path, capsys):
    boxes, nameless = tmp_path / "boxes.json", tmp_path / "coarse.nii.gz"
    write_labels(nameless, Volume(files["labels"], files["geometry"]), SEGMENTS)
    run("boxes", files["scan"], "-o", boxes, "--coarse", nameless)
    refine = ("refine", files["scan"], "--boxes", boxes, "--coarse", nameless, "--device", "cpu")
    capsys.readouterr()
    assert run(*refine, "-o", tmp_path / "fine.nii.gz", "--json") == 0
    (said,) = json.loads(capsys.readouterr().out)["messages"]
    assert said.startswith(f"{boxes} does not name its organs, so all were redrawn")


def test_organs_are_asked_for_by_any_spelling(files, liver_sam, tmp_path, capsys):
    boxes = tmp_path / "boxes.json"
    grid = SliceGrid(files["geometry"], 2)
    frames = [KeyFrames.from_coarse("right_kidney", 1, files["labels"] == 1, grid)]
    save_boxes(boxes, frames)
    refine = ("refine", files["scan"], "--boxes", boxes, "--device", "cpu")
    assert run(*refine, "-o", tmp_path / "fine.nii.gz", "--organs", "Right kidney") == 0
    assert "right kidney" in capsys.readouterr().out


def test_refine_writes_labels_of_the_scan_s_grid(files, models, tmp_path, capsys):
    boxes, out = tmp_path / "boxes.json", tmp_path / "fine.seg.nrrd"
    run("boxes", files["scan"], "-o", boxes, "--coarse", files["coarse"])
    capsys.readouterr()
    code = run(
        *("refine", files["scan"], "--boxes", boxes, "-o", out, "--coarse", files["coarse"]),
        *("--coarse-confidence", files["sure"], "--confidence", tmp_path / "c.nii.gz"),
        *("--pictures", tmp_path / "pictures", "--no-mask-prompt", "--device", "cpu", "--json"),
    )
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    written = read_labels(out)
    assert written.geometry.matches(files["geometry"])
    assert set(np.unique(written.array)) <= {0, 1, 2}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(out))
    reader.ReadImageInformation()
    assert reader.GetMetaData("Segment1_Name") == "spleen"
    liver = said["organs"][0]
    assert said["sam"]["name"] == "sam-small-mr"  # the scan is an MR
    voxel = 2.5 * 2 * 3 / 1000
    assert liver["ml_before"] == pytest.approx((files["labels"] == 1).sum() * voxel)
    assert liver["ml_after"] == pytest.approx((written.array == 1).sum() * voxel)
    both = ((written.array == 1) & (files["labels"] == 1)).sum()
    total = (written.array == 1).sum() + (files["labels"] == 1).sum()
    assert liver["dice"] == pytest.approx(2 * both / total)
    assert liver["boxes"] == len(load_boxes(boxes)[0].automatic)
    assert said["encoder_passes"] > 0
    assert len(said["pictures"]) == 2
    assert all(Path(path).stat().st_size > 10_000 for path in said["pictures"])
    assert 0.5 <= read_volume(tmp_path / "c.nii.gz").array.max() <= 1


def test_refine_for_a_reader_and_without_a_coarse_mask(files, models, tmp_path, capsys):
    boxes, out = tmp_path / "boxes.json", tmp_path / "fine.nii.gz"
    run("boxes", files["scan"], "-o", boxes, "--coarse", files["coarse"])
    capsys.readouterr()
    for options in (
        (),
        ("--modality", "CT"),
        ("--coarse", files["coarse"], "--mosaic", "slices", "--mask-threshold", 0.7),
    ):
        arguments = ("refine", files["scan"], "--boxes", boxes, "-o", out, "--device", "cpu")
        assert run(*arguments, *options) == 0
        printed = capsys.readouterr().out
        assert ("sam-small-ct" if "CT" in options else "sam-small-mr") in printed
        assert "liver" in printed
    assert read_labels(out).geometry.matches(files["geometry"])


def test_labels_without_boxes_stay(files, models, tmp_path):
    """Where the boxes are the liver's alone, the spleen is what it was."""
    boxes, out = tmp_path / "boxes.json", tmp_path / "fine.nii.gz"
    grid = SliceGrid(files["geometry"], 2)
    save_boxes(boxes, [KeyFrames.from_coarse("liver", 1, files["labels"] == 1, grid)])
    code = run(
        *("refine", files["scan"], "--boxes", boxes, "--coarse", files["coarse"], "-o", out),
        *("--device", "cpu"),
    )
    assert code == 0
    spleen = files["labels"] == 2
    assert (read_labels(out).array[spleen] == 2).all()


@pytest.fixture
def liver_sam(models):
    """The shipped SAM of MR, trained on livers alone."""
    sam = SamModel(
        build_sam("small", FOUR_TILES),
        "sam-small-mr",
        "small",
        SRCSM,
        FOUR_TILES,
        training={"validation_dice": {"liver": 0.9}},
    )
    save_sam(models / "sam-small-mr", sam, "# The SAM's card\n", "None")


def test_organs_that_the_sam_was_not_trained_on_stay_unless_they_are_asked_for(
    files, liver_sam, tmp_path, capsys
):
    boxes, out = tmp_path / "boxes.json", tmp_path / "fine.nii.gz"
    run("boxes", files["scan"], "-o", boxes, "--coarse", files["coarse"])
    refine = ("refine", files["scan"], "--boxes", boxes, "-o", out, "--device", "cpu")
    coarse = ("--coarse", files["coarse"])
    capsys.readouterr()

    def asked(*options):
        assert run(*refine, *options, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        return {organ["name"] for organ in said["organs"] if organ["boxes"]}, said["messages"]

    redrawn, messages = asked(*coarse)
    assert redrawn == {"liver"}
    assert messages[0].startswith("sam-small-mr was not trained on these, which stay")
    assert (read_labels(out).array[files["labels"] == 2] == 2).all()
    assert run(*refine, *coarse) == 0
    assert capsys.readouterr().out.endswith(f"  {messages[0]}\n")

    check = ["sam-small-mr was not trained on these, so check them: spleen."]
    assert asked(*coarse, "--organs", "spleen") == ({"spleen"}, check)
    assert (read_labels(out).array[files["labels"] == 1] == 1).all()
    assert asked() == ({"liver", "spleen"}, check)  # without a coarse mask nothing would stay
    said = refused(capsys, 2, *refine, "--organs", "splen")
    assert "has no boxes of splen; it has of liver, spleen." in said


def test_segment_refines_in_one_go(files, models, tmp_path, capsys):
    out, sure = tmp_path / "fine.seg.nrrd", tmp_path / "sure_fine.nii.gz"
    code = run(
        *("segment", files["scan"], "-o", out, "--refine", "--confidence", sure),
        *("--device", "cpu", "--json"),
    )
    assert code == 0
    (said,) = json.loads(capsys.readouterr().out)["scans"]
    assert said["refinement"]["sam"]["name"] == "sam-small-ct"
    assert [organ["name"] for organ in said["refinement"]["organs"]] == ["liver", "spleen"]
    written = read_labels(out)
    assert written.geometry.matches(files["geometry"])
    for organ in said["organs"]:
        voxels = (written.array == organ["label"]).sum()
        assert organ["volume_ml"] == pytest.approx(voxels * 0.015)
    assert "refine" in said["seconds"]
    assert read_volume(sure).array.shape == written.array.shape
    assert run("segment", files["scan"], "-o", out, "--refine", "--device", "cpu") == 0
    assert "refined:" in capsys.readouterr().out


def test_slicers_worker_refines_in_one_go_to_the_same_labels(files, models, tmp_path):
    from SAMRefineLib.refine.tasks import TASKS
    from SRCSMSegmenterLib.worker.tasks import Context, Models

    out, told = tmp_path / "organs.seg.nrrd", []
    assert run("segment", files["scan"], "-o", out, "--refine", "--device", "cpu") == 0
    scan = read_volume(files["scan"])
    reply, arrays = TASKS["segment_refined"](
        {"model": "abdomen-ct", "device": "cpu", **scan.geometry.to_json()},
        {"image": scan.array},
        Context(lambda *each: told.append(each), lambda: False, print, Models()),
    )
    written = read_labels(out).array
    assert np.unique(written).size > 1
    np.testing.assert_array_equal(arrays["labels"], written)
    assert reply["refinement"]["sam"]["name"] == "sam-small-ct"
    voxel_ml = scan.geometry.voxel_ml
    assert reply["volumes_ml"]["liver"] == pytest.approx((written == 1).sum() * voxel_ml)
    assert {"probability_1", "probability_2"} < arrays.keys()
    fractions = [fraction for stage, fraction in told]
    assert fractions == sorted(fractions)
    assert 0.5 < fractions[-1] <= 1


def test_what_cannot_be_refined_is_refused_in_a_sentence(files, models, tmp_path, capsys):
    scan, boxes, out = files["scan"], tmp_path / "boxes.json", tmp_path / "fine.nii.gz"
    run("boxes", scan, "-o", boxes, "--coarse", files["coarse"])
    capsys.readouterr()
    refine = ("refine", scan, "--boxes", boxes, "-o", out, "--device", "cpu")

    said = refused(capsys, 4, *refine, "--sam", "sam-large")
    assert "There is no SAM sam-large" in said
    assert "sam-small-ct" in said
    said = refused(capsys, 4, *refine, "--sam", "runs/typo/sam-small-ct")
    assert "There is no SAM runs/typo/sam-small-ct" in said
    (tmp_path / "sam.pth").write_bytes(b"none")
    assert "SHA-256" in refused(capsys, 4, *refine, "--sam", tmp_path / "sam.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "sam.pth")
    said = refused(capsys, 4, *refine, "--sam", tmp_path / "sam.pth", "--sam-kind", "medsam")
    assert "weights are not those" in said
    said = refused(capsys, 2, "segment", scan, "-o", out, "--sam", "sam-small-ct")
    assert "--refine" in said
    said = refused(capsys, 2, *refine, "--coarse-confidence", files["sure"])
    assert "--coarse" in said
    assert "threshold" in refused(capsys, 3, *refine, "--mask-threshold", 1.5)
    assert "could not be read" in refused(
        capsys, 3, "refine", scan, "--boxes", tmp_path / "none.json", "-o", out
    )
    assert "is no text" in refused(capsys, 3, "refine", scan, "--boxes", files["sure"], "-o", out)
    assert ".json" in refused(capsys, 2, "boxes", scan, "-o", tmp_path / "boxes.txt")
    assert not out.exists()

    image, labels = tiny.phantom(2, "MR")
    other = tmp_path / "other.nii.gz"
    shorter = Geometry((20, 22, 23), files["geometry"].affine)
    write_volume(other, Volume(image[1:], shorter))
    said = refused(capsys, 3, "refine", other, "--boxes", boxes, "-o", out)
    assert "another grid" in said
    affine = files["geometry"].affine.copy()
    affine[:3, 3] += affine[:3, 0] * 0.4
    write_volume(other, Volume(image, Geometry((20, 22, 24), affine)))
    said = refused(capsys, 3, "boxes", other, "-o", boxes, "--coarse", files["coarse"])
    assert "scan's grid" in said
    empty = tmp_path / "empty.nii.gz"
    write_labels(empty, Volume(np.zeros_like(labels), files["geometry"]), [])
    assert "no label" in refused(capsys, 3, "boxes", scan, "-o", boxes, "--coarse", empty)


def test_models_lists_verifies_and_describes_sams(models, capsys):
    assert run("models", "list", "--json") == 0
    network, sam, _ = json.loads(capsys.readouterr().out)
    assert network["name"] == "abdomen-ct"
    assert (sam["name"], sam["kind"]) == ("sam-small-ct", "small")
    assert run("models", "list") == 0
    assert "sam-small-ct, a SAM (small)" in capsys.readouterr().out
    assert run("models", "describe", "sam-small-ct") == 0
    printed = capsys.readouterr().out
    assert "# The SAM's card" in printed
    assert sam["identity"] in printed
    assert run("models", "describe", "sam-small-ct", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sizes"]["canvas"] == 128
    assert run("models", "verify") == 0
    assert capsys.readouterr().out.count("whole") == 3
    with (models / "sam-small-ct/config.json").open("a") as file:
        file.write(" ")
    assert run("models", "verify", "sam-small-ct") == 4
    assert "altered" in capsys.readouterr().out
    assert run("models", "list") == 0
    assert "incomplete or altered" in capsys.readouterr().out


def test_columns_of_a_table_line_up_whatever_the_names():
    names = "liver", "portal_and_splenic_vein"
    rows = [{"name": each, "boxes": 3, "dice": None, "ml_after": 2.5} for each in names]
    head, *lines = refinement_text(rows).splitlines()
    assert [line.index("    3 ") for line in lines] == [head.index("boxes")] * 2
    assert lines[1].startswith("  portal and splenic vein")


def test_slice_numbers_are_listed_in_runs():
    assert ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
    assert ranges([]) == ""


@pytest.mark.parametrize("option", ["-o", "--confidence"])
def test_what_is_refined_is_not_overwritten(models, files, tmp_path, capsys, option):
    boxes, coarse = tmp_path / "boxes.json", tmp_path / "coarse.nii.gz"
    labels = Volume(files["labels"], files["geometry"])
    write_labels(coarse, labels, SEGMENTS)
    assert run("boxes", files["scan"], "--coarse", coarse, "-o", boxes) == 0
    capsys.readouterr()
    given = ("refine", files["scan"], "--boxes", boxes, "--coarse", coarse)
    outputs = {"-o": tmp_path / "fine.nii.gz", option: coarse}
    written = [part for pair in outputs.items() for part in pair]
    assert "would be overwritten" in refused(capsys, 2, *given, *written)
    np.testing.assert_array_equal(read_labels(coarse).array, files["labels"])
