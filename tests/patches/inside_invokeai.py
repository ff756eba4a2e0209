"""Everything that needs a real InvokeAI in a fresh interpreter, done once: answers go as JSON to the file named by argv[1].

Run by `conftest.py` in a process of its own, because InvokeAI takes half a minute to import and keeps its state in modules.
"""

import copy
import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
for folder in (REPOSITORY / "patches", REPOSITORY / "tests", REPOSITORY):
    sys.path.insert(0, str(folder))

from invokeai_video_patches import bootstrap  # noqa: E402

bootstrap.install()


SHOWN = ("base", "type", "format", "f_patch_sizes", "latent_channels", "experimental")


class Lines(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def members() -> dict[str, Any]:
    """Do added members behave as written ones?"""
    from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelType, SubModelType
    from pydantic import TypeAdapter

    answers = {}
    pairs = [(BaseModelType, "z-image-video"), (ModelType, "motion_module"), (SubModelType, "image_encoder"), (BaseModelType, "svd")]
    for enum_class, value in pairs:
        member = enum_class(value)
        adapter = TypeAdapter(enum_class)
        answers[value] = [
            pickle.loads(pickle.dumps(member)) is member,
            copy.deepcopy(member) is member,
            getattr(enum_class, member.name) is member,
            member in list(enum_class),
            adapter.validate_json(json.dumps(value)) is member,
            value in adapter.json_schema()["enum"],
            isinstance(member, str) and member == value,
        ]
    return answers


def identified(folder: Path) -> dict[str, Any]:
    """Every kind of checkpoint through InvokeAI's own factory."""
    import tiny_models
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    answers: dict[str, Any] = {}

    def identify(name: str, path: Path, override: dict[str, Any] | None = None) -> Any:
        lines = Lines()
        logging.getLogger("InvokeAI").addHandler(lines)
        result = ModelConfigFactory.from_model_on_disk(path, override)
        logging.getLogger("InvokeAI").removeHandler(lines)
        config = result.config
        record = None if config is None else json.loads(config.model_dump_json())
        answers[name] = {
            "class": type(config).__name__,
            "record": record and {key: record.get(key) for key in SHOWN},
            "refused": [str(error) for error in result.invalid_matches],
            "logged": [line for line in lines.messages if "invokeai-video" in line],
        }
        return config

    full = tiny_models.make_tiny_z_image_video(folder / "full")
    configs = {"folder": identify("folder", full)}
    configs["file"] = identify("file", tiny_models.make_tiny_single_file(folder / "file.safetensors", f_patch_sizes=(1, 2)))
    original = tiny_models.make_tiny_single_file(folder / "original.safetensors", layout="original", prefix="model.diffusion_model.")
    configs["original"] = identify("original", original)
    configs["gguf"] = identify("gguf", tiny_models.make_tiny_gguf(folder / "quantized.gguf"))
    wide = tiny_models.make_tiny_single_file(folder / "four.safetensors", f_patch_sizes=(2,), latent_channels=4)
    configs["four channels"] = identify("four channels", wide)

    still_file = tiny_models.make_tiny_image_checkpoint(folder / "still.safetensors")
    still_folder = tiny_models.make_tiny_z_image_video(folder / "still", f_patch_sizes=(1,))
    identify("image file", still_file)
    identify("image folder", still_folder)
    configs["experimental file"] = identify("experimental file", still_file, {"base": "z-image-video"})
    configs["experimental folder"] = identify("experimental folder", still_folder, {"base": "z-image-video"})
    identify("video folder as image", full, {"base": "z-image"})

    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        lacking = shutil.copytree(full, folder / f"lacks-{part}")
        shutil.rmtree(lacking / part)
        identify(f"lacks {part}", lacking)
    (shutil.copytree(full, folder / "lacks-weights") / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    identify("lacks vae weights", folder / "lacks-weights")
    whole = (folder / "file.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    identify("half a file", folder / "half.safetensors")
    in_folder = shutil.copytree(full, folder / "half") / "transformer" / "diffusion_pytorch_model.safetensors"
    in_folder.write_bytes(in_folder.read_bytes()[:-1000])
    identify("half a folder", folder / "half")
    identify("unknown sizes", tiny_models.make_tiny_single_file(folder / "nameless.safetensors", with_config=False))
    answers["configs"] = configs
    return answers


def loaders() -> Any:
    """`load(config, part)` by InvokeAI's registry, on the CPU."""
    from invokeai.app.services.config.config_default import get_config
    from invokeai.backend.model_manager.load import ModelLoaderRegistry
    from invokeai.backend.model_manager.load.model_cache.model_cache import ModelCache
    from invokeai.backend.util.logging import InvokeAILogger

    logger = InvokeAILogger.get_logger()
    cache = ModelCache(
        execution_device_working_mem_gb=1,
        enable_partial_loading=False,
        keep_ram_copy_of_weights=True,
        execution_device="cpu",
        logger=logger,
    )

    def load(config: Any, part: Any) -> Any:
        implementation, _, _ = ModelLoaderRegistry.get_implementation(config, part)
        return implementation(app_config=get_config(), logger=logger, ram_cache=cache)._load_model(config, part)

    return load


def loaded(configs: dict[str, Any], load: Any) -> dict[str, Any]:
    """What our loaders make of each record."""
    import tiny_models
    import torch
    from invokeai.backend.model_manager.taxonomy import SubModelType

    answers: dict[str, Any] = {}
    for name, config in configs.items():
        model = load(config, SubModelType.Transformer)
        dtypes = {str(value.dtype) for value in model.parameters()}
        answers[name] = {"dtypes": sorted(dtypes), "sizes": list(model.config.all_f_patch_size), "runs": _runs(model, config)}
        if name in ("folder", "file", "original"):
            sizes = tuple(model.config.all_f_patch_size)
            expected = tiny_models.tiny_transformer(f_patch_sizes=sizes).state_dict()
            answers[name]["equal"] = model.state_dict().keys() == expected.keys() and all(
                torch.equal(value, expected[key]) for key, value in model.state_dict().items()
            )
        if name.startswith("experimental"):
            answers[name]["static clip embeds like a still"] = _static_difference(model)
    parts = (SubModelType.VAE, SubModelType.TextEncoder, SubModelType.Tokenizer, SubModelType.Scheduler)
    opened = {part.value: load(configs["folder"], part) for part in parts}
    answers["parts"] = {name: [type(part).__name__, str(getattr(part, "dtype", ""))] for name, part in opened.items()}
    try:
        load(configs["file"], SubModelType.VAE)
    except ValueError as error:
        answers["vae of a single file"] = str(error)
    answers["lora"] = _lora(load(configs["folder"], SubModelType.Transformer))
    return answers


def _runs(model: Any, config: Any) -> list[bool]:
    """One forward pass per f_patch_size: is the answer finite and of the input's shape?"""
    import torch

    latents = torch.randn(config.latent_channels, 4, 8, 8)
    caption = torch.randn(5, 32)
    answers = []
    for size in config.f_patch_sizes:
        with torch.no_grad():
            out = model([latents], torch.tensor([0.5]), [caption], patch_size=2, f_patch_size=size, return_dict=False)[0][0]
        answers.append(bool(out.shape == latents.shape and out.isfinite().all()))
    return answers


def _static_difference(model: Any) -> float:
    """Largest difference between a still's tokens and those of the same still four times over."""
    import torch

    token = torch.randn(64)
    one = model.all_x_embedder["2-1"](token)
    four = model.all_x_embedder["2-4"](token.repeat(4))
    return float((one - four).detach().abs().max())


def _lora(transformer: Any) -> dict[str, Any]:
    """A LoRA of base z-image through upstream's loader node onto our transformer."""
    import torch
    from invokeai.app.invocations.model import ModelIdentifierField, TransformerField
    from invokeai.app.invocations.z_image_lora_loader import ZImageLoRALoaderInvocation
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast.torch_module_autocast import (
        apply_custom_layers_to_model,
    )
    from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelType
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions.z_image_lora_conversion_utils import lora_model_from_z_image_state_dict

    lora = ModelIdentifierField(key="l", hash="", name="lora", base=BaseModelType.ZImage, type=ModelType.LoRA)
    main = ModelIdentifierField(key="m", hash="", name="main", base=BaseModelType("z-image-video"), type=ModelType.Main)
    context = SimpleNamespace(models=SimpleNamespace(exists=lambda key: True, get_config=lambda key: SimpleNamespace(name=key)))
    node = ZImageLoRALoaderInvocation(id="n", lora=lora, weight=1.0, transformer=TransformerField(transformer=main, loras=[]))
    output = node.invoke(context)

    # The model cache does this to every module that it hands out.
    apply_custom_layers_to_model(transformer)
    name = "layers.0.attention.to_q"
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    weights = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    patch = lora_model_from_z_image_state_dict(weights)
    weight = transformer.get_submodule(name).weight
    before = weight.detach().clone()
    with LayerPatcher.apply_smart_model_patches(
        model=transformer, patches=[(patch, 1.0)], prefix="lora_transformer-", dtype=torch.float32
    ):
        during = transformer.get_submodule(name)(torch.eye(64)).detach().T
    after = transformer.get_submodule(name).weight.detach()
    bias = transformer.get_submodule(name).bias
    merged = before + up @ down if bias is None else before + up @ down + bias.detach()[:, None]
    return {
        "loras": len(output.transformer.loras),
        "largest difference to merged weights": float((during - merged).abs().max()),
        "largest change": float((during - before).abs().max()),
        "restored": bool(torch.equal(before, after)),
    }


def edited(config: Any, still: Any, root: Path) -> dict[str, Any]:
    """Records of ours through InvokeAI's store, changed as its Edit form changes them; the database stays for other tests."""
    from invokeai.app.services.config.config_default import get_config
    from invokeai.app.services.model_records.model_records_base import ModelRecordChanges
    from invokeai.app.services.model_records.model_records_sql import ModelRecordServiceSQL
    from invokeai.app.services.shared.sqlite.sqlite_util import init_db
    from invokeai.backend.util.logging import InvokeAILogger

    logger = InvokeAILogger.get_logger()
    app_config = get_config()
    app_config._root = root
    store = ModelRecordServiceSQL(db=init_db(config=app_config, logger=logger, image_files=None), logger=logger)  # type: ignore[arg-type]
    store.add_model(config)
    store.add_model(still)
    form = {"config_path": "", "upcast_attention": False, "name": "renamed", "base": "z-image-video", "type": "main"}
    renamed = store.update_model(config.key, ModelRecordChanges(**form), allow_class_change=True)
    turned = store.update_model(still.key, ModelRecordChanges(base="z-image-video"), allow_class_change=True)
    return {
        "database": str(app_config.db_path),
        "renamed": [type(renamed).__name__, renamed.name, renamed.f_patch_sizes, renamed.experimental],
        "image record turned video by hand": [type(turned).__name__, turned.f_patch_sizes, turned.experimental],
        "found by base": [record.name for record in store.search_by_attr(base_model="z-image-video")],
    }


def patched_twice() -> dict[str, Any]:
    """Run every hook again, as a Reload of the node manager does, and compare."""
    from typing import get_args

    from invokeai.backend.model_manager.configs import factory
    from invokeai.backend.model_manager.load import ModelLoaderRegistry
    from invokeai.backend.model_manager.taxonomy import BaseModelType

    from invokeai_video_patches import hooks

    def state() -> list[int]:
        union = get_args(get_args(factory.AnyModelConfig)[0])
        return [len(union), len(ModelLoaderRegistry._registry), len(BaseModelType), id(factory.AnyModelConfig)]

    before = state()
    for name in hooks.HOOKS:
        if name in sys.modules:
            hooks.run(sys.modules[name])
    return {"before": before, "after": state()}


def main(answers_path: Path, folder: Path) -> None:
    """Ask everything and write the answers."""
    import inspect

    import inside_animatediff
    import inside_svd

    root = folder / "root"
    root.mkdir()
    os.environ["INVOKEAI_ROOT"] = str(root)
    sys.argv = sys.argv[:1]
    answers: dict[str, Any] = {"members": members()}
    answers["identified"] = identified(folder)
    configs = answers["identified"].pop("configs")
    load = loaders()
    answers["loaded"] = loaded(configs, load)
    answers["animatediff"] = inside_animatediff.ask(folder / "animatediff", load)
    answers["svd"] = inside_svd.ask(folder / "svd", load)
    from invokeai.backend.model_manager import taxonomy
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    still = ModelConfigFactory.from_model_on_disk(folder / "still").config
    answers["edited"] = edited(configs["folder"], still, root)
    answers["patched twice"] = patched_twice()
    answers["source is readable"] = "class BaseModelType" in inspect.getsource(taxonomy)
    from invokeai_video_nodes import doctor

    answers["doctor"] = [[finding.name, finding.ok, finding.detail] for finding in doctor.examine(None)]
    answers_path.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
