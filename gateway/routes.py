"""The table of routes: what can be asked, with which values, and how it is answered.

Handlers, validation and the OpenAPI document all come from it. A new route, for example a stream over SSE, edits
or the operator's console, is a row here, a handler of the same name and a schema in gateway.http.response_schemas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.handlers.edit_fields import FIELDS
from gateway.http import parameters as read
from gateway.http.parameters import Parameter
from projections.read.queries import PAGE_MAX
from runtime.operators.reconciliations import HISTORY_MAX

PASSES_MAX = 100
"""Passes in one answer: each may cost a query of 0.2 ms for what it applied."""

ACCOUNTS_MAX = 100
"""Accounts that one request names: more than any person has at a bank."""

WAIT_S_MAX = 60.0
"""Longest `?wait=`: load balancers cut silent requests after a minute."""

_ID: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": read.TEXT_CHARS_MAX}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps a status to the name of its schema; None has no JSON body.

    `guard`: a tenant's API key, the cron's secret, or nothing.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    operation: str
    summary: str
    answers: Mapping[int, str | None]
    parameters: tuple[Parameter, ...] = ()
    guard: Literal["tenant", "cron", "open"] = "tenant"
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
    "transaction_id",
    "path",
    read.own_id,
    {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "the transaction's own id, which outlives pending to posted",
    required=True,
)
WAIT = _query(
    "wait",
    read.seconds(WAIT_S_MAX),
    "wait up to so many seconds until readers see the outcome",
    type="number",
    minimum=0,
    maximum=WAIT_S_MAX,
)
IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "header",
    read.text,
    _ID,
    "a value of the client's own; the same request with the same key is answered again and done once",
)
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
SYNC = """\
Without `wait` it is answered 202 at once; `request_id` finds the outcome later. With `wait` it is answered as soon
as readers see all that Plaid had when it was asked (`complete`), and at the end of the wait with what is known.

Plaid asks banks by its own schedule, so `bank_updated_at` may be hours old. `refresh=true` has Plaid ask the bank
now (Plaid bills each call, and allows two a minute for an Item); then `complete` is that Plaid read the bank after
that and a pass after that is shown.

An Item that stopped is answered all the same, with `stopped` and its `remedy`: the pass asks whether it goes on."""
HISTORY = """\
`fetched` is what Plaid sent, `applied` what readers were told of it: null where the record is withheld, was not
accepted, or its events are expired (after 30 days). `no_op` is fetched less applied: changes that said nothing new,
and one of the two (added, removed) that a pending has which posts and is one modification for readers."""
QUEUE = """\
Of the tenant's own Items. Each Item is in one state: `ready` waits for a worker, `running` is under a lease,
`delayed` waits for a time or a reader (`delayed_by`: rate_limit, bank, retry, history_not_ready, follower, schedule),
`quarantined` waits for an operator, `stopped` for whom `stopped_by` says, `idle` for a webhook or the schedule.
At most 50 Items of each state are listed, and the last 50 failures."""
SCHEDULE = """\
Always 200 with `healthy`, and `reasons` where it is false: no tick within interval and tolerance, or Items that
nothing holds back and that were not asked about for so long."""
EDITING = """\
What is left out stays, null clears, an empty text is a value. Amount, currency, date and pending are the bank's; what a
user said outlives all that the bank says, pending to posted, a removal that is taken back, a new link.

200 as soon as readers see it, which is usually within 50 ms, and 202 where they do not within `wait` (5 s by default)
or the Item is quarantined: it is kept all the same. 409 where the key came with another request before. After 503 ask again
with the same key: it is done once."""
BALANCES = """\
The bank itself is asked, within 30 s or so. Plaid bills each request that it answers: `cost` says how many and, where
it is set (TARTAN_BALANCE_PRICE), at which price. It allows five a minute for an Item; 429 names the next moment. Those
who ask about an Item at the same time share one request, which is billed once.

200 once readers see the balances. 202 where they do not within `wait` (30 s by default): `asking` while the bank has
not answered, `accepted` while the tables have not; the same Idempotency-Key finds the answer later, at no further cost.

