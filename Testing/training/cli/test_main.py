# SPDX-License-Identifier: Apache-2.0
"""The command line: what each command does, and what bad input gets for an answer."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from srcsm_training.cli import main as cli
from srcsm_training.cli.failures import EXTRAS, sentence
from srcsm_training.data.dataset import check_dataset, read_dataset
from srcsm_training.engine import config
from srcsm_training.engine.progress import Progress
from srcsm_training.engine.run_folder import RunResult
from srcsm_training.segmentation import presets
from srcsm_training.segmentation.export import Signature
from SRCSMSegmenterLib import inference
from SRCSMSegmenterLib.endings import LABELS
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle
from SRCSMSegmenterLib.source_matching import fit, match_to_source, to_integers
from SRCSMSegmenterLib.volume_io import read_labels, read_volume, write_volume

REPOSITORY = Path(__file__).resolve().parents[3]
COMMANDS = (
    ["segment"],
    ["boxes"],
    ["refine"],
    ["train"],
    ["train-sam"],
    ["prepare-data"],
    ["pack-data"],
    ["evaluate"],
    ["match"],
    ["models", "list"],
    ["models", "verify"],
    ["models", "describe"],
    ["phantom"],
    ["demo"],
    ["worker"],
)


def run(*arguments):
    return cli.main([*map(str, arguments)])


def refused(capsys, code, *arguments):
    """The one sentence that a command says when it exits with `code`."""
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("srcsm: error: ")
    assert "Traceback" not in printed.err
    return printed.err


# Help and README


def test_help_lists_every_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n  {code} " in text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_examples(capsys, command):
    with pytest.raises(SystemExit) as ended:
        run(*command, "--help")
    assert ended.value.code == 0
    assert f"examples:\n  srcsm {' '.join(command)}" in capsys.readouterr().out


def test_every_example_in_the_help_parses(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            run(*command, "--help")
    lines = capsys.readouterr().out.replace("\\\n", " ").splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("  srcsm ")]
    assert len(examples) > 12
    parser = cli.make_parser()
    for example in examples:
        assert parser.parse_args([word.strip("'") for word in example]).command == example[0]


def readme_blocks(language):
    """The code blocks of the README in a language."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_commands_parse():
    blocks = [block.replace("\\\n", " ") for block in readme_blocks("bash")]
    lines = [line for block in blocks for line in block.splitlines()]
    scripts = re.compile(r"^(srcsm|accelerate .* training/train.py)")
    commands = [scripts.sub("", line).split() for line in lines if scripts.match(line)]
    assert len(commands) > 7
    for command in commands:
        arguments = command if command[0][0] != "-" else ["train", *command]
        assert cli.make_parser().parse_args(arguments).command == arguments[0]


def test_the_readmes_python_runs(models, scan, tmp_path, monkeypatch):
    [code] = readme_blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mr.nii.gz").write_bytes(scan.read_bytes())
    exec(compile(code, "README.md", "exec"), {})
    assert read_volume("organs.seg.nrrd").geometry.matches(read_volume(scan).geometry)


