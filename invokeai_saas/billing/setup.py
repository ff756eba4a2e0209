"""Settings in, billing out; without keys one that says so."""

from datetime import timedelta
from typing import Any

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.billing.model import Billing, BillingPolicy, Tell
from invokeai_saas.settings import Settings


def billing_of(settings: Settings, accounts: Accounts, *, tell: Tell = lambda user_id, event, data: None) -> Billing:
    """`tell` sends an event to the user's open pages."""
    if settings.stripe_secret_key is None:
        return Billing(accounts, None, BillingPolicy(grace=timedelta(days=settings.grace_days)), tell)
    # The SDK takes seconds to import; who has no keys does not need it.
    from invokeai_saas.billing.gateway import Gateway, client_of

    key = settings.stripe_secret_key.get_secret_value()
    policy = BillingPolicy(
        grace=timedelta(days=settings.grace_days),
        currency=settings.stripe_currency,
        livemode="_live_" in key,
        account=settings.stripe_account,
        webhook_secrets=tuple(secret.get_secret_value() for secret in settings.stripe_webhook_secret),
    )
    gateway = Gateway(client_of(key, api_base=settings.stripe_api_base), in_transaction=lambda: accounts.database.in_transaction)
    return Billing(accounts, gateway, policy, tell)


def add_jobs(background: Any, billing: Billing) -> None:
    """What must be done again and again (jobs/background.py)."""
    from invokeai_saas.billing import upkeep

    background.add("billing upkeep", 3600, lambda: upkeep.run(billing))
    if billing.gateway is None:
        return
    from invokeai_saas.billing import inbox, reconcile

    background.add("reconcile billing", 3600, lambda: reconcile.reconcile(billing))
    background.add("forget stripe events", 24 * 3600, lambda: inbox.forget(billing))
