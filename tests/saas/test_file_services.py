"""InvokeAI's own image, video and picture services over our files: as on its disk, for the owner; nothing for anybody else."""

import io
import json
import logging
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from invokeai.app.services.board_image_records.board_image_records_sqlite import SqliteBoardImageRecordStorage
from invokeai.app.services.board_records.board_records_sqlite import SqliteBoardRecordStorage
from invokeai.app.services.board_video_records.board_video_records_sqlite import SqliteBoardVideoRecordStorage
from invokeai.app.services.image_files.image_files_common import (
    ImageFileDeleteException,
    ImageFileNotFoundException,
    ImageFileSaveException,
)
from invokeai.app.services.image_files.image_files_disk import DiskImageFileStorage
from invokeai.app.services.image_records.image_records_common import ImageCategory, ImageRecordNotFoundException, ResourceOrigin
from invokeai.app.services.image_records.image_records_sqlite import SqliteImageRecordStorage
from invokeai.app.services.images.images_default import ImageService
from invokeai.app.services.model_images.model_images_common import ModelImageFileDeleteException, ModelImageFileNotFoundException
from invokeai.app.services.names.names_default import SimpleNameService
from invokeai.app.services.style_preset_records.style_preset_records_common import (
    PresetData,
    PresetType,
    StylePresetNotFoundError,
    StylePresetWithoutId,
)
from invokeai.app.services.style_preset_records.style_preset_records_sqlite import SqliteStylePresetRecordsStorage
from invokeai.app.services.urls.urls_default import LocalUrlService
from invokeai.app.services.video_files.video_files_common import (
    VideoFileDeleteException,
    VideoFileNotFoundException,
    VideoFileSaveException,
)
from invokeai.app.services.video_records.video_records_sqlite import SqliteVideoRecordStorage
from invokeai.app.services.videos.videos_default import VideoService
from invokeai.app.services.workflow_records.workflow_records_common import (
    WorkflowCategory,
    WorkflowMeta,
    WorkflowNotFoundError,
    WorkflowWithoutID,
)
from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage
from invokeai.app.services.workflow_thumbnails.workflow_thumbnails_common import (
    WorkflowThumbnailFileNotFoundException,
    WorkflowThumbnailFileSaveException,
)
from PIL import Image
from saas.stored_rows import demand_whole, objects
from saas.stores import disk_store, moto_server, s3_store

from invokeai_saas.db import tenancy
from invokeai_saas.storage.errors import BadName, StorageUnavailable
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName
from invokeai_saas.swaps.image_files import StoredImageFiles, UnreadablePicture
from invokeai_saas.swaps.model_images import StoredModelImages
from invokeai_saas.swaps.style_preset_images import StoredStylePresetImages
from invokeai_saas.swaps.video_files import StoredVideoFiles
from invokeai_saas.swaps.workflow_thumbnails import StoredWorkflowThumbnails

INTERNAL, GENERAL = ResourceOrigin.INTERNAL, ImageCategory.GENERAL


@pytest.fixture(scope="module")
def moto_url():
    with moto_server() as (url, _):
        yield url


@pytest.fixture(params=["disk", "s3"])
def files(request, database, tmp_path):
    store = disk_store(tmp_path) if request.param == "disk" else s3_store(request.getfixturevalue("moto_url"), tmp_path)
    yield Files(database, store)
    store.delete([found.key for found in store.list("")])


