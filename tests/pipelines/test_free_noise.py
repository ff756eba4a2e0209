import pytest
import torch
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.windows import free_noise

SETTINGS = [(16, 4, 32), (16, 4, 33), (16, 16, 40), (8, 3, 25), (2, 1, 7), (16, 4, 16), (16, 4, 9), (16, 4, 128)]


class Diffusers(AnimateDiffFreeNoiseMixin):
    """The reference's noise alone, with the settings that `enable_free_noise` would have left."""

    vae_scale_factor = 8

    def __init__(self, *, length, stride, kind):
        self._free_noise_context_length, self._free_noise_context_stride, self._free_noise_noise_type = length, stride, kind

    def noise(self, num_frames, *, generator=None, latents=None):
        return self._prepare_latents_free_noise(
            1, 4, num_frames, 32, 24, torch.float32, torch.device("cpu"), generator=generator, latents=latents
        )


def generator(seed=5):
    return torch.Generator("cpu").manual_seed(seed)


def drawn(num_frames, source):
    return torch.randn(1, 4, num_frames, 4, 3, generator=source)


@pytest.mark.parametrize(("length", "stride", "num_frames"), SETTINGS)
@pytest.mark.parametrize("kind", ["shuffle_context", "random"])
def test_noise_from_a_seed_is_that_of_diffusers(kind, length, stride, num_frames):
    ours, theirs = generator(), generator()

    noise = free_noise(drawn(num_frames, ours), length=length, stride=stride, kind=kind, generator=ours)

    assert torch.equal(noise, Diffusers(length=length, stride=stride, kind=kind).noise(num_frames, generator=theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize(("length", "stride", "num_frames"), [case for case in SETTINGS if case[2] > case[0]])
def test_repeated_noise_is_that_of_diffusers_given_the_noise_of_one_window(length, stride, num_frames):
    noise = drawn(num_frames, generator())

    theirs = Diffusers(length=length, stride=stride, kind="repeat_context").noise(num_frames, latents=noise[:, :, :length].clone())

    assert torch.equal(free_noise(noise, length=length, stride=stride, kind="repeat_context"), theirs)


def test_diffusers_itself_repeats_nothing_when_it_draws_the_noise():
    """Its check of the noise type looks at the context length; where this fails it has been mended and parity can be wider."""
    theirs = Diffusers(length=8, stride=4, kind="repeat_context").noise(24, generator=generator())

    assert torch.equal(theirs, drawn(24, generator()))


@pytest.mark.parametrize("kind", ["shuffle_context", "repeat_context"])
def test_every_frame_of_a_long_clip_has_the_noise_of_one_of_the_first(kind):
    noise = seeded_noise((1, 2, 40, 3, 3), seed=1)

    result = free_noise(noise, length=8, stride=4, kind=kind, generator=generator())
    sources = [[torch.equal(result[:, :, frame], noise[:, :, first]) for first in range(8)] for frame in range(40)]

    assert all(sum(row) == 1 for row in sources)
    assert torch.equal(result[:, :, :8], noise[:, :, :8])


def test_shuffled_noise_repeats_in_another_order():
    noise = seeded_noise((1, 2, 32, 3, 3), seed=1)

    shuffled = free_noise(noise, length=16, stride=16, generator=generator())

    assert not torch.equal(shuffled, free_noise(noise, length=16, stride=16, kind="repeat_context"))
    assert not torch.equal(shuffled, free_noise(noise, length=16, stride=16, generator=generator(6)))


@pytest.mark.parametrize("kind", ["shuffle_context", "repeat_context", "random"])
def test_the_given_noise_is_left_as_it_was(kind):
    noise = seeded_noise((1, 2, 20, 3, 3), seed=1)

    free_noise(noise, length=8, stride=4, kind=kind, generator=generator())

    assert torch.equal(noise, seeded_noise((1, 2, 20, 3, 3), seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1, "stride": 1}, r"FreeNoise context length: expected at least 2 frames, got 1 \(nearest valid value: 2\)"),
        ({"length": 8, "stride": 9}, r"FreeNoise context stride: expected 1 to 8, .*, got 9 \(nearest valid value: 8\)"),
        ({"length": 8, "stride": 0}, r"FreeNoise context stride: expected 1 to 8, .*, got 0 \(nearest valid value: 1\)"),
        ({"length": 8, "stride": 4, "kind": "shuffle"}, "FreeNoise noise type: expected one of shuffle_context, .*, got 'shuffle'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_would_do(settings, message):
    with pytest.raises(BadInput, match=message):
        free_noise(seeded_noise((1, 2, 20, 3, 3), seed=1), **settings)


def test_noise_without_a_frame_axis_is_refused():
    with pytest.raises(BadInput, match=r"noise: expected 5-D \[1, C, frames, height/8, width/8\], got 4-D"):
        free_noise(seeded_noise((1, 2, 3, 3), seed=1), length=8, stride=4)
