"""What InvokeAI kept for everybody together, per tenant: cache, tensors, zips of pictures, sockets. On the real database and services."""

import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from invokeai.app.invocations.fields import ImageField, LatentsField
from invokeai.app.invocations.primitives import ImageOutput, LatentsInvocation, StringInvocation, StringOutput
from invokeai.app.services.board_image_records.board_image_records_sqlite import SqliteBoardImageRecordStorage
from invokeai.app.services.board_records.board_records_sqlite import SqliteBoardRecordStorage
from invokeai.app.services.bulk_download.bulk_download_common import BulkDownloadTargetException
from invokeai.app.services.client_state_persistence.client_state_persistence_sqlite import ClientStatePersistenceSqlite
from invokeai.app.services.image_records.image_records_common import ImageCategory, ResourceOrigin
from invokeai.app.services.image_records.image_records_sqlite import SqliteImageRecordStorage
from invokeai.app.services.images.images_default import ImageService
from invokeai.app.services.names.names_default import SimpleNameService
from invokeai.app.services.object_serializer.object_serializer_common import ObjectNotFoundError
from invokeai.app.services.object_serializer.object_serializer_disk import ObjectSerializerDisk
from invokeai.app.services.urls.urls_default import LocalUrlService
from invokeai.app.services.video_records.video_records_sqlite import SqliteVideoRecordStorage
from PIL import Image
from saas.patience import PATIENCE_SECONDS
from saas.rows import add_user
from saas.stores import disk_store, moto_server, s3_store

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import TenantContextMissing
from invokeai_saas.storage.errors import StorageUnavailable
from invokeai_saas.storage.files import Files
from invokeai_saas.swaps import bulk_download
from invokeai_saas.swaps.bulk_download import EXPIRES, MAX_PER_USER, TenantBulkDownloads
from invokeai_saas.swaps.image_files import StoredImageFiles
from invokeai_saas.swaps.invocation_cache import TenantInvocationCache
from invokeai_saas.swaps.tensors import TenantObjects


class Heard(SimpleNamespace):
    """InvokeAI's event service as far as a bulk download uses it: what was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def emit(_download_id: str, _item_id: str, item_name: str, *rest: str, user_id: str) -> None:
            self.told.append((name.removeprefix("emit_bulk_download_"), item_name, user_id))

        return emit


@pytest.fixture
def services(database: PostgresDatabase, tmp_path: Path) -> SimpleNamespace:
    made = SimpleNamespace(
        image_files=StoredImageFiles(Files(database, disk_store(tmp_path)), tmp_path / "none"),
        images=ImageService(),
        videos=SimpleNamespace(on_deleted=lambda callback: None),
        image_records=SqliteImageRecordStorage(database),
        video_records=SqliteVideoRecordStorage(database),
        board_records=SqliteBoardRecordStorage(database),
        board_image_records=SqliteBoardImageRecordStorage(database),
        names=SimpleNameService(),
        urls=LocalUrlService(),
        events=Heard(),
        logger=logging.getLogger("test"),
        tensors=TenantObjects[torch.Tensor](ObjectSerializerDisk[torch.Tensor](tmp_path / "tensors", safe_globals=[], ephemeral=True)),
        conditioning=SimpleNamespace(on_deleted=lambda callback: None),
        configuration=SimpleNamespace(image_subfolder_strategy="flat", pil_compress_level=1, node_cache_size=10, multiuser=True),
        invocation_cache=TenantInvocationCache(max_cache_size=10),
        bulk_download=TenantBulkDownloads(disk_store(tmp_path)),
    )
    invoker = SimpleNamespace(services=made)
    for name in ("image_files", "images", "invocation_cache", "bulk_download"):
        getattr(made, name).start(invoker)
    return made


def save_image(services: SimpleNamespace, user_id: str, board_id: str | None = None) -> str:
    with tenancy.as_user(user_id):
        saved = services.images.create(
            Image.new("RGB", (8, 8)), ResourceOrigin.INTERNAL, ImageCategory.GENERAL, user_id=user_id, board_id=board_id
        )
        return str(saved.image_name)


# The cache of node outputs


class Painter:
    """A node of InvokeAI's whose every real run makes a picture, as one would that denoises."""

    def __init__(self, services: SimpleNamespace) -> None:
        self.services = services

    def run(self, user_id: str, prompt: str = "a cat") -> str:
        node = StringInvocation(id=f"{user_id}-node", value=prompt)
        cache = self.services.invocation_cache
        with tenancy.as_user(user_id):
            key = cache.create_key(node)
            output = cache.get(key)
            if output is None:
                name = save_image(self.services, user_id)
                output = ImageOutput(image=ImageField(image_name=name), width=8, height=8)
                cache.save(key, output)
            return str(output.image.image_name)


