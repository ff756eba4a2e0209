"""What an artist does with AnimateDiff beyond one prompt: masks, motion, FreeU, tiling, previews, encode and decode, and cancel."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from animatediff_graphs import SMALL, animatediff_video, denoise_alone, model_value, vae_value
from graphs import Graph, add, connect, picture
from tiny_animatediff import tiny_prompts
from tiny_animatediff_files import save_original

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

FRAMES = SMALL["num_frames"]


@pytest.fixture
def value(sd1: dict[str, Any], motion: dict[str, Any]) -> dict[str, Any]:
    return model_value(sd1, motion)


@pytest.fixture
def prompts(conditioning: Callable[[torch.Tensor], dict[str, str]]) -> dict[str, Any]:
    positive, negative = tiny_prompts()
    return {"positive_conditioning": conditioning(positive), "negative_conditioning": conditioning(negative)}


@pytest.fixture
def clip(engine: Engine) -> dict[str, str]:
    """Clean latents of a clip, as the value of a latents field."""
    latents = torch.randn(1, 4, FRAMES, 8, 8, generator=torch.Generator().manual_seed(8))
    return {"latents_name": engine.services.tensors.save(latents)}


@pytest.fixture
def right_half(upload: Callable[..., dict[str, str]]) -> dict[str, str]:
    """A mask whose right half is white."""
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    return upload(mask)


def values(engine: Engine, field: dict[str, Any]) -> torch.Tensor:
    return engine.services.tensors.load(field["latents_name"]).as_subclass(torch.Tensor)


def test_black_of_a_mask_stays_and_white_changes(
    engine: Engine, value: Any, prompts: Any, clip: Any, right_half: Any, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    given = values(engine, clip)

    made = latents_of(denoise_alone(value, **prompts, latents=clip, strength=0.5, mask=right_half))

    assert torch.equal(made[..., :4], given[..., :4])
    assert (made - given)[..., 4:].abs().min() > 0


def test_without_motion_each_frame_is_a_picture_of_its_own(value: Any, prompts: Any, right_half: Any, latents_of: Any) -> None:
    still = latents_of(denoise_alone(value, **prompts, motion_scale=0.0))

    assert torch.equal(latents_of(denoise_alone(value, **prompts, motion_scale=[0.0] * FRAMES)), still)
    assert torch.equal(latents_of(denoise_alone(value, **prompts, motion_scale=0.0, motion_mask=right_half)), still)
    assert not torch.equal(latents_of(denoise_alone(value, **prompts, motion_mask=right_half)), still)


def test_free_u_and_seamless_tiling_of_the_unet_count_and_are_gone_afterwards(
    sd1: Any, motion: Any, value: Any, prompts: Any, latents_of: Any
) -> None:
    plain = latents_of(denoise_alone(value, **prompts))
    free_u = model_value(sd1, motion, freeu_config={"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4})
    tiled = model_value(sd1, motion, seamless_axes=["x", "y"])

    changed = [latents_of(denoise_alone(model, **prompts)) for model in (free_u, tiled)]

    assert all(not torch.equal(latents, plain) for latents in changed)
    assert torch.equal(latents_of(denoise_alone(value, **prompts)), plain)


def test_a_single_file_of_the_original_layout_gives_the_clip_of_the_folder(
    engine: Engine, sd1: Any, value: Any, prompts: Any, latents_of: Any, tmp_path: Path
) -> None:
    file = engine.model(engine.install(save_original(tmp_path / "v2.safetensors", "v2")))

    made = latents_of(denoise_alone(model_value(sd1, file), **prompts))

    assert torch.equal(made, latents_of(denoise_alone(value, **prompts)))


def test_a_clip_says_whose_decode_it_needs(engine: Engine, value: Any, prompts: Any) -> None:
    name = engine.run(denoise_alone(value, **prompts)).outputs["denoise"]["latents"]["latents_name"]

    assert engine.services.tensors.load(name).clip_facts["family"] == "animatediff"


def test_each_step_is_told_with_a_picture(engine: Engine, value: Any, prompts: Any) -> None:
    told = []

    def note(event: Any) -> None:
        if type(event).__name__ == "InvocationProgressEvent" and event.message.startswith("Denoising step"):
            told.append((event.message, event.image))

    engine.run(denoise_alone(value, **prompts, steps=3), on_event=note)

    assert [message for message, _ in told] == [f"Denoising step {step}/3" for step in (1, 2, 3)]
    assert all(image.dataURL.startswith("data:image") and (image.width, image.height) == (64, 64) for _, image in told)
    assert len({image.dataURL for _, image in told}) == 3


def test_a_video_of_the_gallery_becomes_latents_and_a_video_again(engine: Engine, sd1: Any, upload: Any) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "video", "frames_to_video", images=[upload(picture(64, 64, shade=shade * 40)) for shade in range(5)], fps=12)
    add(graph, "encode", "animatediff_encode", vae=vae_value(sd1), num_frames=4, width=72)
    add(graph, "decode", "animatediff_decode", vae=vae_value(sd1))
    connect(graph, "video.video", "encode.video")
    connect(graph, "encode.latents", "decode.latents")

    result = engine.run(graph)

    encoded, decoded = result.outputs["encode"], result.outputs["decode"]
    assert tuple(values(engine, encoded["latents"]).shape) == (1, 4, 4, 8, 9)
    assert (encoded["num_frames"], encoded["width"], encoded["height"]) == (4, 72, 64)
    assert (decoded["num_frames"], decoded["width"], decoded["height"], decoded["fps"]) == (4, 72, 64, 12.0)


def test_a_failed_decode_keeps_the_clip_s_latents_in_a_file_that_its_message_names(
    engine: Engine, sd1: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    from invokeai_video_nodes.headless import NodeError
    from invokeai_video_nodes.nodes.kept_latents import load_kept

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("the driver reset")

    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "decode", "animatediff_decode", vae=vae_value(sd1), latents=clip)
    monkeypatch.setattr(AutoencoderKL, "decode", fail)
    with pytest.raises(NodeError) as caught:
        engine.run(graph)

    (path,) = [path for path in (engine.root / "outputs" / "video-latents").glob("*") if str(path) in caught.value.message]
    kept, _ = load_kept(path.name)
    path.unlink()
    assert "the driver reset" in caught.value.message
    assert torch.equal(kept, values(engine, clip))


@pytest.mark.parametrize("at", ["Denoising step 1/40", "Decoding frame 1"])
def test_canceling_ends_soon_leaves_nothing_and_the_next_run_is_right(
    engine: Engine, sd1: Any, motion: Any, leftovers: Callable[[], list[Path]], video_count: Callable[[], int], at: str
) -> None:
    from invokeai_video_nodes.headless import RunCanceled

    expected = values(engine, engine.run(animatediff_video(sd1, motion)).outputs["denoise"]["latents"])
    before, tensors, after_cancel = video_count(), alive(), []

    def cancel_at(event: Any) -> None:
        if type(event).__name__ == "InvocationProgressEvent" and (after_cancel or event.message.startswith(at)):
            after_cancel.append(event.message)
            if len(after_cancel) == 1:
                engine.cancel()

    settings = {"num_frames": 32, "steps": 1} if at.startswith("Decoding") else {"steps": 40}
    with pytest.raises(RunCanceled):
        engine.run(animatediff_video(sd1, motion, denoise=settings), on_event=cancel_at)

    # The flag travels through InvokeAI's event loop, so a tiny model may finish a step or a few frames meanwhile.
    assert 1 <= len(after_cancel) < 20
    assert video_count() == before and not leftovers()
    cache = engine.services.model_manager.load.ram_cache._cached_models
    assert not [key for key, entry in cache.items() if entry.is_locked]
    assert alive() <= tensors + 50, "what the run held is free again"
    again = engine.run(animatediff_video(sd1, motion)).outputs["denoise"]["latents"]
    assert torch.equal(values(engine, again), expected)


def test_a_cancel_within_a_step_ends_it_before_the_model_is_through(
    engine: Engine, value: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.unets.unet_motion_model import UNetMotionModel
    from invokeai.app.services.session_processor.session_processor_common import CanceledException

    from invokeai_video_nodes.nodes.denoise_animatediff import AnimateDiffDenoiseInvocation

    calls: list[str] = []
    forward = UNetMotionModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("began")
        answer = forward(self, *args, **kwargs)
        calls.append("ended")
        return answer

    monkeypatch.setattr(UNetMotionModel, "forward", counted)
    node = AnimateDiffDenoiseInvocation(**denoise_alone(value, **prompts)["nodes"]["denoise"])
    with pytest.raises(CanceledException):
        node.invoke(engine.context(node, is_canceled=lambda: bool(calls)))

    assert calls == ["began"]


def test_a_run_that_fails_leaves_the_cached_weights_as_they_were(engine: Engine, value: Any, prompts: Any, monkeypatch: Any) -> None:
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    from invokeai_video_nodes.headless import NodeError

    engine.run(denoise_alone(value, **prompts))
    before = weights_and_processors(engine)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(UNetMotionModel, "forward", fail)
    with pytest.raises(NodeError, match="the device is gone"):
        engine.run(denoise_alone(value, **prompts))

    after = weights_and_processors(engine)
    assert before.keys() == after.keys()
    for name, found in before.items():
        assert torch.equal(found, after[name]) if isinstance(found, torch.Tensor) else found is after[name], name


def weights_and_processors(engine: Engine) -> dict[str, Any]:
    """Every weight in InvokeAI's model cache, copied, and every attention processor."""
    found: dict[str, Any] = {}
    for key, entry in engine.services.model_manager.load.ram_cache._cached_models.items():
        model = entry.cached_model.model
        if isinstance(model, torch.nn.Module):
            found |= {f"{key} {name}": weight.clone() for name, weight in model.state_dict().items()}
            for name, part in model.named_modules():
                found[f"{key} {name} hooks"] = len(part._forward_hooks) + len(part._forward_pre_hooks)
            found |= {f"{key} {name}": processor for name, processor in getattr(model, "attn_processors", {}).items()}
    return found


def alive() -> int:
    """Tensors that something still holds."""
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
