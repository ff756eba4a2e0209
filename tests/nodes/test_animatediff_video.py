"""AnimateDiff through InvokeAI's own graph engine, bit for bit against diffusers' pipelines on the same folders.

diffusers gets the prompt embeddings that InvokeAI's prompt node stored: Compel's own encoding is not diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from animatediff_graphs import SMALL, animatediff_video, denoise_alone, model_value, still_image, vae_value
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    MotionAdapter,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from graphs import Graph, add, connect, picture
from PIL import Image
from safetensors.torch import save_file
from tiny_animatediff import tiny_prompts
from tiny_animatediff_files import motion_lora
from tiny_sd1 import tiny_sd1_controlnet, tiny_sd1_sparse_controlnet

from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler, set_steps
from invokeai_video_nodes.pipelines.shapes import seeded_noise

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

FRAMES, STEPS, SEED, SIDE = SMALL["num_frames"], SMALL["steps"], SMALL["seed"], 64
SHAPE = (1, 4, FRAMES, SIDE // 8, SIDE // 8)
LORA_LAYERS = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 768), "mid_block.attentions.0.proj_in": (64, 64)}


@pytest.fixture
def pictures() -> list[Image.Image]:
    """One for each frame."""
    return [Image.fromarray(picture(SIDE, SIDE, shade=frame * 25)) for frame in range(FRAMES)]


@pytest.fixture
def value(sd1: dict[str, Any], motion: dict[str, Any]) -> dict[str, Any]:
    return model_value(sd1, motion)


@pytest.fixture
def prompts(conditioning: Callable[[torch.Tensor], dict[str, str]]) -> dict[str, Any]:
    positive, negative = tiny_prompts()
    return {"positive_conditioning": conditioning(positive), "negative_conditioning": conditioning(negative)}


@pytest.fixture(scope="module")
def done() -> dict[str, torch.Tensor]:
    """What several tests of this file compare with."""
    return {}


@pytest.fixture
def plain(done: dict[str, torch.Tensor], value: Any, prompts: Any, latents_of: Callable[[Graph], torch.Tensor]) -> torch.Tensor:
    """The clip of the same prompts and seed that nothing steers."""
    if "plain" not in done:
        done["plain"] = latents_of(denoise_alone(value, **prompts))
    return done["plain"]


@pytest.fixture(scope="module")
def controlnet(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("control") / "controlnet"
    tiny_sd1_controlnet().save_pretrained(folder)
    return engine.model(engine.install(folder))


@pytest.fixture
def theirs(sd1_folder: Path, motion_folder: Path) -> Callable[..., torch.Tensor]:
    """Run one of diffusers' AnimateDiff pipelines on the same folders; `change` may change the pipeline before."""

    def run(
        pipeline_class: Any, *, parts: dict[str, Any] | None = None, change: Callable[[Any], None] | None = None, **settings: Any
    ) -> torch.Tensor:
        adapter = MotionAdapter.from_pretrained(motion_folder)
        scheduler = make_scheduler(SMALL["scheduler"])
        told = {"motion_adapter": adapter, "scheduler": scheduler, "text_encoder": None, "tokenizer": None, **(parts or {})}
        pipeline = pipeline_class.from_pretrained(sd1_folder, local_files_only=True, **told)
        pipeline.set_progress_bar_config(disable=True)
        if change is not None:
            change(pipeline)
        positive, negative = tiny_prompts()
        common = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "output_type": "latent", "num_frames": FRAMES}
        common |= {"prompt_embeds": positive, "negative_prompt_embeds": negative, "generator": torch.Generator().manual_seed(SEED)}
        if "VideoToVideo" in pipeline_class.__name__:
            common.pop("num_frames")
        return pipeline(**(common | settings)).frames

    return run