def test_running_anothers_graph_does_not_give_their_image(services):
    painter = Painter(services)
    anns, bobs = painter.run("ann"), painter.run("bob")

    assert anns != bobs
    assert (painter.run("ann"), painter.run("bob")) == (anns, bobs)


def test_a_nodes_output_comes_from_the_cache_through_invokeais_own_engine(services):
    node = StringInvocation(id="n", value="v")
    with tenancy.as_user("ann"):
        first = node.invoke_internal(context=None, services=services)
        assert node.model_copy(update={"id": "m"}).invoke_internal(context=None, services=services) is first
    with tenancy.as_user("bob"):
        assert node.invoke_internal(context=None, services=services) is not first


def test_a_key_of_somebody_else_neither_reads_nor_writes(services):
    cache, node = services.invocation_cache, StringInvocation(id="n", value="v")
    with tenancy.as_user("ann"):
        key = cache.create_key(node)
        cache.save(key, StringOutput(value="ann's"))
    with tenancy.as_user("bob"):
        found = cache.get(key)
        cache.delete(key)
        cache.save(key, StringOutput(value="bob's"))
    with tenancy.as_user("ann"):
        assert found is None and cache.get(key) is None


def test_nobodys_node_has_no_key(services):
    node = StringInvocation(id="n", value="v")
    with pytest.raises(TenantContextMissing), tenancy.as_system("test"):
        services.invocation_cache.create_key(node)
    with pytest.raises(TenantContextMissing):
        services.invocation_cache.create_key(node)


def test_a_picture_that_was_deleted_by_another_process_is_made_again(services, database):
    painter = Painter(services)
    gone = painter.run("ann")
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("DELETE FROM images WHERE image_name = ?", (gone,))

    assert painter.run("ann") != gone


def test_the_cache_holds_so_many_outputs_of_all_users_together(services):
    painter = Painter(services)
    for number in range(8):
        for user_id in ("ann", "bob"):
            painter.run(user_id, f"prompt {number}")

    assert services.invocation_cache.get_status().size == 10


# Tensors


def test_a_tensor_is_loaded_by_its_owner_and_nobody_else(services):
    with tenancy.as_user("ann"):
        name = services.tensors.save(torch.ones(2))
        assert torch.equal(services.tensors.load(name), torch.ones(2))
    with tenancy.as_user("bob"):
        own = services.tensors.save(torch.zeros(1))
        relabelled = f"{own.partition('.')[0]}.{name.partition('.')[2]}"
        for told in (name, relabelled, name.partition(".")[2], "", "..", f"{name}x", "\ud800.x"):
            with pytest.raises(ObjectNotFoundError):
                services.tensors.load(told)
        with pytest.raises(ObjectNotFoundError):
            services.tensors.delete(name)
    with tenancy.as_user("ann"):
        assert torch.equal(services.tensors.load(name), torch.ones(2))


def test_deleting_a_tensor_takes_it_out_of_the_cache(services):
    with tenancy.as_user("ann"):
        name = services.tensors.save(torch.ones(1))
        node = LatentsInvocation(id="n", latents=LatentsField(latents_name=name))
        services.invocation_cache.save(services.invocation_cache.create_key(node), StringOutput(value=name))
        services.tensors.delete(name)

        assert services.invocation_cache.get(services.invocation_cache.create_key(node)) is None


# Zips of pictures


