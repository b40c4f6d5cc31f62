# SPDX-License-Identifier: Apache-2.0
"""A training run: what its folder keeps, how it goes on, and what it exports."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator
from checkpoints import assert_same, differs, last, stop_after
from training_runs import SILENT

from srcsm_training.data.cases import prepare_cases
from srcsm_training.data.dataset import read_dataset
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.engine.config import to_dict, with_overrides
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.run_folder import RunResult
from srcsm_training.segmentation import run, training
from srcsm_training.segmentation.config import DataConfig
from srcsm_training.segmentation.export import Signature, kept_signature
from srcsm_training.segmentation.run import make_accelerator, run_training
from SRCSMSegmenterLib.errors import ConfigError, DatasetError, DeviceError
from SRCSMSegmenterLib.intensity import IntensityRule
from SRCSMSegmenterLib.models.bundle import load_bundle, verify_bundle

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


KILLED = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {testing!r})
import tiny
from dataclasses import replace
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation.run import run_training
torch.set_num_threads(1)
run_training(
    Path({data!r}),
    replace(tiny.config(steps=12), checkpoint_minutes=0.0),
    Path({output!r}),
    device="cpu",
    cache=Path({cache!r}),
    limits=Limits(
        say=lambda line: None, report=lambda state: print(state.step, flush=True)
    ),
)
"""


def start(folder, cache, output):
    code = KILLED.format(
        testing=str(Path(__file__).resolve().parents[2] / "helpers"),
        data=str(folder),
        output=str(output),
        cache=str(cache),
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path, folder, cache):
    """kill -9, three times, as soon as a step is reported, which is before it is saved."""
    with start(folder, cache, tmp_path / "whole") as process:
        assert process.communicate()[0].split() == [str(n) for n in range(1, 13)]
    seen = []
    for until in (3, 6, 7):
        with start(folder, cache, tmp_path / "parts") as process:
            for line in process.stdout:
                seen.append(int(line))
                if seen[-1] >= until:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "parts" / "model").exists()
    with start(folder, cache, tmp_path / "parts") as process:
        rest = process.communicate()[0].split()
    assert process.returncode == 0
    assert 1 < int(rest[0]) <= 8  # it did not start anew
    assert rest[-1] == "12"
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    whole, parts = (load_bundle(tmp_path / name / "model") for name in ("whole", "parts"))
    assert_same(whole.weights, parts.weights)
    steps = [row["step"] for row in csv.DictReader((tmp_path / "parts" / "curve.csv").open())]
    assert steps == [str(step) for step in range(1, 13)]


def a_run(folder, cache, output, config=None, extend=False, signature=None, **limits):
    tiny.forget_accelerator()
    lines = []
    result = run_training(
        folder,
        config or tiny.config(),
        output,
        signature=signature or Signature(),
        device="cpu",
        cache=cache,
        extend=extend,
        limits=Limits(say=lines.append, **limits),
    )
    return result, lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder, cache):
    output = tmp_path_factory.mktemp("runs") / "my-run"
    return (*a_run(folder, cache, output), output)


def test_a_run_folder_holds_what_its_docstring_promises(finished):
    result, lines, output = finished
    promised = {
        line.split()[0].rstrip(",").rstrip("/")
        for line in run.__doc__.split("\n\n")[1].splitlines()
    } | {"curve.png"}
    assert promised == {
        *("config.yaml", "environment.json", "source_histogram.json", "checkpoints/last.pt"),
        *("curve.csv", "curve.png", "tensorboard", "previews", "model", "signature.json"),
    }
    for name in promised:
        assert (output / name).exists(), name
    assert {p.name for p in (output / "previews").iterdir()} == {
        "augmentation.png",
        *(f"{kind}_{step:06d}.png" for step in (2, 4, 6) for kind in ("validation", "worst")),
    }
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert list(output.rglob("*.tmp")) == []
    assert result == RunResult(6, True, result.best_dice, output / "model")
    assert any("3 cases of Dataset001_Tiny" in line for line in lines)
    assert lines[0] == "Computing on cpu (1 process) in fp32: the configuration asks for it."


