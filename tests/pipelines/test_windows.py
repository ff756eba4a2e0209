import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled
from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.windows import (
    STRIDES,
    ContextWindows,
    looped_windows,
    normalized_weights,
    open_starts,
    phase_of,
    position_weights,
    predict_in_windows,
)

KINDS = ("standard", "looped", "static")
WEIGHTS = ("pyramid", "flat", "linear")
LATENTS = seeded_noise((1, 2, 32, 3, 3), seed=0)
SEEDS = range(24)


def drawn(seed, **fixed):
    """Any settings that are allowed, and a clip and step to go with them: (settings, num_frames, step)."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    length = pick(2, 24)
    settings = {"length": length, "overlap": pick(0, length - 1), "kind": KINDS[pick(0, 2)], "weights": WEIGHTS[pick(0, 2)]} | fixed
    settings.setdefault("stride", 1 if settings["kind"] == "static" else STRIDES[pick(0, 3)])
    return ContextWindows(**settings), pick(1, 128), pick(0, 30)


def context_model(latents, frames):
    """What a frame becomes depends on all frames of its window, as in a motion module: attention of random features."""
    tokens = latents.flatten(3).permute(0, 3, 2, 1)
    mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    return mixed.permute(0, 3, 2, 1).reshape(latents.shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_cover_every_frame_and_none_is_too_long(kind, seed):
    settings, num_frames, step = drawn(seed, kind=kind)

    windows = settings.of_step(num_frames, step)

    assert {frame for frames in windows for frame in frames} == set(range(num_frames)), (settings, num_frames, step)
    assert all(1 <= len(frames) <= settings.length for frames in windows), (settings, num_frames, step)
    assert all(len(set(frames)) == len(frames) for frames in windows), (settings, num_frames, step)
    assert max(len(frames) for frames in windows) <= settings.frames_at_once(num_frames), (settings, num_frames, step)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_weights_of_every_frame_add_up_to_one(weights, seed):
    settings, num_frames, step = drawn(seed, weights=weights)
    windows = settings.of_step(num_frames, step)

    total = torch.zeros(num_frames, dtype=torch.float64)
    for frames, shares in zip(windows, normalized_weights(windows, num_frames=num_frames, settings=settings), strict=True):
        assert bool((shares > 0).all()), (settings, num_frames, step)
        total[list(frames)] += shares
    assert float((total - 1).abs().max()) < 1e-12, (settings, num_frames, step)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["standard", "static"])
def test_neighbours_share_at_least_the_overlap(kind, seed):
    settings, num_frames, step = drawn(seed, kind=kind, stride=1)

    windows = settings.of_step(num_frames, step)
    shared = [len(set(a) & set(b)) for a, b in zip(windows, windows[1:], strict=False)]

    assert all(count >= settings.overlap for count in shared), (settings, num_frames, step)


@pytest.mark.parametrize("seed", SEEDS)
def test_neighbours_on_a_ring_share_at_least_the_overlap_over_the_end_too(seed):
    settings, num_frames, step = drawn(seed, kind="looped", stride=1)

    windows = settings.of_step(num_frames, step)
    starts = [frames[0] for frames in windows]
    gaps = [(b - a) % num_frames for a, b in zip(starts, starts[1:] + starts[:1], strict=True)]

    assert len(windows) == 1 or max(gaps) <= settings.length - settings.overlap, (settings, num_frames, step)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_rolling_a_looped_clip_rolls_its_prediction(weights, seed):
    settings, num_frames, step = drawn(seed, kind="looped", weights=weights)
    num_frames += settings.length
    clip, roll = seeded_noise((1, 2, num_frames, 2, 2), seed).double(), 7 * seed + 1

    def predicted(latents, shift):
        windows = [w for d in (1, 2) for w in looped_windows(num_frames, settings, stride=d, phase=phase_of(step), shift=shift)]
        total = torch.zeros_like(latents)
        for frames, shares in zip(windows, normalized_weights(windows, num_frames=num_frames, settings=settings), strict=True):
            total[:, :, list(frames)] += context_model(latents[:, :, list(frames)], frames) * shares[:, None, None]
        return total

    assert torch.allclose(predicted(clip.roll(roll, 2), roll), predicted(clip, 0).roll(roll, 2), atol=1e-12), (settings, num_frames)
    assert not torch.allclose(predicted(clip, 0), predicted(clip, 0).roll(roll, 2)), "the clip must differ from frame to frame"


@pytest.mark.parametrize("roll", [8, 16, 24])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_looped_clip_rolled_by_whole_windows_is_predicted_as_rolled(roll, step):
    settings = ContextWindows(length=12, overlap=4, kind="looped")

    def predicted(latents):
        return predict_in_windows(context_model, latents, settings=settings, step=step)

    assert torch.allclose(predicted(LATENTS.roll(roll, 2)), predicted(LATENTS).roll(roll, 2), atol=1e-6)
    assert not torch.allclose(predicted(LATENTS.roll(4, 2)), predicted(LATENTS).roll(4, 2), atol=1e-3), "windows must matter here"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_frames", [1, 15, 16])
def test_a_clip_of_one_window_reaches_the_model_itself_and_its_prediction_comes_back_itself(kind, num_frames):
    clip, seen = LATENTS[:, :, :num_frames].half(), []

    def model(latents, frames):
        seen.append((latents, frames, context_model(latents.float(), frames).half()))
        return seen[-1][2]

    result = predict_in_windows(model, clip, settings=ContextWindows(length=16, kind=kind, weights="pyramid"), step=3)

    assert len(seen) == 1 and seen[0][0] is clip and seen[0][1] == tuple(range(num_frames))
    assert result is seen[0][2]


def test_one_frame_more_than_the_length_switches_windows_on():
    settings = ContextWindows(length=16, kind="static")

    assert [settings.are_needed(count) for count in (15, 16, 17)] == [False, False, True]
    assert settings.of_step(17, 0) == [tuple(range(16)), tuple(range(1, 17))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_looks_at_one_frame_at_a_time_predicts_the_same_with_windows_as_without(seed):
    settings, _, step = drawn(seed)

    result = predict_in_windows(lambda latents, frames: latents.sin(), LATENTS.double(), settings=settings, step=step)

    assert torch.allclose(result, LATENTS.double().sin(), atol=1e-12), settings


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_told_which_frames_it_sees(kind):
    clip = torch.arange(32.0)[None, None, :, None, None]

    def model(latents, frames):
        assert latents.flatten().tolist() == list(frames)
        return latents

    assert torch.allclose(predict_in_windows(model, clip, settings=ContextWindows(kind=kind), step=3), clip)


def test_a_prediction_may_have_other_channels_and_a_batch_of_its_own():
    result = predict_in_windows(
        lambda latents, frames: torch.cat([latents, -latents]).repeat(1, 2, 1, 1, 1), LATENTS, settings=ContextWindows(), step=0
    )

    assert result.shape == (2, 4, 32, 3, 3)
    assert torch.allclose(result[1, 2:], -LATENTS[0])


def test_half_precision_is_summed_in_full_precision_and_comes_back_half():
    clip = torch.full((1, 1, 64, 1, 1), 1.0 / 3.0, dtype=torch.float16)

    result = predict_in_windows(lambda latents, frames: latents, clip, settings=ContextWindows(overlap=15), step=0)

    assert result.dtype == torch.float16
    assert torch.equal(result, clip)


def test_cancel_is_asked_before_every_window_and_ends_the_work_there():
    calls = []

    def model(latents, frames):
        calls.append(frames)
        return latents

    with pytest.raises(Canceled):
        predict_in_windows(model, LATENTS, settings=ContextWindows(kind="static"), step=0, stop=lambda: len(calls) == 2)
    assert len(calls) == 2 < len(ContextWindows(kind="static").of_step(32, 0))


def test_a_windows_tensors_are_gone_before_the_next_window_starts():
    alive = []

    def model(latents, frames):
        assert all(reference() is None for reference in alive)
        prediction = latents * 2
        alive.extend([weakref.ref(latents), weakref.ref(prediction)])
        return prediction

    predict_in_windows(model, LATENTS, settings=ContextWindows(), step=0)

    assert len(alive) == 2 * len(ContextWindows().of_step(32, 0)) > 4
    assert all(reference() is None for reference in alive)


class LargestTensors(TorchDispatchMode):
    """The memory addresses of all tensors of so many elements or more that are made meanwhile."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.addresses = elements, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.elements:
            self.addresses.add(result.data_ptr())
        return result


