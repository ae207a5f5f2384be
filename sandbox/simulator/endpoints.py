"""Plaid's endpoints: a path, headers and a body in, an answer out. Pure but for the world that it changes.

The order of judgement is Plaid's: the endpoint, the JSON, the keys, the fields, the token, the rate limit, then the
endpoint itself. Faults strike after the limit, so that what strikes is counted as a request.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, cast

import msgspec

from sandbox.simulator import rendering, requests, scenarios, sync
from sandbox.simulator.bank import LINK_TOKEN_LIFE, PUBLIC_TOKEN_LIFE, Account, Item
from sandbox.simulator.faults import MUTATION, WIRE, Wire
from sandbox.simulator.plaid_errors import PlaidFailure, error_body
from sandbox.simulator.randomness import derive
from sandbox.simulator.transactions import Change
from sandbox.simulator.world import LinkSession, World

CREATED_AT_ONCE_MAX = 10
"""Source: Plaid API, /sandbox/transactions/create: at most ten, dated within 14 days."""

CREATED_DAYS_MAX = 14

DAYS_REQUESTED_DEFAULT = 90

_TOKEN_FORMAT = "provided access token is in an invalid format. expected format: access-<environment>-<identifier>"  # noqa: S105
_TOKEN_EXPIRED = (
    "provided public token is expired. Public tokens expire 30 minutes after creation at which point they can no "  # noqa: S105
    "longer be exchanged"
)
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `wire` says how the connection is to be broken instead of answering properly."""

    status: int
    body: bytes
    content_type: str = "application/json"
    wire: Wire | None = None


class Call(NamedTuple):
    """A request that passed every check. `item` is absent where the endpoint has no access token."""

    world: World
    body: dict[str, Any]
    item: Item | None

    @property
    def linked(self) -> Item:
        """The Item of the access token."""
        assert self.item is not None
        return self.item


class Endpoint(NamedTuple):
    """How an endpoint is reached: its handler, the model of its request, whether it needs an access token."""

    handle: Callable[[Call], dict[str, Any] | bytes]
    model: str
    needs_item: bool = True


