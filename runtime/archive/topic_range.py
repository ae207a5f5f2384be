"""Ranges of a topic's partition, read without a consumer group."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from runtime.kafka.clients import FLUSH_S_MAX, connection
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.log.segments import Record

FETCH_BYTES = 4 * 1024 * 1024
"""Bytes of one answer; Kafka returns a larger first batch whole (KIP-74)."""
RECORDS_MAX = 2_000
"""Records of one list: at 20 µs a record the event loop is free every 40 ms."""
SILENCE_S_MAX = 60.0
"""Longest wait for a partition that has more records: two timeouts of a request."""
POLL_MS = 1_000


async def records(
    settings: Settings, topic: str, partition: int, start: int, end: int
) -> AsyncGenerator[list[Any], None]:
    """Yield the records from `start` up to, but without, `end`, as lists of aiokafka's ConsumerRecords.

    Raises: Retry, where Kafka does not answer, or no longer has `start`; Halt, where an offset between is missing.
    """
    if start >= end:
        return
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=100,
        **connection(settings),
    )
    try:
        await consumer.start()
        consumer.assign([place])
        consumer.seek(place, start)
        following = start
        while following < end:
            batch = await _next(consumer, place, following)
            if batch[0].offset != following or batch[-1].offset - following + 1 != len(batch):
                raise Halt(f"{topic} {partition} has no record at an offset from {following} to {batch[-1].offset}")
            following = batch[-1].offset + 1
            yield batch if following <= end else batch[: len(batch) - (following - end)]
    except OffsetOutOfRangeError as error:
        raise Retry(f"{topic} {partition} no longer keeps offset {start}") from error
    except KafkaError as error:
        raise Retry(f"{topic} {partition} at {start}: {type(error).__name__}") from error
    finally:
        async with asyncio.timeout(FLUSH_S_MAX):
            await consumer.stop()


async def record(settings: Settings, topic: str, partition: int, offset: int) -> Record:
    """Return the record at an offset. Raises: as `records`."""
    async with aclosing(records(settings, topic, partition, offset, offset + 1)) as lists:
        async for batch in lists:
            return as_record(batch[0])
    raise AssertionError("`records` raises where it has no record")


async def _next(consumer: AIOKafkaConsumer, place: TopicPartition, following: int) -> list[Any]:
    try:
        async with asyncio.timeout(SILENCE_S_MAX):
            while not (fetched := await consumer.getmany(place, timeout_ms=POLL_MS, max_records=RECORDS_MAX)):
                pass
    except TimeoutError as error:
        raise Retry(f"{place.topic} {place.partition} at {following}: nothing within {SILENCE_S_MAX:g} s") from error
    batch: list[Any] = fetched[place]
    return batch


def as_record(record: Any) -> Record:
    """Convert a record of aiokafka's to one of the archive."""
    return Record(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