@pytest.fixture
def services(files, database, tmp_path) -> SimpleNamespace:
    made = SimpleNamespace(
        image_files=StoredImageFiles(files, tmp_path / "none"),
        video_files=StoredVideoFiles(files),
        workflow_thumbnails=StoredWorkflowThumbnails(files),
        style_preset_image_files=StoredStylePresetImages(files),
        model_images=StoredModelImages(files, tmp_path / "none"),
        images=ImageService(),
        videos=VideoService(),
        image_records=SqliteImageRecordStorage(database),
        video_records=SqliteVideoRecordStorage(database),
        board_records=SqliteBoardRecordStorage(database),
        board_image_records=SqliteBoardImageRecordStorage(database),
        board_video_records=SqliteBoardVideoRecordStorage(database),
        workflow_records=SqliteWorkflowRecordsStorage(database),
        style_preset_records=SqliteStylePresetRecordsStorage(database),
        names=SimpleNameService(),
        urls=LocalUrlService(),
        logger=logging.getLogger("test"),
        configuration=SimpleNamespace(image_subfolder_strategy="flat", pil_compress_level=1),
    )
    invoker = SimpleNamespace(services=made)
    for name in ("image_files", "video_files", "workflow_thumbnails", "style_preset_image_files", "model_images", "images", "videos"):
        getattr(made, name).start(invoker)
    return made


@pytest.fixture
def ann():
    with tenancy.as_user("ann"):
        yield


def picture(seed: int = 0, size: int = 600) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def create(services: SimpleNamespace, seed: int = 0, **more: object) -> str:
    arguments = {"image_origin": INTERNAL, "image_category": GENERAL, "user_id": "ann"} | more
    return services.images.create(image=picture(seed), **arguments).image_name


def as_bob(call: Callable[[], object]) -> object:
    """Outside of ann's context: a request of somebody else."""

    def asks() -> object:
        with tenancy.as_user("bob"):
            return call()

    # A new thread has no context.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asks).result()


@pytest.mark.usefixtures("ann")
def test_an_image_comes_back_as_upstreams_disk_would_keep_it(services, files, database, tmp_path):
    texts = {"metadata": '{"a": 1}', "workflow": '{"w": "ü"}', "graph": '{"g": 1}'}
    name = create(services, **texts)
    upstream = DiskImageFileStorage(tmp_path / "upstream")
    # Nothing of upstream's journal is asked here.
    upstream._DiskImageFileStorage__invoker = SimpleNamespace(services=services)
    upstream.save(picture(), name, **texts)

    assert services.image_files.get_path(name).read_bytes() == upstream.get_path(name).read_bytes()
    thumbnails = [one.get_path(name, thumbnail=True).read_bytes() for one in (services.image_files, upstream)]
    assert thumbnails[0] == thumbnails[1]
    assert services.images.get_workflow(name) == texts["workflow"]
    assert services.images.get_graph(name) == texts["graph"]
    assert np.array_equal(np.asarray(services.images.get_pil_image(name)), np.asarray(picture()))
    assert services.images.validate_path(services.images.get_path(name))
    demand_whole(files, database)


@pytest.mark.usefixtures("ann")
def test_a_stranger_gets_nothing_not_even_what_is_decoded_already(services):
    name = create(services)
    services.images.get_pil_image(name)
    calls = [
        lambda: services.image_files.get(name), lambda: services.image_files.get_path(name),
        lambda: services.image_files.get_path(name, thumbnail=True), lambda: services.image_files.get_workflow(name),
    ]  # fmt: skip

    for call in calls:
        with pytest.raises(ImageFileNotFoundException):
            as_bob(call)
    with pytest.raises(ImageFileSaveException):
        as_bob(lambda: services.image_files.save(picture(), name))
    with pytest.raises(ImageFileDeleteException):
        as_bob(lambda: services.image_files.delete(name))
    assert services.image_files.get(name).size == (600, 600)


@pytest.mark.usefixtures("ann")
def test_every_way_of_deleting_images_takes_their_objects(services, files, database):
    board = services.board_records.save("board", "ann").board_id
    single, kept = create(services, 1), create(services, 2)
    create(services, 3, is_intermediate=True)
    create(services, 4, board_id=board)
    services.images.delete(single)
    assert services.images.delete_intermediates() == 1
    assert len(services.images.delete_images_on_board(board)[0]) == 1

    assert {key.split("/")[-1].split(".")[0] for key in objects(files)} == {kept.split(".")[0]}
    demand_whole(files, database)
    with pytest.raises(ImageRecordNotFoundException):
        services.images.get_path(single)


