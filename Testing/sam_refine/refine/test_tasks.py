# SPDX-License-Identifier: Apache-2.0
"""What the worker does for the refinement: volumes, replies, and nothing sent twice."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_sam import FOUR_TILES

from SAMRefineLib.boxes.boxes import Box, SliceGrid
from SAMRefineLib.boxes.coarse import CoarseOrgan
from SAMRefineLib.boxes.key_frames import KeyFrames, boxes_from_json, boxes_to_json
from SAMRefineLib.refine.box_selection import choose_prompts, refine_coarse
from SAMRefineLib.refine.refiner import OrganPrompt, Refiner
from SAMRefineLib.refine.refiner import refine as refine_once
from SAMRefineLib.refine.tasks import TASKS, UNKNOWN_VOLUME
from SAMRefineLib.sam.models import SamModel, build_sam, load_sam, save_sam
from SAMRefineLib.sam.pixels import SRCSM
from SRCSMSegmenterLib.errors import PromptError
from SRCSMSegmenterLib.geometry import Geometry, Volume
from SRCSMSegmenterLib.worker.protocol import WorkerError
from SRCSMSegmenterLib.worker.tasks import Context, Models

SHAPE = (6, 50, 40)
GEOMETRY = Geometry(SHAPE[::-1], np.diag([1.5, 1.25, 6.0, 1.0]))
GRID = SliceGrid(GEOMETRY, 2)


@pytest.fixture
def a_sam(tmp_path):
    torch.manual_seed(5)
    sam = SamModel(build_sam("small", FOUR_TILES), "tiny", "small", SRCSM, FOUR_TILES)
    save_sam(tmp_path / "sam", sam, "# Card", "None")
    return tmp_path / "sam"


@pytest.fixture
def context():
    return Context(lambda stage, fraction: None, lambda: False, lambda line: None, Models())


def organ():
    """Image, coarse probabilities and boxes of a block that is brighter than noise."""
    coarse = np.zeros(SHAPE, np.float16)
    coarse[1:5, 10:30, 8:26] = 0.9
    image = np.random.default_rng(2).normal(0, 1, SHAPE) + 4 * coarse
    return image.astype(np.float32), coarse, KeyFrames.from_coarse("liver", 3, coarse, GRID)


def parameters(sam, frames, **more):
    return {
        "volume": "one",
        "sam": str(sam),
        "size": list(GEOMETRY.size),
        "affine": GEOMETRY.affine.ravel().tolist(),
        "modality": "MR",
        "device": "cpu",
        "boxes": boxes_to_json([frames]),
        **more,
    }


def test_a_volume_is_sent_once_and_a_moved_box_brings_its_slice(a_sam, context):
    image, coarse, frames = organ()
    arrays = {"image": image, "coarse_3": coarse}
    reply, nothing = TASKS["embed"](parameters(a_sam, frames), arrays, context)
    assert (reply["encoder_passes"], reply["device"], nothing) == (1, "cpu", {})
    reply, found = TASKS["refine"](parameters(a_sam, frames), {}, context)
    assert reply["encoder_passes"] == 0
    prompt = OrganPrompt(frames, coarse)
    alone = refine_once(Volume(image, GEOMETRY), [prompt], load_sam(a_sam), modality="MR")
    np.testing.assert_array_equal(found["labels"], alone.labels.array)
    json.dumps(reply)
    assert reply["axis"] == 2
    assert reply["sam"]["name"] == "tiny"
    (row,) = reply["organs"]
    assert (row["label"], row["name"], row["boxes"]) == (3, "liver", 4)
    assert row["dice"] == alone.reports[0].dice
    assert row["kept"] == {str(n): reason for n, reason in alone.reports[0].kept.items()}

    moved = frames
    for n in (1, 3):
        moved = moved.edit(n, frames.automatic[n])
    moved = moved.edit(2, Box(9, 11, 20, 25))
    request = {"volume": "one", "boxes": boxes_to_json([moved]), "whole": False}
    reply, found = TASKS["refine"](request, {}, context)
    assert 2 in reply["changed"]
    assert reply["encoder_passes"] == 0
    assert found["labels"].shape == (len(reply["changed"]), 50, 40)
    reply, found = TASKS["refine"]({**request, "whole": True}, {}, context)
    assert reply["changed"] == []
    assert found["labels"].shape == SHAPE


def test_points_threshold_and_mask_prompt_are_passed_on(a_sam, context):
    image, coarse, frames = organ()
    arrays = {"image": image, "coarse_3": coarse}
    request = parameters(a_sam, frames)
    TASKS["refine"](request, arrays, context)
    for more in (
        {"mask_threshold": 0.4},
        {"points": {"3": {"2": [[20, 20, True], [3, 3, False]]}}},
        {"mask_prompt": []},
    ):
        reply, _ = TASKS["refine"](request | more, {}, context)
        assert reply["changed"], more
    with pytest.raises(PromptError, match="outside slice 2"):
        TASKS["refine"](request | {"points": {"3": {"2": [[99, 20]]}}}, {}, context)


def unsure_organ():
    """As `organ`, but the network is sure of a part alone."""
    image, coarse, _ = organ()
    coarse[:, 12:28, 20:] = np.minimum(coarse[:, 12:28, 20:], 0.3)
    coarse[:, 20:] = np.minimum(coarse[:, 20:], 0.6)
    return image, coarse, KeyFrames.from_coarse("liver", 3, coarse, GRID)


@pytest.mark.parametrize("ahead", [True, False])
def test_boxes_are_chosen_as_the_command_line_chooses_them(a_sam, context, ahead):
    image, coarse, frames = unsure_organ()
    model, volume = load_sam(a_sam), Volume(image, GEOMETRY)
    organs = [CoarseOrgan("liver", 3, coarse)]
    (wanted,) = choose_prompts(Refiner(volume, GRID, model, modality="MR"), organs)
    alone = refine_coarse(volume, organs, GRID, model, modality="MR")
    request = parameters(a_sam, frames, choose=[3])
    arrays = {"image": image, "coarse_3": coarse}
    if ahead:
        reply, _ = TASKS["embed"](request, arrays, context)
        assert reply["encoder_passes"] > 0
        request = request | reply["chosen"] | {"choose": []}
        arrays = {}
    else:
        assert TASKS["embed"](request, {"image": image}, context)[0]["chosen"] is None
    reply, found = TASKS["refine"](request, arrays, context)
    assert reply["encoder_passes"] == 0 or not ahead
    np.testing.assert_array_equal(found["labels"], alone.labels.array)
    if not ahead:
        (chosen,) = boxes_from_json(reply["chosen"]["boxes"])
        assert chosen == wanted.frames
        assert reply["chosen"]["mask_prompt"] == [3] * wanted.mask_prompt
        assert reply["chosen"]["keep_unboxed"] == [3] * wanted.keep_unboxed


def test_a_forgotten_volume_is_asked_for(a_sam, context):
    image, coarse, frames = organ()
    with pytest.raises(WorkerError) as caught:
        TASKS["refine"](parameters(a_sam, frames), {}, context)
    assert caught.value.kind == UNKNOWN_VOLUME
    TASKS["refine"](parameters(a_sam, frames), {"image": image, "coarse_3": coarse}, context)
    TASKS["refine"](parameters(a_sam, frames), {}, context)
    with pytest.raises(WorkerError):
        TASKS["refine"](parameters(a_sam, frames, volume="two"), {}, context)


def test_the_coarse_mask_may_be_replaced(a_sam, context):
    image, coarse, frames = organ()
    request = parameters(a_sam, frames)
    reply, _ = TASKS["refine"](request, {"image": image}, context)
    assert reply["organs"][0]["dice"] is None
    reply, _ = TASKS["refine"](request, {"coarse_3": coarse > 0.5}, context)
    assert reply["organs"][0]["voxels_before"] == 4 * 20 * 18


def test_no_boxes_are_refused(a_sam, context):
    request = parameters(a_sam, organ()[2])
    empty = json.loads(request["boxes"]) | {"organs": []}
    with pytest.raises(PromptError, match="no organ"):
        TASKS["refine"](request | {"boxes": json.dumps(empty)}, {}, context)


def test_the_worker_knows_these_tasks_before_torch_is_there():
    code = "import sys, SAMRefineLib.refine.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
