"""How often, per endpoint, plan and address: the library's rules over counters in Postgres, so that all processes count together.

A fixed window per rule. Keys are hashed: addresses do not lie in the table. A hit is its own transaction: a request that fails has
still been made.
"""

import hashlib
import ipaddress
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, Storage
from limits.strategies import FixedWindowRateLimiter

from invokeai_saas.accounts.errors import TooManyRequests
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

HIT = """
INSERT INTO rate_limits AS counter (limit_key, hits, expires_at)
VALUES (%(key)s, %(amount)s, clock_timestamp() + make_interval(secs => %(seconds)s))
ON CONFLICT (limit_key) DO UPDATE SET
    hits = CASE WHEN counter.expires_at <= clock_timestamp() THEN 0 ELSE counter.hits END + EXCLUDED.hits,
    expires_at = CASE WHEN counter.expires_at <= clock_timestamp() THEN EXCLUDED.expires_at ELSE counter.expires_at END
RETURNING hits
"""
READ = """
SELECT hits, extract(epoch FROM expires_at)::float8 AS ends FROM rate_limits WHERE limit_key = %s AND expires_at > clock_timestamp()
"""
FORGET = "DELETE FROM rate_limits WHERE limit_key = %s"
FORGET_ALL = "DELETE FROM rate_limits"
FORGET_EXPIRED = "DELETE FROM rate_limits WHERE expires_at <= clock_timestamp()"

REASON = "rate limits count strangers"
ANY_PLAN = "*"
# Several rules of one entry all count. Where a plan has no entry of its own, ANY_PLAN's holds.
DEFAULT_RULES: Mapping[tuple[str, str], str] = {
    ("signup", ANY_PLAN): "10/hour",
    ("verify", ANY_PLAN): "30/hour",
    ("login", ANY_PLAN): "10/minute; 100/hour",
    ("login_account", ANY_PLAN): "20/15 minutes",
    ("letter_account", ANY_PLAN): "5/hour",
    ("refresh", ANY_PLAN): "60/minute",
    ("forgot", ANY_PLAN): "10/hour",
    ("reset", ANY_PLAN): "10/hour",
    ("account", ANY_PLAN): "60/minute",
    ("admin", ANY_PLAN): "300/minute",
    ("api", ANY_PLAN): "600/minute",
}


class PostgresStorage(Storage):
    """The library's counters as rows; one statement counts and reads."""

    STORAGE_SCHEME = ["invokeai-postgres"]

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__(None)
        self._database = database

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What the library would wrap if it were told to."""
        return psycopg.Error

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count; returns how many there are in the window."""
        row = self._one(HIT, {"key": _hashed(key), "amount": amount, "seconds": expiry})
        return int(row["hits"]) if row else amount

    def get(self, key: str) -> int:
        """How many there are in the window."""
        row = self._one(READ, (_hashed(key),))
        return int(row["hits"]) if row else 0

    def get_expiry(self, key: str) -> float:
        """When the window ends, in seconds since 1970."""
        row = self._one(READ, (_hashed(key),))
        return float(row["ends"]) if row else time.time()

    def check(self) -> bool:
        """True when the database answers."""
        self._one(READ, ("",))
        return True

    def reset(self) -> int | None:
        """Forget all."""
        return self._count(FORGET_ALL)

    def clear(self, key: str) -> None:
        """Forget one."""
        self._count(FORGET, (_hashed(key),))

    def forget_expired(self) -> int:
        """Delete windows that are over; run it hourly."""
        return self._count(FORGET_EXPIRED)

    def _one(self, statement: str, values: Any) -> dict[str, Any] | None:
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            return cursor.execute(statement.encode(), values).fetchone()

    def _count(self, statement: str, values: Any = None) -> int:
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            return cursor.execute(statement.encode(), values).rowcount


@dataclass
class RateLimiter:
    """Rules by (endpoint, plan). Without a database the counters are this process's own."""

    storage: Storage = field(default_factory=MemoryStorage)
    rules: Mapping[tuple[str, str], str] = field(default_factory=lambda: DEFAULT_RULES)

    def __post_init__(self) -> None:
        self._strategy = FixedWindowRateLimiter(self.storage)
        self._parsed = {key: [parse(rule.strip()) for rule in text.split(";")] for key, text in self.rules.items()}

    def hit(self, endpoint: str, subject: str, *, plan: str = ANY_PLAN) -> None:
        """Count one request of `subject` (an address, a user id); raises TooManyRequests. An endpoint without a rule is a bug."""
        used_plan = plan if (endpoint, plan) in self._parsed else ANY_PLAN
        over = [
            rule
            for rule in self._parsed[endpoint, used_plan]
            if not self._strategy.hit(rule, endpoint, used_plan, subject)
        ]
        if over:
            raise TooManyRequests(max(self._wait_seconds(rule, endpoint, used_plan, subject) for rule in over))

    def _wait_seconds(self, rule: RateLimitItem, *names: str) -> int:
        return max(1, math.ceil(self._strategy.get_window_stats(rule, *names).reset_time - time.time()))


def network_of(address: str | None) -> str:
    """Whom an address counts as: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
