"""The door of a simulated Plaid: a path, headers and a body in, an answer out. Pure but for the world it changes.

The order of judgement is Plaid's: the endpoint, the JSON, the keys, the fields, the token, the rate limit, then the
endpoint itself. Faults strike after the limit, so that what strikes is counted as a request.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, cast

import msgspec

from sandbox.simulator.api import item_endpoints, requests, sandbox_endpoints, transactions_endpoints
from sandbox.simulator.api.calls import Call
from sandbox.simulator.api.plaid_errors import PlaidFailure, error_body
from sandbox.simulator.bank import sync
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control.faults import BREAKS, MUTATION, SLOW, UNHEARD, WIRE, Wire
from sandbox.simulator.simulated_plaid import SimulatedPlaid

ENDPOINTS = {**transactions_endpoints.ENDPOINTS, **item_endpoints.ENDPOINTS, **sandbox_endpoints.ENDPOINTS}

_TOKEN_FORMAT = "provided access token is in an invalid format. expected format: access-<environment>-<identifier>"  # noqa: S105
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `wire` says how the connection is to be broken instead of answering properly."""

    status: int
    body: bytes
    content_type: str = "application/json"
    wire: Wire | None = None
    delay_s: float = 0.0

    @property
    def breaks(self) -> bool:
        """Whether no whole answer comes."""
        return self.wire in BREAKS


class Strike(NamedTuple):
    """What a fault leaves to the shell: a broken connection, a delay."""

    wire: Wire | None = None
    delay_s: float = 0.0


def answer(world: SimulatedPlaid, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    """Answer one request, in Plaid's words."""
    try:
        result = _answer(world, path, headers, raw)
    except PlaidFailure as failure:
        world.requests[path if path in ENDPOINTS else "unknown", failure.code] += 1
        body = msgspec.json.encode(error_body(failure, world.request_id()))
        return Answer(failure.kind.status, body)
    world.requests[path, result.wire or "OK"] += 1
    return result


def _answer(world: SimulatedPlaid, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise PlaidFailure("NOT_FOUND", f"the endpoint {path} does not exist")
    body = _parse(raw)
    _check_keys(world, headers, body)
    if world.options.validate_requests:
        requests.validate(endpoint.model, json.loads(raw or b"{}"))
    item = _item(world, body) if endpoint.needs_item else None
    world.buckets.count(path, item.item_id if item else None, world.clock.now())
    strike = _strike(world, path, body, item)
    if strike.wire in UNHEARD:
        return Answer(502, _HTML, "text/html", strike.wire)
    call = Call(world, body, item)
    try:
        shown = endpoint.handle(call)
    except KeyError as error:
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {error.args[0]}") from error
    if isinstance(shown, dict):
        shown = msgspec.json.encode({**shown, "request_id": world.request_id()})
    if strike.wire == "HTML":
        return Answer(200, _HTML, "text/html", "HTML")
    return Answer(200, shown, wire=strike.wire, delay_s=strike.delay_s)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw or b"{}", parse_float=Decimal) if b"." in raw else msgspec.json.decode(raw or b"{}")
    except ValueError as error:
        raise PlaidFailure("INVALID_BODY") from error
    if not isinstance(body, dict):
        raise PlaidFailure("INVALID_BODY", "body must be a JSON object")
    return body


def _check_keys(world: SimulatedPlaid, headers: Mapping[str, str], body: dict[str, Any]) -> None:
    client_id = headers.get("PLAID-CLIENT-ID") or body.get("client_id")
    secret = headers.get("PLAID-SECRET") or body.get("secret")
    if not client_id or not secret:
        missing = "client_id" if not client_id else "secret"
        raise PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {missing}")
    if (client_id, secret) != (world.options.client_id, world.options.secret):
        raise PlaidFailure("INVALID_API_KEYS")


def _item(world: SimulatedPlaid, body: dict[str, Any]) -> Item:
    access_token = body.get("access_token")
    if access_token is None:
        raise PlaidFailure("MISSING_FIELDS", "the following required fields are missing: access_token")
    if not isinstance(access_token, str) or not access_token.startswith("access-"):
        raise PlaidFailure("INVALID_ACCESS_TOKEN", _TOKEN_FORMAT)
    item = world.bank.by_access_token(access_token)
    if item is None:
        raise PlaidFailure("INVALID_ACCESS_TOKEN")
    return item


def _strike(world: SimulatedPlaid, path: str, body: dict[str, Any], item: Item | None) -> Strike:
    """Let faults strike: a code is raised, a mutation is made, the rest is returned."""
    page = None
    if path == "/transactions/sync" and item is not None:
        page = _page_number(body)
        item.cursor_requests += 1
    fault = world.faults.take_match(
        path,
        item_id=item.item_id if item else None,
        institution_id=item.institution.institution_id if item else None,
        page=page,
    )
    code = fault.code if fault else _chance(world, item, page)
    if code is None:
        return Strike()
    if code == MUTATION:
        if item is not None:
            world.step(item.item_id)
        return Strike()
    if code == SLOW and fault is not None:
        return Strike(delay_s=fault.delay_s)
    if code in WIRE:
        return Strike(wire=cast(Wire, code))
    raise PlaidFailure(code)


def _chance(world: SimulatedPlaid, item: Item | None, page: int | None) -> str | None:
    if item is None:
        return None
    if page is not None:
        return world.faults.draw_sync_fault(ordinal=item.ordinal, request=item.cursor_requests, page=page)
    item.other_requests += 1
    return world.faults.draw_other_fault(ordinal=item.ordinal, request=item.other_requests)


def _page_number(body: dict[str, Any]) -> int:
    text = body.get("cursor") or ""
    try:
        return 1 if text in ("", "now") else sync.decode(text).page + 1
    except PlaidFailure:
        return 1
