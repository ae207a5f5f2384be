"""The table of routes: what can be asked, with which values, and how it is answered.

Handlers, validation and the OpenAPI document all come from it. A new route, for example a stream over SSE, edits
or the operator's console, is a row here, a handler of the same name and a schema in gateway.documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway import parameters as read
from gateway.parameters import Parameter
from projections.queries import PAGE_MAX

WAIT_S_MAX = 60.0
"""Longest `?wait=`: load balancers cut silent requests after a minute."""

_ID: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": read.TEXT_CHARS_MAX}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps a status to the name of its schema; None has no JSON body."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    operation: str
    summary: str
    answers: Mapping[int, str | None]
    parameters: tuple[Parameter, ...] = ()
    key: bool = True
    description: str = ""


def _in_path(name: str, description: str) -> Parameter:
    return Parameter(name, "path", read.text, _ID, description, required=True)


def _query(name: str, reader: Any, description: str, **schema: Any) -> Parameter:
    return Parameter(name, "query", reader, schema, description)


def _body(name: str, description: str, *, secret: bool = False) -> Parameter:
    return Parameter(name, "body", read.text, _ID, description, required=True, secret=secret)


USER = _in_path("user_id", "the application's own id of the user")
ITEM = _in_path("item_id", "Plaid's id of the Item")
TRANSACTION = Parameter(
    "transaction_id", "path", read.own_id, {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "the transaction's own id, which outlives pending to posted", required=True,
)  # fmt: skip
WAIT = _query(
    "wait", read.seconds(WAIT_S_MAX), "wait up to so many seconds until readers see the outcome",
    type="number", minimum=0, maximum=WAIT_S_MAX,
)  # fmt: skip
IDEMPOTENCY = Parameter(
    "Idempotency-Key", "header", read.text, _ID,
    "a value of the client's own; the same request with the same key is answered again and done once",
)  # fmt: skip
USER_FIELD = _body("user_id", "the application's own id of the user")
PUBLIC_TOKEN = _body("public_token", "what Plaid Link gave to the browser", secret=True)
STREAM = """\
Messages are JSON texts `{event, data, timestamp, position}`. First `initial.balances` (accounts and Items) and
`initial.transactions` (the latest 50), read at one moment; then each change after it, once and in order:
`transaction.added`, `transaction.modified`, `transaction.removed`, `balance.updated`, `item.linked`,
`item.state_changed`, `item.unlinked`, and `transactions.changed`, which stands for more than 100 at once: connect
again to read them. `position` is `partition:offset.number`. A client that sends `{"renew": true}` is sent
`stream.token` with a new token.

Close codes: 1001 the server stops, 1008 no valid token or too many streams of one user, 1012 the server's own
stream began anew, 1013 too slow or the tables are away. After all but 1008: connect again for a new snapshot."""
FILTERS = (
    _query("account_id", read.text, "of this account only", type="string"),
    _query("item_id", read.text, "of this Item only", type="string"),
    _query("from", read.date, "dated this day or later", type="string", format="date"),
    _query("to", read.date, "dated this day or earlier", type="string", format="date"),
    _query("pending", read.boolean, "pending only, or posted only", type="boolean"),
    _query("limit", read.integer(1, PAGE_MAX), "rows of a page", type="integer", minimum=1, maximum=PAGE_MAX,
           default=100),
    _query("cursor", str, "`next_cursor` of the page before, with the same filters", type="string"),
)  # fmt: skip

ROUTES = (
    Route("POST", "/v1/link/token", "create_link_token", "Make a token that opens Plaid Link in a browser",
          {200: "LinkToken", 502: "Problem"}, (USER_FIELD,)),
    Route("POST", "/v1/items", "link_item", "Exchange Link's public token and begin to sync the Item",
          {201: "Linked", 409: "Problem", 413: "Problem", 422: "Problem", 502: "Problem"},
          (USER_FIELD, PUBLIC_TOKEN, IDEMPOTENCY)),
    Route("GET", "/v1/items/{item_id}", "get_item", "An Item and its state", {200: "Item", 404: "Problem"}, (ITEM,)),
    Route("DELETE", "/v1/items/{item_id}", "unlink_item", "End an Item at Plaid and here",
          {200: "Unlinking", 202: "Unlinking", 404: "Problem"}, (ITEM, WAIT)),
    Route("POST", "/v1/items/{item_id}/sync", "sync_item", "Ask Plaid now what changed",
          {200: "Sync", 202: "Sync", 404: "Problem", 409: "Problem"}, (ITEM, WAIT)),
    Route("GET", "/v1/users/{user_id}/items", "list_items", "A user's Items", {200: "Items", 404: "Problem"}, (USER,)),
    Route("GET", "/v1/users/{user_id}/accounts", "list_accounts", "A user's accounts with their balances",
          {200: "Accounts", 404: "Problem"}, (USER,)),
    Route("GET", "/v1/users/{user_id}/transactions", "list_transactions", "A user's transactions, newest first",
          {200: "Transactions", 404: "Problem"}, (USER, *FILTERS)),
    Route("GET", "/v1/transactions/{transaction_id}", "get_transaction", "One transaction, removed or not",
          {200: "Transaction", 404: "Problem"}, (TRANSACTION,)),
    Route("POST", "/v1/users/{user_id}/stream-token", "create_stream_token",
          "Make a token with which the user's browser opens the stream", {201: "StreamToken", 404: "Problem"}, (USER,)),
    Route("GET", "/v1/stream", "stream", "The user's stream, over WebSocket", {101: None, 426: "Problem"},
          (_query("token", str, "a stream token; without it the first message must be {\"token\": …}",
                  type="string"),), key=False, description=STREAM),
    Route("GET", "/v1/openapi.json", "openapi", "This document", {200: None}, key=False),
)  # fmt: skip
