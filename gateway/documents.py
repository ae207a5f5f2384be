"""JSON schemas of what the API answers, by name. Source: JSON Schema 2020-12, as OpenAPI 3.1 uses it."""

from typing import Any

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


ITEM = _object(
    item_id=_TEXT,
    user_id=_TEXT,
    status={**_TEXT, "description": "linking, active, login_required, pending_disconnect, pending_expiration, "
                                    "revoked, gone, unlinking or unlinked"},
    code={**_MAYBE_TEXT, "description": "Plaid's code behind the status"},
    reason=_MAYBE_TEXT,
    effective_at=_MAYBE_TEXT,
    institution_id=_MAYBE_TEXT,
    institution_name=_MAYBE_TEXT,
    history_status=_MAYBE_TEXT,
    transactions=_COUNT,
    linked_at=_MOMENT,
    unlinked_at=_MAYBE_MOMENT,
    last_sync_at={**_MAYBE_MOMENT, "description": "when something new was last found and shown"},
    last_asked_at={**_MAYBE_MOMENT, "description": "when Plaid was last asked successfully"},
    last_webhook_at=_MAYBE_MOMENT,
    next_sync_at=_MAYBE_MOMENT,
)  # fmt: skip

ACCOUNT = _object(
    account_id=_TEXT, item_id=_TEXT, persistent_account_id=_MAYBE_TEXT, name=_MAYBE_TEXT, official_name=_MAYBE_TEXT,
    mask=_MAYBE_TEXT, type=_TEXT, subtype=_MAYBE_TEXT, currency=_TEXT, current=_MAYBE_AMOUNT, available=_MAYBE_AMOUNT,
    limit=_MAYBE_AMOUNT, source={**_TEXT, "description": "cached or realtime"}, cached_at=_MAYBE_MOMENT,
    realtime_at=_MAYBE_MOMENT, version=_COUNT, known_at=_MOMENT,
)  # fmt: skip

TRANSACTION = _object(
    id=_TEXT, transaction_id={**_TEXT, "description": "Plaid's present id"}, item_id=_TEXT, account_id=_TEXT,
    amount={**_AMOUNT, "description": "exact decimal text; positive leaves the account"}, currency=_TEXT,
    pending=_BOOLEAN, date={**_TEXT, "format": "date"}, datetime=_MAYBE_TEXT, authorized_date=_MAYBE_TEXT,
    name=_MAYBE_TEXT, merchant_name=_MAYBE_TEXT, merchant_entity_id=_MAYBE_TEXT, logo_url=_MAYBE_TEXT,
    category=_MAYBE_TEXT, category_detailed=_MAYBE_TEXT, category_confidence=_MAYBE_TEXT, enriched_at=_MAYBE_MOMENT,
    version=_COUNT, removed_at=_MAYBE_MOMENT, known_at=_MOMENT,
)  # fmt: skip

FAULT: Schema = {
    "type": "object", "properties": {"field": _TEXT, "reason": _TEXT, "value": _TEXT}, "required": ["field", "reason"],
}  # fmt: skip

PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT,
                   "faults": _list("Fault"), "plaid": {"type": "object"}},
    "required": ["type", "title", "status"],
}  # fmt: skip

SYNC = _object(
    request_id={**_TEXT, "description": "names this request in answers and logs"},
    item_id=_TEXT,
    status={**_TEXT, "enum": ["accepted", "applied", "not_ready", "failed"],
            "description": "applied: all that Plaid had when it was asked can be read now"},
    changed={"type": ["boolean", "null"], "description": "whether something new was found; null where not known yet"},
    added={"type": ["integer", "null"]}, modified={"type": ["integer", "null"]}, removed={"type": ["integer", "null"]},
    error={"type": ["object", "null"]},
    last_asked_at=_MAYBE_MOMENT,
    last_sync_at=_MAYBE_MOMENT,
    bank_asked={**_BOOLEAN, "description": "false: Plaid was asked, and Plaid asks the bank by its own schedule"},
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "LinkToken": _object(link_token=_TEXT, expiration=_MOMENT),
    "Linked": _object(item_id=_TEXT, status=_TEXT),
    "Unlinking": _object(item_id=_TEXT, status={**_TEXT, "enum": ["unlinking", "unlinked"]}),
    "Sync": SYNC,
    "Item": ITEM,
    "Items": _object(items=_list("Item")),
    "Account": ACCOUNT,
    "Accounts": _object(accounts=_list("Account")),
    "Transaction": TRANSACTION,
    "Transactions": _object(transactions=_list("Transaction"), next_cursor=_MAYBE_TEXT),
    "StreamToken": _object(token=_TEXT, expires_at=_MOMENT),
    "Fault": FAULT,
    "Problem": PROBLEM,
}