@pytest.fixture
def install(engine: Engine, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Install a model that can save itself, or the weights of a LoRA, and give the value of a model field."""

    def put(name: str, model: Any) -> dict[str, Any]:
        path = tmp_path / name
        if isinstance(model, dict):
            path = path.with_suffix(".safetensors")
            save_file({key: weight.clone().contiguous() for key, weight in model.items()}, path)
        else:
            model.save_pretrained(path)
        return engine.model(engine.install(path))

    return put


def stored(engine: Engine, result: Any, node: str) -> torch.Tensor:
    """The embeddings that InvokeAI's prompt node of that name made."""
    name = result.outputs[node]["conditioning"]["conditioning_name"]
    return engine.services.conditioning.load(name).conditionings[0].embeds


def test_stock_nodes_run_the_tiny_main_model_and_prompts_of_several_chunks(engine: Engine, sd1: dict[str, Any]) -> None:
    result = engine.run(still_image(sd1, prompt="a cat on a sofa, " * 50))

    record = engine.services.model_manager.store.get_model(sd1["key"])
    embeddings = stored(engine, result, "prompt")
    assert (record.base.value, record.type.value, record.format.value) == ("sd-1", "main", "diffusers")
    assert embeddings.shape[1] > 3 * 77 and embeddings.shape[1] % 77 == 0 and embeddings.shape[2] == 768
    assert (result.outputs["picture"]["width"], result.outputs["picture"]["height"]) == (SIDE, SIDE)


def test_the_whole_graph_equals_diffusers_pipeline_bit_for_bit_and_ends_in_an_mp4(
    engine: Engine, sd1: dict[str, Any], motion: dict[str, Any], theirs: Callable[..., torch.Tensor]
) -> None:
    result = engine.run(animatediff_video(sd1, motion))

    embeddings = {"prompt_embeds": stored(engine, result, "prompt"), "negative_prompt_embeds": stored(engine, result, "negative")}
    name = result.outputs["denoise"]["latents"]["latents_name"]
    assert torch.equal(engine.services.tensors.load(name).as_subclass(torch.Tensor), theirs(AnimateDiffPipeline, **embeddings))
    decoded = result.outputs["decode"]
    assert (decoded["num_frames"], decoded["width"], decoded["height"], decoded["fps"]) == (FRAMES, SIDE, SIDE, 8.0)
    assert {name: result.outputs["model"][name] for name in ("max_frames", "scheduler", "steps", "guidance_scale")} == {
        "max_frames": 32,
        "scheduler": "ddim",
        "steps": 25,
        "guidance_scale": 7.5,
    }


def test_video_to_video_from_images_equals_diffusers_pipeline_bit_for_bit(
    engine: Engine, sd1: dict[str, Any], value: Any, prompts: Any, pictures: list[Image.Image], upload: Any, theirs: Any
) -> None:
    steps, strength = 4, 0.5
    graph = denoise_alone(value, **prompts, steps=steps, strength=strength)
    add(graph, "encode", "animatediff_encode", images=[upload(shown) for shown in pictures], vae=vae_value(sd1))
    connect(graph, "encode.latents", "denoise.latents")
    result = engine.run(graph)
    made, clean = (engine.services.tensors.load(result.outputs[node]["latents"]["latents_name"]) for node in ("denoise", "encode"))

    scheduler = make_scheduler(SMALL["scheduler"])
    first = set_steps(scheduler, steps=steps, strength=strength)[:1]
    noised = scheduler.add_noise(clean.as_subclass(torch.Tensor), seeded_noise(SHAPE, SEED), first)
    told = {"latents": noised, "strength": strength, "num_inference_steps": steps}
    seen: list[torch.Tensor] = []

    def encode(pipeline: Any) -> None:
        pixels = pipeline.video_processor.preprocess_video(pictures)[0].transpose(0, 1)
        with torch.no_grad():
            latents = [pipeline.vae.encode(pixels[frame : frame + 1]).latent_dist.mode() for frame in range(FRAMES)]
        seen.append(torch.cat(latents).transpose(0, 1)[None] * pipeline.vae.config.scaling_factor)

    assert torch.equal(made.as_subclass(torch.Tensor), theirs(AnimateDiffVideoToVideoPipeline, change=encode, **told))
    torch.testing.assert_close(clean.as_subclass(torch.Tensor), seen[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("from_clip", [False, True])
def test_a_control_image_for_each_frame_equals_diffusers_pipeline_bit_for_bit(
    engine: Engine, value: Any, prompts: Any, pictures: list[Image.Image], upload: Any, controlnet: Any, theirs: Any, latents_of: Any,
    plain: torch.Tensor, from_clip: bool,
) -> None:  # fmt: skip
    control = {"control_model": controlnet, "images": [upload(shown) for shown in pictures]}
    graph = denoise_alone(value, **prompts)
    add(graph, "control", "animatediff_control_frames", control_weight=0.7, **control)
    connect(graph, "control.control_frames", "denoise.control_frames")
    told: dict[str, Any] = {"conditioning_frames": pictures, "controlnet_conditioning_scale": 0.7}
    pipeline_class: Any = AnimateDiffControlNetPipeline
    if from_clip:
        clean = seeded_noise(SHAPE, 8)
        graph["nodes"]["denoise"]["latents"] = {"latents_name": engine.services.tensors.save(clean)}
        scheduler = make_scheduler(SMALL["scheduler"])
        noised = scheduler.add_noise(clean, seeded_noise(SHAPE, SEED), set_steps(scheduler, steps=STEPS)[:1])
        told |= {"latents": noised, "strength": 1.0}
        pipeline_class = AnimateDiffVideoToVideoControlNetPipeline

    made = latents_of(graph)

    assert torch.equal(made, theirs(pipeline_class, parts={"controlnet": tiny_sd1_controlnet()}, **told))
    assert not torch.equal(made, plain)


def test_one_control_image_steers_every_frame_as_the_same_image_for_each_does(
    value: Any, prompts: Any, pictures: list[Image.Image], upload: Any, controlnet: Any, latents_of: Any
) -> None:
    image = upload(pictures[3])
    settings = {"control_model": controlnet, "control_mode": "more_control", "control_weight": [0.5, 1.0]}

    one = latents_of(denoise_alone(value, **prompts, control={"image": image, **settings}))

    assert torch.equal(one, latents_of(denoise_alone(value, **prompts, control_frames={"images": [image] * FRAMES, **settings})))


@pytest.mark.parametrize("reads_latents", [False, True])
def test_keyframes_equal_diffusers_sparse_control_pipeline(
    sd1: dict[str, Any], value: Any, prompts: Any, pictures: list[Image.Image], upload: Any, install: Any, theirs: Any, latents_of: Any,
    plain: torch.Tensor, reads_latents: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sparse = tiny_sd1_sparse_controlnet(reads_latents=reads_latents)
    graph = denoise_alone(value, **prompts)
    images, frames = [upload(pictures[0]), upload(pictures[5])], [0, 5]
    fields = {"control_model": install("sparse", sparse), "images": images, "frames": frames, "weight": 0.7}
    add(graph, "sparse", "animatediff_sparse_control", **fields, **({"vae": vae_value(sd1)} if reads_latents else {}))
    connect(graph, "sparse.sparse_control", "denoise.sparse_control")

    made = latents_of(graph)

    told = {"conditioning_frames": [pictures[0], pictures[5]], "controlnet_frame_indices": frames, "controlnet_conditioning_scale": 0.7}

    def take_the_mean(pipeline: Any) -> None:
        """diffusers samples the keyframes' latents, ours are their mean."""
        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_: self.mode())

    expected = theirs(AnimateDiffSparseControlNetPipeline, parts={"controlnet": sparse}, change=take_the_mean, **told)
    # diffusers encodes all keyframes in one batch, ours one by one, which rounds otherwise.
    limit = 2e-5 * float(expected.std()) if reads_latents else 0.0
    assert float((made - expected).abs().max()) <= limit
    assert not torch.equal(made, plain)


def test_a_motion_lora_gives_the_clip_of_the_merged_module(value: Any, prompts: Any, install: Any, theirs: Any, latents_of: Any) -> None:
    factors = motion_lora("original")
    lora = install("pan", factors)
    graph = denoise_alone({**value, "motion_loras": [{"lora": lora, "weight": 0.5}]}, **prompts, guidance_scale=1.0)

    def merge(pipeline: Any) -> None:
        attention = pipeline.unet.down_blocks[0].motion_modules[0].transformer_blocks[0].attn1
        for layer, name in ((attention.to_q, "to_q"), (attention.to_out[0], "to_out")):
            down, up = (next(v for k, v in factors.items() if f"{name}_lora.{end}" in k) for end in ("down", "up"))
            with torch.no_grad():
                layer.weight += 0.5 * up @ down

    merged = theirs(AnimateDiffPipeline, change=merge, guidance_scale=1.0)
    made = latents_of(graph)
    # InvokeAI computes a LoRA beside its layer where that is on the CPU, which rounds otherwise.
    torch.testing.assert_close(made, merged, rtol=0, atol=1e-4)
    assert (merged - theirs(AnimateDiffPipeline, guidance_scale=1.0)).abs().max() > 0.01


def style_lora() -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, torch.Tensor]]:
    """A LoRA of the main model: the factors (up, down) of each layer, and its file's content."""
    generator = torch.Generator().manual_seed(5)
    factors = {name: (torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator) * 0.1)
               for name, (rows, columns) in LORA_LAYERS.items()}  # fmt: skip
    file = {}
    for name, (up, down) in factors.items():
        conv = ".proj_in" in name
        file[f"lora_unet_{name.replace('.', '_')}.lora_up.weight"] = up[..., None, None] if conv else up
        file[f"lora_unet_{name.replace('.', '_')}.lora_down.weight"] = down[..., None, None] if conv else down
    return factors, file


