"""Streaming, tiled decoding through a 3D VAE: a tiny random AutoencoderKLHunyuanVideo, which still has every real layer."""

import gc
import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, OutOfMemory
from invokeai_video_nodes.pipelines.vae3d import MIN_CELLS, MIN_FRAMES, TilePlan, decode_video, encode_video, plan_for, working_bytes

WHOLE = TilePlan(frames=40, height=64, width=64)
LATENTS = torch.randn(1, 4, 9, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae3d() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()  # fmt: skip


def decoded(vae, latents=LATENTS, plan=WHOLE, **options) -> np.ndarray:
    return np.stack(list(decode_video(vae, latents, plan=plan, **options)))


def diffusers_frames(vae, latents) -> np.ndarray:
    with torch.no_grad():
        pixels = vae.decode(latents / vae.config.scaling_factor).sample[0]
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def test_one_tile_equals_diffusers_own_decode(vae3d):
    vae3d.use_framewise_decoding = False
    ours, theirs = decoded(vae3d), diffusers_frames(vae3d, LATENTS)

    assert ours.shape == (33, 32, 48, 3)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("latent_frames", [1, 2, 4, 5, 6, 8, 9])
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_every_frame_comes_once_whatever_the_tiles(latent_frames, frames):
    plan = TilePlan(frames=frames, height=8, width=8, margin=2)

    assert len(decoded(Enlarger(), torch.rand(1, 3, latent_frames, 8, 12), plan)) == 4 * (latent_frames - 1) + 1


def test_a_vae_that_shows_each_latent_alone_is_put_together_without_a_seam():
    """With a decoder that only enlarges, tiles agree where they overlap, so any error of place would show."""
    vae = Enlarger()
    latents = torch.rand(1, 3, 9, 20, 28) * 1.6 - 0.8

    tiled = decoded(vae, latents, TilePlan(frames=3, height=8, width=11, margin=3))

    assert np.abs(tiled.astype(int) - decoded(vae, latents).astype(int)).max() <= 1


def test_frames_leave_before_the_next_tile_is_decoded_and_are_not_kept(vae3d):
    told = []
    frames = decode_video(vae3d, LATENTS, plan=SMALL, on_tile=lambda *done: told.append(done))
    first = weakref.ref(next(frames))
    gc.collect()

    assert first() is None
    assert told == [(2, 9)]
    assert len(list(frames)) == 32 and told[-1] == (9, 9)


class Failing:
    """A VAE whose decoder runs out of memory at the given calls."""

    def __init__(self, vae, fails_at, error=None):
        error = error or torch.OutOfMemoryError("CUDA out of memory")
        self._vae, self._fails_at, self._error, self.calls = vae, set(fails_at), error, 0

    def __getattr__(self, name):
        return getattr(self._vae, name)

    def decoder(self, z):
        self.calls += 1
        if self.calls - 1 in self._fails_at:
            raise self._error
        return self._vae.decoder(z)


LARGE, SMALL = (TilePlan(frames=frames, height=8, width=12, margin=2) for frames in (4, 2))


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (0, torch.OutOfMemoryError("CUDA out of memory")),
        (1, torch.OutOfMemoryError("CUDA out of memory")),
        (2, torch.OutOfMemoryError("CUDA out of memory")),
        (1, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        (1, MemoryError()),
    ],
    ids=["first", "middle", "last", "processor", "python"],
)
def test_out_of_memory_halves_the_tile_and_no_frame_is_lost(vae3d, failing, error):
    shrunk = []
    frames = decoded(Failing(vae3d, [failing], error), plan=LARGE, on_shrink=lambda *told: shrunk.append(told))

    assert shrunk == [(3 * failing, LARGE, SMALL)]
    assert np.array_equal(frames, by_hand(vae3d, change_at=3 * failing))


