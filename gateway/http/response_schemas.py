"""JSON schemas of what the API answers, by name. Source: JSON Schema 2020-12, as OpenAPI 3.1 uses it."""

from typing import Any

import msgspec

from projections.read.reconciliation import CAUSES
from runtime.scheduler.queue_status import QueueStatus

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT: Schema = {"type": ["string", "null"], "format": "date-time"}
_AMOUNT: Schema = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "description": "exact decimal text"}
_MAYBE_AMOUNT: Schema = {**_AMOUNT, "type": ["string", "null"]}
_BOOLEAN: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(name: str) -> Schema:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


_FRESHNESS: dict[str, Schema] = {
    "state": {
        **_MAYBE_TEXT,
        "description": "as Plaid says: active, login_required, pending_disconnect, pending_expiration, revoked or gone",
    },
    "stopped": {
        **_MAYBE_TEXT,
        "description": "why Plaid is not asked: login_required, revoked, gone, refused, quarantined, "
        "erased, unlinked; null where it is",
    },
    "remedy": {**_MAYBE_TEXT, "description": "what to do about that"},
    "history_status": {**_MAYBE_TEXT, "description": "HISTORICAL_UPDATE_COMPLETE: all that was asked for is there"},
    "last_webhook_at": {**_MAYBE_MOMENT, "description": "when Plaid last said that something may have changed"},
    "last_synced_at": {**_MAYBE_MOMENT, "description": "when Plaid was last asked with success"},
    "bank_updated_at": {**_MAYBE_MOMENT, "description": "when Plaid last read the bank with success, as far as known"},
    "next_check_at": {**_MAYBE_MOMENT, "description": "when Plaid is asked next, unless a webhook comes first"},
}

ITEM = _object(
    item_id=_TEXT,
    user_id=_TEXT,
    status={
        **_TEXT,
        "description": "linking, active, login_required, pending_disconnect, pending_expiration, "
        "revoked, gone, unlinking or unlinked",
    },
    code={**_MAYBE_TEXT, "description": "Plaid's code behind the status"},
    reason=_MAYBE_TEXT,
    effective_at=_MAYBE_TEXT,
    institution_id=_MAYBE_TEXT,
    institution_name=_MAYBE_TEXT,
    transactions={**_COUNT, "description": "it told of, also those taken back or gone on under a newer Item"},
    linked_at=_MOMENT,
    unlinked_at=_MAYBE_MOMENT,
    last_sync_at={**_MAYBE_MOMENT, "description": "when something new was last found and shown"},
    missing_rows={**_COUNT, "description": "transactions whose removal waits for the operator's decision"},
    **_FRESHNESS,
)

_BANK_TIME: Schema = {**_MAYBE_TEXT, "description": "the bank's own time of its balance, where it tells one"}


def _account_key(description: str) -> Schema:
    return {**_object(item_id=_TEXT, account_id=_TEXT), "type": ["object", "null"], "description": description}


ACCOUNT = _object(
    account_id=_TEXT,
    item_id=_TEXT,
    persistent_account_id=_MAYBE_TEXT,
    name=_MAYBE_TEXT,
    official_name=_MAYBE_TEXT,
    mask=_MAYBE_TEXT,
    type=_TEXT,
    subtype=_MAYBE_TEXT,
    currency=_TEXT,
    current=_MAYBE_AMOUNT,
    available=_MAYBE_AMOUNT,
    limit=_MAYBE_AMOUNT,
    last_updated_datetime=_BANK_TIME,
    source={**_TEXT, "description": "what spoke last: cached (a sync) or realtime (the bank was asked)"},
    cached_at={**_MAYBE_MOMENT, "description": "since when syncs report the same"},
    realtime_at={**_MAYBE_MOMENT, "description": "when the bank was last asked"},
    version=_COUNT,
    known_at=_MOMENT,
    continues=_account_key("the older account that this one goes on from"),
    continued_by=_account_key("the younger account that goes on from this one"),
    freshness={"$ref": "#/components/schemas/Freshness"},
)

