"""InvokeAI's IP-Adapter and T2I-Adapter nodes in front of AnimateDiff's denoise, against diffusers on the same folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from animatediff_graphs import SMALL, animatediff_video, still_image
from diffusers import AnimateDiffPipeline, MotionAdapter, StableDiffusionAdapterPipeline
from diffusers.image_processor import VaeImageProcessor
from graphs import add, connect, picture, without_decode
from PIL import Image
from tiny_adapters import (
    ENCODER_CHOICE,
    IMAGE_ENCODER,
    ip_adapter_file,
    save_image_encoder,
    save_ip_adapter,
    save_t2i_adapter,
    tiny_t2i_adapter,
)
from tiny_sd1 import save_motion_module, tiny_sd1
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    tiny_sd1().save_pretrained(root / "tiny-sd1")
    save_motion_module(root / "tiny-motion")
    save_image_encoder(root / IMAGE_ENCODER)
    save_ip_adapter(root / "tiny-ip-adapter.safetensors")
    save_t2i_adapter(root / "tiny-t2i-adapter")
    save_ip_adapter(root / "wide-ip-adapter.safetensors", text_features=2048)
    save_t2i_adapter(root / "wide-t2i-adapter", adapter_type="full_adapter_xl")
    return {path.name.removesuffix(".safetensors"): path for path in root.iterdir()}


@pytest.fixture(scope="module")
def models(engine: Engine, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {name: engine.model(engine.install(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def pixels() -> Image.Image:
    return Image.fromarray(picture(64, 64, shade=90))


@pytest.fixture
def graph(models: dict[str, dict[str, Any]], upload: Any, pixels: Image.Image) -> Any:
    """A text to video graph up to the denoise node, with adapters: node name -> (node type, fields)."""
    image = upload(pixels)

    def make(*, denoise: dict[str, Any] | None = None, **adapters: dict[str, Any]) -> Any:
        made = without_decode(animatediff_video(models["tiny-sd1"], models["tiny-motion"], denoise=denoise))
        for name, fields in adapters.items():
            kind = "ip_adapter" if name.startswith("ip") else "t2i_adapter"
            default = models["tiny-ip-adapter" if kind == "ip_adapter" else "tiny-t2i-adapter"]
            encoder = {"clip_vision_model": ENCODER_CHOICE} if kind == "ip_adapter" else {}
            add(made, name, kind, **({"image": image, f"{kind}_model": default} | encoder | fields))
            connect(made, f"{name}.{kind}", f"denoise.{kind}")
        return made

    return make


def embeddings_of(engine: Engine, result: Any) -> dict[str, torch.Tensor]:
    """What InvokeAI's prompt nodes stored."""
    stored = {node: result.outputs[node]["conditioning"]["conditioning_name"] for node in ("prompt", "negative")}
    positive, negative = (engine.services.conditioning.load(name).conditionings[0].embeds for name in stored.values())
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def latents_in(engine: Engine, result: Any) -> torch.Tensor:
    return engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


COUNT = SMALL["num_frames"]
COMMON = {"num_inference_steps": SMALL["steps"], "height": 64, "width": 64, "guidance_scale": 7.5, "output_type": "latent"}


def test_an_ip_adapter_changes_the_clip_as_it_changes_diffusers_clip_bit_for_bit(
    engine: Engine, graph: Any, folders: dict[str, Path], pixels: Image.Image
) -> None:
    from invokeai.backend.ip_adapter.ip_adapter import build_ip_adapter

    result = engine.run(graph(ip={"weight": 0.7}))

    pipeline = quiet(
        AnimateDiffPipeline.from_pretrained(
            folders["tiny-sd1"],
            motion_adapter=MotionAdapter.from_pretrained(folders["tiny-motion"]),
            scheduler=make_scheduler(SMALL["scheduler"]),
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(folders[IMAGE_ENCODER]).eval(),
            feature_extractor=CLIPImageProcessor(),
            local_files_only=True,
        )
    )
    pipeline.load_ip_adapter(ip_adapter_file(), subfolder="", weight_name="none")
    pipeline.set_ip_adapter_scale(0.7)
    adapter = build_ip_adapter(folders["tiny-ip-adapter"], torch.device("cpu"), torch.float32)
    positive, negative = adapter.get_image_embeds([pixels], pipeline.image_encoder)
    projected = pipeline.unet.encoder_hid_proj([pipeline.encode_image(pixels, "cpu", 1)[0][None]])[0]
    # diffusers projects both halves in one multiplication, InvokeAI each by itself: equal but for rounding, so ours are put in.
    torch.testing.assert_close(positive, projected[0], rtol=0, atol=1e-5)
    pipeline.unet.encoder_hid_proj.image_projection_layers[0] = torch.nn.Identity()
    embeddings = [torch.stack([negative, positive])]
    generator = torch.Generator().manual_seed(SMALL["seed"])
    settings = COMMON | embeddings_of(engine, result)
    expected = pipeline(ip_adapter_image_embeds=embeddings, num_frames=COUNT, generator=generator, **settings).frames
    assert torch.equal(latents_in(engine, result), expected)
    assert not torch.equal(latents_in(engine, engine.run(graph())), expected)