def by_hand(vae, *, change_at: int) -> np.ndarray:
    """The same decode with no failure: large tiles up to a latent frame, small ones from it on."""
    return decoded(vae, plan=lambda begin: LARGE if begin < change_at else SMALL)


def test_another_error_is_not_taken_for_a_lack_of_memory(vae3d):
    with pytest.raises(RuntimeError, match="shape"):
        decoded(Failing(vae3d, [1], RuntimeError("shape mismatch")), plan=LARGE)


def test_where_the_smallest_tile_does_not_fit_the_error_says_so(vae3d):
    with pytest.raises(OutOfMemory, match="smallest tile"):
        decoded(Failing(vae3d, range(99)), plan=LARGE)


def test_halving_ends_at_the_smallest_tile():
    plan, seen = TilePlan(frames=32, height=90, width=160), []
    while plan is not None:
        seen.append(plan)
        plan = plan.halved()

    assert all(smaller.cells < larger.cells for larger, smaller in zip(seen, seen[1:], strict=False))
    assert (seen[-1].frames, seen[-1].height, seen[-1].width) == (MIN_FRAMES, MIN_CELLS, MIN_CELLS)


def test_a_cancel_stops_before_the_next_tile(vae3d):
    stop = iter([False, False, True])
    frames = decode_video(vae3d, LATENTS, plan=SMALL, stop=lambda: next(stop))

    with pytest.raises(Canceled):
        list(frames)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "at least 1 latent frame"),
        ({"frames": 2, "overlap": 2}, "overlap: expected 0 to 1 latent frames, got 2"),
        ({"margin": 8}, "margin: expected 0 to 7 cells, got 8"),
    ],
)
def test_a_tile_that_would_not_advance_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        TilePlan(**{"frames": 4, "height": 8, "width": 8, "margin": 2, **settings})


def test_latents_of_another_vae_are_refused_before_decoding():
    with pytest.raises(BadInput, match="latent channels"):
        decode_video(Enlarger(), LATENTS, plan=WHOLE)


PIXELS = np.random.default_rng(0).integers(0, 256, size=(33, 64, 96, 3), dtype=np.uint8)


def encoded(vae, pixels=PIXELS, plan=WHOLE, **options) -> torch.Tensor:
    return encode_video(vae, iter(pixels), num_frames=len(pixels), plan=plan, **options)


def test_one_tile_equals_diffusers_own_encode(vae3d):
    pixels = PIXELS[:17]  # diffusers splits longer clips on its own
    with torch.no_grad():
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        theirs = vae3d.encode(video).latent_dist.mode() * vae3d.config.scaling_factor

    assert torch.equal(encoded(vae3d, pixels), theirs)


