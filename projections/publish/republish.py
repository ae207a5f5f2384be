"""Fills a public topic from the log, partition by partition, while its publisher holds back and the others go on.

A row of `tartan.held_topics` holds a partition of the topic. It comes and goes under the lock of the partition's
position in `changesets`, and the publisher looks at the rows after each commit, before it sends. So of what is
committed after the row came nothing is sent there, and of what is committed after it went everything. What was
committed before, below the row's `since`, is sent as ever, and acknowledged once the checkpoint is there: only then the
filling begins. The last event in the topic says how far it came, so whatever ends it, the same command goes on.
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
from projections.store import loader
from projections.store.tables import NEXT
from runtime.kafka.clients import Appender, LogEnds, Outgoing, connection
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import HEADER_POSITION, Topic, full_name

LAST_MAX = 20
"""Changesets that are sent under the lock of the position: some milliseconds, in which the partition's projector
waits. What more came meanwhile is sent before the next try."""
CONFIRM_S_MAX = 30.0
"""A publisher writes its checkpoint within a second (publish.IDLE_S), one that starts within some."""
CONFIRM_LOOK_S = 0.1
READ_MS = 1_000
LOOK_S_MAX = 3600
"""A look for what is not kept reads the partitions' rows of `changesets`: some microseconds each."""

Place = tuple[int, int]
"""An event's position: offset in `changesets`, and index in its changeset."""


class Progress(NamedTuple):
    """How far a partition is: events sent by now, and up to which offset of `changesets`, which ends at `end`."""

    partition: int
    events: int
    position: int
    end: int


class _Hold(NamedTuple):
    """`since`: offset in `changesets`; `first`: offset in the topic where the filling began, None before it did."""

    since: int
    first: int | None