_SPLIT: Schema = {
    "type": "object",
    "properties": {"category": _TEXT, "amount": _AMOUNT, "note": _TEXT},
    "required": ["category", "amount"],
}
_BANKS = _object(name=_MAYBE_TEXT, category=_MAYBE_TEXT, notes=_MAYBE_TEXT)
SAID: dict[str, Schema] = {
    "name": {**_MAYBE_TEXT, "description": "the user's, else the bank's"},
    "category": {**_MAYBE_TEXT, "description": "the user's, else the bank's"},
    "notes": {
        **_MAYBE_TEXT,
        "description": "of the bank and the user, joined by a line ---; empty: by the user's wish",
    },
    "tags": {"type": "array", "items": _TEXT},
    "display_date": {**_TEXT, "format": "date", "description": "the user's, else the bank's"},
    "hidden": _BOOLEAN,
    "splits": {"type": "array", "items": _SPLIT},
    "splits_stale": {**_BOOLEAN, "description": "the splits do not add up to the amount any more, and do not count"},
    "user_fields": {"type": "object", "description": "what the user said, field to value"},
    "bank": {**_BANKS, "description": "what the bank says of them"},
    "status": {
        **_TEXT,
        "enum": ["shown", "removed", "in_review"],
        "description": "removed: the bank took it back; in_review: not counted until somebody says whether it "
        "is a purchase of its own",
    },
}
"""Fields of a transaction that users speak of, and whether it counts."""

BALANCE = _object(
    account_id=_TEXT,
    name=_MAYBE_TEXT,
    mask=_MAYBE_TEXT,
    type=_TEXT,
    subtype=_MAYBE_TEXT,
    currency=_TEXT,
    current=_MAYBE_AMOUNT,
    available=_MAYBE_AMOUNT,
    limit=_MAYBE_AMOUNT,
    last_updated_datetime=_BANK_TIME,
)
BALANCES = _object(
    item_id=_TEXT,
    status={**_TEXT, "enum": ["asking", "accepted", "applied"], "description": "applied: readers see it"},
    accounts=_list("Balance"),
    asked_at={**_MAYBE_MOMENT, "description": "when the bank was asked"},
    request_id={**_MAYBE_TEXT, "description": "Plaid's"},
    cost={
        **_object(
            requests={**_COUNT, "description": "of this request; none where it shared another one's"},
            billed=_BOOLEAN,
            unit_price=_MAYBE_AMOUNT,
            currency=_MAYBE_TEXT,
        ),
        "type": ["object", "null"],
    },
)

TRANSACTION = _object(
    id=_TEXT,
    transaction_id={**_TEXT, "description": "Plaid's present id"},
    item_id=_TEXT,
    account_id=_TEXT,
    amount={**_AMOUNT, "description": "exact decimal text; positive leaves the account"},
    currency=_TEXT,
    pending=_BOOLEAN,
    date={**_TEXT, "format": "date"},
    datetime=_MAYBE_TEXT,
    authorized_date=_MAYBE_TEXT,
    merchant_name=_MAYBE_TEXT,
    merchant_entity_id=_MAYBE_TEXT,
    logo_url=_MAYBE_TEXT,
    category_detailed=_MAYBE_TEXT,
    category_confidence=_MAYBE_TEXT,
    enriched_at=_MAYBE_MOMENT,
    version=_COUNT,
    removed_at=_MAYBE_MOMENT,
    known_at=_MOMENT,
    **SAID,
)


def _without(shape: Schema, *names: str) -> dict[str, Schema]:
    return {name: each for name, each in shape["properties"].items() if name not in names}


