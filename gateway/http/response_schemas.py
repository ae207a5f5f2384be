"""JSON schemas of the API's answers, by name. Source: JSON Schema 2020-12, as OpenAPI 3.1 uses it."""

import msgspec

from gateway.http.json_schema import (
    AMOUNT,
    BOOLEAN,
    COUNT,
    DATE,
    MAYBE_AMOUNT,
    MAYBE_INTEGER,
    MAYBE_TEXT,
    MAYBE_TIME,
    OBJECT,
    TEXT,
    TIME,
    Properties,
    Schema,
    array,
    described,
    each,
    nullable,
    one_of,
    page,
    record,
    reference,
    without,
)
from projections.read.reconciliation import CAUSES
from runtime.scheduler.queue_status import QueueStatus

_FRESHNESS: Properties = {
    "state": described(
        MAYBE_TEXT, "Plaid's state: active, login_required, pending_disconnect, pending_expiration, revoked or gone"
    ),
    "stopped": described(
        MAYBE_TEXT,
        "why the Item is not synced: login_required, revoked, gone, refused, quarantined, erased, unlinked; null "
        "where it is synced",
    ),
    "remedy": described(MAYBE_TEXT, "action that lets the Item continue"),
    "history_status": described(
        MAYBE_TEXT, "HISTORICAL_UPDATE_COMPLETE: the whole history that was requested is stored"
    ),
    "last_webhook_at": described(MAYBE_TIME, "time of Plaid's last webhook about a possible change"),
    "last_synced_at": described(MAYBE_TIME, "time of the last successful request to Plaid"),
    "bank_updated_at": described(MAYBE_TIME, "last known time at which Plaid read the bank successfully"),
    "next_check_at": described(MAYBE_TIME, "time of the next sync run, unless a webhook comes first"),
}
_LAST_SYNC_AT = described(MAYBE_TIME, "time at which the last sync run with a change became visible")

ITEM = record(
    each(TEXT, "item_id", "user_id"),
    {
        "status": described(
            TEXT,
            "linking, active, login_required, pending_disconnect, pending_expiration, revoked, gone, unlinking or "
            "unlinked",
        ),
        "code": described(MAYBE_TEXT, "Plaid's code behind the status"),
    },
    each(MAYBE_TEXT, "reason", "effective_at", "institution_id", "institution_name"),
    _FRESHNESS,
    transactions=described(
        COUNT, "transactions of the Item, including removed ones and those that continue under a newer Item"
    ),
    linked_at=TIME,
    unlinked_at=MAYBE_TIME,
    last_sync_at=_LAST_SYNC_AT,
    missing_rows=described(COUNT, "transactions whose removal waits for the operator's decision"),
)

_BALANCE_AMOUNTS: Properties = {
    **each(MAYBE_AMOUNT, "current", "available", "limit"),
    "last_updated_datetime": described(MAYBE_TEXT, "the bank's own time of its balance, where it reports one"),
}
_ACCOUNT_KEY = record(each(TEXT, "item_id", "account_id"))

ACCOUNT = record(
    each(TEXT, "account_id", "item_id"),
    each(MAYBE_TEXT, "persistent_account_id", "name", "official_name", "mask"),
    {"type": TEXT, "subtype": MAYBE_TEXT, "currency": TEXT},
    _BALANCE_AMOUNTS,
    source=described(TEXT, "source of the newest balance: cached (a sync) or realtime (a request to the bank)"),
    cached_at=described(MAYBE_TIME, "time since which syncs report the same balance"),
    realtime_at=described(MAYBE_TIME, "time of the last real-time request to the bank"),
    version=COUNT,
    known_at=TIME,
    continues=nullable(_ACCOUNT_KEY, "the older account that this one continues"),
    continued_by=nullable(_ACCOUNT_KEY, "the younger account that continues this one"),
    freshness=reference("Freshness"),
)
BALANCE = record(
    {"account_id": TEXT, "name": MAYBE_TEXT, "mask": MAYBE_TEXT},
    {"type": TEXT, "subtype": MAYBE_TEXT, "currency": TEXT},
    _BALANCE_AMOUNTS,
)
BALANCES = record(
    item_id=TEXT,
    status=one_of("asking", "accepted", "applied", description="applied: readers see it"),
    accounts=array("Balance"),
    asked_at=described(MAYBE_TIME, "time of the request to the bank"),
    request_id=described(MAYBE_TEXT, "Plaid's id of the request"),
    cost=nullable(
        record(
            requests=described(COUNT, "billed calls of this request; 0 where it shared another request's call"),
            billed=BOOLEAN,
            unit_price=MAYBE_AMOUNT,
            currency=MAYBE_TEXT,
        )
    ),
)