@pytest.mark.parametrize("num_frames", [32, 128])
def test_nothing_but_the_sum_is_longer_than_a_window(num_frames):
    clip = seeded_noise((1, 4, num_frames, 8, 8), seed=1)

    with LargestTensors(17 * 4 * 8 * 8) as larger_than_a_window:
        predict_in_windows(lambda latents, frames: latents * 2, clip, settings=ContextWindows(), step=0)

    assert len(larger_than_a_window.addresses) == 1


def border_steps(weights, overlap):
    """The blend's largest inter-frame step at the windows' borders, and elsewhere, in steps of the clip itself (smooth)."""
    time = torch.linspace(0, 1, 64, dtype=torch.float64)
    clip = (6 * time + torch.sin(4 * time))[None, None, :, None, None]
    settings = ContextWindows(length=16, overlap=overlap, kind="static", weights=weights)
    # Each window pulls its frames half way towards its own mean: what one window says of a frame is not what the next says.
    result = predict_in_windows(lambda x, frames: 0.5 * x + 0.5 * x.mean(2, keepdim=True), clip, settings=settings, step=0)
    steps = (result.flatten().diff() / clip.flatten().diff()).abs()
    borders = {border - 1 for frames in settings.of_step(64, 0) for border in (frames[0], frames[-1] + 1) if 0 < border < 64}
    return float(max(steps[i] for i in borders)), float(max(steps[i] for i in range(63) if i not in borders))


