"""What AnimateDiff's nodes refuse, in the words that an artist reads, before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from animatediff_graphs import SMALL, denoise_alone, model_value, vae_value
from graphs import add
from hunyuan_graphs import refused_unloaded
from safetensors.torch import save_file
from tiny_animatediff import tiny_prompts
from tiny_animatediff_files import motion_lora
from tiny_sd1 import save_motion_module, tiny_sd1_controlnet, tiny_sd1_sparse_controlnet

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

FRAMES = SMALL["num_frames"]
FREE_NOISE = {"length": 4, "overlap": 2, "kind": "free_noise"}


@pytest.fixture(scope="module")
def folders(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A ControlNet, both SparseCtrls, a motion LoRA and a LoRA for pictures, as values of model fields."""
    root = tmp_path_factory.mktemp("models")
    tiny_sd1_controlnet().save_pretrained(root / "controlnet")
    tiny_sd1_sparse_controlnet(reads_latents=False).save_pretrained(root / "scribble")
    tiny_sd1_sparse_controlnet(reads_latents=True).save_pretrained(root / "rgb")
    save_motion_module(root / "wider", block_out_channels=(64, 64, 64, 64))
    save_file(motion_lora("original"), root / "pan.safetensors")
    style = {f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_{end}.weight": torch.zeros(shape)
             for end, shape in (("down", (2, 768)), ("up", (64, 2)))}  # fmt: skip
    save_file(style, root / "style.safetensors")
    return {path.stem: engine.model(engine.install(path)) for path in root.iterdir()}


@pytest.fixture
def value(sd1: dict[str, Any], motion: dict[str, Any]) -> dict[str, Any]:
    return model_value(sd1, motion)


@pytest.fixture
def prompts(conditioning: Callable[[torch.Tensor], dict[str, str]]) -> dict[str, Any]:
    positive, negative = tiny_prompts()
    return {"positive_conditioning": conditioning(positive), "negative_conditioning": conditioning(negative)}