A bank that gives no balance of now (Capital One's cards, Apple Card) gives one that is at most two days old, or as new
as `min_last_updated_datetime` asks for; 409 `balance_too_old` where it has none."""
RECONCILIATIONS = """\
The ledger's balance against the sum of the account's transactions and against the balance that its bank reports.
Amounts have the ledger's sign: what is held is positive, what is owed negative; `gap` is bank less ledger. `state` is
`tied_out`, `gap` with its `cause` (pending, stale_balance, history_incomplete, sign, currency, duplicate_item,
missing_rows, unknown), or `not_comparable` with the `reason` (no_opening, continued, unlinked, no_balance, no_feed,
ahead_of_rows, in_review, syncing). A discrepancy is open until `resolved_at`; `repair` is what was begun (wait, sync,
compare, ask) and `outcome` what came of it (persists, repaired, resolved, withdrawn)."""
REVIEWS = """\
Each is a transaction that is probably one that was known under another id, and too uncertain to be taken for it: after
a new link of the same bank, a second Item of it, a posting without a link to its pending one. `transaction` is held: it
is in no list, balance or event until somebody decides, or the bank makes it clear. `candidates` are what it may be,
best first, each with its score (0 to 100) and the evidence."""
DECIDING = """\
Approved, the candidate goes on: with its own id and what the user said of it, and with the bank's words about the held
one, which ends. Rejected, the held one is added as a transaction of its own; the two are never proposed again.

200 as soon as readers see it, 202 where they do not within `wait` (5 s by default). The same decision again is 200;
409 where the review ended otherwise, or the candidate cannot be it any more."""
REVIEW = Parameter(
    "review_id", "path", read.own_id, {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "the review's id", required=True
)
CANDIDATE = Parameter(
    "own_id",
    "body",
    read.own_id,
    {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "the candidate that it is, by its own id; needed where there are several",
)
OF_USER = Parameter("user_id", "query", read.text, _ID, "the application's own id of the user", required=True)
REFRESH = _query("refresh", read.boolean, "have Plaid ask the bank now", type="boolean", default=False)
ACCOUNT_IDS = Parameter(
    "account_ids",
    "body",
    read.texts(ACCOUNTS_MAX),
    {"type": "array", "items": _ID, "minItems": 1, "maxItems": ACCOUNTS_MAX},
    "these accounts only; by default all of the Item",
    json=list,
)
OLDEST = Parameter(
    "min_last_updated_datetime",
    "body",
    read.moment,
    {"type": "string", "format": "date-time"},
    "how old a balance may be, at banks that give none of now",
)
ACCOUNT = _in_path("account_id", "Plaid's id of the account")
OF_ITEM = _query("item_id", read.text, "of this Item, where several have an account with this id", type="string")
DISCREPANCIES = _query(
    "limit",
    read.integer(1, HISTORY_MAX),
    "discrepancies at most",
    type="integer",
    minimum=1,
    maximum=HISTORY_MAX,
    default=50,
)
REQUEST = _in_path("request_id", "`request_id` of the sync's answer")
PASSES = _query(
    "limit", read.integer(1, PASSES_MAX), "passes of a page", type="integer", minimum=1, maximum=PASSES_MAX, default=50
)
CURSOR = _query("cursor", str, "`next_cursor` of the page before", type="string")
LIMIT = _query(
    "limit", read.integer(1, PAGE_MAX), "rows of a page", type="integer", minimum=1, maximum=PAGE_MAX, default=100
)
AS_OF = Parameter(
    "as_of",
    "query",
    read.moment,
    {"type": "string", "format": "date-time"},
    "what was known at this time, itself included, with its offset from UTC",
    required=True,
)
EFFECTIVE_AT = _query("effective_at", read.date, "dated this day or earlier", type="string", format="date")
FILTERS = (
    _query("account_id", read.text, "of this account only", type="string"),
    _query("item_id", read.text, "of this Item only", type="string"),
    _query("from", read.date, "dated this day or later", type="string", format="date"),
    _query("to", read.date, "dated this day or earlier", type="string", format="date"),
    _query("pending", read.boolean, "pending only, or posted only", type="boolean"),
    _query("in_review", read.boolean, "those that wait for a review, and only them", type="boolean", default=False),
    LIMIT,
    _query("cursor", str, "`next_cursor` of the page before, with the same filters", type="string"),
)
STATEMENT_AT = _query("at", read.date, "with what is dated this day or earlier", type="string", format="date")
STATEMENT_KNOWN_AT = _query("known_at", read.moment, "as it was known at this time", type="string", format="date-time")
TURNOVER_FROM = _query("from", read.date, "dated this day or later", type="string", format="date")
TURNOVER_TO = _query("to", read.date, "dated this day or earlier", type="string", format="date")
LEDGER = """\
Debits less credits: what an asset holds is positive, what a liability owes is negative. An account's opening balance
is there before every date. `pending` stands apart and is never part of `posted`."""
TURNOVER = """\
By month of the transaction's date, currency, category and layer; a corrected or removed transaction counts as it is
now. `net` is spent less received."""
FILTERS_AS_OF = (AS_OF, EFFECTIVE_AT, *(one for one in FILTERS if one.name != "to"))
LOOKED_BACK = """\
What the tables had shown at that time, save what an erasure took: exactly what a replay of the log up to there gives.
Records of one moment count in the order of the log. Rows are of the same form as now, without what is not kept."""
VERSIONS = """\
Newest first. `changed` names exactly the fields in which a version differs from the one before it, with both values:
what the event of the version told. It is null where the one before is not kept."""
EXPLANATION = """\
Versions, transfers, links between ids, reviews and user fields of a transaction, each with the place of the changeset
that made it; `changesets` has these places with Plaid's request ids and the webhook, tick or person behind each."""

ROUTES = (
    Route(
        "POST",
        "/v1/link/token",
        "create_link_token",
        "Make a token that opens Plaid Link in a browser",
        {200: "LinkToken", 502: "Problem"},
        (USER_FIELD,),
    ),
    Route(
        "POST",
        "/v1/items",
        "link_item",
        "Exchange Link's public token and begin to sync the Item",
        {201: "Linked", 409: "Problem", 422: "Problem", 502: "Problem"},
        (USER_FIELD, PUBLIC_TOKEN, IDEMPOTENCY),
    ),
    Route("GET", "/v1/items/{item_id}", "get_item", "An Item and its state", {200: "Item", 404: "Problem"}, (ITEM,)),
    Route(
        "DELETE",
        "/v1/items/{item_id}",
        "unlink_item",
        "End an Item at Plaid and here",
        {200: "Unlinking", 202: "Unlinking", 404: "Problem"},
        (ITEM, WAIT),
    ),
    Route(
        "POST",
        "/v1/items/{item_id}/sync",
        "sync_item",
        "Ask Plaid now what changed",
        {200: "Sync", 202: "Sync", 404: "Problem", 409: "Problem"},
        (ITEM, WAIT, REFRESH),
        description=SYNC,
    ),
    Route(
        "GET",
        "/v1/items/{item_id}/syncs",
        "list_syncs",
        "The passes over an Item, newest first",
        {200: "Passes", 404: "Problem"},
        (ITEM, PASSES, CURSOR),
        description=HISTORY,
    ),
    Route(
        "GET",
        "/v1/items/{item_id}/syncs/{request_id}",
        "get_sync",
        "What came of a sync that was asked for",
        {200: "Sync", 404: "Problem"},
        (ITEM, REQUEST),
    ),
    Route(
        "POST",
        "/v1/items/{item_id}/balances",
        "read_balances",
        "Ask the bank for its balances of now, at a price",
        {200: "Balances", 202: "Balances", 404: "Problem", 409: "Problem", 502: "Problem"},
        (ITEM, ACCOUNT_IDS, OLDEST, WAIT, IDEMPOTENCY),
        description=BALANCES,
    ),
    Route("GET", "/v1/users/{user_id}/items", "list_items", "A user's Items", {200: "Items", 404: "Problem"}, (USER,)),
    Route(
        "GET",
        "/v1/users/{user_id}/accounts",
        "list_accounts",
        "A user's accounts with their balances",
        {200: "Accounts", 404: "Problem"},
        (USER,),
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/transactions",
        "list_transactions",
        "A user's transactions, newest first",
        {200: "Transactions", 404: "Problem"},
        (USER, *FILTERS),
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/transactions/as-of",
        "list_transactions_as_of",
        "A user's transactions as they were known at a time, newest first",
        {200: "TransactionsAsOf", 404: "Problem"},
        (USER, *FILTERS_AS_OF),
        description=LOOKED_BACK,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/accounts/as-of",
        "list_accounts_as_of",
        "A user's accounts with what had been reported of them at a time",
        {200: "AccountsAsOf", 404: "Problem"},
        (USER, AS_OF),
        description=LOOKED_BACK,
    ),
    Route(
        "GET",
        "/v1/accounts/{account_id}/reconciliations",
        "list_reconciliations",
        "Whether an account ties out with its bank, and what did not so far",
        {200: "Reconciliations", 404: "Problem"},
        (ACCOUNT, OF_ITEM, DISCREPANCIES),
        description=RECONCILIATIONS,
    ),
    Route(
        "POST",
        "/v1/accounts/{account_id}/reconciliations",
        "reconcile_account",
        "Compare an account with its bank now",
        {200: "Reconciliations", 404: "Problem"},
        (ACCOUNT, OF_ITEM),
        description=RECONCILIATIONS,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/ledger/balances",
        "ledger_balances",
        "The balance of each of a user's ledger accounts, now or at a time",
        {200: "LedgerBalances", 404: "Problem"},
        (USER, STATEMENT_AT, STATEMENT_KNOWN_AT),
        description=LEDGER,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/ledger/turnover",
        "ledger_turnover",
        "What a user spent and received, month by month",
        {200: "LedgerTurnover", 404: "Problem"},
        (USER, TURNOVER_FROM, TURNOVER_TO),
        description=TURNOVER,
    ),
    Route(
        "GET",
        "/v1/transactions/{transaction_id}/history",
        "transaction_history",
        "Every version of a transaction: what changed, when and why",
        {200: "Versions", 404: "Problem"},
        (TRANSACTION, LIMIT, CURSOR),
        description=VERSIONS,
    ),
    Route(
        "GET",
        "/v1/transactions/{transaction_id}/explanation",
        "explain_transaction",
        "What led to a transaction as it is, back to webhooks, ticks and people",
        {200: "Explanation", 404: "Problem"},
        (TRANSACTION,),
        description=EXPLANATION,
    ),
    Route(
        "GET",
        "/v1/transactions/{transaction_id}",
        "get_transaction",
        "One transaction, whatever its status",
        {200: "Transaction", 404: "Problem"},
        (TRANSACTION,),
    ),
    Route(
        "PATCH",
        "/v1/transactions/{transaction_id}",
        "edit_transaction",
        "Say something about a transaction",
        {200: "Transaction", 202: "Edited", 404: "Problem", 409: "Problem"},
        (TRANSACTION, IDEMPOTENCY, WAIT, *FIELDS),
        description=EDITING,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/reviews",
        "list_user_reviews",
        "A user's transactions that wait for a decision",
        {200: "Reviews", 404: "Problem"},
        (USER, LIMIT, CURSOR),
        description=REVIEWS,
    ),
    Route(
        "GET",
        "/v1/reviews",
        "list_reviews",
        "A user's transactions that wait for a decision",
        {200: "Reviews", 404: "Problem"},
        (OF_USER, LIMIT, CURSOR),
        description=REVIEWS,
    ),
    Route(
        "POST",
        "/v1/reviews/{review_id}/approve",
        "approve_review",
        "Say that the two are one transaction",
        {200: "Review", 202: "Edited", 404: "Problem", 409: "Problem"},
        (REVIEW, CANDIDATE, IDEMPOTENCY, WAIT),
        description=DECIDING,
    ),
    Route(
        "POST",
        "/v1/reviews/{review_id}/reject",
        "reject_review",
        "Say that it is a transaction of its own",
        {200: "Review", 202: "Edited", 404: "Problem", 409: "Problem"},
        (REVIEW, IDEMPOTENCY, WAIT),
        description=DECIDING,
    ),
    Route(
        "POST",
        "/v1/users/{user_id}/stream-token",
        "create_stream_token",
        "Make a token with which the user's browser opens the stream",
        {201: "StreamToken", 404: "Problem"},
        (USER,),
    ),
    Route(
        "GET",
        "/v1/queue/status",
        "queue_status",
        "What waits, runs, is delayed, quarantined, stopped or failed",
        {200: "QueueStatus"},
        description=QUEUE,
    ),
    Route(
        "POST",
        "/internal/schedule",
        "tick_schedule",
        "Make due what the schedule says, as the stage streams does",
        {200: "Ticked", 404: "Problem"},
        guard="cron",
    ),
    Route(
        "GET",
        "/internal/schedule",
        "schedule_health",
        "Whether every Item is asked about in time",
        {200: "ScheduleHealth", 404: "Problem"},
        guard="cron",
        description=SCHEDULE,
    ),
    Route(
        "GET",
        "/v1/stream",
        "stream",
        "The user's stream, over WebSocket",
        {101: None, 426: "Problem"},
        (_query("token", str, 'a stream token; without it the first message must be {"token": …}', type="string"),),
        guard="open",
        description=STREAM,
    ),
    Route("GET", "/v1/openapi.json", "openapi", "This document", {200: None}, guard="open"),
)
