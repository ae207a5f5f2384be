"""Build the JSON messages of a changeset for browsers from its net events.

The publisher builds them after a commit. Readers build them again from the table `changesets` for a browser that
resumes: the same bytes at the same event positions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from projections.events import public_events
from projections.events.public_events import TRANSACTION_EVENTS
from projections.ledger import user_field_values
from projections.model.unit_of_work import NetEvent
from schemas import events
from schemas.encoding import catalogue
from schemas.errors import Halt
from schemas.log.records import Account
from schemas.times import rfc3339

MESSAGES_MAX = 100
"""Above so many net events of one changeset, transactions become one message: a browser reads them again at less cost
than a thousand messages."""

TRANSACTIONS_CHANGED = "transactions.changed"

_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One message; `event_index` is its index among the net events of its changeset."""

    event_index: int
    event: str
    value: bytes


def build_messages(net: Sequence[NetEvent], *, item_id: str | None, known_at: int) -> Iterator[Message]:
    """Yield the messages of a changeset in order. Units: `known_at` in microseconds since 1970, UTC."""
    timestamp = rfc3339(known_at)
    transactions: list[int] = []
    if len(net) > MESSAGES_MAX:
        transactions = [index for index, event in enumerate(net) if event.schema in TRANSACTION_EVENTS]
    combined = frozenset(transactions)
    for index, event in enumerate(net):
        if index not in combined:
            yield _message(index, event.type, _shown(event), timestamp)
        elif index == transactions[-1]:
            # At the index of the last one, so that a resume begins after all of them.
            counts = Counter(net[each].type for each in transactions)
            summary = {
                "item_id": item_id,
                "added": counts[events.TRANSACTION_ADDED],
                "modified": counts[events.TRANSACTION_MODIFIED],
                "removed": counts[events.TRANSACTION_REMOVED],
            }
            yield _message(index, TRANSACTIONS_CHANGED, summary, timestamp)


def _message(index: int, event: str, shown: dict[str, Any], timestamp: str) -> Message:
    return Message(index, event, _encode({"event": event, "data": shown, "timestamp": timestamp}))


def _shown(event: NetEvent) -> dict[str, Any]:
    if event.schema in TRANSACTION_EVENTS:
        return _transaction(event.data)
    if event.schema == catalogue.BALANCE_EVENT:
        return _balance(event.data)
    if event.schema == catalogue.ITEM_EVENT:
        return _item(event.data)
    raise Halt(f"no browser message is defined for events of schema {event.schema}")


def _transaction(data: bytes) -> dict[str, Any]:
    event = public_events.read_transaction(data)
    bank = event.transaction
    return {
        "id": event.id,
        "version": event.version,
        "account_id": bank.account_id,
        "amount": bank.amount,
        "currency": bank.currency,
        "date": bank.date,
        "merchant_name": bank.merchant_name,
        "category_detailed": bank.category_detailed,
        "logo_url": bank.logo_url,
        "pending": bank.pending,
        "changed": event.changed,
        **user_field_values.effective(bank, event.user_fields),
    }


def _balance(data: bytes) -> dict[str, Any]:
    event = public_events.read_balance(data)
    return {
        "item_id": event.item_id,
        "account_id": event.account.account_id,
        "source": event.source,
        "name": event.account.name,
        **_figures(event.account),
        "previous": None if event.previous is None else _figures(event.previous),
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
    event = public_events.read_item(data)
    return {
        "item_id": event.item.item_id,
        "state": event.item.state,
        "code": event.item.code,
        "institution_name": event.item.institution_name,
        "previous_state": event.previous_state,
    }