def test_a_lora_of_the_main_model_gives_the_clip_of_the_merged_unet(
    engine: Engine, sd1: dict[str, Any], motion: dict[str, Any], install: Any, theirs: Any, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    factors, file = style_lora()
    lora = install("style", file)
    graph = animatediff_video(sd1, motion, loras={lora["key"]: 0.5}, denoise={"guidance_scale": 1.0})
    result = engine.run(graph)
    name = result.outputs["denoise"]["latents"]["latents_name"]

    def merge(pipeline: Any) -> None:
        for layer, (up, down) in factors.items():
            weight = pipeline.unet.get_submodule(layer).weight
            with torch.no_grad():
                weight += 0.5 * (up @ down).reshape(weight.shape)

    told = {"prompt_embeds": stored(engine, result, "prompt"), "negative_prompt_embeds": None, "guidance_scale": 1.0}
    merged = theirs(AnimateDiffPipeline, change=merge, **told)
    made = engine.services.tensors.load(name).as_subclass(torch.Tensor)
    torch.testing.assert_close(made, merged, rtol=0, atol=1e-4)
    assert (merged - theirs(AnimateDiffPipeline, **told)).abs().max() > 0.01


@pytest.mark.parametrize(("fast", "method"), [(False, "butterworth"), (True, "gaussian")])
def test_free_init_equals_diffusers_bit_for_bit(value: Any, prompts: Any, theirs: Any, latents_of: Any, fast: bool, method: str) -> None:
    graph = denoise_alone(value, **prompts)
    add(graph, "free", "animatediff_free_init", iterations=2, fast=fast, method=method)
    connect(graph, "free.free_init", "denoise.free_init")

    expected = theirs(AnimateDiffPipeline, change=lambda p: p.enable_free_init(num_iters=2, use_fast_sampling=fast, method=method))
    assert torch.equal(latents_of(graph), expected)


def test_free_noise_equals_diffusers_bit_for_bit(value: Any, prompts: Any, theirs: Any, latents_of: Any) -> None:
    graph = denoise_alone(value, **prompts)
    add(graph, "windows", "animatediff_windows", kind="free_noise", length=4, overlap=2, noise="shuffled")
    connect(graph, "windows.windows", "denoise.windows")

    def enable(pipeline: Any) -> None:
        """diffusers encodes the prompts of FreeNoise by itself only, so the stored ones are put in."""
        positive, negative = tiny_prompts()
        both = torch.cat([prompt.repeat(FRAMES, 1, 1) for prompt in (negative, positive)])
        pipeline.enable_free_noise(context_length=4, context_stride=2)
        pipeline._encode_prompt_free_noise = lambda **_: (both, negative)

    none = {"prompt_embeds": None, "negative_prompt_embeds": None, "prompt": "put in above"}
    assert torch.equal(latents_of(graph), theirs(AnimateDiffPipeline, change=enable, **none))


def test_a_still_image_and_the_cached_weights_are_the_same_before_and_after_a_video(
    engine: Engine, sd1: dict[str, Any], motion: dict[str, Any], install: Any, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    pan, style = install("pan", motion_lora("original")), install("style", style_lora()[1])
    first, clip = engine.run(still_image(sd1)), latents_of(animatediff_video(sd1, motion))
    before = weights_in_cache(engine)

    patched = latents_of(animatediff_video(sd1, motion, loras={style["key"]: 1.0}, motion_loras={pan["key"]: 1.0}))
    again = engine.run(still_image(sd1))

    shown = [np.asarray(engine.services.images.get_pil_image(run.outputs["picture"]["image"]["image_name"])) for run in (first, again)]
    assert (shown[0] == shown[1]).all() and shown[0].std() > 0
    assert torch.equal(latents_of(animatediff_video(sd1, motion)), clip) and not torch.equal(patched, clip)
    after = weights_in_cache(engine)
    assert before.keys() <= after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def weights_in_cache(engine: Engine) -> dict[str, torch.Tensor]:
    """A copy of every weight that InvokeAI's model cache holds."""
    cache = engine.services.model_manager.load.ram_cache._cached_models
    models = {key: entry.cached_model.model for key, entry in cache.items()}
    return {
        f"{key} {name}": value.clone()
        for key, model in models.items()
        if isinstance(model, torch.nn.Module)
        for name, value in model.state_dict().items()
    }
