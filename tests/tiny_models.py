"""Tiny random Z-Image Video models: the real classes at toy sizes, seeded, made in a second or two.

Prompt in, frames out, with nothing meaningful in between: they test plumbing and arithmetic, never quality. Sizes are
chosen so that every key that a public checkpoint has exists here too (fused qkv in the original layout, pad tokens, two
refiners), and so that 8-bit GGUF blocks of 32 values fit most matrices. Imports no InvokeAI.

    folder = make_tiny_z_image_video(tmp_path / "tiny")              # diffusers folder, f_patch_size 1, 2 and 4
    file = make_tiny_single_file(tmp_path / "tiny.safetensors")      # transformer only, its config in the file's
    metadata file = make_tiny_gguf(tmp_path / "tiny.gguf")                    # Q8_0 / F32, original keys file =
    make_tiny_image_checkpoint(tmp_path / "image.safetensors")  # f_patch_size 1 only: what a public image model looks
    like
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gguf
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

CAPTION_FEATURES = 32
SHIFT = 3.0

_CORPUS = (
    "a red circle moves to the right",
    "a blue square rises slowly and turns around",
    "a green triangle grows while a yellow star falls to the left",
    "the small white dot shrinks on a soft dark background",
)

# Qwen3's own wording; `enable_thinking=False` adds the empty thought, as the real template does.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
)


def make_tiny_z_image_video(
    folder: Path | str,
    f_patch_sizes: Sequence[int] = (1, 2, 4),
    latent_channels: int = 16,
    seed: int = 0,
    shift: float = SHIFT,
) -> Path:
    """Write a complete diffusers folder (about 3 MB, float32) and return it.

    `f_patch_sizes=(1,)` gives what an image checkpoint looks like. Pixel sizes up to 1024 and 128 frames fit its
    position tables.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tiny_transformer(f_patch_sizes=f_patch_sizes, latent_channels=latent_channels, seed=seed).save_pretrained(folder / "transformer")
    tiny_vae(latent_channels=latent_channels, seed=seed).save_pretrained(folder / "vae")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    tiny_text_encoder(vocab_size=len(tokenizer), seed=seed).save_pretrained(folder / "text_encoder")
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.40.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_tiny_single_file(
    path: Path | str,
    f_patch_sizes: Sequence[int] = (1, 2, 4),
    latent_channels: int = 16,
    seed: int = 0,
    layout: Literal["diffusers", "original"] = "diffusers",
    prefix: str = "",
    with_config: bool = True,
) -> Path:
    """Write the transformer alone as one safetensors file and return its path.

    `prefix` is put before every key ("model.diffusion_model." in some public files); `with_config=False` leaves out the
    config in the metadata, so that the sizes cannot be known. The weights equal the folder's with the same seed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    transformer = tiny_transformer(f_patch_sizes=f_patch_sizes, latent_channels=latent_channels, seed=seed)
    weights = transformer.state_dict()
    if layout == "original":
        weights = original_keys(weights)
    metadata = {"config": json.dumps(transformer_config(transformer))} if with_config else {"format": "pt"}
    save_file({prefix + key: value.contiguous() for key, value in weights.items()}, path, metadata=metadata)
    return path


def make_tiny_gguf(
    path: Path | str,
    f_patch_sizes: Sequence[int] = (1, 2, 4),
    latent_channels: int = 16,
    seed: int = 0,
) -> Path:
    """Write the transformer alone as GGUF (Q8_0 where rows hold whole blocks of 32, else F32), original keys.

    The transformer's config stands as JSON in the key-value field "config".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    transformer = tiny_transformer(f_patch_sizes=f_patch_sizes, latent_channels=latent_channels, seed=seed)
    writer = gguf.GGUFWriter(str(path), arch="lumina2")
    writer.add_string("config", json.dumps(transformer_config(transformer)))
    for key, value in original_keys(transformer.state_dict()).items():
        data = value.float().numpy()
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            quantized = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(key, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(key, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_tiny_image_checkpoint(
    path: Path | str,
    latent_channels: int = 16,
    seed: int = 0,
    layout: Literal["diffusers", "original"] = "original",
) -> Path:
    """Write a single-file transformer that knows f_patch_size 1 only, as public image checkpoints do."""
    return make_tiny_single_file(path, f_patch_sizes=(1,), latent_channels=latent_channels, seed=seed, layout=layout)


def tiny_transformer(
    *, f_patch_sizes: Sequence[int] = (1, 2, 4), latent_channels: int = 16, seed: int = 0, dim: int = 64, n_layers: int = 2
) -> ZImageTransformer2DModel:
    """A ZImageTransformer2DModel in eval mode, float32, `dim` a multiple of 16; the caption features are 32 wide."""
    with _seeded(seed):
        model = ZImageTransformer2DModel(
            all_patch_size=(2,) * len(f_patch_sizes),
            all_f_patch_size=tuple(f_patch_sizes),
            in_channels=latent_channels,
            dim=dim,
            n_layers=n_layers,
            n_refiner_layers=2,
            n_heads=dim // 16,
            n_kv_heads=dim // 16,
            cap_feat_dim=CAPTION_FEATURES,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        )
        # They are `torch.empty` or zeros upstream, depending on the version: neither tests anything.
        for token in (model.x_pad_token, model.cap_pad_token):
            torch.nn.init.normal_(token, std=0.1)
    return model.eval()


def tiny_vae(*, latent_channels: int = 16, seed: int = 0) -> AutoencoderKL:
    """An 8x AutoencoderKL in FLUX's manner (scaling and shift, no quant convolutions), eval mode, float32."""
    with _seeded(seed):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        # A random decoder paints mid-grey: a stronger last layer makes frames that differ visibly.
        vae.decoder.conv_out.weight.data.mul_(4.0)
    return vae.eval()


def tiny_text_encoder(*, vocab_size: int, seed: int = 0) -> Qwen3Model:
    """A Qwen3Model of width 32, eval mode, float32."""
    with _seeded(seed):
        model = Qwen3Model(
            Qwen3Config(
                vocab_size=vocab_size,
                hidden_size=CAPTION_FEATURES,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=1024,
                bos_token_id=None,
                eos_token_id=None,
                # Qwen3's default of 0.02 makes all prompts look alike at this width.
                initializer_range=0.2,
            )
        )
    return model.eval()


def tiny_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE of under 400 tokens, trained here on four sentences, with Qwen3's chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False))
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in trained["merges"]]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=1024,
    )


