"""The record that a pass appends: head, events, id, seal; and whether there is anything to append. Core.

Time and nonce are arguments. Bytes to bytes: a transaction is encoded once, straight from the page.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from runtime.scheduler.types import KnownHead
from schemas.encoding import catalogue, codec
from schemas.events import (
    BALANCE_REPORTED,
    ITEM_LINKED,
    ITEM_STATE_CHANGED,
    ITEM_UNLINKED,
    TRANSACTION_ADDED,
    TRANSACTION_MODIFIED,
    TRANSACTION_REMOVED,
    UNLINKED,
)
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account, Cause, Head, Item
from schemas.times import to_micros
from schemas.topics import user_key
from streams.sync.pages import Change
from streams.sync.plaid_errors import ItemState

CURSOR_ALONE_EVERY = timedelta(days=1)
"""A new cursor without news is kept at most this often. Plaid keeps an old one valid for a year (PLAID.md 1.2)."""
FINGERPRINT_BYTES = 16
PSEUDONYM_BYTES = 8

Events = list[tuple[str, int, bytes]]

_SCHEMAS = {
    TRANSACTION_ADDED: catalogue.TRANSACTION,
    TRANSACTION_MODIFIED: catalogue.TRANSACTION,
    TRANSACTION_REMOVED: catalogue.REMOVAL,
}


class Tip(NamedTuple):
    """The end of an Item's chain: the next record names `head` as its parent."""

    head: bytes | None = None
    at: datetime | None = None
    cursor: str | None = None
    state: str | None = None
    code: str | None = None
    history_status: str | None = None
    fingerprints: Mapping[str, bytes] = {}


class Subject(NamedTuple):
    """Whose record it is, and why it is made."""

    item_id: str
    user: int
    cause: Cause
    institution_id: str | None = None
    institution_name: str | None = None
    hints_until: int | None = None
    fetch_started_at: datetime | None = None


class Draft(NamedTuple):
    """What a record says: its type, what of the head it moves, and its encoded events.

    `cursor` and `history_status` None leave them as they were.
    """

    type: str
    events: Events
    fingerprints: Mapping[str, bytes] = {}
    cursor: str | None = None
    state: ItemState | None = None
    history_status: str | None = None


class Part(NamedTuple):
    """A record ready to append that counts only once a chained one names it."""

    id: bytes
    value: bytes
    counts: dict[str, int]


class Sealed(NamedTuple):
    """A record ready to append, and the tip of the chain once it is accepted. `counts`: of all that it says."""

    id: bytes
    key: bytes
    value: bytes
    tip: Tip
    counts: dict[str, int]


def tip_of(head: KnownHead | None) -> Tip:
    """The end of the chain as follow_heads knows it."""
    if head is None:
        return Tip()
    return Tip(head.id, head.at, head.cursor, head.state, head.code, head.history_status, head.fingerprints)


def fingerprint(account: Account, keys: UserKeys) -> bytes:
    """What tells whether a bank reports an account as before; keyed, so it says nothing to whoever reads the log.

    When the bank last looked is no part of it: that alone is no news.
    """
    lasting = msgspec.structs.replace(account, last_updated_datetime=None)
    return blake2b(codec.encode(lasting), digest_size=FINGERPRINT_BYTES, key=keys.fingerprints).digest()


def pseudonym(account_id: str, keys: UserKeys) -> str:
    """The name under which a clear head carries an account's fingerprint: always the same, and Plaid's id to nobody."""
    return blake2b(account_id.encode(), digest_size=PSEUDONYM_BYTES, key=keys.fingerprints).hexdigest()


def is_news(tip: Tip, draft: Draft, *, now: datetime) -> bool:
    """Whether a draft says anything that the chain does not know yet."""
    if draft.type == gate.RESTATED:  # that nothing else was there is what it says
        return True
    if draft.state is not None and (draft.state.told or (draft.state.state, draft.state.code) != (tip.state, tip.code)):
        return True
    if any(tip.fingerprints.get(account) != found for account, found in draft.fingerprints.items()):
        return True
    if draft.history_status not in (None, tip.history_status):
        return True
    if any(schema != catalogue.ACCOUNT for _, schema, _ in draft.events):
        return True
    if draft.cursor in (None, tip.cursor):
        return False
    return tip.cursor is None or tip.at is None or now - tip.at >= CURSOR_ALONE_EVERY


