"""Gate of a batch: decide which records count, withhold those of quarantined Items, decrypt and decode the others.

An error of one record quarantines its Item: it and all later records of the Item are withheld, the others go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from projections.decode import changeset as decoding
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
"""Longest reason that a quarantine stores."""

WITHHELD, QUARANTINED, QUARANTINED_AGAIN = "withheld", "quarantined", "quarantined_again"
REDRIVEN, NOTHING_TO_REDRIVE = "redriven", "nothing_to_redrive"
"""Verdicts on a record beside those of schemas.log.gate."""

_CONTROL = frozenset({gate.ERASURE, gate.REDRIVE})
"""Free records with everything in their heads: not decrypted, and never withheld, since they end quarantines."""


class AcceptedRecord(NamedTuple):
    """A record that counts, decoded. `redriven` are the records that it releases, in its own context."""

    log_record: LogRecord
    context: RecordContext
    item: ItemRow | None
    changeset: Changeset
    redriven: "tuple[AcceptedRecord, ...]" = ()


class GateResult(Struct):
    """Result for a batch. `quarantines` and `withheld` are new in it; `ended` and `released` were stored before."""

    accepted: list[AcceptedRecord] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    quarantines: list[ItemQuarantine] = field(default_factory=list)
    ended: list[EndedQuarantine] = field(default_factory=list)
    withheld: list[LogRecord] = field(default_factory=list)
    released: list[LogRecord] = field(default_factory=list)

    def all_accepted(self) -> Iterator[AcceptedRecord]:
        """Yield all records that count, redriven ones before their redrive."""
        for record in self.accepted:
            yield from record.redriven
            yield record

    def count(self, verdict: str) -> None:
        """Count a verdict."""
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1


class Owners(NamedTuple):
    """Keys of users (None: destroyed on purpose), with their tenants and application's ids."""

    keys: Mapping[int, UserKeys | None]
    names: Mapping[int, tuple[str, str]]


