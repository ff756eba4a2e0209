"""SVD's streaming decode: the frames of diffusers' pipeline, one chunk in memory, and what happens where memory runs out."""

import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from tiny_svd import tiny_svd

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, OutOfMemory
from invokeai_video_nodes.pipelines.svd.decode import decode_chunk, decode_chunks

FRAMES = 7
LATENTS = torch.randn(1, 4, FRAMES, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline() -> StableVideoDiffusionPipeline:
    return tiny_svd()


@torch.no_grad()
def expected(pipeline, chunk_size):
    """diffusers' 8-bit frames."""
    pixels = pipeline.decode_latents(LATENTS.transpose(1, 2).contiguous(), FRAMES, chunk_size)
    arrays = pipeline.video_processor.postprocess_video(pixels, output_type="np")[0]
    return [np.asarray(image) for image in VaeImageProcessor.numpy_to_pil(arrays)]


def fail_above(pipeline, monkeypatch, most, error=torch.OutOfMemoryError):
    """A decoder for which more than `most` frames at once are too many; tells how many each call had."""
    calls, decode = [], pipeline.vae.decode

    def limited(latents, **options):
        calls.append(len(latents))
        if len(latents) > most:
            raise error("not enough memory: you tried to allocate 9 bytes")
        return decode(latents, **options)

    monkeypatch.setattr(pipeline.vae, "decode", limited)
    return calls


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 25])
def test_frames_equal_diffusers_at_the_same_chunk_size(pipeline, chunk_size):
    frames = list(decode_chunks(pipeline.vae, LATENTS, chunk_size=chunk_size))

    assert len(frames) == FRAMES and frames[0].dtype == np.uint8 and frames[0].shape == (24, 32, 3)
    assert all(np.array_equal(*pair) for pair in zip(frames, expected(pipeline, chunk_size), strict=True))


@pytest.mark.parametrize("chunk_size", [2, 7])
def test_pixels_before_rounding_equal_diffusers_bit_for_bit(pipeline, chunk_size):
    pixels = torch.cat([decode_chunk(pipeline.vae, chunk) for chunk in LATENTS.split(chunk_size, dim=2)])

    with torch.no_grad():
        reference = pipeline.decode_latents(LATENTS.transpose(1, 2).contiguous(), FRAMES, chunk_size)
    assert torch.equal(pixels, reference[0].transpose(0, 1))


def test_frames_come_as_soon_as_their_chunk_is_done_and_are_let_go(pipeline, monkeypatch):
    calls, told = fail_above(pipeline, monkeypatch, 99), []
    frames = decode_chunks(pipeline.vae, LATENTS, chunk_size=3, on_frame=lambda *frame: told.append(frame))
    first = weakref.ref(next(frames))
    gc.collect()

    assert first() is None
    assert calls == [3] and told == [(1, FRAMES)]
    assert len(list(frames)) == FRAMES - 1 and calls == [3, 3, 1] and told[-1] == (FRAMES, FRAMES)


def test_a_canceled_decode_ends_before_the_next_chunk(pipeline, monkeypatch):
    calls, told = fail_above(pipeline, monkeypatch, 99), []
    frames = decode_chunks(
        pipeline.vae, LATENTS, chunk_size=3, stop=lambda: len(told) >= 3, on_frame=lambda *frame: told.append(frame)
    )

    with pytest.raises(Canceled):
        list(frames)

    assert calls == [3] and len(told) == 3


def test_a_canceled_decode_ends_within_a_chunk_and_leaves_no_hook(pipeline):
    ran = []
    handle = pipeline.vae.decoder.up_blocks[0].register_forward_hook(lambda *_: ran.append(0))
    later = pipeline.vae.decoder.up_blocks[1].register_forward_hook(lambda *_: ran.append(1))

    with pytest.raises(Canceled):
        next(decode_chunks(pipeline.vae, LATENTS, chunk_size=7, stop=lambda: bool(ran)))
    handle.remove()
    later.remove()

    assert ran == [0]
    assert not any(module._forward_pre_hooks for module in pipeline.vae.modules())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_where_memory_runs_out_half_the_chunk_goes_on_and_no_frame_is_lost_or_repeated(pipeline, monkeypatch, error):
    reference = expected(pipeline, 2)
    calls, told, shrunk = fail_above(pipeline, monkeypatch, 2, error), [], []
    frames = list(
        decode_chunks(
            pipeline.vae,
            LATENTS,
            chunk_size=5,
            on_frame=lambda index, _: told.append(index),
            on_shrink=lambda *change: shrunk.append(change),
        )
    )

    assert calls == [5, 2, 2, 2, 1] and shrunk == [(0, 5, 2)]
    assert told == list(range(1, FRAMES + 1))
    assert all(np.array_equal(*pair) for pair in zip(frames, reference, strict=True))


def test_a_chunk_larger_than_the_clip_is_halved_from_the_clip_s_length(pipeline, monkeypatch):
    calls = fail_above(pipeline, monkeypatch, 3)

    assert len(list(decode_chunks(pipeline.vae, LATENTS, chunk_size=25))) == FRAMES
    assert calls == [7, 3, 3, 1]


def test_memory_that_runs_out_later_keeps_the_frames_that_are_done(pipeline, monkeypatch):
    reference = expected(pipeline, 3)
    calls = fail_above(pipeline, monkeypatch, 3)
    frames = decode_chunks(pipeline.vae, LATENTS, chunk_size=3)
    done = [next(frames) for _ in range(3)]
    monkeypatch.undo()
    later = fail_above(pipeline, monkeypatch, 1)
    rest = list(frames)

    assert calls == [3] and later == [3, 1, 1, 1, 1]
    assert len(done) + len(rest) == FRAMES
    assert all(np.array_equal(*pair) for pair in zip(done, reference[:3], strict=True))


def test_a_frame_that_does_not_fit_alone_is_an_error_that_names_it(pipeline, monkeypatch):
    fail_above(pipeline, monkeypatch, 0)

    with pytest.raises(OutOfMemory, match="at frame 1, with a single frame per chunk"):
        list(decode_chunks(pipeline.vae, LATENTS, chunk_size=4))


def test_another_error_of_the_decoder_is_no_lack_of_memory(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.vae, "decode", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        list(decode_chunks(pipeline.vae, LATENTS, chunk_size=4))


@pytest.mark.parametrize(
    ("latents", "chunk_size", "message"),
    [
        (LATENTS, 0, r"decode_chunk_size: expected 1 or more frames, got 0 \(nearest valid value: 1\)"),
        (torch.zeros(1, 16, 4, 3, 4), 2, "VAE: latent channels: expected 16 as the latents have, got 4"),
        (LATENTS[0], 2, "latents: expected 5-D .* got 4-D"),
    ],
)
def test_what_does_not_fit_the_vae_is_refused_at_once(pipeline, monkeypatch, latents, chunk_size, message):
    monkeypatch.setattr(pipeline.vae, "decode", lambda *_, **__: pytest.fail("the VAE was called"))

    with pytest.raises(BadInput, match=message):
        decode_chunks(pipeline.vae, latents, chunk_size=chunk_size)
