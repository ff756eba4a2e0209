"""Users of a root in, whose rows theirs become here out. Nobody is merged who was two people in the root.

A user who is new keeps id, name and password hash (bcrypt; replaced at the next login) and needs no letter. One whose address has an
account here is joined to it. What a root of one user owns as 'system' goes to the owner that the operator names, or to its first admin.
"""

from dataclasses import dataclass, field
from typing import Any

from invokeai_saas.accounts import audit, operator, store
from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db import tenancy
from invokeai_saas.importing import ledger, tables
from invokeai_saas.importing.ledger import Cursor
from invokeai_saas.importing.report import Report
from invokeai_saas.importing.source import ImportRefused, Source

KIND = "user"
REASON = "users of a root become accounts"
USERS = """
SELECT user_id, email, display_name, password_hash, is_admin, is_active, created_at, updated_at, last_login_at, token_epoch
FROM users WHERE user_id <> 'system' ORDER BY created_at, rowid
"""
# Both of the days before accounts and since: the admin's own interface state is the later one.
GIVE_WAY = "DELETE FROM client_state WHERE user_id = 'system' AND key IN (SELECT key FROM client_state WHERE user_id = ?)"
FIRST_ADMIN = """
SELECT user_id FROM users WHERE user_id <> 'system' AND is_admin = 1 AND is_active = 1 ORDER BY created_at, rowid LIMIT 1
"""
INSERT = """
INSERT INTO users (user_id, email, display_name, password_hash, is_admin, is_active, created_at, updated_at, last_login_at, token_epoch)
VALUES (%(user_id)s, %(email)s, %(display_name)s, %(password_hash)s, %(is_admin)s, %(is_active)s, %(created_at)s, %(updated_at)s,
        %(last_login_at)s, %(token_epoch)s)
"""
VERIFY = "UPDATE saas_users SET email_verified_at = clock_timestamp() WHERE user_id = %s"
JOINED = "SELECT name FROM imported WHERE kind = 'user' AND COALESCE(became, name) = %s"
GONE = "its user's account was deleted here"
UNKNOWN = "its user is not among the root's users"


@dataclass
class Owners:
    """Whose a row becomes: ids of the root to ids here, and why others have none. `gone` are ids here whose accounts were deleted."""

    here: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    why_not: dict[str, str] = field(default_factory=dict)

    def of(self, user_id: str | None) -> str | None:
        """The account here, None for rows that stay behind."""
        return self.here.get(user_id or tenancy.SYSTEM_USER_ID)

    def why(self, user_id: str | None) -> str:
        """Why of() is None."""
        return self.why_not.get(user_id or tenancy.SYSTEM_USER_ID, UNKNOWN)


def demand_owner(source: Source, owner_email: str | None) -> None:
    """Raise ImportRefused when rows belong to nobody in particular and nobody says whose they become."""
    count = _ownerless(source)
    if count and owner_email is None and source.connection.execute(FIRST_ADMIN).fetchone() is None:
        raise ImportRefused(f"--owner: expected whose the root's {count} rows without a user become, got nobody")


def bring_users(source: Source, accounts: Accounts, report: Report, owner_email: str | None) -> Owners:
    """Accounts for all users of the root, each in a transaction of its own."""
    owners = Owners()
    total = source.number("SELECT count(*) FROM users WHERE user_id <> 'system'")
    for batch in source.batches(USERS, 500):
        for user in batch:
            with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
                _bring(cursor, user, owners, report)
            report.progress(KIND, total)
    _choose_owner(source, accounts, report, owners, owner_email)
    for user_id, here in owners.here.items():
        if user_id != tenancy.SYSTEM_USER_ID and here == owners.of(tenancy.SYSTEM_USER_ID):
            source.connection.execute(GIVE_WAY, (user_id,))
    return owners


def _bring(cursor: Cursor, user: dict[str, Any], owners: Owners, report: Report) -> None:
    user_id, digest = user["user_id"], ledger.digest_of([user["email"], user["display_name"], user["is_admin"], user["is_active"]])
    before = ledger.known(cursor, KIND, [user_id]).get(user_id)
    if before is not None:
        _know_again(cursor, user_id, before.became or user_id, owners, report)
        if before.digest != digest:
            report.notes.append(f"user {user_id} changed in the root since it was brought; the account here stays as it is")
        return
    there = store.by_id(cursor, user_id) or store.by_email(cursor, user["email"])
    if there is None:
        cursor.execute(INSERT, user)
        cursor.execute(VERIFY, (user_id,))
        audit.append(cursor, operator.OPERATOR, "user_imported", user_id, {"role": "super_admin" if user["is_admin"] else "user"})
        ledger.remember(cursor, KIND, user_id, digest)
        owners.here[user_id] = user_id
        report.of(KIND).brought += 1
    elif there.deleted_at is not None:
        _refuse(user_id, GONE, owners, report)
    elif there.email.lower() != user["email"].lower() or cursor.execute(JOINED, (there.user_id,)).fetchone():
        _refuse(user_id, "its id or address belongs to somebody else here", owners, report)
    else:
        ledger.remember(cursor, KIND, user_id, digest, there.user_id)
        owners.here[user_id] = there.user_id
        report.of(KIND).there += 1
        report.notes.append(f"user {user_id} was joined to the account that has the same address")


def _know_again(cursor: Cursor, user_id: str, here: str, owners: Owners, report: Report) -> None:
    account = store.by_id(cursor, here)
    report.of(KIND).there += 1
    # What was brought of a deleted account is known again; new rows stay behind.
    owners.here[user_id] = here
    if account is None or account.deleted_at is not None:
        owners.gone.add(here)


def _refuse(user_id: str, reason: str, owners: Owners, report: Report) -> None:
    owners.why_not[user_id] = reason
    report.leave(KIND, user_id, reason)


def _choose_owner(source: Source, accounts: Accounts, report: Report, owners: Owners, email: str | None) -> None:
    if not _ownerless(source):
        return
    if email is None:
        admin = str(source.connection.execute(FIRST_ADMIN).fetchone()[0])
        if (here := owners.of(admin)) is None or here in owners.gone:
            raise ImportRefused("--owner: expected an account, the root's first admin has none here")
        owners.here[tenancy.SYSTEM_USER_ID] = here
        return
    owners.here[tenancy.SYSTEM_USER_ID] = _account(accounts, report, email)


def _account(accounts: Accounts, report: Report, email: str) -> str:
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = store.by_email(cursor, email)
    if account is None:
        password = operator.add(accounts, email=email, role="super_admin")
        # At once: an import that is killed later would have kept it to itself.
        report.say(f"made the account {email} (super_admin) with the password {password}")
        return _account(accounts, report, email)
    if account.deleted_at is not None:
        raise ImportRefused("--owner: expected an account that is not deleted")
    return account.user_id


def _ownerless(source: Source) -> int:
    """Rows of a root without accounts, and those that it had before it got accounts."""
    count = 0
    for table in tables.OWNED:
        count += source.number(f"SELECT count(*) FROM {table.name} WHERE ({table.mine}) AND COALESCE(user_id, 'system') = 'system'")
    return count
