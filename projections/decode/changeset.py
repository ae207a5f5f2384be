"""Decode the events of an accepted record; any fault in them is found here, before state changes."""

import datetime
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

from projections.decode import transaction
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import CACHED, REALTIME
from schemas import events, money
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.ids import ID_BYTES
from schemas.log import changesets
from schemas.log.records import Account, Decision, Edit, History, Item, Removal

_TRANSACTIONS = frozenset({events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED})
_SOURCES = {events.BALANCE_REPORTED: CACHED, events.BALANCE_REPORTED_REALTIME: REALTIME}
_DECISIONS = frozenset({events.APPROVE_REMOVALS, events.REJECT_REMOVALS, events.APPROVE_REVIEW, events.REJECT_REVIEW})
_ABOUT_ITEM = frozenset({events.ITEM_LINKED, events.ITEM_STATE_CHANGED, events.ITEM_UNLINKED})


class BalanceReport(NamedTuple):
    """A reported balance: the account, its payload and the payload's schema."""

    source: str
    account: Account
    payload: bytes
    schema: int


class FullResync(NamedTuple):
    """Scope of a full resync: the record names all transactions of these accounts in a window; None is no bound."""

    account_ids: frozenset[str]
    since: datetime.date | None
    until: datetime.date | None
    complete: bool
    removals_permille_max: int

    def covers(self, account_id: str, date: datetime.date) -> bool:
        """Return whether the record would name a transaction of this account and date."""
        is_inside = (self.since is None or self.since <= date) and (self.until is None or date <= self.until)
        return is_inside and account_id in self.account_ids


class TransactionEdit(NamedTuple):
    """A user's edit of a transaction: own id, its Plaid id at that time, and field to value (None clears it)."""

    own_id: bytes
    transaction_id: str
    fields: dict[str, Any]


class Changeset(NamedTuple):
    """Decoded events of a record, in its order. `counts` are all by type, `not_effective` those without effect yet."""

    transactions: list[TransactionPayload | Removal]
    balances: list[BalanceReport]
    items: list[tuple[str, Item, bytes, int]]
    counts: dict[str, int]
    not_effective: dict[str, int]
    full_resyncs: list[FullResync]
    decisions: list[Decision]
    edits: list[TransactionEdit]

    @property
    def has_effect(self) -> bool:
        """True where any event has an effect."""
        return any((self.transactions, self.balances, self.items, self.full_resyncs, self.decisions, self.edits))

    @property
    def full_resync(self) -> FullResync | None:
        """The full resync of the record, where it is complete."""
        return self.full_resyncs[0] if self.full_resyncs and self.full_resyncs[0].complete else None

    def transaction_ids(self) -> Iterable[str]:
        """Yield the ids of all named transactions, pending ones of posted ones too."""
        for payload in self.transactions:
            yield payload.transaction_id
            if type(payload) is TransactionPayload and payload.pending_transaction_id is not None:
                yield payload.pending_transaction_id


def decode(blocks: Iterable[bytes]) -> Changeset:
    """Decode the blocks of events of a record: those of its chunks, in the order named, then its own.

    Raises: Quarantine, where an event of a known type cannot be decoded, its amounts do not fit, or two histories are
    restated.
    """
    changeset = Changeset([], [], [], {}, {}, [], [], [])
    counts, transactions = changeset.counts, changeset.transactions
    decoders: dict[int, transaction.Decoder] = {}
    for block in blocks:
        for kind, schema, start, end in codec.event_spans(block):
            counts[kind] = counts.get(kind, 0) + 1
            if end - start > changesets.PAYLOAD_BYTES_MAX:
                raise Quarantine(
                    f"{kind} takes {end - start} bytes, at most {changesets.PAYLOAD_BYTES_MAX} can be published"
                )
            if kind in _TRANSACTIONS:
                decoder = decoders.get(schema) or decoders.setdefault(schema, transaction.decoder(schema))
                transactions.append(decoder(block, start, end))
            else:
                _decode_other(codec.Event(kind, schema, block, start, end), changeset)
    return changeset


def without_effect(counts: dict[str, int]) -> Changeset:
    """Return the changeset of a record whose events have no effect yet."""
    return Changeset([], [], [], dict(counts), dict(counts), [], [], [])


def _decode_other(event: codec.Event, changeset: Changeset) -> None:
    kind = event.type
    if kind == events.TRANSACTION_REMOVED:
        changeset.transactions.append(codec.decode_event(event))
    elif kind in _SOURCES:
        account: Account = codec.decode_event(event)
        for amount in (account.current, account.available, account.limit):
            if amount is not None:
                money.parse_decimal(amount)
        changeset.balances.append(BalanceReport(_SOURCES[kind], account, event.data, event.schema))
    elif kind in _ABOUT_ITEM:
        changeset.items.append((kind, codec.decode_event(event), event.data, event.schema))
    elif kind == events.HISTORY_RESTATED:
        if changeset.full_resyncs:
            raise Quarantine("a record restates two histories")
        changeset.full_resyncs.append(_full_resync(codec.decode_event(event)))
    elif kind == events.DECISION_MADE and (decision := codec.decode_event(event)).decision in _DECISIONS:
        changeset.decisions.append(decision)
    elif kind == events.TRANSACTION_EDITED:
        changeset.edits.append(_edit(codec.decode_event(event)))
    else:
        changeset.not_effective[kind] = changeset.not_effective.get(kind, 0) + 1


def _edit(edit: Edit) -> TransactionEdit:
    try:
        own_id, fields = bytes.fromhex(edit.own_id), json.loads(edit.fields_json, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Quarantine("an edit names no own id, or its fields are no JSON") from error
    if len(own_id) != ID_BYTES or not isinstance(fields, dict):
        raise Quarantine("an edit names no own id, or its fields are no object")
    return TransactionEdit(own_id, edit.transaction_id, fields)


def _full_resync(history: History) -> FullResync:
    try:
        since, until = (
            None if bound is None else datetime.date.fromisoformat(bound) for bound in (history.since, history.until)
        )
    except ValueError:
        raise Quarantine("a bound of a restated history is no date") from None
    return FullResync(frozenset(history.account_ids), since, until, history.complete, history.removals_permille_max)
