"""Projector: project a batch of records into the tables of one version, in one transaction of Postgres."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from projections.decode.log_record import LogRecord, known_time
from projections.fold.fold import fold
from projections.fold.redrive import fold_redrive
from projections.gate.check import GateCheck, GateResult
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
CLOSE_S_MAX, CLOSE_CHECKS = 0.5, 25
"""Longest time until a connection whose session Postgres ended is closed on this side, and checks in it."""

Poisoned = Mapping[tuple[int, int], str]
"""Partition and offset of records that fail by themselves, with the reason."""

_log = logs.logger(__name__)


class _FoldFailed(TartanError):
    """The fold of one record raised."""

    def __init__(self, record: LogRecord, cause: Exception) -> None:
        super().__init__(reason(cause))
        self.record = record


class _ConnectionLost(Retry):
    """The connection ended within a batch, perhaps by the timeout of its transaction."""


class _NotEncodable(TartanError):
    """A row of the batch could not be encoded for Postgres."""


class Diverged(Halt):
    """A replay cannot repeat the effect that a record had when it was first read."""


class _Batch(NamedTuple):
    """Records of a batch from the locked positions on, their new positions, and the gate with its stored state."""

    records: list[LogRecord]
    spans: dict[int, tuple[int, int]]
    positions: list[NewPosition]
    gate: GateCheck
    work: UnitOfWork


class Projector:
    """Projects batches into one version's tables; others may run beside it on other partitions."""

    def __init__(
        self,
        session: Session,
        publisher: Publisher | None,
        owners: OwnerCache,
        settings: Settings,
        *,
        version: int | None = None,
        published: Mapping[int, int] | None = None,
    ) -> None:
        """Without a publisher it replays: it writes the tables of its session's schema and nothing else.

        Shape: `version` is the number that those tables must have, None for any of this code's fold; `published` has
        offsets by partition, below which no events are stored.
        """
        self._session = session
        self._version = version
        self._published = published or {}
        self._publisher = publisher
        self._owners = owners
        self._quarantines_max = settings.dead_letters_max
        self._quarantines_window_s = settings.dead_letters_window_s
        self.trouble: str | None = None
        """Reason why nothing is committed now; None where batches are."""

    def drop(self) -> None:
        """Close the connection, which another version makes stale; the next batch opens one."""
        self._session.drop()

    async def handle_batch(self, records: Sequence[LogRecord], poisoned: Poisoned) -> None:
        """Decode, check, load, fold, save and publish records; all but the last step in one transaction.

        Raises: _FoldFailed, where the fold refuses a record; _NotEncodable; VersionMismatch; Halt; Retry; errors of
        Postgres. Nothing is committed then.
        """
        connection = await self._session.connection()
        checkpoints = {} if self._publisher is None else self._publisher.unstored_checkpoints()
        async with self._transaction(connection, {record.received.partition for record in records}):
            batch = await self._read_batch(connection, records, poisoned)
            work, result = batch.work, batch.gate.check(batch.records)  # decrypts and decodes the records that count
            if self._publisher is None:
                _require_same_quarantines(result)
            await loader.load_rows(connection, work, result.all_accepted())
            try:
                for record in result.accepted:
                    if record.redriven:
                        fold_redrive(work, record)
                    else:
                        fold(work, record)
            except Halt:
                raise
            except Exception as error:
                raise _FoldFailed(record.log_record, error) from error
            await self._save(connection, batch, result, checkpoints)
            crash_points.reach(CrashPoint.PROJECT_BEFORE_COMMIT)
        crash_points.reach(CrashPoint.PROJECT_AFTER_COMMIT)
        if self._publisher is not None:
            self._publisher.mark_stored(checkpoints)
            self._publisher.submit(Committed(batch.spans, changesets_with_events(work.folded)))
            _count(batch, result)

    async def project(self, records: Sequence[LogRecord], poisoned: Poisoned | None = None) -> None:
        """Project records in one transaction or, where Postgres refuses one of them or it takes too long, in several.

        Idempotence: records below their partition's position are skipped.
        Raises: Retry or one of LATE, where not all was committed; Halt; any error that no record's data causes.
        """
        poisoned = poisoned or {}
        while True:
            try:
                return await self.handle_batch(records, poisoned)
            except (_ConnectionLost, *TOO_LONG) as error:
                if len(records) == 1:
                    raise
                metrics.RETRIES.labels(READER, "halve").inc()
                _log.warning("batch is halved", reason=reason(error), records=len(records))
                self._session.drop()
                break
            except _FoldFailed as failed:
                poisoned = self._with_poisoned(poisoned, failed.record, failed)
            except (_NotEncodable, *OF_DATA) as error:
                if len(records) > 1:
                    break
                poisoned = self._with_poisoned(poisoned, records[0], error)
        middle = len(records) // 2
        await self.project(records[:middle], poisoned)
        await self.project(records[middle:], poisoned)
        return None

    async def project_with_retry(self, records: Sequence[LogRecord]) -> None:
        """Project records, and retry while Kafka or Postgres is late.

        Raises: VersionMismatch, where the tables are another version; Halt; any error of this code.
        """
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                await self.project(records)
            except (Retry, *LATE) as error:
                metrics.RETRIES.labels(READER, "batch").inc()
                _log.warning("batch waits", reason=reason(error), records=len(records))
                self.trouble = f"batch waits: {reason(error)}"
                self._session.drop()
                await backoff.wait()
            else:
                self.trouble = None
                return

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection, partitions: set[int]) -> AsyncIterator[None]:
        """Hold the positions of the partitions in a transaction, and translate the errors that end it."""
        try:
            with metrics.BATCH_SECONDS.labels(READER).time():
                async with gate_state.lock_positions(connection, partitions, version=self._version):
                    yield
        except asyncpg.UndefinedTableError as error:
            raise VersionMismatch(f"tables are gone: {reason(error)}") from error
        except TooManyQuarantined as error:
            await operator_notices.open_stop_incident(connection, error)
            raise
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # A statement may fall between the end of the session in Postgres and the close of the connection here.
            for _ in range(CLOSE_CHECKS):
                if connection.is_closed():
                    raise _ConnectionLost("the connection to Postgres was lost") from error
                await asyncio.sleep(CLOSE_S_MAX / CLOSE_CHECKS)
            raise

    async def _read_batch(
        self, connection: asyncpg.Connection, records: Sequence[LogRecord], poisoned: Poisoned
    ) -> _Batch:
        """Read the state that the gate decides by, and drop the records below the positions."""
        heads = [record.head for record in records]
        redriven = {head.item_id for head in heads if head.type == gate.REDRIVE and head.item_id is not None}
        withheld = await gate_state.read_withheld(connection, redriven) if redriven else {}
        heads += [record.head for waiting in withheld.values() for record in waiting]
        state = await gate_state.read_gate_state(
            connection,
            {record.received.partition for record in records},
            {head.item_id for head in heads if head.item_id is not None},
            [head.id for head in heads if head.kind == gate.FREE],
        )
        new, spans, positions = _from_positions(records, state.positions)
        work = UnitOfWork()
        work.items, work.reviews = state.items, state.reviews
        gate_check = GateCheck(
            items=work.items,
            quarantined=state.quarantined,
            known_ids=state.known_ids,
            owners=await self._owners.load(connection, {head.user for head in heads}),
            poisoned=poisoned,
            withheld=withheld,
        )
        return _Batch(new, spans, positions, gate_check, work)

    async def _save(
        self, connection: asyncpg.Connection, batch: _Batch, result: GateResult, checkpoints: Mapping[int, int]
    ) -> None:
        work = batch.work
        try:
            await writer.write(connection, work, result, batch.positions, checkpoints, published=self._published)
        except NOT_ENCODABLE as error:  # here alone these errors mean that the data of a record is at fault
            raise _NotEncodable(reason(error)) from error
        if self._publisher is not None:
            await operator_notices.write_notices(
                connection, work, result, quarantines_max=self._quarantines_max, window_s=self._quarantines_window_s
            )

    def _with_poisoned(self, poisoned: Poisoned, record: LogRecord, error: Exception) -> Poisoned:
        """Add a record to the poisoned ones.

        Raises: Diverged, in a replay; the error, where to quarantine the record did not help or is impossible.
        """
        position = (record.received.partition, record.received.offset)
        if self._publisher is None:
            place = f"changesets {position[0]} at {position[1]}, Item {record.head.item_id}"
            raise Diverged(f"{place} was not quarantined, and cannot be replayed: {reason(error)}") from error
        if position in poisoned or record.head.item_id is None:
            raise error
        return {**poisoned, position: reason(error)}


