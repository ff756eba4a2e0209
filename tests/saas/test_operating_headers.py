"""Security headers: on every answer, what InvokeAI's interface needs allowed, private answers kept out of caches."""

import pytest
from saas.operated import client_of, operated, small_app

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.headers import API_POLICY, page_policy, storage_origins
from invokeai_saas.settings import Settings

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "strict-transport-security": "max-age=31536000",
}


@pytest.fixture(scope="module")
def database(cluster):
    """One for all tests of this file: none writes."""
    address = cluster.clone()
    opened = PostgresDatabase(address, pool_size=2)
    yield opened
    opened.close()
    cluster.drop(address)


@pytest.fixture
def client(database, tmp_path):
    (tmp_path / "index.html").write_text("page")
    return client_of(operated(database, small_app(tmp_path), max_body_bytes=10))


def directives(policy):
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


@pytest.mark.parametrize("path", ["/", "/api/v1/items/a", "/api/v1/broken", "/api/v1/nowhere", "/healthz", "/api/v1/items/a%00"])
def test_every_answer_has_the_security_headers(client, path):
    answer = client.get(path)

    assert {name: answer.headers.get(name) for name in EVERYWHERE} == EVERYWHERE
    assert "camera=()" in answer.headers["permissions-policy"]
    assert directives(answer.headers["content-security-policy"])["frame-ancestors"] == "'none'"


def test_a_refusal_has_them_too(client):
    assert client.post("/api/v1/notes", json={"text": "long enough"}).headers["x-frame-options"] == "DENY"


def test_a_page_runs_only_scripts_of_this_server(client):
    policy = directives(client.get("/").headers["content-security-policy"])

    assert (policy["script-src"], policy["default-src"], policy["object-src"]) == ("'self'", "'self'", "'none'")
    assert policy["connect-src"].split() == ["'self'", "data:", "blob:", "wss://invoke.example"]


def test_data_of_the_api_runs_nothing_when_it_is_opened_as_a_page(client):
    assert client.get("/api/v1/items/a").headers["content-security-policy"] == API_POLICY
    assert directives(API_POLICY)["default-src"] == "'none'"


def test_the_api_pages_get_their_scripts(client):
    assert "https://cdn.jsdelivr.net" in directives(client.get("/docs").headers["content-security-policy"])["script-src"]


@pytest.mark.parametrize(
    ("settings", "origins"),
    [
        ({}, ()),
        ({"s3_bucket": "files", "s3_endpoint_url": "https://minio.example:9000/x"}, ("https://minio.example:9000",)),
        ({"s3_bucket": "files", "s3_region": "eu-west-1"}, ("https://files.s3.eu-west-1.amazonaws.com", "https://files.s3.amazonaws.com")),
        ({"s3_bucket": "fi.les", "s3_region": "eu-west-1"}, ("https://s3.eu-west-1.amazonaws.com", "https://s3.amazonaws.com")),
    ],
)
def test_pictures_and_videos_may_come_from_the_store(settings, origins):
    policy = directives(page_policy("https://invoke.example", storage_origins(Settings(**settings))))

    for name in ("img-src", "media-src", "connect-src"):
        assert set(origins) <= set(policy[name].split())
    assert not set(origins) & set(policy["script-src"].split())
    assert storage_origins(Settings(**settings)) == origins


def test_the_stores_origin_is_where_its_addresses_point(tmp_path):
    from urllib.parse import urlsplit

    from invokeai_saas.storage.opening import open_store

    for bucket in ("files", "fi.les"):
        settings = Settings(s3_bucket=bucket, s3_region="eu-west-1", s3_access_key_id="a", s3_secret_access_key="b", data_dir=tmp_path)
        there = urlsplit(open_store(settings).signed_url("users/u/images/a.png", user_id="u", seconds=60))

        assert f"{there.scheme}://{there.netloc}" in storage_origins(settings)


def test_https_is_demanded_only_where_it_is_spoken(database):
    from invokeai_saas.operating.headers import SecurityHeaders

    assert "Strict-Transport-Security" not in SecurityHeaders(small_app(), Settings(public_url="http://localhost:9090"))._always


def test_private_answers_are_kept_nowhere(client):
    assert client.get("/api/v1/items/a").headers["cache-control"] == "private, no-store"


def test_what_a_route_says_of_caching_stays_but_becomes_private(client):
    assert client.get("/api/v1/pictures/a").headers["cache-control"] == "private, max-age=31536000"


def test_the_interfaces_files_are_cached_as_they_were(client):
    assert "cache-control" not in client.get("/").headers
