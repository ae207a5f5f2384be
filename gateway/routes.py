"""The table of routes: path, operation, answers and parameters. Dispatch, validation and the OpenAPI document read it.

A new route is a row here, a handler method named like its operation, a summary in gateway.http.openapi_texts and, for
a new answer, a schema in gateway.http.response_schemas.
"""

from collections.abc import Mapping
from typing import Any

from gateway.handlers.edit_fields import FIELDS
from gateway.http import parameters as read
from gateway.http.parameters import Parameter
from gateway.http.route import Route
from projections.read.queries import PAGE_MAX
from runtime.operators.reconciliations import HISTORY_MAX

SYNC_RUNS_MAX = 100
"""Sync runs in one answer: each may cost a query of 0.2 ms for its counts."""
ACCOUNTS_MAX = 100
"""Accounts that one request names: more than any person has at a bank."""
WAIT_S_MAX = 60.0
"""Longest `?wait=`: load balancers cut silent requests after a minute."""

_ID: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": read.TEXT_CHARS_MAX}
_OWN_ID: Mapping[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_TIME: Mapping[str, Any] = {"type": "string", "format": "date-time"}


def _in_path(name: str, description: str) -> Parameter:
    return Parameter(name, "path", read.text, _ID, description, required=True)


def _own_id_in_path(name: str, description: str) -> Parameter:
    return Parameter(name, "path", read.own_id, _OWN_ID, description, required=True)


def _query(name: str, reader: Any, description: str, **schema: Any) -> Parameter:
    return Parameter(name, "query", reader, schema, description)


def _date(name: str, description: str) -> Parameter:
    return _query(name, read.date, description, type="string", format="date")


def _limit(maximum: int, description: str, *, default: int) -> Parameter:
    reader = read.integer(1, maximum)
    return _query("limit", reader, description, type="integer", minimum=1, maximum=maximum, default=default)


def _field(name: str, description: str, *, secret: bool = False) -> Parameter:
    return Parameter(name, "body", read.text, _ID, description, required=True, secret=secret)


_USER_ID = "the application's own id of the user"
USER = _in_path("user_id", _USER_ID)
USER_QUERY = Parameter("user_id", "query", read.text, _ID, _USER_ID, required=True)
USER_FIELD = _field("user_id", _USER_ID)
ITEM = _in_path("item_id", "Plaid's id of the Item")
ACCOUNT = _in_path("account_id", "Plaid's id of the account")
REQUEST = _in_path("request_id", "`request_id` of the sync's answer")
TRANSACTION = _own_id_in_path("transaction_id", "the transaction's own id, which stays from pending to posted")
REVIEW = _own_id_in_path("review_id", "the review's id")
CANDIDATE = Parameter(
    "own_id", "body", read.own_id, _OWN_ID, "own id of the chosen candidate; required where there are several"
)
PUBLIC_TOKEN = _field("public_token", "the public token that Plaid Link gave to the browser", secret=True)
ACCOUNT_IDS = Parameter(
    "account_ids",
    "body",
    read.texts(ACCOUNTS_MAX),
    {"type": "array", "items": _ID, "minItems": 1, "maxItems": ACCOUNTS_MAX},
    "only these accounts; by default all of the Item",
    json=list,
)
OLDEST = Parameter(
    "min_last_updated_datetime",
    "body",
    read.moment,
    _TIME,
    "oldest acceptable time of a balance, at banks without real-time balances",
)
IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "header",
    read.text,
    _ID,
    "a value that the client chooses; the same request with the same key is answered again and done once",
)
WAIT = _query(
    "wait",
    read.seconds(WAIT_S_MAX),
    "wait up to so many seconds until readers see the result",
    type="number",
    minimum=0,
    maximum=WAIT_S_MAX,
)
REFRESH = _query("refresh", read.boolean, "have Plaid poll the bank now", type="boolean", default=False)
CURSOR = _query("cursor", str, "`next_cursor` of the page before", type="string")
LIMIT = _limit(PAGE_MAX, "rows of a page", default=100)
SYNC_RUNS = _limit(SYNC_RUNS_MAX, "sync runs of a page", default=50)
DISCREPANCIES = _limit(HISTORY_MAX, "discrepancies at most", default=50)
ITEM_QUERY = _query("item_id", read.text, "Plaid's id of the Item, where several have this account id", type="string")
FROM, TO = _date("from", "dated this day or later"), _date("to", "dated this day or earlier")
FILTERS = (
    _query("account_id", read.text, "only transactions of this account", type="string"),
    _query("item_id", read.text, "only transactions of this Item", type="string"),
    FROM,
    TO,
    _query("pending", read.boolean, "true: pending only; false: posted only", type="boolean"),
    _query("in_review", read.boolean, "only transactions that wait for a review", type="boolean", default=False),
    LIMIT,
    _query("cursor", str, "`next_cursor` of the page before, with the same filters", type="string"),
)
AS_OF = Parameter(
    "as_of", "query", read.moment, _TIME, "known at this time or earlier, with its offset from UTC", required=True
)
EFFECTIVE_AT = _date("effective_at", "dated this day or earlier")
FILTERS_AS_OF = (AS_OF, EFFECTIVE_AT, *(filter_ for filter_ in FILTERS if filter_ is not TO))
LEDGER_AT = _date("at", "only transfers dated this day or earlier")
LEDGER_KNOWN_AT = _query("known_at", read.moment, "balances as known at this time", **_TIME)
STREAM_TOKEN = _query("token", str, 'a stream token; without it the first message must be {"token": …}', type="string")


