"""Serve the endpoints of Items, tokens and webhook keys."""

from typing import Any

from sandbox.simulator.api import rendering
from sandbox.simulator.api.calls import Call, endpoints
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import LINK_TOKEN_LIFE, PUBLIC_TOKEN_LIFE
from sandbox.simulator.simulated_plaid import DAYS_REQUESTED_DEFAULT, LinkSession

_TOKEN_EXPIRED = (
    "provided public token is expired. Public tokens expire 30 minutes after creation at which point they can no "  # noqa: S105
    "longer be exchanged"
)


def _item_get(call: Call) -> dict[str, Any]:
    item = call.linked
    return {"item": rendering.item(item, consent=True), "status": rendering.status(item)}


def _item_remove(call: Call) -> dict[str, Any]:
    call.plaid.bank.remove(call.linked)
    return {}


def _item_webhook_update(call: Call) -> dict[str, Any]:
    item = call.linked
    item.webhook_url = call.body.get("webhook") or None
    extra = {"new_webhook_url": item.webhook_url, "error": None}
    call.plaid.notifier.notify(item, "ITEM", "WEBHOOK_UPDATE_ACKNOWLEDGED", extra)
    return {"item": rendering.item(item, consent=False)}


def _item_access_token_invalidate(call: Call) -> dict[str, Any]:
    return {"new_access_token": call.plaid.new_access_token(call.linked)}


def _item_public_token_create(call: Call) -> dict[str, Any]:
    expires_at = call.plaid.clock.now() + PUBLIC_TOKEN_LIFE
    return {"public_token": call.plaid.public_token(call.linked), "expiration": rendering.moment(expires_at)}


def _item_public_token_exchange(call: Call) -> dict[str, Any]:
    public_token = call.plaid.bank.redeem(call.body["public_token"])
    if public_token is None:
        raise PlaidFailure("INVALID_PUBLIC_TOKEN")
    if public_token.expires_at <= call.plaid.clock.now():
        raise PlaidFailure("INVALID_PUBLIC_TOKEN", _TOKEN_EXPIRED)
    item = call.plaid.item(public_token.item_id)
    return {"access_token": item.access_token, "item_id": item.item_id}


def _link_token_create(call: Call) -> dict[str, Any]:
    body = call.body
    session = LinkSession(
        user=(body.get("user") or {}).get("client_user_id") or body.get("user_id") or "user_good",
        webhook_url=body.get("webhook"),
        products=tuple(body.get("products") or ["transactions"]),
        access_token=body.get("access_token"),
        days_requested=(body.get("transactions") or {}).get("days_requested") or DAYS_REQUESTED_DEFAULT,
    )
    expires_at = call.plaid.clock.now() + LINK_TOKEN_LIFE
    return {"link_token": call.plaid.link_token(session), "expiration": rendering.moment(expires_at)}


def _webhook_verification_key_get(call: Call) -> dict[str, Any]:
    key = call.plaid.keyring.keys.get(call.body["key_id"])
    if key is None:
        raise PlaidFailure("INVALID_WEBHOOK_VERIFICATION_KEY_ID")
    return {"key": key.jwk()}


ENDPOINTS = endpoints(
    {
        "/link/token/create": _link_token_create,
        "/item/public_token/create": _item_public_token_create,
        "/item/public_token/exchange": _item_public_token_exchange,
        "/item/get": _item_get,
        "/item/remove": _item_remove,
        "/item/webhook/update": _item_webhook_update,
        "/item/access_token/invalidate": _item_access_token_invalidate,
        "/webhook_verification_key/get": _webhook_verification_key_get,
    },
    without_item={"/link/token/create", "/item/public_token/exchange", "/webhook_verification_key/get"},
)
