"""A partition of a topic as it is kept, from one offset to another, without a consumer group."""

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
"""Of one answer; Kafka gives a first batch that is larger whole (KIP-74)."""
RECORDS_MAX = 2_000
"""Of one list: at 20 µs a record the event loop is free every 40 ms."""
SILENCE_S_MAX = 60.0
"""How long a partition that has more may give nothing: two of a request's timeouts."""
POLL_MS = 1_000


async def records(
    settings: Settings, topic: str, partition: int, start: int, end: int
) -> AsyncGenerator[list[Any], None]:
    """The records from `start` up to `end`, which is not given, as aiokafka's ConsumerRecords in lists.

    Raises: Retry, where Kafka does not answer, or no longer keeps `start`; Halt, where an offset between is missing.
    """
    if start >= end:
        return
    where = TopicPartition(topic, partition)
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
        consumer.assign([where])
        consumer.seek(where, start)
        following = start
        while following < end:
            batch = await _next(consumer, where, following)
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
    """The record at an offset that is kept. Raises: as `records`."""
    async with aclosing(records(settings, topic, partition, offset, offset + 1)) as lists:
        async for found in lists:
            return as_record(found[0])
    raise AssertionError("one was asked for, and `records` raises where it gives none")


async def _next(consumer: AIOKafkaConsumer, where: TopicPartition, following: int) -> list[Any]:
    try:
        async with asyncio.timeout(SILENCE_S_MAX):
            while not (found := await consumer.getmany(where, timeout_ms=POLL_MS, max_records=RECORDS_MAX)):
                pass
    except TimeoutError as error:
        raise Retry(f"{where.topic} {where.partition} at {following}: nothing within {SILENCE_S_MAX:g} s") from error
    batch: list[Any] = found[where]
    return batch


def as_record(found: Any) -> Record:
    """A record of aiokafka's as the archive keeps it."""
    return Record(found.offset, found.timestamp, found.key, found.value, tuple(found.headers))