def _get(path: str, operation: str, schema: str, *parameters: Parameter) -> Route:
    return Route("GET", path, operation, {200: schema, 404: "Problem"}, parameters)


def _post(
    path: str, operation: str, answers: Mapping[int, str], problems: tuple[int, ...], *parameters: Parameter
) -> Route:
    return Route("POST", path, operation, {**answers, **dict.fromkeys(problems, "Problem")}, parameters)


_V1_USER, _V1_ITEM, _V1_REVIEW = "/v1/users/{user_id}", "/v1/items/{item_id}", "/v1/reviews/{review_id}"
_V1_TRANSACTION, _V1_RECONCILIATIONS = "/v1/transactions/{transaction_id}", "/v1/accounts/{account_id}/reconciliations"
_REVIEWED = {200: "Review", 202: "AcceptedCommand"}
_SYNCED = {200: "Sync", 202: "Sync"}
_REPORTED = {200: "Balances", 202: "Balances"}

ROUTES = (
    _post("/v1/link/token", "create_link_token", {200: "LinkToken"}, (502,), USER_FIELD),
    _post("/v1/items", "link_item", {201: "Linked"}, (409, 422, 502), USER_FIELD, PUBLIC_TOKEN, IDEMPOTENCY),
    _get(_V1_ITEM, "get_item", "Item", ITEM),
    Route("DELETE", _V1_ITEM, "unlink_item", {200: "Unlinking", 202: "Unlinking", 404: "Problem"}, (ITEM, WAIT)),
    _post(f"{_V1_ITEM}/sync", "sync_item", _SYNCED, (404, 409), ITEM, WAIT, REFRESH),
    _get(f"{_V1_ITEM}/syncs", "list_syncs", "SyncRuns", ITEM, SYNC_RUNS, CURSOR),
    _get(f"{_V1_ITEM}/syncs/{{request_id}}", "get_sync", "Sync", ITEM, REQUEST),
    _post(
        f"{_V1_ITEM}/balances",
        "read_balances",
        _REPORTED,
        (404, 409, 502),
        *(ITEM, ACCOUNT_IDS, OLDEST, WAIT, IDEMPOTENCY),
    ),
    _get(f"{_V1_USER}/items", "list_items", "Items", USER),
    _get(f"{_V1_USER}/accounts", "list_accounts", "Accounts", USER),
    _get(f"{_V1_USER}/transactions", "list_transactions", "Transactions", USER, *FILTERS),
    _get(f"{_V1_USER}/transactions/as-of", "list_transactions_as_of", "TransactionsAsOf", USER, *FILTERS_AS_OF),
    _get(f"{_V1_USER}/accounts/as-of", "list_accounts_as_of", "AccountsAsOf", USER, AS_OF),
    _get(_V1_RECONCILIATIONS, "list_reconciliations", "Reconciliations", ACCOUNT, ITEM_QUERY, DISCREPANCIES),
    _post(_V1_RECONCILIATIONS, "reconcile_account", {200: "Reconciliations"}, (404,), ACCOUNT, ITEM_QUERY),
    _get(f"{_V1_USER}/ledger/balances", "ledger_balances", "LedgerBalances", USER, LEDGER_AT, LEDGER_KNOWN_AT),
    _get(f"{_V1_USER}/ledger/turnover", "ledger_turnover", "LedgerTurnover", USER, FROM, TO),
    _get(f"{_V1_TRANSACTION}/history", "transaction_history", "Versions", TRANSACTION, LIMIT, CURSOR),
    _get(f"{_V1_TRANSACTION}/explanation", "explain_transaction", "Explanation", TRANSACTION),
    _get(_V1_TRANSACTION, "get_transaction", "Transaction", TRANSACTION),
    Route(
        "PATCH",
        _V1_TRANSACTION,
        "edit_transaction",
        {200: "Transaction", 202: "AcceptedCommand", 404: "Problem", 409: "Problem"},
        (TRANSACTION, IDEMPOTENCY, WAIT, *FIELDS),
    ),
    _get(f"{_V1_USER}/reviews", "list_user_reviews", "Reviews", USER, LIMIT, CURSOR),
    _get("/v1/reviews", "list_reviews", "Reviews", USER_QUERY, LIMIT, CURSOR),
    _post(f"{_V1_REVIEW}/approve", "approve_review", _REVIEWED, (404, 409), *(REVIEW, CANDIDATE, IDEMPOTENCY, WAIT)),
    _post(f"{_V1_REVIEW}/reject", "reject_review", _REVIEWED, (404, 409), REVIEW, IDEMPOTENCY, WAIT),
    _post(f"{_V1_USER}/stream-token", "create_stream_token", {201: "StreamToken"}, (404,), USER),
    Route("GET", "/v1/queue/status", "queue_status", {200: "QueueStatus"}),
    Route("POST", "/internal/schedule", "tick_schedule", {200: "Ticked", 404: "Problem"}, guard="cron"),
    Route("GET", "/internal/schedule", "schedule_health", {200: "ScheduleHealth", 404: "Problem"}, guard="cron"),
    Route("GET", "/v1/stream", "stream", {101: None, 426: "Problem"}, (STREAM_TOKEN,), guard="open"),
    Route("GET", "/v1/openapi.json", "openapi", {200: None}, guard="open"),
)
