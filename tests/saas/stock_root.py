"""InvokeAI roots for the tests of the import, made by InvokeAI's own services on SQLite and disk, as its server would make them."""

import hashlib
import json
import logging
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from invokeai.app.services.board_image_records.board_image_records_sqlite import SqliteBoardImageRecordStorage
from invokeai.app.services.board_records.board_records_common import BoardChanges, BoardVisibility
from invokeai.app.services.board_records.board_records_sqlite import SqliteBoardRecordStorage
from invokeai.app.services.board_video_records.board_video_records_sqlite import SqliteBoardVideoRecordStorage
from invokeai.app.services.client_state_persistence.client_state_persistence_sqlite import ClientStatePersistenceSqlite
from invokeai.app.services.config.config_default import DefaultInvokeAIAppConfig
from invokeai.app.services.image_files.image_files_disk import DiskImageFileStorage
from invokeai.app.services.image_records.image_records_common import ImageCategory, ImageRecordChanges, ResourceOrigin
from invokeai.app.services.image_records.image_records_sqlite import SqliteImageRecordStorage
from invokeai.app.services.images.images_default import ImageService
from invokeai.app.services.model_images.model_images_default import ModelImageFileStorageDisk
from invokeai.app.services.names.names_default import SimpleNameService
from invokeai.app.services.shared.sqlite.sqlite_util import init_db
from invokeai.app.services.style_preset_images.style_preset_images_disk import StylePresetImageFileStorageDisk
from invokeai.app.services.style_preset_records.style_preset_records_common import PresetData, PresetType, StylePresetWithoutId
from invokeai.app.services.style_preset_records.style_preset_records_sqlite import SqliteStylePresetRecordsStorage
from invokeai.app.services.system_prompt_records.system_prompt_records_common import SystemPromptWithoutId
from invokeai.app.services.system_prompt_records.system_prompt_records_sqlite import SqliteSystemPromptRecordsStorage
from invokeai.app.services.urls.urls_default import LocalUrlService
from invokeai.app.services.users.users_common import UserCreateRequest
from invokeai.app.services.users.users_default import UserService
from invokeai.app.services.video_files.video_files_disk import DiskVideoFileStorage
from invokeai.app.services.video_records.video_records_sqlite import SqliteVideoRecordStorage
from invokeai.app.services.videos.videos_default import VideoService
from invokeai.app.services.workflow_records.workflow_records_common import WorkflowCategory, WorkflowMeta, WorkflowWithoutID
from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage
from invokeai.app.services.workflow_thumbnails.workflow_thumbnails_disk import WorkflowThumbnailFileStorageDisk
from PIL import Image

from invokeai_video_nodes.pipelines.mp4 import write_mp4

INTERNAL, GENERAL = ResourceOrigin.INTERNAL, ImageCategory.GENERAL
PASSWORD = "Correct1horse"
SESSION = "INSERT INTO session_queue (queue_id, batch_id, session, session_id, status) VALUES ('default', 'b', '{}', ?, 'completed')"


