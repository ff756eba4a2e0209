"""Headers of weight files: shapes without tensors, and files that end too early."""

import json
import struct

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from invokeai_video_patches import weight_files


@pytest.fixture(scope="module")
def single_file(tmp_path_factory):
    return tiny_models.make_tiny_single_file(tmp_path_factory.mktemp("files") / "tiny.safetensors")


def test_shapes_equal_those_of_the_loaded_tensors(single_file):
    header = weight_files.read_safetensors_header(single_file)

    assert header.shapes == {name: tuple(value.shape) for name, value in load_file(single_file).items()}
    assert header.problem is None
    assert header.config()["dim"] == 64


def test_gguf_shapes_are_row_major_as_in_torch(tmp_path):
    path = tiny_models.make_tiny_gguf(tmp_path / "tiny.gguf")

    header = weight_files.read_gguf_header(path)

    expected = tiny_models.original_keys(tiny_models.tiny_transformer().state_dict())
    assert header.shapes == {name: tuple(value.shape) for name, value in expected.items()}
    assert header.config()["all_f_patch_size"] == [1, 2, 4]


@pytest.mark.parametrize("missing_bytes", [1, 1000, 100_000])
def test_a_file_that_ends_too_early_says_how_many_bytes_were_expected(single_file, tmp_path, missing_bytes):
    whole = single_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[:-missing_bytes])

    problem = weight_files.read_safetensors_header(path).problem

    sizes = f"expected {len(whole)} bytes, got {len(whole) - missing_bytes}"
    assert problem == f"cut.safetensors is truncated: {sizes}; copy or download it again"


def test_a_file_that_ends_inside_its_header_gives_the_names_that_could_be_read(single_file, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(single_file.read_bytes()[:3000])

    with pytest.raises(weight_files.BrokenFile, match=r"truncated: expected at least \d+ bytes, got 3000") as caught:
        weight_files.read_safetensors_header(path)

    assert "all_" in caught.value.header_text


def test_a_truncated_gguf_says_so(tmp_path):
    path = tiny_models.make_tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(weight_files.BrokenFile, match="tiny.gguf is truncated"):
        weight_files.read_gguf_header(path)


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 1 << 60) + b"{}", b"\x00" * 64])
def test_other_files_are_not_called_truncated(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="is no safetensors file") as caught:
        weight_files.read_safetensors_header(path)

    assert not isinstance(caught.value, weight_files.BrokenFile)


def test_a_missing_shard_is_named(tmp_path):
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    problem = weight_files.check_safetensors_folder(folder)

    assert problem == "transformer/ lacks model-2.safetensors of the 2 files that model.safetensors.index.json lists"
