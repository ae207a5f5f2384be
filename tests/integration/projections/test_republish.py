"""A public topic filled again from the log while events go on: whole, in order, whatever ends the filling."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from projections.publish import republish
from projections.publish.kafka_records import LOCAL_PREFIXES
from projections.publish.republish import Republisher
from runtime.kafka.clients import Appender, LogEnds, Outgoing, connection
from runtime.postgres.pool import server_settings
from schemas.errors import Halt
from schemas.topics import HEADER_POSITION, PUBLIC, PUSH, TRANSACTIONS, full_name
from tests.integration.cli.test_operator import environment_of
from tests.integration.projections.test_crash import processes  # noqa: F401
from tests.integration.projections.test_publisher_kills import Life, pool, stored  # noqa: F401
from tests.integration.projections.test_stage import PARTITIONS, World, projecting, world  # noqa: F401
from tests.support.command_line import tartan
from tests.support.deduplicating_reader import DeduplicatingReader, Record, UniqueRecords

RECORDS = 40
LANES = [(TRANSACTIONS.name, number) for number in range(PARTITIONS)]


class Crash(BaseException):
    """The end of a process: nothing is tidied up behind it."""


class Dying(Appender):
    """An appender whose process ends before it sends for the nth time, or once it has."""

    left = -1
    has_sent = False

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        self.left -= 1
        if self.left == 0 and self.has_sent:
            await super().append_many(topic, partition, records)
        if self.left == 0:
            raise Crash
        await super().append_many(topic, partition, records)


class Waking(Appender):
    """An appender beside which a publisher wakes up after the first send."""

    wakes: Record | None = None

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        await super().append_many(topic, partition, records)
        if self.wakes is not None:
            key, value, headers = self.wakes
            self.wakes = None
            await super().append_many(topic, partition, [Outgoing(key, value, headers)])


DIES_AT_THIRD_SEND = """
import os, runtime.kafka
from projections.publish import republish
republish.ROWS_MAX = 5
sends, append_many = [], runtime.kafka.clients.Appender.append_many
async def dying(self, *given):
    sends.append(given)
    if len(sends) == 3:
        os.kill(os.getpid(), 9)
    await append_many(self, *given)
runtime.kafka.clients.Appender.append_many = dying
"""


@asynccontextmanager
async def republishing(
    world: World, *, appender: Appender | None = None, skips_expired: bool = False
) -> AsyncIterator[Republisher]:
    settings = world.settings
    log = LogEnds(settings)
    database = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(), server_settings=server_settings(settings, "operator")
    )
    await log.start()
    try:
        made = Republisher(
            database,
            appender or world.appender,
            log,
            settings,
            TRANSACTIONS,
            prefixes=LOCAL_PREFIXES,
            on_progress=lambda _: None,
            skips_expired=skips_expired,
        )
        await made.lock_topic()
        yield made
    finally:
        await log.stop()
        database.terminate()


async def fill(world: World, *, empties: bool, appender: Appender | None = None) -> int:
    async with republishing(world, appender=appender) as republisher:
        partitions = await republisher.hold(range(PARTITIONS), empties=empties)
        return sum([await republisher.fill(number, empties=empties) for number in partitions])


async def start_tartan(world: World, *payload: str, first: str = "") -> asyncio.subprocess.Process:
    """Start a command; `first` is what Python does before."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from cli import main as cli\n{first}\ncli.main()",
        *payload,
        env={**os.environ, **environment_of(world)},
    )


@pytest.fixture
def life() -> Life:
    return Life(random.Random(1))


async def tell(world: World, life: Life, count: int = RECORDS) -> None:
    life.go_on(count)
    await world.append(life.log)


async def empty(world: World) -> None:
    """Delete all that the topic holds."""
    name = full_name(TRANSACTIONS, world.settings.topic_prefix)
    admin = AIOKafkaAdminClient(**connection(world.settings))
    await admin.start()
    try:
        places = [TopicPartition(name, number) for number in range(PARTITIONS)]
        await admin.delete_records({place: RecordsToDelete(-1) for place in places})  # -1: up to the end
    finally:
        await admin.close()


async def kept(world: World) -> tuple[UniqueRecords, int]:
    """What a reader that begins now keeps, and how much it drops."""
    async with DeduplicatingReader(world.settings, [TRANSACTIONS]) as reader:
        await reader.drain()
        return reader.records, reader.dropped


async def wanted(pool: asyncpg.Pool) -> UniqueRecords:
    found = await stored(pool)
    return {lane: found[lane] for lane in LANES}


async def test_a_topic_filled_again_while_events_go_on_holds_all_of_them_once_and_a_reader_at_its_end_goes_on(
    world: World, pool: asyncpg.Pool, life: Life
) -> None:
    async with projecting(world), DeduplicatingReader(world.settings, (*PUBLIC, PUSH)) as reader:
        await tell(world, life)
        await world.until_projected(life.count)
        await reader.drain()
        filling = asyncio.create_task(fill(world, empties=True))
        while not filling.done():
            await tell(world, life, 2)

        assert await filling > 0
        await tell(world, life, 5)
        await world.until_projected(life.count)
        await reader.drain()

    assert (await kept(world))[0] == await wanted(pool)
    assert reader.records == await stored(pool)
    assert await world.tables.fetchval("SELECT count(*) FROM tartan.held_topics") == 0


