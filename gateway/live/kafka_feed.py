"""Reads the topic `push` for this process: all partitions, from the end, without a group.

A gap is never silent: where the reader has to begin anew, all browsers are closed and take a new snapshot.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway import metrics
from gateway.live.hub import RESTART, Ending, Hub, Position
from runtime import logs
from runtime.kafka.clients import connection
from runtime.settings import Settings
from schemas.topics import HEADER_POSITION, PUSH, full_name

BATCH_MAX = 500
"""Records handed out before the loop turns, half of what a browser's queue holds: its sender gets its turn."""

POLL_MS = 1_000
START_S_MAX = 30.0
PROBE_S = 5.0
"""How often Kafka is asked where the log ends, and how long it may take to say so."""

LAG_MAX = 20_000
"""Records behind the end at which reading on is given up: at 20,000 a second it is a second, and snapshots are
quicker than news that old."""

RESTART_S = 1.0

_log = logs.logger(__name__)


class PushReader:
    """Feeds the hub for as long as the process lives."""

    def __init__(self, settings: Settings, hub: Hub) -> None:
        self._settings = settings
        self._hub = hub
        topic = full_name(PUSH, settings.topic_prefix)
        self._partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        self._problem: str | None = "not connected yet"

    def not_ready(self) -> list[str]:
        """Why browsers get no news from here."""
        return [f"Kafka consumer: {self._problem}"] if self._problem else []

    async def run(self) -> None:
        """Read until cancelled; after each failure from the end again, with all browsers closed."""
        while True:
            reason = await self._read()
            self._problem = reason
            metrics.PUSH_RESTARTS.labels(reason).inc()
            _log.warning("push is read anew", reason=reason)
            self._hub.close(Ending(RESTART, "the stream begins anew: connect again"))
            await asyncio.sleep(RESTART_S)

    async def _read(self) -> str:
        """Read until something fails, and say what did."""
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
                await self._start(consumer)
            self._hub.open()
            self._problem = None
            return await self._both(consumer)
        except (KafkaError, TimeoutError, OSError) as error:
            return type(error).__name__
        finally:
            await consumer.stop()

    async def _start(self, consumer: AIOKafkaConsumer) -> None:
        await consumer.start()
        consumer.assign(self._partitions)
        await consumer.seek_to_end(*self._partitions)
        for partition in self._partitions:
            # Asked now, while nobody listens: what is appended from here on is news for whoever joins.
            await consumer.position(partition)

    async def _both(self, consumer: AIOKafkaConsumer) -> str:
        """Read and watch; the first that ends ends the other."""
        tasks = [asyncio.create_task(self._feed(consumer)), asyncio.create_task(self._watch(consumer))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, consumer: AIOKafkaConsumer) -> str:
        while True:
            batches = await consumer.getmany(*self._partitions, timeout_ms=POLL_MS, max_records=BATCH_MAX)
            for where, records in batches.items():
                self._hand_out(where.partition, records)
            await asyncio.sleep(0)

    def _hand_out(self, partition: int, records: Sequence[Any]) -> None:
        for record in records:
            try:
                position, user, value = _message(record)
            except (KeyError, TypeError, ValueError):
                self._skip(record.key)
            else:
                self._hub.dispatch(partition=partition, position=position, user=user, value=value)
        metrics.STREAM_DELAY_SECONDS.observe(max(0.0, time.time() - records[-1].timestamp / 1000))

    def _skip(self, key: bytes | None) -> None:
        """Pass over what nobody can place; whoever it was for takes a new snapshot."""
        metrics.PUSH_SKIPPED.labels("malformed").inc()
        with contextlib.suppress(TypeError, ValueError):
            self._hub.end_user(int(key or b""), Ending(RESTART, "the stream begins anew: connect again"))

    async def _watch(self, consumer: AIOKafkaConsumer) -> str:
        """Ask where the log ends: a reader that is cut off gets nothing, and so does one without news."""
        while True:
            try:
                ends = await asyncio.wait_for(consumer.end_offsets(self._partitions), PROBE_S)
                lag = sum([ends[one] - await consumer.position(one) for one in self._partitions])
            except (KafkaError, TimeoutError, OSError) as error:
                # The consumer goes on from its own place once Kafka is back: there is no gap, only a delay.
                self._problem = f"no answer ({type(error).__name__})"
            else:
                self._problem = None
                metrics.PUSH_LAG.set(lag)
                if lag > LAG_MAX:
                    return "lag"
            await asyncio.sleep(PROBE_S)


def _message(record: Any) -> tuple[Position, int, bytes]:
    """Position, user and JSON object of a record. Raises: KeyError, TypeError, ValueError, where it has not all."""
    offset, _, event = dict(record.headers)[HEADER_POSITION].partition(b".")
    value: bytes = record.value
    if not (value.startswith(b"{") and value.endswith(b"}")):
        raise ValueError("no JSON object")
    return Position(int(offset), int(event)), int(record.key), value
