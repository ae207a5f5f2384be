"""Which records of a batch count, and what they say: gate, item_quarantine, unsealing, reading. Pure.

Whatever one record raises here quarantines its Item: it and all that follows for the Item is withheld, the others go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from projections.decode import changeset
from projections.decode.changeset import Said
from projections.gate.quarantine import Ended, ItemQuarantine, Lot, Quarantined
from projections.model.unit_of_work import ItemRow, Place
from runtime.kafka.reader import Received
from runtime.postgres.errors import reason
from schemas.errors import Halt, Quarantine
from schemas.log import changesets, gate
from schemas.log.changesets import Envelope, UserKeys
from schemas.log.gate import Verdict
from schemas.log.records import Head

USERS_WITHOUT_KEY_MAX = 20
"""A failover can lose the keys of the last users; more than these in one batch, and it is the wrong database."""

MOMENT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999. A record that claims a later time has none: dates end there."""

REASON_CHARACTERS_MAX = 500
"""Longest reason that a item_quarantine keeps."""

WITHHELD, QUARANTINED, QUARANTINED_AGAIN = "withheld", "quarantined", "quarantined_again"
REDRIVEN, NOTHING_TO_REDRIVE = "redriven", "nothing_to_redrive"
"""What became of a record, beside what the gate says."""

_SEALS_NOTHING = frozenset({gate.ERASURE, gate.REDRIVE})
"""Free records that are not opened: they say all in their heads."""
_NEVER_WITHHELD = frozenset({gate.REDRIVE, gate.ERASURE})
"""Records about a quarantined Item that end the item_quarantine, so they must be read."""


class Opened(NamedTuple):
    """A record whose head is read.

    Units: `known_at` in microseconds since 1970, UTC; 0 until the position lock tells the time of the record before.
    """

    received: Received
    envelope: Envelope
    known_at: int = 0

    @property
    def head(self) -> Head:
        """The clear head."""
        return self.envelope.head


class Admitted(NamedTuple):
    """A record that counts, with all that it says. `redriven` are those that it frees, at its own place."""

    opened: Opened
    place: Place
    item: ItemRow | None
    said: Said
    redriven: "tuple[Admitted, ...]" = ()


class Admission(Struct):
    """The outcome for a batch.

    `quarantines`, `withheld` are new in it; `ended`, `freed` were stored and are so no more.
    """

    admitted: list[Admitted] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    quarantines: list[ItemQuarantine] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    withheld: list[Opened] = field(default_factory=list)
    freed: list[Opened] = field(default_factory=list)

    def every(self) -> Iterator[Admitted]:
        """All records that count, those that were redriven before their redrive."""
        for record in self.admitted:
            yield from record.redriven
            yield record


class Owners(NamedTuple):
    """Keys of users (None: destroyed on purpose), and the names that their application knows them by."""

    keys: Mapping[int, UserKeys | None]
    names: Mapping[int, tuple[str, str]]


def opened(record: Received) -> Opened:
    """Read a record's head.

    Raises: Halt, where it cannot be read.
    """
    return Opened(record, changesets.read(record.value))


def known_at(record: Opened, before: int) -> int:
    """When Tartan knew of a record: the later of its own time and that of the record before it in its partition.

    Units: microseconds since 1970, UTC.
    """
    at = record.head.at
    return max(at if 0 <= at <= MOMENT_MAX else 0, before)


def batches(records: Sequence[Opened], events_max: int) -> Iterator[Sequence[Opened]]:
    """Cut records into batches of at most `events_max` events by the heads' counts, or of one record."""
    begin = events = 0
    for number, record in enumerate(records):
        count = sum(record.head.counts.values())
        if events and events + count > events_max:
            yield records[begin:number]
            begin, events = number, 0
        events += count
    yield records[begin:]


