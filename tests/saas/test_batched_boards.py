"""A gallery's pages with few questions: the same answers as InvokeAI's own services, which ask once per picture."""

import sqlite3
from types import SimpleNamespace

import psycopg
import pytest
from invokeai.app.services.image_records.image_records_common import IMAGE_DTO_COLS, ImageCategory, ResourceOrigin
from invokeai.app.services.images.images_default import ImageService
from saas.import_library import our_services
from saas.rows import add_board
from saas.stored_rows import save_image
from saas.stores import disk_store

from invokeai_saas.db import tenancy
from invokeai_saas.storage.files import Files
from invokeai_saas.swaps.batched_boards import IMAGES_BY_NAMES, BatchedImages

ANN, BOB = "ann", "bob"


@pytest.fixture
def services(database, tmp_path):
    return our_services(Files(database, disk_store(tmp_path)), database, tmp_path)


@pytest.fixture
def batched(services, database):
    made = BatchedImages(database)
    made.start(SimpleNamespace(services=services))
    return made


@pytest.fixture
def names(database, tmp_path):
    """Three pictures of ann's, the second on a board, and one of bob's."""
    files = Files(database, disk_store(tmp_path))
    for owner, name in ((ANN, "a.png"), (ANN, "b.png"), (ANN, "c.png"), (BOB, "d.png")):
        save_image(files, database, owner, name)
    with tenancy.as_user(ANN), database.postgres() as cursor:
        add_board(database, ANN, "board")
        cursor.execute("INSERT INTO board_images (board_id, image_name) SELECT board_id, 'b.png' FROM boards")
    return ["c.png", "a.png", "b.png"]


def test_a_page_by_names_is_what_invokeai_answers_one_by_one(batched, services, names):
    with tenancy.as_user(ANN):
        page = batched.get_by_names(names)
        one_by_one = [services.images.get_dto(name) for name in names]

    assert page == one_by_one
    assert [dto.board_id is not None for dto in page] == [False, False, True]


def test_a_page_is_what_invokeai_answers(batched, services, names):
    asked = {"categories": [ImageCategory.GENERAL], "image_origin": ResourceOrigin.INTERNAL, "is_intermediate": False}
    with tenancy.as_user(ANN):
        ours, stock = (service.get_many(offset=1, limit=2, user_id=ANN, **asked) for service in (batched, services.images))

    assert isinstance(services.images, ImageService) and not isinstance(services.images, BatchedImages)
    assert ours == stock and (ours.total, len(ours.items)) == (3, 2)


def test_foreign_and_missing_names_are_passed_over_alike(batched, names):
    with tenancy.as_user(ANN):
        found = [dto.image_name for dto in batched.get_by_names(["d.png", "a.png", "none.png", "a.png"])]

    assert found == ["a.png", "a.png"]


def test_no_names_are_no_pictures(batched):
    with tenancy.as_user(ANN):
        assert batched.get_by_names([]) == []


def test_an_outage_is_no_empty_gallery(batched, database, names):
    database.close()

    with pytest.raises((sqlite3.Error, psycopg.Error)), tenancy.as_user(ANN):
        batched.get_by_names(names)


def test_the_columns_are_those_that_invokeai_reads():
    asked = IMAGES_BY_NAMES.split("FROM")[0].replace("SELECT", "").replace("\n", " ").split(",")

    assert {f"images.{name.strip()}" for name in asked} == set(IMAGE_DTO_COLS.split(", "))
