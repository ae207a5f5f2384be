"""Helpers for tests on Kafka: create a topic, read all records of a partition."""

import asyncio
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from runtime.settings import Settings

PARTITIONS = 3


class Stored(NamedTuple):
    """A record of the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


def settings(address: str, prefix: str) -> Settings:
    return Settings(kafka_address=address, topic_prefix=prefix, partitions=PARTITIONS)


async def make_topic(address: str, name: str, *, partitions: int = PARTITIONS, **configs: str) -> None:
    """Create a topic, and wait until the broker describes it, which comes after its answer."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        async with asyncio.timeout(10):
            while len((await admin.describe_topics([name]))[0]["partitions"]) < partitions:
                await asyncio.sleep(0.01)
    finally:
        await admin.close()


async def stored(address: str, topic: str, partition: int) -> list[Stored]:
    """Read all records of a partition."""
    place, records = TopicPartition(topic, partition), []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address,
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=32 * 2**20,
        fetch_max_bytes=32 * 2**20,
    )
    async with consumer:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        end = (await consumer.end_offsets([place]))[place]
        while await consumer.position(place) < end:
            for batch in (await consumer.getmany(place, timeout_ms=1000)).values():
                records += [Stored(row.offset, row.key, row.value, tuple(row.headers), row.timestamp) for row in batch]
    return records


async def stored_values(address: str, topic: str) -> list[bytes | None]:
    """Read the values of all records of a topic."""
    return [row.value for number in range(PARTITIONS) for row in await stored(address, topic, number)]