_PLACE: Schema = {**_TEXT, "pattern": "^[0-9]+:[0-9]+$", "description": "partition:offset in the log"}
ORIGIN: Schema = {
    "type": "object",
    "properties": {
        "kind": {**_TEXT, "enum": ["webhook", "tick", "user", "operator", "unknown"]},
        "cause": {**_TEXT, "description": "webhook, schedule, retry, sweep, link, manual, unlink, user or operator"},
        "by": _MAYBE_TEXT,
        "webhook": _object(partition=_COUNT, offset=_COUNT, received_at=_MAYBE_MOMENT),
    },
    "required": ["kind", "cause", "by"],
}
CHANGESET = _object(
    place=_PLACE,
    id=_TEXT,
    partition=_COUNT,
    offset=_COUNT,
    kind=_TEXT,
    type=_TEXT,
    item_id=_MAYBE_TEXT,
    said={"type": "object", "description": "events that it said, by type"},
    net_events=_COUNT,
    origin=ORIGIN,
    request_ids={"type": "array", "items": _TEXT, "description": "Plaid's, of the calls that it came from"},
    redriven_by={"type": ["integer", "null"], "description": "withheld and applied later, at this offset"},
    produced_at=_MOMENT,
    known_at=_MOMENT,
)
TRANSACTION_AS_OF = _object(**_without(TRANSACTION, "enriched_at"))
ACCOUNT_AS_OF = _object(
    **{
        **_without(ACCOUNT, "freshness", "continues", "continued_by"),
        "realtime_at": {**_MAYBE_MOMENT, "description": "since when the bank reports the same"},
    }
)
CHANGED: Schema = {
    "type": ["array", "null"],
    "items": _object(field={**_TEXT, "description": "the bank's, or user_fields. and the user's"}, before={}, after={}),
    "description": "fields that differ from the version before; null where that one is not kept",
}
VERSION = _object(
    **TRANSACTION_AS_OF["properties"],
    event={**_MAYBE_TEXT, "description": "what readers were told: transaction.added, modified or removed"},
    changed=CHANGED,
    changeset={"$ref": "#/components/schemas/Changeset"},
)
EXPLANATION = _object(
    kind={**_TEXT, "enum": ["transaction"]},
    user={**_object(tenant=_TEXT, user_id=_TEXT), "type": ["object", "null"]},
    item=_object(
        item_id=_TEXT,
        institution_id=_MAYBE_TEXT,
        institution_name=_MAYBE_TEXT,
        state=_MAYBE_TEXT,
        user_number=_TEXT,
        partition=_COUNT,
    ),
    versions={
        "type": "array",
        "items": _object(
            version=_COUNT,
            event=_MAYBE_TEXT,
            changed=CHANGED,
            status=_TEXT,
            item_id=_TEXT,
            transaction_id=_TEXT,
            known_at=_MOMENT,
            changeset=_PLACE,
        ),
    },
    transfers={
        "type": "array",
        "items": _object(
            own_id=_TEXT,
            number=_COUNT,
            amount=_AMOUNT,
            currency=_TEXT,
            layer=_TEXT,
            reverses={"type": ["integer", "null"], "description": "number of the transfer that it takes back"},
            effective={**_TEXT, "format": "date"},
            known_at=_MOMENT,
            partition=_COUNT,
            changeset=_PLACE,
            debit=_TEXT,
            debit_kind=_TEXT,
            debit_reference=_TEXT,
            credit=_TEXT,
            credit_kind=_TEXT,
            credit_reference=_TEXT,
        ),
    },
    user_fields={"type": "array", "items": _object(field=_TEXT, value={}, changeset=_PLACE)},
    links={
        "type": "array",
        "items": _object(
            item_id=_TEXT,
            transaction_id=_TEXT,
            rule=_TEXT,
            score=_COUNT,
            known_at=_MOMENT,
            evidence={},
            changeset=_PLACE,
        ),
    },
    reviews={
        "type": "array",
        "items": _object(
            id=_TEXT,
            item_id=_TEXT,
            own_id=_TEXT,
            reason=_TEXT,
            state=_TEXT,
            chosen=_MAYBE_TEXT,
            known_at=_MOMENT,
            decided_at=_MAYBE_MOMENT,
            candidates={},
            changeset=_PLACE,
            decided=_MAYBE_TEXT,
        ),
    },
    changesets={"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Changeset"}},
    **{"is": {"$ref": "#/components/schemas/Transaction"}},
)