async def test_a_filling_that_dies_at_any_send_is_gone_on_with_by_the_same_command(
    world: World, pool: asyncpg.Pool, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republish, "ROWS_MAX", 5)
    dying = Dying(world.settings, client="dying")
    deaths = 0
    async with projecting(world):
        await tell(world, life)
        await world.until_projected(life.count)
        while True:
            dying.left, dying.has_sent = 1 + deaths % 4, deaths % 3 > 0
            try:
                await fill(world, empties=True, appender=dying)
                break
            except Crash:
                deaths += 1
            await tell(world, life, 2)
        await world.until_projected(life.count)
    await dying.stop()

    assert deaths > 4
    assert (await kept(world))[0] == await wanted(pool)


async def test_a_killed_command_is_gone_on_with(
    world: World, pool: asyncpg.Pool, life: Life, processes: list[asyncio.subprocess.Process]
) -> None:
    await tell(world, life)
    async with projecting(world):
        await world.until_projected(life.count)
        await empty(world)

        killed = await start_tartan(world, "republish", "transactions", "--json", first=DIES_AT_THIRD_SEND)
        processes.append(killed)
        assert await asyncio.wait_for(killed.wait(), 60) == -9
        await tell(world, life, 5)
        told = await asyncio.to_thread(tartan, "republish", "transactions", "--json", **environment_of(world))
        await world.until_projected(life.count)

    assert told.exit_code == 0, told.output
    result = json.loads(told.output.splitlines()[-1])
    assert (result["topic"], result["events"] > 0) == ("transactions", True)
    assert (await kept(world))[0] == await wanted(pool)


async def test_given_up_it_lacks_the_history_and_nothing_that_came_since(
    world: World, pool: asyncpg.Pool, life: Life
) -> None:
    async with projecting(world):
        await tell(world, life)
        await world.until_projected(life.count)
        await empty(world)
        async with republishing(world) as republisher:
            await republisher.hold(range(PARTITIONS), empties=False)
            since = dict(await world.tables.fetch("SELECT partition, since FROM tartan.held_topics"))
            await tell(world, life, 5)
            await world.until_projected(life.count)
            for number in await republisher.held_partitions():
                await republisher.abandon(number)
        await tell(world, life, 5)
        await world.until_projected(life.count)

    found = await wanted(pool)
    assert (await kept(world))[0] == {
        (topic, number): [one for one in found[topic, number] if offset_of(one) >= since[number]]
        for topic, number in found
    }


async def test_given_up_it_sends_what_a_publisher_had_committed_and_not_sent_before_the_hold(
    world: World, pool: asyncpg.Pool, life: Life
) -> None:
    await tell(world, life)
    async with projecting(world):
        await world.until_projected(life.count)
    await empty(world)
    await world.tables.execute(
        "UPDATE tartan.published_checkpoints SET published = 0"
    )  # as if it had died after its commits

    async with republishing(world) as republisher:
        await republisher.hold(range(PARTITIONS), empties=False)
        for number in await republisher.held_partitions():
            await republisher.abandon(number)
    await tell(world, life, 5)
    async with projecting(world):
        await world.until_projected(life.count)

    assert (await kept(world))[0] == await wanted(pool)


async def test_a_partition_that_is_not_empty_is_refused_and_so_are_events_that_are_not_kept(
    world: World, life: Life
) -> None:
    await tell(world, life)
    async with projecting(world):
        await world.until_projected(life.count)
        full = await asyncio.to_thread(tartan, "republish", "transactions", **environment_of(world))
        await world.tables.execute("UPDATE projection.changesets SET events = NULL WHERE source_offset BETWEEN 2 AND 4")
        gone = await asyncio.to_thread(tartan, "republish", "transactions", "--empty", **environment_of(world))
        async with republishing(world, skips_expired=True) as republisher:
            await republisher.hold(range(PARTITIONS), empties=True)
            sent = sum([await republisher.fill(number, empties=True) for number in range(PARTITIONS)])

    assert isinstance(full.exception, Halt)
    assert "is not empty" in str(full.exception)
    assert "--empty" in str(full.exception)
    assert isinstance(gone.exception, Halt)
    assert "0@2 to 0@4, 1@2 to 1@4" in str(gone.exception)
    assert sent > 0
    assert await world.tables.fetchval("SELECT count(*) FROM tartan.held_topics") == 0


async def test_events_that_are_not_kept_are_taken_from_the_version_that_a_rebuild_has_filled_with_them(
    world: World, pool: asyncpg.Pool, life: Life
) -> None:
    await tell(world, life)
    async with projecting(world):
        await world.until_projected(life.count)
        expected = await wanted(pool)
        for options, code in (((), 0), (("--with-events",), 1), (("--with-events", "--restart"), 0)):
            done = await start_tartan(world, "rebuild", "--no-swap", "--json", *options)
            assert await asyncio.wait_for(done.wait(), 60) == code, options
        await world.tables.execute("UPDATE projection.changesets SET events = NULL")
        await fill(world, empties=True)

    assert (await kept(world))[0] == expected


async def test_what_a_publisher_that_slept_writes_into_it_is_found_and_the_partition_stays_held(
    world: World, pool: asyncpg.Pool, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republish, "ROWS_MAX", 5)
    await tell(world, life)
    waking = Waking(world.settings, client="waking")
    async with projecting(world):
        await world.until_projected(life.count)
        waking.wakes = (await wanted(pool))[LANES[0]][-1]

        with pytest.raises(Halt, match="readers would miss events"):
            await fill(world, empties=True, appender=waking)
        assert await world.tables.fetchval("SELECT count(*) FROM tartan.held_topics") == PARTITIONS
        await fill(world, empties=True)
    await waking.stop()

    assert await kept(world) == (await wanted(pool), 0)


def offset_of(record: Record) -> int:
    return int(dict(record[2])[HEADER_POSITION].partition(b".")[0])
