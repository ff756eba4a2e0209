"""Every store does what the port says: on disk, on moto's S3, on an S3 server that checks signatures."""

import hashlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from saas.stores import BUCKET, KEY_ID, SECRET, client, disk_store, moto_server, rclone_server, s3_store

from invokeai_saas.errors import BadSettings
from invokeai_saas.storage.bucket_policy import bucket_policy
from invokeai_saas.storage.errors import BadName, ObjectMissing, StorageRefused, StorageUnavailable

KEY = "users/ann/images/a.png"
VIDEO = "users/ann/videos/v.mp4"
TRICKS = [
    "", "/etc/passwd", "users/../../x", "users/ann/..", "users//x", "./x", "users/.hidden", "a\\b", "a\x00b", "a\nb", "x" * 901,
    "\ud800",
]  # fmt: skip
LARGE = 20 * 1024 * 1024


@pytest.fixture(scope="module")
def moto_url():
    with moto_server() as (url, _):
        yield url


@pytest.fixture(scope="module")
def rclone_url(tmp_path_factory):
    with rclone_server(tmp_path_factory.mktemp("rclone")) as url:
        yield url


@pytest.fixture(params=["disk", "moto", "rclone"])
def store(request, tmp_path):
    if request.param == "disk":
        made = disk_store(tmp_path)
    else:
        made = s3_store(request.getfixturevalue(f"{request.param}_url"), tmp_path)
    yield made
    made.delete([found.key for found in made.list("")])


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_what_was_put_is_read_back_and_replaced(store):
    store.check()
    store.put(KEY, b"first", "image/png")
    store.put(VIDEO, b"second", "video/mp4")

    assert store.local_path(KEY).read_bytes() == b"first"
    assert store.size(VIDEO) == 6
    store.put(VIDEO, b"third!!", "video/mp4")
    assert store.size(VIDEO) == 7