def answer(world: World, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    """Answer one request, in Plaid's words."""
    try:
        result = _answer(world, path, headers, raw)
    except PlaidFailure as failure:
        world.requests[path if path in ENDPOINTS else "unknown", failure.code] += 1
        body = msgspec.json.encode(error_body(failure, world.request_id()))
        return Answer(failure.kind.status, body)
    world.requests[path, result.wire or "OK"] += 1
    return result


def _answer(world: World, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise PlaidFailure("NOT_FOUND", f"the endpoint {path} does not exist")
    body = _parse(raw)
    _check_keys(world, headers, body)
    if world.options.validate_requests:
        requests.validate(endpoint.model, body)
    item = _item(world, body) if endpoint.needs_item else None
    world.buckets.count(path, item.item_id if item else None, world.clock.now())
    wire = _strike(world, path, body, item)
    call = Call(world, body, item)
    try:
        shown = endpoint.handle(call)
    except KeyError as error:
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {error.args[0]}") from error
    if isinstance(shown, dict):
        shown = msgspec.json.encode({**shown, "request_id": world.request_id()})
    if wire == "HTML":
        return Answer(200, _HTML, "text/html", wire)
    return Answer(200, shown, wire=wire)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw or b"{}", parse_float=Decimal) if b"." in raw else msgspec.json.decode(raw or b"{}")
    except ValueError as error:
        raise PlaidFailure("INVALID_BODY") from error
    if not isinstance(body, dict):
        raise PlaidFailure("INVALID_BODY", "body must be a JSON object")
    return body


def _check_keys(world: World, headers: Mapping[str, str], body: dict[str, Any]) -> None:
    client_id = headers.get("PLAID-CLIENT-ID") or body.get("client_id")
    secret = headers.get("PLAID-SECRET") or body.get("secret")
    if not client_id or not secret:
        missing = "client_id" if not client_id else "secret"
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {missing}")
    if (client_id, secret) != (world.options.client_id, world.options.secret):
        raise PlaidFailure("INVALID_API_KEYS")


def _item(world: World, body: dict[str, Any]) -> Item:
    access_token = body.get("access_token")
    if access_token is None:
        raise PlaidFailure("MISSING_FIELDS", "the following required fields are missing: access_token")
    if not isinstance(access_token, str) or not access_token.startswith("access-"):
        raise PlaidFailure("INVALID_ACCESS_TOKEN", _TOKEN_FORMAT)
    item = world.bank.by_access_token(access_token)
    if item is None:
        raise PlaidFailure("INVALID_ACCESS_TOKEN")
    return item


def _strike(world: World, path: str, body: dict[str, Any], item: Item | None) -> Wire | None:
    """Let faults strike: a code is raised, a mutation is made, a break of the wire is returned."""
    page = None
    if path == "/transactions/sync" and item is not None:
        page = _page_number(body)
        item.cursor_requests += 1
    code = world.faults.strike(
        path,
        item_id=item.item_id if item else None,
        institution_id=item.institution.institution_id if item else None,
        page=page,
    )
    if code is None and page is not None and item is not None:
        code = world.faults.chance(ordinal=item.ordinal, request=item.cursor_requests, page=page)
    if code == MUTATION:
        if item is not None:
            world.step(item.item_id)
        return None
    if code in WIRE:
        return cast(Wire, code)
    if code is not None:
        raise PlaidFailure(code)
    return None


def _page_number(body: dict[str, Any]) -> int:
    text = body.get("cursor") or ""
    try:
        return 1 if text in ("", "now") else sync.decode(text).page + 1
    except PlaidFailure:
        return 1


def _healthy(call: Call) -> Item:
    """Give the call's Item. Raises: PlaidFailure, where it is in error or its bank is down."""
    item = call.linked
    if item.error_code is not None:
        raise PlaidFailure(item.error_code)
    if item.institution.institution_id in call.world.institutions_down:
        item.last_failed_update = call.world.clock.now()
        raise PlaidFailure("INSTITUTION_DOWN")
    return item


def _transactions_sync(call: Call) -> bytes:
    item = _healthy(call)
    world = call.world
    options = call.body.get("options") or {}
    item.synced_once = True
    variant = rendering.Variant(
        original_description=bool(options.get("include_original_description")),
        category_version=options.get("personal_finance_category_version") or world.options.category_version,
    )
    account_id = options.get("account_id") or ""
    if account_id and account_id not in item.accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    count = call.body.get("count") or sync.COUNT_DEFAULT
    if not 1 <= count <= sync.COUNT_MAX:
        raise PlaidFailure("INVALID_FIELD", "count must be between 1 and 500")
    if item.phase == "NOT_READY":
        return _sync_body(call, sync.Page(number=1, next_cursor="", has_more=False), variant, accounts=[])
    cursor = sync.position(item, call.body.get("cursor") or "", account_id=account_id)
    page = world.pager.page(item, cursor, count)
    accounts = [held for held in item.accounts.values() if held.has_rows and not held.revoked]
    if account_id:
        accounts = [held for held in accounts if held.account_id == account_id]
    return _sync_body(call, page, variant, accounts=accounts)


def _sync_body(call: Call, page: sync.Page, variant: rendering.Variant, *, accounts: list[Account]) -> bytes:
    kept = call.world.kept
    shown = [rendering.account(held, novel=call.world.options.novelty > 0) for held in accounts]
    removed = b",".join(rendering.removal(change.transaction) for change in page.removed)
    return b"".join(
        (
            b'{"accounts":',
            msgspec.json.encode(shown),
            b',"added":',
            kept.array(page.added, variant),
            b',"has_more":',
            b"true" if page.has_more else b"false",
            b',"modified":',
            kept.array(page.modified, variant),
            b',"next_cursor":"',
            page.next_cursor.encode(),
            b'","removed":[',
            removed,
            b'],"request_id":"',
            call.world.request_id().encode(),
            b'","transactions_update_status":"',
            call.linked.phase.encode(),
            b'"}',
        )
    )


def _transactions_refresh(call: Call) -> dict[str, Any]:
    call.world.refresh(_healthy(call))
    return {}


def _accounts_get(call: Call) -> dict[str, Any]:
    item = _healthy(call)
    asked = (call.body.get("options") or {}).get("account_ids")
    accounts = [held for held in item.accounts.values() if not held.revoked]
    if asked is not None:
        accounts = [held for held in accounts if held.account_id in asked]
        if len(accounts) != len(set(asked)):
            raise PlaidFailure("INVALID_ACCOUNT_ID")
    novel = call.world.options.novelty > 0
    return {
        "accounts": [rendering.account(held, novel=novel) for held in accounts],
        "item": rendering.item(item, consent=False),
    }


def _item_get(call: Call) -> dict[str, Any]:
    item = call.linked
    return {"item": rendering.item(item, consent=True), "status": rendering.status(item)}


def _item_remove(call: Call) -> dict[str, Any]:
    call.world.bank.remove(call.linked)
    return {}


def _item_webhook_update(call: Call) -> dict[str, Any]:
    item = call.linked
    item.webhook_url = call.body.get("webhook") or None
    call.world.notify(item, "ITEM", "WEBHOOK_UPDATE_ACKNOWLEDGED", {"new_webhook_url": item.webhook_url, "error": None})
    return {"item": rendering.item(item, consent=False)}


def _item_access_token_invalidate(call: Call) -> dict[str, Any]:
    return {"new_access_token": call.world.new_access_token(call.linked)}


def _item_public_token_create(call: Call) -> dict[str, Any]:
    expires_at = call.world.clock.now() + PUBLIC_TOKEN_LIFE
    return {
        "public_token": call.world.public_token(call.linked),
        "expiration": rendering.moment(expires_at),
    }


def _item_public_token_exchange(call: Call) -> dict[str, Any]:
    offered = call.world.bank.redeem(call.body["public_token"])
    if offered is None:
        raise PlaidFailure("INVALID_PUBLIC_TOKEN")
    if offered.expires_at <= call.world.clock.now():
        raise PlaidFailure("INVALID_PUBLIC_TOKEN", _TOKEN_EXPIRED)
    item = call.world.item(offered.item_id)
    return {"access_token": item.access_token, "item_id": item.item_id}


def _link_token_create(call: Call) -> dict[str, Any]:
    body = call.body
    products = body.get("products") or ["transactions"]
    session = LinkSession(
        user=(body.get("user") or {}).get("client_user_id") or body.get("user_id") or "user_good",
        webhook_url=body.get("webhook"),
        products=tuple(products),
        access_token=body.get("access_token"),
        days_requested=(body.get("transactions") or {}).get("days_requested") or DAYS_REQUESTED_DEFAULT,
    )
    expires_at = call.world.clock.now() + LINK_TOKEN_LIFE
    return {"link_token": call.world.link_token(session), "expiration": rendering.moment(expires_at)}


def _webhook_verification_key_get(call: Call) -> dict[str, Any]:
    key = call.world.keyring.keys.get(call.body["key_id"])
    if key is None:
        raise PlaidFailure("INVALID_WEBHOOK_VERIFICATION_KEY_ID")
    return {"key": key.jwk()}


def _sandbox_public_token_create(call: Call) -> dict[str, Any]:
    options = call.body.get("options") or {}
    dates = options.get("transactions") or {}
    days = DAYS_REQUESTED_DEFAULT
    if "start_date" in dates:
        days = max(1, (call.world.clock.now().date() - dt.date.fromisoformat(dates["start_date"])).days)
    item = call.world.create_item(
        options.get("override_username") or "user_good",
        institution_id=call.body["institution_id"],
        days=days,
        webhook_url=options.get("webhook"),
        products=tuple(call.body["initial_products"]),
        ready=False,
    )
    return {"public_token": call.world.public_token(item)}


def _sandbox_item_fire_webhook(call: Call) -> dict[str, Any]:
    code = call.body["webhook_code"]
    kind = call.body.get("webhook_type") or _FIRED_AS.get(code, "TRANSACTIONS")
    item = call.linked
    if item.webhook_url is None:
        raise PlaidFailure("SANDBOX_WEBHOOK_INVALID", "webhook was not configured for this item")
    if code == "SYNC_UPDATES_AVAILABLE":
        fired = call.world.tell_updates(item)
    else:
        fired = call.world.notify(item, kind, code, _extra(call, code))
    return {"webhook_fired": fired}


def _extra(call: Call, code: str) -> dict[str, object]:
    item = call.linked
    some_account = next(iter(item.accounts))
    if code == "USER_ACCOUNT_REVOKED":
        return {"account_id": some_account}
    if code == "PENDING_DISCONNECT":
        return {"reason": "INSTITUTION_MIGRATION"}
    if code == "RECURRING_TRANSACTIONS_UPDATE":
        return {"account_ids": [held.account_id for held in item.account_of_transactions]}
    if code == "DEFAULT_UPDATE":
        new = (call.body.get("options") or {}).get("new_transactions", 1)
        return {"new_transactions": new, "error": None}
    return {} if code == "LOGIN_REPAIRED" else {"error": None}


def _sandbox_item_reset_login(call: Call) -> dict[str, Any]:
    call.world.break_item(call.linked, "ITEM_LOGIN_REQUIRED")
    return {"reset_login": True}


def _sandbox_transactions_create(call: Call) -> dict[str, Any]:
    item = _healthy(call)
    world = call.world
    asked = call.body["transactions"]
    if not 1 <= len(asked) <= CREATED_AT_ONCE_MAX:
        raise PlaidFailure("INVALID_FIELD", "transactions must hold between 1 and 10 transactions")
    rng = derive(world.options.seed, "dictated", item.ordinal, item.updates)
    drawing = scenarios.Drawing(rng, item, world.around, world.clock.now())
    world.publish(item, [Change("added", _dictated(drawing, wish)) for wish in asked])
    return {}


def _dictated(drawing: scenarios.Drawing, wish: dict[str, Any]) -> Any:
    today = drawing.now.date()
    transacted, posted = (dt.date.fromisoformat(wish[name]) for name in ("date_transacted", "date_posted"))
    if any(abs((day - today).days) > CREATED_DAYS_MAX for day in (transacted, posted)):
        raise PlaidFailure("INVALID_FIELD", "dates must be within 14 days of today")
    accounts = [held for held in drawing.accounts if held.plan.type == "depository"]
    if "account_id" in wish:
        accounts = [held for held in accounts if held.account_id == wish["account_id"]]
    if not accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    return scenarios.dictated(
        drawing,
        accounts[0],
        amount=Decimal(wish["amount"]),
        description=wish["description"],
        transacted=transacted,
        posted=posted,
    )


_FIRED_AS = {
    "NEW_ACCOUNTS_AVAILABLE": "ITEM",
    "USER_PERMISSION_REVOKED": "ITEM",
    "USER_ACCOUNT_REVOKED": "ITEM",
    "PENDING_DISCONNECT": "ITEM",
    "LOGIN_REPAIRED": "ITEM",
    "ERROR": "ITEM",
    "SMS_MICRODEPOSITS_VERIFICATION": "AUTH",
    "AUTHORIZATION_GRANTED": "AUTH",
}


def _endpoint(path: str, handle: Callable[[Call], dict[str, Any] | bytes], *, needs_item: bool = True) -> Endpoint:
    # plaid-python names a request model after its path: /item/webhook/update is ItemWebhookUpdateRequest.
    module = f"{path.strip('/').replace('/', '_')}_request"
    return Endpoint(handle, f"{module}:{module.title().replace('_', '')}", needs_item)


ENDPOINTS = {
    "/link/token/create": _endpoint("/link/token/create", _link_token_create, needs_item=False),
    "/item/public_token/create": _endpoint("/item/public_token/create", _item_public_token_create),
    "/item/public_token/exchange": _endpoint(
        "/item/public_token/exchange", _item_public_token_exchange, needs_item=False
    ),
    "/item/get": _endpoint("/item/get", _item_get),
    "/item/remove": _endpoint("/item/remove", _item_remove),
    "/item/webhook/update": _endpoint("/item/webhook/update", _item_webhook_update),
    "/item/access_token/invalidate": _endpoint("/item/access_token/invalidate", _item_access_token_invalidate),
    "/transactions/sync": _endpoint("/transactions/sync", _transactions_sync),
    "/transactions/refresh": _endpoint("/transactions/refresh", _transactions_refresh),
    "/accounts/get": _endpoint("/accounts/get", _accounts_get),
    "/accounts/balance/get": _endpoint("/accounts/balance/get", _accounts_get),
    "/webhook_verification_key/get": _endpoint(
        "/webhook_verification_key/get", _webhook_verification_key_get, needs_item=False
    ),
    "/sandbox/public_token/create": _endpoint(
        "/sandbox/public_token/create", _sandbox_public_token_create, needs_item=False
    ),
    "/sandbox/item/fire_webhook": _endpoint("/sandbox/item/fire_webhook", _sandbox_item_fire_webhook),
    "/sandbox/item/reset_login": _endpoint("/sandbox/item/reset_login", _sandbox_item_reset_login),
    "/sandbox/transactions/create": _endpoint("/sandbox/transactions/create", _sandbox_transactions_create),
}