_SPLIT: Schema = {**record(category=TEXT, amount=AMOUNT, note=TEXT), "required": ["category", "amount"]}
_USER_VALUES: Properties = {
    "name": described(MAYBE_TEXT, "the user's, else the bank's"),
    "category": described(MAYBE_TEXT, "the user's, else the bank's"),
    "notes": described(MAYBE_TEXT, "of the bank and the user, joined by a line ---; empty where the user cleared them"),
    "tags": array(TEXT),
    "display_date": described(DATE, "the user's, else the bank's"),
    "hidden": BOOLEAN,
    "splits": array(_SPLIT),
    "splits_stale": described(BOOLEAN, "the splits do not add up to the amount any more, and do not count"),
    "user_fields": described(OBJECT, "values that the user set, by field"),
    "bank": described(record(each(MAYBE_TEXT, "name", "category", "notes")), "the bank's values of these fields"),
    "status": one_of(
        *("shown", "removed", "in_review"),
        description="removed: the bank removed it; in_review: not counted until somebody decides whether it is a "
        "separate purchase",
    ),
}
"""Fields of a transaction that users may set, and whether it counts."""

TRANSACTION = record(
    id=TEXT,
    transaction_id=described(TEXT, "Plaid's present id"),
    item_id=TEXT,
    account_id=TEXT,
    amount=described(AMOUNT, "exact decimal text; positive leaves the account"),
    currency=TEXT,
    pending=BOOLEAN,
    date=DATE,
    **each(MAYBE_TEXT, "datetime", "authorized_date", "merchant_name", "merchant_entity_id", "logo_url"),
    **each(MAYBE_TEXT, "category_detailed", "category_confidence"),
    enriched_at=MAYBE_TIME,
    version=COUNT,
    removed_at=MAYBE_TIME,
    known_at=TIME,
    **_USER_VALUES,
)

_POSITION: Schema = {**TEXT, "pattern": "^[0-9]+:[0-9]+$", "description": "partition:offset in the log"}
ORIGIN: Schema = {
    "type": "object",
    "properties": {
        "kind": one_of("webhook", "tick", "user", "operator", "unknown"),
        "cause": described(TEXT, "webhook, schedule, retry, sweep, link, manual, unlink, user or operator"),
        "by": MAYBE_TEXT,
        "webhook": record(partition=COUNT, offset=COUNT, received_at=MAYBE_TIME),
    },
    "required": ["kind", "cause", "by"],
}
CHANGESET = record(
    {"place": _POSITION, "id": TEXT, "partition": COUNT, "offset": COUNT},
    {"kind": TEXT, "type": TEXT, "item_id": MAYBE_TEXT},
    said=described(OBJECT, "counts of the events that it holds, by type"),
    net_events=COUNT,
    origin=ORIGIN,
    request_ids=described(array(TEXT), "Plaid's ids of the calls that produced it"),
    redriven_by=described(MAYBE_INTEGER, "offset of the redrive that applied it after it was withheld"),
    produced_at=TIME,
    known_at=TIME,
)
TRANSACTION_AS_OF = record(without(TRANSACTION, "enriched_at"))
ACCOUNT_AS_OF = record(
    without(ACCOUNT, "freshness", "continues", "continued_by"),
    realtime_at=described(MAYBE_TIME, "time since which the bank reports the same balance"),
)
_CHANGED: Schema = {
    "type": ["array", "null"],
    "items": record(
        field=described(TEXT, "name of a bank's field, or user_fields. and the name of a user's"), before={}, after={}
    ),
    "description": "fields that differ from the version before; null where that one is not available",
}
VERSION = record(
    TRANSACTION_AS_OF["properties"],
    event=described(MAYBE_TEXT, "type of the public event: transaction.added, modified or removed"),
    changed=_CHANGED,
    changeset=reference("Changeset"),
)
EXPLANATION = record(
    kind=one_of("transaction"),
    user=nullable(record(each(TEXT, "tenant", "user_id"))),
    item=record(
        {"item_id": TEXT, **each(MAYBE_TEXT, "institution_id", "institution_name", "state")},
        user_number=TEXT,
        partition=COUNT,
    ),
    versions=array(
        record(
            {"version": COUNT, "event": MAYBE_TEXT, "changed": _CHANGED},
            each(TEXT, "status", "item_id", "transaction_id"),
            known_at=TIME,
            changeset=_POSITION,
        )
    ),
    repairs=described(OBJECT, "reasons of repaired fields of the bank's last values, by field"),
    transfers=array(
        record(
            {"own_id": TEXT, "number": COUNT, "amount": AMOUNT, "currency": TEXT, "layer": TEXT},
            reverses=described(MAYBE_INTEGER, "number of the transfer that it reverses"),
            effective=DATE,
            known_at=TIME,
            partition=COUNT,
            changeset=_POSITION,
            **each(TEXT, "debit", "debit_kind", "debit_reference", "credit", "credit_kind", "credit_reference"),
        )
    ),
    user_fields=array(record(field=TEXT, value={}, changeset=_POSITION)),
    links=array(
        record(
            each(TEXT, "item_id", "transaction_id", "rule"),
            {"score": COUNT, "known_at": TIME, "evidence": {}, "changeset": _POSITION},
        )
    ),
    reviews=array(
        record(
            each(TEXT, "id", "item_id", "own_id", "reason", "state"),
            {"chosen": MAYBE_TEXT, "known_at": TIME, "decided_at": MAYBE_TIME, "candidates": {}},
            {"changeset": _POSITION, "decided": MAYBE_TEXT},
        )
    ),
    changesets={"type": "object", "additionalProperties": reference("Changeset")},
    **{"is": reference("Transaction")},
)

