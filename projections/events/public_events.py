"""Encode net events in Avro, bytes to bytes: a public event nests the log's own record, so its bytes are cut from it.

Encoding an event from a struct costs 3.8 µs, from a dict 8.7 µs, cut and joined 0.5 µs.
Source: avro/transaction_event.v2.avsc, balance_event.v1.avsc, item_event.v1.avsc.
"""

import json
from binascii import hexlify
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from projections.model.unit_of_work import NetEvent
from schemas.encoding import catalogue, codec, flat
from schemas.errors import Halt, Quarantine
from schemas.log.records import Account, Item, Transaction

_TYPES = {
    catalogue.TRANSACTION: catalogue.TRANSACTION_EVENT,
    catalogue.ACCOUNT: catalogue.BALANCE_EVENT,
    catalogue.ITEM: catalogue.ITEM_EVENT,
}
"""Schema number of a record of the log to that of the public event that nests it."""

TRANSACTION_EVENTS = frozenset({catalogue.TRANSACTION_EVENT_1, catalogue.TRANSACTION_EVENT})
"""All versions of a transaction's event that are stored and published."""

_OWN_ID = flat.zigzag(32)
"""The length of an own id as text."""
NONE, SOME = b"\x00", b"\x02"
"""The two branches of a union with null."""
_NOTHING_BEFORE = NONE * 3
"""No payload before, no user fields now or before."""


class CommonFields(NamedTuple):
    """Encoded fields that all events of a changeset have in common.

    `changeset` is its time and id; `first` are all bytes between own id and payload of a transaction's first event.
    """

    owner: bytes
    item: bytes
    changeset: bytes
    first: bytes

    def about(self, item_id: str) -> "CommonFields":
        """Return the same for another Item of the user."""
        return _common(self.owner, flat.text(item_id), self.changeset)


def common_fields(*, tenant: str, user_id: str, item_id: str, known_at: int, changeset: bytes) -> CommonFields:
    """Encode owner, Item, time and id of a changeset."""
    owner = flat.text(tenant) + flat.text(user_id)
    return _common(owner, flat.text(item_id), flat.zigzag(known_at) + flat.text(changeset.hex()))


def first_transaction_event(
    common: CommonFields, own_id: bytes, payload: bytes, user_fields: str | None = None
) -> bytes:
    """Encode the first event of a transaction: the bytes of transaction_event, in half the time."""
    ending = _NOTHING_BEFORE if user_fields is None else NONE + _optional(user_fields) + NONE
    return b"".join((_OWN_ID, hexlify(own_id), common.first, payload, ending))


def public_schema(number: int) -> int:
    """Return the schema of the public event that nests a record of this schema.

    Raises: Quarantine, where there is none.
    """
    try:
        return _TYPES[number]
    except KeyError:
        raise Quarantine(f"no public event nests schema {number}") from None


def transaction_event(
    common: CommonFields,
    own_id: bytes,
    version: int,
    payload: bytes,
    *,
    changed: list[str],
    previous: bytes | None,
    user_fields: str | None = None,
    previous_user_fields: str | None = None,
) -> bytes:
    """Encode a transaction's event; `previous` is the bank's payload before, where the transaction is modified.

    `user_fields` and those before are JSON objects of field to value; None where the user has set none.
    """
    return b"".join(
        (
            _OWN_ID,
            own_id.hex().encode(),
            common.owner,
            common.item,
            _version(version),
            common.changeset,
            _names(tuple(changed)),
            payload,
            NONE if previous is None else SOME + previous,
            _optional(user_fields),
            _optional(previous_user_fields),
        )
    )


def balance_event(common: CommonFields, source: str, payload: bytes, previous: bytes | None) -> bytes:
    """Encode a balance's event."""
    before = NONE if previous is None else SOME + previous
    return common.owner + common.item + common.changeset + flat.text(source) + payload + before


def item_event(common: CommonFields, payload: bytes, previous_state: str | None) -> bytes:
    """Encode an Item's event."""
    return common.owner + common.changeset + payload + _optional(previous_state)


def encode_block(net: Sequence[NetEvent]) -> bytes:
    """Encode the block of net events that the table `changesets` stores: events.v1, in order."""
    return codec.encode_events([(event.type, event.schema, event.data) for event in net])


def decode_block(block: bytes) -> list[NetEvent]:
    """Decode the net events of a block. Raises: Halt, where an event's schema is not a public event's."""
    return [
        NetEvent(kind, schema, _entity(schema, block[start:end]), block[start:end])
        for kind, schema, start, end in codec.event_spans(block)
    ]


