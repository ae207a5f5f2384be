"""Dispatch a request to its endpoint: a path, headers and a body in, an answer out, no I/O.

The checks have Plaid's order: endpoint, JSON, keys, fields, token, rate limit. Faults are injected after the rate
limit, so that a failing request is counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, cast

import msgspec

from sandbox.simulator.api import item_endpoints, request_validation, sandbox_endpoints, transactions_endpoints
from sandbox.simulator.api.calls import Call
from sandbox.simulator.api.plaid_errors import PlaidFailure, error_body
from sandbox.simulator.bank import sync
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control.faults import (
    CONNECTION_FAULTS,
    MUTATION,
    SLOW,
    WITHOUT_ANSWER,
    WITHOUT_EFFECT,
    ConnectionFault,
)
from sandbox.simulator.simulated_plaid import SimulatedPlaid

ENDPOINTS = {**transactions_endpoints.ENDPOINTS, **item_endpoints.ENDPOINTS, **sandbox_endpoints.ENDPOINTS}

_TOKEN_FORMAT = "provided access token is in an invalid format. expected format: access-<environment>-<identifier>"  # noqa: S105
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `connection_fault` is how the shell breaks the connection instead of answering properly."""

    status: int
    body: bytes
    content_type: str = "application/json"
    connection_fault: ConnectionFault | None = None
    delay_s: float = 0.0

    @property
    def is_broken(self) -> bool:
        """True where no complete answer arrives."""
        return self.connection_fault in WITHOUT_ANSWER


class FaultEffect(NamedTuple):
    """The effect of an injected fault on the answer: a broken connection, a delay."""

    connection_fault: ConnectionFault | None = None
    delay_s: float = 0.0


def answer(plaid: SimulatedPlaid, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    """Answer one request; a refusal has Plaid's error shape."""
    try:
        result = _answer(plaid, path, headers, raw)
    except PlaidFailure as failure:
        plaid.requests[path if path in ENDPOINTS else "unknown", failure.code] += 1
        body = msgspec.json.encode(error_body(failure, plaid.request_id()))
        return Answer(failure.kind.status, body)
    plaid.requests[path, result.connection_fault or "OK"] += 1
    return result


def _answer(plaid: SimulatedPlaid, path: str, headers: Mapping[str, str], raw: bytes) -> Answer:
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise PlaidFailure("NOT_FOUND", f"the endpoint {path} does not exist")
    body = _parse(raw)
    _check_keys(plaid, headers, body)
    if plaid.options.validate_requests:
        request_validation.validate(endpoint.model, json.loads(raw or b"{}"))
    item = _item(plaid, body) if endpoint.needs_item else None
    plaid.rate_limiter.count(path, item.item_id if item else None, plaid.clock.now())
    effect = _inject_fault(plaid, path, body, item)
    if effect.connection_fault in WITHOUT_EFFECT:
        return Answer(502, _HTML, "text/html", effect.connection_fault)
    try:
        result = endpoint.handle(Call(plaid, body, item))
    except KeyError as error:
        raise _missing(error.args[0]) from error
    if isinstance(result, dict):
        result = msgspec.json.encode({**result, "request_id": plaid.request_id()})
    if effect.connection_fault == "HTML":
        return Answer(200, _HTML, "text/html", "HTML")
    return Answer(200, result, connection_fault=effect.connection_fault, delay_s=effect.delay_s)


def _missing(field: str) -> PlaidFailure:
    return PlaidFailure("MISSING_FIELDS", f"the following required fields are missing: {field}")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw or b"{}", parse_float=Decimal) if b"." in raw else msgspec.json.decode(raw or b"{}")
    except ValueError as error:
        raise PlaidFailure("INVALID_BODY") from error
    if not isinstance(body, dict):
        raise PlaidFailure("INVALID_BODY", "body must be a JSON object")
    return body


def _check_keys(plaid: SimulatedPlaid, headers: Mapping[str, str], body: dict[str, Any]) -> None:
    client_id = headers.get("PLAID-CLIENT-ID") or body.get("client_id")
    secret = headers.get("PLAID-SECRET") or body.get("secret")
    if not client_id or not secret:
        raise _missing("secret" if client_id else "client_id")
    if (client_id, secret) != (plaid.options.client_id, plaid.options.secret):
        raise PlaidFailure("INVALID_API_KEYS")


def _item(plaid: SimulatedPlaid, body: dict[str, Any]) -> Item:
    access_token = body.get("access_token")
    if access_token is None:
        raise _missing("access_token")
    if not isinstance(access_token, str) or not access_token.startswith("access-"):
        raise PlaidFailure("INVALID_ACCESS_TOKEN", _TOKEN_FORMAT)
    item = plaid.bank.by_access_token(access_token)
    if item is None:
        raise PlaidFailure("INVALID_ACCESS_TOKEN")
    return item


def _inject_fault(plaid: SimulatedPlaid, path: str, body: dict[str, Any], item: Item | None) -> FaultEffect:
    """Apply a declared or seeded fault: raise an error code, mutate the bank, or return the effect on the answer."""
    page = None
    if path == "/transactions/sync" and item is not None:
        page = _page_number(body)
        item.cursor_requests += 1
    fault = plaid.faults.take_match(
        path,
        item_id=item.item_id if item else None,
        institution_id=item.institution.institution_id if item else None,
        page=page,
    )
    code = fault.code if fault else _draw_fault(plaid, item, page)
    if code is None:
        return FaultEffect()
    if code == MUTATION:
        if item is not None:
            plaid.step(item.item_id)
        return FaultEffect()
    if code == SLOW and fault is not None:
        return FaultEffect(delay_s=fault.delay_s)
    if code in CONNECTION_FAULTS:
        return FaultEffect(connection_fault=cast(ConnectionFault, code))
    raise PlaidFailure(code)


def _draw_fault(plaid: SimulatedPlaid, item: Item | None, page: int | None) -> str | None:
    if item is None:
        return None
    if page is not None:
        return plaid.faults.draw_sync_fault(ordinal=item.ordinal, request=item.cursor_requests, page=page)
    item.other_requests += 1
    return plaid.faults.draw_other_fault(ordinal=item.ordinal, request=item.other_requests)


def _page_number(body: dict[str, Any]) -> int:
    text = body.get("cursor") or ""
    try:
        return 1 if text in ("", "now") else sync.decode(text).page + 1
    except PlaidFailure:
        return 1