class StockRoot:
    """A root and InvokeAI's services on it. `close()` before another process reads it."""

    def __init__(self, root: Path, *, subfolders: str = "flat") -> None:
        self.root, logger = root, logging.getLogger("stock")
        config = DefaultInvokeAIAppConfig(image_subfolder_strategy=subfolders)
        config._root = root
        outputs = config.outputs_path
        image_files = DiskImageFileStorage(outputs / "images")
        self.database = init_db(config, logger, image_files)
        self.services = SimpleNamespace(
            configuration=config,
            logger=logger,
            image_files=image_files,
            video_files=DiskVideoFileStorage(outputs / "videos"),
            workflow_thumbnails=WorkflowThumbnailFileStorageDisk(config.workflow_thumbnails_path),
            style_preset_image_files=StylePresetImageFileStorageDisk(config.style_presets_path / "images"),
            model_images=ModelImageFileStorageDisk(config.models_path / "model_images"),
            images=ImageService(),
            videos=VideoService(),
            names=SimpleNameService(),
            urls=LocalUrlService(),
            **record_services(self.database),
        )
        start(self.services)
        self.services.workflow_records.start(SimpleNamespace(services=self.services))
        self.services.style_preset_records.start(SimpleNamespace(services=self.services))

    def close(self) -> None:
        """As a server that stops: SQLite's log is folded into the file."""
        self.database._conn.close()

    def user(self, email: str, *, admin: bool = False) -> str:
        """An account of multi-user mode."""
        request = UserCreateRequest(email=email, display_name=email.partition("@")[0], password=PASSWORD, is_admin=admin)
        return UserService(self.database).create(request).user_id

    def image(self, seed: int, user_id: str = "system", **more: object) -> str:
        """A picture with metadata and workflow."""
        texts = {"metadata": json.dumps({"positive_prompt": f"prompt {seed}"}), "workflow": '{"w": 1}', "graph": '{"g": 1}'}
        arguments = {"image_origin": INTERNAL, "image_category": GENERAL, "user_id": user_id} | texts | more
        return self.services.images.create(image=picture(seed), **arguments).image_name

    def video(self, user_id: str = "system", **more: object) -> str:
        """A clip with a sidecar."""
        source = self.root / f"{uuid.uuid4()}.mp4"
        write_mp4((np.full((64, 64, 3), 20 * n, dtype=np.uint8) for n in range(8)), source, fps=8, width=64, height=64)
        arguments = {"video_origin": INTERNAL, "video_category": GENERAL, "user_id": user_id, "workflow": '{"w": 2}'} | more
        return self.services.videos.create(source, 64, 64, 1.0, 8.0, **arguments).video_name

    def workflow(self, name: str, user_id: str = "system") -> str:
        """A workflow with a picture."""
        meta = WorkflowMeta(version="1.0.0", category=WorkflowCategory.User)
        texts = dict.fromkeys(("author", "description", "version", "contact", "tags", "notes"), "")
        workflow = WorkflowWithoutID(name=name, **texts, exposedFields=[], meta=meta, nodes=[], edges=[])
        workflow_id = self.services.workflow_records.create(workflow, user_id=user_id).workflow_id
        self.services.workflow_thumbnails.save(workflow_id, picture(7))
        return workflow_id

    def preset(self, name: str, user_id: str = "system") -> str:
        """A style preset with a picture."""
        data = PresetData(positive_prompt="p", negative_prompt="n")
        preset = StylePresetWithoutId(name=name, preset_data=data, type=PresetType.User)
        preset_id = self.services.style_preset_records.create(preset, user_id=user_id).id
        self.services.style_preset_image_files.save(preset_id, picture(8))
        return preset_id

    def model(self, key: str, path: str) -> None:
        """A record with a cover, its path relative to the models folder."""
        fields = ("name", "base", "type", "format", "hash", "source", "source_type")
        config = json.dumps(dict.fromkeys(fields, "m") | {"name": key, "path": path, "file_size": 5})
        self.sql("INSERT INTO models (id, config) VALUES (?, ?)", key, config)
        self.services.model_images.save(picture(9), key)

    def sql(self, statement: str, *values: object) -> None:
        """A change that no service makes this simply."""
        with self.database.transaction() as cursor:
            cursor.execute(statement, values)

    def furnish(self, user_id: str, seed: int) -> SimpleNamespace:
        """A small library: board with cover, picture, video; loose, starred, intermediate pictures; workflow, preset, prompt, state."""
        records = self.services
        board = records.board_records.save(f"board {seed}", user_id).board_id
        names = SimpleNamespace(
            board=board,
            on_board=self.image(seed, user_id, board_id=board),
            starred=self.image(seed + 1, user_id),
            intermediate=self.image(seed + 2, user_id, is_intermediate=True),
            video=self.video(user_id, board_id=board),
            workflow=self.workflow(f"workflow {seed}", user_id),
            preset=self.preset(f"preset {seed}", user_id),
            prompt=records.system_prompt_records.create(SystemPromptWithoutId(name=f"prompt {seed}", content="c"), user_id).id,
        )
        visible = BoardChanges(cover_image_name=names.on_board, board_visibility=BoardVisibility.Shared)
        records.board_records.update(board, visible)
        records.image_records.update(names.starred, ImageRecordChanges(starred=True))
        records.client_state_persistence.set_by_key(user_id, "params", json.dumps({"seed": seed}))
        self.sql(SESSION, str(uuid.uuid4()))
        return names


def record_services(database: object) -> dict[str, object]:
    """InvokeAI's record services on either database."""
    return {
        "image_records": SqliteImageRecordStorage(database),
        "video_records": SqliteVideoRecordStorage(database),
        "board_records": SqliteBoardRecordStorage(database),
        "board_image_records": SqliteBoardImageRecordStorage(database),
        "board_video_records": SqliteBoardVideoRecordStorage(database),
        "workflow_records": SqliteWorkflowRecordsStorage(database),
        "style_preset_records": SqliteStylePresetRecordsStorage(database),
        "system_prompt_records": SqliteSystemPromptRecordsStorage(database),
        "client_state_persistence": ClientStatePersistenceSqlite(database),
    }


def start(services: SimpleNamespace) -> None:
    """What InvokeAI's invoker does with those that need the others."""
    invoker = SimpleNamespace(services=services)
    for name in ("image_files", "video_files", "workflow_thumbnails", "style_preset_image_files", "model_images", "images", "videos"):
        getattr(services, name).start(invoker)


def picture(seed: int) -> Image.Image:
    """Noise of 80 by 60 pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def fingerprint(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a root."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def change_database(root: Path, *statements: str) -> None:
    """As a server of tomorrow, or a hand, would."""
    with closing(sqlite3.connect(root / "databases" / "invokeai.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)