def test_without_motion_a_t2i_adapter_makes_the_frames_of_diffusers_still_pipeline(
    engine: Engine, graph: Any, folders: dict[str, Path], pixels: Image.Image
) -> None:
    result = engine.run(graph(t2i={"weight": 0.8}, denoise={"motion_scale": 0.0, "steps": 1}))
    frames = latents_in(engine, result)[0].transpose(0, 1)

    pipeline = quiet(
        StableDiffusionAdapterPipeline.from_pretrained(
            folders["tiny-sd1"],
            adapter=tiny_t2i_adapter(),
            scheduler=make_scheduler(SMALL["scheduler"]),
            local_files_only=True,
        )
    )
    noise = torch.randn(1, 4, COUNT, 8, 8, generator=torch.Generator().manual_seed(SMALL["seed"]))
    image = VaeImageProcessor(do_normalize=False).preprocess(pixels).repeat(COUNT, 1, 1, 1)
    prompts = {name: embeddings.repeat(COUNT, 1, 1) for name, embeddings in embeddings_of(engine, result).items()}
    settings = COMMON | prompts | {"num_inference_steps": 1, "adapter_conditioning_scale": 0.8}
    stills = pipeline(image=image, latents=noise[0].transpose(0, 1), **settings).images
    # One step: an untrained model makes rounding a thousand times larger in each further one, with an adapter or without.
    torch.testing.assert_close(frames, stills, rtol=0, atol=1e-5)
    bare = latents_in(engine, engine.run(graph(denoise={"motion_scale": 0.0, "steps": 1})))[0].transpose(0, 1)
    assert (frames - bare).abs().max() > 1e-2


@pytest.fixture(scope="module")
def done() -> dict[str, torch.Tensor]:
    """What several tests of this file compare with."""
    return {}


@pytest.mark.parametrize("method", ["full", "style", "composition", "style_strong", "style_precise"])
def test_every_method_of_the_ip_adapter_node_makes_a_clip_of_its_own(
    engine: Engine, graph: Any, method: str, done: dict[str, torch.Tensor]
) -> None:
    if "plain" not in done:
        done["plain"] = latents_in(engine, engine.run(graph()))
    latents = latents_in(engine, engine.run(graph(ip={"method": method})))

    assert torch.isfinite(latents).all()
    assert not any(torch.equal(latents, other) for other in done.values())
    done[method] = latents


def test_several_adapters_of_both_kinds_run_in_windows_and_leave_the_main_model_as_it_was(
    engine: Engine, graph: Any, models: dict[str, dict[str, Any]]
) -> None:
    def still() -> torch.Tensor:
        name = engine.run(still_image(models["tiny-sd1"])).outputs["image"]["latents"]["latents_name"]
        return engine.services.tensors.load(name).as_subclass(torch.Tensor)

    before = still()
    made = graph(ip={"weight": [0.7, 0.2]}, t2i={"begin_step_percent": 0.5}, denoise={"num_frames": 33, "steps": 2})
    latents = latents_in(engine, engine.run(made))

    assert latents.shape == (1, 4, 33, 8, 8)
    assert torch.equal(still(), before)


@pytest.mark.parametrize(
    ("adapters", "denoise", "message"),
    [
        ({"ip": {"ip_adapter_model": "wide-ip-adapter"}}, {}, "IP-Adapter: expected one for Stable Diffusion 1.5 (base sd-1), got"),
        ({"t2i": {"t2i_adapter_model": "wide-t2i-adapter"}}, {}, "T2I-Adapter: expected one for Stable Diffusion 1.5 (base sd-1), got"),
        ({"ip": {"weight": [1.0]}}, {}, "IP-Adapter: weights: expected one number, or 2: one per step that runs, got 1"),
        ({"t2i": {}}, {"width": 56}, "clip's size with a T2I-Adapter: expected at least 64x64, got 56x64 (nearest valid value: 64x64)"),
    ],
)
def test_adapters_that_do_not_suit_are_refused_before_a_model_is_loaded(
    engine: Engine,
    graph: Any,
    models: dict[str, dict[str, Any]],
    refusal: Any,
    adapters: dict[str, dict[str, Any]],
    denoise: dict[str, Any],
    message: str,
) -> None:
    named = {name: {key: models.get(str(value), value) for key, value in fields.items()} for name, fields in adapters.items()}

    assert message in refusal(graph(denoise=denoise, **named))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": (32, 64)}, "IP-Adapter mask: expected 64x64 pixels, as the clip has, got 64x32 (nearest valid value: 64x64)"),
        ({"method": "loud"}, "IP-Adapter method: expected one of full, style, composition, style_strong, style_precise, got 'loud'"),
        ({"target_blocks": []}, "IP-Adapter blocks: expected parts of the UNet such as up_blocks.1, got none"),
        ({"image": []}, "IP-Adapter pictures: expected at least one image, got an empty collection"),
    ],
)
def test_an_ip_adapter_s_use_that_cannot_be_is_refused(
    engine: Engine, graph: Any, models: dict[str, dict[str, Any]], refusal: Any, upload: Any, pixels: Image.Image,
    fields: dict[str, Any], message: str,
) -> None:  # fmt: skip
    if "mask" in fields:
        fields = {"mask": {"tensor_name": engine.services.tensors.save(torch.ones(1, *fields["mask"], dtype=torch.bool))}}
    whole = {"image": upload(pixels), "ip_adapter_model": models["tiny-ip-adapter"], "image_encoder_model": models[IMAGE_ENCODER]}

    assert message in refusal(graph(denoise={"ip_adapter": {**whole, "target_blocks": ["block"], **fields}}))
