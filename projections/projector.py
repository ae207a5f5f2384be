"""The projector: takes what waits, folds it, writes it in one transaction, hands the events over, acknowledges."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import asyncpg

from projections.decode.log_record import LogRecord, known_time
from projections.fold.fold import fold
from projections.fold.redrive import fold_redrive
from projections.gate.check import AcceptedRecord, GateCheck, GateResult
from projections.model.unit_of_work import UnitOfWork
from projections.publish import operator_notices
from projections.publish.kafka_records import changesets_with_events
from projections.publish.operator_notices import TooManyQuarantined
from projections.publish.publisher import Committed, Publisher
from projections.store import gate_state, loader, writer
from projections.store.connection import Session
from projections.store.gate_state import VersionMismatch
from projections.store.writer import NewPosition
from projections.user_keys import OwnerCache
from runtime import crash_points, logs, metrics
from runtime.crash_points import CrashPoint
from runtime.kafka.continuity import checksum
from runtime.postgres.errors import LATE, NOT_ENCODABLE, OF_DATA, TOO_LONG, reason
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.errors import Halt, Retry, TartanError
from schemas.log import gate

READER = "projections"
EVENTS_MAX = 20_000
"""Events that one transaction folds, by the counts in the heads: at about 2 kB of working memory each 40 MB. A single
record may hold more, and is then a batch of its own."""
RETRY_S_MIN, RETRY_S_MAX = 0.1, 5.0
ENDING_S, ENDING_LOOKS = 0.5, 25
"""How long a connection whose session Postgres ended may take to be closed on this side."""

Poisoned = Mapping[tuple[int, int], str]
"""Partition and offset of records that fail by themselves, with the reason."""

_log = logs.logger(__name__)


class _FoldFailed(TartanError):
    """The fold of one record raised."""

    def __init__(self, record: LogRecord, cause: Exception) -> None:
        super().__init__(reason(cause))
        self.record = record


class _Lost(Retry):
    """The connection ended within a batch, perhaps by the timeout of its transaction."""


class _NotEncodable(TartanError):
    """A row of the batch could not be encoded for Postgres."""


class Diverged(Halt):
    """A replay cannot do with a record what was done when it was first read."""


class _Batch(NamedTuple):
    """What of a batch lies at the locked positions or behind, and how it moves them."""

    opened: list[LogRecord]
    spans: dict[int, tuple[int, int]]
    advanced: list[NewPosition]


class Projector:
    """One process's projector; others may run beside it on other partitions."""

    def __init__(
        self,
        session: Session,
        publisher: Publisher | None,
        ownership: OwnerCache,
        settings: Settings,
        *,
        version: int | None = None,
        published: Mapping[int, int] | None = None,
    ) -> None:
        """Without a publisher it replays: it writes the tables of its session's schema and nothing else.

        Shape: `version` is the number that those tables must have, None for any of this code's fold; `published` has
        offsets by partition, below which no events are kept.
        """
        self._session = session
        self._version = version
        self._published = published or {}
        self._publisher = publisher
        self._ownership = ownership
        self._quarantines_max = settings.dead_letters_max
        self._quarantines_window_s = settings.dead_letters_window_s
        self._trouble: str | None = None

    def troubles(self) -> list[str]:
        """Why nothing is committed now; empty where it is."""
        return [] if self._trouble is None else [self._trouble]

    def drop(self) -> None:
        """Give up the connection, which another version makes stale; the next batch opens one."""
        self._session.drop()

    async def project(self, records: Sequence[LogRecord], poisoned: Poisoned | None = None) -> None:
        """Project records in one transaction or, where Postgres refuses one of them or it takes too long, in several.

        Idempotence: records below their partition's position are passed over.
        Raises: Retry or one of LATE, where not all was committed; Halt; whatever no record's data causes.
        """
        poisoned = poisoned or {}
        while True:
            try:
                return await self._transact(records, poisoned)
            except (_Lost, *TOO_LONG) as error:
                if len(records) == 1:
                    raise
                metrics.RETRIES.labels(READER, "halve").inc()
                _log.warning("batch is halved", reason=reason(error), records=len(records))
                self._session.drop()
                break
            except _FoldFailed as failed:
                poisoned = self._poisoned(poisoned, failed.record, failed)
            except (_NotEncodable, *OF_DATA) as error:
                if len(records) > 1:
                    break
                poisoned = self._poisoned(poisoned, records[0], error)
        middle = len(records) // 2
        await self.project(records[:middle], poisoned)
        await self.project(records[middle:], poisoned)
        return None

    def _poisoned(self, poisoned: Poisoned, record: LogRecord, error: Exception) -> Poisoned:
        if self._publisher is None:
            raise Diverged(f"{_where(record)} was not quarantined, and cannot be replayed: {reason(error)}") from error
        return _with(poisoned, record, error)

    async def patiently(self, records: Sequence[LogRecord]) -> None:
        """Project records, however long the world is late.

        Raises: VersionMismatch, where the tables are not what they were; Halt; whatever is an error of this code.
        """
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                await self.project(records)
            except (Retry, *LATE) as error:
                metrics.RETRIES.labels(READER, "batch").inc()
                _log.warning("batch waits", reason=reason(error), records=len(records))
                self._trouble = f"batch waits: {reason(error)}"
                self._session.drop()
                await backoff.wait()
            else:
                self._trouble = None
                return

    async def _transact(self, records: Sequence[LogRecord], poisoned: Poisoned) -> None:
        connection = await self._session.connection()
        checkpoints = {} if self._publisher is None else self._publisher.unstored_checkpoints()
        try:
            with metrics.BATCH_SECONDS.labels(READER).time():
                partitions = {record.received.partition for record in records}
                async with gate_state.lock_positions(connection, partitions, version=self._version):
                    batch, working, outcome = await self._fold(connection, records, poisoned)
                    await _write(connection, working, outcome, batch.advanced, checkpoints, self._published)
                    if self._publisher is not None:
                        await operator_notices.write_notices(
                            connection,
                            working,
                            outcome,
                            quarantines_max=self._quarantines_max,
                            window_s=self._quarantines_window_s,
                        )
                    crash_points.reach(CrashPoint.PROJECT_BEFORE_COMMIT)
        except asyncpg.UndefinedTableError as error:
            raise VersionMismatch(f"tables are gone: {reason(error)}") from error
        except TooManyQuarantined as error:
            await operator_notices.open_stop_incident(connection, error)
            raise
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if await _is_ending(connection):
                raise _Lost("the connection to Postgres was lost") from error
            raise
        crash_points.reach(CrashPoint.PROJECT_AFTER_COMMIT)
        if self._publisher is not None:
            self._publisher.mark_stored(checkpoints)
            self._publisher.submit(Committed(batch.spans, changesets_with_events(working.folded)))
            _count(batch, outcome)

    async def _fold(
        self, connection: asyncpg.Connection, records: Sequence[LogRecord], poisoned: Poisoned
    ) -> tuple[_Batch, UnitOfWork, GateResult]:
        heads = [record.head for record in records]
        redriven = {head.item_id for head in heads if head.type == gate.REDRIVE and head.item_id is not None}
        withheld = await gate_state.read_withheld(connection, redriven) if redriven else {}
        heads += [record.head for waiting in withheld.values() for record in waiting]
        control = await gate_state.read_gate_state(
            connection,
            {record.received.partition for record in records},
            {head.item_id for head in heads if head.item_id is not None},
            [head.id for head in heads if head.kind == gate.FREE],
        )
        batch = _placed(records, control.positions)
        owners = await self._ownership.load(connection, {head.user for head in heads})
        working = UnitOfWork()
        working.items, working.reviews = control.items, control.reviews
        keeper = GateCheck(
            items=working.items,
            quarantined=control.quarantined,
            known_ids=control.known_ids,
            owners=owners,
            poisoned=poisoned,
            withheld=withheld,
        )
        outcome = keeper.check(batch.opened)
        if self._publisher is None:
            _require_same_quarantines(outcome)
        await loader.load_rows(connection, working, outcome.all_accepted())
        for record in outcome.accepted:
            _fold_one(working, record)
        return batch, working, outcome


