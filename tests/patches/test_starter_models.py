"""The starter models' rows, without network: their form, and that every bundle can make a video."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.models_page import PAGE, page
from invokeai_video_patches.starter_models import package_folder
from invokeai_video_patches.starter_rows import (
    BUNDLES,
    NOT_LICENSED_IN,
    ROWS,
    TENCENT,
    UPSTREAM_MEMBERS,
    Row,
    by_name,
    full_description,
    size_text,
)

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

NAMES = [row.name for row in ROWS]
REMOTE = [row.name for row in ROWS if not row.in_package]
TENCENTS = [row.name for row in ROWS if row.licence == TENCENT]
FAMILIES = {"z-image-video", "hunyuan-video", "sd-1", "svd"}
KINDS = {
    ("main", "diffusers"),
    ("main", "checkpoint"),
    ("main", "gguf_quantized"),
    ("video_vae", "diffusers"),
    ("video_text_encoders", "diffusers"),
    ("motion_module", "diffusers"),
    ("lora", "checkpoint"),
    ("lora", "lycoris"),
    ("controlnet", "sparse_ctrl"),
}
EVERYTHING = {"transformer", "vae", "encoders"}


def parts(row: Row) -> set[str]:
    """What of a video model a row brings; a motion module brings the motion to a main model of InvokeAI's own."""
    if row.type != "main":
        return {"video_vae": {"vae"}, "video_text_encoders": {"encoders"}, "motion_module": {"motion"}}.get(row.type, set())
    return {"transformer"} if row.base == "hunyuan-video" and row.format != "diffusers" else EVERYTHING


def makes_a_video(rows: list[Row], upstream: tuple[str, ...] = ()) -> bool:
    """Whether these rows, installed alone, hold every part of a model of one family; `upstream`: sources of InvokeAI's own beside them."""
    brought = {base: set().union(*(parts(row) for row in rows if row.base == base)) for base in {row.base for row in rows}}
    return EVERYTHING in brought.values() or ("motion" in brought.get("sd-1", ()) and "Lykon/dreamshaper-8" in upstream)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_it_is_and_what_it_costs(name: str) -> None:
    row = by_name()[name]

    assert row.base in FAMILIES
    assert (row.type, row.format) in KINDS
    assert 0 < row.weights_gb <= row.size_gb < 100
    assert row.card_gb == 0 or row.card_gb > row.weights_gb
    assert row.licence in NOT_LICENSED_IN
    assert row.description.endswith((".", '."'))


