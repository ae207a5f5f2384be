"""Examples of each type of public event, with key and headers; golden bytes are in tests/golden/events.json. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.encoding import catalogue
from schemas.events import PUBLIC_SOURCE
from schemas.ids import event_id
from schemas.times import SECOND_US, rfc3339
from schemas.topics import HEADER_POSITION

OWN_ID = "6f0c9c1f3a5e4b7d8a2b1c0d9e8f7a6b"
LINKED, ADDED, POSTED, TAKEN_BACK, STATE, UNLINKED = (
    f"{number:02x}9d41c6a7e84b0f93d2516c8b7a04ef" for number in range(1, 7)
)
KNOWN_AT = 1_773_222_300_123_456
"""2026-03-11T09:45:00.123456Z. In the examples each offset of the log is one second."""
_OWNER = {"tenant": "acme", "user_id": "ada"}
_ITEM_ID = "eVBnVMp7zdTJLkRNr33Rs6zr7KNJqBFL9DrE6"
_ACCOUNT_ID = "BxBXxLj1m4HMXBm9WZZmCWVbPjX16EHwv99vp"


class Example(NamedTuple):
    """A published event. `value`: plain values as an Avro library reads them, times in microseconds."""

    topic: str
    schema: int
    key: str
    headers: Mapping[str, str]
    value: Mapping[str, Any]


def _record(schema: int, **fields: Any) -> dict[str, Any]:
    """Return a record of a schema whose other fields are null."""
    return {entry["name"]: fields.get(entry["name"]) for entry in catalogue.declared_schema(schema)["fields"]}


def _payload(**fields: Any) -> dict[str, Any]:
    values = {
        "account_id": _ACCOUNT_ID,
        "iso_currency_code": "USD",
        "date": "2026-03-10",
        "name": "Blue Bottle Coffee",
        "merchant_name": "Blue Bottle Coffee",
        "category_primary": "FOOD_AND_DRINK",
        "category_detailed": "FOOD_AND_DRINK_COFFEE",
        "category_confidence": "VERY_HIGH",
        "payment_channel": "in store",
        "location_json": '{"city":"Oakland","region":"CA"}',
        "extra_json": '{"a_field_of_tomorrow":"kept"}',
    }
    return _record(catalogue.TRANSACTION, **(values | fields))


_PENDING = _payload(transaction_id="lPNjeW1nR6CDn5okmGQ6hEpMo4lLNoSrzqDje", amount="4.5", pending=True)
_POSTED = _payload(
    transaction_id="yhnUVvtcGGcCKU0bcz8PDQr5ZUxUXebUvbKC0",
    amount="5.4",
    pending=False,
    date="2026-03-11",
    pending_transaction_id=_PENDING["transaction_id"],
)


def _transaction(changeset: str, version: int, payload: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": OWN_ID,
        **_OWNER,
        "item_id": _ITEM_ID,
        "version": version,
        "known_at": KNOWN_AT,
        "changeset": changeset,
        "changed": [],
        "transaction": payload,
        "previous": None,
        "user_fields_json": None,
        "previous_user_fields_json": None,
        **fields,
    }


def _account(current: str, available: str) -> dict[str, Any]:
    return _record(
        catalogue.ACCOUNT,
        account_id=_ACCOUNT_ID,
        name="Everyday Checking",
        official_name="Everyday Checking Account",
        mask="0000",
        type="depository",
        subtype="checking",
        holder_category="personal",
        current=current,
        available=available,
        iso_currency_code="USD",
        last_updated_datetime="2026-03-11T09:30:00Z",
    )


def _item(changeset: str, state: str, previous: str | None, code: str | None = None) -> dict[str, Any]:
    item = _record(
        catalogue.ITEM,
        item_id=_ITEM_ID,
        state=state,
        code=code,
        institution_id="ins_109508",
        institution_name="First Platypus Bank",
        history_status=None if previous is None else "HISTORICAL_UPDATE_COMPLETE",
    )
    return {**_OWNER, "known_at": KNOWN_AT, "changeset": changeset, "item": item, "previous_state": previous}


_BALANCE = {
    **_OWNER,
    "item_id": _ITEM_ID,
    "known_at": KNOWN_AT,
    "changeset": POSTED,
    "source": "cached",
    "account": _account("1204.6", "1204.6"),
    "previous": _account("1210", "1205.5"),
}
_TRANSACTION = ("transactions", catalogue.TRANSACTION_EVENT, OWN_ID)
_BALANCE_OF = ("balances", catalogue.BALANCE_EVENT, _ACCOUNT_ID)
_ITEM_OF = ("items", catalogue.ITEM_EVENT, _ITEM_ID)

_VALUES: Mapping[str, tuple[tuple[str, int, str], str, Mapping[str, Any]]] = {
    "transaction.added": (_TRANSACTION, "41.0", _transaction(ADDED, 1, _PENDING)),
    "transaction.modified": (
        _TRANSACTION,
        "57.0",
        _transaction(
            POSTED,
            2,
            _POSTED,
            previous=_PENDING,
            changed=["transaction_id", "amount", "pending", "pending_transaction_id", "date", "user_fields.category"],
            user_fields_json='{"category":"BUSINESS_LUNCH"}',
        ),
    ),
    "transaction.removed": (
        _TRANSACTION,
        "63.0",
        _transaction(TAKEN_BACK, 3, _POSTED, user_fields_json='{"category":"BUSINESS_LUNCH"}'),
    ),
    "balance.updated": (_BALANCE_OF, "57.1", _BALANCE),
    "item.linked": (_ITEM_OF, "40.0", _item(LINKED, "active", None)),
    "item.state_changed": (_ITEM_OF, "70.0", _item(STATE, "login_required", "active", "ITEM_LOGIN_REQUIRED")),
    "item.unlinked": (_ITEM_OF, "71.0", _item(UNLINKED, "unlinked", "login_required")),
}


def examples(topic_prefix: str = "tartan.") -> dict[str, Example]:
    """Return the example of each type of event, in the order of an Item's life."""
    return {kind: _example(kind, *parts, topic_prefix) for kind, parts in _VALUES.items()}


def _example(
    kind: str, of: tuple[str, int, str], position: str, value: Mapping[str, Any], topic_prefix: str
) -> Example:
    topic, schema, key = of
    value = {**value, "known_at": KNOWN_AT + int(position.partition(".")[0]) * SECOND_US}
    entity = {"transactions": bytes.fromhex(OWN_ID), "balances": f"{key}\0cached".encode()}.get(topic, key.encode())
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id(bytes.fromhex(value["changeset"]), kind, entity),
        "ce_type": kind,
        "ce_time": rfc3339(value["known_at"]),
        "ce_source": PUBLIC_SOURCE,
        "ce_subject": key,
        HEADER_POSITION: position,
    }
    return Example(topic_prefix + topic, schema, key, headers, value)
