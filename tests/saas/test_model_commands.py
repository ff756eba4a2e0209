"""`invokeai-saas models …`: what is installed goes into the bucket, once; and which models a worker may claim jobs for."""

import json
import shutil

import pytest
from saas.people import rows
from saas.stores import disk_store

from invokeai_saas.cli import main
from invokeai_saas.settings import load_settings
from invokeai_saas.workers import model_store
from invokeai_saas.workers.model_store import models_folder, open_model_files, usable_keys

INSTALL = "INSERT INTO models (id, config) VALUES (%s, %s)"
OTHERS = {"hash": "blake3:0", "type": "main", "source": "x", "source_type": "path", "file_size": 1, "description": ""}


@pytest.fixture
def settings(database, dsn, tmp_path, monkeypatch):
    """A server's settings with three installed models: one here, one nowhere, one of a provider."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///?{dsn.replace(' ', '&')}")
    monkeypatch.setenv("SAAS_DATA_DIR", str(tmp_path))
    for variable in ("S3_BUCKET", "SAAS_INVOKEAI_ROOT", "SAAS_MODEL_CACHE_GB"):
        monkeypatch.delenv(variable, raising=False)
    for key, base, path in (("here", "sd-1", "here/model.safetensors"), ("gone", "sdxl", "gone"), ("provider", "external", "x")):
        config = {"name": key.title(), "base": base, "path": path, "format": "checkpoint", **OTHERS}
        rows(database, INSTALL, key, json.dumps(config))
    made = load_settings()
    (models_folder(made) / "here").mkdir(parents=True)
    (models_folder(made) / "here" / "model.safetensors").write_bytes(b"weights" * 1000)
    return made


def test_a_model_is_pushed_listed_checked_and_fetched_elsewhere(settings, database, tmp_path, capsys):
    codes = [main(["models", "list"]), main(["models", "push", "Here"]), main(["models", "push", "--all"])]
    codes += [main(["models", "check"]), main(["models", "push", "--missing"]), main(["models", "list", "--json"])]
    lines = capsys.readouterr().out.splitlines()
    shutil.rmtree(models_folder(settings))
    files = open_model_files(settings, database, disk_store(tmp_path))
    with files.hold('{"key": "here"}'):
        fetched = (models_folder(settings) / "here" / "model.safetensors").read_bytes()

    assert codes == [0] * 6
    assert lines[:5] == [
        "gone  Gone: nowhere",
        "here  Here: here",
        "here  Here: 1 of 1 files, 0.00 GB pushed",
        "here  Here: 0 of 1 files, 0.00 GB pushed",
        "here  Here: as pushed",
    ]
    assert [(row["key"], row["here"], row["in_bucket"]) for row in json.loads("".join(lines[5:]))["models"]] == [
        ("gone", False, False), ("here", True, True),
    ]  # fmt: skip
    assert fetched == b"weights" * 1000


def test_check_tells_other_bytes(settings, capsys):
    main(["models", "push", "here"])
    (models_folder(settings) / "here" / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)

    assert main(["models", "check", "here"]) == 1
    assert "OTHER BYTES" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["push"], 2, "expected keys or names of models, or --all, or --missing"),
        (["push", "here", "--all"], 2, "or --all"),
        (["push", "her"], 1, "got 'her': here?"),
        (["push", "gone"], 1, "expected the files of Gone"),
    ],
)
def test_what_cannot_be_pushed_is_refused(settings, capsys, arguments, code, words):
    assert main(["models", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_worker_claims_what_it_has_or_can_fetch(settings, database, tmp_path):
    store, folder = disk_store(tmp_path), models_folder(settings)
    before = {where: usable_keys(database, store, where, folder) for where in ("shared", "sync", "local")}
    main(["models", "push", "here"])
    shutil.rmtree(folder)
    after = {where: usable_keys(database, store, where, folder) for where in ("shared", "sync", "local")}

    assert before == {"shared": None, "sync": {"here", "provider"}, "local": {"here", "provider"}}
    assert after == {"shared": None, "sync": {"here", "provider"}, "local": {"provider"}}


def test_the_models_folder_is_invokeais(settings, tmp_path):
    root = tmp_path / "invokeai"
    default = models_folder(settings)
    (root / "invokeai.yaml").write_text("schema_version: 4.0.2\nmodels_dir: /mnt/models\n")

    assert (default, models_folder(settings).as_posix()) == (root / "models", "/mnt/models")


def test_the_limit_of_fetched_models_is_a_setting(settings, database, tmp_path, monkeypatch):
    monkeypatch.setenv("SAAS_MODEL_CACHE_GB", "0.000001")
    store = disk_store(tmp_path)
    main(["models", "push", "here"])
    shutil.rmtree(models_folder(settings))

    with pytest.raises(model_store.SaasError, match="SAAS_MODEL_CACHE_GB"):
        open_model_files(load_settings(), database, store).ensure("here", "here/model.safetensors")


def test_prune_is_a_command(settings, database, capsys):
    main(["models", "push", "here"])
    rows(database, "DELETE FROM models WHERE id = 'here'")
    capsys.readouterr()

    # Young objects stay for a day: a worker may be fetching them.
    assert main(["models", "prune"]) == 0
    assert capsys.readouterr().out == "0 objects removed, 0.00 GB\n"