def test_no_two_rows_share_a_name_or_a_source() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len({row.source for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_needs_only_rows_that_exist_and_bring_what_it_lacks(name: str) -> None:
    row = by_name()[name]

    needed = [by_name()[other] for other in row.dependencies]

    assert name not in row.dependencies
    assert {other.base for other in needed} <= {row.base}
    if row.type == "main":
        assert makes_a_video([row, *needed])
    assert all(not other.dependencies for other in needed), "the page installs one level of dependencies"


@pytest.mark.parametrize("name", TENCENTS)
def test_a_gated_territory_stands_in_the_text_that_the_page_shows(name: str) -> None:
    shown = full_description(by_name()[name])

    assert TENCENT in shown
    assert "does not apply in the European Union, the United Kingdom and South Korea" in shown
    assert size_text(by_name()[name].size_gb) in shown


@pytest.mark.parametrize("key", list(BUNDLES))
def test_a_bundle_alone_makes_a_video(key: str) -> None:
    members = [row for row in ROWS if key in row.bundles]

    assert makes_a_video(members, UPSTREAM_MEMBERS.get(key, ()))
    for row in members:
        assert set(row.dependencies) <= {member.name for member in members}, "one click brings everything"
        assert row.card_gb <= int((re.search(r"(\d+) GB", BUNDLES[key]) or ["", "0"])[1])


def test_every_bundle_that_a_row_names_exists() -> None:
    assert {key for row in ROWS for key in row.bundles} == set(BUNDLES)


@pytest.mark.parametrize(
    "rows",
    [
        ["HunyuanVideo Text to Video (fp8)"],
        ["HunyuanVideo VAE", "HunyuanVideo Text Encoders"],
        ["HunyuanVideo Text to Video (fp8)", "HunyuanVideo VAE"],
        ["HunyuanVideo Text to Video (fp8)", "HunyuanVideo Text Encoders"],
        ["AnimateDiff Motion Module v3"],
    ],
)
def test_the_bundle_rule_bites(rows: list[str]) -> None:
    assert not makes_a_video([by_name()[name] for name in rows])


def test_the_sizes_of_what_ships_in_the_package_are_those_on_disk() -> None:
    for row in ROWS:
        if row.in_package:
            size = sum(path.stat().st_size for path in (package_folder() / row.source).rglob("*") if path.is_file())
            assert row.size_gb == pytest.approx(size / 1e9, rel=0.1)


def test_the_page_of_models_is_what_the_rows_make_of_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.models_page"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_models_names_every_row_with_its_licence_and_source(name: str) -> None:
    row = by_name()[name]
    line = next(line for line in page().splitlines() if line.startswith(f"| *{name}* |"))

    assert row.description in line
    assert row.licence in line
    assert row.source in line or row.in_package


@pytest.fixture(scope="module")
def listed(engine: Engine) -> dict[str, Any]:
    """InvokeAI's own starter models with ours, under their names."""
    from invokeai.backend.model_manager.starter_models import STARTER_MODELS

    return {model.name: model for model in STARTER_MODELS}


@pytest.mark.parametrize("name", REMOTE)
def test_invokeai_s_own_parser_reads_every_source_back(name: str, engine: Engine) -> None:
    row = by_name()[name]

    source = engine.services.model_manager.install._guess_source(row.source)

    assert source.type == ("url" if "://" in row.source else "hf")
    # The page tells what is installed by comparing a record's source with the row's.
    assert str(source) == row.source
    assert row.format != "gguf_quantized" or source.type == "url", "of a hub id InvokeAI downloads no .gguf"


@pytest.mark.parametrize("name", REMOTE)
def test_invokeai_lists_every_row_with_its_dependencies(name: str, listed: dict[str, Any]) -> None:
    row, model = by_name()[name], listed[name]

    assert (model.base.value, model.type.value, model.format.value) == (row.base, row.type, row.format)
    assert model.description == full_description(row)
    assert [(other.name, other.source) for other in model.dependencies or []] == [
        (other, by_name()[other].source) for other in row.dependencies
    ]


@pytest.mark.parametrize("key", list(BUNDLES))
def test_invokeai_lists_every_bundle_with_its_members(key: str, engine: Engine) -> None:
    from invokeai.backend.model_manager.starter_models import STARTER_BUNDLES

    ours = {row.source for row in ROWS if key in row.bundles and not row.in_package}
    in_package = sum(row.in_package for row in ROWS if key in row.bundles)
    listed = {model.source for model in STARTER_BUNDLES[key].models}

    assert STARTER_BUNDLES[key].name == BUNDLES[key]
    assert listed >= ours | set(UPSTREAM_MEMBERS.get(key, ()))
    assert len(listed) == len(ours) + in_package + len(UPSTREAM_MEMBERS.get(key, ()))


def test_a_single_file_of_a_hub_id_is_downloaded_alone(engine: Engine) -> None:
    from invokeai.backend.model_manager.util.select_hf_files import filter_files

    row = by_name()["HunyuanVideo Text to Video (fp8)"]
    source = engine.services.model_manager.install._guess_source(row.source)
    files = [Path("HunyuanVideo_comfy") / name for name in (source.subfolder, "hunyuan_video_vae_bf16.safetensors", "README.md")]

    assert filter_files(files, source.variant, subfolder=source.subfolder) == [files[0]]


MOTION_MODULES = {row.name: row for row in ROWS if row.type == "motion_module"}


@pytest.mark.parametrize("name", MOTION_MODULES)
def test_a_motion_module_is_installed_as_the_row_says_from_what_invokeai_downloads(name: str, engine: Engine, tmp_path: Path) -> None:
    from tiny_animatediff_files import tiny_adapter

    row, version = MOTION_MODULES[name], name.rsplit(" ", 1)[1] if name[-2] == "v" else "animatelcm"
    tiny_adapter(version).save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "AnimateLCM_sd15_t2v.ckpt").write_bytes(b"the original file, which is not downloaded too")

    folder = downloaded(engine, row.source, tmp_path / "repository", tmp_path / "downloads")
    record = engine.services.model_manager.store.get_model(engine.install(folder, {"source": row.source}))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)
    assert record.version == version
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_a_motion_lora_is_installed_as_the_row_says(engine: Engine, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from tiny_animatediff_files import motion_lora

    row = by_name()["AnimateDiff Zoom In"]
    save_file(motion_lora("diffusers"), tmp_path / row.source.partition("::")[2])

    record = engine.services.model_manager.store.get_model(engine.install(tmp_path / row.source.partition("::")[2]))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)


