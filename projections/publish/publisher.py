"""Publish net events after their commit: in order, at least once, and never from before the checkpoint.

All events of changesets below a partition's checkpoint were acknowledged. Readers drop events that are not above the
last position they read, so events that a crash sends twice count once (docs/architecture.md, reader's rule).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from aiokafka.errors import KafkaError

from projections.publish import kafka_records
from projections.publish.kafka_records import ChangesetEvents, Destination
from projections.publish.outbox import ROWS_MAX, Outbox
from runtime import crash_points, logs, metrics
from runtime.crash_points import CrashPoint
from runtime.kafka.clients import Appender, Outgoing
from runtime.retry import Backoff
from schemas.errors import Retry
from schemas.topics import full_name

WAITING_BYTES_MAX = 64 * 1024 * 1024
"""Net events that are committed and not published: above it the projector waits, so that it is never further ahead
than about two of its largest batches."""
IDLE_S = 0.2
"""After so long without a batch the publisher writes the checkpoints itself, so that a restart sends nothing again.
A swap of versions holds batches up until the checkpoints are written, so writers wait for it too."""
RETRY_S_MAX = 5.0
RETRY_S_MIN = 0.1
STOP_S = 20.0
"""Wait of a stop for acknowledgements; the next start sends the rest."""

T = TypeVar("T")

_log = logs.logger(__name__)


class Committed(NamedTuple):
    """The outcome of one transaction: its first and next position in each partition, and its net events."""

    spans: Mapping[int, tuple[int, int]]
    changesets: Sequence[ChangesetEvents]

    @property
    def size(self) -> int:
        """Bytes of the net events."""
        return sum(len(event.data) for changeset in self.changesets for event in changeset.net_events)


async def local_prefixes() -> Mapping[int, bytes]:
    """Return the prefix of each event schema where there is no registry."""
    return kafka_records.LOCAL_PREFIXES


class Publisher:
    """Send committed batches in the order of `submit`, as soon as `prefixes` has returned."""

    def __init__(
        self,
        appender: Appender,
        outbox: Outbox,
        *,
        topic_prefix: str,
        prefixes: Callable[[], Awaitable[Mapping[int, bytes]]] = local_prefixes,
    ) -> None:
        self._appender = appender
        self._outbox = outbox
        self._topic_prefix = topic_prefix
        self._read_prefixes = prefixes
        self._prefixes: Mapping[int, bytes] = {}
        self._waiting: deque[Committed] = deque()
        self._waiting_bytes = 0
        self._submitted = asyncio.Event()
        self._has_room = asyncio.Event()
        self._idle = asyncio.Event()
        self._has_room.set()
        self._idle.set()
        self._published: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._trouble: str | None = None

    def submit(self, committed: Committed) -> None:
        """Queue a committed batch. A gap between its span and the one before is first read from the table."""
        self._waiting.append(committed)
        self._waiting_bytes += committed.size
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._has_room.clear()
        self._idle.clear()
        self._submitted.set()

    def troubles(self) -> list[str]:
        """Return why nothing is published now; empty while all is well."""
        return [] if self._trouble is None else [self._trouble]

    async def wait_for_room(self) -> None:
        """Wait until the next batch may be committed."""
        await self._has_room.wait()

    def unstored_checkpoints(self) -> dict[int, int]:
        """Return the checkpoints that the database does not have yet, by partition."""
        return {
            partition: published
            for partition, published in self._published.items()
            if published > self._stored.get(partition, -1)
        }

    def mark_stored(self, checkpoints: Mapping[int, int]) -> None:
        """Note that these checkpoints were committed."""
        self._stored.update(checkpoints)

    async def run(self) -> None:
        """Publish for ever. A cancellation ends it at any point; records without acknowledgement are sent again."""
        self._prefixes = await self._read_prefixes()
        while True:
            while self._waiting:
                committed = self._waiting[0]
                await self._publish(committed)
                self._waiting.popleft()
                self._waiting_bytes -= committed.size
                if self._waiting_bytes <= WAITING_BYTES_MAX:
                    self._has_room.set()
            self._submitted.clear()
            self._idle.set()
            try:
                await asyncio.wait_for(self._submitted.wait(), IDLE_S if self.unstored_checkpoints() else None)
            except TimeoutError:
                await self._store_checkpoints()

    async def drain(self) -> None:
        """Wait until all submitted batches are published, for at most STOP_S, and store the checkpoints."""
        try:
            await asyncio.wait_for(self._idle.wait(), STOP_S)
        except TimeoutError:
            _log.warning("not all published at stop", waiting=len(self._waiting))
        await self._store_checkpoints()

    async def _store_checkpoints(self) -> None:
        checkpoints = self.unstored_checkpoints()
        try:
            await self._outbox.store_checkpoints(checkpoints)
        except Retry as error:
            _log.warning("checkpoints not stored", reason=str(error))  # the next batch stores them
        else:
            self.mark_stored(checkpoints)

    async def _publish(self, committed: Committed) -> None:
        for partition, (start, _) in committed.spans.items():
            if self._published.get(partition) != start:
                await self._resume(partition, start)
        await self._send(committed.changesets)
        for partition, (_, end) in committed.spans.items():
            self._published[partition] = end

    async def _resume(self, partition: int, end: int) -> None:
        """Publish the changesets between the checkpoint and `end` from the table.

        Another process may have committed them, or this one, with a COMMIT that got no answer.
        """
        checkpoint = await _retried(lambda: self._outbox.read_checkpoint(partition))
        start = max(checkpoint, self._published.get(partition, 0))
        while start < end:
            rows = await _retried(lambda start=start: self._outbox.read_changesets(partition, start, end))  # type: ignore[misc]
            await self._send(rows)
            start = rows[-1].offset + 1 if len(rows) == ROWS_MAX else end
            self._published[partition] = start

    async def _send(self, changesets: Sequence[ChangesetEvents]) -> None:
        if not changesets:
            return
        # Read after the commit of the changesets: what is held now, `tartan republish` sends, up to its release.
        held_topics = await _retried(self._outbox.read_held_topics)
        records = kafka_records.build_records(changesets, self._prefixes)
        for destination in records:
            since = held_topics.get((destination.topic.name, destination.partition))
            if since is not None:
                earlier = [changeset for changeset in changesets if changeset.offset < since]
                public_records = kafka_records.build_public_records(earlier, self._prefixes)
                records[destination] = public_records.get(destination, [])
        unsent = {destination: outgoing for destination, outgoing in records.items() if outgoing}
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while unsent:
            results = await asyncio.gather(
                *(self._append(destination, outgoing) for destination, outgoing in unsent.items()),
                return_exceptions=True,
            )
            failed: dict[Destination, list[Outgoing]] = {}
            for (destination, outgoing), result in zip(unsent.items(), results, strict=True):
                if isinstance(result, Retry | KafkaError | OSError | TimeoutError):
                    failed[destination] = outgoing
                elif result is not None:
                    raise result
            # A failed partition is sent again from its first record of the batch, so that no record is left out.
            unsent = failed
            self._trouble = f"{len(unsent)} partitions are not published" if unsent else None
            if unsent:
                metrics.RETRIES.labels("projections", "publish").inc()
                _log.warning("not published", partitions=len(unsent))
                await backoff.wait()
        crash_points.reach(CrashPoint.PUBLISH_AFTER_SEND)

    async def _append(self, destination: Destination, outgoing: list[Outgoing]) -> None:
        topic = full_name(destination.topic, self._topic_prefix)
        await self._appender.append_many(topic, destination.partition, outgoing)
        crash_points.reach(CrashPoint.PUBLISH_BETWEEN_TOPICS)


async def _retried(work: Callable[[], Awaitable[T]]) -> T:
    """Retry work until it succeeds. Later batches must not overtake this one, so nothing else runs meanwhile."""
    backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
    while True:
        try:
            return await work()
        except Retry as error:
            metrics.RETRIES.labels("projections", "resume").inc()
            _log.warning("resume waits", reason=str(error))
            await backoff.wait()
