"""Texts of the OpenAPI document: a summary for each operation, a description where a summary is not enough."""

from collections.abc import Mapping

SUMMARIES: Mapping[str, str] = {
    "create_link_token": "Create a token that opens Plaid Link in a browser",
    "link_item": "Exchange Link's public token and start to sync the Item",
    "get_item": "Return an Item and its state",
    "unlink_item": "Remove an Item at Plaid and mark it unlinked here",
    "sync_item": "Start a sync run for an Item now",
    "list_syncs": "List the sync runs of an Item, newest first",
    "get_sync": "Return the result of a sync that was requested before",
    "read_balances": "Request an Item's balances from its bank now, at a price",
    "list_items": "List a user's Items",
    "list_accounts": "List a user's accounts with their balances",
    "list_transactions": "List a user's transactions, newest first",
    "list_transactions_as_of": "List a user's transactions as they were known at a time, newest first",
    "list_accounts_as_of": "List a user's accounts with the balances reported until a time",
    "list_reconciliations": "Return the last reconciliation of an account and its discrepancies",
    "reconcile_account": "Compare an account with its bank now",
    "ledger_balances": "Return the balance of each of a user's ledger accounts, now or at a time",
    "ledger_turnover": "Return a user's spending and income, month by month",
    "transaction_history": "List every version of a transaction: the changed fields, the time and the cause",
    "explain_transaction": "Trace a transaction back to the webhooks, schedule ticks and people that caused it",
    "get_transaction": "Return one transaction, whatever its status",
    "edit_transaction": "Set or clear user fields of a transaction",
    "list_user_reviews": "List a user's transactions that wait for a decision",
    "list_reviews": "List a user's transactions that wait for a decision",
    "approve_review": "Decide that the two are one transaction",
    "reject_review": "Decide that the transaction is a separate one",
    "create_stream_token": "Create a token with which the user's browser opens the live stream",
    "queue_status": "Return the Items that are ready, running, delayed, quarantined, stopped or failed",
    "tick_schedule": "Mark due every Item whose schedule interval has passed, as the stage streams does",
    "schedule_health": "Return whether every Item is synced within its schedule interval",
    "stream": "Open the user's live stream over WebSocket",
    "openapi": "Return this document",
}

_AS_OF = """\
Return the rows that the tables showed at that time, except those that an erasure removed: exactly the result of a
replay of the log up to there. Records of one moment count in the order of the log. Rows have the form of now, without
the fields that have no history."""
_RECONCILIATIONS = """\
Compares the ledger's balance with the sum of the account's transactions and with the balance that its bank reports.
Amounts have the ledger's sign: assets are positive, debts negative; `gap` is bank less ledger. `state` is `tied_out`,
`gap` with its `cause` (pending, stale_balance, history_incomplete, sign, currency, duplicate_item, missing_rows,
unknown), or `not_comparable` with the `reason` (no_opening, continued, unlinked, no_balance, no_feed, ahead_of_rows,
in_review, syncing). A discrepancy is open until `resolved_at`; `repair` is the repair that was started (wait, sync,
compare, ask) and `outcome` its result (persists, repaired, resolved, withdrawn)."""
_REVIEWS = """\
Each is a transaction that probably duplicates a known one under another id, but with too little certainty: after a new
link of the same bank, on a second Item of it, or posted without a link to its pending one. One of them counts
until somebody decides, or until the bank's data decides it: while a candidate counts, `transaction` is withheld from
every list, balance and event (status `in_review`); where the bank removed all candidates, it counts (status `shown`)
and the review asks which of them it continues. `candidates` are the known transactions that it may duplicate, best
first, each with its score (0 to 100) and the evidence."""
_DECISION = """\
Approved, the candidate continues with its own id, its user fields and the bank's fields of the review's transaction,
which ends. Rejected, that one is a separate transaction; the two are never proposed again.

200 as soon as readers see it, 202 where they do not within `wait` (5 s by default). The same decision again is 200;
409 where the review ended otherwise, or the candidate is not possible any more."""

