# SPDX-License-Identifier: Apache-2.0
"""Decoding: the same as segment_anything, but for many tiles at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from tiny_sam import official_model, small_model

from SAMRefineLib.sam.decoding import Prompts, decode
from SAMRefineLib.sam.embeddings import encode

BOXES = torch.tensor([[11.0, 20.0, 50.0, 71.0], [33.5, 4.0, 90.0, 60.25]])
POINTS = torch.tensor([[[20.0, 30.0], [70.0, 8.0]], [[40.0, 41.0], [0.0, 0.0]]])
POINT_LABELS = torch.tensor([[1.0, 0.0], [1.0, -1.0]])


@pytest.fixture(scope="module")
def official():
    return official_model()


@pytest.fixture(scope="module")
def small():
    return small_model()


def rgb(seed=0):
    """A grey picture as segment_anything wants it, (3, 96, 96) with values 0..255."""
    image = torch.rand(96, 96, generator=torch.Generator().manual_seed(seed)) * 255
    return image.expand(3, -1, -1)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_on_a_whole_canvas_it_is_what_segment_anything_computes(official, points, mask):
    masks = torch.randn(2, 1, 24, 24) if mask else None
    # SAM counts from the middle of the first pixel.
    record = {"image": rgb(), "original_size": (96, 96), "boxes": BOXES - 0.5}
    prompts = Prompts(BOXES, masks=masks)
    if points:
        record |= {"point_coords": POINTS - 0.5, "point_labels": POINT_LABELS}
        prompts = replace(prompts, points=POINTS, point_labels=POINT_LABELS)
    if mask:
        record["mask_inputs"] = masks
    [expected] = official.sam([record], multimask_output=False)
    with torch.no_grad():
        embedding = encode(official, rgb()[:1])
        logits, quality = decode(official, embedding.expand(2, -1, -1, -1), prompts)
    assert torch.allclose(logits, expected["low_res_logits"][:, 0], atol=1e-5, rtol=1e-4)
    assert torch.allclose(quality, expected["iou_predictions"][:, 0], atol=1e-5, rtol=1e-4)
    assert logits.std() > 1e-3


def test_it_is_what_segment_anythings_predictor_computes(official):
    predictor = SamPredictor(official.sam)
    image = rgb(3).byte().permute(1, 2, 0).numpy()
    predictor.set_image(image)
    box = np.array([11.0, 20.0, 50.0, 71.0])
    _, scores, expected = predictor.predict(box=box - 0.5, multimask_output=False)
    with torch.no_grad():
        embedding = encode(official, torch.from_numpy(image[None, ..., 0]).float())
        logits, quality = decode(official, embedding, Prompts(torch.tensor(box).float()[None]))
    assert np.allclose(logits, expected, atol=1e-5, rtol=1e-4)
    assert np.allclose(quality, scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", ["official", "small"])
def test_a_batch_is_what_its_prompts_are_alone(model, request):
    model = request.getfixturevalue(model)
    embeddings = torch.randn(3, 16, 4, 3)
    prompts = Prompts(
        torch.tensor([[1.0, 2, 30, 20], [5, 9, 12, 40], [0, 0, 48, 64]]),
        torch.rand(3, 2, 2) * 40,
        torch.tensor([[1.0, 0], [1, 1], [0, -1]]),
        torch.randn(3, 1, 16, 12),
    )
    corners = torch.tensor([[16.0, 0.0], [48.0, 32.0], [0.0, 16.0]])
    with torch.no_grad():
        logits, quality = decode(model, embeddings, prompts, corners)
        for n in range(3):
            alone = Prompts(*(value[n : n + 1] for value in vars(prompts).values()))
            one, its_quality = decode(model, embeddings[n : n + 1], alone, corners[n : n + 1])
            assert torch.allclose(one[0], logits[n], atol=1e-5)
            assert torch.allclose(its_quality[0], quality[n], atol=1e-5)
    assert logits.shape == (3, 16, 12)


def test_official_positions_are_those_of_the_canvas(official):
    """A tile is decoded as if the rest of the canvas were not there, but where it is."""
    embedding = torch.randn(1, 16, 2, 3)
    box = torch.tensor([[3.0, 5.0, 30.0, 25.0]])
    sam = official.sam
    x, y = 32, 16
    sparse, _ = sam.prompt_encoder(None, box + torch.tensor([x, y, x, y]) - 0.5, None)
    with torch.no_grad():
        expected, _ = sam.mask_decoder(
            embedding,
            sam.prompt_encoder.get_dense_pe()[..., 1:3, 2:5],
            sparse,
            sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 2, 3),
            multimask_output=False,
        )
        logits, _ = decode(official, embedding, Prompts(box), torch.tensor([[x, y]]))
        elsewhere, _ = decode(official, embedding, Prompts(box), torch.tensor([[y, x]]))
    assert torch.allclose(logits, expected[:, 0], atol=1e-6)
    assert not torch.allclose(logits, elsewhere, atol=1e-3)


def test_local_positions_do_not_depend_on_the_place_on_the_canvas(small):
    embedding = torch.randn(1, 16, 8, 8)
    prompts = Prompts(torch.tensor([[3.0, 5.0, 30.0, 25.0]]), torch.tensor([[[9.0, 9.0]]]),
                      torch.ones(1, 1))  # fmt: skip
    with torch.no_grad():
        here, _ = decode(small, embedding, prompts)
        there, _ = decode(small, embedding, prompts, torch.tensor([[32.0, 0.0]]))
    assert torch.equal(here, there)


def test_half_precision_embeddings_are_taken(small):
    embedding = torch.randn(1, 16, 8, 8)
    prompts = Prompts(torch.tensor([[3.0, 5.0, 30.0, 25.0]]))
    with torch.no_grad():
        full, _ = decode(small, embedding, prompts)
        half, _ = decode(small, embedding.half(), prompts)
    assert half.dtype == torch.float32
    assert torch.allclose(full, half, atol=0.02 * float(full.std()))


def test_gradients_reach_the_decoder_and_the_embedding(small):
    decoder = small_model().sam.mask_decoder.requires_grad_(True)
    model = small_model()
    model.sam.mask_decoder = decoder
    embedding = torch.randn(1, 16, 8, 8, requires_grad=True)
    logits, quality = decode(model, embedding, Prompts(torch.tensor([[3.0, 5.0, 30.0, 25.0]])))
    (logits.square().mean() + quality.sum()).backward()
    assert embedding.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())
    assert not any(p.requires_grad for p in model.sam.prompt_encoder.parameters())
