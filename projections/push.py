"""What a user's browser is told of a changeset: JSON messages, made from the net events alone.

The publisher makes them after a commit, and readers make them again from the table `changesets` for a browser that
resumes: the same bytes at the same positions.
"""

import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from projections import net_events
from projections.net_events import Published
from schemas import catalogue, events

MESSAGES_MAX = 100
"""Above so many net events of one changeset, transactions become one message: reading them again costs a browser
less than a thousand messages."""

TRANSACTIONS_CHANGED = "transactions.changed"

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One message; `place` is its index among the net events of its changeset."""

    place: int
    event: str
    value: bytes


def messages(block: bytes, *, item_id: str | None, known_at: int, net_events_count: int) -> Iterator[Message]:
    """The messages of a changeset in order; `block` holds its net events.

    Units: `known_at` in microseconds since 1970, UTC.
    """
    timestamp = iso_time(known_at)
    counts: dict[str, int] = {}
    last = -1
    for event in net_events.published(block):
        if net_events_count > MESSAGES_MAX and event.schema == catalogue.TRANSACTION_EVENT:
            counts[event.type] = counts.get(event.type, 0) + 1
            last = event.place
            continue
        if counts and last >= 0:
            yield _summary(counts, last, item_id, timestamp)
            last = -1
        yield _message(event.place, event.type, _shown(event), timestamp)
    if last >= 0:
        yield _summary(counts, last, item_id, timestamp)


def iso_time(microseconds: int) -> str:
    """A time in RFC 3339 with microseconds, UTC."""
    return (_EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")[:-6] + "Z"


def _summary(counts: dict[str, int], index: int, item_id: str | None, timestamp: str) -> Message:
    """One message for all transactions: it stands at the last of them, so a resume begins behind it."""
    shown = {
        "item_id": item_id,
        "added": counts.get(events.TRANSACTION_ADDED, 0),
        "modified": counts.get(events.TRANSACTION_MODIFIED, 0),
        "removed": counts.get(events.TRANSACTION_REMOVED, 0),
    }
    return _message(index, TRANSACTIONS_CHANGED, shown, timestamp)


def _message(index: int, event: str, shown: dict[str, Any], timestamp: str) -> Message:
    return Message(index, event, _encode({"event": event, "data": shown, "timestamp": timestamp}))


def _shown(event: Published) -> dict[str, Any]:
    if event.schema == catalogue.TRANSACTION_EVENT:
        return _transaction(event.data)
    if event.schema == catalogue.BALANCE_EVENT:
        return _balance(event.data)
    return _item(event.data)


def _transaction(data: bytes) -> dict[str, Any]:
    said = net_events.read_transaction(data)
    bank = said.transaction
    return {
        "id": said.id,
        "version": said.version,
        "account_id": bank.account_id,
        "amount": bank.amount,
        "currency": bank.currency,
        "date": bank.date,
        "name": bank.name,
        "merchant_name": bank.merchant_name,
        "category": bank.category_primary,
        "category_detailed": bank.category_detailed,
        "logo_url": bank.logo_url,
        "pending": bank.pending,
        "changed": said.changed,
    }


def _balance(data: bytes) -> dict[str, Any]:
    said = net_events.read_balance(data)
    now, before = said.account, said.previous
    return {
        "item_id": said.item_id,
        "account_id": now.account_id,
        "source": said.source,
        "name": now.name,
        "currency": now.currency,
        "current": now.current,
        "available": now.available,
        "limit": now.limit,
        "previous": None
        if before is None
        else {"current": before.current, "available": before.available, "limit": before.limit},
    }


def _item(data: bytes) -> dict[str, Any]:
    said = net_events.read_item(data)
    return {
        "item_id": said.item.item_id,
        "state": said.item.state,
        "code": said.item.code,
        "institution_name": said.item.institution_name,
        "previous_state": said.previous_state,
    }
