"""Our nodes enter InvokeAI's registry once, with words for artists and defaults that hold."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

TYPES = {
    "z_image_video_model_loader": "Load Video Model - Z-Image",
    "z_image_video_denoise": "Denoise Video - Z-Image",
    "z_image_video_encode": "Image to Video Latents - Z-Image",
    "z_image_video_decode": "Video Decode - Z-Image",
    "hunyuan_video_model_loader": "Load Video Model - HunyuanVideo",
    "hunyuan_video_lora_loader": "Apply LoRA - HunyuanVideo",
    "hunyuan_video_lora_collection_loader": "Apply LoRA Collection - HunyuanVideo",
    "hunyuan_video_text_encoder": "Prompt - HunyuanVideo",
    "hunyuan_video_image_encoder": "Start Image - HunyuanVideo",
    "hunyuan_video_denoise": "Denoise Video - HunyuanVideo",
    "animatediff_model_loader": "Load Motion Module - AnimateDiff",
    "animatediff_motion_lora": "Apply Motion LoRA - AnimateDiff",
    "animatediff_prompt_schedule": "Prompt Schedule - AnimateDiff",
    "animatediff_control_frames": "ControlNet per Frame - AnimateDiff",
    "animatediff_sparse_control": "SparseCtrl - AnimateDiff",
    "animatediff_windows": "Context Windows - AnimateDiff",
    "animatediff_free_init": "FreeInit - AnimateDiff",
    "animatediff_denoise": "Denoise Video - AnimateDiff",
    "animatediff_encode": "Video Encode - AnimateDiff",
    "animatediff_decode": "Video Decode - AnimateDiff",
    "svd_model_loader": "Load Video Model - SVD",
    "svd_start_image": "Start Image - SVD",
    "svd_denoise": "Denoise Video - SVD",
    "svd_decode": "Video Decode - SVD",
    "video_vae_loader": "Load Video VAE",
    "video_vae_encode": "Video Encode - Video VAE",
    "video_vae_decode": "Video Decode - Video VAE",
    "video_vae_decode_frames": "Video Frames Decode - Video VAE",
    "video_latents_load": "Load Video Latents",
    "video_to_frames": "Video to Frames",
    "frames_to_video": "Frames to Video",
}
OF_EVERY_NODE = {"id", "type", "is_intermediate", "use_cache", "metadata", "board"}


@pytest.fixture
def nodes(engine: Engine) -> dict[str, Any]:
    """Our node classes by type, from InvokeAI's registry."""
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    return {name: InvocationRegistry.get_invocation_for_type(name) for name in TYPES}


def test_every_node_is_registered_with_title_category_and_version(nodes: dict[str, Any]) -> None:
    for name, title in TYPES.items():
        ui = nodes[name].UIConfig
        assert (ui.title, ui.category) == (title, "video")
        assert ui.version and "video" in ui.tags


def test_registering_again_changes_nothing_and_warns_of_nothing(nodes: dict[str, Any], caplog: Any) -> None:
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    from invokeai_video_nodes import register

    before = set(InvocationRegistry._invocation_classes)
    with caplog.at_level(logging.WARNING):
        assert register() == []

    assert set(InvocationRegistry._invocation_classes) == before
    assert "verriding" not in caplog.text


def test_nodes_that_the_node_manager_removed_come_back(nodes: dict[str, Any]) -> None:
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    from invokeai_video_nodes import register

    packs = {cls.UIConfig.node_pack for cls in nodes.values()}
    for pack in packs:
        InvocationRegistry.unregister_pack(pack)

    assert register() == sorted(TYPES)
    assert {name: InvocationRegistry.get_invocation_for_type(name) for name in TYPES} == nodes
    assert all(cls.get_output_annotation() in InvocationRegistry._output_classes for cls in nodes.values())


def test_importing_the_package_needs_no_invokeai() -> None:
    code = "import sys; sys.modules['invokeai'] = None; import invokeai_video_nodes as n; print(n.register())"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


def test_every_default_validates_and_every_field_says_what_it_is(nodes: dict[str, Any]) -> None:
    for name, cls in nodes.items():
        for field_name, field in cls.model_fields.items():
            if field_name in OF_EVERY_NODE:
                continue
            assert field.description and field.description[0].isupper(), f"{name}.{field_name}"
            if not field.is_required() and field.default is not None:
                TypeAdapter(Annotated[field.annotation, None, *field.metadata]).validate_python(field.default, strict=True)


def test_the_pickers_offer_our_models_only(nodes: dict[str, Any]) -> None:
    schema = nodes["z_image_video_model_loader"].model_json_schema()["properties"]

    assert (schema["model"]["ui_model_base"], schema["model"]["ui_model_type"]) == (["z-image-video"], ["main"])
    assert (schema["vae_model"]["ui_model_base"], schema["vae_model"]["ui_model_type"]) == (["flux"], ["vae"])
    assert schema["qwen3_encoder_model"]["ui_model_type"] == ["qwen3_encoder"]


def test_the_denoise_node_has_the_fields_and_limits_that_workflows_rely_on(nodes: dict[str, Any]) -> None:
    schema = nodes["z_image_video_denoise"].model_json_schema()["properties"]

    def limits(name: str) -> tuple[Any, ...]:
        return tuple(schema[name].get(key) for key in ("default", "minimum", "maximum"))

    assert limits("num_frames") == (16, 4, 128)
    assert limits("fps") == (8, 1, 60)
    assert limits("f_patch_size") == (2, 1, 4)
    assert limits("motion_strength") == (0.7, 0.0, 1.0)
    assert limits("guidance_scale") == (1.0, 1.0, 100.0)
    assert (schema["width"]["default"], schema["width"]["multipleOf"]) == (512, 16)
    assert schema["scheduler"]["enum"] == ["euler", "heun", "lcm"]


def test_the_loader_says_what_the_checkpoint_can_do(engine: Engine, tiny_model: dict[str, Any]) -> None:
    from graphs import add

    graph: dict[str, Any] = {"nodes": {}, "edges": []}
    add(graph, "model", "z_image_video_model_loader", model=tiny_model)

    output = engine.run(graph).outputs["model"]

    assert output["supported_f_patch_sizes"] == [1, 2, 4] and output["max_frames"] == 128
    parts = {name: output[field][name] for field in ("transformer", "vae") for name in (field,)}
    assert {part["submodel_type"] for part in parts.values()} == {"transformer", "vae"}
    assert json.dumps(output["qwen3_encoder"]).count(tiny_model["key"]) == 2