def test_a_run_folder_tells_all_that_decided_it(finished, folder):
    output = finished[2]
    written = yaml.safe_load((output / "config.yaml").read_text("utf-8"))
    kept = with_overrides(tiny.config(), [])
    used = replace(kept, data=replace(kept.data, window=(-1023.0, 1024.0)))
    assert written == to_dict(used)  # the range of the images is open: the full one
    environment = json.loads((output / "environment.json").read_text("utf-8"))
    assert environment["training_cases"] == ["b", "c"]
    assert environment["validation_cases"] == ["a"]
    assert environment["dataset"] == "Dataset001_Tiny"
    assert torch.__version__.startswith(environment["packages"]["torch"].split("+")[0])
    assert {"python", "platform", "packages", "git", "command"} <= environment.keys()
    assert (environment["device"], environment["precision"]) == ("cpu", "fp32")
    assert environment["precision_reason"] == "the configuration asks for it"
    assert set(environment["git"]) in ({"commit", "modified"}, set())
    histogram = json.loads((output / "source_histogram.json").read_text("utf-8"))
    images = [tiny.phantom(n)[0].clip(-1023, 1024) for n in (1, 2)]
    interior = sum(int(((x > x.min()) & (x < x.max())).sum()) for x in images)
    assert sum(histogram["counts"]) == interior
    assert histogram["minimum"] == min(int(x.min()) for x in images)