def _require_same_quarantines(outcome: GateResult) -> None:
    """Which records are withheld is a fact: a replay makes no new item_quarantine, and ends none that was not ended.

    Raises: Diverged.
    """
    if outcome.quarantines:
        item_quarantine = outcome.quarantines[0]
        where = (
            f"changesets {item_quarantine.partition} at {item_quarantine.first_offset}, Item {item_quarantine.item_id}"
        )
        raise Diverged(f"{where}, was not quarantined, and cannot be replayed: {item_quarantine.reason}")
    if outcome.ended:
        ended = outcome.ended[0]
        raise Diverged(
            f"the item_quarantine of Item {ended.item_id} ends with {ended.redrive} in a replay, and did not before"
        )


def _where(record: LogRecord) -> str:
    received = record.received
    return f"changesets {received.partition} at {received.offset}, Item {record.head.item_id}"


async def _is_ending(connection: asyncpg.Connection) -> bool:
    """Whether a connection is closed or about to be: a statement may fall between Postgres' last word and its end."""
    for _ in range(ENDING_LOOKS):
        if connection.is_closed():
            return True
        await asyncio.sleep(ENDING_S / ENDING_LOOKS)
    return False


def _with(poisoned: Poisoned, found: LogRecord, error: Exception) -> Poisoned:
    """What is poisoned, with one record more.

    Raises: the error, where item_quarantine the record did not help or cannot: then it is not for one record to answer for.
    """
    where = (found.received.partition, found.received.offset)
    if where in poisoned or found.head.item_id is None:
        raise error
    return {**poisoned, where: reason(error)}