@pytest.fixture
def clip(engine: Engine) -> Callable[..., dict[str, str]]:
    def put(frames: int = FRAMES, cells: int = 8, channels: int = 4) -> dict[str, str]:
        return {"latents_name": engine.services.tensors.save(torch.zeros(1, channels, frames, cells, cells))}

    return put


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 3}, "num_frames: expected 4 to 128, got 3 (nearest valid value: 4)"),
        ({"num_frames": 129}, "num_frames: expected 4 to 128, got 129 (nearest valid value: 128)"),
        ({"width": 68}, "width: expected a positive multiple of 8 pixels, got 68 (nearest valid value: 64)"),
        ({"scheduler": "er_sde"}, "scheduler: expected one of ddim, "),
        ({"scheduler": "lcm", "steps": 51}, "steps: expected at most 50 with this scheduler, got 51 (nearest valid value: 50)"),
        ({"scheduler": "euler", "eta": 0.5}, "eta: expected 0.0, or the scheduler ddim or tcd, got 0.5 with euler"),
        ({"scheduler": "euler", "free_init": {"iterations": 2}}, "scheduler with FreeInit: expected ddim, ddpm, pndm, lcm or tcd, got"),
        ({"negative_conditioning": None}, "guidance_scale: expected 1.0, or a negative prompt connected (it may be empty), got 7.5"),
        ({"positive_conditioning": None}, "positive prompt: expected either a positive conditioning or a prompt schedule, got neither"),
        ({"motion_scale": [1.0, 0.5]}, "motion_scale list: expected 8 numbers, one per frame, got a list of 2"),
        ({"strength": 0.5}, "strength: expected 1.0, because no clip comes in, got 0.5 (nearest valid value: 1.0)"),
        ({"loop": True}, "loop: expected a clip longer than one window of 16 frames"),
        ({"loop": True, "windows": {"length": 4, "overlap": 2}}, "windows of a loop: expected the kind looped, got the kind standard"),
        ({"windows": {"length": 33, "overlap": 4}}, "window length: expected at most 32 frames, the motion module's limit, got 33"),
        ({"windows": {"length": 4, "overlap": 0, "kind": "looped"}}, "window overlap: expected 1 or more with the kind looped, because"),
        ({"windows": {"length": 4, "overlap": 4}}, "window overlap: expected 0 to 3, fewer than the window length, got 4"),
        ({"windows": {"length": 33, "overlap": 4, "kind": "free_noise"}}, "FreeNoise context length: expected at most 32 frames"),
        ({"windows": {**FREE_NOISE, "stride": 2}}, "window stride: expected 1 with the kind free_noise, got 2"),
        ({"windows": {**FREE_NOISE, "weights": "linear"}}, "window weights: expected pyramid or flat with the kind"),
        ({"loop": True, "windows": FREE_NOISE}, "windows of a loop: expected the kind looped, got the kind free_noise"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(engine: Engine, value: Any, prompts: Any, fields: dict[str, Any], message: str) -> None:
    assert message in refused_unloaded(engine, denoise_alone(value, **{**prompts, **fields}))


def test_a_clip_of_another_length_size_or_model_is_refused(engine: Engine, value: Any, prompts: Any, clip: Any) -> None:
    def refused(**shape: int) -> str:
        return refused_unloaded(engine, denoise_alone(value, **prompts, latents=clip(**shape), strength=0.5))

    assert "expected a clip of 8 frames of 64x64, as this node has, got 9 frames of 64x64" in refused(frames=9)
    assert "expected a clip of 8 frames of 64x64, as this node has, got 8 frames of 32x32" in refused(cells=4)
    assert "latents: channels: expected 4, got 16" in refused(channels=16)


def test_a_strength_that_leaves_no_step_is_refused(engine: Engine, value: Any, prompts: Any, clip: Any) -> None:
    message = refused_unloaded(engine, denoise_alone(value, **prompts, latents=clip(), strength=0.3))

    assert "strength: expected at least one of the 2 steps, got 0.3 (nearest valid value: 0.5)" in message


@pytest.mark.parametrize("field", ["mask", "motion_mask"])
def test_a_mask_of_another_size_is_refused(engine: Engine, value: Any, prompts: Any, clip: Any, upload: Any, field: str) -> None:
    small = upload(np.zeros((32, 64, 3), np.uint8))

    message = refused_unloaded(engine, denoise_alone(value, **prompts, latents=clip(), **{field: small}))

    assert f"{field}: expected 64x64 pixels, as the clip has, got 64x32 (nearest valid value: 64x64)" in message


def test_a_motion_scale_for_other_frames_is_refused_beside_a_mask_too(engine: Engine, value: Any, prompts: Any, upload: Any) -> None:
    mask = upload(np.zeros((64, 64, 3), np.uint8))

    message = refused_unloaded(engine, denoise_alone(value, **prompts, motion_scale=[1.0, 0.5], motion_mask=mask))

    assert "motion_scale list: expected 8 numbers, one per frame, got a list of 2" in message


def test_a_mask_without_a_clip_and_free_init_with_one_are_refused(
    engine: Engine, value: Any, prompts: Any, clip: Any, upload: Any
) -> None:
    mask = upload(np.zeros((64, 64, 3), np.uint8))

    alone = refused_unloaded(engine, denoise_alone(value, **prompts, mask=mask))
    both = refused_unloaded(engine, denoise_alone(value, **prompts, latents=clip(), free_init={"iterations": 2}))

    assert "mask: expected a clip in Latents that it keeps a part of, got none" in alone
    assert "FreeInit: expected a clip made from noise alone, got a clip to start from (nearest valid value: FreeInit off)" in both


def test_prompts_of_another_model_or_of_a_region_are_refused(engine: Engine, value: Any, prompts: Any, conditioning: Any) -> None:
    masked = {**prompts["positive_conditioning"], "mask": {"tensor_name": "any"}}

    wide = refused_unloaded(engine, denoise_alone(value, **{**prompts, "positive_conditioning": conditioning(torch.zeros(1, 77, 1024))}))
    region = refused_unloaded(engine, denoise_alone(value, **{**prompts, "positive_conditioning": masked}))
    none = refused_unloaded(engine, denoise_alone(value, **{**prompts, "positive_conditioning": []}))

    assert "prompt embeddings: expected [1 or 8, tokens, 768], got [1, 77, 1024]" in wide
    assert "positive_conditioning: expected a prompt for the whole picture, got one with a region mask" in region
    assert "positive_conditioning: expected at least one conditioning, got an empty collection" in none


def test_prompts_of_sdxl_s_prompt_node_are_refused(engine: Engine, value: Any, prompts: Any) -> None:
    from invokeai.backend.stable_diffusion.diffusion.conditioning_data import ConditioningFieldData, SDXLConditioningInfo

    # Of the right width, so that nothing but its kind gives it away.
    other = SDXLConditioningInfo(torch.zeros(1, 77, 768), pooled_embeds=torch.zeros(1, 1280), add_time_ids=torch.zeros(1, 6))
    name = engine.services.conditioning.save(ConditioningFieldData(conditionings=[other]))

    message = refused_unloaded(engine, denoise_alone(value, **{**prompts, "negative_conditioning": {"conditioning_name": name}}))

    assert "negative_conditioning: expected a prompt of Stable Diffusion 1.5's prompt node, got SDXLConditioningInfo" in message


def test_a_schedule_for_another_clip_or_beside_a_prompt_is_refused(engine: Engine, value: Any, prompts: Any) -> None:
    name = prompts["positive_conditioning"]["conditioning_name"]
    schedule = {"conditioning_names": [name], "frames": [0], "num_frames": 9}

    beside = refused_unloaded(engine, denoise_alone(value, **prompts, prompt_schedule=schedule))
    longer = refused_unloaded(engine, denoise_alone(value, **{**prompts, "positive_conditioning": None}, prompt_schedule=schedule))

    assert "positive prompt: expected either a positive conditioning or a prompt schedule, got both" in beside
    assert "prompt schedule: expected a schedule for 8 frames, as this node has, got one for 9 (nearest valid value: 8)" in longer


@pytest.mark.parametrize("count", [7, 9])
def test_more_control_images_than_frames_or_fewer_are_refused(
    engine: Engine, value: Any, prompts: Any, folders: Any, upload: Any, count: int
) -> None:
    image = upload(np.zeros((64, 64, 3), np.uint8))
    control = {"images": [image] * count, "control_model": folders["controlnet"]}

    message = refused_unloaded(engine, denoise_alone(value, **prompts, control_frames=control))

    assert f"control_frames: expected 8 images, one for each frame, got {count} (nearest valid value: 8)" in message


def test_control_weights_for_other_steps_are_refused(engine: Engine, value: Any, prompts: Any, folders: Any, upload: Any) -> None:
    control = {"image": upload(np.zeros((64, 64, 3), np.uint8)), "control_model": folders["controlnet"], "control_weight": [1.0]}

    message = refused_unloaded(engine, denoise_alone(value, **prompts, control=control))

    assert "ControlNet: weights: expected one number, or 2: one per step that runs, got 1 (nearest valid value: 2)" in message


def test_a_control_that_ends_before_it_begins_is_refused(engine: Engine, value: Any, prompts: Any, folders: Any, upload: Any) -> None:
    images = [upload(np.zeros((64, 64, 3), np.uint8))] * FRAMES
    control = {"images": images, "control_model": folders["controlnet"], "begin_step_percent": 0.6, "end_step_percent": 0.5}

    alone = refused_unloaded(engine, node("animatediff_control_frames", **control))
    message = refused_unloaded(engine, denoise_alone(value, **prompts, control_frames=control))

    expected = "control steps: expected a begin below the end, both 0.0 to 1.0, got 0.6 to 0.5"
    assert expected in alone and expected in message


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([8], "keyframe: expected 0 to 7, the frames of the clip, got 8 (nearest valid value: 7)"),
        ([0, 1], "keyframes: expected 1 frame numbers, one for each image, got 2 (nearest valid value: 1)"),
    ],
)
def test_keyframes_beyond_the_clip_are_refused(
    engine: Engine, value: Any, prompts: Any, folders: Any, upload: Any, frames: list[int], message: str
) -> None:
    sparse = {"images": [upload(np.zeros((64, 64, 3), np.uint8))], "frames": frames, "control_model": folders["scribble"]}

    assert message in refused_unloaded(engine, denoise_alone(value, **prompts, sparse_control=sparse))