def make_zip(services: SimpleNamespace, user_id: str, names: list[str], item: str = "") -> str:
    with tenancy.as_user(user_id):
        item = item or services.bulk_download.generate_item_id(None)
    services.bulk_download.handler(names, None, item, user_id)
    return f"{item}.zip"


def test_a_zip_holds_the_owners_pictures_and_is_theirs_alone(services):
    picture = save_image(services, "ann")
    name = make_zip(services, "ann", [picture])
    with tenancy.as_user("ann"):
        assert services.bulk_download.get_owner(name) == "ann"
        assert zipfile.ZipFile(services.bulk_download.get_path(name)).namelist() == [f"general/{picture}"]
    with tenancy.as_user("bob"):
        assert services.bulk_download.get_owner(name) is None
        with pytest.raises(BulkDownloadTargetException):
            services.bulk_download.get_path(name)


def test_a_zip_stays_after_an_answer_that_nobody_may_have_received(services):
    name = make_zip(services, "ann", [save_image(services, "ann")])
    with tenancy.as_user("ann"):
        services.bulk_download.delete(name)

        assert Path(services.bulk_download.get_path(name)).is_file()


def test_a_picture_that_is_named_twice_is_in_it_once(services):
    picture, other = save_image(services, "ann"), save_image(services, "ann")
    name = make_zip(services, "ann", [picture, other, picture])
    with tenancy.as_user("ann"):
        names = zipfile.ZipFile(services.bulk_download.get_path(name)).namelist()

    assert names == [f"general/{picture}", f"general/{other}"]


def test_pictures_that_are_too_much_for_a_zip_make_none(services, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk_download, "MOST_GIGABYTES", 0)
    make_zip(services, "ann", [save_image(services, "ann")])

    assert [what for what, _name, _user_id in services.events.told] == ["started", "error"]
    assert list(tmp_path.rglob("*.zip")) == []


def test_somebody_makes_one_zip_at_a_time(services):
    """The first one waits in its store until the second was refused."""
    arriving, go_on, store = threading.Event(), threading.Event(), services.bulk_download._store

    def put_file(*args, **kwargs):
        arriving.set()
        assert go_on.wait(PATIENCE_SECONDS)
        type(store).put_file(store, *args, **kwargs)

    store.put_file = put_file
    ann, bob = save_image(services, "ann"), save_image(services, "bob")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(make_zip, services, "ann", [ann])
        assert arriving.wait(PATIENCE_SECONDS)
        with tenancy.as_user("ann"), pytest.raises(bulk_download.OneZipAtATime):
            services.bulk_download.generate_item_id(None)
        make_zip(services, "ann", [ann], "second")
        arriving.clear()
        bobs = pool.submit(make_zip, services, "bob", [bob])
        assert arriving.wait(PATIENCE_SECONDS)
        go_on.set()
        made, theirs = first.result(), bobs.result()
    again = make_zip(services, "ann", [ann])
    with tenancy.as_user("ann"):
        found = [services.bulk_download.get_owner(name) is not None for name in (made, "second.zip", again)]

    assert found == [True, False, True]
    assert ("complete", theirs, "bob") in services.events.told
    assert ("error", "second.zip", "ann") in services.events.told


@pytest.mark.parametrize("board", ["", "never-there"])
def test_a_zip_of_a_board_that_is_not_there_is_refused_in_the_request(services, board):
    with tenancy.as_user("ann"), pytest.raises(bulk_download.NoSuchBoard):
        services.bulk_download.generate_item_id(board)


def test_foreign_pictures_and_boards_are_not_zipped(services):
    picture = save_image(services, "ann")
    with tenancy.as_user("ann"):
        board = services.board_records.save("Ann's", "ann").board_id
        services.board_image_records.add_image_to_board(board, picture)
    make_zip(services, "bob", [picture], "stolen")
    services.bulk_download.handler(None, board, "board", "bob")
    services.bulk_download.handler(None, "none", "loose", "bob")

    with tenancy.as_user("bob"):
        assert services.bulk_download.get_owner("stolen.zip") is None
        assert services.events.told[1][0] == "error"
        for name in ("board.zip", "loose.zip"):
            found = services.bulk_download.get_owner(name)
            assert found is None or zipfile.ZipFile(services.bulk_download.get_path(name)).namelist() == []
    assert {user_id for _what, _name, user_id in services.events.told} == {"bob"}


