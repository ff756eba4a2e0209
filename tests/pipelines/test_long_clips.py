"""Windows and prompt schedules around a real motion model at toy size, which takes no more than eight frames itself."""

import pytest
import torch
from diffusers import UNetMotionModel

from invokeai_video_nodes.pipelines.prompt_schedule import blend_embeddings, frame_blends, parse_schedule
from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.windows import ContextWindows, predict_in_windows

LIMIT = 8
PROMPTS = seeded_noise((2, 7, 16), seed=1)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNetMotionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=LIMIT,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    ).eval()
    # Freshly made motion modules end in zeros, which would let no frame see another.
    for name, parameter in model.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def predicted(unet, latents, *, schedule="0: a cat", kind="standard", step=0, wanted=None):
    """The UNet's prediction for a clip of any length, in windows of its limit; `wanted` gathers the frames that it was given."""
    num_frames = latents.shape[2]
    blends = frame_blends(parse_schedule(schedule, num_frames=num_frames), num_frames=num_frames)
    text = blend_embeddings(PROMPTS, blends)

    def model(window, frames):
        if wanted is not None:
            wanted.append(frames)
        return unet(window, 500, encoder_hidden_states=text[list(frames)], return_dict=False)[0]

    with torch.inference_mode():
        return predict_in_windows(model, latents, settings=ContextWindows(length=LIMIT, overlap=2, kind=kind), step=step)


def clip(num_frames):
    return seeded_noise((1, 4, num_frames, 8, 8), seed=0)


def test_a_clip_above_the_motion_modules_limit_crashes_the_model_alone_and_is_predicted_in_windows(unet):
    with pytest.raises(RuntimeError), torch.inference_mode():
        unet(clip(20), 500, encoder_hidden_states=PROMPTS[:1].repeat_interleave(20, 0))

    result = predicted(unet, clip(20))

    assert result.shape == clip(20).shape
    assert bool(torch.isfinite(result).all())


def test_a_clip_within_the_limit_is_the_models_own_bit_for_bit(unet):
    with torch.inference_mode():
        alone = unet(clip(LIMIT), 500, encoder_hidden_states=PROMPTS[:1].repeat_interleave(LIMIT, 0), return_dict=False)[0]

    assert torch.equal(predicted(unet, clip(LIMIT), kind="looped", step=3), alone)


def test_a_frame_that_one_window_alone_holds_is_that_windows_bit_for_bit(unet):
    long = clip(14)
    with torch.inference_mode():
        first = unet(long[:, :, :LIMIT], 500, encoder_hidden_states=PROMPTS[:1].repeat_interleave(LIMIT, 0), return_dict=False)[0]

    assert torch.equal(predicted(unet, long, kind="static")[:, :, :6], first[:, :, :6])


def test_a_later_prompt_changes_the_frames_of_the_windows_that_it_reaches_and_no_others(unet):
    cat = predicted(unet, clip(20), schedule="0: a cat", kind="static")
    windows = []

    travel = predicted(unet, clip(20), schedule="12: a cat\n19: a dog", kind="static", wanted=windows)
    reached = {frame for frames in windows if frames[-1] > 12 for frame in frames}

    assert reached == set(range(6, 20))
    assert {frame for frame in range(20) if not torch.equal(travel[:, :, frame], cat[:, :, frame])} == reached


def test_a_schedule_of_one_prompt_is_that_prompt_bit_for_bit(unet):
    held = predicted(unet, clip(20), schedule="5: a cat")

    assert torch.equal(held, predicted(unet, clip(20), schedule="0: a cat"))
