"""Rate limits: counted together by all processes, per endpoint, plan and address, and without keeping addresses."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from saas.people import rows

from invokeai_saas.accounts.errors import TooManyRequests
from invokeai_saas.accounts.rate_limits import DEFAULT_RULES, PostgresStorage, RateLimiter, network_of

RULES = {("login", "*"): "3/minute", ("api", "*"): "2/minute", ("api", "studio"): "4/minute", ("two", "*"): "2/second; 3/minute"}


@pytest.fixture(params=["memory", "postgres"])
def limiter(request, database):
    return RateLimiter(PostgresStorage(database), RULES) if request.param == "postgres" else RateLimiter(rules=RULES)


def allowed(limiter, endpoint, subject, tries=6, **plan):
    passed = 0
    for _ in range(tries):
        try:
            limiter.hit(endpoint, subject, **plan)
            passed += 1
        except TooManyRequests:
            pass
    return passed


def test_each_endpoint_address_and_plan_counts_for_itself(limiter):
    assert allowed(limiter, "login", "192.0.2.1") == 3
    assert allowed(limiter, "login", "192.0.2.2") == 3
    assert allowed(limiter, "api", "ann") == 2
    assert allowed(limiter, "api", "bob", plan="studio") == 4
    assert allowed(limiter, "api", "eve", plan="no such plan") == 2


def test_several_rules_all_hold_and_the_longest_wait_is_told(limiter):
    assert allowed(limiter, "two", "ann") <= 3
    with pytest.raises(TooManyRequests) as refused:
        limiter.hit("two", "ann")

    assert 1 < refused.value.retry_after_seconds <= 60


def test_an_endpoint_without_a_rule_is_a_mistake_and_not_a_hole(limiter):
    with pytest.raises(KeyError):
        limiter.hit("forgotten", "ann")


def test_a_window_ends(database):
    limiter = RateLimiter(PostgresStorage(database), {("x", "*"): "2/second"})
    first = allowed(limiter, "x", "ann")
    time.sleep(1.1)

    assert (first, allowed(limiter, "x", "ann")) == (2, 2)


def test_racing_requests_are_all_counted(database):
    limiters = [RateLimiter(PostgresStorage(database), {("x", "*"): "20/minute"}) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        passed = sum(pool.map(lambda one: allowed(one, "x", "ann", tries=25), limiters))

    assert passed == 20


def test_the_table_keeps_no_addresses_and_forgets_what_is_over(database):
    storage = PostgresStorage(database)
    allowed(RateLimiter(storage, RULES), "login", "ann@example.com")
    kept = str(rows(database, "SELECT * FROM rate_limits"))
    rows(database, "UPDATE rate_limits SET expires_at = now()")

    assert "ann" not in kept and "login" not in kept
    assert storage.forget_expired() == 1
    assert storage.check()


@pytest.mark.parametrize(("address", "counts_as"), [
    ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("::ffff:192.0.2.7", "192.0.2.7"),
    ("testclient", "unknown"), (None, "unknown"),
])  # fmt: skip
def test_one_customer_counts_once(address, counts_as):
    assert network_of(address) == counts_as


def test_every_default_rule_can_be_read():
    assert RateLimiter().rules is DEFAULT_RULES