REVIEW = _object(
    id=_TEXT,
    item_id=_TEXT,
    state={
        **_TEXT,
        "enum": ["open", "approved", "rejected", "settled"],
        "description": "settled: the bank made it clear, or took one of the two back",
    },
    reason={
        **_TEXT,
        "enum": ["twins", "likely"],
        "description": "twins: equal in all that the bank says, and a user spoke of one",
    },
    chosen={**_MAYBE_TEXT, "description": "own id of what it was found to be"},
    known_at=_MOMENT,
    decided_at=_MAYBE_MOMENT,
    transaction={"$ref": "#/components/schemas/Transaction"},
    candidates={
        "type": "array",
        "items": _object(
            rule=_TEXT,
            score=_COUNT,
            evidence={"type": "object"},
            transaction={"$ref": "#/components/schemas/Transaction"},
        ),
    },
)

FAULT: Schema = {
    "type": "object",
    "properties": {"field": _TEXT, "reason": _TEXT, "value": _TEXT},
    "required": ["field", "reason"],
}

PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "faults": _list("Fault"),
        "plaid": {"type": "object"},
        "stopped": {**_TEXT, "description": "why the Item does not go on"},
        "remedy": _TEXT,
        "review": {"$ref": "#/components/schemas/Review"},
    },
    "required": ["type", "title", "status"],
}

SYNC = _object(
    request_id={**_TEXT, "description": "finds this request's outcome again, for 90 days"},
    item_id=_TEXT,
    status={
        **_TEXT,
        "enum": ["accepted", "applied", "not_ready", "stopped", "failed"],
        "description": "applied: all that Plaid had when it was asked can be read now; stopped: the Item does not "
        "go on by itself; failed: tried again unless `stopped`",
    },
    complete={
        **_BOOLEAN,
        "description": "whether all that was asked for is shown; with refresh: the bank's data of after the request",
    },
    changed={"type": ["boolean", "null"], "description": "whether something new was found; null where not known yet"},
    added={"type": ["integer", "null"]},
    modified={"type": ["integer", "null"]},
    removed={"type": ["integer", "null"]},
    no_op={"type": ["integer", "null"], "description": "changes that Plaid sent and that were none for readers"},
    error={"type": ["object", "null"]},
    stopped=_FRESHNESS["stopped"],
    remedy=_FRESHNESS["remedy"],
    last_synced_at=_FRESHNESS["last_synced_at"],
    last_sync_at={**_MAYBE_MOMENT, "description": "when something new was last found and shown"},
    bank_updated_at=_FRESHNESS["bank_updated_at"],
    bank_asked={**_BOOLEAN, "description": "false: Plaid was asked, and Plaid asks the bank by its own schedule"},
)

_CHANGES = _object(added=_COUNT, modified=_COUNT, removed=_COUNT)
PASS = _object(
    started_at=_MOMENT,
    duration_s={"type": "number", "minimum": 0},
    cause={**_TEXT, "description": "link, webhook, manual, schedule, retry, sweep, operator or unlink"},
    outcome={**_TEXT, "description": "appended, unchanged, not_ready, stopped, unlinked, failed"},
    success=_BOOLEAN,
    pages=_COUNT,
    fetched=_CHANGES,
    applied={**_CHANGES, "type": ["object", "null"]},
    no_op={"type": ["integer", "null"]},
    error={"type": ["object", "null"]},
    changeset={
        **_object(partition=_COUNT, offset=_COUNT),
        "type": ["object", "null"],
        "description": "where its record is in the log",
    },
)

LEDGER_BALANCE = _object(
    account={**_TEXT, "description": "the ledger account's id"},
    **{"class": {**_TEXT, "enum": ["asset", "liability", "income", "expense", "equity"]}},
    kind={**_TEXT, "enum": ["bank", "category", "equity"]},
    reference={**_TEXT, "description": "of a bank: account_id; of a category: its name"},
    currency=_TEXT,
    posted=_AMOUNT,
    pending=_AMOUNT,
)
LEDGER_MOVED = _object(
    month={**_TEXT, "pattern": "^[0-9]{4}-[0-9]{2}$"},
    currency=_TEXT,
    category=_TEXT,
    **{"class": {**_TEXT, "enum": ["income", "expense"]}},
    layer={**_TEXT, "enum": ["pending", "posted"]},
    spent=_AMOUNT,
    received=_AMOUNT,
    net=_AMOUNT,
)

