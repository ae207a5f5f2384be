"""LogEnds on a real Kafka: ends, single records, and what is said of offsets that are not there."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from runtime.kafka.clients import Appender, Ends, LogEnds, Outgoing
from sandbox.infra.kafka import Kafka
from schemas.errors import Retry
from schemas.topics import MESSAGE_BYTES_MAX
from tests.support.runtime_kafka import PARTITIONS, make_topic, settings

LARGE = 4 * 2**20


@asynccontextmanager
async def log(address: str, prefix: str, values: list[bytes]) -> AsyncIterator[tuple[LogEnds, str]]:
    """A topic whose partition 1 has these values."""
    topic = f"{prefix}t"
    await make_topic(address, topic, **{"max.message.bytes": str(MESSAGE_BYTES_MAX)})
    appender, ends = Appender(settings(address, prefix), client="test"), LogEnds(settings(address, prefix))
    await asyncio.gather(appender.start(), ends.start())
    try:
        for value in values:
            await appender.append(topic, Outgoing(b"k", value), partition=1)
        yield ends, topic
    finally:
        await asyncio.gather(appender.stop(), ends.stop())


async def test_a_partition_begins_at_its_first_kept_record_and_ends_behind_its_last(
    kafka_address: str, topic_prefix: str
) -> None:
    async with log(kafka_address, topic_prefix, [b"0", b"1", b"2"]) as (ends, topic):
        assert await ends.ends(topic, range(PARTITIONS)) == {0: Ends(0, 0), 1: Ends(0, 3), 2: Ends(0, 0)}

        await delete_before(kafka_address, topic, partition=1, offset=2)

        assert await ends.ends(topic, [1]) == {1: Ends(2, 3)}
        assert [await ends.record(topic, 1, offset) for offset in range(4)] == [None, None, b"2", None]


async def test_a_record_is_read_whole_whatever_its_size(kafka_address: str, topic_prefix: str) -> None:
    large = os.urandom(LARGE)
    async with log(kafka_address, topic_prefix, [b"first", large, b"last"]) as (ends, topic):
        assert [await ends.record(topic, 1, offset) for offset in (1, 0, 2, 1)] == [large, b"first", b"last", large]


async def test_where_the_log_has_no_such_offset_the_answer_is_none_at_once(
    kafka_address: str, topic_prefix: str
) -> None:
    async with log(kafka_address, topic_prefix, [b"0"]) as (ends, topic), asyncio.timeout(5):
        # The next offset, one beyond, one before the beginning, an empty partition.
        missing = [(1, 1), (1, 1000), (1, -1), (0, 0)]

        assert [await ends.record(topic, *place) for place in missing] == [None] * 4
        assert await ends.record(topic, 1, 0) == b"0"


async def test_many_askers_get_each_their_own_record(kafka_address: str, topic_prefix: str) -> None:
    values = [b"%d" % number for number in range(30)]
    async with log(kafka_address, topic_prefix, values) as (ends, topic):
        found = await asyncio.gather(*(ends.record(topic, 1, offset) for offset in range(30)))

    assert found == values


async def test_a_topic_that_is_not_there_is_a_retry(kafka_address: str, topic_prefix: str) -> None:
    ends = LogEnds(settings(kafka_address, topic_prefix), timeout_s=1.0)
    await ends.start()
    try:
        with pytest.raises(Retry, match=topic_prefix):
            await ends.ends(f"{topic_prefix}nowhere", [0])
        with pytest.raises(Retry, match=topic_prefix):
            await ends.record(f"{topic_prefix}nowhere", 0, 0)
    finally:
        await ends.stop()


async def test_a_broker_that_is_away_is_a_retry_and_never_a_missing_record(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path / "kafka")
    await kafka.start()
    try:
        async with log(kafka.address, "p.", [b"0"]) as (_, topic):
            ends = LogEnds(settings(kafka.address, "p."), timeout_s=2.0)
            await ends.start()
            assert await ends.record(topic, 1, 0) == b"0"

            kafka.kill()

            with pytest.raises(Retry):
                await ends.record(topic, 1, 0, timeout_s=1.0)
            with pytest.raises(Retry):
                await ends.ends(topic, [1])
            with pytest.raises(Retry, match=kafka.address):
                await LogEnds(settings(kafka.address, "p.")).start()

            await kafka.start()
            assert await again(ends, topic) == b"0"
            await ends.stop()
    finally:
        kafka.kill()


async def again(ends: LogEnds, topic: str) -> bytes | None:
    async with asyncio.timeout(30):
        while True:
            try:
                return await ends.record(topic, 1, 0)
            except Retry:
                continue


async def delete_before(address: str, topic: str, *, partition: int, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()
