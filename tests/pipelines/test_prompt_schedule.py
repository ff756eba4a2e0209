import pytest
import torch
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.prompt_schedule import (
    FrameBlend,
    ScheduledPrompt,
    blend_embeddings,
    frame_blends,
    parse_schedule,
)

CAT_AND_DOG = "0: a cat\n12: a dog"


def embeddings(count=3, seed=0):
    return torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))


def schedule(*frames):
    return [ScheduledPrompt(frame, f"prompt {frame}") for frame in frames]


def per_prompt(blends, count):
    """How much of each prompt every frame has: [F][P]."""
    shares = [[0.0] * count for _ in blends]
    for row, blend in zip(shares, blends, strict=True):
        row[blend.a] += 1.0 - blend.weight
        row[blend.b] += blend.weight
    return shares


def test_each_line_is_a_frame_and_its_prompt():
    assert parse_schedule(CAT_AND_DOG, num_frames=16) == [ScheduledPrompt(0, "a cat"), ScheduledPrompt(12, "a dog")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n 0 :  a cat  \n\n15:a dog\n", [ScheduledPrompt(0, "a cat"), ScheduledPrompt(15, "a dog")]),
        ("0: a cat\r\n15: a dog\r\n", [ScheduledPrompt(0, "a cat"), ScheduledPrompt(15, "a dog")]),
        ("3: close-up: a cat, 4:3", [ScheduledPrompt(3, "close-up: a cat, 4:3")]),
        ('"0": "a cat",\n"15" : "a \\"dog\\""', [ScheduledPrompt(0, "a cat"), ScheduledPrompt(15, 'a \\"dog\\"')]),
        ("0: 고양이 (wearing a hat:1.2)", [ScheduledPrompt(0, "고양이 (wearing a hat:1.2)")]),
    ],
)
def test_white_space_colons_and_other_scripts_are_read_as_people_write_them(text, expected):
    assert parse_schedule(text, num_frames=16) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: a cat\n\n16: a dog", r"line 3: expected a frame from 0 to 15, got 16 \(nearest valid value: 15\)"),
        ("0: a cat\n-2: a dog", r"line 2: expected a frame from 0 to 15, got -2 \(nearest valid value: 1\)"),
        ("-2: a dog", r"line 1: expected a frame from 0 to 15, got -2 \(nearest valid value: 0\)"),
        ("15: a cat\n99: a dog", r"line 2: .* got 99 \(nearest valid value: no such line, as the line above has the last frame\)"),
        ("8: a cat\n4: a dog", r"line 2: expected a frame after 8, which the line above has, got 4 \(nearest valid value: 9\)"),
        ("8: a cat\n8: a dog", r"line 2: expected a frame after 8, which .*, got 8 again \(nearest valid value: 9\)"),
        ("15: a cat\n15: a dog", r"line 2: .* got 15 again \(nearest valid value: no such line"),
        ("0: a cat\n4:   ", r'line 2: expected a prompt after "4:", got nothing \(nearest valid value: the line with a prompt'),
        ("0: a cat\na dog", r"""line 2: expected "frame: prompt", such as "0: a cat", got 'a dog'"""),
        (": a dog", r"""line 1: expected "frame: prompt", such as "0: a cat", got ': a dog'"""),
        ("two: a dog", r'line 1: expected "frame: prompt"'),
        ("²: a dog", r'line 1: expected "frame: prompt"'),
        ("1.6: a dog", r"line 1: expected a whole frame number, got 1.6 \(nearest valid value: 2\)"),
        (" \n\n", r'prompt schedule: expected at least one line "frame: prompt", got none \(nearest valid value: "0: a cat"\)'),
        ("9" * 5000 + ": a dog", r'line 1: expected "frame: prompt"'),
    ],
)
def test_a_line_that_cannot_be_is_refused_by_its_number_with_what_would_do(text, message):
    with pytest.raises(BadInput, match=message):
        parse_schedule(text, num_frames=16)


def test_frames_between_two_prompts_go_from_one_to_the_other_in_equal_steps():
    blends = frame_blends(schedule(0, 4, 6), num_frames=7)

    assert blends == [
        FrameBlend(0, 1, 0.0),
        FrameBlend(0, 1, 0.25),
        FrameBlend(0, 1, 0.5),
        FrameBlend(0, 1, 0.75),
        FrameBlend(1, 2, 0.0),
        FrameBlend(1, 2, 0.5),
        FrameBlend(2, 2, 0.0),
    ]


