"""Fill a public topic from the log, partition by partition, while its publisher holds back and the others continue.

A row of `tartan.held_topics` holds a partition of the topic. It comes and goes under the lock of the partition's
position in `changesets`, and the publisher reads the rows after each commit, before it sends. So the publisher sends
no event of a changeset that is committed while the row exists. Changesets that were committed before, below the row's
`since`, are sent as usual, and the filling begins when the checkpoint acknowledges them. The last event in the topic
shows how far the filling came, so after an interruption the same command continues.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from projections.publish import kafka_records, outbox
from projections.publish.kafka_records import ChangesetEvents, Destination
from projections.publish.outbox import ROWS_MAX
from projections.store import gate_state
from projections.store.tables import NEXT
from runtime.kafka.clients import Appender, LogEnds, Outgoing, connection
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import HEADER_POSITION, Topic, full_name

LAST_MAX = 20
"""Changesets that are sent under the lock of the position: some milliseconds, in which the partition's projector
waits. More than these are sent before the next try."""
CONFIRM_S_MAX = 30.0
"""A publisher writes its checkpoint within a second (publisher.IDLE_S), one that starts within some."""
CONFIRM_INTERVAL_S = 0.1
READ_MS = 1_000
EXPIRED_S_MAX = 3600
"""The search for expired events reads the partitions' rows of `changesets`: some microseconds each."""

EventPosition = tuple[int, int]
"""Offset in `changesets`, and index among the events of that changeset."""


class Progress(NamedTuple):
    """Events of a partition sent so far, the next offset of `changesets` to send, and the offset where it ends."""

    partition: int
    events: int
    position: int
    end: int


class _Hold(NamedTuple):
    """`since`: offset in `changesets`; `first`: offset in the topic where the filling began, None before it did."""

    since: int
    first: int | None


