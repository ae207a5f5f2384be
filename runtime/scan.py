"""Reads a part of a topic once, from its beginning to an end that was fixed before, without a consumer group. Shell."""

from collections.abc import AsyncIterator, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from runtime.kafka import Ends, LogEnds, connection
from runtime.reader import Received
from runtime.settings import Settings
from schemas.errors import Retry
from schemas.topics import MESSAGE_BYTES_MAX

RECORDS_AT_ONCE = 2_000
SILENT_S_MAX = 30.0
"""A broker that has records and gives none for so long is away."""
FETCH_BYTES = 4 * 1024 * 1024
"""Of one fetch of one partition; a larger first record is given whole (KIP-74)."""


async def whole(settings: Settings, topic: str) -> dict[int, Ends]:
    """What each partition of a topic has now. Raises: Retry, where Kafka does not answer."""
    ends = LogEnds(settings)
    try:
        await ends.start()
        return await ends.ends(topic, range(settings.partitions))
    finally:
        await ends.stop()


async def scan(settings: Settings, topic: str, spans: Mapping[int, Ends]) -> AsyncIterator[Received]:
    """Give the records of these spans, in order within each partition, the partitions in any order.

    A partition of which nothing is left ends early: what its retention deletes meanwhile is not given.
    Memory: one fetch a partition.
    Raises: Retry, where Kafka does not answer.
    """
    places = {TopicPartition(topic, number): span for number, span in spans.items() if span.start < span.end}
    if not places:
        return
    consumer = AIOKafkaConsumer(
        group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
        max_partition_fetch_bytes=FETCH_BYTES, fetch_max_bytes=2 * MESSAGE_BYTES_MAX, **connection(settings),
    )  # fmt: skip
    try:
        await consumer.start()
        consumer.assign(list(places))
        for place, span in places.items():
            consumer.seek(place, span.start)
        while places:
            fetched = await consumer.getmany(
                *places, timeout_ms=int(SILENT_S_MAX * 1000), max_records=RECORDS_AT_ONCE
            )  # fmt: skip
            for place, rows in fetched.items():
                for row in rows:
                    if row.offset < places[place].end:
                        yield _received(row)
            done = [place for place, span in places.items() if await consumer.position(place) >= span.end]
            if not fetched and not done:
                raise Retry(f"{topic}: nothing came for {SILENT_S_MAX:g} s")
            consumer.pause(*done)
            for place in done:
                del places[place]
    except KafkaError as error:
        raise Retry(f"{topic} cannot be read: {type(error).__name__}") from error
    finally:
        await consumer.stop()


def _received(row: ConsumerRecord[bytes, bytes]) -> Received:
    return Received(row.partition, row.offset, row.key, row.value or b"", dict(row.headers), row.timestamp)
