"""A migrated template on one embedded server per run; each test gets a clone of it and closes what it opened."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from saas.brokers import RedisServer, redis_server, sqs_server
from saas.cheap_passwords import STRONG
from saas.clusters import Cluster
from saas.people import Person, join
from saas.statement_recorder import record_if_asked
from saas.worker_fleet import Nursery, nursery

from invokeai_saas.accounts import passwords
from invokeai_saas.accounts.model import AccountPolicy, Accounts
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import stop_embedded

record_if_asked()


@pytest.fixture
def strong_passwords(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passwords cost what they cost in production."""
    monkeypatch.setattr(passwords, "_hasher", STRONG)
    passwords._nobodys_hash.cache_clear()
    yield
    passwords._nobodys_hash.cache_clear()


# A clone of the template is some hundred small files: in memory they are copied in a fifth of the time.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The server. Not under pytest's own folder, which is closed to the account that Postgres runs as."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="saas-tests-", dir=MEMORY if roomy else None) as folder:
        started = Cluster(Path(folder))
        started.template()
        yield started
        stop_embedded(Path(folder))


@pytest.fixture(scope="session")
def worker_nursery(tmp_path_factory) -> Iterator[Nursery]:
    """What real workers are forked from; half a minute, so tests that use it share an xdist group."""
    with nursery(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture
def dsn(cluster: Cluster) -> Iterator[str]:
    """A fresh clone of the migrated template, as its owner sees it."""
    address = cluster.clone()
    yield address
    cluster.drop(address)


@pytest.fixture
def open_database(dsn: str) -> Iterator[Callable[..., PostgresDatabase]]:
    """Opens look-alikes on the test's database."""
    opened: list[PostgresDatabase] = []

    def opens(**settings: object) -> PostgresDatabase:
        database = PostgresDatabase(dsn, **({"pool_size": 4} | settings))  # type: ignore[arg-type]
        opened.append(database)
        return database

    yield opens
    for database in opened:
        database.close()


@pytest.fixture
def database(open_database: Callable[..., PostgresDatabase]) -> PostgresDatabase:
    """One look-alike with 4 connections, sharing off."""
    return open_database()


@pytest.fixture
def accounts(database: PostgresDatabase) -> Accounts:
    """Accounts that answer at once; the tests of time set their own policy."""
    return Accounts(database, AccountPolicy(answer_seconds=0.0, public_url="https://invoke.example"))


@pytest.fixture
def ann(accounts: Accounts) -> Person:
    """A user."""
    return join(accounts, "ann@example.com")


@pytest.fixture
def clerk(accounts: Accounts) -> Person:
    """An admin."""
    return join(accounts, "clerk@example.com", role="admin")


@pytest.fixture
def root(accounts: Accounts) -> Person:
    """A super_admin."""
    return join(accounts, "root@example.com", role="super_admin")


@pytest.fixture(scope="session")
def redis_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server of its own process."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def sqs_broker() -> Iterator[str]:
    """SQS in this process, as an address for Celery."""
    with sqs_server() as address:
        yield address


@pytest.fixture
def transport_address(request: pytest.FixtureRequest, transport: str) -> str:
    """What a transport of wake-ups is opened with; every test has queues of its own."""
    if transport == "procrastinate":
        return transport
    if transport == "redis":
        return f"{request.getfixturevalue('redis_broker').url}?prefix={uuid.uuid4().hex[:8]}-"
    return f"{request.getfixturevalue('sqs_broker')}&prefix={uuid.uuid4().hex[:8]}-"