async def _write(
    connection: asyncpg.Connection,
    working: UnitOfWork,
    outcome: GateResult,
    advanced: Sequence[NewPosition],
    checkpoints: Mapping[int, int],
    published: Mapping[int, int],
) -> None:
    """store.write, in which alone these errors say that the data of a record is at fault."""
    try:
        await writer.write(connection, working, outcome, advanced, checkpoints, published=published)
    except NOT_ENCODABLE as error:
        raise _NotEncodable(reason(error)) from error


def _fold_one(working: UnitOfWork, record: AcceptedRecord) -> None:
    try:
        (fold_redrive if record.redriven else fold)(working, record)
    except Halt:
        raise
    except Exception as error:
        raise _FoldFailed(record.log_record, error) from error


def _placed(records: Sequence[LogRecord], locked: dict[int, gate_state.LockedPosition]) -> _Batch:
    """What of the records lies at the locked positions or behind; `locked` moves along.

    Raises: Halt, where a record lies above its partition's position: what is between them would be lost.
    """
    opened: list[LogRecord] = []
    last: dict[int, NewPosition] = {}
    for record in records:
        received = record.received
        at = locked.get(received.partition)
        if at is None:
            raise Halt(f"partition {received.partition} has no position: was the number of partitions changed?")
        if received.offset < at.position:
            continue
        if received.offset > at.position:
            raise Halt(f"partition {received.partition} goes on at {received.offset}, expected {at.position}: a gap")
        moment = known_time(record, at.known_at)
        locked[received.partition] = gate_state.LockedPosition(received.offset + 1, moment)
        opened.append(record._replace(known_at=moment))
        last[received.partition] = NewPosition(
            received.partition, received.offset + 1, checksum(received.value), moment
        )
    first = {record.received.partition: record.received.offset for record in reversed(opened)}
    spans = {number: (first.get(number, at.position), at.position) for number, at in locked.items()}
    return _Batch(opened, spans, list(last.values()))


def _count(batch: _Batch, outcome: GateResult) -> None:
    metrics.BATCHES.labels(READER).inc()
    metrics.RECORDS.labels(READER).inc(len(batch.opened))
    for verdict, count in outcome.verdicts.items():
        metrics.GATE.labels(READER, verdict).inc(count)
    for advanced in batch.advanced:
        metrics.POSITION.labels(READER, str(advanced.partition)).set(advanced.position)
    for item_quarantine in outcome.quarantines:
        metrics.QUARANTINED.labels(READER).inc()
        _log.error(
            "item quarantined",
            item=item_quarantine.item_id,
            offset=item_quarantine.first_offset,
            reason=item_quarantine.reason,
        )
    for record in outcome.accepted:
        if record.redriven:
            _log.info(
                "item redriven",
                item=record.log_record.head.item_id,
                offset=record.context.offset,
                records=len(record.redriven),
            )