class Republisher:
    """Fill partitions of one topic.

    `prefixes`: the bytes before an event, by its schema. `skips_expired`: leave out changesets with expired events.
    """

    def __init__(
        self,
        database: asyncpg.Connection,
        appender: Appender,
        log: LogEnds,
        settings: Settings,
        topic: Topic,
        *,
        prefixes: Mapping[int, bytes],
        on_progress: Callable[[Progress], object],
        skips_expired: bool,
    ) -> None:
        self._database = database
        self._appender = appender
        self._log = log
        self._settings = settings
        self._topic = topic
        self._name = full_name(topic, settings.topic_prefix)
        self._prefixes = prefixes
        self._on_progress = on_progress
        self._skips_expired = skips_expired
        self._changesets = _LIVE

    async def lock_topic(self) -> None:
        """Lock the topic until the connection ends, and find the tables that have the events.

        Raises: Halt, where another process fills the topic.
        """
        if not await self._database.fetchval(_LOCK_TOPIC, f"tartan republish {self._topic.name}"):
            raise Halt(f"topic {self._name} is being filled by another process")
        if await self._database.fetchval(_HAS_NEXT):
            self._changesets = _LIVE_OR_NEXT

    async def held_partitions(self) -> list[int]:
        """Return the partitions that are held."""
        return [row["partition"] for row in await self._database.fetch(_HELD_PARTITIONS, self._topic.name)]

    async def hold(self, partitions: Sequence[int], *, empties: bool) -> list[int]:
        """Hold partitions, all or none, and return those to fill: where some are held already, only these.

        `empties`: their records are deleted, once no more events come.
        Raises: Halt, where one is not empty, events are expired, or none of the held ones is among them.
        """
        if begun := await self.held_partitions():
            left = [number for number in partitions if number in begun]
            if not left:
                raise Halt(f"topic {self._name} is being filled in partitions {begun}: go on with these first")
            return left
        await self._require_events(partitions)
        if not empties:
            for number in partitions:
                await self._require_empty(number)
        async with gate_state.lock_positions(self._database, partitions):
            positions = await gate_state.read_positions(self._database, partitions)
            since = [position.next for position in positions.values()]
            await self._database.execute(_HOLD, self._topic.name, list(positions), since)
        return list(partitions)

    async def fill(self, partition: int, *, empties: bool) -> int:
        """Fill a held partition up to the changeset where its publisher continues; return the number of events sent.

        Idempotence: a filling that was interrupted continues after its last event.
        Raises: Halt, where the partition is not empty, or another process wrote into it; Retry.
        """
        hold = await self._read_hold(partition)
        if hold.first is None:
            hold = await self._begin(partition, hold, empties=empties)
        first, start = await self._reached(partition, hold)
        end = await self._position(partition)
        sent = await self._send_all(partition, start, end)
        await self._compare(partition, first, end)
        return sent + await self._catch_up(partition, end)

    async def abandon(self, partition: int) -> int:
        """Give up a filling: send the missing events since the hold, then release it; return the number of events."""
        hold = await self._read_hold(partition)
        if hold.first is None:
            # A late publisher sends what is below the hold: behind the events sent here, readers would drop it.
            start = min(hold.since, await self._checkpoint(partition))
        else:
            start = max(hold.since, (await self._reached(partition, hold))[1])
        return await self._catch_up(partition, start)

    async def _read_hold(self, partition: int) -> _Hold:
        row = await self._database.fetchrow(_HOLD_OF, self._topic.name, partition)
        if row is None:
            raise Halt(f"topic {self._name} partition {partition} is not held any more: another process released it")
        return _Hold(row["since"], row["first_offset"])

    async def _require_events(self, partitions: Sequence[int]) -> None:
        if self._skips_expired:
            return
        async with self._database.transaction(readonly=True):
            # Only for this statement, which blocks nobody: a stopped holder of a position's lock must lose it in time.
            for limit in ("statement_timeout", "transaction_timeout"):
                await self._database.execute(f"SET LOCAL {limit} = '{EXPIRED_S_MAX} s'")
            expired = await self._database.fetch(_EXPIRED.format(changesets=self._changesets), list(partitions))
        if expired:
            ranges = ", ".join(
                f"{row['partition']}@{row['first']} to {row['partition']}@{row['last']}" for row in expired
            )
            raise Halt(
                f"the events of {sum(row['count'] for row in expired)} changesets are not kept any more ({ranges}): "
                "`tartan rebuild --with-events --no-swap` folds them again, --skip-expired fills the topic with "
                "what is there"
            )

    async def _require_empty(self, partition: int) -> None:
        ends = (await self._log.ends(self._name, [partition]))[partition]
        if ends.start < ends.end:
            raise Halt(
                f"topic {self._name} partition {partition} is not empty, it has {ends.start} to {ends.end - 1}: "
                "what is sent behind newer events is dropped by readers; --empty deletes them first"
            )

    async def _begin(self, partition: int, hold: _Hold, *, empties: bool) -> _Hold:
        """Wait until no event from before the hold is under way, and store where the filling begins."""
        deadline = time.monotonic() + CONFIRM_S_MAX
        while await self._checkpoint(partition) < hold.since:
            if time.monotonic() > deadline:
                raise Retry(
                    f"partition {partition}: events below {hold.since} are not published after {CONFIRM_S_MAX:g} s. "
                    "Does `tartan projections` run? The same command goes on, --abandon gives up"
                )
            await asyncio.sleep(CONFIRM_INTERVAL_S)
        if empties:
            await self._empty(partition)
        try:
            await self._require_empty(partition)
        except Halt:  # an event came between the first check and the hold
            await self.abandon(partition)
            raise
        ends = (await self._log.ends(self._name, [partition]))[partition]
        await self._database.execute(_SET_FIRST, self._topic.name, partition, ends.end)
        return hold._replace(first=ends.end)

    async def _checkpoint(self, partition: int) -> int:
        return int(await self._database.fetchval(_CHECKPOINT, partition) or 0)

    async def _empty(self, partition: int) -> None:
        end = (await self._log.ends(self._name, [partition]))[partition].end
        admin = AIOKafkaAdminClient(client_id="tartan-republish", **connection(self._settings))
        try:
            await admin.start()
            await admin.delete_records({TopicPartition(self._name, partition): RecordsToDelete(end)})
        except KafkaError as error:
            raise Retry(f"topic {self._name} partition {partition} is not emptied: {type(error).__name__}") from error
        finally:
            await admin.close()

    async def _reached(self, partition: int, hold: _Hold) -> tuple[int, int]:
        """Return the topic's offset where the filling began, and the changeset from which it continues."""
        assert hold.first is not None
        ends = (await self._log.ends(self._name, [partition]))[partition]
        if ends.end <= max(ends.start, hold.first):
            await self._database.execute(_SET_FIRST, self._topic.name, partition, ends.end)
            return ends.end, 0
        async with aclosing(self._event_positions(partition, ends.end - 1)) as last:
            return hold.first, (await anext(last))[0]

    async def _position(self, partition: int) -> int:
        positions = await gate_state.read_positions(self._database, [partition])
        if partition not in positions:
            raise Halt(f"changesets have no partition {partition}")
        return positions[partition].next

    async def _send_all(self, partition: int, start: int, end: int) -> int:
        sent = 0
        while start < end:
            page = await self._page(partition, start, end)
            sent += await self._send(partition, page)
            start = _next_page(page, end)
            self._on_progress(Progress(partition, sent, start, end))
        return sent

    async def _page(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """Return the first ROWS_MAX changesets with net events from `start` up to `end`."""
        statement = _PAGE.format(changesets=self._changesets)
        rows = await self._database.fetch(statement, partition, start, end, ROWS_MAX, self._skips_expired)
        expired = [row["source_offset"] for row in rows if row["events"] is None]
        if expired:
            raise Halt(
                f"the events of changesets {partition}@{expired[0]} to {partition}@{expired[-1]} are not kept any "
                "more; --skip-expired leaves them out"
            )
        return [outbox.changeset_events(row) for row in rows]

    async def _send(self, partition: int, page: Sequence[ChangesetEvents]) -> int:
        outgoing = self._outgoing(partition, page)
        await self._appender.append_many(self._name, partition, outgoing)
        return len(outgoing)

    def _outgoing(self, partition: int, page: Sequence[ChangesetEvents]) -> list[Outgoing]:
        return kafka_records.build_public_records(page, self._prefixes).get(Destination(self._topic, partition), [])

    async def _catch_up(self, partition: int, start: int) -> int:
        """Send the changesets that came meanwhile, the last of them under the lock, and release the hold."""
        sent = 0
        while True:
            async with gate_state.lock_positions(self._database, [partition]):
                end = await self._position(partition)
                page = await self._page(partition, start, end)
                if len(page) <= LAST_MAX:
                    sent += await self._send(partition, page)
                    await self._database.execute(_RELEASE, self._topic.name, partition)
                    return sent
            sent += await self._send_all(partition, start, end)
            start = end

    async def _compare(self, partition: int, first: int, end: int) -> None:
        """Read back the sent events as a reader does: a publisher that slept since before the hold may have sent some.

        Raises: Halt, where a reader would miss an event.
        """
        start, last = 0, (-1, -1)
        async with aclosing(self._event_positions(partition, first)) as in_topic:
            while start < end:
                page = await self._page(partition, start, end)
                for outgoing in self._outgoing(partition, page):
                    position = await anext(in_topic, None)
                    while position is not None and position <= last:  # a reader drops it
                        position = await anext(in_topic, None)
                    if position != _event_position(outgoing.headers):
                        await self._database.execute(_SET_FIRST, self._topic.name, partition, None)
                        raise Halt(
                            f"topic {self._name} partition {partition}: another process wrote into it while it was "
                            "filled, so readers would miss events; it is still held: republish again with --empty"
                        )
                    last = position
                start = _next_page(page, end)

    async def _event_positions(self, partition: int, start: int) -> AsyncGenerator[EventPosition, None]:
        """Yield the event positions in the topic's partition, from a topic offset on."""
        assigned = TopicPartition(self._name, partition)
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            **connection(self._settings),
        )
        try:
            await consumer.start()
            end = (await consumer.end_offsets([assigned]))[assigned]
            consumer.assign([assigned])
            consumer.seek(assigned, start)
            while await consumer.position(assigned) < end:
                for record in (await consumer.getmany(assigned, timeout_ms=READ_MS)).get(assigned, []):
                    yield _event_position(record.headers)
        except KafkaError as error:
            raise Retry(f"topic {self._name} partition {partition} at {start}: {type(error).__name__}") from error
        finally:
            await consumer.stop()