REVIEW = record(
    id=TEXT,
    item_id=TEXT,
    state=one_of(
        *("open", "approved", "rejected", "settled"),
        description="settled: the bank's data decided it, or the bank removed one of the two",
    ),
    reason=one_of(
        *("twins", "likely"), description="twins: equal in all bank's fields, and a user has edited one of them"
    ),
    chosen=described(MAYBE_TEXT, "own id of the known transaction that it duplicates"),
    known_at=TIME,
    decided_at=MAYBE_TIME,
    transaction=reference("Transaction"),
    candidates=array(record(rule=TEXT, score=COUNT, evidence=OBJECT, transaction=reference("Transaction"))),
)

FAULT: Schema = {**record(each(TEXT, "field", "reason", "value")), "required": ["field", "reason"]}
PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "faults": array("Fault"),
        "plaid": OBJECT,
        "stopped": described(TEXT, "why the Item is not synced"),
        "remedy": TEXT,
        "review": reference("Review"),
    },
    "required": ["type", "title", "status"],
}

SYNC = record(
    request_id=described(TEXT, "id that finds the result of this request again, for 90 days"),
    item_id=TEXT,
    status=one_of(
        *("accepted", "applied", "not_ready", "stopped", "failed"),
        description="applied: all data that Plaid had at the time of the request is readable now; stopped: the Item "
        "does not continue by itself; failed: retried unless `stopped`",
    ),
    complete=described(
        BOOLEAN, "true where all requested data is readable; with refresh: the bank's data of after the request"
    ),
    changed=described({"type": ["boolean", "null"]}, "true where the sync run found changes; null while unknown"),
    **each(MAYBE_INTEGER, "added", "modified", "removed"),
    no_op=described(MAYBE_INTEGER, "changes of Plaid's that changed nothing for readers"),
    error=nullable(OBJECT),
    **{name: _FRESHNESS[name] for name in ("stopped", "remedy", "last_synced_at")},
    last_sync_at=_LAST_SYNC_AT,
    bank_updated_at=_FRESHNESS["bank_updated_at"],
    bank_asked=described(BOOLEAN, "true where Plaid polled the bank for this request; else it keeps its schedule"),
)
_CHANGES = record(each(COUNT, "added", "modified", "removed"))
SYNC_RUN = record(
    started_at=TIME,
    duration_s={"type": "number", "minimum": 0},
    cause=described(TEXT, "link, webhook, manual, schedule, retry, sweep, operator or unlink"),
    outcome=described(TEXT, "appended, unchanged, not_ready, stopped, unlinked, failed"),
    success=BOOLEAN,
    pages=COUNT,
    fetched=_CHANGES,
    applied=nullable(_CHANGES),
    no_op=MAYBE_INTEGER,
    error=nullable(OBJECT),
    changeset=nullable(record(partition=COUNT, offset=COUNT), "position of its record in the log"),
)