class Republisher:
    """Fills partitions of one topic.

    `wire`: what stands before an event, by its schema. `skips_expired`: leave out changesets whose events are not kept.
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
        """Keep others from this topic until the connection ends, and look where events are kept.

        Raises: Halt, where another one is at work.
        """
        if not await self._database.fetchval(_ALONE, f"tartan republish {self._topic.name}"):
            raise Halt(f"topic {self._name} is being filled by another process")
        if await self._database.fetchval(_HAS_NEXT):
            self._changesets = _LIVE_OR_NEXT

    async def held_partitions(self) -> list[int]:
        """The partitions that are held."""
        return [row["partition"] for row in await self._database.fetch(_BEGUN, self._topic.name)]

    async def hold(self, partitions: Sequence[int], *, empties: bool) -> list[int]:
        """Hold partitions, all or none; gives those to fill. What was begun before comes first, and is all there is.

        `empties`: what they hold is deleted, once nothing more comes.
        Raises: Halt, where one is not empty, events are not kept any more, or none of those begun is among them.
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
        async with loader.lock_positions(self._database, partitions):
            at = await loader.read_positions(self._database, partitions)
            await self._database.execute(_HOLD, self._topic.name, list(at), [one.next for one in at.values()])
        return list(partitions)

    async def fill(self, partition: int, *, empties: bool) -> int:
        """Fill a partition that is held up to where its publisher goes on; gives the number of events sent.

        Idempotence: where it was begun before, it goes on behind the last event.
        Raises: Halt, where the partition is not empty, or somebody else wrote into it; Retry.
        """
        hold = await self._held(partition)
        if hold.first is None:
            hold = await self._ready(partition, hold, empties=empties)
        first, at = await self._reached(partition, hold)
        end = await self._position(partition)
        sent = await self._send_all(partition, at, end)
        await self._compare(partition, first, end)
        return sent + await self._catch_up(partition, end)

    async def abandon(self, partition: int) -> int:
        """Give a filling up: what came since the hold is sent where it is not there yet, and the publisher goes on.

        Gives the number of events sent.
        """
        hold = await self._held(partition)
        if hold.first is None:
            # A publisher that is late sends what lies below the hold: behind what is sent here, readers would drop it.
            at = min(hold.since, await self._floor(partition))
        else:
            at = max(hold.since, (await self._reached(partition, hold))[1])
        return await self._catch_up(partition, at)

    async def _held(self, partition: int) -> _Hold:
        row = await self._database.fetchrow(_HELD, self._topic.name, partition)
        if row is None:
            raise Halt(f"topic {self._name} partition {partition} is not held any more: another process let it go")
        return _Hold(row["since"], row["first_offset"])

    async def _require_events(self, partitions: Sequence[int]) -> None:
        if self._skips_expired:
            return
        async with self._database.transaction(readonly=True):
            # Nobody waits for this one. The others keep their limits: stopped, they must not hold a position's lock.
            for limit in ("statement_timeout", "transaction_timeout"):
                await self._database.execute(f"SET LOCAL {limit} = '{LOOK_S_MAX} s'")
            gone = await self._database.fetch(_GONE.format(changesets=self._changesets), list(partitions))
        if gone:
            ranges = ", ".join(f"{row['partition']}@{row['first']} to {row['partition']}@{row['last']}" for row in gone)
            raise Halt(
                f"the events of {sum(row['count'] for row in gone)} changesets are not kept any more ({ranges}): "
                "`tartan rebuild --with-events --no-swap` folds them again, --kept fills the topic with what is there"
            )

    async def _require_empty(self, partition: int) -> None:
        ends = (await self._log.ends(self._name, [partition]))[partition]
        if ends.start < ends.end:
            raise Halt(
                f"topic {self._name} partition {partition} is not empty, it has {ends.start} to {ends.end - 1}: "
                "what is sent behind newer events is dropped by readers; --empty deletes them first"
            )

    async def _ready(self, partition: int, hold: _Hold, *, empties: bool) -> _Hold:
        """Wait until nothing from before the hold is under way, and note where the filling begins."""
        await self._confirmed(partition, hold.since)
        if empties:
            await self._empty(partition)
        try:
            await self._require_empty(partition)
        except Halt:  # an event came between the first look and the hold
            await self.abandon(partition)
            raise
        ends = (await self._log.ends(self._name, [partition]))[partition]
        await self._database.execute(_FIRST, self._topic.name, partition, ends.end)
        return hold._replace(first=ends.end)

    async def _confirmed(self, partition: int, since: int) -> None:
        deadline = time.monotonic() + CONFIRM_S_MAX
        while await self._floor(partition) < since:
            if time.monotonic() > deadline:
                raise Retry(
                    f"partition {partition}: events below {since} are not published after {CONFIRM_S_MAX:g} s. Does "
                    "`tartan projections` run? The same command goes on, --abandon gives up"
                )
            await asyncio.sleep(CONFIRM_LOOK_S)

    async def _floor(self, partition: int) -> int:
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
        """Where in the topic the filling began, and the changeset from which it goes on."""
        assert hold.first is not None
        ends = (await self._log.ends(self._name, [partition]))[partition]
        if ends.end <= max(ends.start, hold.first):
            await self._database.execute(_FIRST, self._topic.name, partition, ends.end)
            return ends.end, 0
        async with aclosing(self._places(partition, ends.end - 1)) as last:
            return hold.first, (await anext(last))[0]

    async def _position(self, partition: int) -> int:
        found = await loader.read_positions(self._database, [partition])
        if partition not in found:
            raise Halt(f"changesets have no partition {partition}")
        return found[partition].next

    async def _send_all(self, partition: int, start: int, end: int) -> int:
        sent, at = 0, start
        while at < end:
            page = await self._page(partition, at, end)
            sent += await self._send(partition, page)
            at = page[-1].offset + 1 if len(page) == ROWS_MAX else end
            self._on_progress(Progress(partition, sent, at, end))
        return sent

    async def _page(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """The first ROWS_MAX changesets with net events from `start` up to `end`."""
        page = _PAGE.format(changesets=self._changesets)
        found = await self._database.fetch(page, partition, start, end, ROWS_MAX, self._skips_expired)
        gone = [row["source_offset"] for row in found if row["events"] is None]
        if gone:
            raise Halt(
                f"the events of changesets {partition}@{gone[0]} to {partition}@{gone[-1]} are not kept any more; "
                "--kept leaves them out"
            )
        return [outbox.changeset_events(row) for row in found]

    async def _send(self, partition: int, page: Sequence[ChangesetEvents]) -> int:
        outgoing = self._outgoing(partition, page)
        await self._appender.append_many(self._name, partition, outgoing)
        return len(outgoing)

    def _outgoing(self, partition: int, page: Sequence[ChangesetEvents]) -> list[Outgoing]:
        return kafka_records.build_public_records(page, self._prefixes).get(Destination(self._topic, partition), [])

    async def _catch_up(self, partition: int, start: int) -> int:
        """Send what came meanwhile, the last of it under the lock, and let the publisher go on behind it."""
        sent, at = 0, start
        while True:
            async with loader.lock_positions(self._database, [partition]):
                end = await self._position(partition)
                page = await self._page(partition, at, end)
                if len(page) <= LAST_MAX:
                    sent += await self._send(partition, page)
                    await self._database.execute(_RELEASE, self._topic.name, partition)
                    return sent
            sent += await self._send_all(partition, at, end)
            at = end

    async def _compare(self, partition: int, first: int, end: int) -> None:
        """Read back what was sent, as a reader does. A publisher that slept since before the hold may have woken.

        Raises: Halt, where a reader would miss an event.
        """
        at = 0
        async with aclosing(self._kept(partition, first)) as kept:
            while at < end:
                page = await self._page(partition, at, end)
                for outgoing in self._outgoing(partition, page):
                    if await anext(kept, None) != _place(outgoing.headers):
                        await self._database.execute(_FIRST, self._topic.name, partition, None)
                        raise Halt(
                            f"topic {self._name} partition {partition}: another process wrote into it while it was "
                            "filled, so readers would miss events; it is still held: republish again with --empty"
                        )
                at = page[-1].offset + 1 if len(page) == ROWS_MAX else end

    async def _kept(self, partition: int, first: int) -> AsyncGenerator[Place, None]:
        last: Place = (-1, -1)
        async with aclosing(self._places(partition, first)) as places:
            async for place in places:
                if place > last:
                    last = place
                    yield place

    async def _places(self, partition: int, start: int) -> AsyncGenerator[Place, None]:
        """The positions of the events in the topic's partition, from an offset of its own on."""
        where = TopicPartition(self._name, partition)
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            **connection(self._settings),
        )
        try:
            await consumer.start()
            end = (await consumer.end_offsets([where]))[where]
            consumer.assign([where])
            consumer.seek(where, start)
            while await consumer.position(where) < end:
                for record in (await consumer.getmany(where, timeout_ms=READ_MS)).get(where, []):
                    yield _place(record.headers)
        except KafkaError as error:
            raise Retry(f"topic {self._name} partition {partition} at {start}: {type(error).__name__}") from error
        finally:
            await consumer.stop()


