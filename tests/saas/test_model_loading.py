"""InvokeAI's own loads on a worker: fetched when they are asked for, repaired when they are damaged, and honest about whose fault it is."""

import shutil
from pathlib import Path

import pytest
import torch
from saas.stores import disk_store
from tiny_sd1 import tiny_sd1

from invokeai_saas.swaps.model_loading import UnchargedModelLoads, _at
from invokeai_saas.workers.model_files import ModelCorrupt, ModelFiles, ModelMissing
from invokeai_saas.workers.model_store import Record, push


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """InvokeAI's settings with a root of their own; no engine, which the SaaS's tests could not share a process with."""
    from invokeai.app.services.config.config_default import InvokeAIAppConfig

    made = InvokeAIAppConfig(device="cpu")
    made._root = tmp_path_factory.mktemp("root")
    return made


@pytest.fixture(scope="module")
def installed(configuration):
    """A tiny Stable Diffusion in InvokeAI's models folder: its config as its records have it, and a copy of its files."""
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    folder, kept = configuration.models_path / "the-key", configuration.root_path / "kept"
    tiny_sd1().save_pretrained(folder)
    shutil.copytree(folder, kept)
    config = ModelConfigFactory.from_model_on_disk(folder, {"key": "the-key", "name": "tiny"}).config
    assert config is not None
    config.path = "the-key"
    return config, kept


@pytest.fixture
def target(configuration, installed):
    """The model's place in the models folder, whole before and after."""
    _, kept = installed
    place = configuration.models_path / "the-key"
    restore(place, kept)
    yield place
    restore(place, kept)


def restore(place: Path, kept: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)


@pytest.fixture
def loads(configuration):
    """Our service with an empty cache."""
    from invokeai.backend.model_manager.load.model_cache.model_cache import ModelCache

    cache = ModelCache(1, enable_partial_loading=False, keep_ram_copy_of_weights=True, execution_device="cpu")
    yield UnchargedModelLoads(configuration, cache)
    cache.shutdown()


@pytest.fixture
def bucket(installed, configuration, target, tmp_path, monkeypatch):
    """The model in a bucket, and the service told to fetch."""
    config, _ = installed
    store = disk_store(tmp_path)
    models = configuration.models_path
    push(store, Record(config.key, config.name, config.path), models)
    files = ModelFiles(store, models, records=lambda: {config.key: config.path}, reserve_bytes=0)
    monkeypatch.setattr(UnchargedModelLoads, "model_files", files)
    yield files
    shutil.rmtree(models / ".fetched")


def weights(target: Path) -> Path:
    return next((target / "vae").glob("*.safetensors"))


def load(loads, config):
    from invokeai.backend.model_manager.taxonomy import SubModelType

    with loads.load_model(config, SubModelType.VAE).model_on_device() as (_, vae):
        return sum(float(parameter.sum()) for parameter in vae.parameters())


def test_a_model_that_is_not_here_is_fetched_and_loads(loads, installed, target, bucket):
    config, kept = installed
    shutil.rmtree(target)

    assert load(loads, config) == pytest.approx(float(sum(p.sum() for p in _vae(kept))), rel=1e-4)
    assert list(bucket.fetched()) == [config.key]


def _vae(kept):
    from safetensors.torch import load_file

    return load_file(next((kept / "vae").glob("*.safetensors"))).values()


def test_a_damaged_model_that_was_fetched_is_fetched_again(loads, installed, target, bucket):
    config, _ = installed
    shutil.rmtree(target)
    bucket.ensure(config.key, config.path)
    size = weights(target).stat().st_size
    weights(target).write_bytes(b"\xff" * size)

    assert isinstance(load(loads, config), float)


def test_a_damaged_model_of_the_operators_own_is_said_to_be_damaged(loads, installed, target):
    config, _ = installed
    weights(target).write_bytes(b"\xff" * weights(target).stat().st_size)

    with pytest.raises(ModelCorrupt, match=f"{config.key}.* has other bytes than were installed"):
        load(loads, config)


def test_a_model_without_files_is_said_to_be_missing(loads, installed, target):
    config, _ = installed
    shutil.rmtree(target)

    with pytest.raises(ModelMissing, match=config.key):
        load(loads, config)


def test_whole_files_that_do_not_load_are_not_the_workers_fault(loads, installed, target, monkeypatch):
    from invokeai.backend.model_manager.load.load_default import ModelLoader

    def refuses(*_args, **_kwargs):
        raise OSError("a node asked for something else")

    config, _ = installed
    monkeypatch.setattr(ModelLoader, "load_model", refuses)

    with pytest.raises(OSError, match="something else"):
        load(loads, config)


def test_out_of_memory_is_nobodys_damaged_file(loads, installed, target, monkeypatch):
    from invokeai.backend.model_manager.load.load_default import ModelLoader

    def fills(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config, _ = installed
    weights(target).write_bytes(b"\xff" * 10)
    monkeypatch.setattr(ModelLoader, "load_model", fills)

    with pytest.raises(torch.OutOfMemoryError):
        load(loads, config)


@pytest.mark.parametrize("there", ["/srv/web/models/{key}/vae", "/tmp/arriving/abc/vae"])
def test_parts_that_were_installed_elsewhere_are_looked_for_here(installed, target, there):
    from invokeai.backend.model_manager.configs.base import SubmodelDefinition
    from invokeai.backend.model_manager.taxonomy import ModelType

    config, _ = installed
    part = SubmodelDefinition(path_or_prefix=there.format(key=config.key), model_type=ModelType.VAE)
    moved = _at(config.model_copy(update={"submodels": {"vae": part}}), target)

    assert moved.submodels["vae"].path_or_prefix == str(target / "vae")