@pytest.mark.parametrize("overlap", [4, 8, 10])
@pytest.mark.parametrize("weights", ["pyramid", "linear"])
def test_a_smooth_clip_has_no_larger_step_at_a_windows_border_than_elsewhere(weights, overlap):
    at_borders, elsewhere = border_steps(weights, overlap)

    assert at_borders <= elsewhere * 1.05


def test_flat_weights_do_step_at_the_borders():
    at_borders, elsewhere = border_steps("flat", 8)

    assert at_borders > 2 * elsewhere


def looped_and_other_steps(kind):
    """After 12 smoothing steps from noise: the clip's last-to-first step, and its largest other one."""
    clip = seeded_noise((1, 1, 48, 4, 4), seed=4)

    def smoothed(latents, frames):
        padded = torch.nn.functional.pad(latents.flatten(3), (0, 0, 2, 2), mode="replicate").unfold(2, 5, 1)
        return padded.mean(-1).reshape(latents.shape)

    for step in range(12):
        clip = predict_in_windows(smoothed, clip, settings=ContextWindows(kind=kind), step=step)
    steps = (clip.roll(-1, 2) - clip).square().mean((0, 1, 3, 4)).sqrt()
    return float(steps[-1]), float(steps[:-1].max())


def test_looped_windows_make_the_step_from_the_last_to_the_first_frame_one_like_the_others():
    last_to_first, largest_other = looped_and_other_steps("looped")
    open_end, open_other = looped_and_other_steps("standard")

    assert last_to_first <= largest_other
    assert open_end > 2 * open_other


