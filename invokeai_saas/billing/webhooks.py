"""POST /api/v1/webhooks/stripe (S3-184): the raw body proved and written down, 200. What it means is found out later."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request

from invokeai_saas.billing import inbox
from invokeai_saas.billing.errors import BadWebhook, BillingNotSetUp
from invokeai_saas.billing.model import Billing

webhooks_router = APIRouter(prefix="/v1/webhooks", tags=["billing"])
MAX_BYTES = 1024 * 1024


def billing_of(request: Request) -> Billing:
    """What install() left."""
    billing: Billing = request.app.state.saas_billing
    return billing


async def raw_body(request: Request) -> bytes:
    """As it came: a signature is over bytes, not over what they mean."""
    body: bytes = await request.body()
    return body


@webhooks_router.post("/stripe", openapi_extra={"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}})
def receive(
    request: Request, body: Annotated[bytes, Depends(raw_body)], stripe_signature: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    """Take an event of Stripe's. 400 for everything that Stripe did not sign; 200 before anything is done about it."""
    billing = billing_of(request)
    if billing.gateway is None or not billing.policy.webhook_secrets:
        raise BillingNotSetUp
    if len(body) > MAX_BYTES:
        raise BadWebhook
    inbox.record(billing, inbox.verified(billing.policy, body, stripe_signature))
    billing.wake()
    return {"status": "ok"}
