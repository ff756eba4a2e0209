"""Which Stripe customer is whose. A customer is made before the first checkout and remembered before anything can happen to it."""

from typing import Any

from invokeai_saas.accounts import store
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing.errors import BillingNotSetUp
from invokeai_saas.billing.gateway import Gateway
from invokeai_saas.billing.model import Billing
from invokeai_saas.db import tenancy

OF_USER = "SELECT stripe_customer_id FROM billing_customers WHERE user_id = %s AND retired_at IS NULL"
RETIRED = "SELECT count(*) AS n FROM billing_customers WHERE user_id = %s AND retired_at IS NOT NULL"
USER_OF = "SELECT user_id FROM billing_customers WHERE stripe_customer_id = %s"
REMEMBER = """
INSERT INTO billing_customers (stripe_customer_id, user_id) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""
RETIRE = "UPDATE billing_customers SET retired_at = clock_timestamp() WHERE stripe_customer_id = %s AND retired_at IS NULL"


def gateway_of(billing: Billing) -> Gateway:
    """Stripe, or BillingNotSetUp."""
    if billing.gateway is None:
        raise BillingNotSetUp
    return billing.gateway


def known(billing: Billing, user_id: str) -> str | None:
    """The user's customer, if there is one."""
    with tenancy.as_system("Stripe's ids are not the tenants' to read"), billing.database.postgres() as cursor:
        row = cursor.execute(OF_USER, (user_id,)).fetchone()
    return None if row is None else str(row["stripe_customer_id"])


def user_of(cursor: Cursor, customer: str) -> str | None:
    """Whose customer it is, also one that was replaced."""
    row = cursor.execute(USER_OF, (customer,)).fetchone()
    return None if row is None else str(row["user_id"])


def ensure(billing: Billing, user_id: str) -> str:
    """The user's customer, made now when there is none, or none any more at Stripe."""
    gateway, customer = gateway_of(billing), known(billing, user_id)
    if customer is not None and gateway.customer_is_there(customer):
        return customer
    account, replaced = _about(billing, user_id, retire=customer)
    # The key outlives a crash between making and remembering; the address is in it because the body is.
    key = f"customer-{user_id}-{replaced}-{store.sha256(f'{account.email}/{account.display_name}')[:16]}"
    made = gateway.make_customer(user_id=user_id, email=account.email, name=account.display_name, key=key)
    with tenancy.as_system("Stripe's ids are not the tenants' to write"), billing.database.postgres() as cursor:
        cursor.execute(REMEMBER, (made, user_id))
        row = cursor.execute(OF_USER, (user_id,)).fetchone()
    assert row is not None
    return str(row["stripe_customer_id"])


def _about(billing: Billing, user_id: str, *, retire: str | None) -> tuple[Any, int]:
    with tenancy.as_system("a customer is made from an account"), billing.database.postgres() as cursor:
        if retire is not None:
            cursor.execute(RETIRE, (retire,))
        account = store.by_id(cursor, user_id)
        row = cursor.execute(RETIRED, (user_id,)).fetchone()
    assert account is not None and row is not None
    return account, int(row["n"])
