"""The Appender while its broker is killed, away or stuck: nothing twice, nothing out of order, nothing stuck."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from runtime.kafka.clients import Appended, Appender, InDoubt, Outgoing
from sandbox.infra.kafka import Kafka
from schemas.errors import Retry
from tests.conftest import finish
from tests.support.runtime_kafka import PARTITIONS, make_topic, settings, stored, stored_values

SHORT_S = 2.0
"""How long an append waits in tests of a broker that is away for longer."""


@pytest.fixture(scope="module")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that tests may kill; it runs at the begin of each."""
    kafka = Kafka(tmp_path_factory.mktemp("kafka"))
    yield kafka
    kafka.kill()


@pytest.fixture
def kafka(own_kafka: Kafka) -> Kafka:
    if not own_kafka.running:
        finish(own_kafka.start())
    return own_kafka


@asynccontextmanager
async def appending(kafka: Kafka, *, timeout_s: float) -> AsyncIterator[tuple[Appender, str]]:
    """An appender that is connected, and a topic of its own that it has appended to."""
    topic = f"t{uuid4().hex}"
    await make_topic(kafka.address, topic)
    appender = Appender(settings(kafka.address, ""), client="test", timeout_s=timeout_s)
    try:
        for partition in range(PARTITIONS):
            await appender.append(topic, Outgoing(None, b"first"), partition=partition)
        yield appender, topic
    finally:
        await appender.stop()


def some(name: str, count: int = 300) -> list[Outgoing]:
    return [Outgoing(b"%d" % number, f"{name}-{number}".encode()) for number in range(count)]


async def outcomes(appender: Appender, topic: str, records: list[Outgoing]) -> list[Appended | BaseException]:
    return await asyncio.gather(*(appender.append(topic, record) for record in records), return_exceptions=True)


async def test_a_broker_that_comes_back_in_time_has_each_record_once(kafka: Kafka) -> None:
    async with appending(kafka, timeout_s=60.0) as (appender, topic):
        sent = asyncio.create_task(outcomes(appender, topic, some("before")))
        await asyncio.sleep(0.001)  # some are in flight, some wait in batches
        kafka.kill()
        while_away = asyncio.create_task(outcomes(appender, topic, some("away")))
        await kafka.start()
        results = await sent + await while_away
        after = await outcomes(appender, topic, some("after"))

    assert all(isinstance(result, Appended) for result in results + after)
    assert await stored_values_counted(kafka, topic) == Counter(
        [b"first"] * PARTITIONS + [row.value for name in ("before", "away", "after") for row in some(name)]
    )


async def test_a_broker_away_for_longer_leaves_appends_in_doubt_and_later_ones_work(kafka: Kafka) -> None:
    async with appending(kafka, timeout_s=SHORT_S) as (appender, topic):
        sent = asyncio.create_task(outcomes(appender, topic, some("before")))
        await asyncio.sleep(0.001)
        kafka.kill()
        results = await sent + await outcomes(appender, topic, some("away"))
        refused = await outcomes(appender, topic, some("refused", 10))
        await kafka.start()
        after = await outcomes(appender, topic, some("after"))
        batches = [appender.append_many(topic, number, some(f"many-{number}")) for number in range(PARTITIONS)]
        await asyncio.gather(*batches)

    doubtful = [row for row, result in zip(some("before") + some("away"), results, strict=True) if is_doubt(result)]
    assert doubtful
    assert all(isinstance(result, Appended | Retry) for result in results)
    # Without any producer there is no doubt: these were never sent.
    assert {type(result) for result in refused} == {Retry}
    assert all(isinstance(result, Appended) for result in after)
    found = await stored_values_counted(kafka, topic)
    assert {value: times for value, times in found.items() if times > 1} == {b"first": PARTITIONS}
    answered = [
        row.value for row, result in zip(some("before") + some("away"), results, strict=True) if is_place(result)
    ]
    assert set(answered) <= set(found)
    assert not set(found) & {row.value for row in some("refused", 10)}


async def test_what_got_no_answer_does_not_come_late(kafka: Kafka) -> None:
    async with appending(kafka, timeout_s=SHORT_S) as (appender, topic):
        kafka.kill()
        results = await outcomes(appender, topic, some("doubtful"))
        await kafka.start()
        await appender.append(topic, Outgoing(b"k", b"behind"), partition=0)
        # aiokafka tries again every 0.1 s: what it still held would be there before these are.
        for number in range(20):
            await appender.append(topic, Outgoing(b"k", b"%d" % number), partition=0)
            await asyncio.sleep(0.05)

    assert all(is_doubt(result) for result in results)
    found = await stored_values_counted(kafka, topic)
    assert not set(found) & {row.value for row in some("doubtful")}


async def test_a_broker_that_hangs_leaves_doubt_and_never_two_of_a_record(kafka: Kafka) -> None:
    async with appending(kafka, timeout_s=SHORT_S) as (appender, topic):
        os.kill(kafka.pid, signal.SIGSTOP)
        try:
            results = await outcomes(appender, topic, some("doubtful"))
        finally:
            os.kill(kafka.pid, signal.SIGCONT)
        await appender.append(topic, Outgoing(b"k", b"behind"), partition=0)

    assert all(is_doubt(result) for result in results)
    found = await stored_values_counted(kafka, topic)
    # What was on its way may be in the log: that is the doubt.
    assert max(times for value, times in found.items() if value != b"first") == 1
    assert found[b"behind"] == 1


async def test_many_records_are_in_the_log_up_to_the_batch_in_doubt_and_no_further(kafka: Kafka) -> None:
    values = [os.urandom(50_000) for _ in range(200)]  # 20 fit a batch

    def records(*, kill_at: int | None = None) -> Iterator[Outgoing]:
        for number, value in enumerate(values):
            if number == kill_at:
                kafka.kill()
            yield Outgoing(b"k", value)

    async with appending(kafka, timeout_s=SHORT_S) as (appender, topic):
        with pytest.raises(Retry):
            await appender.append_many(topic, 1, records(kill_at=110))
        await kafka.start()
        # A publisher begins again at the first record, never behind it.
        await appender.append_many(topic, 1, records())

    rows = [row.value for row in await stored(kafka.address, topic, 1)]
    first_time = len(rows) - 1 - len(values)
    assert rows == [b"first", *values[:first_time], *values]
    assert first_time == 100  # the broker died while the sixth batch was made


async def test_a_stop_while_the_broker_is_away_ends(kafka: Kafka) -> None:
    async with appending(kafka, timeout_s=SHORT_S) as (appender, topic):
        kafka.kill()
        sent = asyncio.create_task(outcomes(appender, topic, some("doubtful")))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(SHORT_S + 5):
            await appender.stop()
        results = await sent

    assert all(isinstance(result, Retry) for result in results)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_broker_at_all_is_a_retry_that_names_the_address(kafka: Kafka) -> None:
    kafka.kill()
    appender = Appender(settings(kafka.address, ""), client="test", timeout_s=SHORT_S)

    with pytest.raises(Retry, match=kafka.address) as refused:
        await appender.start()
    await appender.stop()

    assert not isinstance(refused.value, InDoubt)


def is_doubt(result: Appended | BaseException) -> bool:
    return isinstance(result, InDoubt)


def is_place(result: Appended | BaseException) -> bool:
    return isinstance(result, Appended)


async def stored_values_counted(kafka: Kafka, topic: str) -> Counter[bytes | None]:
    return Counter(await stored_values(kafka.address, topic))
