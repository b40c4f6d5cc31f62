# SPDX-License-Identifier: Apache-2.0
"""Training a small SAM from nothing, and fine-tuning a decoder: what is trained, on what, and how
it goes on after a stop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator
from checkpoints import assert_same, last, stop_after

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.sam.decoding import Prompts
from SAMRefineLib.sam.models import load_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from SAMRefineLib.sam.small_sam import SmallSamConfig
from srcsm_training.cli import main as cli
from srcsm_training.data.packed import SUFFIX, pack, to_bytes
from srcsm_training.engine.checkpoint import CheckpointError
from srcsm_training.engine.config import (
    CasesConfig,
    Recipe,
    ScansConfig,
    to_dict,
    with_overrides,
    write_yaml,
)
from srcsm_training.engine.limits import Limits
from srcsm_training.engine.source_domain import intensity_rule, open_source
from srcsm_training.sam import decoder, from_scratch, layout
from srcsm_training.sam.box_network import prompted_loss, true_box_dice
from srcsm_training.sam.decoder import DecoderConfig, run_decoder_training
from srcsm_training.sam.from_scratch import SamConfig, run_sam_training, with_pixels
from srcsm_training.sam.layout import organ_boxes
from srcsm_training.sam.prompts import PromptConfig, drawn_points, mask_prompts
from srcsm_training.sam.tiles import TileConfig, Tiles, tight_boxes
from SRCSMSegmenterLib.errors import ConfigError
from SRCSMSegmenterLib.geometry import Geometry, Volume

SIZES = SmallSamConfig(
    canvas=128,
    window=32,
    patch=8,
    embed_dim=16,
    depth=1,
    heads=2,
    prompt_dim=16,
    decoder_heads=2,
    decoder_mlp=16,
)
CONFIG = SamConfig(
    network=SIZES,
    data=ScansConfig(folds=3, smoothing=0.0),
    tiles=TileConfig(side=32, whole_slices=0.3, smallest=4),
    prompts=PromptConfig(points=0.3, mask=0.3),
    optimisation=Recipe(steps=6, batch=2, learning_rate=1e-3, precision="fp32"),
    validate_every=3,
)
DECODER = DecoderConfig(
    data=CasesConfig(folds=3),
    boxes="true",
    optimisation=Recipe(steps=6, batch=3, learning_rate=1e-3, l2=1e-3, precision="fp32"),
    validate_every=3,
)


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    """A small SAM with random weights, as a folder."""
    torch.manual_seed(3)
    model = from_scratch.new_network(CONFIG).model
    where = tmp_path_factory.mktemp("sams") / "random"
    save_sam(where, replace(model, name="random"), "card", "licence")
    return where


@pytest.fixture
def coarse():
    """A coarse network that says the truth."""

    def predict(volume, modality):
        assert modality == "CT"
        liver, spleen = (volume.array > 60) & (volume.array < 170), volume.array > 170
        found = np.stack([~(liver | spleen), liver, spleen]).astype(np.float16)
        return lambda label: found[label]

    return layout.CoarseNetwork("fake", "0" * 64, {"liver": 1, "spleen": 2}, predict)


def a_run(folder, cache, out, config=CONFIG, name=None, **limits):
    tiny.forget_accelerator()
    limits = Limits(say=lambda line: None, **limits)
    return run_sam_training(
        folder, config, out, name=name, device="cpu", cache=cache, limits=limits
    )


def a_decoder_run(folder, sam, coarse, out, config=DECODER, **limits):
    tiny.forget_accelerator()
    limits = Limits(say=lambda line: None, **limits)
    sam = load_sam(sam, device="cpu")
    return run_decoder_training(folder, config, sam, coarse, out, device="cpu", limits=limits)


# --- from nothing


def test_a_stopped_training_goes_on_to_the_same_bits_and_exports(tmp_path, folder, cache):
    whole = a_run(folder, cache, tmp_path / "whole", name="small")
    stopped = a_run(folder, cache, tmp_path / "parts", stop_requested=stop_after(3))
    assert (stopped.steps, stopped.finished, stopped.model) == (3, False, None)
    resumed = a_run(folder, cache, tmp_path / "parts")
    assert (whole.steps, whole.finished) == (resumed.steps, resumed.finished) == (6, True)
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))

    model = load_sam(whole.model, device="cpu")
    assert (model.name, model.kind, model.config, model.pixels) == ("small", "small", SIZES, SRCSM)
    assert model.training["dataset"] == "Dataset001_Tiny"
    assert model.training["modality"] == "CT"
    assert model.training["config"] == to_dict(CONFIG)
    assert model.training["validation_dice"].keys() == {"liver", "spleen"}
    best = last(tmp_path / "whole")["best"]
    for name, value in model.sam.state_dict().items():
        assert torch.equal(value, best[f"sam.{name}"].half().float()), name
    kept = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"config.yaml", "environment.json", "curve.csv", "curve.png", "model"} <= kept


def test_a_packed_dataset_gives_the_same_training(tmp_path, folder, cache):
    config = replace(CONFIG, optimisation=replace(CONFIG.optimisation, steps=2))
    source = open_source(folder, config.data, check=False)
    rule = intensity_rule(config.data, source)
    packed = pack(source.dataset, rule, config.data.smoothing, cache, None)
    (tmp_path / f"x{SUFFIX}").write_bytes(to_bytes(packed))
    a_run(folder, cache, tmp_path / "scans", config)
    assert a_run(tmp_path / f"x{SUFFIX}", None, tmp_path / "packed", config).finished
    assert_same(last(tmp_path / "scans"), last(tmp_path / "packed"))


def test_another_configuration_is_not_resumed(tmp_path, folder, cache):
    a_run(folder, cache, tmp_path, stop_requested=stop_after(1))
    other = replace(CONFIG, tiles=replace(CONFIG.tiles, rotation=0.1))
    with pytest.raises(CheckpointError, match="another configuration"):
        a_run(folder, cache, tmp_path, other)


def test_every_part_is_trained(tmp_path, folder, cache):
    """By boxes, points, guessed masks and the estimate of the IoU."""
    config = replace(CONFIG, optimisation=replace(CONFIG.optimisation, steps=16), validate_every=0)
    a_run(folder, cache, tmp_path, config)
    torch.manual_seed(config.seed)
    before = from_scratch.new_network(config).state_dict()
    after = last(tmp_path)["network"]
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}


def test_validation_gives_true_boxes(tmp_path, folder, cache, monkeypatch):
    """A network that fills its box half gets that Dice; no label is left out."""
    seen = []

    class Filler(torch.nn.Module):
        def forward(self, images, owner, prompts):
            assert owner.tolist() == list(range(len(images)))
            assert prompts.points is None
            assert prompts.masks is None
            seen.append(prompts.boxes)
            inside = torch.full((len(images), 32, 32), -1.0)
            for mask, (x0, y0, x1, y1) in zip(inside, prompts.boxes.long().tolist(), strict=True):
                mask[y0:y1, x0:x1] = 1
            return inside, None

    def square(owner, value, x0, y0, x1, y1):
        mask = torch.zeros(32, 32, dtype=torch.int64)
        mask[y0:y1, x0:x1] = value
        return mask

    labels = torch.stack([square(0, 1, 4, 8, 20, 24), square(1, 2, 2, 2, 30, 12)])
    labels[1, 2:12, 16:23] = 0  # a quarter of the box is not the object
    value = torch.tensor([1, 2])
    owner = torch.arange(2)
    boxes = tight_boxes(labels == value[:, None, None])
    tiles = Tiles(torch.zeros(2, 1, 32, 32), labels, owner, value, boxes)
    dice = true_box_dice(Filler(), [tiles], 4, Accelerator(cpu=True))
    assert dice[:2] == pytest.approx([1.0, 2 * 0.75 / 1.75])
    assert np.isnan(dice[2])
    assert torch.equal(torch.cat(seen), boxes)


def test_a_training_starts_from_the_weights_of_a_sam(tmp_path, folder, cache, sam_folder):
    overrides = [f"start={sam_folder}", "optimisation.learning_rate=1e-9"]
    done = a_run(folder, cache, tmp_path / "run", with_overrides(CONFIG, overrides))
    trained, given = (load_sam(path, device="cpu").sam for path in (done.model, sam_folder))
    assert_same(trained.state_dict(), given.state_dict())


@pytest.mark.parametrize(
    ("start", "words"), [("nothing-there", "start: "), ("sam-small-ct", "start: the sizes of")]
)
def test_a_training_cannot_start_from_another_network(tmp_path, folder, cache, start, words):
    with pytest.raises(ConfigError, match=words):
        a_run(folder, cache, tmp_path / "run", replace(CONFIG, start=start))


def test_regions_are_trained_and_validated_on(tmp_path, folder, cache):
    a_run(folder, cache, tmp_path / "plain")
    a_run(folder, cache, tmp_path / "regions", with_overrides(CONFIG, ["regions.share=1"]))
    plain, regions = (last(tmp_path / name)["progress"]["curve"] for name in ("plain", "regions"))
    assert plain[0]["loss"] != regions[0]["loss"]
    assert "randomised" not in plain[-1]
    assert regions[-1]["randomised"] != regions[-1]["dice"]


def test_points_lie_in_the_object_and_in_its_box_beside_it():
    masks = torch.zeros(300, 16, 16, dtype=torch.bool)
    masks[:, 3:9, 2:12] = True
    masks[:, 5:7, 4:6] = False
    masks[-1, 3:9, 2:12] = True  # fills its box: there is nothing outside it
    boxes = tight_boxes(masks)
    points, labels = drawn_points(boxes, masks, torch.Generator().manual_seed(0))
    assert set(labels[:, 0].tolist()) == {1.0, -1.0}
    assert set(labels[:, 1].tolist()) == {0.0, -1.0}
    assert 0.35 < float((labels == -1).float().mean()) < 0.65
    assert labels[-1, 1] == -1
    for row in range(300):
        for (x, y), label in zip(points[row].tolist(), labels[row].tolist(), strict=True):
            inside = bool(masks[row, int(y), int(x)])
            assert label == -1 or inside == bool(label)
            assert label != 0 or (2 < x < 12 and 3 < y < 9)


def test_mask_prompts_are_like_the_object_but_not_it():
    masks = torch.zeros(20, 64, 64, dtype=torch.bool)
    masks[:, 16:48, 8:40] = True
    guesses = mask_prompts(masks, 2, torch.Generator().manual_seed(0))
    assert guesses.shape == (20, 1, 32, 32)
    found, true = guesses[:, 0] > 0, masks[:, ::2, ::2]
    both = (found & true).sum((1, 2))
    dice = 2 * both / (found.sum((1, 2)) + true.sum((1, 2)))
    assert (dice > 0.7).all()
    assert (dice < 1).all()
    assert 2 < float(guesses.abs().amax()) < 40


def test_the_loss_of_a_perfect_mask_and_estimate():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = masks[1, :4] = True
    logits = torch.where(masks, 30.0, -30.0)
    assert float(prompted_loss(logits, torch.ones(2), masks)) < 1e-6
    assert float(prompted_loss(logits, torch.tensor([1.0, 0.5]), masks)) == pytest.approx(0.125)
    half = torch.zeros_like(masks)
    half[0, 2:6, 2:4] = half[1, :2] = True
    wrong = torch.where(half, 30.0, -30.0)
    # Dice 2/3, cross-entropy 30 on the pixels that are missed, IoU 1/2.
    expected = 1 / 3 + 30 * (8 / 64 + 16 / 64) / 2
    loss = float(prompted_loss(wrong, torch.full((2,), 0.5), masks))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_pixels_are_those_of_the_refinement(folder, cache):
    from srcsm_training.data.cases import prepare_cases
    from srcsm_training.data.dataset import read_dataset
    from SRCSMSegmenterLib.intensity import IntensityRule

    rule = IntensityRule("CT")
    case = prepare_cases(read_dataset(folder).cases[:1], rule, 0.0, from_scratch.SLICES, cache)[0]
    seen = with_pixels(case, SRCSM, "CT").image.float()
    expected = ((case.image.float() + 125) / 200 - 1).clamp(-1, 1)
    torch.testing.assert_close(seen, expected, atol=2e-3, rtol=0)


def test_the_command_line(tmp_path, folder, cache, sam_folder, capsys):
    write_yaml(tmp_path / "small.yaml", CONFIG)
    common = ["train-sam", "--data", str(folder), "--device", "cpu"]
    arguments = ["--out", str(tmp_path / "run"), "--config", str(tmp_path / "small.yaml")]
    arguments += ["--cache", str(cache), "--set", "optimisation.steps=1", "--name", "x"]
    assert cli.main([*common, *arguments]) == 0
    assert f"SAM: {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    assert load_sam(tmp_path / "run" / "model", device="cpu").name == "x"
    assert cli.main([*common, *arguments[2:], "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "# training: about " in printed
    assert "(1 x " in printed
    assert yaml.safe_load(printed)["optimisation"]["steps"] == 1
    assert cli.main([*common, *arguments[2:]]) == 2
    assert "needs --data and --out" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "no")]
    for wrong, sentence in (
        (["--sam", str(sam_folder)], "--coarse"),
        (["--sam-kind", "medsam"], "--sam-kind"),
        (["--sam", str(sam_folder), "--coarse", "x", "--cache", str(cache)], "--cache"),
        (["--set", "tiles.sides=1"], "tiles.side"),
    ):
        assert cli.main([*common, *out, *wrong]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# --- the decoder


def test_a_stopped_fine_tuning_goes_on_to_the_same_bits(tmp_path, folder, sam_folder, coarse):
    config = replace(DECODER, boxes="filtered", theta1=0.5)
    whole = a_decoder_run(folder, sam_folder, coarse, tmp_path / "whole", config)
    parts = (folder, sam_folder, coarse, tmp_path / "parts", config)
    stopped = a_decoder_run(*parts, stop_requested=stop_after(2))
    assert (stopped.steps, stopped.model) == (2, None)
    a_decoder_run(*parts)
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))

    before, after = load_sam(sam_folder, device="cpu"), load_sam(whole.model, device="cpu")
    changed = {
        name
        for name, value in after.sam.state_dict().items()
        if not torch.equal(value, before.sam.state_dict()[name])
    }
    assert changed
    assert all(name.startswith("mask_decoder.") for name in changed)
    assert after.kind == "small"
    assert after.training["before"]["sam_identity"] == before.identity
    assert after.training["coarse"] == "fake"
    assert json.loads((tmp_path / "whole" / "environment.json").read_text("utf-8"))[
        "training_cases"
    ]


@pytest.mark.parametrize("mosaic", ["crops", "slices"])
@pytest.mark.parametrize("mode", ["off", "smoothed"])
def test_embeddings_are_computed_once_or_at_every_step(
    tmp_path, folder, sam_folder, coarse, monkeypatch, mosaic, mode
):
    calls = []
    original = decoder.encode
    monkeypatch.setattr(decoder, "encode", lambda *given: calls.append(1) or original(*given))
    config = replace(DECODER, mosaic=mosaic, embed_once=mode == "off", random_convolution=mode)
    config = replace(config, optimisation=replace(DECODER.optimisation, steps=2), validate_every=0)
    result = a_decoder_run(folder, sam_folder, coarse, tmp_path, config)
    assert result.finished
    assert len(calls) == (0 if mode == "off" else 2)
    assert 0 <= result.best_dice <= 1


def test_random_convolution_needs_embeddings_at_every_step():
    with pytest.raises(ConfigError, match="embed_once"):
        DecoderConfig(random_convolution="smoothed")


def test_the_same_embeddings_as_the_refinement_uses(folder, sam_folder):
    """A box decoded here and by `refine` gives the same probabilities."""
    from SAMRefineLib.boxes.key_frames import KeyFrames
    from SAMRefineLib.refine.refiner import OrganPrompt, refine

    image, labels = tiny.phantom(0)
    affine = np.diag([2.5, 2.0, 3.0, 1.0])
    volume = Volume(image, Geometry(image.shape[::-1], affine))
    model = load_sam(sam_folder, device="cpu")
    grid = SliceGrid(volume.geometry, 2)
    boxes = organ_boxes("true", None, labels == 1, grid, 0.75)
    scan = layout.laid_out("a", volume, labels, {1: boxes}, model, "crops", "CT")
    frames = KeyFrames("liver", 1, grid, boxes)
    expected = refine(volume, [OrganPrompt(frames)], model, modality="CT").probability(1)
    tiny.forget_accelerator()
    accelerator = Accelerator(cpu=True)
    network = decoder.BoxDecoder(model)
    batch = [(scan, example, example.box) for example in scan.examples]
    known = decoder.embed([scan], model)
    with torch.no_grad():
        answers = decoder.decoded(network, model, batch, known, accelerator)
    assert len(answers) == len(boxes)
    members = sorted(boxes)
    for (_, example, _), logits in answers:
        x0, y0, x1, y1 = scan.tile(example).source
        wanted = expected[members[example.member], y0:y1, x0:x1]
        assert np.abs(logits.sigmoid().numpy() - wanted).max() < 2e-3


def test_kinds_of_boxes():
    grid = SliceGrid(Geometry((9, 8, 3), np.diag([1.0, 1.0, 4.0, 1.0])), 2)
    probability = np.zeros((3, 8, 9), np.float32)
    probability[:2, 2:5, 3:7] = 0.8
    probability[0, 7, 0] = 0.9  # an island
    truth = np.zeros((3, 8, 9), bool)
    truth[1:, 1:4, 2:5] = True
    whole = Box(0, 0, 9, 8)

    def boxes(kind, theta1=0.75):
        return organ_boxes(kind, probability, truth, grid, theta1)

    assert boxes("filtered") == {0: Box(3, 2, 7, 5), 1: Box(3, 2, 7, 5)}
    assert boxes("unfiltered") == {0: Box(0, 2, 7, 8), 1: Box(3, 2, 7, 5)}
    assert boxes("whole") == {0: whole, 1: whole}
    assert boxes("true") == {1: Box(2, 1, 5, 4), 2: Box(2, 1, 5, 4)}
    assert boxes("filtered", 0.85) == {0: Box(0, 7, 1, 8)}


def test_edges_move_outwards_within_what_is_shown(folder, sam_folder):
    image, labels = tiny.phantom(1)
    volume = Volume(image, Geometry(image.shape[::-1], np.diag([2.5, 2.0, 3.0, 1.0])))
    model = load_sam(sam_folder, device="cpu")
    boxes = {1: {9: Box(3, 6, 9, 15)}}
    scan = layout.laid_out("a", volume, labels, boxes, model, "slices", "CT")
    (example,) = scan.examples
    jitter = 9.0 * 512 / 22  # slices of 22 x 20: up to 9 pixels
    generator = torch.Generator().manual_seed(0)
    edges = np.array([decoder.moved(scan, example, jitter, generator).edges for _ in range(400)])
    assert (edges[:, :2] <= [3, 6]).all()
    assert (edges[:, 2:] >= [9, 15]).all()
    assert (edges >= 0).all()
    assert (edges <= [20, 22, 20, 22]).all()
    assert edges[:, 2].max() > 17.5
    assert edges[:, 0].min() == 0
    assert Prompts(torch.tensor(edges)).boxes.shape == (400, 4)


@pytest.mark.parametrize(
    "overrides",
    [
        ["network.canvas=64", "network.window=32"],
        ["network.canvas=256"],
        ["tiles.side=96"],
        ["tiles.side=256"],
    ],
)
def test_tiles_that_do_not_fit_the_canvas_are_refused(overrides):
    with pytest.raises(ConfigError, match=r"tiles\.side.*network\.canvas"):
        with_overrides(SamConfig(), overrides)
    fitting = ["tiles.side=256", "tiles.whole_slices=0"]
    assert with_overrides(SamConfig(), fitting).tiles.side == 256
