"""Reads what an accepted changeset says, before anything is known or changed: whatever is wrong with it shows here."""

import datetime
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

from projections.decode import transaction
from projections.model.transaction_payload import TransactionPayload
from schemas import events, money
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.ids import ID_BYTES
from schemas.log.records import Account, Decision, Edit, History, Item, Removal

CACHED, REALTIME = "cached", "realtime"

PAYLOAD_BYTES_MAX = 128 * 1024
"""Longest payload about one thing, 300 times the usual. An event carries them twice and a push as JSON, of up to six
bytes a character; a record that no batch of the producer holds would stop its partition's events for good."""

_SAY_WORDS = frozenset({events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED})
_SOURCES = {events.BALANCE_REPORTED: CACHED, events.BALANCE_REPORTED_REALTIME: REALTIME}
_DECISIONS = frozenset({events.APPROVE_REMOVALS, events.REJECT_REMOVALS, events.APPROVE_REVIEW, events.REJECT_REVIEW})
_ABOUT_ITEM = frozenset({events.ITEM_LINKED, events.ITEM_STATE_CHANGED, events.ITEM_UNLINKED})


class BalanceReport(NamedTuple):
    """A balance as reported: the account, its payload and their schema."""

    source: str
    account: Account
    payload: bytes
    schema: int


class FullResync(NamedTuple):
    """Says that the record's transactions are all that these accounts have within a window; None is no bound."""

    account_ids: frozenset[str]
    since: datetime.date | None
    until: datetime.date | None
    complete: bool
    removals_permille_max: int


class TransactionEdit(NamedTuple):
    """What a user said about a transaction: its own id and the Plaid id that it had then, field to value.

    A value of None clears the field.
    """

    own_id: bytes
    transaction_id: str
    fields: dict[str, Any]


class Changeset(NamedTuple):
    """What a record says, in its order. `counts` are all events by type, `not_effective` those of no effect yet."""

    transactions: list[TransactionPayload | Removal]
    balances: list[BalanceReport]
    items: list[tuple[str, Item, bytes, int]]
    counts: dict[str, int]
    not_effective: dict[str, int]
    full_resyncs: list[FullResync]
    decisions: list[Decision]
    edits: list["TransactionEdit"]

    @property
    def has_effect(self) -> bool:
        """Whether anything in it has an effect."""
        return bool(
            self.transactions or self.balances or self.items or self.full_resyncs or self.decisions or self.edits
        )

    @property
    def full_resync(self) -> FullResync | None:
        """The history that the record's transactions are all of, where it claims to be one."""
        return self.full_resyncs[0] if self.full_resyncs and self.full_resyncs[0].complete else None

    def transaction_ids(self) -> Iterable[str]:
        """The ids of all transactions that are named, pending ones of posted ones too."""
        for said in self.transactions:
            yield said.transaction_id
            if type(said) is TransactionPayload and said.pending_transaction_id is not None:
                yield said.pending_transaction_id


def read(blocks: Iterable[bytes]) -> Changeset:
    """Read the blocks of events of a record: those of its parts, in the order named, then its own.

    Raises: Quarantine, where an event of a known type cannot be read, its amounts do not fit, or two full_resyncs are
    restated.
    """
    said = Changeset([], [], [], {}, {}, [], [], [])
    counts, transactions = said.counts, said.transactions
    readers: dict[int, transaction.Read] = {}
    for block in blocks:
        for kind, schema, start, end in codec.event_spans(block):
            counts[kind] = counts.get(kind, 0) + 1
            if end - start > PAYLOAD_BYTES_MAX:
                raise Quarantine(f"{kind} takes {end - start} bytes, at most {PAYLOAD_BYTES_MAX} can be published")
            if kind in _SAY_WORDS:
                read_words = readers.get(schema) or readers.setdefault(schema, transaction.reader(schema))
                transactions.append(read_words(block, start, end))
            else:
                _read_other(codec.Event(kind, schema, block, start, end), said)
    return said


def without_effect(counts: dict[str, int]) -> Changeset:
    """What a record says whose events have no effect yet."""
    return Changeset([], [], [], dict(counts), dict(counts), [], [], [])


def _read_other(event: codec.Event, said: Changeset) -> None:
    kind = event.type
    if kind == events.TRANSACTION_REMOVED:
        said.transactions.append(codec.decode_event(event))
    elif kind in _SOURCES:
        account: Account = codec.decode_event(event)
        for amount in (account.current, account.available, account.limit):
            if amount is not None:
                money.parse_decimal(amount)
        said.balances.append(BalanceReport(_SOURCES[kind], account, event.data, event.schema))
    elif kind in _ABOUT_ITEM:
        said.items.append((kind, codec.decode_event(event), event.data, event.schema))
    elif kind == events.HISTORY_RESTATED:
        if said.full_resyncs:
            raise Quarantine("a record restates two histories")
        said.full_resyncs.append(_restated(codec.decode_event(event)))
    elif kind == events.DECISION_MADE and (decision := codec.decode_event(event)).decision in _DECISIONS:
        said.decisions.append(decision)
    elif kind == events.TRANSACTION_EDITED:
        said.edits.append(_edited(codec.decode_event(event)))
    else:
        said.not_effective[kind] = said.not_effective.get(kind, 0) + 1


def _edited(edit: Edit) -> TransactionEdit:
    try:
        own, fields = bytes.fromhex(edit.own_id), json.loads(edit.fields_json, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Quarantine("an edit names no own id, or its fields are no JSON") from error
    if len(own) != ID_BYTES or not isinstance(fields, dict):
        raise Quarantine("an edit names no own id, or its fields are no object")
    return TransactionEdit(own, edit.transaction_id, fields)


def _restated(history: History) -> FullResync:
    return FullResync(
        frozenset(history.account_ids),
        _date(history.since),
        _date(history.until),
        history.complete,
        history.removals_permille_max,
    )


def _date(text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise Quarantine("a bound of a restated history is no date") from None
