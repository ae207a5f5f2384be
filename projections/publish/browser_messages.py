"""What a user's browser is told of a changeset: JSON messages, made from the net events alone.

The publisher makes them after a commit, and readers make them again from the table `changesets` for a browser that
resumes: the same bytes at the same positions.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from projections.events import public_events
from projections.events.public_events import TRANSACTION_EVENTS
from projections.ledger import override_rules
from projections.model.unit_of_work import NetEvent
from schemas import events
from schemas.encoding import catalogue
from schemas.log.records import Account
from schemas.times import rfc3339

MESSAGES_MAX = 100
"""Above so many net events of one changeset, transactions become one message: reading them again costs a browser
less than a thousand messages."""

TRANSACTIONS_CHANGED = "transactions.changed"

_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One message; `event_index` is its index among the net events of its changeset."""

    event_index: int
    event: str
    value: bytes


def build_messages(net: Sequence[NetEvent], *, item_id: str | None, known_at: int) -> Iterator[Message]:
    """The messages of a changeset in order.

    Units: `known_at` in microseconds since 1970, UTC.
    """
    timestamp = rfc3339(known_at)
    if len(net) <= MESSAGES_MAX:
        for place, event in enumerate(net):
            yield _message(place, event.type, _shown(event), timestamp)
        return
    transactions = [place for place, event in enumerate(net) if event.schema in TRANSACTION_EVENTS]
    for place, event in enumerate(net):
        if event.schema not in TRANSACTION_EVENTS:
            yield _message(place, event.type, _shown(event), timestamp)
        elif place == transactions[-1]:
            # It stands at the last of them, so a resume begins behind all.
            counts = Counter(net[each].type for each in transactions)
            yield _message(place, TRANSACTIONS_CHANGED, _summary(counts, item_id), timestamp)


def _summary(counts: Mapping[str, int], item_id: str | None) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "added": counts[events.TRANSACTION_ADDED],
        "modified": counts[events.TRANSACTION_MODIFIED],
        "removed": counts[events.TRANSACTION_REMOVED],
    }


def _message(index: int, event: str, shown: dict[str, Any], timestamp: str) -> Message:
    return Message(index, event, _encode({"event": event, "data": shown, "timestamp": timestamp}))


def _shown(event: NetEvent) -> dict[str, Any]:
    if event.schema in TRANSACTION_EVENTS:
        return _transaction(event.data)
    if event.schema == catalogue.BALANCE_EVENT:
        return _balance(event.data)
    return _item(event.data)


def _transaction(data: bytes) -> dict[str, Any]:
    said = public_events.read_transaction(data)
    bank = said.transaction
    return {
        "id": said.id,
        "version": said.version,
        "account_id": bank.account_id,
        "amount": bank.amount,
        "currency": bank.currency,
        "date": bank.date,
        "merchant_name": bank.merchant_name,
        "category_detailed": bank.category_detailed,
        "logo_url": bank.logo_url,
        "pending": bank.pending,
        "changed": said.changed,
        **override_rules.effective(bank, said.user_fields),
    }


def _balance(data: bytes) -> dict[str, Any]:
    said = public_events.read_balance(data)
    now, before = said.account, said.previous
    return {
        "item_id": said.item_id,
        "account_id": now.account_id,
        "source": said.source,
        "name": now.name,
        **_figures(now),
        "previous": None if before is None else _figures(before),
    }


def _figures(account: Account) -> dict[str, str | None]:
    return {
        "currency": account.currency,
        "current": account.current,
        "available": account.available,
        "limit": account.limit,
        "last_updated_datetime": account.last_updated_datetime,
    }


def _item(data: bytes) -> dict[str, Any]:
    said = public_events.read_item(data)
    return {
        "item_id": said.item.item_id,
        "state": said.item.state,
        "code": said.item.code,
        "institution_name": said.item.institution_name,
        "previous_state": said.previous_state,
    }
