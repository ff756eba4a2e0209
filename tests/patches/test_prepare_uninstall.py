"""`prepare-uninstall` on a database with InvokeAI's real schema: what is ours goes, what is not stays."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from invokeai_video_nodes import prepare_uninstall as subject
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_patches import taxonomy

INSERT_ITEM = """
INSERT INTO session_queue (batch_id, queue_id, session_id, session, workflow, status)
VALUES ('b', 'default', ?, ?, ?, 'completed')
"""


def graph(*types: str) -> str:
    return json.dumps({"graph": {"nodes": {name: {"id": name, "type": name} for name in types}}})


@pytest.fixture
def root(answers, tmp_path):
    """A root with two records of ours and one of another pack, queue items of both kinds, and workflows."""
    (tmp_path / "databases").mkdir()
    path = tmp_path / "databases" / "invokeai.db"
    with closing(sqlite3.connect(answers["edited"]["database"])) as source, closing(sqlite3.connect(path)) as connection:
        source.backup(connection)
        other = dict.fromkeys(("key", "hash", "path", "name", "source"), "x")
        record = other | {"base": "flux", "type": "vae", "format": "checkpoint", "source_type": "path", "file_size": 1}
        shipped = [json.loads(path.read_text()) for path in workflow_files()]
        edited = shipped[0] | {"description": "mine now"}
        foreign = shipped[1] | {"name": "Made by the user", "tags": "mine"}
        with connection:
            connection.execute("INSERT INTO models (id, config) VALUES ('other', ?)", (json.dumps(record),))
            connection.execute(INSERT_ITEM, ("ours", graph("z_image_video_denoise"), None))
            connection.execute(INSERT_ITEM, ("in the workflow", graph("add"), graph("video_to_frames")))
            connection.execute(INSERT_ITEM, ("not ours", graph("add", "flux_denoise"), graph("add")))
            for key, workflow in [*((item["name"], item) for item in shipped), ("edited", edited), ("foreign", foreign)]:
                text = json.dumps(workflow | {"meta": {"version": "4.0.0", "category": "user"}, "id": key})
                connection.execute("INSERT INTO workflow_library (workflow_id, workflow) VALUES (?, ?)", (key, text))
    return tmp_path


def contents(root) -> dict[str, list[str]]:
    with closing(sqlite3.connect(root / "databases" / "invokeai.db")) as connection:
        return {
            "items": [row[0] for row in connection.execute("SELECT session_id FROM session_queue ORDER BY item_id")],
            "models": [row[0] for row in connection.execute("SELECT base FROM models ORDER BY base")],
            "workflows": sorted(row[0] for row in connection.execute("SELECT workflow_id FROM workflow_library WHERE category = 'user'")),
        }


def test_without_yes_it_only_shows_what_it_would_do(root, capsys):
    before = contents(root)

    code = subject.prepare_uninstall(root)

    shown = capsys.readouterr().out
    assert (code, contents(root)) == (0, before)
    assert "2 queue items that hold our nodes (they go):" in shown
    assert "(completed): z_image_video_denoise" in shown
    assert "2 model records (they go, the files stay):" in shown
    assert "1 workflows of ours that were edited (they stay):" in shown
    assert "Run this again with --yes" in shown
    assert not list(root.glob("databases/*before-video-uninstall*"))


def test_with_yes_ours_goes_and_everything_else_stays(root, capsys):
    code = subject.prepare_uninstall(root, yes=True)

    assert code == 0
    assert contents(root) == {"items": ["not ours"], "models": ["flux"], "workflows": ["edited", "foreign"]}
    assert "Now remove the pack" in capsys.readouterr().out


def test_a_copy_of_the_database_as_it_was_is_kept(root):
    before = contents(root)

    subject.prepare_uninstall(root, yes=True)

    copies = list(root.glob("databases/invokeai.before-video-uninstall-*.db"))
    assert len(copies) == 1
    shutil.copy(copies[0], root / "databases" / "invokeai.db")
    assert contents(root) == before


def test_a_second_run_finds_nothing(root, capsys):
    subject.prepare_uninstall(root, yes=True)
    capsys.readouterr()

    assert subject.prepare_uninstall(root, yes=True) == 0
    assert "nothing of invokeai-video in it" in capsys.readouterr().out


def test_it_refuses_while_another_process_has_the_database_open(root):
    path = root / "databases" / "invokeai.db"
    hold = (
        f"import sqlite3; c = sqlite3.connect({str(path)!r}); "
        "c.execute('SELECT 1 FROM models').fetchall(); print('open', flush=True); input()"
    )
    before = contents(root)
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"

        with pytest.raises(BadInput, match=r"is in use by .*\(\d+\): stop InvokeAI first"):
            subject.prepare_uninstall(root, yes=True)

        holder.communicate("\n")
    assert contents(root) == before


def test_a_root_without_a_database_is_refused(tmp_path):
    with pytest.raises(BadInput, match="expected an InvokeAI root that has been started once"):
        subject.prepare_uninstall(tmp_path, yes=True)


def test_the_database_is_found_where_the_root_s_settings_say(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "invokeai.db").touch()
    (tmp_path / "invokeai.yaml").write_text("schema_version: 4.0.2\ndb_dir: elsewhere\n")

    assert subject.database_path(tmp_path) == tmp_path / "elsewhere" / "invokeai.db"


def test_it_knows_the_same_types_as_the_patches_and_every_node():
    assert set(subject.OUR_BASES) == set(taxonomy.BASES.values())
    assert set(subject.OUR_MODEL_TYPES) == set(taxonomy.TYPES.values())
    assert set(subject.OUR_FORMATS) == set(taxonomy.FORMATS.values())


@pytest.mark.parametrize(
    ("record", "ours"),
    [
        (("sd-1", "lora", "checkpoint"), True),
        (("sd-1", "controlnet", "sparse_ctrl"), True),
        (("sd-1", "lora", "lycoris"), False),
        (("sd-1", "controlnet", "checkpoint"), False),
    ],
)
def test_motion_loras_and_sparse_controls_are_ours_and_invokeais_own_are_not(record, ours):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE models (id, base, type, name, path, config)")
        connection.execute("CREATE TABLE session_queue (item_id, session_id, status, session, workflow, queue_id, batch_id)")
        connection.execute("CREATE TABLE workflow_library (workflow_id, name, workflow, category)")
        base, kind, model_format = record
        row = ("key", base, kind, "n", "p", json.dumps({"format": model_format}))
        connection.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?)", row)

        assert bool(subject.find_leftovers(connection).models) is ours
    assert subject.our_node_types() >= {"z_image_video_model_loader", "z_image_video_denoise", "z_image_video_decode", "frames_to_video"}