LEDGER_BALANCE = record(
    account=described(TEXT, "the ledger account's id"),
    **{"class": one_of("asset", "liability", "income", "expense", "equity")},
    kind=one_of("bank", "category", "equity"),
    reference=described(TEXT, "of a bank: account_id; of a category: its name"),
    currency=TEXT,
    **each(AMOUNT, "posted", "pending"),
)
LEDGER_TURNOVER = record(
    month={**TEXT, "pattern": "^[0-9]{4}-[0-9]{2}$"},
    currency=TEXT,
    category=TEXT,
    **{"class": one_of("income", "expense")},
    layer=one_of("pending", "posted"),
    **each(AMOUNT, "spent", "received", "net"),
)

LAST_CHECK = nullable(
    record(
        checked_at=TIME,
        next_at=TIME,
        state=one_of("tied_out", "gap", "not_comparable"),
        cause={**MAYBE_TEXT, "enum": [*CAUSES, None]},
        **each(MAYBE_TEXT, "reason", "currency"),
        **each(MAYBE_AMOUNT, "ledger", "bank"),
        gap=AMOUNT,
        source=MAYBE_TEXT,
        tied_out_at=MAYBE_TIME,
    ),
    "null where it was not checked yet",
)
DISCREPANCY = record(
    cause=one_of(*CAUSES),
    against=one_of("bank", "rows"),
    currency=MAYBE_TEXT,
    **each(MAYBE_AMOUNT, "ledger", "bank"),
    gap=AMOUNT,
    evidence=OBJECT,
    opened_at=TIME,
    last_at=TIME,
    count=COUNT,
    repair=one_of("wait", "sync", "compare", "ask"),
    repaired_at=MAYBE_TIME,
    outcome={**MAYBE_TEXT, "enum": ["persists", "repaired", "resolved", "withdrawn", None]},
    resolved_at=MAYBE_TIME,
)

_, _QUEUE_STATUS = msgspec.json.schema_components([QueueStatus], ref_template="#/components/schemas/{name}")

SCHEMAS: dict[str, Schema] = {
    "LinkToken": record(link_token=TEXT, expiration=TIME),
    "Linked": record(item_id=TEXT, status=TEXT),
    "Unlinking": record(item_id=TEXT, status=one_of("unlinking", "unlinked")),
    "Sync": SYNC,
    "SyncRun": SYNC_RUN,
    "SyncRuns": page("syncs", "SyncRun"),
    "Freshness": record(_FRESHNESS),
    "Ticked": record(marked=described(COUNT, "Items that this call marked due"), health=reference("ScheduleHealth")),
    **_QUEUE_STATUS,
    "Item": ITEM,
    "Items": record(items=array("Item")),
    "Account": ACCOUNT,
    "Accounts": record(accounts=array("Account")),
    "Balance": BALANCE,
    "Balances": BALANCES,
    "Transaction": TRANSACTION,
    "AcceptedCommand": record(
        id=TEXT, changeset=described(TEXT, "id of the command's record"), status=one_of("accepted")
    ),
    "TransactionAsOf": TRANSACTION_AS_OF,
    "TransactionsAsOf": page("transactions", "TransactionAsOf"),
    "AccountAsOf": ACCOUNT_AS_OF,
    "AccountsAsOf": record(accounts=array("AccountAsOf")),
    "Changeset": CHANGESET,
    "Version": VERSION,
    "Versions": page("versions", "Version"),
    "Explanation": EXPLANATION,
    "Transactions": page("transactions", "Transaction"),
    "LedgerBalance": LEDGER_BALANCE,
    "LedgerBalances": record(balances=array("LedgerBalance")),
    "LedgerMonth": LEDGER_TURNOVER,
    "LedgerTurnover": record(turnover=array("LedgerMonth")),
    "Discrepancy": DISCREPANCY,
    "Reconciliations": record(item_id=TEXT, account_id=TEXT, last=LAST_CHECK, discrepancies=array("Discrepancy")),
    "Review": REVIEW,
    "Reviews": page("reviews", "Review"),
    "StreamToken": record(token=TEXT, expires_at=TIME),
    "Fault": FAULT,
    "Problem": PROBLEM,
}
