"""A transformer in one file (safetensors, GGUF) with the VAE and the text encoder of other models makes a clip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from graphs import Graph, add, connect, disconnect, text_to_video
from safetensors.torch import save_file
from tiny_models import make_tiny_gguf, make_tiny_image_checkpoint, make_tiny_single_file

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

LatentsOf = Callable[[Graph], torch.Tensor]


@pytest.fixture
def parts(tiny_model: dict[str, Any]) -> dict[str, Any]:
    """The VAE and the text encoder of the tiny folder, for a loader whose own model has neither."""
    return {"vae_model": tiny_model, "qwen3_encoder_model": tiny_model}


def test_a_single_file_with_the_folder_s_weights_makes_the_folder_s_clip(
    engine: Engine, latents_of: LatentsOf, tiny_model: dict[str, Any], parts: dict[str, Any], tmp_path: Path
) -> None:
    model = engine.model(engine.install(make_tiny_single_file(tmp_path / "single.safetensors", layout="original")))

    single = latents_of(text_to_video(model, loader=parts))

    assert torch.equal(single, latents_of(text_to_video(tiny_model)))


def test_a_gguf_file_makes_nearly_that_clip_and_takes_loras_as_side_layers(
    engine: Engine, latents_of: LatentsOf, tiny_model: dict[str, Any], parts: dict[str, Any], tmp_path: Path
) -> None:
    model = engine.model(engine.install(make_tiny_gguf(tmp_path / "quantized.gguf")))
    generator = torch.Generator().manual_seed(3)
    weights = {
        f"diffusion_model.layers.0.attention.to_q.lora_{side}.weight": torch.randn(size, generator=generator)
        for side, size in (("A", (4, 64)), ("B", (64, 4)))
    }
    save_file(weights, tmp_path / "moves.safetensors")
    graph = text_to_video(model, loader=parts)
    add(graph, "lora", "z_image_lora_loader", lora=engine.model(engine.install(tmp_path / "moves.safetensors")), weight=1.0)
    disconnect(graph, "denoise.transformer")
    connect(graph, "model.transformer", "lora.transformer")
    connect(graph, "lora.transformer", "denoise.transformer")

    quantized, full = latents_of(text_to_video(model, loader=parts)), latents_of(text_to_video(tiny_model))

    assert torch.corrcoef(torch.stack([quantized.flatten(), full.flatten()]))[0, 1] > 0.99
    assert (latents_of(graph) - quantized).abs().max() > 0.01


def test_a_standalone_qwen3_encoder_encodes_the_prompt(
    engine: Engine,
    tiny_folder: Path,
    tiny_model: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from invokeai.backend.model_manager.configs.qwen3_encoder import Qwen3Encoder_Qwen3Encoder_Config
    from invokeai.backend.model_manager.taxonomy import Qwen3VariantType

    folder = tmp_path / "encoder"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_folder / part, folder / part)
    written = json.loads((folder / "text_encoder" / "config.json").read_text())
    # Downloads of the encoder alone name the class with the language model's head; InvokeAI goes by that.
    (folder / "text_encoder" / "config.json").write_text(json.dumps({**written, "architectures": ["Qwen3ForCausalLM"]}))
    # InvokeAI knows the encoders of public widths; the tiny one is passed off as the one that Z-Image uses.
    monkeypatch.setattr(Qwen3Encoder_Qwen3Encoder_Config, "_get_variant_from_config", lambda path: Qwen3VariantType.Qwen3_4B)
    encoder = engine.model(engine.install(folder, config={"base": "any", "type": "qwen3_encoder"}))
    model = engine.model(engine.install(make_tiny_single_file(tmp_path / "single.safetensors")))

    result = engine.run(text_to_video(model, loader={"vae_model": tiny_model, "qwen3_encoder_model": encoder}))

    assert encoder["type"] == "qwen3_encoder"
    assert len(result.videos) == 1


def test_a_flux_autoencoder_file_decodes_and_holds_a_start_image(
    engine: Engine, tiny_model: dict[str, Any], upload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InvokeAI's own loader and class for FLUX's `ae.safetensors`, at a tiny width."""
    from graphs import picture
    from invokeai.backend.flux.modules.autoencoder import AutoEncoder, AutoEncoderParams
    from invokeai.backend.model_manager.load.model_loaders import flux

    sizes = AutoEncoderParams(
        resolution=64, in_channels=3, ch=32, out_ch=3, ch_mult=[1, 1, 1, 1], num_res_blocks=1, z_channels=16,
        scale_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    monkeypatch.setattr(flux, "get_flux_ae_params", lambda: sizes)
    torch.manual_seed(0)
    save_file(AutoEncoder(sizes).state_dict(), tmp_path / "ae.safetensors")
    vae = engine.model(engine.install(tmp_path / "ae.safetensors", config={"base": "flux", "type": "vae"}))
    graph = text_to_video(tiny_model, loader={"vae_model": vae}, denoise={"start_image": upload(picture())})
    connect(graph, "model.vae", "denoise.vae")

    result = engine.run(graph)

    assert vae["base"] == "flux"
    assert result.outputs["decode"]["num_frames"] == 8


def test_an_image_checkpoint_opened_by_hand_makes_a_clip_and_says_what_it_is(engine: Engine, parts: dict[str, Any], tmp_path: Path) -> None:
    key = engine.install(make_tiny_image_checkpoint(tmp_path / "still.safetensors"), config={"base": "z-image-video"})

    result = engine.run(text_to_video(engine.model(key), loader=parts, denoise={"f_patch_size": 4}))

    record = engine.services.model_manager.store.get_model(key)
    assert record.experimental and record.f_patch_sizes == [1, 2, 4]
    assert result.outputs["decode"]["num_frames"] == 8