def _place(headers: Sequence[tuple[str, bytes]]) -> Place:
    offset, _, index = dict(headers).get(HEADER_POSITION, b"").decode().partition(".")
    try:
        return int(offset), int(index)
    except ValueError as error:
        raise Halt("the topic holds a record that is no event: its header tartan-position says no position") from error


_ALONE = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"

_HELD = "SELECT since, first_offset FROM tartan.held_topics WHERE topic = $1 AND partition = $2"

_BEGUN = "SELECT partition FROM tartan.held_topics WHERE topic = $1 ORDER BY partition"

_HOLD = """
INSERT INTO tartan.held_topics (topic, partition, since) SELECT $1, * FROM unnest($2::int[], $3::bigint[])"""

_FIRST = "UPDATE tartan.held_topics SET first_offset = $3 WHERE topic = $1 AND partition = $2"

_RELEASE = "DELETE FROM tartan.held_topics WHERE topic = $1 AND partition = $2"

_CHECKPOINT = "SELECT published FROM tartan.published_checkpoints WHERE partition = $1"

# Where the live version's events are not kept any more, the version that a rebuild has filled beside it may have them:
# the same ones, as their digest says.
_LIVE = "(SELECT c.*, c.events AS found FROM changesets c) AS changesets"
_LIVE_OR_NEXT = f"""(
SELECT c.*, coalesce(c.events, n.events) AS found FROM changesets c LEFT JOIN {NEXT}.changesets n
    ON n.partition = c.partition AND n.source_offset = c.source_offset AND n.digest = c.digest) AS changesets"""

_GONE = """
SELECT partition, min(source_offset) AS first, max(source_offset) AS last, count(*) AS count FROM {changesets}
 WHERE partition = ANY($1::int[]) AND net_events > 0 AND found IS NULL GROUP BY partition ORDER BY partition"""

_PAGE = """
SELECT partition, source_offset, id, type, user_number, item_id, known_at, found AS events FROM {changesets}
 WHERE partition = $1 AND source_offset >= $2 AND source_offset < $3 AND net_events > 0
   AND (found IS NOT NULL OR NOT $5)
 ORDER BY source_offset LIMIT $4"""

_HAS_NEXT = f"SELECT to_regclass('{NEXT}.changesets') IS NOT NULL"