@pytest.mark.parametrize("count", [1, 5, 9, 13, 33])
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_every_latent_comes_once_whatever_the_tiles(count, frames):
    plan = TilePlan(frames=frames, height=8, width=8, margin=2)

    assert encoded(Shrinker(), PIXELS[:count], plan).shape == (1, 3, (count - 1) // 4 + 1, 8, 12)


def test_encoding_in_tiles_puts_each_latent_in_its_place():
    """An encoder that takes the last frame of each latent and the mean of each cell agrees wherever tiles overlap."""
    vae = Shrinker()

    tiled = encoded(vae, plan=TilePlan(frames=3, height=5, width=7, margin=2))

    assert torch.allclose(tiled, encoded(vae), atol=1e-6)


def test_a_video_with_too_few_frames_or_of_another_count_is_refused(vae3d):
    with pytest.raises(BadInput, match="video: expected 9 frames, got 7"):
        encode_video(vae3d, iter(PIXELS[:7]), num_frames=9, plan=WHOLE)
    with pytest.raises(BadInput, match=r"form 4n\+1, got 16 \(nearest valid value: 17\)"):
        encode_video(vae3d, iter(PIXELS), num_frames=16, plan=WHOLE)
    with pytest.raises(BadInput, match=r"height: expected a multiple of 8 pixels, got 60 \(nearest valid value: 64\)"):
        encode_video(vae3d, iter(PIXELS[:, :60]), num_frames=9, plan=WHOLE)


def test_the_plan_shrinks_with_the_memory_that_is_free(vae3d):
    shape = (1, 4, 33, 90, 160)
    plans = [plan_for(vae3d, shape, free_bytes=free) for free in (10**12, 10**9, 10**8, 1)]

    assert (plans[0].height, plans[0].width) == (90, 160)
    assert all(smaller.cells <= larger.cells for larger, smaller in zip(plans, plans[1:], strict=False))
    assert working_bytes(vae3d, plans[1]) <= 10**9
    assert (plans[-1].frames, plans[-1].height, plans[-1].width) == (MIN_FRAMES, MIN_CELLS, MIN_CELLS)


def test_a_plan_by_hand_keeps_what_is_set_and_fits_the_rest(vae3d):
    shape = (1, 4, 33, 90, 160)
    plan = plan_for(vae3d, shape, free_bytes=10**8, tile_frames=32)
    square = plan_for(vae3d, shape, free_bytes=10**12, tile_size=128)

    assert plan.frames == 8 and plan.height < 90
    assert (square.height, square.width, square.frames) == (16, 16, 17)
    assert plan_for(vae3d, shape, free_bytes=1, tile_frames=32, tile_size=128) == TilePlan(frames=8, height=16, width=16, margin=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile_frames": 4}, r"a multiple of 4 frames from 8 on, got 4 \(nearest valid value: 8\)"),
        ({"tile_frames": 18}, r"a multiple of 4 frames from 8 on, got 18 \(nearest valid value: 16\)"),
        ({"tile_size": 100}, r"a multiple of 8 pixels from 64 on, got 100 \(nearest valid value: 96\)"),
        ({"tile_size": -8}, r"tile_size: expected 0 or a multiple of 8 pixels"),
    ],
)
def test_a_plan_by_hand_off_the_grid_is_refused(vae3d, settings, message):
    with pytest.raises(BadInput, match=message):
        plan_for(vae3d, (1, 4, 33, 90, 160), free_bytes=10**9, **settings)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_encode_goes_on_in_smaller_tiles_where_memory_runs_out(failing):
    vae, shrunk = Shrinker(), []
    vae.fails_at = {failing}

    latents = encoded(vae, plan=TilePlan(frames=4, height=8, width=12, margin=2), on_shrink=lambda *told: shrunk.append(told))

    assert [told[1:] for told in shrunk] == ([(LARGE, SMALL)] if failing < 3 else [])
    assert torch.allclose(latents, encoded(Shrinker()), atol=1e-6)


class Shrinker:
    """A stand-in for the VAE's arithmetic of places: each latent is its last frame, in means of 8x8 pixels."""

    class config:
        latent_channels, scaling_factor, shift_factor = 3, 1.0, 0.0
        temporal_compression_ratio, spatial_compression_ratio = 4, 8

    def parameters(self):
        return iter([torch.zeros(1)])

    calls, fails_at = 0, frozenset()

    def encoder(self, pixels):
        self.calls += 1
        if self.calls - 1 in self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        small = torch.nn.functional.avg_pool3d(pixels[:, :, ::4], (1, 8, 8))
        return torch.cat([small, small], dim=1)


class Enlarger:
    """A stand-in for the VAE's arithmetic of places: latent frame 0 is shown once, each other one four times, 8x larger."""

    class config:
        latent_channels, scaling_factor, shift_factor = 3, 1.0, 0.0
        temporal_compression_ratio, spatial_compression_ratio = 4, 8

    def parameters(self):
        return iter([torch.zeros(1)])

    def post_quant_conv(self, z):
        return z

    def decoder(self, z):
        frames = torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(4, 2)], dim=2)
        return frames.repeat_interleave(8, 3).repeat_interleave(8, 4)