def test_the_borders_of_moving_windows_differ_from_step_to_step_and_those_of_static_ones_do_not():
    borders = {kind: {tuple(ContextWindows(kind=kind).of_step(64, step)) for step in range(8)} for kind in KINDS}

    assert {kind: len(found) for kind, found in borders.items()} == {"standard": 8, "looped": 8, "static": 1}


def test_phases_are_spread_over_the_range_from_the_first_steps_on():
    assert [phase_of(step) for step in range(8)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


def test_static_windows_are_as_few_as_can_be_and_spread_evenly():
    assert open_starts(32, length=16, overlap=4, phase=None) == [0, 8, 16]
    assert open_starts(40, length=16, overlap=4, phase=None) == [0, 12, 24]
    assert open_starts(41, length=16, overlap=4, phase=None) == [0, 8, 16, 25]


def test_a_looped_window_runs_over_the_end_into_the_beginning():
    windows = ContextWindows(kind="looped").of_step(32, 0)

    assert [frames[0] for frames in windows] == [0, 10, 21]
    assert windows[-1] == (*range(21, 32), 0, 1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["standard", "looped"])
def test_a_stride_adds_windows_of_frames_further_apart_to_the_plain_ones(kind):
    plain = ContextWindows(length=8, overlap=2, kind=kind).of_step(64, 3)
    strided = ContextWindows(length=8, overlap=2, kind=kind, stride=4).of_step(64, 3)
    gaps = {(b - a) % 64 for frames in strided[len(plain) :] for a, b in zip(frames, frames[1:], strict=False)}

    assert strided[: len(plain)] == plain
    assert gaps == {2, 4}


def test_frames_further_apart_take_turns_from_step_to_step():
    settings = ContextWindows(length=8, overlap=2, stride=4)

    plain = [len(ContextWindows(length=8, overlap=2).of_step(64, step)) for step in range(4)]
    remainders = [
        {frames[0] % 4 for frames in settings.of_step(64, step)[count:] if frames[1] - frames[0] == 4}
        for step, count in enumerate(plain)
    ]

    assert remainders == [{0}, {1}, {2}, {3}]


def test_a_weight_is_largest_in_the_middle_the_same_everywhere_or_rising_over_the_overlap():
    assert position_weights(5, weights="pyramid", overlap=0) == [1, 3, 5, 3, 1]
    assert position_weights(4, weights="pyramid", overlap=0) == [1, 3, 3, 1]
    assert position_weights(4, weights="flat", overlap=2) == [1, 1, 1, 1]
    assert position_weights(6, weights="linear", overlap=2) == [0.25, 0.75, 1, 1, 0.75, 0.25]
    assert position_weights(3, weights="linear", overlap=0) == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, r"window length: expected at least 2 frames, got 1 \(nearest valid value: 2\)"),
        ({"overlap": 16}, r"window overlap: expected 0 to 15, .*, got 16 \(nearest valid value: 15\)"),
        ({"overlap": -1}, r"window overlap: expected 0 to 15, .*, got -1 \(nearest valid value: 0\)"),
        ({"stride": 3}, r"window stride: expected one of 1, 2, 4, 8, got 3 \(nearest valid value: 2\)"),
        ({"stride": 0}, r"window stride: .* got 0 \(nearest valid value: 1\)"),
        ({"stride": 2, "kind": "static"}, r"window stride: expected 1, because static windows never move, got 2"),
        ({"kind": "batched"}, "window kind: expected one of standard, looped, static, got 'batched'"),
        ({"weights": "round"}, "window weights: expected one of pyramid, flat, linear, got 'round'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_would_do(settings, message):
    with pytest.raises(BadInput, match=message):
        ContextWindows(**settings)


def test_a_window_longer_than_the_modules_limit_is_refused():
    ContextWindows(length=24).check_limit(24)

    with pytest.raises(BadInput, match=r"window length: expected at most 24 frames, .*, got 32 \(nearest valid value: 24\)"):
        ContextWindows(length=32).check_limit(24)