def test_the_lora_of_animatelcm_is_installed_as_the_row_says(engine: Engine, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    row, name = by_name()["AnimateLCM LoRA"], "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    factors = {
        f"{name}.lora_down.weight": torch.zeros(4, 768),
        f"{name}.lora_up.weight": torch.zeros(320, 4),
        f"{name}.alpha": torch.tensor(4.0),
    }
    save_file(factors, tmp_path / "AnimateLCM_sd15_t2v_lora.safetensors")

    record = engine.services.model_manager.store.get_model(engine.install(tmp_path / "AnimateLCM_sd15_t2v_lora.safetensors"))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)


@pytest.mark.parametrize("name", ["AnimateDiff SparseCtrl RGB", "AnimateDiff SparseCtrl Scribble"])
def test_a_sparse_control_is_installed_as_the_row_says(name: str, engine: Engine, tmp_path: Path) -> None:
    from tiny_animatediff_files import tiny_sparse_control

    row = by_name()[name]
    tiny_sparse_control(reads_latents=name.endswith("RGB")).save_pretrained(tmp_path / "repository")

    folder = downloaded(engine, row.source, tmp_path / "repository", tmp_path / "downloads")
    record = engine.services.model_manager.store.get_model(engine.install(folder))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)


@pytest.mark.parametrize(("name", "frames"), [("Stable Video Diffusion", 14), ("Stable Video Diffusion XT", 25)])
def test_stable_video_diffusion_is_installed_as_the_row_says(name: str, frames: int, engine: Engine, tmp_path: Path) -> None:
    from tiny_svd import tiny_svd

    row, repository = by_name()[name], tmp_path / "repository"
    tiny_svd(num_frames=frames).save_pretrained(repository)
    (repository / "svd_xt.safetensors").write_bytes(b"the original file, which is not downloaded too")

    folder = downloaded(engine, row.source, repository, tmp_path / "downloads")
    record = engine.services.model_manager.store.get_model(engine.install(folder))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)
    assert not (folder / "svd_xt.safetensors").exists()


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.base == "svd"])
def test_a_model_that_wants_an_access_token_says_so(name: str) -> None:
    assert "access token" in full_description(by_name()[name])


@pytest.mark.parametrize("name", ["HunyuanVideo VAE", "HunyuanVideo Text Encoders"])
def test_what_invokeai_downloads_of_a_complete_repository_is_installed_as_the_row_says(name: str, engine: Engine, tmp_path: Path) -> None:
    from tiny_hunyuan import tiny_text_to_video

    row, whole = by_name()[name], tmp_path / "HunyuanVideo"
    tiny_text_to_video().save_pretrained(whole)

    folder = downloaded(engine, row.source, whole, tmp_path / "downloads")
    record = engine.services.model_manager.store.get_model(engine.install(folder))

    assert (record.base.value, record.type.value, record.format.value) == (row.base, row.type, row.format)
    assert not (folder / "model_index.json").exists() and not (folder / "transformer").exists()
    if row.type == "video_text_encoders":
        parts = row.source.partition("::")[2].split("+")
        assert {path.name for path in folder.iterdir()} == set(parts)


def downloaded(engine: Engine, source: str, repository: Path, where: Path) -> Path:
    """The folder that InvokeAI's installer would make of a source, with the files of a local `repository`."""
    from invokeai.backend.model_manager.metadata.metadata_base import RemoteModelFile
    from invokeai.backend.model_manager.util.select_hf_files import filter_files

    installer = engine.services.model_manager.install
    wanted = installer._guess_source(source).subfolders
    one, several = (wanted[0], None) if len(wanted) == 1 else (None, wanted)
    listed = [path.relative_to(repository.parent) for path in repository.rglob("*") if path.is_file()]
    chosen = filter_files(listed, installer._guess_variant(), subfolder=one, subfolders=several)
    remote = [RemoteModelFile(url=f"http://localhost/{number}", path=path, size=1) for number, path in enumerate(chosen)]
    job = installer._multifile_download(remote, dest=where, subfolder=one, subfolders=several, submit_job=False)
    for part in job.download_parts:
        target = part.dest
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository.parent / chosen[int(str(part.source).rsplit("/", 1)[1])], target)
    (folder,) = where.iterdir()
    return folder


def test_a_folder_is_installed_though_its_own_config_json_is_broken_as_in_the_public_repository(engine: Engine, tmp_path: Path) -> None:
    from tiny_hunyuan import tiny_text_to_video

    tiny_text_to_video().save_pretrained(tmp_path / "hunyuan")
    (tmp_path / "hunyuan" / "config.json").write_text('{\n  "model_type": "hunyuan-video",\n}\n')

    record = engine.services.model_manager.store.get_model(engine.install(tmp_path / "hunyuan"))

    assert (record.base.value, record.type.value, record.format.value) == ("hunyuan-video", "main", "diffusers")
