"""SAAS_EVENTS: what it says, what it is without, and what is refused."""

import pytest

from invokeai_saas.errors import BadSettings
from invokeai_saas.events.opening import open_bus
from invokeai_saas.events.postgres import PostgresBus
from invokeai_saas.events.redis import RedisBus
from invokeai_saas.settings import load_settings

ADDRESS = "postgresql:///somewhere"


@pytest.mark.parametrize(("variables", "transport"), [
    ({}, "local"), ({"database_url": ADDRESS}, "postgres"), ({"database_url": ADDRESS, "events": "local"}, "local"),
    ({"events": "postgres"}, "postgres"), ({"events": "rediss://cache:6380/3"}, "rediss://cache:6380/3"),
])  # fmt: skip
def test_the_default_follows_the_database(variables, transport):
    assert load_settings(**variables).events_transport == transport


def test_other_transports_are_refused_without_being_shown():
    with pytest.raises(BadSettings) as refused:
        load_settings(events="amqp://user:hidden@broker")

    assert "SAAS_EVENTS: " in str(refused.value) and "redis://" in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_redis_that_does_not_answer_is_named_before_anything_starts(database):
    with pytest.raises(BadSettings, match="SAAS_EVENTS: expected a Redis that answers") as refused:
        RedisBus(database, "redis://:hidden@127.0.0.1:1/0")

    assert "hidden" not in str(refused.value)


def test_a_single_process_needs_no_bus(database):
    assert open_bus(load_settings(), database) is None
    bus = open_bus(load_settings(events="postgres"), database)
    assert isinstance(bus, PostgresBus)
    bus.close()