def test_the_first_and_the_last_prompt_hold_outside_the_schedule():
    blends = frame_blends(schedule(2, 4), num_frames=8)

    assert blends[:2] == [FrameBlend(0, 0, 0.0)] * 2
    assert blends[4:] == [FrameBlend(1, 1, 0.0)] * 4


def test_a_loop_leads_from_the_last_prompt_back_to_the_first():
    blends = frame_blends(schedule(2, 6), num_frames=8, loop=True)

    assert blends[6:] + blends[:2] == [FrameBlend(1, 0, 0.0), FrameBlend(1, 0, 0.25), FrameBlend(1, 0, 0.5), FrameBlend(1, 0, 0.75)]


@pytest.mark.parametrize("loop", [False, True])
def test_one_prompt_rules_every_frame(loop):
    assert frame_blends(schedule(5), num_frames=8, loop=loop) == [FrameBlend(0, 0, 0.0)] * 8


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_no_frame_changes_faster_than_the_closest_two_prompts(seed, loop):
    generator = torch.Generator().manual_seed(seed)
    num_frames = int(torch.randint(2, 40, (1,), generator=generator))
    count = int(torch.randint(1, num_frames + 1, (1,), generator=generator))
    frames = sorted(torch.randperm(num_frames, generator=generator)[:count].tolist())
    blends = frame_blends(schedule(*frames), num_frames=num_frames, loop=loop)
    ways = [end - start for start, end in zip(frames, frames[1:], strict=False)] + [frames[0] + num_frames - frames[-1]] * loop
    shares = torch.tensor(per_prompt(blends, count), dtype=torch.float64)
    steps = (shares.roll(-1, 0) - shares).abs().amax(1) if loop else shares.diff(dim=0).abs().amax(1)

    assert all(0.0 <= blend.weight < 1.0 for blend in blends), f"seed {seed}"
    assert all(shares[frame, prompt] == 1.0 for prompt, frame in enumerate(frames)), f"seed {seed}"
    assert float(steps.max()) <= 1.0 / min(ways, default=1) + 1e-12, f"seed {seed}"


def test_a_frame_of_one_prompt_has_its_embedding_bit_for_bit():
    prompts = embeddings()

    blended = blend_embeddings(prompts, frame_blends(schedule(0, 4, 6), num_frames=9))

    assert blended.shape == (9, 5, 4)
    assert all(torch.equal(blended[frame], prompts[index]) for frame, index in [(0, 0), (4, 1), (6, 2), (7, 2), (8, 2)])
    assert torch.equal(blended[2], (prompts[0] + prompts[1]) / 2)


@pytest.mark.parametrize(("start", "end"), [(0, 12), (3, 10), (0, 1)])
def test_the_way_between_two_prompts_is_that_of_diffusers(start, end):
    a, b = embeddings(2)[:1], embeddings(2)[1:]

    theirs = AnimateDiffFreeNoiseMixin()._lerp(start, end, a, b)

    assert torch.equal(blend_embeddings(torch.cat([a, b]), frame_blends(schedule(start, end), num_frames=end + 1))[start:], theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_mixed_in_full_precision_and_stays_half(dtype):
    prompts = embeddings(2).to(dtype)

    blended = blend_embeddings(prompts, frame_blends(schedule(0, 3), num_frames=4))

    assert blended.dtype == dtype
    assert torch.equal(blended[1], (prompts[0].float() * (1 - 1 / 3) + prompts[1].float() * (1 / 3)).to(dtype))


def test_a_prompt_without_an_embedding_is_refused():
    with pytest.raises(BadInput, match="prompt embeddings: expected one for each of 3 prompts, got 2"):
        blend_embeddings(embeddings(2), frame_blends(schedule(0, 4, 6), num_frames=8))


def test_embeddings_without_a_prompt_axis_are_refused():
    with pytest.raises(BadInput, match=r"prompt embeddings: expected 3-D \[prompts, tokens, dim\], got 2-D \[5, 4\]"):
        blend_embeddings(embeddings()[0], frame_blends(schedule(0), num_frames=8))
