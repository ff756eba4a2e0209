"""Metrics: right numbers, no tenant in them, and nobody reads them who may not."""

import socket
import urllib.request
from urllib.error import URLError

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from saas.operated import ANN, client_of, operated, small_app
from saas.people import join
from saas.rows import add_items
from saas.stored_rows import save_image
from saas.stores import disk_store

from invokeai_saas.jobs import lease
from invokeai_saas.operating.metrics import QUEUE, STORAGE
from invokeai_saas.storage.files import Files

TOKEN = "a-token-of-the-metrics"
AS_PROMETHEUS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def installed(database):
    return operated(database, metrics_token=TOKEN)


@pytest.fixture
def client(installed):
    return client_of(installed)


def samples(text):
    """(name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client):
    answer = client.get("/metrics", headers=AS_PROMETHEUS)
    assert answer.status_code == 200
    return samples(answer.text)


def value(found, name, **labels):
    return found.get((name, tuple(sorted(labels.items()))))


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer ", "Bearer ä"])
def test_whoever_lacks_the_token_is_told_that_there_is_nothing(client, header):
    answer = client.get("/metrics", headers={} if header is None else {"Authorization": header.encode()})

    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_without_a_token_set_no_token_opens(database, tmp_path):
    # InvokeAI's interface answers for every path that nothing else does.
    (tmp_path / "metrics").write_text("page")
    app = small_app(tmp_path)
    for header in ("Bearer None", "Bearer ", ""):
        assert client_of(operated(database, app)).get("/metrics", headers={"Authorization": header}).status_code == 404


def test_requests_are_counted_by_template_and_class_of_status(client):
    for path in ("items/a", "items/b", "broken", "nowhere"):
        client.get(f"/api/v1/{path}")
    found = scrape(client)

    name = "invokeai_http_requests_total"
    assert value(found, name, method="GET", route="/api/v1/items/{name}", status="2xx") == 2
    assert value(found, name, method="GET", route="/api/v1/broken", status="5xx") == 1
    assert value(found, name, method="GET", route="(none)", status="4xx") == 1
    assert value(found, "invokeai_http_request_seconds_count", method="GET", route="/api/v1/items/{name}") == 2


def test_a_made_up_method_makes_no_label(client):
    client.request("BREW", "/api/v1/items/a")

    assert not [labels for name, labels in scrape(client) if ("method", "BREW") in labels]


def test_the_queue_is_counted_by_status(client, database):
    add_items(database, ANN, 3)
    lease.claim(database, worker_id="w", lease_seconds=60)
    found = scrape(client)

    assert [value(found, "invokeai_queue_items", status=status) for status in ("pending", "in_progress", "waiting")] == [2, 1, 0]
    assert value(found, "invokeai_queue_running") == 1


def test_waits_are_seconds_since_the_enqueue(client, dsn, database):
    add_items(database, ANN, 2)
    with psycopg.connect(dsn, autocommit=True) as connection:
        past = "to_char((clock_timestamp() - interval '100 seconds') AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')"
        connection.execute(f"SET ROLE invokeai_system; UPDATE session_queue SET created_at = {past}".encode())
    lease.claim(database, worker_id="w", lease_seconds=60)
    found = scrape(client)

    assert value(found, "invokeai_queue_oldest_pending_seconds") == pytest.approx(100, abs=10)
    assert value(found, "invokeai_queue_claim_wait_seconds") == pytest.approx(100, abs=10)


def test_an_empty_service_waits_for_nothing(client):
    found = scrape(client)

    for name in ("queue_oldest_pending_seconds", "queue_claim_wait_seconds", "queue_running", "storage_bytes", "mail_outbox"):
        assert value(found, f"invokeai_{name}") == 0, name


def test_stored_bytes_and_waiting_letters_are_counted(client, database, accounts, tmp_path):
    join(accounts, "ann@example.com")
    user = join(accounts, "bob@example.com").user_id
    save_image(Files(database, disk_store(tmp_path)), database, user, "a.png", size=90)
    found = scrape(client)

    assert value(found, "invokeai_storage_bytes") == 100
    # Nobody sent the two letters of signing up.
    assert value(found, "invokeai_mail_outbox") == 2


def test_no_user_appears_in_the_metrics(client, database, accounts, tmp_path):
    person = join(accounts, "ann@example.com")
    save_image(Files(database, disk_store(tmp_path)), database, person.user_id, "picture-of-ann.png")
    add_items(database, person.user_id, 1)
    lease.claim(database, worker_id="w", lease_seconds=60)
    client.get(f"/api/v1/items/{person.user_id}?email=ann@example.com")
    text = client.get("/metrics", headers=AS_PROMETHEUS).text

    assert "invokeai_queue_running 1.0" in text
    for private in (person.user_id, "ann@", "picture-of-ann", ANN, TOKEN):
        assert private not in text


def test_the_pool_is_counted(client, database):
    from invokeai_saas.db import tenancy

    # A connection that is being opened counts as in use, and the pool opens its first two in the background.
    database._pool.wait()
    with tenancy.as_system("a test holds a connection"), database.postgres():
        found = scrape(client)

    assert value(found, "invokeai_db_pool_in_use") == 1
    assert value(found, "invokeai_db_pool_open") >= 1
    assert value(found, "invokeai_db_pool_waiting") == 0


def test_a_scrape_answers_while_the_database_does_not(client, database):
    database.close()
    found = scrape(client)

    assert value(found, "invokeai_database_up") == 0
    assert value(found, "invokeai_queue_running") is None


def test_a_scrape_says_what_runs_here(client):
    (labels,) = [dict(labels) for name, labels in scrape(client) if name == "invokeai_build_info"]

    assert set(labels) == {"version", "invokeai"} and labels["invokeai"].startswith("6.14")


def test_two_applications_count_apart(database, client):
    client_of(operated(database, small_app())).get("/api/v1/items/a")

    assert value(scrape(client), "invokeai_http_requests_total", method="GET", route="/api/v1/items/{name}", status="2xx") is None


def test_the_port_of_its_own_answers_until_it_is_closed(database):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    installed = operated(database, metrics_port=port)
    installed.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = samples(answer.read().decode())
    installed.close()

    assert value(found, "invokeai_database_up") == 1
    with pytest.raises(URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1)


@pytest.mark.parametrize(("statement", "reads"), [(QUEUE, "Index"), (STORAGE, "storage_used")])
def test_a_scrape_reads_no_history(dsn, database, statement, reads):
    """The queue keeps every finished item; counting the live ones must not read them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET ROLE invokeai_system")
        connection.execute(
            "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, status)"
            " SELECT 'default', 'b', '{}', 'old' || n, 'ann', 'completed' FROM generate_series(1, 5000) AS n"
        )
        connection.execute("RESET ROLE; SET ROLE invokeai_owner; ANALYZE session_queue; RESET ROLE; SET ROLE invokeai_system")
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}".encode()).fetchall())

    assert reads in plan, plan