@pytest.mark.parametrize("name", ["../x.zip", "a/b.zip", "..", ".zip", "x.txt", "\0.zip", "x" * 300 + ".zip", ""])
def test_a_name_with_tricks_finds_nothing(name, services):
    with tenancy.as_user("ann"):
        assert services.bulk_download.get_owner(name) is None
        with pytest.raises(BulkDownloadTargetException):
            services.bulk_download.get_path(name)


def test_a_zip_is_not_served_after_an_hour_and_then_swept(services):
    name = make_zip(services, "ann", [save_image(services, "ann")])
    with tenancy.as_user("ann"):
        path = Path(services.bulk_download.get_path(name))
        # What a file manager or a network disk leaves is no zip, and keeps none from being swept.
        odd = path.with_name(".nfs0001.zip")
        odd.touch()
        for each in (path, odd):
            os.utime(each, (time.time() - EXPIRES.total_seconds() - 1,) * 2)
        assert services.bulk_download.get_owner(name) is None
    fresh = make_zip(services, "bob", [save_image(services, "bob")])
    before = path.exists()
    bulk_download.forget_expired(services.bulk_download._store)

    assert (before, path.exists(), odd.exists()) == (True, False, True)
    with tenancy.as_user("bob"):
        assert services.bulk_download.get_owner(fresh) == "bob"


def test_a_user_has_so_many_zips_at_a_time_and_none_after_leaving(services, tmp_path):
    picture = save_image(services, "ann")
    names = [make_zip(services, "ann", [picture]) for _ in range(MAX_PER_USER + 2)]
    with tenancy.as_user("ann"):
        kept = [name for name in names if services.bulk_download.get_owner(name)]
    services.bulk_download.forget("ann")

    assert len(kept) == MAX_PER_USER and names[-1] in kept
    assert list(tmp_path.rglob("*.zip")) == []


def test_a_server_of_another_host_serves_the_zip(services, tmp_path):
    picture = save_image(services, "ann")
    with moto_server() as (url, _):
        here, there = (TenantBulkDownloads(s3_store(url, tmp_path / host)) for host in ("here", "there"))
        services.bulk_download = here
        here.start(SimpleNamespace(services=services))
        name = make_zip(services, "ann", [picture])
        with tenancy.as_user("bob"):
            assert there.get_owner(name) is None
        with tenancy.as_user("ann"):
            assert there.get_owner(name) == "ann"
            assert zipfile.ZipFile(there.get_path(name)).namelist() == [f"general/{picture}"]


def test_a_store_that_is_away_fails_the_zip_and_says_so(services, tmp_path):
    picture = save_image(services, "ann")
    services.bulk_download = TenantBulkDownloads(s3_store("http://127.0.0.1:9", tmp_path / "away"))
    services.bulk_download.start(SimpleNamespace(services=services))
    with pytest.raises(StorageUnavailable):
        make_zip(services, "ann", [picture])
    services.bulk_download.forget("ann")

    assert [what for what, _name, _user_id in services.events.told] == ["started", "error"]


def test_a_board_with_a_long_name_is_zipped(services):
    picture = save_image(services, "ann")
    with tenancy.as_user("ann"):
        board = services.board_records.save("日" * 200, "ann").board_id
        services.board_image_records.add_image_to_board(board, picture)
        item = services.bulk_download.generate_item_id(board)
    services.bulk_download.handler(None, board, item, "ann")

    assert [what for what, _name, _user_id in services.events.told] == ["started", "complete"]


# What the interface keeps for a user


def test_client_state_is_each_users_own(database):
    state = ClientStatePersistenceSqlite(database)
    add_user(database, "ann")
    with tenancy.as_user("ann"):
        state.set_by_key("ann", "key", "ann's")
    with tenancy.as_user("bob"):
        assert state.get_by_key("ann", "key") is None
        assert state.get_keys_by_prefix("ann", "") == []
        state.delete("ann")
    with tenancy.as_user("ann"):
        assert state.get_by_key("ann", "key") == "ann's"