def node(kind: str, **fields: Any) -> dict[str, Any]:
    graph: dict[str, Any] = {"nodes": {}, "edges": []}
    add(graph, "node", kind, **fields)
    return graph


def test_a_sparse_control_is_no_controlnet_and_the_other_way_round(engine: Engine, folders: Any, upload: Any) -> None:
    images = [upload(np.zeros((64, 64, 3), np.uint8))]

    def refused(kind: str, model: str, **fields: Any) -> str:
        return refused_unloaded(engine, node(kind, images=images, control_model=folders[model], **fields))

    assert "ControlNet: expected a ControlNet model, got 'scribble', a SparseCtrl" in refused("animatediff_control_frames", "scribble")
    assert "SparseCtrl: expected a SparseCtrl model, got 'controlnet', a ControlNet" in refused("animatediff_sparse_control", "controlnet")
    assert "VAE: expected one connected, because 'rgb' reads latents, got none" in refused("animatediff_sparse_control", "rgb")
    assert "keyframes: expected each frame once, got 3 twice" in refused_unloaded(
        engine, node("animatediff_sparse_control", images=images * 2, frames=[3, 3], control_model=folders["scribble"])
    )
    assert "control images: expected at least one image, got an empty collection" in refused_unloaded(
        engine, node("animatediff_control_frames", images=[], control_model=folders["controlnet"])
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": -1}, "window length: expected 0 or more, got -1 (nearest valid value: 0)"),
        ({"length": 4, "overlap": 4}, "window overlap: expected 0 to 3, fewer than the window length, got 4"),
    ],
)
def test_windows_that_cannot_be_are_refused_by_their_own_node(engine: Engine, fields: dict[str, Any], message: str) -> None:
    assert message in refused_unloaded(engine, node("animatediff_windows", **fields))


