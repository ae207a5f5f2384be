"""What a batch of `changesets` does to the heads of Items: the gate, applied in order. Core."""

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
    """An Item's head and whose it is."""

    user: int
    partition: int
    head: KnownHead
    hints_until: int | None


class HeadRecord(NamedTuple):
    """A record of `changesets` by its clear part."""

    partition: int
    offset: int
    head: Head


@dataclass(frozen=True, slots=True)
class HeadChanges:
    """What a batch changes.

    `heads`: by Item, the last ones. `again`: Items whose record was skipped. `redriven`: Item to the offset of its
    redrive. `histories`: Items whose whole history was read, with whether it lacked an account. `erased`: users.
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

    `known` are the heads before the batch, `erased` those of its users whose key is destroyed. Whether a free record
    is a repeat is of no concern here: what it changes, it changes once or many times alike.
    """
    followed = HeadChanges()
    gone = set(erased)
    items: dict[str, ItemHead] = dict(known)
    for record in records:
        head = record.head
        item = items.get(head.item_id or "")
        verdict = gate.decide(head, _gate(item), erased=head.user in gone, known=False)
        followed.verdicts[verdict] += 1
        if verdict is Verdict.ACCEPTED and head.kind == gate.CHAINED:
            assert head.item_id is not None, "a chained record without an Item was accepted"
            items[head.item_id] = followed.heads[head.item_id] = _after(record, item)
            if head.type == gate.RESTATED:
                followed.histories[head.item_id] = _lacks_account(head, item)
        elif verdict is Verdict.ACCEPTED:
            _free(record, followed, gone)
        elif verdict is Verdict.NOT_HEAD and head.item_id is not None:
            followed.again.add(head.item_id)
    return followed


def _free(record: HeadRecord, followed: HeadChanges, gone: set[int]) -> None:
    head = record.head
    if head.type == gate.ERASURE:
        followed.erased.append(head.user)
        gone.add(head.user)
    elif head.type == gate.REDRIVE and head.item_id is not None:
        followed.redriven[head.item_id] = record.offset


def _gate(item: ItemHead | None) -> ItemGate:
    return ItemGate() if item is None else ItemGate(item.head.id, item.user, item.head.unlinked)


def _lacks_account(head: Head, before: ItemHead | None) -> bool:
    """Whether a whole history does not name an account that the chain knows. It names those that it prints.

    One that Plaid does not call complete stays as it is: to read it again says no more.
    """
    known = before.head.fingerprints if before else {}
    return head.history_status == HISTORY_COMPLETE and not known.keys() <= head.fingerprints.keys()


def _after(record: HeadRecord, before: ItemHead | None) -> ItemHead:
    """An Item's head after an accepted record. What a record does not name stays as it was."""
    head = record.head
    old = before.head if before else None
    return ItemHead(
        head.user,
        record.partition,
        KnownHead(
            id=head.id,
            offset=record.offset,
            at=from_micros(head.at),
            unlinked=head.type == gate.UNLINK,
            cursor=head.next_cursor or (old.cursor if old else None),
            state=head.item_state or (old.state if old else None),
            # The code belongs to the state: a record that names a state names its code, or that there is none.
            code=head.item_code if head.item_state else (old.code if old else None),
            history_status=head.history_status or (old.history_status if old else None),
            fingerprints={**(old.fingerprints if old else {}), **head.fingerprints},
        ),
        head.hints_until if head.hints_until is not None else (before.hints_until if before else None),
    )
