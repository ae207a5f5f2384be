"""Which records of a batch count, and what they say: gate, parking, unsealing, reading. Pure.

Whatever one record raises here parks its Item: it and all that follows for the Item is withheld, the others go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from projections import reading
from projections.reading import Said
from projections.refusals import reason
from projections.state import ItemRow, Place
from runtime.reader import Received
from schemas import changesets, gate
from schemas.changesets import Envelope, UserKeys
from schemas.errors import Halt, Quarantine
from schemas.gate import Verdict
from schemas.records import Head

USERS_WITHOUT_KEY_MAX = 20
"""A failover can lose the keys of the last users; more than these in one batch, and it is the wrong database."""

MOMENT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999. A record that claims a later time has none: dates end there."""

_NOT_YET = frozenset({gate.EDIT, gate.DECISION, gate.REDRIVE, gate.ERASURE})
"""Free records that have their place in the log and no effect on tables yet."""
_NEVER_WITHHELD = frozenset({gate.REDRIVE, gate.ERASURE})
"""Records about a parked Item that end the parking, so they must be read."""


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


class Parking(NamedTuple):
    """Why and where an Item is set aside."""

    item_id: str
    partition: int
    first_offset: int
    reason: str


class Admitted(NamedTuple):
    """A record that counts, with all that it says."""

    opened: Opened
    place: Place
    item: ItemRow | None
    said: Said


class Admission(Struct):
    """The outcome for a batch."""

    admitted: list[Admitted] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    parkings: list[Parking] = field(default_factory=list)
    withheld: list[Opened] = field(default_factory=list)


class Owners(NamedTuple):
    """Keys of users (None: destroyed on purpose), and the names that their application knows them by."""

    keys: Mapping[int, UserKeys | None]
    names: Mapping[int, tuple[str, str]]


class Parked(NamedTuple):
    """A parking as stored: what lies from `first` up to the redrive is withheld."""

    first: int
    redrive: int | None

    def holds(self, offset: int) -> bool:
        """Whether the record at this offset is withheld."""
        return self.first <= offset and (self.redrive is None or offset < self.redrive)


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


class Gatekeeper:
    """Lets the records of a batch in, one after the other."""

    def __init__(
        self, *, items: dict[str, ItemRow], parked: Mapping[str, list[Parked]], known_ids: set[bytes], owners: Owners,
        poisoned: Mapping[tuple[int, int], str],
    ) -> None:  # fmt: skip
        self._items = items
        self._parked = {item: list(parkings) for item, parkings in parked.items()}
        self._known_ids = known_ids
        self._owners = owners
        self._poisoned = poisoned
        self._without_key: set[int] = set()

    def admit(self, batch: Iterable[Opened]) -> Admission:
        """Decide on each record in order; the Items' gates are moved on.

        `poisoned` names records, by partition and offset, that were found to be what Postgres or the fold refuses.
        Raises: Halt, where more users than USERS_WITHOUT_KEY_MAX have no key.
        """
        outcome = Admission()
        for record in batch:
            verdict = self._verdict(record, outcome)
            outcome.verdicts[verdict] = outcome.verdicts.get(verdict, 0) + 1
        return outcome

    def _verdict(self, opened: Opened, outcome: Admission) -> str:
        head, offset = opened.head, opened.received.offset
        if head.item_id is not None and head.type not in _NEVER_WITHHELD and self._is_parked(head.item_id, offset):
            outcome.withheld.append(opened)
            return "withheld"
        if head.item_id is None and head.kind != gate.FREE:
            return Verdict.UNKNOWN_KIND.value
        item = None if head.item_id is None else self._item(head.item_id, opened)
        state = gate.ItemGate() if item is None else item.gate
        verdict = gate.decide(head, state, erased=False, known=head.id in self._known_ids)
        if verdict is Verdict.ASIDE:
            assert item is not None
            item.parts[head.id] = (offset, opened.received.value)
        elif verdict is Verdict.ACCEPTED and not self._accept(opened, item, outcome):
            return "parked"
        if item is not None:
            item.gate = gate.advance(head, state, verdict)
        return verdict.value

    def _accept(self, opened: Opened, item: ItemRow | None, outcome: Admission) -> bool:
        """Unseal and read a record that counts; False where that parks its Item."""
        head, received = opened.head, opened.received
        try:
            self._check_poison(received)
            said = self._said(opened, item)
            place = self._place(opened, said)
        except Halt:
            raise
        except Exception as error:
            if head.item_id is None:
                raise
            self._park(opened, head.item_id, reason(error)[:500], outcome)
            return False
        self._known_ids.add(head.id)
        if item is not None and head.kind == gate.CHAINED:
            item.head_offset, item.user, item.partition = received.offset, head.user, received.partition
            item.parts = {}
        outcome.admitted.append(Admitted(opened, place, item, said))
        return True

    def _check_poison(self, received: Received) -> None:
        why = self._poisoned.get((received.partition, received.offset))
        if why is not None:
            raise Quarantine(why)

    def _said(self, opened: Opened, item: ItemRow | None) -> Said:
        head = opened.head
        if head.type in _NOT_YET:
            return reading.none_effective(head.counts)
        if head.user not in self._owners.keys:
            self._without_key.add(head.user)
            if len(self._without_key) > USERS_WITHOUT_KEY_MAX:
                raise Halt(f"more than {USERS_WITHOUT_KEY_MAX} users of one batch have no key: is this the database?")
            raise Quarantine(f"user {head.user} has no key")
        keys = self._owners.keys[head.user]
        if keys is None:
            return reading.none_effective({})
        blocks = [changesets.unseal(opened.envelope, keys)]
        if head.parts:
            assert item is not None
            blocks = [_part(item, named, keys) for named in head.parts] + blocks
        return reading.read(blocks)

    def _place(self, opened: Opened, said: Said) -> Place:
        head, received = opened.head, opened.received
        name = self._owners.names.get(head.user)
        if name is None:
            if said.speaks:
                raise Quarantine(f"user {head.user} has a key and no name")
            name = ("", "")
        return Place(received.partition, received.offset, head.id, opened.known_at, head.user, *name)

    def _item(self, item_id: str, opened: Opened) -> ItemRow:
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = ItemRow(item_id, opened.head.user, opened.received.partition)
            item.is_complete = True
        return item

    def _is_parked(self, item_id: str, offset: int) -> bool:
        return any(parked.holds(offset) for parked in self._parked.get(item_id, ()))

    def _park(self, opened: Opened, item_id: str, why: str, outcome: Admission) -> None:
        offset = opened.received.offset
        self._parked.setdefault(item_id, []).append(Parked(offset, None))
        outcome.parkings.append(Parking(item_id, opened.received.partition, offset, why))
        outcome.withheld.append(opened)


def _part(item: ItemRow, named: bytes, keys: UserKeys) -> bytes:
    if named not in item.parts:
        raise Quarantine(f"part {named.hex()} is named and was not kept aside")
    return changesets.unseal(changesets.read(item.parts[named][1]), keys)