def test_loras_in_the_wrong_place_or_twice_are_refused(engine: Engine, sd1: Any, motion: Any, value: Any, folders: Any) -> None:
    pan = {"lora": folders["pan"], "weight": 1.0}

    style = refused_unloaded(engine, node("animatediff_motion_lora", model=value, lora=folders["style"]))
    twice = refused_unloaded(engine, node("animatediff_motion_lora", model={**value, "motion_loras": [pan]}, lora=folders["pan"]))
    unet = model_value(sd1, motion, loras=[pan])["unet"]
    misplaced = refused_unloaded(engine, node("animatediff_model_loader", unet=unet, motion_module=motion))

    assert "motion LoRA: expected a LoRA for motion modules, got 'style', a LoRA for pictures" in style
    assert "motion LoRA: expected each motion LoRA once, got 'pan' twice" in twice
    assert "LoRA: expected a LoRA for pictures, got 'pan', a motion LoRA: it goes into 'Apply Motion LoRA'" in misplaced


def test_a_module_of_another_width_is_refused(engine: Engine, value: Any, folders: Any) -> None:
    message = refused_unloaded(engine, node("animatediff_model_loader", unet=value["unet"], motion_module=folders["wider"]))

    assert "motion module: widths: expected [32, 32, 64, 64], got [64, 64, 64, 64]" in message


@pytest.mark.parametrize(
    ("width", "channels", "message"),
    [
        (1024, 4, "main model: expected one for Stable Diffusion 1.5 (base sd-1), got 'changed' of base sd-2"),
        (2048, 4, "main model: expected one for Stable Diffusion 1.5 (base sd-1), got 'changed' of base sdxl"),
        (768, 9, "main model: expected Stable Diffusion 1.5 for pictures from text, got 'changed' for inpaint"),
    ],
)
def test_another_main_model_is_refused(
    engine: Engine, sd1_folder: Path, motion: Any, tmp_path: Path, width: int, channels: int, message: str
) -> None:
    import shutil

    folder = shutil.copytree(sd1_folder, tmp_path / "changed")
    config = json.loads((folder / "unet" / "config.json").read_text())
    changed = {**config, "cross_attention_dim": width, "in_channels": channels}
    (folder / "unet" / "config.json").write_text(json.dumps(changed))
    if width != 768:
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**scheduler, "prediction_type": "epsilon"}))
    other = engine.model(engine.install(folder))

    unet = model_value(other, motion)["unet"]

    assert message in refused_unloaded(engine, node("animatediff_model_loader", unet=unet, motion_module=motion))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("0: a cat\n16: a dog", "prompt schedule, line 2: expected a frame from 0 to 15"),
        ("8: a cat\n4: a dog", "prompt schedule, line 2: expected a frame after 8, which the line above has, got 4"),
        ("a cat", 'prompt schedule, line 1: expected "frame: prompt"'),
        ("", "prompt schedule: expected at least one line"),
    ],
)
def test_a_prompt_schedule_that_does_not_fit_is_refused(engine: Engine, sd1: Any, prompts: str, message: str) -> None:
    parts = {part: {**sd1, "submodel_type": part} for part in ("tokenizer", "text_encoder")}
    clip = {**parts, "skipped_layers": 0, "loras": []}

    assert message in refused_unloaded(engine, node("animatediff_prompt_schedule", prompts=prompts, clip=clip))
    short = refused_unloaded(engine, node("animatediff_prompt_schedule", prompts=prompts, clip=clip, num_frames=3))
    assert "num_frames: expected 4 to 128, got 3 (nearest valid value: 4)" in short


def test_an_encode_of_nothing_too_few_frames_or_an_odd_size_is_refused(engine: Engine, sd1: Any, upload: Any) -> None:
    image = upload(np.zeros((64, 64, 3), np.uint8))

    def refused(**fields: Any) -> str:
        return refused_unloaded(engine, node("animatediff_encode", vae=vae_value(sd1), **fields))

    assert "source: expected either a video or at least one image, got neither" in refused()
    assert "images: expected at least 4 frames, got 3" in refused(images=[image] * 3)
    assert "width: expected a positive multiple of 8 pixels, got 60" in refused(images=[image] * 4, width=60)