def key_of(event: NetEvent) -> str:
    """Return the record's key and the event's subject: own id in hex, account id or Item id.

    Raises: Halt, where the event's schema is not a public event's.
    """
    if event.schema in TRANSACTION_EVENTS:
        return event.entity.hex()
    if event.schema in (catalogue.BALANCE_EVENT, catalogue.ITEM_EVENT):
        return event.entity.partition(b"\0")[0].decode()
    raise _unknown(event.schema)


def balance_entity(account_id: str, source: str) -> bytes:
    """Return the subject of a balance's event: a changeset can report two sources of one account."""
    return f"{account_id}\0{source}".encode()


def _entity(schema: int, data: bytes) -> bytes:
    if schema in TRANSACTION_EVENTS:
        return bytes.fromhex(data[1:33].decode())
    if schema == catalogue.BALANCE_EVENT:
        event = read_balance(data)
        return balance_entity(event.account.account_id, event.source)
    if schema == catalogue.ITEM_EVENT:
        return read_item(data).item.item_id.encode()
    raise _unknown(schema)


def _unknown(schema: int) -> Halt:
    return Halt(f"schema {schema} is none of a public event")


def changeset_id_of(event: NetEvent) -> bytes:
    """Return the id of an event's changeset. Raises: Halt, where the event's schema is not a public event's."""
    data = event.data
    if event.schema in TRANSACTION_EVENTS:
        _, start = flat.read_long(data, _after_texts(data, 0, 4))
    elif event.schema in (catalogue.BALANCE_EVENT, catalogue.ITEM_EVENT):
        start = _after_texts(data, 0, 2 if event.schema == catalogue.ITEM_EVENT else 3)
    else:
        raise _unknown(event.schema)
    _, start = flat.read_long(data, start)
    return bytes.fromhex(_text(data, start)[0])


class TransactionEvent(NamedTuple):
    """Fields of a transaction's event that a push shows. `user_fields`: field to value."""

    id: str
    version: int
    changed: list[str]
    transaction: Transaction
    user_fields: dict[str, Any]


class BalanceEvent(NamedTuple):
    """Fields of a balance's event that a push shows."""

    item_id: str
    source: str
    account: Account
    previous: Account | None


class ItemEvent(NamedTuple):
    """Fields of an Item's event that a push shows."""

    item: Item
    previous_state: str | None


def read_transaction(data: bytes) -> TransactionEvent:
    """Decode a transaction's event, of any version."""
    own, start = _text(data, 0)
    version, start = flat.read_long(data, _after_texts(data, start, 3))
    start = _after_changeset(data, start)
    changed: list[str] = []
    count, start = flat.read_long(data, start)
    while count:
        for _ in range(count):
            name, start = _text(data, start)
            changed.append(name)
        count, start = flat.read_long(data, start)
    decode = codec.decoder(catalogue.TRANSACTION)
    payload, start = decode(data, start)
    start = decode(data, start + 1)[1] if data[start : start + 1] == SOME else start + 1
    user_fields = json.loads(_text(data, start + 1)[0]) if data[start : start + 1] == SOME else {}
    return TransactionEvent(own, version, changed, payload, user_fields)


def read_balance(data: bytes) -> BalanceEvent:
    """Decode a balance's event."""
    item_id, start = _text(data, _after_texts(data, 0, 2))
    source, start = _text(data, _after_changeset(data, start))
    decode = codec.decoder(catalogue.ACCOUNT)
    account, start = decode(data, start)
    previous = decode(data, start + 1)[0] if data[start : start + 1] == SOME else None
    return BalanceEvent(item_id, source, account, previous)


def read_item(data: bytes) -> ItemEvent:
    """Decode an Item's event."""
    start = _after_changeset(data, _after_texts(data, 0, 2))
    item, start = codec.decoder(catalogue.ITEM)(data, start)
    return ItemEvent(item, _text(data, start + 1)[0] if data[start : start + 1] == SOME else None)


def _common(owner: bytes, item: bytes, changeset: bytes) -> CommonFields:
    return CommonFields(owner, item, changeset, owner + item + _version(1) + changeset + NONE)


def _optional(text: str | None) -> bytes:
    return NONE if text is None else SOME + flat.text(text)


def _text(data: bytes, start: int) -> tuple[str, int]:
    size, start = flat.read_long(data, start)
    return data[start : start + size].decode(), start + size


def _after_texts(data: bytes, start: int, count: int) -> int:
    for _ in range(count):
        size, start = flat.read_long(data, start)
        start += size
    return start


def _after_changeset(data: bytes, start: int) -> int:
    return _after_texts(data, flat.read_long(data, start)[1], 1)


@lru_cache(maxsize=1024)
def _version(version: int) -> bytes:
    return flat.zigzag(version)


@lru_cache(maxsize=4096)
def _names(changed: tuple[str, ...]) -> bytes:
    if not changed:
        return NONE
    return flat.zigzag(len(changed)) + b"".join(map(flat.text, changed)) + NONE