def test_the_curve_has_a_row_per_validation(finished):
    result, _, output = finished
    rows = list(csv.DictReader((output / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    names = ["step", "loss", "loss_dice", "learning_rate", "gradient_norm", "seconds", "dice"]
    assert list(rows[0]) == [*names, "dice_liver", "dice_spleen"]
    rows = [row for row in rows if row["dice"]]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    for row in rows:
        assert float(row["learning_rate"]) == 1e-3
        mean = (float(row["dice_liver"]) + float(row["dice_spleen"])) / 2
        assert float(row["dice"]) == pytest.approx(mean)
    assert max(float(row["dice"]) for row in rows) == pytest.approx(result.best_dice)


def test_the_exported_network_is_the_validated_one(finished, folder, cache):
    result, _, output = finished
    assert verify_bundle(result.model) == []
    bundle = load_bundle(result.model)
    description = bundle.description
    assert description.name == "my-run"
    assert [label.value for label in description.labels] == [1, 2]
    assert [label.name.lower() for label in description.labels] == ["liver", "spleen"]
    assert description.grid == tiny.config().grid
    assert description.smoothing == 1.0
    assert description.rule == IntensityRule("CT", window=(-1023.0, 1024.0))
    assert description.airless == ("liver", "spleen")
    assert [(one.start, one.end) for one in bundle.offsets] == [(1, 2)]
    rows = [row for row in last(output)["progress"]["curve"] if "dice" in row]
    best = max(rows, key=lambda row: np.nanmean(row["dice"]))["dice"]
    told = description.training["validation_dice"]
    assert told == pytest.approx(dict(zip(("liver", "spleen"), best, strict=True)))
    prepared = prepare_cases(
        read_dataset(folder).cases[:1], description.rule, 1.0, description.grid, cache
    )
    dice = training.validation_dice(
        bundle.unet(), prepared, tiny.config(), description.rule, Accelerator(cpu=True)
    )
    assert dice == pytest.approx(best, abs=2e-3)  # its weights are float16
    assert bundle.histogram.to_dict() == json.loads(
        (output / "source_histogram.json").read_text("utf-8")
    )
    card = (result.model / "docs" / "README.md").read_text("utf-8")
    assert "Research use only" in card
    assert f"| liver | {best[0]:.3f} |" in card


def test_a_stopped_run_exports_nothing_and_the_same_call_finishes_it(
    tmp_path, folder, cache, finished
):
    result, _ = a_run(folder, cache, tmp_path / "my-run", stop_requested=stop_after(3))
    assert result == RunResult(3, False, result.best_dice, None)
    assert not (tmp_path / "my-run" / "model").exists()
    assert (tmp_path / "my-run" / "curve.csv").exists()
    result, _ = a_run(folder, cache, tmp_path / "my-run")
    assert result.finished
    assert result.best_dice == finished[0].best_dice
    assert_same(load_bundle(result.model).weights, load_bundle(finished[0].model).weights)
    assert_same(last(tmp_path / "my-run"), last(finished[2]))
    again, _ = a_run(folder, cache, tmp_path / "my-run", signature=Signature("other"))
    assert again.finished
    assert load_bundle(again.model).description.name == "other"


def test_a_run_before_its_first_validation_has_no_dice(tmp_path, folder, cache):
    result, _ = a_run(folder, cache, tmp_path, stop_requested=stop_after(1))
    assert math.isnan(result.best_dice)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_training_in_the_same_run_folder_is_refused_and_spoils_nothing(
    tmp_path, folder, cache
):
    a_run(folder, cache, tmp_path / "run", stop_requested=stop_after(2))
    before = contents(tmp_path / "run")
    others = tiny.write_dataset(tmp_path / "others", 4)
    for data, config in (
        (folder, replace(tiny.config(), seed=1)),
        (folder, replace(tiny.config(), data=replace(tiny.config().data, fold=1))),
        (others, tiny.config()),
    ):
        with pytest.raises(CheckpointError, match="choose another run folder"):
            a_run(data, cache, tmp_path / "run", config)
    assert contents(tmp_path / "run") == before


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_been_asked_for_them_at_once(
    tmp_path, folder, cache
):
    short, long = tiny.config(steps=2), tiny.config(steps=4)
    whole, _ = a_run(folder, cache, tmp_path / "whole", long)
    assert a_run(folder, cache, tmp_path / "run", short)[0].steps == 2
    with pytest.raises(CheckpointError) as refusal:
        a_run(folder, cache, tmp_path / "run", long)
    assert "(optimisation.steps is 4, was 2)" in str(refusal.value)
    assert "needs --extend" in str(refusal.value)
    extended, _ = a_run(folder, cache, tmp_path / "run", long, extend=True)
    assert (extended.steps, extended.finished) == (4, True)
    assert_same(last(tmp_path / "whole"), last(tmp_path / "run"))
    assert_same(load_bundle(whole.model).weights, load_bundle(extended.model).weights)


def test_extending_changes_nothing_but_the_steps_and_never_shortens(tmp_path, folder, cache):
    a_run(folder, cache, tmp_path / "run", tiny.config(steps=2))
    fewer, slower = tiny.config(steps=1), tiny.config(steps=4, learning_rate=1e-4)
    for config, told in (
        (fewer, "optimisation.steps is 1, was 2"),
        (slower, "optimisation.learning_rate is 0.0001, was 0.001"),
    ):
        with pytest.raises(CheckpointError, match=told) as refusal:
            a_run(folder, cache, tmp_path / "run", config, extend=True)
        assert "--extend takes a larger number of steps, and changes" in str(refusal.value)


def test_a_network_is_signed_by_whoever_trained_it(tmp_path, folder, cache):
    signature = Signature("my-net", "A. Student, B. Teacher", "CC-BY-4.0", "1.2.0", "Two organs.")
    result, _ = a_run(folder, cache, tmp_path / "run", tiny.config(steps=1), signature=signature)
    description = load_bundle(result.model).description
    assert (description.name, description.authors) == ("my-net", "A. Student, B. Teacher")
    assert (description.licence, description.version) == ("CC-BY-4.0", "1.2.0")
    assert (description.task, description.copyright) == ("Two organs.", "A. Student, B. Teacher")
    card = (result.model / "docs" / "README.md").read_text("utf-8")
    assert "- Version: 1.2.0\n- Authors: A. Student, B. Teacher\n- Licence: CC-BY-4.0\n" in card
    kept = kept_signature(tmp_path / "run", Signature(version="1.3.0"))
    assert kept == replace(signature, version="1.3.0")
    assert kept_signature(tmp_path / "run", Signature()) == kept
    assert kept_signature(tmp_path, Signature()) == Signature()


def test_a_histogram_left_by_a_run_without_checkpoint_is_not_kept(tmp_path, folder, cache):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "source_histogram.json").write_text('{"old": 1}')
    a_run(folder, cache, run_folder, stop_requested=stop_after(1))
    assert "old" not in (run_folder / "source_histogram.json").read_text("utf-8")


def test_a_label_that_no_validation_case_has_is_exported_without_a_number(tmp_path, cache):
    data = tiny.write_dataset(tmp_path / "Dataset002_NoSpleen")
    image, labels = tiny.phantom(0)
    tiny.write_case(data, "a", image, np.where(labels == 2, 0, labels))

    def blind(*_):
        return [0.25, math.nan]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "validation_dice", blind)
        result, lines = a_run(data, cache, tmp_path / "run")
    assert any("no spleen" in line for line in lines)
    assert result.best_dice == 0.25
    told = load_bundle(result.model).description.training
    assert told["validation_dice"] == {"liver": 0.25}
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert rows[1]["dice"] == "0.25"


def test_a_run_without_validation_cases(tmp_path, folder, cache):
    config = with_overrides(tiny.config(steps=2), ["data.folds=0"])
    result, _ = a_run(folder, cache, tmp_path, config)
    assert math.isnan(result.best_dice)
    assert result.finished
    assert load_bundle(result.model).description.training["validation_dice"] == {}
    assert json.loads((tmp_path / "environment.json").read_text("utf-8"))["validation_cases"] == []


def test_an_mr_dataset_gives_an_mr_network(tmp_path, cache):
    data = tiny.write_dataset(tmp_path / "Dataset003_MR", 2, "MR")
    config = with_overrides(tiny.config(steps=1), ["data.folds=2", "data.maximum_percentile=99.5"])
    result, _ = a_run(data, cache, tmp_path / "run", config)
    assert load_bundle(result.model).description.rule == IntensityRule(
        "MR", maximum_percentile=99.5
    )


def test_a_full_disk_during_training_keeps_the_checkpoint_before(
    monkeypatch, tmp_path, folder, cache
):
    a_run(folder, cache, tmp_path, stop_requested=stop_after(2))
    before = last(tmp_path)
    replace_file = os.replace

    def full(source, target):
        if str(target).endswith("last.pt"):
            raise OSError(28, "No space left on device")
        return replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("SRCSMSegmenterLib.atomic.os.replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            a_run(folder, cache, tmp_path)
    assert_same(before, last(tmp_path))
    assert a_run(folder, cache, tmp_path)[0].finished


def test_cases_are_chosen_by_pattern(tmp_path, folder, cache):
    config = with_overrides(tiny.config(steps=1), ["data.cases=[a, c]", "data.folds=2"])
    a_run(folder, cache, tmp_path / "run", config)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
    assert (environment["training_cases"], environment["validation_cases"]) == (["c"], ["a"])
    with pytest.raises(DatasetError, match="x"):
        a_run(folder, cache, tmp_path / "none", with_overrides(config, ["data.cases=x*"]))


def test_devices_and_precisions_are_checked():
    with pytest.raises(DeviceError, match="cuda:9"):
        make_accelerator("cuda:9", tiny.config())
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_accelerator("cpu", tiny.config(precision="fp16"))
    tiny.forget_accelerator()
    computing = make_accelerator("cpu", tiny.config(precision="bf16"))
    assert computing.accelerator.device.type == "cpu"
    assert computing.precision == "bf16"
    for size in ((16, 16, 1), (128, 128, 2)):
        tiny.forget_accelerator()
        config = tiny.config(precision="bf16")
        flat = replace(config.network, pooling=(2, 2, 1))
        config = replace(config, grid=replace(config.grid, size=size), network=flat)
        with pytest.raises(ConfigError, match=r"optimisation\.precision=fp32"):
            make_accelerator("cpu", config)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {testing!r})
import tiny
from srcsm_training.engine.limits import Limits
from srcsm_training.segmentation import run, training
torch.set_num_threads(1)
original = training.train
def recorded(opened, *arguments, **named):
    state, weights = original(opened, *arguments, **named)
    rank = opened.accelerator.process_index
    assert opened.accelerator.num_processes == 2
    torch.save([weights, vars(state)], Path({output!r}) / f"rank{{rank}}.pt")
    return state, weights
training.train = recorded
steps = iter(range(1, 99))
for name, stop in (("whole", 99), ("parts", 9), ("parts", 99)):
    run.run_training(
        Path({data!r}), tiny.config(), Path({output!r}) / name, device="cpu",
        cache=Path({cache!r}),
        limits=Limits(
            say=lambda line: None,
            stop_requested=lambda: next(steps) == stop and torch.distributed.get_rank() == 1,
        ),
    )
"""


@pytest.mark.slow
def test_two_processes_share_their_weights_and_differ_from_one(tmp_path, folder, cache):
    """Gloo on the CPU: whole, and stopped at step 3 by the second process alone and resumed."""
    script = tmp_path / "script.py"
    script.write_text(
        TWO_PROCESSES.format(
            testing=str(Path(__file__).resolve().parents[2] / "helpers"),
            data=str(folder),
            output=str(tmp_path),
            cache=str(cache),
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, first_state), (second, second_state) = (
        torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)
    )
    assert_same(first, second)
    assert first_state["step"] == second_state["step"] == 6
    assert first_state["best_dice"] == second_state["best_dice"]
    assert first_state["gradient_norm"] == second_state["gradient_norm"]
    assert first_state["loss"] != second_state["loss"]  # each draws its own windows
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    alone, _ = a_run(folder, cache, tmp_path / "alone")
    weights = load_bundle(alone.model).weights
    assert differs(weights, load_bundle(tmp_path / "whole" / "model").weights)


def test_label_values_are_ordered_with_the_outputs_first():
    labels = {"liver": 1, "kidney": 2, "spleen": 3, "aorta": 4}
    assert run.label_order(labels, ()) == (0, 1, 2, 3, 4)
    assert run.label_order(labels, ("spleen", "kidney")) == (0, 3, 2, 1, 4)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [(("livr",), r'no label "livr" \(did you mean liver\?\)'), (("liver", "liver"), "twice")],
)
def test_outputs_that_cannot_be_are_named(outputs, message):
    with pytest.raises(ConfigError, match=message):
        run.label_order({"liver": 1, "spleen": 2}, outputs)


def test_a_network_of_a_part_of_the_labels_names_them_alone(tmp_path, folder, cache):
    config = replace(tiny.config(steps=2), data=DataConfig(folds=3, outputs=("spleen",)))
    result = run_training(folder, config, tmp_path / "run", cache=cache, limits=SILENT)
    bundle = load_bundle(result.model)
    assert [(label.name, label.value) for label in bundle.description.labels] == [("spleen", 1)]
    assert bundle.network.classes == 2
    with open(tmp_path / "run" / "curve.csv", newline="") as file:
        assert "dice_spleen" in next(csv.reader(file))


def test_a_start_gives_known_labels_their_outputs_and_new_ones_random_weights(
    tmp_path, folder, cache
):
    config = tiny.config(steps=2)
    first = run_training(folder, config, tmp_path / "a", cache=cache, limits=SILENT)
    trained = load_bundle(first.model).weights
    going_on = replace(config, start=str(first.model))
    same = run.start_weights(going_on, ["liver", "spleen"])
    assert all(torch.equal(same[name], value) for name, value in trained.items())
    more = replace(going_on, network=replace(config.network, classes=4))
    other = run.start_weights(more, ["spleen", "aorta", "liver"])
    for row, old in ((0, 0), (1, 2), (3, 1)):
        assert torch.equal(other["head.weight"][row], trained["head.weight"][old])
    assert not torch.equal(other["head.weight"][2], trained["head.weight"][2])
    one_step = replace(going_on, optimisation=tiny.config(steps=1).optimisation)
    result = run_training(folder, one_step, tmp_path / "b", cache=cache, limits=SILENT)
    moved = load_bundle(result.model).weights
    steps = max(float((moved[name] - value).abs().max()) for name, value in trained.items())
    assert 0 < steps < 0.01


def test_a_start_of_another_shape_is_refused(tmp_path, folder, cache):
    config = tiny.config(steps=1)
    first = run_training(folder, config, tmp_path / "a", cache=cache, limits=SILENT)
    wider = replace(
        config, start=str(first.model), network=replace(config.network, channels=(4, 8))
    )
    with pytest.raises(ConfigError, match="another shape"):
        run.start_weights(wider, ["liver", "spleen"])


@pytest.mark.parametrize("start", ["nonsense", "/no/such/folder"])
def test_a_start_that_is_no_network_is_a_fault_of_the_configuration(start):
    with pytest.raises(ConfigError, match="start: .*" + start):
        run.start_weights(replace(tiny.config(), start=start), ["liver", "spleen"])
