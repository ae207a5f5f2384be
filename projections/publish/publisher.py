"""Publishes net events after their commit: in order, at least once, and no further back than the checkpoint.

The checkpoint of a partition says that all events of changesets below it were acknowledged. Readers drop what is not above
the last position they have seen, so what a crash sends twice comes once (docs/architecture.md, reader's rule).
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
"""Net events that are committed and not published: the projector waits above it, so it is never further ahead than
about two of its largest batches."""
IDLE_S = 0.2
"""Without a batch for so long, the publisher writes the checkpoints itself: a restart then has nothing to send again. A swap
of versions holds batches up until the checkpoints are written, so writers wait for it too."""
RETRY_S_MAX = 5.0
RETRY_S_MIN = 0.1
STOP_S = 20.0
"""How long a stop waits for acknowledgements; what is left is sent after the next start."""

T = TypeVar("T")

_log = logs.logger(__name__)


class Committed(NamedTuple):
    """What one transaction committed: from and up to which position in each partition, and the net events."""

    spans: Mapping[int, tuple[int, int]]
    changesets: Sequence[ChangesetEvents]

    @property
    def size(self) -> int:
        """Bytes of the net events."""
        return sum(len(event.data) for outbound in self.changesets for event in outbound.net_events)


async def own_ids() -> Mapping[int, bytes]:
    """What stands before each event where there is no registry."""
    return kafka_records.LOCAL_PREFIXES


class Publisher:
    """Sends committed batches in the order handed over, as soon as `wire` has said what stands before each event."""

    def __init__(
        self,
        appender: Appender,
        outbox: Outbox,
        *,
        topic_prefix: str,
        wire: Callable[[], Awaitable[Mapping[int, bytes]]] = own_ids,
    ) -> None:
        self._appender = appender
        self._outbox = outbox
        self._prefix = topic_prefix
        self._ask_wire = wire
        self._wire: Mapping[int, bytes] = {}
        self._waiting: deque[Committed] = deque()
        self._waiting_bytes = 0
        self._handed = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._room.set()
        self._idle.set()
        self._published: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._trouble: str | None = None

    def submit(self, committed: Committed) -> None:
        """Take over what was committed. A span that does not follow on the last one is first read from the table."""
        self._waiting.append(committed)
        self._waiting_bytes += committed.size
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._room.clear()
        self._idle.clear()
        self._handed.set()

    def troubles(self) -> list[str]:
        """Why nothing is published now; empty where it is."""
        return [] if self._trouble is None else [self._trouble]

    async def wait_for_room(self) -> None:
        """Wait until the next batch may be committed."""
        await self._room.wait()

    def unstored_checkpoints(self) -> dict[int, int]:
        """The checkpoints that are not in the database yet."""
        return {number: at for number, at in self._published.items() if at > self._stored.get(number, -1)}

    def mark_stored(self, checkpoints: Mapping[int, int]) -> None:
        """Say that these checkpoints were committed."""
        self._stored.update(checkpoints)

    async def run(self) -> None:
        """Publish for ever. A cancellation ends it at any point; what was not acknowledged is sent again."""
        self._wire = await self._ask_wire()
        while True:
            while self._waiting:
                committed = self._waiting[0]
                await self._publish(committed)
                self._waiting.popleft()
                self._waiting_bytes -= committed.size
                if self._waiting_bytes <= WAITING_BYTES_MAX:
                    self._room.set()
            self._handed.clear()
            self._idle.set()
            try:
                await asyncio.wait_for(self._handed.wait(), IDLE_S if self.unstored_checkpoints() else None)
            except TimeoutError:
                await self._store_checkpoints()

    async def drain(self) -> None:
        """Wait until all that was handed over is published, for at most STOP_S, and store the checkpoints."""
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
        """Publish from the table what lies between the checkpoint and `end`.

        Another process may have committed it, or this one, with a COMMIT that got no answer.
        """
        at = await _patiently(lambda: self._outbox.read_checkpoint(partition))
        at = max(at, self._published.get(partition, 0))
        while at < end:
            start = at
            rows = await _patiently(lambda start=start: self._outbox.read_changesets(partition, start, end))  # type: ignore[misc]
            await self._send(rows)
            at = rows[-1].offset + 1 if len(rows) == ROWS_MAX else end
            self._published[partition] = at

    async def _send(self, outbound: Sequence[ChangesetEvents]) -> None:
        if not outbound:
            return
        # Asked after the commit of what is sent: held then, it is sent by who holds it (republish), up to its release.
        held = await _patiently(self._outbox.read_held_topics)
        lanes = kafka_records.build_records(outbound, self._wire)
        for lane in lanes:
            since = held.get((lane.topic.name, lane.partition))
            if since is not None:
                earlier = [one for one in outbound if one.offset < since]
                lanes[lane] = kafka_records.build_public_records(earlier, self._wire).get(lane, [])
        left = {lane: outgoing for lane, outgoing in lanes.items() if outgoing}
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while left:
            results = await asyncio.gather(
                *(self._send_lane(lane, outgoing) for lane, outgoing in left.items()), return_exceptions=True
            )
            failed: dict[Destination, list[Outgoing]] = {}
            for (lane, outgoing), result in zip(left.items(), results, strict=True):
                if isinstance(result, Retry | KafkaError | OSError | TimeoutError):
                    failed[lane] = outgoing
                elif result is not None:
                    raise result
            # A lane that failed begins again at its first record of the batch, never behind it.
            left = failed
            self._trouble = f"{len(left)} lanes are not published" if left else None
            if left:
                metrics.RETRIES.labels("projections", "publish").inc()
                _log.warning("not published", lanes=len(left))
                await backoff.wait()
        crash_points.reach(CrashPoint.PUBLISH_AFTER_SEND)

    async def _send_lane(self, lane: Destination, outgoing: list[Outgoing]) -> None:
        await self._appender.append_many(full_name(lane.topic, self._prefix), lane.partition, outgoing)
        crash_points.reach(CrashPoint.PUBLISH_BETWEEN_TOPICS)


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do work until the world is back. Publishing waits for nothing else, and what comes behind must not overtake."""
    backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
    while True:
        try:
            return await work()
        except Retry as error:
            metrics.RETRIES.labels("projections", "resume").inc()
            _log.warning("resume waits", reason=str(error))
            await backoff.wait()