def transformer_config(transformer: ZImageTransformer2DModel) -> dict[str, Any]:
    """The constructor's arguments, as transformer/config.json holds them."""
    return {key: value for key, value in transformer.config.items() if not key.startswith("_") or key == "_class_name"}


def original_keys(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' keys -> those of the original release: fused qkv, `q_norm`, `out`, pad tokens of one axis.

    One f_patch_size becomes plain `x_embedder`/`final_layer`; several keep the `2-F` names, which the original layout
    lacks.
    """
    embedders = {key.split(".")[1] for key in weights if key.startswith("all_x_embedder.")}
    renamed: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        if ".attention.to_q." in key:
            fused = [weights[key.replace(".to_q.", f".{part}.")] for part in ("to_q", "to_k", "to_v")]
            renamed[key.replace(".to_q.", ".qkv.")] = torch.cat(fused, dim=0)
            continue
        if ".attention.to_k." in key or ".attention.to_v." in key:
            continue
        name = key.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.").replace(".to_out.0.", ".out.")
        if len(embedders) == 1:
            only = next(iter(embedders))
            name = name.replace(f"all_x_embedder.{only}.", "x_embedder.").replace(f"all_final_layer.{only}.", "final_layer.")
        renamed[name] = value.reshape(-1) if key in ("x_pad_token", "cap_pad_token") else value
    return renamed


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generator for the initialisers and give it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
