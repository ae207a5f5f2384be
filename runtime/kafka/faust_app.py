"""Faust app whose readers start at positions in Postgres and acknowledge records after their effect is durable.

Source: FAUST.md, measured on faust-streaming 0.15.3 and Kafka 4.3.1; tests cover the behaviour that this relies on.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import faust
from aiokafka.errors import NoOffsetForPartitionError
from faust.contrib.asgi import faust_app_running
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP

from runtime import logs, metrics
from runtime.kafka.clients import connection
from runtime.kafka.reader import GatheringReader, Received
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.topics import MESSAGE_BYTES_MAX

_log = logs.logger(__name__)

STREAM_BUFFER = 4096
"""Records that Faust fetches ahead. For large records the byte bound of the reader behind it applies first."""

UNPLACED_S_MAX = 30.0
"""Longest time from the assignment of a partition to its seek, which follows within milliseconds, or never."""
UNPLACED_WAIT_S = 0.02
STOP_S_MAX = 20.0
"""Longest wait of a stop for unacknowledged records; the rest is read again at the next start."""

Positions = Callable[[Collection[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], int]]]
"""Returns the next offset of each (topic, partition) pair."""


def build(settings: Settings, *, name: str, positions: Positions) -> faust.App:
    """Build a Faust app whose readers start at `positions`; `name` is its consumer group."""
    app = _App(
        f"{settings.topic_prefix}{name}",
        broker=f"kafka://{settings.kafka_address}",
        **_credentials(settings),
        key_serializer="raw",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        agent_supervisor="mode.CrashingSupervisor",
        stream_wait_empty=True,
        stream_buffer_maxsize=STREAM_BUFFER,
        broker_commit_interval=1.0,
        broker_commit_every=5000,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 10,
        broker_rebalance_timeout=60.0,
        broker_request_timeout=60.0,
        consumer_auto_offset_reset="none",
        consumer_max_fetch_size=MESSAGE_BYTES_MAX,
        consumer_group_instance_id=f"{name}-{settings.instance_id}",
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=1,
        producer_acks=-1,
        producer_compression_type="zstd",
        web_enabled=False,
        worker_redirect_stdouts=False,
        store="memory://",
        datadir=Path(gettempdir()) / f"tartan-faust-{os.getuid()}",  # stays empty; the default is the current folder
    )
    app.tartan_positions = positions
    return app


def reader(app: faust.App, topic: str, *, agent: str, records_max: int, bytes_max: int) -> GatheringReader:
    """Attach an agent that gathers a topic's records, and return the reader to take them from."""
    gathered = GatheringReader(records_max=records_max, bytes_max=bytes_max)
    source = app.topic(topic, key_type=bytes, value_type=bytes, allow_empty=True)

    async def gather(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            record = Received(
                message.partition,
                message.offset,
                message.key,
                message.value or b"",
                dict(message.headers or ()),
                int(message.timestamp * 1000),
            )
            await gathered.offer(record, event.ack)

    app.agent(source, name=agent, concurrency=1)(gather)
    return gathered


def assigned(app: faust.App, topic: str) -> set[int]:
    """Return the partitions of a topic that this process reads now."""
    return {tp.partition for tp in app.consumer.assignment() if tp.topic == topic}


@asynccontextmanager
async def running(app: faust.App) -> AsyncIterator["asyncio.Task[None]"]:
    """Run the app on this loop; the yielded task ends, with Halt, when the app has crashed or stopped by itself.

    A hosted app that crashes is silent otherwise (FAUST.md), while the rest of the process goes on. Its stop waits for
    unacknowledged records, so the agents must run until after the block.
    """
    try:
        async with faust_app_running(app, stop_timeout=STOP_S_MAX):
            watch = asyncio.create_task(_watch(app), name="stream engine")
            try:
                yield watch
            finally:
                watch.cancel()
    except TimeoutError:
        _log.warning("stream engine left running", app=app.conf.id, seconds=STOP_S_MAX)


async def _watch(app: faust.App) -> None:
    while not app.should_stop and not app.crashed:  # Faust has no event for both
        await asyncio.sleep(0.05)
    raise Halt(f"the stream engine of {app.conf.id} stopped: {app.crash_reason!r}")


def _credentials(settings: Settings) -> dict[str, Any]:
    """Return the security options of runtime.kafka.clients.connection in Faust's form."""
    options = connection(settings)
    if settings.kafka_security == "PLAINTEXT":
        return {}
    if settings.kafka_security == "SSL":
        return {"broker_credentials": options["ssl_context"]}
    credentials = faust.SASLCredentials(
        username=options["sasl_plain_username"],
        password=options["sasl_plain_password"],
        mechanism=settings.kafka_sasl_mechanism,
        ssl_context=options.get("ssl_context"),
    )
    return {"broker_credentials": credentials}


class _SeekingConsumer(Consumer):  # type: ignore[misc]
    """Starts each partition at its position in Postgres. Kafka's committed offset is for lag displays only."""

    _unplaced_since: float | None = None

    async def perform_seek(self) -> None:
        await super().perform_seek()
        assigned = self.assignment()
        committed = {tp: offset for tp, offset in self._committed_offset.items() if offset}
        positions = await self.app.tartan_positions([(tp.topic, tp.partition) for tp in assigned])
        for (topic, partition), position in positions.items():
            tp = TP(topic, partition)
            if committed.get(tp, 0) > position:
                # The committed offset was durable in Postgres before, so somebody restored a backup: report it. The
                # records are read again, and readers of published events drop them by position.
                metrics.WENT_BACK.labels(self.app.conf.id).inc()
                _log.error(
                    "the database went back",
                    topic=topic,
                    partition=partition,
                    position=position,
                    committed=committed[tp],
                )
            await self.seek(tp, position)
            self._committed_offset[tp] = position or None
            self._read_offset[tp] = position - 1 if position else None
        self._unplaced_since = None

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's own signature
        """Fetch, and ignore one outdated error of a rebalance.

        The interleaving: a partition without committed offset is assigned; aiokafka's fetcher has no offset for it and
        stores the error of `auto_offset_reset="none"`; then perform_seek sets its position; then this call would raise
        the outdated error, and the app would crash.
        """
        try:
            return await super()._getmany(active_partitions, timeout)
        except NoOffsetForPartitionError:
            now = time.monotonic()
            self._unplaced_since = self._unplaced_since or now
            if now - self._unplaced_since > UNPLACED_S_MAX:
                raise
            await asyncio.sleep(UNPLACED_WAIT_S)
            return {}


class _Transport(Transport):  # type: ignore[misc]
    Consumer = _SeekingConsumer


class _App(faust.App):  # type: ignore[misc]
    tartan_positions: Positions

    def _new_transport(self) -> Transport:
        return _Transport(self.conf.broker_consumer, self)
