"""Which records of a batch count, and what they say: gate, item_quarantine, unsealing, reading. Pure.

Whatever one record raises here quarantines its Item: it and all that follows for the Item is withheld, the others go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from projections.decode import changeset
from projections.decode.changeset import Changeset
from projections.decode.log_record import LogRecord
from projections.gate.quarantine import EndedQuarantine, ItemQuarantine, QuarantinedItems, QuarantineSpan
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import ItemRow
from runtime.kafka.reader import Received
from runtime.postgres.errors import reason
from schemas.errors import Halt, Quarantine
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.gate import Verdict

USERS_WITHOUT_KEY_MAX = 20
"""A failover can lose the keys of the last users; more than these in one batch, and it is the wrong database."""

REASON_CHARACTERS_MAX = 500
"""Longest reason that a item_quarantine keeps."""

WITHHELD, QUARANTINED, QUARANTINED_AGAIN = "withheld", "quarantined", "quarantined_again"
REDRIVEN, NOTHING_TO_REDRIVE = "redriven", "nothing_to_redrive"
"""What became of a record, beside what the gate says."""

_SEALS_NOTHING = frozenset({gate.ERASURE, gate.REDRIVE})
"""Free records that are not opened: they say all in their heads."""
_NEVER_WITHHELD = frozenset({gate.REDRIVE, gate.ERASURE})
"""Records about a quarantined Item that end the item_quarantine, so they must be read."""


class AcceptedRecord(NamedTuple):
    """A record that counts, with all that it says. `redriven` are those that it frees, at its own place."""

    log_record: LogRecord
    context: RecordContext
    item: ItemRow | None
    changeset: Changeset
    redriven: "tuple[AcceptedRecord, ...]" = ()


class GateResult(Struct):
    """The outcome for a batch.

    `quarantines`, `withheld` are new in it; `ended`, `freed` were stored and are so no more.
    """

    accepted: list[AcceptedRecord] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    quarantines: list[ItemQuarantine] = field(default_factory=list)
    ended: list[EndedQuarantine] = field(default_factory=list)
    withheld: list[LogRecord] = field(default_factory=list)
    freed: list[LogRecord] = field(default_factory=list)

    def all_accepted(self) -> Iterator[AcceptedRecord]:
        """All records that count, those that were redriven before their redrive."""
        for record in self.accepted:
            yield from record.redriven
            yield record


class Owners(NamedTuple):
    """Keys of users (None: destroyed on purpose), and the names that their application knows them by."""

    keys: Mapping[int, UserKeys | None]
    names: Mapping[int, tuple[str, str]]


class GateCheck:
    """Lets the records of a batch in, one after the other.

    `poisoned` names records, by partition and offset, that were found to be what Postgres or the fold refuses.
    `withheld` has what is stored of the Items that the batch redrives.
    """

    def __init__(
        self,
        *,
        items: dict[str, ItemRow],
        quarantined: Mapping[str, Sequence[QuarantineSpan]],
        known_ids: set[bytes],
        owners: Owners,
        poisoned: Mapping[tuple[int, int], str],
        withheld: Mapping[str, Sequence[LogRecord]] | None = None,
    ) -> None:
        self._items = items
        self._lot = QuarantinedItems(quarantined, withheld or {})
        self._known_ids = known_ids
        self._owners = owners
        self._poisoned = poisoned
        self._without_key: set[int] = set()

    def check(self, batch: Iterable[LogRecord]) -> GateResult:
        """Decide on each record in order; the Items' gates are moved on.

        Raises: Halt, where more users than USERS_WITHOUT_KEY_MAX have no key.
        """
        outcome = GateResult()
        for record in batch:
            _count(outcome, self._verdict(record, outcome))
        lot = self._lot
        outcome.quarantines, outcome.ended, outcome.withheld, outcome.freed = (
            lot.quarantines(),
            lot.ended,
            lot.withheld(),
            lot.freed,
        )
        return outcome

    def _verdict(self, opened: LogRecord, outcome: GateResult) -> str:
        head, received = opened.head, opened.received
        if head.item_id is None:
            return self._of_no_item(opened, outcome)
        if head.type not in _NEVER_WITHHELD and self._lot.holds(head.item_id, received.offset):
            self._lot.withhold(head.item_id, opened)
            return WITHHELD
        item = self._item(head.item_id, opened)
        verdict = gate.decide(head, item.gate, erased=False, known=head.id in self._known_ids)
        if verdict is Verdict.ACCEPTED and head.type == gate.REDRIVE:
            return self._redrive(opened, item, outcome)
        try:
            admitted = self._pass(opened, item, verdict, opened)
        except Quarantine as error:
            self._lot.quarantine(head.item_id, received, _reason(error))
            self._lot.withhold(head.item_id, opened)
            return QUARANTINED
        if admitted is not None:
            outcome.accepted.append(admitted)
        return verdict.value

    def _of_no_item(self, opened: LogRecord, outcome: GateResult) -> str:
        """A record that concerns no Item: nothing of it can be quarantined, so what it raises ends the process."""
        head = opened.head
        if head.kind != gate.FREE:
            return Verdict.UNKNOWN_KIND.value
        verdict = gate.decide(head, gate.ItemGate(), erased=False, known=head.id in self._known_ids)
        if verdict is Verdict.ACCEPTED:
            outcome.accepted.append(self._admitted(opened, None, opened))
        return verdict.value

    def _redrive(self, opened: LogRecord, item: ItemRow, outcome: GateResult) -> str:
        """Let what is withheld of an Item through the gate, all of it or, where one record fails again, nothing."""
        lot, received = self._lot, opened.received
        admitted = self._admitted(opened, item, opened)
        if not lot.end(item.item_id, received.offset):
            outcome.accepted.append(admitted)
            return NOTHING_TO_REDRIVE
        if lot.begins(item.item_id, received.offset):
            outcome.accepted.append(admitted)
            return QUARANTINED_AGAIN
        before = (item.gate, item.chunks, item.head_offset, item.user, item.partition)
        item.chunks = dict(item.chunks)
        known_ids = set(self._known_ids)
        try:
            self._check_poison(received)
            redriven, verdicts = self._again(opened, item)
        except Quarantine as error:
            item.gate, item.chunks, item.head_offset, item.user, item.partition = before
            self._known_ids = known_ids
            lot.quarantine(item.item_id, received, _reason(error))
            outcome.accepted.append(admitted)
            return QUARANTINED_AGAIN
        lot.free(item.item_id)
        outcome.accepted.append(admitted._replace(redriven=tuple(redriven)))
        for verdict in verdicts:
            _count(outcome, verdict.value)
        return REDRIVEN

    def _again(self, redrive: LogRecord, item: ItemRow) -> tuple[list[AcceptedRecord], list[Verdict]]:
        redriven: list[AcceptedRecord] = []
        verdicts: list[Verdict] = []
        for held in self._lot.waiting(item.item_id):
            head = held.head
            verdict = gate.decide(head, item.gate, erased=False, known=head.id in self._known_ids)
            try:
                admitted = self._pass(held, item, verdict, redrive)
            except Quarantine as error:
                raise Quarantine(f"record {held.received.offset}: {error}") from error
            verdicts.append(verdict)
            if admitted is not None:
                redriven.append(admitted)
        return redriven, verdicts

    def _pass(self, opened: LogRecord, item: ItemRow, verdict: Verdict, at: LogRecord) -> AcceptedRecord | None:
        """Do what the gate says of a record of an Item.

        Raises: Halt; Quarantine, where the record cannot be opened or read: nothing is done then.
        """
        head = opened.head
        admitted = None
        if verdict is Verdict.CHUNK:
            item.chunks[head.id] = (opened.received.offset, opened.received.value)
        elif verdict is Verdict.ACCEPTED:
            try:
                self._check_poison(opened.received)
                admitted = self._admitted(opened, item, at)
            except Halt:
                raise
            except Exception as error:
                raise Quarantine(reason(error)) from error
        item.gate = gate.advance(head, item.gate, verdict)
        return admitted

    def _admitted(self, opened: LogRecord, item: ItemRow | None, at: LogRecord) -> AcceptedRecord:
        """Unseal and read a record that counts, at its own place or at that of the redrive that frees it."""
        head, received = opened.head, opened.received
        said = self._said(opened, item)
        place = self._place(opened, said, at)
        self._known_ids.add(head.id)
        if item is not None and head.kind == gate.CHAINED:
            item.head_offset, item.user, item.partition = received.offset, head.user, received.partition
            item.chunks = {}
        return AcceptedRecord(opened, place, item, said)

    def _check_poison(self, received: Received) -> None:
        why = self._poisoned.get((received.partition, received.offset))
        if why is not None:
            raise Quarantine(why)

    def _said(self, opened: LogRecord, item: ItemRow | None) -> Changeset:
        head = opened.head
        if head.type in _SEALS_NOTHING or item is None:
            return changeset.without_effect(head.counts)
        if head.user not in self._owners.keys:
            self._without_key.add(head.user)
            if len(self._without_key) > USERS_WITHOUT_KEY_MAX:
                raise Halt(f"more than {USERS_WITHOUT_KEY_MAX} users of one batch have no key: is this the database?")
            raise Quarantine(f"user {head.user} has no key")
        keys = self._owners.keys[head.user]
        if keys is None:
            return changeset.without_effect({})
        blocks = [changesets.unseal(opened.envelope, keys)]
        if head.parts:
            assert item is not None
            blocks = [_part(item, named, keys) for named in head.parts] + blocks
        return changeset.read(blocks)

    def _place(self, opened: LogRecord, said: Changeset, at: LogRecord) -> RecordContext:
        head, received = opened.head, at.received
        name = self._owners.names.get(head.user)
        if name is None:
            if said.has_effect:
                raise Quarantine(f"user {head.user} has a key and no name")
            name = ("", "")
        return RecordContext(received.partition, received.offset, head.id, at.known_at, head.user, *name)

    def _item(self, item_id: str, opened: LogRecord) -> ItemRow:
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = ItemRow(item_id, opened.head.user, opened.received.partition)
            item.is_complete = True
        return item


def _count(outcome: GateResult, verdict: str) -> None:
    outcome.verdicts[verdict] = outcome.verdicts.get(verdict, 0) + 1


def _reason(error: Quarantine) -> str:
    return str(error)[:REASON_CHARACTERS_MAX]


def _part(item: ItemRow, named: bytes, keys: UserKeys) -> bytes:
    if named not in item.chunks:
        raise Quarantine(f"part {named.hex()} is named and was not kept aside")
    return changesets.unseal(changesets.read(item.chunks[named][1]), keys)