def _require_same_quarantines(result: GateResult) -> None:
    """Check that a replay quarantines no Item anew, and ends no quarantine that had not ended.

    Raises: Diverged.
    """
    for new in result.quarantines:
        place = f"changesets {new.partition} at {new.first_offset}, Item {new.item_id}"
        raise Diverged(f"{place}, was not quarantined, and cannot be replayed: {new.reason}")
    for ended in result.ended:
        raise Diverged(
            f"the quarantine of Item {ended.item_id} ends at {ended.redrive} in this replay but did not originally"
        )


def _from_positions(
    records: Sequence[LogRecord], locked: dict[int, gate_state.LockedPosition]
) -> tuple[list[LogRecord], dict[int, tuple[int, int]], list[NewPosition]]:
    """Return the records from the locked positions on, each partition's span of them, and the new positions.

    `locked` is advanced. Raises: Halt, where a record lies above its partition's position: a gap would be lost.
    """
    new: list[LogRecord] = []
    last: dict[int, NewPosition] = {}
    for record in records:
        received, partition = record.received, record.received.partition
        position = locked.get(partition)
        if position is None:
            raise Halt(f"partition {partition} has no position: was the number of partitions changed?")
        if received.offset < position.position:
            continue
        if received.offset > position.position:
            raise Halt(f"partition {partition} goes on at {received.offset}, expected {position.position}: a gap")
        known_at = known_time(record, position.known_at)
        locked[partition] = gate_state.LockedPosition(received.offset + 1, known_at)
        new.append(record._replace(known_at=known_at))
        last[partition] = NewPosition(partition, received.offset + 1, checksum(received.value), known_at)
    first = {record.received.partition: record.received.offset for record in reversed(new)}
    spans = {number: (first.get(number, end.position), end.position) for number, end in locked.items()}
    return new, spans, list(last.values())


def _count(batch: _Batch, result: GateResult) -> None:
    metrics.BATCHES.labels(READER).inc()
    metrics.RECORDS.labels(READER).inc(len(batch.records))
    for verdict, count in result.verdicts.items():
        metrics.GATE.labels(READER, verdict).inc(count)
    for new in batch.positions:
        metrics.POSITION.labels(READER, str(new.partition)).set(new.position)
    for quarantine in result.quarantines:
        metrics.QUARANTINED.labels(READER).inc()
        offset = quarantine.first_offset
        _log.error("item quarantined", item=quarantine.item_id, offset=offset, reason=quarantine.reason)
    for record in result.accepted:
        if record.redriven:
            item_id, count = record.log_record.head.item_id, len(record.redriven)
            _log.info("item redriven", item=item_id, offset=record.context.offset, records=count)
