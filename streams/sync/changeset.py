"""Build the record that a sync run appends, and decide whether there is anything to append. Core.

Bytes to bytes: a transaction is encoded once, straight from the page.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from runtime.scheduler.types import KnownHead
from schemas.encoding import catalogue, codec
from schemas.events import BALANCE_REPORTED, TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account, Cause, Head, Item
from schemas.times import to_micros
from schemas.topics import user_key
from streams.sync.pages import Change
from streams.sync.plaid_errors import ItemState

CURSOR_ALONE_EVERY = timedelta(days=1)
"""A new cursor without other news is appended at most this often; Plaid accepts one for a year (PLAID.md 1.2)."""
FINGERPRINT_BYTES = 16
PSEUDONYM_BYTES = 8

Events = list[tuple[str, int, bytes]]
"""Type, schema number and Avro bytes of each event."""

_SCHEMAS = {
    TRANSACTION_ADDED: catalogue.TRANSACTION,
    TRANSACTION_MODIFIED: catalogue.TRANSACTION,
    TRANSACTION_REMOVED: catalogue.REMOVAL,
}


class Tip(NamedTuple):
    """End of an Item's chain: the next record has `head` as its parent."""

    head: bytes | None = None
    at: datetime | None = None
    cursor: str | None = None
    state: str | None = None
    code: str | None = None
    history_status: str | None = None
    fingerprints: Mapping[str, bytes] = {}


class Subject(NamedTuple):
    """Item, user and cause of a record."""

    item_id: str
    user: int
    cause: Cause
    institution_id: str | None = None
    institution_name: str | None = None
    hints_until: int | None = None
    fetch_started_at: datetime | None = None


class Draft(NamedTuple):
    """Content of a record before it is sealed; `cursor` and `history_status` None leave them as they were."""

    type: str
    events: Events
    fingerprints: Mapping[str, bytes] = {}
    cursor: str | None = None
    state: ItemState | None = None
    history_status: str | None = None


class RecordParameters(NamedTuple):
    """Parameters that all records of one changeset share. `nonce` returns another one at each call."""

    subject: Subject
    tip: Tip
    keys: UserKeys
    at: datetime
    nonce: Callable[[], bytes]
    bytes_max: int | None = None


class Chunk(NamedTuple):
    """A record ready to append that takes effect only once a chained record names it."""

    id: bytes
    value: bytes
    counts: dict[str, int]


class SealedRecord(NamedTuple):
    """A chained record ready to append, with the tip after it. `counts`: events by type, those of its chunks too."""

    id: bytes
    key: bytes
    value: bytes
    tip: Tip
    counts: dict[str, int]


def tip_of(head: KnownHead | None) -> Tip:
    """Return the end of the chain that follow_heads has read."""
    if head is None:
        return Tip()
    return Tip(head.id, head.at, head.cursor, head.state, head.code, head.history_status, head.fingerprints)


def fingerprint(account: Account, keys: UserKeys) -> bytes:
    """Return a keyed hash of an account, without the time of the bank's last update: that alone is no news."""
    lasting = msgspec.structs.replace(account, last_updated_datetime=None)
    return blake2b(codec.encode(lasting), digest_size=FINGERPRINT_BYTES, key=keys.fingerprints).digest()


def pseudonym(account_id: str, keys: UserKeys) -> str:
    """Return the stable name of an account in clear heads, which hides Plaid's id from readers of the log."""
    return blake2b(account_id.encode(), digest_size=PSEUDONYM_BYTES, key=keys.fingerprints).hexdigest()


def is_news(tip: Tip, draft: Draft, *, now: datetime) -> bool:
    """Return whether a draft changes anything after `tip`."""
    state = draft.state
    if draft.type == gate.RESTATED:  # its content is that nothing else exists
        return True
    if state is not None and (state.from_webhook or (state.state, state.code) != (tip.state, tip.code)):
        return True
    if any(tip.fingerprints.get(account) != value for account, value in draft.fingerprints.items()):
        return True
    if draft.history_status not in (None, tip.history_status):
        return True
    if any(schema != catalogue.ACCOUNT for _, schema, _ in draft.events):
        return True
    if draft.cursor in (None, tip.cursor):
        return False
    return tip.cursor is None or tip.at is None or now - tip.at >= CURSOR_ALONE_EVERY


def encode_transactions(changes: Sequence[Change]) -> Events:
    """Encode the changes of transactions."""
    encode_transaction, encode_removal = codec.encoder(catalogue.TRANSACTION), codec.encoder(catalogue.REMOVAL)
    return [
        (kind, _SCHEMAS[kind], encode_removal(record) if kind == TRANSACTION_REMOVED else encode_transaction(record))
        for kind, record in changes
    ]


def encode_balances(accounts: Mapping[str, Account]) -> Events:
    """Encode accounts with their balances, in the order of their ids."""
    return [(BALANCE_REPORTED, catalogue.ACCOUNT, codec.encode(accounts[name])) for name in sorted(accounts)]


def encode_item(event_type: str, subject: Subject, state: ItemState, history_status: str | None = None) -> Events:
    """Encode one event about the Item itself: linked, unlinked or its state changed."""
    item = Item(
        subject.item_id,
        state.state,
        state.code,
        state.reason,
        state.effective_at,
        subject.institution_id,
        subject.institution_name,
        history_status,
    )
    return [(event_type, catalogue.ITEM, codec.encode(item))]


def count_events(events: Events) -> dict[str, int]:
    """Return the number of events by type."""
    return dict(Counter(event_type for event_type, _, _ in events))


def compose(draft: Draft, parameters: RecordParameters, chunks: Sequence[Chunk] = ()) -> SealedRecord:
    """Seal the record that follows the tip; readers take the events of `chunks`, appended before, ahead of its own.

    Idempotence: the same draft on the same tip has the same id, whatever the time and nonce.
    Raises: Quarantine, where it would be larger than a record may be.
    """
    subject, tip, keys, time, nonce, bytes_max = parameters
    block = codec.encode_events(draft.events)
    state, code = (draft.state.state, draft.state.code) if draft.state else (tip.state, tip.code)
    cursor = draft.cursor or tip.cursor
    history_status = draft.history_status or tip.history_status
    # The id covers the record's own events and, by their ids, its chunks.
    events = len(chunks).to_bytes(4, "big") + b"".join(chunk.id for chunk in chunks) + block if chunks else block
    record_id = changesets.changeset_id(
        keys, parent=tip.head, base_cursor=tip.cursor, next_cursor=cursor, state=state, events=events
    )
    counts = Counter(count_events(draft.events))
    for chunk in chunks:
        counts.update(chunk.counts)
    head = Head(
        id=record_id,
        kind=gate.CHAINED,
        type=draft.type,
        parent=tip.head,
        item_id=subject.item_id,
        user=subject.user,
        at=to_micros(time),
        cause=subject.cause,
        key_generation=keys.generation,
        fetch_started_at=to_micros(subject.fetch_started_at),
        base_cursor=tip.cursor,
        next_cursor=cursor,
        counts=dict(counts),
        item_state=state,
        item_code=code,
        history_status=history_status,
        fingerprints=dict(draft.fingerprints),
        hints_until=subject.hints_until,
        parts=[chunk.id for chunk in chunks],
    )
    value = changesets.seal(head, block, keys, nonce=nonce(), bytes_max=bytes_max)
    fingerprints = {**tip.fingerprints, **draft.fingerprints}
    next_tip = Tip(record_id, time, cursor, state, code, history_status, fingerprints)
    return SealedRecord(record_id, user_key(subject.user), value, next_tip, head.counts)