def test_neither_help_nor_any_module_of_the_command_line_loads_anything_heavy():
    modules = sorted(path.stem for path in (REPOSITORY / "training" / "cli").glob("*.py"))
    assert {"main", "train_sam", "worker"} < set(modules)
    code = (
        "import sys; from importlib import import_module\n"
        f"for name in {modules}: import_module(f'srcsm_training.cli.{{name}}')\n"
        "sys.modules['srcsm_training.cli.main'].make_parser().format_help()\n"
        "print([name for name in ('torch', 'numpy', 'SimpleITK') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


PYTHON = (sys.executable,)
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")


@pytest.mark.parametrize(
    ("launcher", "script", "option", "expected"),
    [
        (PYTHON, "train.py", "--list-presets", "abdomen-paper"),
        (PYTHON, "evaluate.py", "--help", "usage: srcsm evaluate"),
        (ACCELERATE, "train.py", "--list-presets", "abdomen-paper"),
    ],
)
def test_nothing_beside_the_scripts_hides_other_modules(
    tmp_path, launcher, script, option, expected
):
    """Python puts a script's folder in front of all others."""
    folder = tmp_path / "training"
    folder.mkdir()
    shutil.copy(REPOSITORY / "training" / script, folder)
    for name in ("pathlib", "argparse", "torch", "numpy", "phantom", "cli", "srcsm_training"):
        (folder / f"{name}.py").write_text('raise SystemExit(f"{__name__} is hidden")')
    command = [*launcher, folder / script, option]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_a_missing_package_is_told_with_the_extra_that_brings_it():
    brought = {}
    for line in requires("srcsm"):
        if found := re.fullmatch(r"([\w-]+); extra == \"(dicom|training|refine|style)\"", line):
            brought.setdefault(found[2], set()).add(found[1])
    names = {"yaml": "pyyaml", "PIL": "pillow", "segment_anything": "segment-anything"}
    assert brought == {
        extra: {names.get(name, name) for name in modules} for extra, modules in EXTRAS.items()
    }
    for missing, wanted in (
        ("segment_anything", "'srcsm[refine]'"),
        ("torchvision.models.segmentation", "'srcsm[refine]'"),
        ("yaml", "'srcsm[training]'"),
        ("diffusers", "'srcsm[style]'"),
        ("highdicom", "'srcsm[dicom]'"),
        ("tqdm", "srcsm"),
    ):
        message = sentence(ModuleNotFoundError("none", name=missing))
        package = missing.partition(".")[0]
        assert message == f"This needs the package {package}: pip install {wanted}."


def test_an_unknown_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        run("segmant")
    assert ended.value.code == 2
    assert "segmant" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_unless_debugging(capsys, monkeypatch, models):
    def broken(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("SRCSMSegmenterLib.models.bundle.verify_bundle", broken)
    message = refused(capsys, 1, "models", "verify")
    assert "ZeroDivisionError: by zero" in message
    assert "--debug" in message
    assert run("models", "verify", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


# segment


def test_segment_writes_labels_on_the_scans_own_grid(models, scan, tmp_path, capsys):
    assert run("segment", scan, "-o", tmp_path / "labels.nii.gz", "--device", "cpu") == 0
    labels, image = read_labels(tmp_path / "labels.nii.gz"), read_volume(scan)
    assert labels.geometry.matches(image.geometry)
    options = {"modality": "MR", "device": "cpu"}
    expected = inference.segment(image, load_bundle(models / "abdomen-ct"), **options)
    assert np.array_equal(labels.array, expected.labels.array)
    assert len(np.unique(labels.array)) > 1
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert "with source matching" in printed


def test_segment_tells_programs_volumes_certainty_timings_and_the_model(
    models, scan, tmp_path, capsys
):
    labels, sure = tmp_path / "labels.seg.nrrd", tmp_path / "sure.nrrd"
    assert run("segment", scan, "-o", labels, "--confidence", sure, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"]["name"] == "abdomen-ct"
    assert told["model"]["identity"] == load_bundle(models / "abdomen-ct").identity
    [result] = told["scans"]
    assert (result["modality"], result["source_matching"]) == ("MR", True)
    assert result["messages"][0] == (
        "Taken for MR: hardly a voxel is below -100, as air and fat are in a CT."
    )
    assert {"read", "prepare", "network", "resample", "write"} <= result["seconds"].keys()
    array, confidence = read_labels(labels).array, read_volume(sure).array
    voxel = np.prod(tiny.SPACING) / 1000
    for organ in result["organs"]:
        inside = array == organ["label"]
        assert organ["volume_ml"] == pytest.approx(inside.sum() * voxel)
        assert organ["confidence"] == pytest.approx(confidence[inside].mean(), abs=1e-3)
        uncertainties = [s["uncertainty_mm"] for s in organ["least_certain_slices"]]
        assert uncertainties == sorted(uncertainties, reverse=True)
    assert [organ["name"] for organ in result["organs"]] == ["liver", "spleen"]


@pytest.mark.parametrize(
    ("modality", "option", "expected"),
    [("CT", "auto", False), ("MR", "auto", True), ("CT", "on", True), ("MR", "off", False)],
)
def test_source_matching_is_automatic_for_other_modalities_only(
    models, datasets, tmp_path, capsys, modality, option, expected
):
    image = datasets[modality] / "imagesTr" / "a_0000.nii.gz"
    output = tmp_path / "labels.nii.gz"
    options = ("--source-matching", option, "--no-keep-largest", "--json")
    assert run("segment", image, "-o", output, *options) == 0
    [result] = json.loads(capsys.readouterr().out)["scans"]
    assert result["source_matching"] is expected
    found = inference.segment(
        read_volume(image),
        load_bundle(models / "abdomen-ct"),
        modality=modality,
        source_matching=expected,
        device="cpu",
        keep_largest=False,
    )
    assert np.array_equal(read_labels(output).array, found.labels.array)


def test_the_modality_given_wins_over_the_guess(models, datasets, tmp_path, capsys):
    image = datasets["MR"] / "imagesTr" / "a_0000.nii.gz"
    output = tmp_path / "labels.nii.gz"
    options = ("--modality", "CT", "--no-keep-largest", "--json")
    assert run("segment", image, "-o", output, *options) == 0
    [result] = json.loads(capsys.readouterr().out)["scans"]
    assert (result["modality"], result["source_matching"]) == ("CT", False)
    assert result["messages"] == ["CT without air (the minimum is 0): are these Hounsfield units?"]


def test_a_bad_scan_does_not_keep_the_others_from_being_segmented(
    models, datasets, tmp_path, capsys
):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no scan")
    scans = sorted((datasets["MR"] / "imagesTr").iterdir())
    arguments = ["segment", scans[0], bad, scans[1], "-o", tmp_path / "out", "--json"]
    assert run(*arguments, "--format", ".seg.nrrd", "--confidence", tmp_path / "out") == 3
    printed = capsys.readouterr()
    assert [("error" in result) for result in json.loads(printed.out)["scans"]] == [0, 1, 0]
    assert str(bad) in printed.err
    written = [".seg.nrrd", "_confidence.nii.gz"]  # as nnU-Net names label maps, without _0000
    expected = [*(f"{case}{name}" for case in "ab" for name in written), "segmented.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected


@pytest.fixture
def cohort(datasets, tmp_path):
    """A folder with a scan, another in a sub-folder, and a file that is none."""
    folder = tmp_path / "cohort"
    (folder / "site").mkdir(parents=True)
    shutil.copy(datasets["MR"] / "imagesTr" / "a_0000.nii.gz", folder / "a.nii.gz")
    shutil.copy(datasets["CT"] / "imagesTr" / "b_0000.nii.gz", folder / "site" / "b.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    return folder


def test_a_folder_of_scans_is_segmented_like_a_list_of_them(models, cohort, tmp_path, capsys):
    listed, out = tmp_path / "listed", tmp_path / "out"
    scans = [cohort / "a.nii.gz", cohort / "site" / "b.nii.gz"]
    assert run("segment", *scans, "-o", listed, "--jobs", 1) == 0
    assert run("segment", cohort, "-o", out, "--confidence", out / "sure") == 3
    printed = capsys.readouterr()
    assert "2 of 3 scans segmented; failed" in printed.err.splitlines()[-1]
    assert str(cohort / "bad.nii.gz") in printed.err.splitlines()[-1]
    for name in ("a", "site/b"):
        assert (out / "sure" / f"{name}_confidence.nii.gz").exists()
        labels = read_labels(out / f"{name}.nii.gz").array
        assert np.array_equal(labels, read_labels(listed / f"{Path(name).name}.nii.gz").array)


def test_a_stopped_command_goes_on_with_what_is_missing(models, cohort, tmp_path, capsys):
    command = ["segment", cohort, "-o", tmp_path / "out", "--json", "--resume"]
    segmented = []

    def call(code, *options):
        assert run(*command, *options) == code
        scans = json.loads(capsys.readouterr().out)["scans"]
        segmented.append([Path(scan["input"]).name for scan in scans])

    call(3)
    call(3)
    (cohort / "bad.nii.gz").unlink()
    (tmp_path / "out" / "site" / "b.nii.gz").unlink()
    call(0)
    call(0)
    call(0, "--no-keep-largest")
    a, bad, b = "a.nii.gz", "bad.nii.gz", "b.nii.gz"
    assert segmented == [[a, bad, b], [bad], [b], [], [a, b]]


def test_only_a_folder_is_resumed(models, scan, tmp_path, capsys):
    message = refused(capsys, 2, "segment", scan, "-o", tmp_path / "a.nii.gz", "--resume")
    assert "--resume" in message


def test_processes_share_the_scans(models, cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    inputs = []
    for rank, code in (("0", 0), ("1", 3)):
        monkeypatch.setenv("RANK", rank)
        assert run("segment", cohort, "-o", tmp_path / "out", "--json") == code
        scans = json.loads(capsys.readouterr().out)["scans"]
        inputs.append([Path(scan["input"]).name for scan in scans])
    assert inputs == [["a.nii.gz", "b.nii.gz"], ["bad.nii.gz"]]


def test_an_unexpected_error_of_one_scan_does_not_stop_the_rest(
    models, datasets, tmp_path, capsys, monkeypatch
):
    segment = inference.segment

    def fail_once(*arguments, **options):
        monkeypatch.setattr("SRCSMSegmenterLib.inference.segment", segment)
        raise ArithmeticError("a bug")

    monkeypatch.setattr("SRCSMSegmenterLib.inference.segment", fail_once)
    scans = sorted((datasets["MR"] / "imagesTr").iterdir())
    assert run("segment", *scans, "-o", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert f"{scans[0]}: Unexpected ArithmeticError: a bug" in printed
    assert (tmp_path / "out" / "b.nii.gz").exists()


def garbage(folder, datasets):
    (folder / "scan.nii.gz").write_bytes(b"\x1f\x8b no scan")
    return folder / "scan.nii.gz"


def truncated(folder, datasets):
    whole = (datasets["CT"] / "imagesTr" / "a_0000.nii.gz").read_bytes()
    (folder / "scan.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder / "scan.nii.gz"


def missing(folder, datasets):
    return folder / "scan.nii.gz"


def not_a_number(folder, datasets):
    array = np.ones((5, 6, 7), np.float32)
    array[2, 3, 4] = np.nan
    write_volume(folder / "scan.nii.gz", Volume(array, Geometry((7, 6, 5), np.eye(4))))
    return folder / "scan.nii.gz"


def constant(folder, datasets):
    array = np.ones((5, 6, 7), np.float32)
    write_volume(folder / "scan.nii.gz", Volume(array, Geometry((7, 6, 5), np.eye(4))))
    return folder / "scan.nii.gz"


@pytest.mark.parametrize("make", [garbage, truncated, missing, not_a_number, constant])
def test_a_scan_that_cannot_be_used_leaves_nothing_behind(models, datasets, tmp_path, capsys, make):
    folder = tmp_path / "scans"
    folder.mkdir()
    bad = make(folder, datasets)
    before = sorted(folder.iterdir())
    refused(capsys, 3, "segment", bad, "-o", folder / "labels.nii.gz", "--device", "cpu")
    assert sorted(folder.iterdir()) == before


def test_an_unknown_device_is_named_with_those_there_are(models, scan, tmp_path, capsys):
    output = tmp_path / "labels.nii.gz"
    message = refused(capsys, 5, "segment", scan, "-o", output, "--device", "gpu")
    assert '"gpu"' in message
    assert "cpu" in message


def test_an_unknown_model_is_answered_with_the_shipped_ones(models, scan, tmp_path, capsys):
    output = tmp_path / "labels.nii.gz"
    message = refused(capsys, 4, "segment", scan, "-o", output, "--model", "abdomen-us")
    assert "abdomen-us" in message
    assert "abdomen-ct" in message


@pytest.mark.parametrize("path", ["models/model.safetensors", "configs/network.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_bytes(p.read_bytes() + b" ")])
def test_an_incomplete_or_altered_model_is_refused(models, scan, tmp_path, capsys, path, damage):
    damage(models / "abdomen-ct" / path)
    message = refused(capsys, 4, "segment", scan, "-o", tmp_path / "labels.nii.gz")
    assert path in message
    assert not (tmp_path / "labels.nii.gz").exists()


def test_an_output_of_unknown_format_is_refused_before_the_work(models, scan, tmp_path, capsys):
    message = refused(capsys, 2, "segment", scan, "-o", tmp_path / "labels.tiff")
    assert all(ending in message for ending in LABELS)


def test_a_confidence_does_not_go_into_a_segmentation_file(models, scan, tmp_path, capsys):
    outputs = ["-o", tmp_path / "a.seg.nrrd", "--confidence", tmp_path / "b.seg.nrrd"]
    assert "b.seg.nrrd" in refused(capsys, 2, "segment", scan, *outputs)


def test_scans_and_results_are_never_written_over(models, datasets, tmp_path, capsys):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes((datasets["MR"] / "imagesTr" / "a_0000.nii.gz").read_bytes())
    before = scan.read_bytes()
    same = tmp_path / "." / "scan.nii.gz"
    assert "scan.nii.gz" in refused(capsys, 2, "segment", scan, "-o", same)
    refused(capsys, 2, "segment", scan, "-o", tmp_path)
    refused(capsys, 2, "segment", scan, scan, "-o", tmp_path / "out")
    labels = tmp_path / "labels.nii.gz"
    refused(capsys, 2, "segment", scan, "-o", labels, "--confidence", labels)
    refused(capsys, 2, "match", scan, "-o", scan)
    assert scan.read_bytes() == before


@pytest.mark.parametrize("place", ["file/labels.nii.gz", "absent/labels.nii.gz", "file/folder"])
def test_an_output_folder_that_cannot_be_written_to_is_found_out_first(
    models, scan, tmp_path, capsys, monkeypatch, place
):
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setattr("SRCSMSegmenterLib.volume_io.read_volume", None)
    message = refused(capsys, 6, "segment", scan, "-o", tmp_path / place)
    assert str(tmp_path / place.split("/")[0]) in message


def test_a_disk_that_fills_while_writing_is_a_fault_of_the_output(
    models, scan, tmp_path, capsys, monkeypatch
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    output = tmp_path / "labels.nii.gz"
    output.write_text("older labels")
    monkeypatch.setattr("SRCSMSegmenterLib.atomic.os.replace", full)
    assert "No space left" in refused(capsys, 6, "segment", scan, "-o", output)
    assert output.read_text("utf-8") == "older labels"


def test_ctrl_c_is_no_error(models, scan, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("SRCSMSegmenterLib.inference.segment", interrupted)
    assert run("segment", scan, "-o", tmp_path / "labels.nii.gz") == 130
    assert capsys.readouterr().err == "srcsm: interrupted\n"


# match


def test_match_does_what_inference_does(models, scan, tmp_path, capsys):
    output = tmp_path / "matched.nii.gz"
    assert run("match", scan, "-o", output, "--json") == 0
    bundle = load_bundle(models / "abdomen-ct")
    image = read_volume(scan)
    expected = match_to_source(
        image.array, replace(bundle.description.rule, modality="MR"), bundle.histogram
    )
    matched = read_volume(output)
    assert matched.geometry.matches(image.geometry)
    assert np.array_equal(matched.array, expected)
    told = json.loads(capsys.readouterr().out)
    assert told["matched_range"] == [expected.min(), expected.max()]
    assert (told["modality"], told["source_modality"]) == ("MR", "CT")


def test_match_to_the_images_of_a_folder(datasets, scan, tmp_path):
    folder, output = datasets["CT"] / "imagesTr", tmp_path / "matched.nrrd"
    assert run("match", scan, "--source-images", folder, "-o", output) == 0
    rule = IntensityRule("CT")
    histogram = fit(to_integers(read_volume(path).array, rule) for path in folder.iterdir())
    expected = match_to_source(read_volume(scan).array, IntensityRule("MR"), histogram)
    assert np.array_equal(read_volume(output).array, expected)


def test_match_needs_images_in_the_folder(scan, tmp_path, capsys):
    arguments = ["--source-images", tmp_path, "-o", tmp_path / "matched.nrrd"]
    assert str(tmp_path) in refused(capsys, 3, "match", scan, *arguments)


# train


@pytest.fixture
def tiny_config(tmp_path):
    config.write_yaml(tmp_path / "tiny.yaml", tiny.config())
    return tmp_path / "tiny.yaml"


@pytest.fixture
def train_arguments(datasets, tiny_config, tmp_path):
    yield (
        *("train", "--data", datasets["CT"], "--preset", "abdomen-fast"),
        *("--config", tiny_config, "--out", tmp_path / "run", "--device", "cpu"),
        *("--cache", tmp_path / "cache"),
    )
    tiny.forget_accelerator()


def test_train_stops_resumes_and_ends_with_a_network(train_arguments, datasets, tmp_path, capsys):
    assert run(*train_arguments, "--max-minutes", 0) == 0
    assert "Stopped by --max-minutes at step 1 of 6" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    assert run(*train_arguments, "--max-minutes", 60) == 0
    printed = capsys.readouterr().out
    assert "Trained 6 steps" in printed
    assert str(tmp_path / "run" / "model") in printed
    assert load_bundle(tmp_path / "run" / "model").description.name == "run"
    image = datasets["CT"] / "imagesTr" / "a_0000.nii.gz"
    output = ["-o", tmp_path / "labels.nii.gz", "--model", tmp_path / "run" / "model"]
    assert run("segment", image, *output, "--device", "cpu") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_clean_stop(train_arguments, capsys, monkeypatch, number):
    def stopped(*arguments, limits, **options):
        assert not limits.stop_requested()
        signal.raise_signal(number)
        assert limits.stop_requested()
        return RunResult(4, False, 0.5, None)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("srcsm_training.segmentation.run.run_training", stopped)
    assert run(*train_arguments) == 130
    message = capsys.readouterr().err
    assert "Stopped at step 4 of 6" in message
    assert "the same command resumes" in message
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_second_ctrl_c_interrupts(train_arguments, capsys, monkeypatch):
    def deaf(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not interrupted")

    monkeypatch.setattr("srcsm_training.segmentation.run.run_training", deaf)
    assert run(*train_arguments) == 130
    assert "srcsm: interrupted" in capsys.readouterr().err


def test_train_hands_its_options_on(train_arguments, monkeypatch, tmp_path, datasets):
    given = {}

    def noted(data, settings, out, **options):
        given.update(options, data=data, settings=settings, out=out)
        return RunResult(6, True, 0.5, out / "model")

    monkeypatch.setattr("srcsm_training.segmentation.run.run_training", noted)
    extra = ("--name", "mine", "--max-minutes", "7", "--set", "seed=5", "data.folds=2")
    extra += ("--author", "me", "--version", "2.0", "--extend")
    assert run(*train_arguments, *extra, "--set", "optimisation.batch=3") == 0
    assert given["data"] == datasets["CT"]
    assert given["out"] == tmp_path / "run"
    assert given["cache"] == tmp_path / "cache"
    assert given["signature"] == Signature("mine", author="me", version="2.0")
    assert (given["extend"], given["device"]) == (True, "cpu")
    assert given["limits"].max_minutes == 7
    expected = tiny.config(batch=3)
    expected = replace(expected, seed=5, data=replace(expected.data, folds=2))
    assert given["settings"] == expected


def test_a_dry_run_prints_the_configuration_and_writes_nothing(train_arguments, tmp_path, capsys):
    assert run(*train_arguments, "--dry-run", "--set", "seed=8", "data.folds=2") == 0
    printed = capsys.readouterr().out
    assert "# training: b\n# validation: a\n" in printed
    assert "in fp32: the configuration asks for it" in printed
    assert "\n# training: about " in printed
    assert "(6 x " in printed
    assert "\n# memory: about " in printed
    base = presets.preset("abdomen-fast")
    shown = config.from_dict(yaml.safe_load(printed), base)
    expected = tiny.config()
    assert shown == replace(expected, seed=8, data=replace(expected.data, folds=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--set", "optimisation.step=5"), ("optimisation.step", "did you mean steps?")),
        (("--set", "seed"), ("key=value", '"seed"')),
        (("--set", "seed=early"), ("seed", '"early"')),
        (("--preset", "abdomen-fats"), ("abdomen-fats", "did you mean abdomen-fast?")),
        (("--config", "absent.yaml"), ("absent.yaml",)),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_is_wrong(
    train_arguments, tmp_path, capsys, extra, words
):
    message = refused(capsys, 2, *train_arguments, *extra)
    assert all(word in message for word in words)
    assert not (tmp_path / "run").exists()


def test_train_says_which_options_it_needs(capsys):
    message = refused(capsys, 2, "train", "--preset", "abdomen-fast")
    assert "--data and --out" in message


def test_all_faults_of_a_dataset_are_listed(train_arguments, tmp_path, capsys):
    folder = tiny.write_dataset(tmp_path / "Dataset_bad", 2)
    description = json.loads((folder / "dataset.json").read_text("utf-8"))
    description["labels"] = {"background": 0, "liver": 1}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "labelsTr" / "c.nii.gz").write_bytes(b"")
    assert run(*train_arguments, "--data", folder) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    device, _, message = printed.err.partition("\n")
    assert device.startswith("Computing on cpu")
    assert message.startswith("srcsm: error: ")
    assert "Traceback" not in message
    assert message.count("[2], which dataset.json does not name") == 2
    assert "c: imagesTr/c_0000.nii.gz is missing" in message


def test_a_run_folder_that_cannot_be_made_is_found_out_first(
    train_arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("srcsm_training.segmentation.run.run_training", None)
    (tmp_path / "file").write_text("")
    message = refused(capsys, 6, *train_arguments, "--out", tmp_path / "file" / "run")
    assert str(tmp_path / "file" / "run") in message


def test_train_refuses_an_unknown_device(train_arguments, capsys):
    assert '"cuda:7"' in refused(capsys, 5, *train_arguments, "--device", "cuda:7")


def test_the_presets_are_listed(capsys):
    assert run("train", "--list-presets") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in presets.PRESETS)


# evaluate


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("segment", (), True),
        ("segment", ("--no-keep-largest",), False),
        ("segment", ("--all-pieces",), False),
        ("evaluate", (), False),
        ("evaluate", ("--keep-largest",), True),
        ("evaluate", ("--largest-component",), True),
    ],
)
def test_segment_cleans_up_by_default_and_evaluate_scores_all_pieces(command, options, expected):
    needed = {"segment": ("scan.nii.gz", "-o", "labels.nii.gz"), "evaluate": ("--out", "scores")}
    arguments = cli.make_parser().parse_args([command, *needed[command], *options])
    assert arguments.keep_largest is expected


def test_evaluate_scores_every_target_with_and_without_source_matching(
    models, datasets, tmp_path, capsys
):
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", *datasets.values(), "--json"]
    assert run(*arguments, "--out", tmp_path / "scores", "--worst", 1, "--device", "cpu") == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    rows = {(r["dataset"], r["source_matching"], r["case"], r["label"]) for r in told["cases"]}
    labels, cases = ("liver", "spleen"), ("a", "b")
    expected = {
        (name, on, case, label)
        for name in ("Dataset_CT", "Dataset_MR")
        for on in ("off", "on")
        for case in cases
        for label in labels
    }
    assert rows == expected
    assert told["settings"]["identity"] == load_bundle(models / "abdomen-ct").identity
    pictures = sorted(p.name for p in (tmp_path / "scores").rglob("*.png"))
    assert len(pictures) == 4
    # Every scan is read as what its dataset says it is.
    image = read_volume(datasets["MR"] / "imagesTr" / "a_0000.nii.gz")
    options = {"modality": "MR", "device": "cpu", "keep_largest": False}
    found = inference.segment(image, load_bundle(models / "abdomen-ct"), **options).labels.array
    truth = read_labels(datasets["MR"] / "labelsTr" / "a.nii.gz").array
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    wanted = ("Dataset_MR", "on", "a", "liver")
    [row] = [
        r
        for r in told["cases"]
        if (r["dataset"], r["source_matching"], r["case"], r["label"]) == wanted
    ]
    assert row["dice"] == pytest.approx(dice)


def test_evaluate_takes_chosen_cases_and_maps_labels(models, datasets, tmp_path, capsys):
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--cases", "b*"]
    options = ["--source-matching", "off", "--map-labels", "2:1", "--out", tmp_path, "--json"]
    assert run(*arguments, *options, "--device", "cpu") == 0
    cases = json.loads(capsys.readouterr().out)["metrics"]["cases"]
    assert [(r["case"], r["label"], r["source_matching"]) for r in cases] == [("b", "liver", "off")]


def test_evaluate_compares_earlier_results_without_a_network(models, datasets, tmp_path, capsys):
    for seed in ("0", "1"):
        arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--worst", 0]
        arguments += ["--source-matching", "on", "--device", "cpu"]
        assert run(*arguments, "--out", tmp_path / seed) == 0
    capsys.readouterr()
    results = [f"plain={tmp_path / '0'},{tmp_path / '1'}", f"src={tmp_path / '0'}"]
    assert run("evaluate", "--compare", *results, "--out", tmp_path / "compared") == 0
    assert "| plain |" in capsys.readouterr().out
    assert (tmp_path / "compared" / "comparison.json").is_file()


def test_evaluate_adds_its_network_to_a_comparison(models, datasets, tmp_path, capsys):
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--worst", 0]
    arguments += ["--source-matching", "on", "--device", "cpu"]
    assert run(*arguments, "--out", tmp_path / "first") == 0
    earlier = f"earlier={tmp_path / 'first'}"
    capsys.readouterr()
    assert run(*arguments, "--out", tmp_path / "second", "--compare", earlier, "--json") == 0
    tests = json.loads(capsys.readouterr().out)["comparison"]["tests"]
    assert {(t["method"], t["against"]) for t in tests} == {("abdomen-ct", "earlier")}


def test_evaluate_compares_label_maps_of_another_tool_with_its_network(
    models, datasets, tmp_path, capsys
):
    truth = datasets["MR"] / "labelsTr"
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--worst", 0]
    arguments += ["--predictions", truth, "--device", "cpu", "--json"]
    assert run(*arguments, "--cut-to-labels", "--out", tmp_path / "out") == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["protocol"] for row in told["methods"]["abdomen-ct"]["cases"]} == {"cut"}
    tests = told["comparison"]["tests"]
    assert [t["source_matching"] for t in tests] == ["- against off", "- against on"]
    assert {(t["method"], t["against"], t["second"]) for t in tests} == {
        ("labelsTr", "abdomen-ct", 1.0)
    }


def test_evaluate_refuses_labels_that_mean_something_else(models, tmp_path, capsys):
    folder = tiny.write_dataset(tmp_path / "Dataset_heart", 1)
    text = (folder / "dataset.json").read_text("utf-8").replace("spleen", "left_ventricle")
    (folder / "dataset.json").write_text(text)
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", folder, "--out", tmp_path / "out"]
    message = refused(capsys, 3, *arguments, "--device", "cpu")
    assert "2 spleen" in message
    assert "2 left_ventricle" in message
    assert "--map-labels" in message


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--map-labels", "1-1"), "1-1"),
        (("--map-labels", "7:1"), "[7]"),
        (("--compare", "plain"), '"plain"'),
    ],
)
def test_evaluate_refuses_options_that_make_no_sense(
    models, datasets, tmp_path, capsys, extra, word
):
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--out", tmp_path]
    assert word in refused(capsys, 2, *arguments, *extra)


def test_evaluate_needs_a_network_with_data_or_a_comparison(models, tmp_path, capsys):
    assert "--compare" in refused(capsys, 2, "evaluate", "--out", tmp_path)
    refused(capsys, 2, "evaluate", "--model", "abdomen-ct", "--out", tmp_path)


def test_evaluate_needs_cases(models, datasets, tmp_path, capsys):
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--out", tmp_path]
    assert "nobody_*" in refused(capsys, 3, *arguments, "--cases", "nobody_*")


def test_evaluate_finds_out_first_that_it_cannot_write(models, datasets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["evaluate", "--model", "abdomen-ct", "--data", datasets["MR"], "--device", "cpu"]
    assert "file" in refused(capsys, 6, *arguments, "--out", tmp_path / "file")


# models


def test_models_lists_shipped_ones_and_others(models, tmp_path, capsys):
    broken = tmp_path / "others" / "broken"
    broken.mkdir(parents=True)
    (broken / "SHA256SUMS").write_text("")
    assert run("models", "list", tmp_path / "others", "--json") == 0
    whole, faulty = json.loads(capsys.readouterr().out)
    assert whole["name"] == "abdomen-ct"
    assert whole["labels"] == ["liver", "spleen"]
    assert faulty["folder"] == str(broken)
    assert "missing" in faulty["error"]
    assert run("models", "list") == 0
    assert "abdomen-ct, trained on CT: liver, spleen" in capsys.readouterr().out


def test_models_verify_finds_tampering(models, capsys):
    assert run("models", "verify") == 0
    assert "whole" in capsys.readouterr().out
    folder = models / "abdomen-ct"
    weights = folder / "models" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (folder / "configs" / "extra.json").write_text("{}")
    assert run("models", "verify", "abdomen-ct", "--json") == 4
    [faults] = json.loads(capsys.readouterr().out).values()
    assert len(faults) == 2
    assert "models/model.safetensors is altered" in faults
    assert run("models", "verify", folder) == 4


def test_models_describe_prints_the_card_or_everything(models, capsys):
    assert run("models", "describe", "abdomen-ct") == 0
    printed = capsys.readouterr().out
    assert "# The card" in printed
    identity = load_bundle(models / "abdomen-ct").identity
    assert identity in printed
    assert run("models", "describe", models / "abdomen-ct", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["identity"] == identity
    assert told["rule"]["window"] == [-200, 300]
    assert told["network"]["channels"] == [4, 6]


# phantom


def test_phantom_writes_a_dataset_that_can_be_read(tmp_path, monkeypatch):
    def small(seed, modality):
        image, labels = tiny.phantom(seed, modality)
        labels[5:7, 4, 9:12] = 3
        labels[5:7, 8, 9:12] = 4
        geometry = Geometry(labels.shape[::-1], np.diag([1.5, 2, -3, 1]))
        return Volume(image, geometry), Volume(labels, geometry)

    monkeypatch.setattr("srcsm_training.data.phantom.make_case", small)
    folder = tmp_path / "Dataset902_PhantomMR"
    assert run("phantom", folder, "--modality", "MR", "--cases", 2, "--seed", 4) == 0
    dataset = read_dataset(folder)
    assert dataset.modality == "MR"
    assert [case.name for case in dataset.cases] == ["phantom_0004", "phantom_0005"]
    assert check_dataset(dataset) == []


def test_phantom_finds_out_that_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["phantom", tmp_path / "file" / "ph", "--modality", "CT", "--cases", 1]
    assert "file" in refused(capsys, 6, *arguments)


def test_phantom_needs_a_case(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("phantom", tmp_path, "--modality", "CT", "--cases", 0)
    assert ended.value.code == 2
    assert "0" in capsys.readouterr().err


# demo


def test_demo_prints_its_table(tmp_path, capsys, monkeypatch):
    def quick(output, minutes, say, bar, steps):
        assert (output, minutes, steps) == (tmp_path, 6.0, 7)
        say("1/4")
        for title in ("plain", "SRC"):
            bar(title, Progress(step=steps, gradient_norm=1.0, loss=0.5), steps, 90.0)
            say("next")
        return {
            "plain": {"liver": 0.125, "mean": 0.25},
            "+ SRC and SM": {"liver": 0.75, "mean": 0.5},
        }

    monkeypatch.setattr("srcsm_training.demo.run_demo", quick)
    assert run("demo", "-o", tmp_path, "--steps", 7) == 0
    printed = capsys.readouterr().out
    assert "| training | liver | mean |" in printed
    assert "| + SRC and SM | 0.75 | 0.5 |" in printed
    assert str(tmp_path / "overview.png") in printed


def test_an_empty_argument_is_not_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["segment", "", "-o", "labels"])
    assert "an argument is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