@pytest.mark.usefixtures("ann")
def test_an_outage_while_an_image_is_created_leaves_neither_row_nor_file(services, files, database, monkeypatch):
    def away(key: str, data: bytes, content_type: str) -> None:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patch, pytest.raises(ImageFileSaveException, match="away"):
        patch.setattr(files.store, "put", away)
        create(services)

    assert services.image_records.get_many().items == []
    demand_whole(files, database)


@pytest.mark.usefixtures("ann")
@pytest.mark.parametrize("name", ["../a.png", "a/b.png", "..", "", "a\\b.png"])
def test_tricks_in_names_and_subfolders_reach_nothing(services, files, name):
    for service in (services.image_files, services.video_files):
        with pytest.raises(BadName):
            service.get_path(name)
        with pytest.raises(BadName):
            service.stage_delete(name)
    for subfolder in ("..", "/etc", "a//b", "a\\b", "a/../b"):
        with pytest.raises(BadName):
            services.image_files.get_path("a.png", image_subfolder=subfolder)
    with pytest.raises(WorkflowNotFoundError):
        services.workflow_thumbnails.get_path(name)
    with pytest.raises(StylePresetNotFoundError):
        services.style_preset_image_files.get_path(name)
    with pytest.raises(ModelImageFileNotFoundException):
        services.model_images.get_path(name)
    assert services.model_images.get_url(name) is None
    assert objects(files) == {}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from invokeai_video_nodes.pipelines.mp4 import write_mp4

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = (np.full((64, 64, 3), 20 * number, dtype=np.uint8) for number in range(8))
    write_mp4(frames, path, fps=8, width=64, height=64)
    return path


@pytest.fixture
def create_video(services, clip, tmp_path):
    def creates(**more: object) -> str:
        source = tmp_path / f"{uuid.uuid4()}.mp4"
        shutil.copyfile(clip, source)
        arguments = {"video_origin": INTERNAL, "video_category": GENERAL, "user_id": "ann"} | more
        name = services.videos.create(source, 64, 64, 1.0, 8.0, **arguments).video_name
        assert not source.exists()
        return name

    return creates


@pytest.mark.usefixtures("ann")
def test_a_video_comes_back_with_thumbnail_and_sidecar_and_goes_whole(services, files, database, create_video, clip):
    name = create_video(workflow='{"w": 1}', graph='{"g": 1}')
    plain = create_video()

    assert services.video_files.get_path(name).read_bytes() == clip.read_bytes()
    assert Image.open(services.video_files.get_path(name, thumbnail=True)).size == (64, 64)
    assert services.videos.get_workflow(name) == '{"w": 1}'
    assert services.videos.get_graph(name) == '{"g": 1}'
    assert services.videos.get_workflow(plain) is None
    assert len(objects(files)) == 5
    assert "signature" in files.signed_url(ObjectName("video", name)).lower()
    for one in (name, plain):
        services.videos.delete(one)
    assert objects(files) == {}
    demand_whole(files, database)


@pytest.mark.usefixtures("ann")
def test_videos_of_others_and_rows_that_stay_keep_their_files(services, create_video, clip):
    name = create_video()

    with pytest.raises(VideoFileDeleteException, match="deleted first"):
        services.video_files.delete(name)
    with pytest.raises(VideoFileNotFoundException):
        as_bob(lambda: services.video_files.get_path(name))
    with pytest.raises(VideoFileSaveException):
        as_bob(lambda: services.video_files.save(clip, name))
    assert services.video_files.get_path(name).exists()
    assert clip.exists()