def test_a_large_file_goes_up_in_parts_and_its_source_is_consumed(store, tmp_path):
    source = tmp_path / "v.mp4"
    source.write_bytes(bytes(range(256)) * (LARGE // 256) + b"odd end")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.put_file(VIDEO, source, "video/mp4")

    assert hashlib.sha256(store.local_path(VIDEO).read_bytes()).hexdigest() == digest
    assert not source.exists()


def test_what_is_missing_is_said_to_be(store):
    store.put("users/ann/images/ab.png", b"x", "image/png")

    assert store.size(KEY) is None
    with pytest.raises(ObjectMissing):
        store.local_path(KEY)
    with pytest.raises(ObjectMissing):
        store.local_path("users/ann/images/ab.png/deeper.png")


def test_a_delete_takes_what_it_names_and_minds_nothing_missing(store):
    for name in ("a", "b", "c"):
        store.put(f"users/ann/images/{name}.png", b"x", "image/png")
    store.local_path(KEY)
    store.delete([KEY, "users/ann/images/b.png", "users/bob/images/never.png"])

    assert [found.key for found in store.list("users/")] == ["users/ann/images/c.png"]
    with pytest.raises(ObjectMissing):
        store.local_path(KEY)


def test_a_listing_keeps_to_its_prefix_and_tells_sizes(store):
    store.put(KEY, b"12345", "image/png")
    store.put("users/anna/images/x.png", b"1", "image/png")

    assert [(found.key, found.bytes) for found in store.list("users/ann/")] == [(KEY, 5)]
    assert {prefix: len(list(store.list(prefix))) for prefix in ("", "us", "users/ann", KEY, "users/bob/", "zips/")} == {
        "": 2, "us": 2, "users/ann": 2, KEY: 1, "users/bob/": 0, "zips/": 0
    }  # fmt: skip


@pytest.mark.parametrize("key", TRICKS)
def test_a_key_that_points_elsewhere_is_refused_and_writes_nothing(store, tmp_path, key):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    calls = [
        lambda: store.put(key, b"x", "image/png"),
        lambda: store.put_file(key, source, "image/png"),
        lambda: store.local_path(key),
        lambda: store.size(key),
        lambda: store.delete([key]),
        lambda: store.signed_url(key, user_id="ann", seconds=60),
    ]

    for call in calls:
        with pytest.raises(BadName):
            call()
    assert list(store.list("")) == []
    assert source.exists()


def test_a_link_inside_the_folder_leads_nowhere(tmp_path):
    store = disk_store(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(b"secret")
    store.put("users/ann/x.png", b"x", "image/png")
    (tmp_path / "files" / "objects" / "users" / "ann" / "images").symlink_to(tmp_path / "secret")

    with pytest.raises(ObjectMissing):
        store.local_path(KEY)


def test_a_full_disk_refuses_and_keeps_the_source(tmp_path):
    store = disk_store(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(b"x")
    # A file where the folder should be: no mkdir succeeds, not even root's.
    (tmp_path / "files" / "objects" / "users").write_bytes(b"in the way")

    with pytest.raises(StorageUnavailable):
        store.put_file(KEY, source, "image/png")
    assert source.read_bytes() == b"x"
    assert list((tmp_path / "files" / "incoming").iterdir()) == []


def test_a_presigned_address_plays_ranges_until_it_expires(rclone_url, tmp_path):
    store = s3_store(rclone_url, tmp_path)
    store.put(VIDEO, b"0123456789", "video/mp4")
    store.put(KEY, b"other", "image/png")
    url, short = (store.signed_url(VIDEO, user_id="ann", seconds=seconds) for seconds in (60, 1))

    assert fetch(url) == (200, b"0123456789")
    # This server sends a part with status 200.
    assert fetch(url, Range="bytes=3-5")[1] == b"345"
    assert fetch(url.replace("videos/v.mp4", "images/a.png"))[0] == 403
    time.sleep(2.1)
    assert fetch(short)[0] in (400, 403)


def test_a_presigned_address_says_which_part_it_sends(moto_url, tmp_path):
    store = s3_store(moto_url, tmp_path)
    store.put(VIDEO, b"0123456789", "video/mp4")

    assert fetch(store.signed_url(VIDEO, user_id="ann", seconds=60), Range="bytes=3-5") == (206, b"345")
    store.delete([VIDEO])


def test_unsigned_reads_and_wrong_secrets_are_refused(rclone_url, tmp_path):
    s3_store(rclone_url, tmp_path).put(KEY, b"mine", "image/png")
    wrong = s3_store(rclone_url, tmp_path / "wrong", secret="guessed")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    calls = [
        lambda: wrong.put(KEY, b"x", "image/png"), lambda: wrong.size(KEY), lambda: wrong.local_path(KEY), lambda: wrong.delete([KEY]),
        lambda: wrong.put_file(KEY, source, "image/png"),
        lambda: list(wrong.list("")),
    ]  # fmt: skip

    assert fetch(f"{rclone_url}/{BUCKET}/{KEY}")[0] in (400, 401, 403)
    assert fetch(wrong.signed_url(KEY, user_id="ann", seconds=60))[0] == 403
    for call in calls:
        with pytest.raises(StorageRefused) as refused:
            call()
        assert "guessed" not in str(refused.value)
    assert s3_store(rclone_url, tmp_path).local_path(KEY).read_bytes() == b"mine"


def test_wrong_settings_are_found_at_start_and_named(rclone_url, tmp_path):
    cases = {
        "S3_BUCKET": s3_store(rclone_url, tmp_path, bucket="nowhere"),
        "S3_SECRET_ACCESS_KEY": s3_store(rclone_url, tmp_path, secret="guessed"),
        "S3_ENDPOINT_URL": s3_store("http://127.0.0.1:9", tmp_path),
        "SAAS_DATA_DIR": None,
    }
    (tmp_path / "blocked").write_bytes(b"")

    for variable, wrong in cases.items():
        with pytest.raises(BadSettings, match=variable) as refused:
            wrong.check() if wrong else disk_store(tmp_path / "blocked")
        assert "guessed" not in str(refused.value)


def test_an_outage_is_said_so_and_what_was_downloaded_is_still_read(tmp_path):
    # A bucket of its own: all servers of moto in one process share what they hold.
    with moto_server(bucket="outage") as (url, server):
        store = s3_store(url, tmp_path, bucket="outage")
        store.put(KEY, b"kept", "image/png")
        store.put(VIDEO, b"gone", "video/mp4")
        store.local_path(KEY)
        source = tmp_path / "source"
        source.write_bytes(b"x")
        server.stop()
        calls = [
            lambda: store.put(KEY, b"x", "image/png"), lambda: store.put_file(KEY, source, "image/png"), lambda: store.size(VIDEO),
            lambda: store.local_path(VIDEO), lambda: store.delete([VIDEO]), lambda: list(store.list("")),
        ]  # fmt: skip

        for call in calls:
            with pytest.raises(StorageUnavailable):
                call()
        assert source.exists()
        assert store.local_path(KEY).read_bytes() == b"kept"


def test_the_bucket_rules_are_such_that_a_server_takes_them(moto_url):
    rules, s3 = bucket_policy(["https://studio.example.com"]), client(moto_url)
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=rules["lifecycle"])
    s3.put_bucket_cors(Bucket=BUCKET, CORSConfiguration=rules["cors"])
    classes = {
        move["StorageClass"]
        for rule in s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
        for move in rule.get("Transitions", [])
    }

    expiring = [rule["ID"] for rule in rules["lifecycle"]["Rules"] if "Expiration" in rule and rule["Filter"] == {"Prefix": "zips/"}]

    assert (classes, expiring) == ({"STANDARD_IA"}, ["expire-zips"])
    assert s3.get_bucket_cors(Bucket=BUCKET)["CORSRules"][0]["AllowedOrigins"] == ["https://studio.example.com"]


@pytest.mark.parametrize("origins", [[], ["*"], ["https://*.example.com"], ["studio.example.com"]])
def test_bucket_rules_for_everybody_are_refused(origins):
    with pytest.raises(ValueError, match="origins"):
        bucket_policy(origins)


def test_a_large_upload_and_download_take_little_memory(rclone_url, tmp_path):
    megabytes = int(os.environ.get("SAAS_SOAK_MEGABYTES", "200"))
    script = Path(__file__).parent / "measure_upload.py"
    command = [sys.executable, str(script), rclone_url, BUCKET, KEY_ID, SECRET, str(tmp_path), str(megabytes)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    print(f"{megabytes} MB up and down: {grown / 1e6:.0f} MB more memory")

    assert grown < 64e6