def _next_page(page: Sequence[ChangesetEvents], end: int) -> int:
    return page[-1].offset + 1 if len(page) == ROWS_MAX else end


def _event_position(headers: Sequence[tuple[str, bytes]]) -> EventPosition:
    offset, _, index = dict(headers).get(HEADER_POSITION, b"").decode().partition(".")
    try:
        return int(offset), int(index)
    except ValueError as error:
        raise Halt("the topic has a record that is no event: tartan-position has no event position") from error


_LOCK_TOPIC = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"

_HOLD_OF = "SELECT since, first_offset FROM tartan.held_topics WHERE topic = $1 AND partition = $2"

_HELD_PARTITIONS = "SELECT partition FROM tartan.held_topics WHERE topic = $1 ORDER BY partition"

_HOLD = """
INSERT INTO tartan.held_topics (topic, partition, since) SELECT $1, * FROM unnest($2::int[], $3::bigint[])"""

_SET_FIRST = "UPDATE tartan.held_topics SET first_offset = $3 WHERE topic = $1 AND partition = $2"

_RELEASE = "DELETE FROM tartan.held_topics WHERE topic = $1 AND partition = $2"

_CHECKPOINT = "SELECT published FROM tartan.published_checkpoints WHERE partition = $1"

# Where the live version's events are expired, the version that a rebuild filled may have them, by their digest.
_LIVE = "(SELECT c.*, c.events AS stored FROM changesets c) AS changesets"
_LIVE_OR_NEXT = f"""(
SELECT c.*, coalesce(c.events, n.events) AS stored FROM changesets c LEFT JOIN {NEXT}.changesets n
    ON n.partition = c.partition AND n.source_offset = c.source_offset AND n.digest = c.digest) AS changesets"""

_EXPIRED = """
SELECT partition, min(source_offset) AS first, max(source_offset) AS last, count(*) AS count FROM {changesets}
 WHERE partition = ANY($1::int[]) AND net_events > 0 AND stored IS NULL GROUP BY partition ORDER BY partition"""

_PAGE = """
SELECT partition, source_offset, id, type, user_number, item_id, known_at, stored AS events FROM {changesets}
 WHERE partition = $1 AND source_offset >= $2 AND source_offset < $3 AND net_events > 0
   AND (stored IS NOT NULL OR NOT $5)
 ORDER BY source_offset LIMIT $4"""

_HAS_NEXT = f"SELECT to_regclass('{NEXT}.changesets') IS NOT NULL"
