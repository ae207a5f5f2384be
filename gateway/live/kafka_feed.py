"""Kafka feed: read the topic `push` for this process, all partitions, from the end, without a group.

A gap is never silent: where the feed has to restart at the end of the log, all streams end and take a new snapshot.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway import metrics
from gateway.live.hub import RESTARTED, Hub, Position
from runtime import logs
from runtime.kafka.clients import connection
from runtime.settings import Settings
from schemas.topics import HEADER_POSITION, PUSH, full_name

BATCH_MAX = 500
"""Records dispatched before other tasks run, half of a subscriber's queue: its sender runs in time."""
POLL_MS = 1_000
START_S_MAX = 30.0
PROBE_S = 5.0
"""Interval between two reads of the log's end, and the limit of one."""
LAG_MAX = 20_000
"""Records behind the end at which the feed restarts: at 20,000 a second that is one second, and a snapshot is faster
than messages that old."""
RESTART_S = 1.0

_log = logs.logger(__name__)


class KafkaFeed:
    """Feeds the hub while the process runs."""

    def __init__(self, settings: Settings, hub: Hub) -> None:
        self._settings = settings
        self._hub = hub
        topic = full_name(PUSH, settings.topic_prefix)
        self._partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        self._problem: str | None = "not connected yet"

    def not_ready(self) -> list[str]:
        """Return the reasons why subscribers get no messages."""
        return [f"Kafka consumer: {self._problem}"] if self._problem else []

    async def run(self) -> None:
        """Read until cancelled; after each failure end all streams and restart at the end of the log."""
        while True:
            reason = await self._read()
            self._problem = reason
            metrics.PUSH_RESTARTS.labels(reason).inc()
            _log.warning("push is read anew", reason=reason)
            self._hub.close(RESTARTED)
            await asyncio.sleep(RESTART_S)

    async def _read(self) -> str:
        """Read until something fails; return the reason."""
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a truncated log must fail here and not be skipped in silence
            isolation_level="read_uncommitted",
            check_crcs=True,
            **connection(self._settings),
        )
        try:
            async with asyncio.timeout(START_S_MAX):
                await consumer.start()
                consumer.assign(self._partitions)
                await consumer.seek_to_end(*self._partitions)
                for partition in self._partitions:
                    # Resolved before the hub opens: every later append is then a message for whoever joins.
                    await consumer.position(partition)
            self._hub.open()
            self._problem = None
            return await self._dispatch_and_watch(consumer)
        except (KafkaError, TimeoutError, OSError) as error:
            return type(error).__name__
        finally:
            await consumer.stop()

    async def _dispatch_and_watch(self, consumer: AIOKafkaConsumer) -> str:
        tasks = [asyncio.create_task(self._dispatch_all(consumer)), asyncio.create_task(self._watch_lag(consumer))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _dispatch_all(self, consumer: AIOKafkaConsumer) -> str:
        while True:
            batches = await consumer.getmany(*self._partitions, timeout_ms=POLL_MS, max_records=BATCH_MAX)
            for partition, records in batches.items():
                self._dispatch(partition.partition, records)
            await asyncio.sleep(0)

    def _dispatch(self, partition: int, records: Sequence[Any]) -> None:
        for record in records:
            try:
                position, user, value = _message(record)
            except (KeyError, TypeError, ValueError):
                metrics.PUSH_SKIPPED.labels("malformed").inc()
                with contextlib.suppress(TypeError, ValueError):  # its user, if any, takes a new snapshot
                    self._hub.end_user(int(record.key or b""), RESTARTED)
            else:
                self._hub.dispatch(partition=partition, position=position, user=user, value=value)
        metrics.STREAM_DELAY_SECONDS.observe(max(0.0, time.time() - records[-1].timestamp / 1000))

    async def _watch_lag(self, consumer: AIOKafkaConsumer) -> str:
        """Compare the log's end with the position: a consumer that is cut off gets no records, like an idle one."""
        while True:
            try:
                ends = await asyncio.wait_for(consumer.end_offsets(self._partitions), PROBE_S)
                lag = sum([ends[partition] - await consumer.position(partition) for partition in self._partitions])
            except (KafkaError, TimeoutError, OSError) as error:
                # The consumer continues at its own position once Kafka is back: there is no gap, only a delay.
                self._problem = f"no answer ({type(error).__name__})"
            else:
                self._problem = None
                metrics.PUSH_LAG.set(lag)
                if lag > LAG_MAX:
                    return "lag"
            await asyncio.sleep(PROBE_S)


def _message(record: Any) -> tuple[Position, int, bytes]:
    """Return position, user and JSON object of a record.

    Raises: KeyError, TypeError, ValueError, where it lacks one.
    """
    offset, _, event = dict(record.headers)[HEADER_POSITION].partition(b".")
    value: bytes = record.value
    if not (value.startswith(b"{") and value.endswith(b"}")):
        raise ValueError("no JSON object")
    return Position(int(offset), int(event)), int(record.key), value