LAST_CHECK: Schema = {
    **_object(
        checked_at=_MOMENT,
        next_at=_MOMENT,
        state={**_TEXT, "enum": ["tied_out", "gap", "not_comparable"]},
        cause={**_MAYBE_TEXT, "enum": [*CAUSES, None]},
        reason=_MAYBE_TEXT,
        currency=_MAYBE_TEXT,
        ledger=_MAYBE_AMOUNT,
        bank=_MAYBE_AMOUNT,
        gap=_AMOUNT,
        source=_MAYBE_TEXT,
        tied_out_at=_MAYBE_MOMENT,
    ),
    "type": ["object", "null"],
    "description": "null where it was not checked yet",
}
DISCREPANCY = _object(
    cause={**_TEXT, "enum": list(CAUSES)},
    against={**_TEXT, "enum": ["bank", "rows"]},
    currency=_MAYBE_TEXT,
    ledger=_MAYBE_AMOUNT,
    bank=_MAYBE_AMOUNT,
    gap=_AMOUNT,
    evidence={"type": "object"},
    opened_at=_MOMENT,
    last_at=_MOMENT,
    count=_COUNT,
    repair={**_TEXT, "enum": ["wait", "sync", "compare", "ask"]},
    repaired_at=_MAYBE_MOMENT,
    outcome={**_MAYBE_TEXT, "enum": ["persists", "repaired", "resolved", "withdrawn", None]},
    resolved_at=_MAYBE_MOMENT,
)

_, _STATUS = msgspec.json.schema_components([QueueStatus], ref_template="#/components/schemas/{name}")

SCHEMAS: dict[str, Schema] = {
    "LinkToken": _object(link_token=_TEXT, expiration=_MOMENT),
    "Linked": _object(item_id=_TEXT, status=_TEXT),
    "Unlinking": _object(item_id=_TEXT, status={**_TEXT, "enum": ["unlinking", "unlinked"]}),
    "Sync": SYNC,
    "Pass": PASS,
    "Passes": _object(syncs=_list("Pass"), next_cursor=_MAYBE_TEXT),
    "Freshness": _object(**_FRESHNESS),
    "Ticked": _object(
        marked={**_COUNT, "description": "Items that this call made due"},
        health={"$ref": "#/components/schemas/ScheduleHealth"},
    ),
    **_STATUS,
    "Item": ITEM,
    "Items": _object(items=_list("Item")),
    "Account": ACCOUNT,
    "Accounts": _object(accounts=_list("Account")),
    "Balance": BALANCE,
    "Balances": BALANCES,
    "Transaction": TRANSACTION,
    "Edited": _object(
        id=_TEXT, changeset={**_TEXT, "description": "id of its record"}, status={**_TEXT, "enum": ["accepted"]}
    ),
    "TransactionAsOf": TRANSACTION_AS_OF,
    "TransactionsAsOf": _object(transactions=_list("TransactionAsOf"), next_cursor=_MAYBE_TEXT),
    "AccountAsOf": ACCOUNT_AS_OF,
    "AccountsAsOf": _object(accounts=_list("AccountAsOf")),
    "Changeset": CHANGESET,
    "Version": VERSION,
    "Versions": _object(versions=_list("Version"), next_cursor=_MAYBE_TEXT),
    "Explanation": EXPLANATION,
    "Transactions": _object(transactions=_list("Transaction"), next_cursor=_MAYBE_TEXT),
    "LedgerBalance": LEDGER_BALANCE,
    "LedgerBalances": _object(balances=_list("LedgerBalance")),
    "LedgerMoved": LEDGER_MOVED,
    "LedgerTurnover": _object(turnover=_list("LedgerMoved")),
    "Discrepancy": DISCREPANCY,
    "Reconciliations": _object(item_id=_TEXT, account_id=_TEXT, last=LAST_CHECK, discrepancies=_list("Discrepancy")),
    "Review": REVIEW,
    "Reviews": _object(reviews=_list("Review"), next_cursor=_MAYBE_TEXT),
    "StreamToken": _object(token=_TEXT, expires_at=_MOMENT),
    "Fault": FAULT,
    "Problem": PROBLEM,
}
