"""Facts of a clip (frames per second, whether it is noised) survive InvokeAI's tensor store and its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from graphs import add, connect, text_to_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


def test_facts_survive_the_eviction_from_the_tensor_cache(engine: Engine, tiny_model: dict[str, Any]) -> None:
    from invokeai.app.invocations.fields import LatentsField

    from invokeai_video_nodes.nodes.clip_latents import ClipFacts, load_clip

    name = engine.run(text_to_video(tiny_model, denoise={"fps": 13, "denoising_end": 0.5})).outputs["denoise"]["latents"]["latents_name"]
    tensors = engine.services.tensors
    for _ in range(tensors._max_cache_size + 1):
        tensors.save(torch.zeros(1))
    assert name not in tensors._cache

    latents, facts = load_clip(_context(engine), LatentsField(latents_name=name))

    assert facts == ClipFacts(fps=13, is_noised=True, f_patch_size=2)
    assert type(latents) is torch.Tensor and latents.shape == (1, 16, 8, 8, 8)


def test_latents_of_other_nodes_have_no_facts(engine: Engine) -> None:
    from invokeai.app.invocations.fields import LatentsField

    from invokeai_video_nodes.nodes.clip_latents import ClipFacts, load_clip

    name = engine.services.tensors.save(torch.zeros(1, 16, 4, 8, 8))

    assert load_clip(_context(engine), LatentsField(latents_name=name))[1] == ClipFacts()


def test_our_latents_are_plain_tensors_to_upstream_s_nodes(engine: Engine, tiny_model: dict[str, Any]) -> None:
    graph = text_to_video(tiny_model)
    add(graph, "blend", "lblend", alpha=0.0)
    connect(graph, "denoise.latents", "blend.latents_a")
    connect(graph, "denoise.latents", "blend.latents_b")

    outputs = engine.run(graph).outputs

    blended = engine.services.tensors.load(outputs["blend"]["latents"]["latents_name"])
    ours = engine.services.tensors.load(outputs["denoise"]["latents"]["latents_name"])
    assert torch.allclose(blended.as_subclass(torch.Tensor), ours.as_subclass(torch.Tensor), atol=1e-5)


def test_arithmetic_on_our_latents_gives_tensors_without_facts() -> None:
    from invokeai_video_nodes.nodes.clip_latents import ClipLatents

    clip = torch.zeros(1, 16, 4, 8, 8).as_subclass(ClipLatents)
    clip.clip_facts = {"fps": 8}

    assert type(clip + 1) is torch.Tensor
    assert clip.clone().clip_facts == {"fps": 8}
    assert clip.clone().clip_facts is not clip.clip_facts


def _context(engine: Engine) -> Any:
    from invokeai.app.invocations.primitives import IntegerInvocation

    return engine.context(IntegerInvocation(id="any", value=1))