DESCRIPTIONS: Mapping[str, str] = {
    "sync_item": """\
Without `wait` the response is 202 at once; `request_id` finds the result later. With `wait` the response comes as soon
as readers see all data that Plaid had at the time of the request (`complete`), and at the end of the wait otherwise.

Plaid polls banks on its own schedule, so `bank_updated_at` may be hours old. `refresh=true` makes Plaid poll the bank
now (Plaid bills each call, and allows two a minute for an Item); then `complete` means that Plaid read the bank after
the request and that a later sync run is shown.

A stopped Item is accepted too, with `stopped` and its `remedy`: the sync run checks whether it can continue.""",
    "list_syncs": """\
`fetched` counts the changes that Plaid sent, `applied` the events that readers got: null where the record is withheld,
was not accepted, or its events are expired (after 30 days). `no_op` is fetched less applied: changes without new
content, and one of the two changes (added, removed) of a pending transaction that posts, which is one modification for
readers.""",
    "read_balances": """\
Requests balances from the bank itself, which takes up to 30 s or so. Plaid bills each request that it answers: `cost`
has their number and, where TARTAN_BALANCE_PRICE is set, the price. Plaid allows five a minute for an Item; 429 names
the next possible time. Simultaneous requests for an Item share one call, which is billed once.

200 once readers see the balances. 202 where they do not within `wait` (30 s by default): `asking` while the bank has
not answered, `accepted` while the tables have not; the same Idempotency-Key finds the answer later, at no further cost.

A bank without real-time balances (Capital One's cards, Apple Card) returns one that is at most two days old, or as new
as `min_last_updated_datetime` requires; 409 `balance_too_old` where it has none.""",
    "list_transactions_as_of": _AS_OF,
    "list_accounts_as_of": _AS_OF,
    "list_reconciliations": _RECONCILIATIONS,
    "reconcile_account": _RECONCILIATIONS,
    "ledger_balances": """\
Debits less credits: assets are positive, liabilities negative. An account's opening balance counts before every date.
`pending` is separate and never part of `posted`.""",
    "ledger_turnover": """\
By month of the transaction's date, currency, category and layer; a corrected or removed transaction counts as it is
now. `net` is spent less received.""",
    "transaction_history": """\
Newest first. `changed` names exactly the fields in which a version differs from the one before it, with both values,
as in the version's event. It is null where the version before is not available.""",
    "explain_transaction": """\
Versions, transfers, links between ids, reviews and user fields of a transaction, each with the log position of the
changeset that produced it; `changesets` has these with Plaid's request ids and the webhook, tick or person behind
each.""",
    "edit_transaction": """\
A field that is left out stays, null clears it, an empty text is a value. Amount, currency, date and pending belong to
the bank; user fields outlive all changes by the bank: pending to posted, a removal that is reversed, a new link.

200 as soon as readers see it, usually within 50 ms, and 202 where they do not within `wait` (5 s by default) or the
Item is quarantined: it is stored all the same. 409 where the key came with another request before. After 503 repeat the
request with the same key: it is done once.""",
    "list_user_reviews": _REVIEWS,
    "list_reviews": _REVIEWS,
    "approve_review": _DECISION,
    "reject_review": _DECISION,
    "queue_status": """\
Of the tenant's own Items. Each Item is in one state: `ready` waits for a worker, `running` is under a lease,
`delayed` waits for a time or a reader (`delayed_by`: rate_limit, bank, retry, history_not_ready, follower, schedule),
`quarantined` waits for an operator, `stopped` for the party in `stopped_by`, `idle` for a webhook or the schedule.
At most 50 Items of each state are listed, and the last 50 failures.""",
    "schedule_health": """\
Always 200 with `healthy`, and with `reasons` where it is false: no tick within interval and tolerance, or Items that
nothing delays and that were not synced within that time.""",
    "stream": """\
Messages are JSON texts `{event, data, timestamp, position}`. First `initial.balances` (accounts and Items) and
`initial.transactions` (the latest 50), read at one moment; then each change after it, once and in order:
`transaction.added`, `transaction.modified`, `transaction.removed`, `balance.updated`, `item.linked`,
`item.state_changed`, `item.unlinked`, and `transactions.changed`, which replaces more than 100 at once: connect again
to read them. `position` is `partition:offset.number`. A client that sends `{"renew": true}` receives `stream.token`
with a new token.

Close codes: 1001 the server stops, 1008 no valid token or too many streams of one user, 1012 the server's own stream
restarted, 1013 too slow or the tables are not available. After all but 1008: connect again for a new snapshot.""",
}