def transactions(changes: Sequence[Change]) -> Events:
    """Encode transactions."""
    encode_transaction, encode_removal = codec.encoder(catalogue.TRANSACTION), codec.encoder(catalogue.REMOVAL)
    return [
        (kind, _SCHEMAS[kind], encode_removal(record) if kind == TRANSACTION_REMOVED else encode_transaction(record))
        for kind, record in changes
    ]


def balances(accounts: Mapping[str, Account]) -> Events:
    """Encode what was said of accounts, in the order of their ids."""
    return [(BALANCE_REPORTED, catalogue.ACCOUNT, codec.encode(accounts[name])) for name in sorted(accounts)]


def linked(subject: Subject, state: ItemState) -> Events:
    """Encode that an Item was linked."""
    return [(ITEM_LINKED, catalogue.ITEM, codec.encode(_item(subject, state, None)))]


def unlinked(subject: Subject) -> Events:
    """Encode that an Item was unlinked."""
    return [(ITEM_UNLINKED, catalogue.ITEM, codec.encode(_item(subject, ItemState(UNLINKED), None)))]


def state_changed(subject: Subject, state: ItemState, history_status: str | None) -> Events:
    """Encode an Item's new state."""
    return [(ITEM_STATE_CHANGED, catalogue.ITEM, codec.encode(_item(subject, state, history_status)))]


def counted(events: Events) -> dict[str, int]:
    """How many events there are of each type."""
    counts: dict[str, int] = {}
    for kind, _, _ in events:
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def compose(
    draft: Draft,
    subject: Subject,
    tip: Tip,
    keys: UserKeys,
    *,
    at: datetime,
    nonce: bytes,
    bytes_max: int | None = None,
    parts: Sequence[Part] = (),
) -> Sealed:
    """Make the record that follows `tip`. `parts` lie in the log already, and what they say comes before it.

    Idempotence: the same draft on the same tip has the same id, whatever the time and nonce.
    Raises: Quarantine, where it would be larger than a record may be.
    """
    block = codec.encode_events(draft.events)
    state, code = (draft.state.state, draft.state.code) if draft.state else (tip.state, tip.code)
    cursor = draft.cursor or tip.cursor
    history_status = draft.history_status or tip.history_status
    changeset = changesets.changeset_id(
        keys, parent=tip.head, base_cursor=tip.cursor, next_cursor=cursor, state=state, events=_said(block, parts)
    )
    counts = counted(draft.events)
    for part in parts:
        for kind, count in part.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    head = Head(
        id=changeset,
        kind=gate.CHAINED,
        type=draft.type,
        parent=tip.head,
        item_id=subject.item_id,
        user=subject.user,
        at=to_micros(at),
        cause=subject.cause,
        key_generation=keys.generation,
        fetch_started_at=None if subject.fetch_started_at is None else to_micros(subject.fetch_started_at),
        base_cursor=tip.cursor,
        next_cursor=cursor,
        counts=counts,
        item_state=state,
        item_code=code,
        history_status=history_status,
        fingerprints=dict(draft.fingerprints),
        hints_until=subject.hints_until,
        parts=[part.id for part in parts],
    )
    value = changesets.seal(head, block, keys, nonce=nonce, bytes_max=bytes_max)
    prints = {**tip.fingerprints, **draft.fingerprints}
    return Sealed(
        changeset,
        user_key(subject.user),
        value,
        Tip(changeset, at, cursor, state, code, history_status, prints),
        counts,
    )


def _said(block: bytes, parts: Sequence[Part]) -> bytes:
    """What a record's id covers: its own events and, by their ids, those of its parts."""
    if not parts:
        return block
    return len(parts).to_bytes(4, "big") + b"".join(part.id for part in parts) + block


def _item(subject: Subject, state: ItemState, history_status: str | None) -> Item:
    return Item(
        subject.item_id,
        state.state,
        state.code,
        state.reason,
        state.effective_at,
        subject.institution_id,
        subject.institution_name,
        history_status,
    )
