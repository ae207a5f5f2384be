"""The port of the log: memory and a real Kafka give the same offsets, order and ends."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from runtime.kafka import topics
from runtime.kafka.clients import Appender, InDoubt, LogEnds
from runtime.settings import Settings
from sandbox.simulation.engine.kafka import Broker, BrokerClient
from sandbox.simulation.engine.loop import Process, run
from sandbox.simulation.engine.network import Connection, ProcessFaults
from schemas.errors import Retry
from schemas.topics import CHANGESETS, full_name
from streams.app import ChangesetLog
from streams.ports import Log


def in_memory(broker: Broker, faults: ProcessFaults) -> BrokerClient:
    return BrokerClient(broker, Connection(Process("w1"), random.Random(1), faults))


@pytest.fixture(params=["memory", "kafka"])
async def log(request: pytest.FixtureRequest, kafka_address: str, topic_prefix: str) -> AsyncIterator[Log]:
    if request.param == "memory":
        faults = ProcessFaults()
        yield in_memory(Broker(random.Random(1), faults, partitions=3), faults)
        return
    settings = Settings(kafka_address=kafka_address, topic_prefix=topic_prefix, partitions=3)
    await topics.apply(settings)
    appender, ends = Appender(settings, client="contract"), LogEnds(settings)
    await appender.start()
    await ends.start()
    yield ChangesetLog(appender, ends, full_name(CHANGESETS, topic_prefix))
    await ends.stop()
    await appender.stop()


async def test_offsets_rise_by_one_in_each_partition_and_the_end_is_behind_the_last(log: Log) -> None:
    offsets = [await log.append(partition, b"1", b"value") for partition in (0, 1, 0, 0, 2)]

    assert offsets == [0, 0, 1, 2, 0]
    assert [await log.end(partition) for partition in (0, 1, 2)] == [3, 1, 1]


async def test_an_empty_partition_ends_at_zero(log: Log) -> None:
    assert await log.end(2) == 0


async def test_appends_at_once_have_an_offset_each(log: Log) -> None:
    offsets = await asyncio.gather(*(log.append(1, b"1", b"value") for _ in range(20)))

    assert sorted(offsets) == list(range(20))
    assert await log.end(1) == 20


def test_an_append_without_an_answer_is_in_doubt_whether_or_not_it_landed() -> None:
    run(_in_doubt)


async def _in_doubt() -> None:
    faults = ProcessFaults()
    broker = Broker(random.Random(4), faults, partitions=1)
    broker.doubt_share = 1.0
    log = in_memory(broker, faults)

    for _ in range(12):
        with pytest.raises(InDoubt):
            await log.append(0, b"1", b"value")

    await asyncio.sleep(300)
    kinds = faults.counts
    assert sum(kinds.values()) == 12
    assert min(kinds.values()) > 0
    landed = kinds["append_in_doubt_now"] + kinds["append_in_doubt_later"]
    assert broker.topic("changesets").end(0) == landed


async def test_a_log_that_is_away_takes_nothing() -> None:
    faults = ProcessFaults()
    broker = Broker(random.Random(4), faults, partitions=1)
    broker.away_until = asyncio.get_running_loop().time() + 60

    log = in_memory(broker, faults)

    with pytest.raises(Retry):
        await log.append(0, b"1", b"value")
    with pytest.raises(Retry):
        await log.end(0)
    assert broker.topic("changesets").end(0) == 0
