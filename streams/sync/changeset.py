"""Build the record that a sync run appends, and decide whether there is anything to append. Core.

Bytes to bytes: a transaction is encoded once, straight from the page. An update that is larger than a record becomes
chunks and the one chained record that names them. Events keep their order: readers take the chunks in the order in
which they are named, then the record's own events. So the event that opens an update (`history.restated`) is in the
first chunk.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from runtime.plaid import repair
from runtime.scheduler.types import KnownHead
from schemas.encoding import catalogue, codec
from schemas.errors import Quarantine
from schemas.events import BALANCE_REPORTED, TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.ids import chained_id
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account, Cause, Head, Item, Removal, Transaction
from schemas.times import to_micros
from schemas.topics import user_key
from streams.sync.pages import Change
from streams.sync.plaid_errors import ItemState

CURSOR_ALONE_EVERY = timedelta(days=1)
"""A new cursor without other news is appended at most this often; Plaid accepts one for a year (PLAID.md 1.2)."""
FINGERPRINT_BYTES = 16
PSEUDONYM_BYTES = 8
PLAIN_PER_SEALED = 4
"""Plain bytes of a first cut for each byte that a record may have. Bank data compresses to a fifth and better, so most
of these cuts fit; the others are halved until they do."""
EVENT_OVERHEAD_BYTES = 32
"""Bytes of an event beside its data: type, schema number and length."""

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
    bytes_max: int = changesets.RECORD_BYTES_MAX


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


class ChunkedChangeset(NamedTuple):
    """Chunks in the order in which they are to be appended, then the record that puts them into effect."""

    chunks: list[Chunk]
    record: SealedRecord


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
    return [(kind, _SCHEMAS[kind], _encode(_SCHEMAS[kind], record)) for kind, record in changes]


def encode_balances(accounts: Mapping[str, Account]) -> Events:
    """Encode accounts with their balances, in the order of their ids."""
    return [
        (BALANCE_REPORTED, catalogue.ACCOUNT, _encode(catalogue.ACCOUNT, accounts[name])) for name in sorted(accounts)
    ]


def _encode(schema: int, record: Transaction | Account | Removal) -> bytes:
    data = codec.encoder(schema)(record)
    if len(data) > changesets.PAYLOAD_BYTES_MAX and not isinstance(record, Removal):
        data = codec.encoder(schema)(repair.shortened(record))
    return data


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


def compose(draft: Draft, parameters: RecordParameters, chunks: Sequence[Chunk] = ()) -> SealedRecord:
    """Seal the record that follows the tip; readers take the events of `chunks`, appended before, ahead of its own.

    Idempotence: the same draft on the same tip has the same id, whatever the time and nonce.
    Raises: Quarantine, where it would be larger than a record may be.
    """
    subject, tip, keys = parameters.subject, parameters.tip, parameters.keys
    block = codec.encode_events(draft.events)
    state, code = (draft.state.state, draft.state.code) if draft.state else (tip.state, tip.code)
    cursor = draft.cursor or tip.cursor
    history_status = draft.history_status or tip.history_status
    # The id covers the record's own events and, by their ids, its chunks.
    events = len(chunks).to_bytes(4, "big") + b"".join(chunk.id for chunk in chunks) + block if chunks else block
    record_id = changesets.changeset_id(
        keys, parent=tip.head, base_cursor=tip.cursor, next_cursor=cursor, state=state, events=events
    )
    counts = _count_events(draft.events)
    for chunk in chunks:
        counts.update(chunk.counts)
    value = _seal(
        parameters,
        block,
        id=record_id,
        kind=gate.CHAINED,
        type=draft.type,
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
    fingerprints = {**tip.fingerprints, **draft.fingerprints}
    next_tip = Tip(record_id, parameters.at, cursor, state, code, history_status, fingerprints)
    return SealedRecord(record_id, user_key(subject.user), value, next_tip, dict(counts))


def compose_in_chunks(draft: Draft, parameters: RecordParameters) -> ChunkedChangeset:
    """Seal the record that follows the tip, with chunks before it where it is too large for one record.

    Idempotence: the same draft on the same tip is cut alike, with the same ids, whatever the time and nonce.
    Raises: Quarantine, where one event alone, or the clear head, is larger than a record may be.
    """
    if sum(map(_plain_bytes, draft.events)) <= changesets.EVENTS_BYTES_MAX:
        try:
            return ChunkedChangeset([], compose(draft, parameters))
        except Quarantine:
            if not draft.events:
                raise
    *runs, rest = _cut(draft.events, min(PLAIN_PER_SEALED * parameters.bytes_max, changesets.EVENTS_BYTES_MAX))
    chunks = [chunk for run in runs for chunk in _seal_chunks(run, parameters)]
    while True:
        try:
            return ChunkedChangeset(chunks, compose(draft._replace(events=rest), parameters, chunks))
        except Quarantine:
            if not rest:
                raise
            half = (len(rest) + 1) // 2
            chunks += _seal_chunks(rest[:half], parameters)
            rest = rest[half:]


def _cut(events: Events, plain_max: int) -> Iterator[Events]:
    """Cut events in order into runs of at most this many plain bytes, or of one event."""
    begin = size = 0
    for number, event in enumerate(events):
        if size and size + _plain_bytes(event) > plain_max:
            yield events[begin:number]
            begin, size = number, 0
        size += _plain_bytes(event)
    yield events[begin:]


def _plain_bytes(event: tuple[str, int, bytes]) -> int:
    return len(event[2]) + EVENT_OVERHEAD_BYTES


def _seal_chunks(events: Events, parameters: RecordParameters) -> list[Chunk]:
    """Seal a run of events, halved as often as necessary."""
    block, counts = codec.encode_events(events), _count_events(events)
    subject, tip, keys = parameters.subject, parameters.tip, parameters.keys
    # Without cursors and time, so that a retry gives the same ids as the chunks of an attempt that died.
    chunk_id = chained_id(keys.ids, gate.PART.encode(), subject.item_id.encode(), tip.head or b"", block)
    try:
        value = _seal(parameters, block, id=chunk_id, kind=gate.PART, type=gate.PART, counts=dict(counts))
        return [Chunk(chunk_id, value, dict(counts))]
    except Quarantine:
        if len(events) == 1:
            raise
    half = len(events) // 2
    return [*_seal_chunks(events[:half], parameters), *_seal_chunks(events[half:], parameters)]


def _count_events(events: Events) -> Counter[str]:
    return Counter(event_type for event_type, _, _ in events)


def _seal(parameters: RecordParameters, block: bytes, **fields: Any) -> bytes:
    """Seal events under a head. `fields`: those that a chained record and a chunk do not have in common."""
    subject, keys = parameters.subject, parameters.keys
    head = Head(
        parent=parameters.tip.head,
        item_id=subject.item_id,
        user=subject.user,
        at=to_micros(parameters.at),
        cause=subject.cause,
        key_generation=keys.generation,
        **fields,
    )
    return changesets.seal(head, block, keys, nonce=parameters.nonce(), bytes_max=parameters.bytes_max)