class GateCheck:
    """Lets the records of a batch in, one after the other.

    `poisoned` names records, by partition and offset, that were found to be what Postgres or the fold refuses.
    `withheld` has what is stored of the Items that the batch redrives.
    """

    def __init__(
        self,
        *,
        items: dict[str, ItemRow],
        quarantined: Mapping[str, Sequence[Quarantined]],
        known_ids: set[bytes],
        owners: Owners,
        poisoned: Mapping[tuple[int, int], str],
        withheld: Mapping[str, Sequence[Opened]] | None = None,
    ) -> None:
        self._items = items
        self._lot = Lot(quarantined, withheld or {})
        self._known_ids = known_ids
        self._owners = owners
        self._poisoned = poisoned
        self._without_key: set[int] = set()

    def admit(self, batch: Iterable[Opened]) -> Admission:
        """Decide on each record in order; the Items' gates are moved on.

        Raises: Halt, where more users than USERS_WITHOUT_KEY_MAX have no key.
        """
        outcome = Admission()
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

    def _verdict(self, opened: Opened, outcome: Admission) -> str:
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
            outcome.admitted.append(admitted)
        return verdict.value

    def _of_no_item(self, opened: Opened, outcome: Admission) -> str:
        """A record that concerns no Item: nothing of it can be quarantined, so what it raises ends the process."""
        head = opened.head
        if head.kind != gate.FREE:
            return Verdict.UNKNOWN_KIND.value
        verdict = gate.decide(head, gate.ItemGate(), erased=False, known=head.id in self._known_ids)
        if verdict is Verdict.ACCEPTED:
            outcome.admitted.append(self._admitted(opened, None, opened))
        return verdict.value

    def _redrive(self, opened: Opened, item: ItemRow, outcome: Admission) -> str:
        """Let what is withheld of an Item through the gate, all of it or, where one record fails again, nothing."""
        lot, received = self._lot, opened.received
        admitted = self._admitted(opened, item, opened)
        if not lot.end(item.item_id, received.offset):
            outcome.admitted.append(admitted)
            return NOTHING_TO_REDRIVE
        if lot.begins(item.item_id, received.offset):
            outcome.admitted.append(admitted)
            return QUARANTINED_AGAIN
        before = (item.gate, item.parts, item.head_offset, item.user, item.partition)
        item.parts = dict(item.parts)
        known_ids = set(self._known_ids)
        try:
            self._check_poison(received)
            redriven, verdicts = self._again(opened, item)
        except Quarantine as error:
            item.gate, item.parts, item.head_offset, item.user, item.partition = before
            self._known_ids = known_ids
            lot.quarantine(item.item_id, received, _reason(error))
            outcome.admitted.append(admitted)
            return QUARANTINED_AGAIN
        lot.free(item.item_id)
        outcome.admitted.append(admitted._replace(redriven=tuple(redriven)))
        for verdict in verdicts:
            _count(outcome, verdict.value)
        return REDRIVEN

    def _again(self, redrive: Opened, item: ItemRow) -> tuple[list[Admitted], list[Verdict]]:
        redriven: list[Admitted] = []
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

    def _pass(self, opened: Opened, item: ItemRow, verdict: Verdict, at: Opened) -> Admitted | None:
        """Do what the gate says of a record of an Item.

        Raises: Halt; Quarantine, where the record cannot be opened or read: nothing is done then.
        """
        head = opened.head
        admitted = None
        if verdict is Verdict.CHUNK:
            item.parts[head.id] = (opened.received.offset, opened.received.value)
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

    def _admitted(self, opened: Opened, item: ItemRow | None, at: Opened) -> Admitted:
        """Unseal and read a record that counts, at its own place or at that of the redrive that frees it."""
        head, received = opened.head, opened.received
        said = self._said(opened, item)
        place = self._place(opened, said, at)
        self._known_ids.add(head.id)
        if item is not None and head.kind == gate.CHAINED:
            item.head_offset, item.user, item.partition = received.offset, head.user, received.partition
            item.parts = {}
        return Admitted(opened, place, item, said)

    def _check_poison(self, received: Received) -> None:
        why = self._poisoned.get((received.partition, received.offset))
        if why is not None:
            raise Quarantine(why)

    def _said(self, opened: Opened, item: ItemRow | None) -> Said:
        head = opened.head
        if head.type in _SEALS_NOTHING or item is None:
            return changeset.none_effective(head.counts)
        if head.user not in self._owners.keys:
            self._without_key.add(head.user)
            if len(self._without_key) > USERS_WITHOUT_KEY_MAX:
                raise Halt(f"more than {USERS_WITHOUT_KEY_MAX} users of one batch have no key: is this the database?")
            raise Quarantine(f"user {head.user} has no key")
        keys = self._owners.keys[head.user]
        if keys is None:
            return changeset.none_effective({})
        blocks = [changesets.unseal(opened.envelope, keys)]
        if head.parts:
            assert item is not None
            blocks = [_part(item, named, keys) for named in head.parts] + blocks
        return changeset.read(blocks)

    def _place(self, opened: Opened, said: Said, at: Opened) -> Place:
        head, received = opened.head, at.received
        name = self._owners.names.get(head.user)
        if name is None:
            if said.speaks:
                raise Quarantine(f"user {head.user} has a key and no name")
            name = ("", "")
        return Place(received.partition, received.offset, head.id, at.known_at, head.user, *name)

    def _item(self, item_id: str, opened: Opened) -> ItemRow:
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = ItemRow(item_id, opened.head.user, opened.received.partition)
            item.is_complete = True
        return item


def _count(outcome: Admission, verdict: str) -> None:
    outcome.verdicts[verdict] = outcome.verdicts.get(verdict, 0) + 1


def _reason(error: Quarantine) -> str:
    return str(error)[:REASON_CHARACTERS_MAX]


def _part(item: ItemRow, named: bytes, keys: UserKeys) -> bytes:
    if named not in item.parts:
        raise Quarantine(f"part {named.hex()} is named and was not kept aside")
    return changesets.unseal(changesets.read(item.parts[named][1]), keys)
