"""What the tests of import-sqlite share: roots that are furnished, our services over what came, and what must be there."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from invokeai.app.services.images.images_default import ImageService
from invokeai.app.services.names.names_default import SimpleNameService
from invokeai.app.services.urls.urls_default import LocalUrlService
from invokeai.app.services.videos.videos_default import VideoService
from saas.people import rows
from saas.stock_root import StockRoot, record_services, start
from saas.stored_rows import objects

from invokeai_saas.accounts import operator
from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.importing import tables
from invokeai_saas.importing.report import Report
from invokeai_saas.importing.run import import_root
from invokeai_saas.storage.files import Files
from invokeai_saas.swaps.image_files import StoredImageFiles
from invokeai_saas.swaps.model_images import StoredModelImages
from invokeai_saas.swaps.style_preset_images import StoredStylePresetImages
from invokeai_saas.swaps.video_files import StoredVideoFiles
from invokeai_saas.swaps.workflow_thumbnails import StoredWorkflowThumbnails

ANN, BOB, BOSS = "ann@example.com", "bob@example.com", "boss@example.com"


def our_services(files: Files, database: PostgresDatabase, tmp_path: Path) -> SimpleNamespace:
    """InvokeAI's services as our server runs them."""
    made = SimpleNamespace(
        image_files=StoredImageFiles(files, tmp_path / "none"),
        video_files=StoredVideoFiles(files),
        workflow_thumbnails=StoredWorkflowThumbnails(files),
        style_preset_image_files=StoredStylePresetImages(files),
        model_images=StoredModelImages(files, tmp_path / "none"),
        images=ImageService(),
        videos=VideoService(),
        names=SimpleNameService(),
        urls=LocalUrlService(),
        logger=logging.getLogger("test"),
        configuration=SimpleNamespace(image_subfolder_strategy="flat", pil_compress_level=1),
        **record_services(database),
    )
    start(made)
    return made


def furnish_one_user(root: Path) -> tuple[Path, SimpleNamespace]:
    """A root of one user with subfolders, a model that is there and one that is not."""
    stock = StockRoot(root, subfolders="date")
    names = stock.furnish("system", 10)
    (root / "models" / "there").mkdir(parents=True)
    (root / "models" / "there" / "model.safetensors").write_bytes(b"model")
    stock.model("there", "there/model.safetensors")
    stock.model("gone", "gone/model.safetensors")
    stock.sql("INSERT INTO model_relationships (model_key_1, model_key_2) VALUES ('gone', 'there')")
    stock.close()
    return root, names


def furnish_users(root: Path) -> tuple[Path, dict[str, str], dict[str, SimpleNamespace]]:
    """A root of an admin and two users, and of the days before them."""
    stock = StockRoot(root)
    users = {email: stock.user(email, admin=email == BOSS) for email in (BOSS, ANN, BOB)}
    names = {email: stock.furnish(user_id, 100 * number) for number, (email, user_id) in enumerate(users.items())}
    names["system"] = stock.furnish("system", 900)
    stock.sql("INSERT INTO shared_boards (board_id, user_id) VALUES (?, ?)", names[ANN].board, users[BOB])
    stock.close()
    return root, users, names


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_file(stored: Path, root: Path, name: str) -> bool:
    """Whether a stored file is, byte for byte, one of that name below the root."""
    return sha256(stored) in {sha256(path) for path in root.rglob(name)}


def demand_library(services: SimpleNamespace, root: Path, names: SimpleNamespace, seed: int, user_id: str) -> None:
    """Everything that furnish() made, seen by its owner through InvokeAI's services."""
    with tenancy.as_user(user_id):
        board = services.board_records.get(names.board)
        starred = services.images.get_dto(names.starred)
        assert (board.board_name, board.cover_image_name, board.user_id) == (f"board {seed}", names.on_board, user_id)
        assert services.board_image_records.get_board_for_image(names.on_board) == names.board
        assert services.board_video_records.get_board_for_video(names.video) == names.board
        assert (starred.starred, starred.board_id) == (True, None)
        assert services.images.get_dto(names.intermediate).is_intermediate
        assert services.images.get_metadata(names.starred).root["positive_prompt"] == f"prompt {seed + 1}"
        assert services.images.get_workflow(names.starred) == '{"w": 1}'
        assert services.videos.get_workflow(names.video) == '{"w": 2}'
        assert services.workflow_records.get(names.workflow).name == f"workflow {seed}"
        assert services.style_preset_records.get(names.preset).name == f"preset {seed}"
        assert services.system_prompt_records.get(names.prompt).name == f"prompt {seed}"
        assert json.loads(services.client_state_persistence.get_by_key(user_id, "params")) == {"seed": seed}
        demand_files(services, root, names)


def demand_files(services: SimpleNamespace, root: Path, names: SimpleNamespace) -> None:
    for name in (names.on_board, names.starred, names.intermediate):
        stem = name.removesuffix(".png")
        assert same_file(services.image_files.get_path(name), root, name)
        assert same_file(services.image_files.get_path(name, thumbnail=True), root, f"{stem}.webp")
    stem = names.video.removesuffix(".mp4")
    assert same_file(services.video_files.get_path(names.video), root, names.video)
    assert same_file(services.video_files.get_path(names.video, thumbnail=True), root, f"{stem}.webp")
    assert same_file(services.video_files._path(names.video, "sidecar"), root, f"{stem}.json")
    assert same_file(services.workflow_thumbnails.get_path(names.workflow), root, f"{names.workflow}.webp")
    assert same_file(services.style_preset_image_files.get_path(names.preset), root, f"{names.preset}.webp")


def content(database) -> dict[str, list]:
    """Every row of every table that an import writes."""
    names = [table.name for table in (tables.MODELS, tables.RELATIONSHIPS, tables.IMAGES, tables.VIDEOS, *tables.PLAIN)]
    names += ["users", "saas_users", "stored_objects", "storage_used", "imported"]
    return {name: sorted(map(str, rows(database, f"SELECT * FROM {name}"))) for name in names}


def user_id_of(accounts, email: str) -> str:
    return next(account.user_id for account in operator.everybody(accounts) if account.email == email)


def demand_whole_with_videos(files: Files, database) -> None:
    """As demand_whole(); keys of models' pictures are shared by all and counted for 'system'."""
    known = rows(database, "SELECT key, bytes, state FROM stored_objects")
    sums = "SELECT user_id, sum(bytes) AS bytes FROM stored_objects GROUP BY user_id ORDER BY user_id"

    assert {row["key"]: row["bytes"] for row in known} == objects(files)
    assert {row["state"] for row in known} == {"stored"}
    assert rows(database, "SELECT user_id, bytes FROM storage_used WHERE bytes > 0 ORDER BY user_id") == rows(database, sums)


def bringing(accounts: Accounts, files: Files) -> Callable[..., Report]:
    """Runs the import; what it says lands in `said` of the report."""

    def brings(root: Path, owner: str | None = None):
        said: list[str] = []
        report = import_root(root, accounts=accounts, files=files, owner_email=owner, say=said.append)
        report.said = said
        return report

    return brings