class GateCheck:
    """Checks the records of a batch, one after the other.

    `poisoned` has the reason of records, by partition and offset, that Postgres or the fold refused before. `withheld`
    has the stored records of the Items that the batch redrives.
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
        self._quarantined = QuarantinedItems(quarantined, withheld or {})
        self._known_ids = known_ids
        self._owners = owners
        self._poisoned = poisoned
        self._without_key: set[int] = set()
        self._result = GateResult()

    def check(self, batch: Iterable[LogRecord]) -> GateResult:
        """Decide on each record in order, and advance the Items' gates.

        Raises: Halt, where more users than USERS_WITHOUT_KEY_MAX have no key.
        """
        result, quarantined = self._result, self._quarantined
        for record in batch:
            result.count(self._verdict(record))
        result.quarantines, result.ended = list(quarantined.new.values()), quarantined.ended
        result.withheld = [record for records in quarantined.newly_withheld.values() for record in records]
        result.released = quarantined.released
        return result

    def _verdict(self, record: LogRecord) -> str:
        head, item_id = record.head, record.head.item_id
        if item_id is None:  # nothing can be quarantined, so an error of the record ends the process
            if head.kind != gate.FREE:
                return Verdict.UNKNOWN_KIND.value
            verdict = self._decide(record, gate.ItemGate())
            if verdict is Verdict.ACCEPTED:
                self._result.accepted.append(self._accept(record, None, record))
            return verdict.value
        if head.type not in _CONTROL and self._quarantined.withholds(item_id, record.received.offset):
            self._quarantined.withhold(item_id, record)
            return WITHHELD
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = ItemRow(item_id, head.user, record.received.partition, is_complete=True)
        verdict = self._decide(record, item.gate)
        if verdict is Verdict.ACCEPTED and head.type == gate.REDRIVE:
            return self._redrive(record, item)
        try:
            accepted = self._advance(record, item, verdict, record)
        except Quarantine as error:
            self._quarantined.quarantine(item_id, record.received, str(error)[:REASON_CHARACTERS_MAX])
            self._quarantined.withhold(item_id, record)
            return QUARANTINED
        if accepted is not None:
            self._result.accepted.append(accepted)
        return verdict.value

    def _decide(self, record: LogRecord, item_gate: gate.ItemGate) -> Verdict:
        return gate.decide(record.head, item_gate, erased=False, known=record.head.id in self._known_ids)

    def _redrive(self, record: LogRecord, item: ItemRow) -> str:
        """Pass the withheld records of an Item through the gate: all of them or, where one fails again, none."""
        quarantined, received = self._quarantined, record.received
        accepted, result = self._accept(record, item, record), self._result
        if not quarantined.end(item.item_id, received.offset):
            result.accepted.append(accepted)
            return NOTHING_TO_REDRIVE
        if quarantined.begins(item.item_id, received.offset):
            result.accepted.append(accepted)
            return QUARANTINED_AGAIN
        before = (item.gate, item.chunks, item.head_offset, item.user, item.partition)
        item.chunks = dict(item.chunks)
        known_ids = set(self._known_ids)
        try:
            self._check_poison(received)
            redriven, verdicts = self._check_withheld(record, item)
        except Quarantine as error:
            item.gate, item.chunks, item.head_offset, item.user, item.partition = before
            self._known_ids = known_ids
            quarantined.quarantine(item.item_id, received, str(error)[:REASON_CHARACTERS_MAX])
            result.accepted.append(accepted)
            return QUARANTINED_AGAIN
        quarantined.release(item.item_id)
        result.accepted.append(accepted._replace(redriven=tuple(redriven)))
        for verdict in verdicts:
            result.count(verdict.value)
        return REDRIVEN

    def _check_withheld(self, redrive: LogRecord, item: ItemRow) -> tuple[list[AcceptedRecord], list[Verdict]]:
        redriven: list[AcceptedRecord] = []
        verdicts: list[Verdict] = []
        for record in self._quarantined.waiting(item.item_id):
            verdict = self._decide(record, item.gate)
            try:
                accepted = self._advance(record, item, verdict, redrive)
            except Quarantine as error:
                raise Quarantine(f"record {record.received.offset}: {error}") from error
            verdicts.append(verdict)
            if accepted is not None:
                redriven.append(accepted)
        return redriven, verdicts

    def _advance(self, record: LogRecord, item: ItemRow, verdict: Verdict, anchor: LogRecord) -> AcceptedRecord | None:
        """Apply a verdict to a record of an Item.

        Raises: Halt; Quarantine, where the record cannot be decrypted or decoded: nothing is changed then.
        """
        accepted = None
        if verdict is Verdict.CHUNK:
            item.chunks[record.head.id] = (record.received.offset, record.received.value)
        elif verdict is Verdict.ACCEPTED:
            try:
                self._check_poison(record.received)
                accepted = self._accept(record, item, anchor)
            except Halt:
                raise
            except Exception as error:
                raise Quarantine(reason(error)) from error
        item.gate = gate.advance(record.head, item.gate, verdict)
        return accepted

    def _accept(self, record: LogRecord, item: ItemRow | None, anchor: LogRecord) -> AcceptedRecord:
        """Decrypt and decode a record that counts, with the context of `anchor`: itself, or the redrive of it."""
        head, received = record.head, record.received
        changeset = self._decode(record, item)
        name = self._owners.names.get(head.user)
        if name is None:
            if changeset.has_effect:
                raise Quarantine(f"user {head.user} has a key and no name")
            name = ("", "")
        position = anchor.received
        context = RecordContext(position.partition, position.offset, head.id, anchor.known_at, head.user, *name)
        self._known_ids.add(head.id)
        if item is not None and head.kind == gate.CHAINED:
            item.head_offset, item.user, item.partition = received.offset, head.user, received.partition
            item.chunks = {}
        return AcceptedRecord(record, context, item, changeset)

    def _check_poison(self, received: Received) -> None:
        poison = self._poisoned.get((received.partition, received.offset))
        if poison is not None:
            raise Quarantine(poison)

    def _decode(self, record: LogRecord, item: ItemRow | None) -> Changeset:
        head = record.head
        if head.type in _CONTROL or item is None:
            return decoding.without_effect(head.counts)
        if head.user not in self._owners.keys:
            self._without_key.add(head.user)
            if len(self._without_key) > USERS_WITHOUT_KEY_MAX:
                raise Halt(f"more than {USERS_WITHOUT_KEY_MAX} users of one batch have no key: is this the database?")
            raise Quarantine(f"user {head.user} has no key")
        keys = self._owners.keys[head.user]
        if keys is None:
            return decoding.without_effect({})
        blocks = [changesets.unseal(record.envelope, keys)]
        for number, chunk_id in enumerate(head.parts):
            if chunk_id not in item.chunks:
                raise Quarantine(f"part {chunk_id.hex()} is named and was not kept aside")
            blocks.insert(number, changesets.unseal(changesets.read(item.chunks[chunk_id][1]), keys))
        return decoding.decode(blocks)
