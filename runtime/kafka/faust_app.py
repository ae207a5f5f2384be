"""Faust, in the form that loses nothing: positions come from Postgres, acknowledgements after the effect.

Source: FAUST.md, measured on faust-streaming 0.15.3 and Kafka 4.3.1; tests hold what is relied on here.
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
"""Records that Faust fetches ahead. At 4 MiB a record the byte bound of the reader behind it acts first."""

UNPLACED_S_MAX = 30.0
"""How long a partition may be assigned and not placed: the seek follows within milliseconds, or never."""
UNPLACED_WAIT_S = 0.02
STOP_S_MAX = 20.0
"""How long a stop waits for records that were read and not acknowledged; what is left is read again after it."""

Positions = Callable[[Collection[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], int]]]
"""Given (topic, partition) pairs, the next offset of each."""


def build(settings: Settings, *, name: str, positions: Positions) -> faust.App:
    """Make a Faust app whose readers start where `positions` says; `name` is its consumer group."""
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
        datadir=Path(gettempdir()) / f"tartan-faust-{os.getuid()}",  # stays empty; by default where the process runs
    )
    app.tartan_positions = positions
    return app


def reader(app: faust.App, topic: str, *, agent: str, records_max: int, bytes_max: int) -> GatheringReader:
    """Attach an agent that gathers a topic's records for a body to take."""
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
    """The partitions of a topic that this process reads now."""
    return {tp.partition for tp in app.consumer.assignment() if tp.topic == topic}


@asynccontextmanager
async def running(app: faust.App) -> AsyncIterator["asyncio.Task[None]"]:
    """Run the app on this loop; the task given ends, with Halt, when the app has crashed or stopped by itself.

    A hosted app that crashes is silent otherwise (FAUST.md), while everything else in the process goes on.
    Its stop waits for what was read and is not acknowledged, so the readers' bodies go on until after the block.
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
    """Faust's form of runtime.kafka.clients.connection's security options."""
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
    """Starts each partition where Postgres says. Kafka's committed offset is a hint for lag displays."""

    _unplaced_since: float | None = None

    async def perform_seek(self) -> None:
        await super().perform_seek()
        assigned = self.assignment()
        committed = {tp: offset for tp, offset in self._committed_offset.items() if offset}
        wanted = await self.app.tartan_positions([(tp.topic, tp.partition) for tp in assigned])
        for (topic, partition), position in wanted.items():
            tp = TP(topic, partition)
            if committed.get(tp, 0) > position:
                # What is committed was durable in Postgres before. It is read again, and readers of what is published
                # drop it by position; that somebody restored a backup must still be seen.
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
        """Fetch, passing over one moment of a rebalance.

        The interleaving: a partition without committed offset is assigned; aiokafka's fetcher finds no offset for it
        and notes the error that `auto_offset_reset="none"` asks for; then perform_seek places it; then this call
        would raise the error that is no longer true, and the app would crash.
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
