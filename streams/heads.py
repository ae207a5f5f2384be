"""Apply the gate to a batch of `changesets`, and collect what it changes in the heads of Items. Core."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.plaid.models import HISTORY_COMPLETE
from runtime.scheduler.types import KnownHead
from schemas.log import gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Head
from schemas.times import from_micros


class ItemHead(NamedTuple):
    """Head of an Item, with its user and partition."""

    user: int
    partition: int
    head: KnownHead
    hints_until: int | None


class HeadRecord(NamedTuple):
    """Clear part of a record of `changesets`."""

    partition: int
    offset: int
    head: Head


@dataclass(frozen=True, slots=True)
class HeadChanges:
    """Changes of a batch.

    `heads`: by Item, the last ones. `again`: Items whose record was skipped. `redriven`: Item to the offset of its
    redrive. `histories`: Items after a full resync, with whether it lacked an account. `erased`: users.
    """

    heads: dict[str, ItemHead] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    redriven: dict[str, int] = field(default_factory=dict)
    histories: dict[str, bool] = field(default_factory=dict)
    erased: list[int] = field(default_factory=list)
    verdicts: Counter[Verdict] = field(default_factory=Counter)


def apply_records(
    records: Iterable[HeadRecord], known: Mapping[str, ItemHead], *, erased: Iterable[int]
) -> HeadChanges:
    """Apply the gate to records in the order of their partitions.

    Repeats of free records are not detected: each of their changes has the same effect once or many times.
    `known`: heads before the batch; `erased`: users of the batch whose key is destroyed.
    """
    changes = HeadChanges()
    erased_users = set(erased)
    items: dict[str, ItemHead] = dict(known)
    for record in records:
        head = record.head
        item = items.get(head.item_id or "")
        item_gate = ItemGate() if item is None else ItemGate(item.head.id, item.user, item.head.unlinked)
        verdict = gate.decide(head, item_gate, erased=head.user in erased_users, known=False)
        changes.verdicts[verdict] += 1
        if verdict is Verdict.ACCEPTED and head.kind == gate.CHAINED:
            assert head.item_id is not None, "a chained record without an Item was accepted"
            items[head.item_id] = changes.heads[head.item_id] = _next_head(record, item)
            if head.type == gate.RESTATED:
                # A history that Plaid does not call complete is not read again: the next one would be no better. The
                # accounts that a full resync names are those of its fingerprints.
                known_accounts = item.head.fingerprints.keys() if item else set()
                is_complete = head.history_status == HISTORY_COMPLETE
                changes.histories[head.item_id] = is_complete and not known_accounts <= head.fingerprints.keys()
        elif verdict is Verdict.ACCEPTED and head.type == gate.ERASURE:
            changes.erased.append(head.user)
            erased_users.add(head.user)
        elif verdict is Verdict.ACCEPTED and head.type == gate.REDRIVE and head.item_id is not None:
            changes.redriven[head.item_id] = record.offset
        elif verdict is Verdict.NOT_HEAD and head.item_id is not None:
            changes.again.add(head.item_id)
    return changes


def _next_head(record: HeadRecord, item: ItemHead | None) -> ItemHead:
    """Return an Item's head after an accepted record; fields that the record does not have stay as they were."""
    head = record.head
    before = item.head if item else None
    hints_before = item.hints_until if item else None
    known_head = KnownHead(
        id=head.id,
        offset=record.offset,
        at=from_micros(head.at),
        unlinked=head.type == gate.UNLINK,
        cursor=head.next_cursor or (before.cursor if before else None),
        state=head.item_state or (before.state if before else None),
        # The code belongs to the state: a record with a state has its code too, or none.
        code=head.item_code if head.item_state else (before.code if before else None),
        history_status=head.history_status or (before.history_status if before else None),
        fingerprints={**(before.fingerprints if before else {}), **head.fingerprints},
    )
    hints_until = hints_before if head.hints_until is None else head.hints_until
    return ItemHead(head.user, record.partition, known_head, hints_until)
