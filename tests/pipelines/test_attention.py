import pytest
import torch
from tiny_hunyuan import encoders_of, tiny_text_to_video

from invokeai_video_nodes.pipelines import attention as module
from invokeai_video_nodes.pipelines.attention import BACKENDS, attention, check_attention
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import encode_prompt
from invokeai_video_nodes.pipelines.hunyuan_video.denoise import denoise
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import seeded_noise


@pytest.fixture(scope="module")
def pipeline():
    return tiny_text_to_video()


def chosen(transformer):
    return {block.attn.processor._attention_backend for block in transformer.transformer_blocks}


def test_the_choice_holds_for_the_run_and_is_put_back(pipeline, monkeypatch):
    monkeypatch.setitem(BACKENDS, "cudnn", ("_native_math", lambda: True))

    with attention(pipeline.transformer, "cudnn"):
        during = chosen(pipeline.transformer)
    with pytest.raises(ZeroDivisionError), attention(pipeline.transformer, "cudnn"):
        raise ZeroDivisionError

    assert during == {"_native_math"}
    assert chosen(pipeline.transformer) == {None}


def test_another_kernel_gives_the_same_clip_to_rounding(pipeline, monkeypatch):
    monkeypatch.setitem(BACKENDS, "cudnn", ("_native_math", lambda: True))
    prompt = encode_prompt("a red circle moves to the right", encoders_of(pipeline))

    clips = [
        denoise(
            pipeline.transformer,
            latents=seeded_noise((1, 4, 3, 4, 4), seed=3),
            positive=prompt,
            scheduler=flow_match_scheduler("euler", steps=3, image_tokens=0, config=pipeline.scheduler.config),
            attention_by=name,
        )
        for name in ("sdpa", "cudnn")
    ]

    assert torch.allclose(*clips, atol=1e-5)


def test_a_kernel_that_is_not_here_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(BadInput, match="attention: expected one that runs here: sdpa.*, got xformers"):
        check_attention("xformers")
    check_attention("sdpa")
