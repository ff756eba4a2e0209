"""The server as a whole: InvokeAI's own routes and sockets on our services, for people who must not see each other."""

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from saas.live_saas import ADMIN, Person, SaasServer
from saas.patience import until

pytestmark = pytest.mark.xdist_group("live-saas")


def picture(color: str) -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(output, "PNG")
    return output.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[SaasServer]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-live-") as folder:
        Path(folder).chmod(0o755)
        with SaasServer(Path(folder, "data")) as running:
            yield running


@pytest.fixture(scope="module")
def ann(server: SaasServer) -> Person:
    return server.person("ann@example.org")


@pytest.fixture(scope="module")
def bob(server: SaasServer) -> Person:
    return server.person("bob@example.org")


def test_the_first_start_prints_an_administrator_whose_password_works(server):
    admin = server.admin()

    assert admin.get("/api/v1/auth/me")["role"] == "super_admin"
    assert server.log().count(f"address   {ADMIN}") == 1


def test_the_interface_is_served_and_needs_no_setup(server):
    status, page, _ = server.request("GET", "/")
    setup = json.loads(server.request("GET", "/api/v1/auth/status")[1])

    assert status == 200 and b'<div id="root">' in page
    assert (setup["setup_required"], setup["multiuser_enabled"], setup["admin_email"]) == (False, True, None)


def test_a_picture_is_there_for_its_owner_and_for_nobody_else(server, ann, bob):
    name = ann.upload("red.png", picture("red"))["image_name"]
    of_ann = [ann.ask("GET", f"/api/v1/images/i/{name}{part}")[0] for part in ("", "/full", "/thumbnail", "/metadata")]
    of_bob = [bob.ask("GET", f"/api/v1/images/i/{name}{part}") for part in ("", "/full", "/thumbnail", "/metadata")]
    missing = [bob.ask("GET", f"/api/v1/images/i/none.png{part}") for part in ("", "/full", "/thumbnail", "/metadata")]

    assert of_ann == [200] * 4
    assert of_bob == missing and {status for status, _ in of_bob} == {404}
    assert bob.get("/api/v1/images/?limit=10&offset=0")["total"] == 0


def test_the_media_cookie_reads_and_does_not_write(server, ann):
    name = ann.upload("blue.png", picture("blue"))["image_name"]
    cookie = {"Cookie": f"invokeai_media_token={ann.token}"}
    read = server.request("GET", f"/api/v1/images/i/{name}/full", headers=cookie)
    deleted = server.request("DELETE", f"/api/v1/images/i/{name}", headers=cookie)

    assert (read[0], deleted[0]) == (200, 401)
    assert Image.open(io.BytesIO(read[1])).size == (64, 48)


def test_a_deleted_picture_leaves_neither_row_nor_file(server, ann):
    name = ann.upload("green.png", picture("green"))["image_name"]
    stored = list(server.folder.glob(f"files/**/{name}"))
    status, _ = ann.ask("DELETE", f"/api/v1/images/i/{name}")

    assert stored and status == 200
    assert not list(server.folder.glob(f"files/**/{name}"))
    assert ann.ask("GET", f"/api/v1/images/i/{name}")[0] == 404


def test_a_closed_account_leaves_no_zip_of_pictures(server):
    dora = server.person("dora@example.org")
    name = dora.upload("pink.png", picture("pink"))["image_name"]
    made = dora.ask("POST", "/api/v1/images/download", {"image_names": [name]})[1]["bulk_download_item_name"]
    until(lambda: bool(list(server.folder.glob(f"files/objects/zips/{dora.user_id}/{made}"))))
    status, _ = server.admin().ask("DELETE", f"/api/v1/admin/users/{dora.user_id}")

    assert status == 200
    assert not list(server.folder.rglob(made))


@pytest.mark.parametrize("path", ["/api/v1/images/", "/api/v1/boards/?all=true", "/api/v1/queue/default/status", "/api/v1/auth/me"])
def test_nothing_answers_a_wrong_or_missing_credential(server, path):
    answers = [server.request("GET", path, token=token)[0] for token in (None, "nonsense", "eyJhbGciOiJub25lIn0.e30.")]

    assert answers == [401, 401, 401]


def test_a_logout_counts_from_the_next_request_on(server):
    carol = server.person("carol@example.org")
    before = carol.ask("GET", "/api/v1/images/?limit=1&offset=0")[0]
    carol.ask("POST", "/api/v1/auth/logout")

    assert (before, carol.ask("GET", "/api/v1/images/?limit=1&offset=0")[0]) == (200, 401)


def test_an_api_key_opens_invokeais_own_routes_as_far_as_its_scopes(server, ann):
    _, made = ann.ask("POST", "/api/v1/auth/api-keys", {"name": "reader", "scopes": ["read"]})
    key = made["key"]
    read = server.request("GET", "/api/v1/images/?limit=1&offset=0", token=key)
    wrote = server.request("POST", "/api/v1/boards/?board_name=mine", token=key)

    assert (read[0], wrote[0]) == (200, 403)
    assert "X-Refreshed-Token" not in read[2]


def test_two_authorization_headers_are_refused(server, ann, bob):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("GET", "/api/v1/auth/me")
    connection.putheader("Authorization", f"Bearer {ann.token}")
    connection.putheader("Authorization", f"Bearer {bob.token}")
    connection.endheaders()

    assert connection.getresponse().status == 401