@pytest.mark.usefixtures("ann")
def test_a_workflow_has_a_picture_that_can_be_replaced_and_goes_with_it(services, files, database):
    meta = WorkflowMeta(version="1.0.0", category=WorkflowCategory.User)
    workflow = WorkflowWithoutID(
        name="n", author="", description="", version="", contact="", tags="", notes="", exposedFields=[], meta=meta, nodes=[], edges=[]
    )
    workflow_id = services.workflow_records.create(workflow, user_id="ann").workflow_id
    assert services.workflow_thumbnails.get_url(workflow_id) is None
    for size in (300, 100):
        services.workflow_thumbnails.save(workflow_id, picture(size=size))

    assert Image.open(services.workflow_thumbnails.get_path(workflow_id)).size == (100, 100)
    assert services.workflow_thumbnails.get_url(workflow_id).startswith(f"api/v1/workflows/i/{workflow_id}/thumbnail?")
    with pytest.raises(WorkflowThumbnailFileSaveException):
        as_bob(lambda: services.workflow_thumbnails.save(workflow_id, picture()))
    services.workflow_thumbnails.delete(workflow_id)
    with pytest.raises(WorkflowThumbnailFileNotFoundException):
        services.workflow_thumbnails.delete(workflow_id)
    services.workflow_thumbnails.save(workflow_id, picture())
    services.workflow_records.delete(workflow_id, user_id="ann")
    files.recover()
    assert objects(files) == {}
    demand_whole(files, database)


@pytest.mark.usefixtures("ann")
def test_a_preset_has_a_picture_and_those_that_upstream_ships_have_theirs(services, files, database):
    data = PresetData(positive_prompt="p", negative_prompt="n")
    preset = StylePresetWithoutId(name="n", preset_data=data, type=PresetType.User)
    preset_id = services.style_preset_records.create(preset, user_id="ann").id
    services.style_preset_image_files.save(preset_id, picture())
    with tenancy.as_system("defaults of upstream"), database.transaction() as cursor:
        columns, values = "id, name, preset_data, type, user_id", ("d", "Anime", data.model_dump_json(), "default", "system")
        cursor.execute(f"INSERT INTO style_presets ({columns}) VALUES (?, ?, ?, ?, ?)", values)

    assert services.style_preset_image_files.get(preset_id).size == (256, 256)
    assert services.style_preset_image_files.get_url("d")
    assert services.style_preset_image_files.get("d").size[0] > 0
    services.style_preset_records.delete(preset_id)
    with pytest.raises(StylePresetNotFoundError):
        services.style_preset_image_files.get_path(preset_id)
    files.recover()
    assert objects(files) == {}
    demand_whole(files, database)


def test_a_models_cover_is_everybodys_and_bad_keys_fail_nothing_else(services, files, database):
    fields = ("name", "base", "type", "path", "format", "hash", "source", "source_type")
    config = json.dumps(dict.fromkeys(fields, "m") | {"file_size": 1})
    with tenancy.as_system("a model is installed"), database.transaction() as cursor:
        cursor.execute("INSERT INTO models (id, config) VALUES ('m', ?)", (config,))
    assert services.model_images.get_url("m") is None
    assert not services.model_images.get_path("m").exists()
    services.model_images.save(picture(), "m")

    for user in ("ann", "bob"):
        with tenancy.as_user(user):
            assert services.model_images.get("m").size == (256, 256)
            assert services.model_images.get_url("m").startswith("api/v2/models/i/m/image?")
    services.model_images.delete("m")
    with pytest.raises(ModelImageFileDeleteException) as refused:
        services.model_images.delete("m")
    assert isinstance(refused.value.__cause__, ModelImageFileNotFoundException)
    assert objects(files) == {}


@pytest.mark.usefixtures("ann")
def test_half_a_picture_is_refused_as_unreadable(services, files):
    whole = io.BytesIO()
    picture().save(whole, "PNG")
    half = Image.open(io.BytesIO(whole.getvalue()[:200]))

    with pytest.raises(ImageFileSaveException) as refused:
        services.images.create(image=half, image_origin=INTERNAL, image_category=GENERAL, user_id="ann")
    assert isinstance(refused.value.__cause__, UnreadablePicture) and refused.value.__cause__.status == 415
