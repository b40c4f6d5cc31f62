# SPDX-License-Identifier: Apache-2.0
"""Embeddings: one pass a canvas ever, limits that hold, and windows that do not see each other."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny_sam import official_model, small_model

from SAMRefineLib.sam import embeddings
from SAMRefineLib.sam.embeddings import EmbeddingCache, encode
from SRCSMSegmenterLib.errors import Cancelled, DeviceError

ONE = 16 * 16 * 16 * 2
"""Bytes of one embedding of `small_model`: 16 channels on 16 x 16 patches, float16."""


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(embeddings, "autocast", lambda device: nullcontext())


@pytest.fixture(scope="module")
def model():
    return small_model()


def canvases(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 64, 64)).astype(np.float32)


def test_the_official_encoder_gets_three_normalised_channels():
    model = official_model()
    image = torch.rand(2, 96, 96) * 255
    colours = torch.stack([image] * 3, 1)
    expected = model.sam.image_encoder(torch.stack([model.sam.preprocess(c) for c in colours]))
    assert torch.allclose(encode(model, image), expected, atol=1e-5)


def test_windows_are_encoded_as_if_alone(model):
    canvas = torch.from_numpy(canvases(2))
    together = encode(model, canvas)
    assert together.shape == (2, 16, 16, 16)
    for n, row, column in np.ndindex(2, 2, 2):
        y, x = 32 * row, 32 * column
        alone = encode(model, canvas[n : n + 1, y : y + 32, x : x + 32])
        part = together[n, :, y // 4 : y // 4 + 8, x // 4 : x // 4 + 8]
        assert torch.allclose(alone[0], part, atol=1e-5)


def test_only_the_last_convolution_would_mix_windows_and_only_at_their_edges(model):
    """Why windows are images of their own: the encoder as it is on the whole canvas."""
    canvas = torch.from_numpy(canvases(1))
    mixed = model.sam.image_encoder(canvas[:, None])
    differs = ((mixed - encode(model, canvas)).abs().amax((0, 1)) > 1e-5).numpy()
    seam = np.zeros((16, 16), bool)
    seam[7:9] = seam[:, 7:9] = True
    assert (differs == seam).all()


def test_the_cache_gives_what_the_encoder_gives_in_order(model):
    images = canvases(3)
    found = EmbeddingCache().embed(model, images)
    expected = encode(model, torch.from_numpy(images))
    assert [e.dtype for e in found] == [torch.float16] * 3
    assert torch.allclose(torch.stack(found).float(), expected, atol=1e-2)
    assert not torch.allclose(found[0].float(), expected[1], atol=0.1)


def test_a_canvas_is_encoded_once(model):
    cache = EmbeddingCache()
    images = canvases(3)
    first = cache.embed(model, images[[0, 1, 0]])
    assert cache.passes == 2
    assert first[0] is first[2]
    again = cache.embed(model, images[[1, 2]].copy())
    assert cache.passes == 3
    assert again[0] is first[1]


def test_one_changed_pixel_or_another_encoder_is_another_canvas(model):
    cache = EmbeddingCache()
    images = canvases(1)
    [before] = cache.embed(model, images)
    images[0, 60, 3] += 1
    [after] = cache.embed(model, images)
    assert cache.passes == 2
    assert not torch.equal(before, after)
    [other] = cache.embed(small_model(seed=1), images)
    assert cache.passes == 3
    assert not torch.equal(after, other)


def test_another_decoder_over_the_same_encoder_shares_embeddings(model):
    cache = EmbeddingCache()
    cache.embed(model, canvases(1))
    tuned = small_model()
    tuned.sam.mask_decoder.mask_tokens.weight += 1
    cache.embed(tuned, canvases(1))
    assert cache.passes == 1


def test_the_limit_holds_and_the_least_recently_used_goes_first(model):
    cache = EmbeddingCache(limit_bytes=2 * ONE)
    images = canvases(3)
    cache.embed(model, images[:2])
    cache.embed(model, images[:1])  # 0 is now the more recent
    found = cache.embed(model, images[2:])
    assert len(found) == 1
    assert cache.bytes == 2 * ONE
    cache.embed(model, images[:1])
    assert cache.passes == 3
    cache.embed(model, images[1:2])
    assert cache.passes == 4


def test_more_canvases_than_the_limit_holds_all_come_back(model):
    cache = EmbeddingCache(limit_bytes=ONE - 1)
    assert len(cache.embed(model, canvases(3))) == 3
    assert cache.bytes == 0


def test_progress_is_told_before_each_pass_and_may_cancel(model):
    def step(done):
        seen.append(done)
        if done == 2:
            raise Cancelled("enough")

    seen = []
    cache = EmbeddingCache()
    cache.embed(model, canvases(1))
    with pytest.raises(Cancelled):
        cache.embed(model, canvases(4), step)
    assert seen == [1, 2]
    assert cache.passes == 2  # what was computed is kept
    cache.embed(model, canvases(4))
    assert cache.passes == 4


def test_no_canvases_are_no_work(model):
    assert EmbeddingCache().embed(model, canvases(0)) == []


def test_out_of_memory_is_said_in_one_sentence(model, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(embeddings, "encode", fail)
    with pytest.raises(DeviceError, match="Memory ran out on cpu"):
        EmbeddingCache().embed(model, canvases(1))


def test_a_decoder_can_be_trained_on_cached_embeddings(model):
    [embedding] = EmbeddingCache().embed(model, canvases(1))
    weight = torch.ones(16, requires_grad=True)
    (embedding.float() * weight[:, None, None]).sum().backward()
    assert weight.grad is not None


@pytest.mark.needs_gpu
def test_a_gpu_finds_the_same_in_half_precision(model, monkeypatch):
    monkeypatch.undo()
    images = canvases(70)  # more than go through the encoder at a time, were they larger
    monkeypatch.setattr(embeddings, "PASS_PIXELS", 32 * 64 * 64)
    expected = encode(model, torch.from_numpy(images))
    on_gpu = small_model()
    on_gpu.sam.cuda()
    steps = []
    found = EmbeddingCache().embed(on_gpu, images, steps.append)
    assert steps == [0, 32, 64]
    error = torch.stack(found).float() - expected
    assert error.norm() < 0.03 * expected.norm()
