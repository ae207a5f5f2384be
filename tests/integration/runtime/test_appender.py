"""The Appender on a real Kafka that is well: place, order, batches, sizes, and callers that give up."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.kafka.clients import BATCH_BYTES, Appended, Appender, Outgoing, partition_of
from schemas.errors import Quarantine, Retry
from schemas.topics import MESSAGE_BYTES_MAX
from tests.support.runtime_kafka import PARTITIONS, make_topic, settings, stored, stored_values

RECORD_BYTES_MAX = 4 * 1024 * 1024
"""What a changeset fills at most (docs: DESIGN, decision 1)."""


@asynccontextmanager
async def appending(address: str, prefix: str, *, timeout_s: float = 30.0) -> AsyncIterator[Appender]:
    appender = Appender(settings(address, prefix), client="test", timeout_s=timeout_s)
    try:
        yield appender
    finally:
        await appender.stop()


async def test_an_append_says_where_the_record_is(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)

    async with appending(kafka_address, topic_prefix) as appender:
        first = await appender.append(topic, Outgoing(b"k", b"one", (("h", b"1"),), 1_700_000_000_000), partition=2)
        second = await appender.append(topic, Outgoing(b"k", b"two"), partition=2)

    assert (first, second) == (Appended(2, 0), Appended(2, 1))
    records = await stored(kafka_address, topic, 2)
    assert records[0] == (0, b"k", b"one", (("h", b"1"),), 1_700_000_000_000)
    assert records[1][:4] == (1, b"k", b"two", ())


async def test_a_key_goes_where_partition_of_says(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)
    keys = [str(number**7).encode() for number in range(50)] + [b"", b"a", b"ab", b"abc", "né".encode()]

    async with appending(kafka_address, topic_prefix) as appender:
        places = await asyncio.gather(*(appender.append(topic, Outgoing(key, b"v")) for key in keys))

    assert [place.partition for place in places] == [partition_of(key, PARTITIONS) for key in keys]


async def test_records_appended_at_once_have_each_their_own_place(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)
    values = [b"%d" % number for number in range(500)]

    async with appending(kafka_address, topic_prefix) as appender:
        places = await asyncio.gather(*(appender.append(topic, Outgoing(b"k", value), partition=0) for value in values))

    by_offset = {row.offset: row.value for row in await stored(kafka_address, topic, 0)}
    assert {place.offset: value for place, value in zip(places, values, strict=True)} == by_offset


async def test_many_records_are_in_one_partition_in_order_over_several_batches(
    kafka_address: str, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": str(BATCH_BYTES)})
    # Random, so that compression makes no batch smaller: 3.4 MB do not fit three batches of 1 MiB.
    values = [os.urandom(1000) for _ in range(3_400)]

    async with appending(kafka_address, topic_prefix) as appender:
        await appender.append_many(topic, 1, (Outgoing(b"k%d" % (n % 7), value) for n, value in enumerate(values)))

    assert [row.value for row in await stored(kafka_address, topic, 1)] == values
    assert not await stored(kafka_address, topic, 0)


async def test_no_records_are_no_batch(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)

    async with appending(kafka_address, topic_prefix) as appender:
        await appender.append_many(topic, 1, [])

    assert not await stored(kafka_address, topic, 1)


@pytest.mark.parametrize("before", [0, 3])
async def test_a_record_larger_than_a_batch_is_refused_and_what_came_before_it_is_in_the_log(
    kafka_address: str, topic_prefix: str, before: int
) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": str(MESSAGE_BYTES_MAX)})
    records = [Outgoing(b"k", b"%d" % number) for number in range(before)]
    records += [Outgoing(b"k", os.urandom(BATCH_BYTES)), Outgoing(b"k", b"behind")]

    async with appending(kafka_address, topic_prefix) as appender:
        with pytest.raises(Quarantine, match=f"does not fit a batch of {BATCH_BYTES} bytes"):
            await appender.append_many(topic, 0, records)

    assert [row.value for row in await stored(kafka_address, topic, 0)] == [b"%d" % n for n in range(before)]


async def test_the_largest_changeset_is_one_record(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": str(MESSAGE_BYTES_MAX)})
    sealed = os.urandom(RECORD_BYTES_MAX + 64 * 1024)

    async with appending(kafka_address, topic_prefix) as appender:
        alone = await appender.append(topic, Outgoing(b"k", sealed), partition=0)
        # Behind a batch that is being filled, it waits for a batch of its own.
        among = await asyncio.gather(
            *(appender.append(topic, Outgoing(b"k", value), partition=1) for value in (b"small", sealed, b"small"))
        )

    assert alone == Appended(0, 0)
    assert sorted(place.offset for place in among) == [0, 1, 2]
    assert [row.value for row in await stored(kafka_address, topic, 0)] == [sealed]


async def test_a_record_larger_than_the_topic_takes_is_refused_and_blocks_nothing(
    kafka_address: str, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": "1048576"})

    async with appending(kafka_address, topic_prefix) as appender:
        assert await appender.append(topic, Outgoing(b"k", b"before"), partition=0) == Appended(0, 0)
        with pytest.raises(Quarantine, match=r"max\.message\.bytes"):
            await appender.append(topic, Outgoing(b"k", os.urandom(2 * 2**20)), partition=0)
        with pytest.raises(Quarantine, match=f"exceeds {MESSAGE_BYTES_MAX} bytes"):
            await appender.append(topic, Outgoing(b"k", bytes(MESSAGE_BYTES_MAX)), partition=0)
        # The refused batch has used up a sequence number: from the same producer the broker would take nothing more.
        assert await appender.append(topic, Outgoing(b"k", b"after"), partition=0) == Appended(0, 1)
        await appender.append_many(topic, 0, [Outgoing(b"k", b"many")])

    assert [row.value for row in await stored(kafka_address, topic, 0)] == [b"before", b"after", b"many"]


async def test_a_batch_behind_one_that_was_refused_is_not_in_the_log(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": "100000"})
    values = [os.urandom(1000) for _ in range(1_050)]  # a full batch, and one that the topic would take

    async with appending(kafka_address, topic_prefix) as appender:
        with pytest.raises(Quarantine):
            await appender.append_many(topic, 0, (Outgoing(b"k", value) for value in values))
        assert not await stored(kafka_address, topic, 0)
        await appender.append_many(topic, 0, [Outgoing(b"k", b"small")])

    assert [row.value for row in await stored(kafka_address, topic, 0)] == [b"small"]


async def test_a_refused_record_leaves_other_partitions_their_answers(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic, **{"max.message.bytes": "1048576"})
    values = [b"%d" % number for number in range(200)]

    async with appending(kafka_address, topic_prefix) as appender:
        await asyncio.gather(*(appender.append(topic, Outgoing(b"k", b"warm"), partition=n) for n in range(3)))
        refused, *answered = await asyncio.gather(
            appender.append(topic, Outgoing(b"k", os.urandom(2 * 2**20)), partition=0),
            *(appender.append(topic, Outgoing(b"k", value), partition=1 + n % 2) for n, value in enumerate(values)),
            return_exceptions=True,
        )

    assert isinstance(refused, Quarantine)
    assert all(isinstance(place, Appended) for place in answered)
    assert sorted(await stored_values(kafka_address, topic)) == sorted([b"warm"] * 3 + values)


async def test_a_caller_that_gives_up_does_not_take_its_record_back(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)

    async with appending(kafka_address, topic_prefix) as appender:
        await appender.append(topic, Outgoing(b"k", b"warm"), partition=0)
        callers = [
            asyncio.create_task(appender.append(topic, Outgoing(b"k", b"%d" % n), partition=0)) for n in range(9)
        ]
        await asyncio.sleep(0)  # each has put its record into the batch
        for caller in callers[::2]:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)

    assert [isinstance(result, asyncio.CancelledError) for result in results] == [n % 2 == 0 for n in range(9)]
    values = [row.value for row in await stored(kafka_address, topic, 0)]
    assert values == [b"warm", *(b"%d" % n for n in range(9))]


async def test_a_topic_that_is_not_there_is_a_retry(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"

    async with appending(kafka_address, topic_prefix, timeout_s=1.0) as appender:
        with pytest.raises(Retry, match="takes no record"):
            await appender.append(topic, Outgoing(b"k", b"early"))
        await make_topic(kafka_address, topic)
        await appender.append(topic, Outgoing(b"k", b"late"))

    assert await stored_values(kafka_address, topic) == [b"late"]


async def test_after_its_stop_an_appender_takes_nothing(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}t"
    await make_topic(kafka_address, topic)
    appender = Appender(settings(kafka_address, topic_prefix), client="test")
    await appender.start()
    await appender.append(topic, Outgoing(b"k", b"v"))

    await appender.stop()
    await appender.stop()

    with pytest.raises(Retry, match="stopping"):
        await appender.append(topic, Outgoing(b"k", b"v"))
    assert asyncio.all_tasks() == {asyncio.current_task()}
