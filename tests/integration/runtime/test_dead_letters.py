"""Dead letters on a real Postgres and a real Kafka."""

import asyncio
import time
from datetime import timedelta

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from runtime.incidents import dead_letters, incidents
from runtime.incidents.dead_letters import LETTERS_MAX, NewDeadLetter
from runtime.kafka import topics as cluster
from runtime.kafka.clients import Appender, Outgoing, connection
from runtime.postgres import clock
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from runtime.version import code_version
from schemas import topics
from schemas.encoding import codec
from schemas.errors import Quarantine, Retry
from schemas.log.records import DeadLetter

PARTITIONS = 2
WAIT_S_MAX = 30.0


def letter(offset: int | None = 7, item: str = "A", **fields: object) -> NewDeadLetter:
    usual: dict[str, object] = {
        "stage": "projections",
        "topic": "changesets",
        "partition": 1,
        "reason": "does not open",
        "key": b"1",
        "value": b"sealed",
    }
    return NewDeadLetter(**{**usual, **fields}, source_offset=offset, item_id=item)  # type: ignore[arg-type]


async def quarantine(connection: asyncpg.Connection, item: str, first: int = 7, redrive: int | None = None) -> None:
    await connection.execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader, redrive_offset)"
        " VALUES ($1, $2, 1, 'x', 'projections', $3)",
        item,
        first,
        redrive,
    )


async def test_a_record_has_one_letter_however_often_it_is_read(connection: asyncpg.Connection) -> None:
    await dead_letters.write(connection, [letter(), letter(8)])

    await dead_letters.write(connection, [letter(reason="another time")])

    found = await dead_letters.list_letters(connection)
    assert [(one.source_offset, one.reason) for one in found] == [(8, "does not open"), (7, "does not open")]
    assert {one.code_version for one in found} == {code_version()}
    assert [one.value_bytes for one in found] == [6, 6]


async def test_an_update_without_a_record_has_one_open_letter_that_counts(connection: asyncpg.Connection) -> None:
    failing = letter(None, stage="streams", key=None, value=None)
    await dead_letters.write(connection, [failing])

    await dead_letters.write(connection, [failing._replace(reason="too large")])

    [open_one] = await dead_letters.list_letters(connection)
    assert (open_one.attempts, open_one.reason) == (2, "too large")
    await dead_letters.mark_redriven(connection, "streams", {"A": 12})
    await dead_letters.write(connection, [failing])
    assert [one.attempts for one in await dead_letters.list_letters(connection)] == [1, 2]


async def test_a_redrive_ends_the_letters_of_its_stage_below_it(connection: asyncpg.Connection) -> None:
    await dead_letters.write(
        connection, [letter(7), letter(9), letter(7, "B", partition=0), letter(None, stage="streams")]
    )

    await dead_letters.mark_redriven(connection, "projections", {"A": 9})

    still = await dead_letters.list_letters(connection, open_only=True)
    assert [(one.stage, one.item_id, one.source_offset) for one in still] == [
        ("streams", "A", None),
        ("projections", "B", 7),
        ("projections", "A", 9),
    ]


async def test_letters_are_listed_newest_first_in_pages(connection: asyncpg.Connection) -> None:
    await dead_letters.write(connection, [letter(offset) for offset in range(5)])

    first = await dead_letters.list_letters(connection, limit=2)
    second = await dead_letters.list_letters(connection, limit=2, before=first[-1].number)

    assert [one.source_offset for one in (*first, *second)] == [4, 3, 2, 1]
    assert await dead_letters.list_letters(connection, item_id="B") == []
    assert await dead_letters.list_letters(connection, stage="streams") == []


async def test_one_letter_is_shown_with_its_original(connection: asyncpg.Connection) -> None:
    await dead_letters.write(connection, [letter()])
    await quarantine(connection, "A")
    [kept] = await dead_letters.list_letters(connection)

    assert await dead_letters.find(connection, kept.number) == (kept, b"1", b"sealed")
    assert kept.is_quarantined
    assert await dead_letters.find(connection, kept.number + 1) is None


async def test_a_purge_leaves_what_is_young_and_what_is_still_quarantined(connection: asyncpg.Connection) -> None:
    await dead_letters.write(connection, [letter(1, "done"), letter(2, "quarantined"), letter(3, "young")])
    await connection.execute(
        "UPDATE tartan.dead_letters SET quarantined_at = quarantined_at - interval '2 days' WHERE item_id <> 'young'"
    )
    await quarantine(connection, "quarantined")
    await quarantine(connection, "done", redrive=9)
    before = await connection.fetchval("SELECT now() - interval '1 day'")
    numbers = {one.item_id: one.number for one in await dead_letters.list_letters(connection)}

    assert await dead_letters.purge(connection, before, dry_run=True) == [numbers["done"]]
    assert await dead_letters.purge(connection, before) == [numbers["done"]]
    assert {one.item_id for one in await dead_letters.list_letters(connection)} == {"quarantined", "young"}

    assert await dead_letters.purge(connection, None, number=numbers["quarantined"]) == [numbers["quarantined"]]
    assert {one.item_id for one in await dead_letters.list_letters(connection)} == {"young"}


async def test_a_purge_without_time_and_number_deletes_nothing(connection: asyncpg.Connection) -> None:
    await dead_letters.write(connection, [letter()])

    assert await dead_letters.purge(connection, None) == []


async def test_the_rate_counts_a_readers_quarantines_within_the_window(connection: asyncpg.Connection) -> None:
    now = await connection.fetchval("SELECT now()")
    for number in range(3):
        await quarantine(connection, f"I{number}")
    await connection.execute(
        "UPDATE tartan.quarantines SET quarantined_at = $1 WHERE item_id = 'I0'", now - timedelta(seconds=60)
    )
    await connection.execute(
        "UPDATE tartan.quarantines SET quarantined_at = $1, reader = 'streams' WHERE item_id = 'I1'", now
    )
    await connection.execute("UPDATE tartan.quarantines SET quarantined_at = $1 WHERE item_id = 'I2'", now)
    await clock.set_clock(connection, now + timedelta(seconds=1))

    assert await dead_letters.count_quarantined(connection, "projections", 30.0) == 1
    assert await dead_letters.count_quarantined(connection, "projections", 62.0) == 2
    await clock.set_clock(connection, now + timedelta(seconds=120))
    assert await dead_letters.count_quarantined(connection, "projections", 62.0) == 0


class Refusing:
    """An appender that refuses as told, and keeps what it takes."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[Outgoing] = []

    async def append(self, topic: str, record: Outgoing) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(record)


async def test_a_letter_that_no_topic_takes_is_told_without_its_original(
    connection: asyncpg.Connection, database: str
) -> None:
    await dead_letters.write(connection, [letter()])
    appender = Refusing(Quarantine("exceeds 16777216 bytes"))

    async with asyncpg.create_pool(database, min_size=0, max_size=1) as pool:
        assert await dead_letters.publish(pool, appender, "topic") == 1  # type: ignore[arg-type]
        assert await dead_letters.publish(pool, appender, "topic") == 0  # type: ignore[arg-type]

    [told] = [codec.decode(DeadLetter, one.value or b"") for one in appender.taken]
    assert (told.source_offset, told.value) == (7, None)


async def test_letters_stay_unpublished_where_kafka_is_away(connection: asyncpg.Connection, database: str) -> None:
    await dead_letters.write(connection, [letter(1), letter(2)])

    async with asyncpg.create_pool(database, min_size=0, max_size=1) as pool:
        for _ in range(2):
            with pytest.raises(Retry):
                await dead_letters.publish(pool, Refusing(Retry("away")), "topic")  # type: ignore[arg-type]

    assert [one.published_at for one in await dead_letters.list_letters(connection)] == [None, None]


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> Settings:
    settings = Settings(
        kafka_address=kafka_address, topic_prefix=topic_prefix, postgres_dsn=database, partitions=PARTITIONS
    )  # type: ignore[arg-type]
    await cluster.apply(settings)
    return settings


async def told(settings: Settings) -> list[tuple[bytes | None, DeadLetter]]:
    """All that is on the topic."""
    consumer = AIOKafkaConsumer(
        group_id=None, enable_auto_commit=False, auto_offset_reset="none", **connection(settings)
    )
    await consumer.start()
    found: list[tuple[bytes | None, DeadLetter]] = []
    try:
        for number in range(PARTITIONS):
            where = TopicPartition(topics.full_name(topics.DEAD_LETTERS, settings.topic_prefix), number)
            end = (await consumer.end_offsets([where]))[where]
            consumer.assign([where])
            consumer.seek(where, 0)
            while await consumer.position(where) < end:
                records = (await consumer.getmany(where, timeout_ms=500)).get(where, [])
                found += [(record.key, codec.decode(DeadLetter, record.value)) for record in records]
    finally:
        await consumer.stop()
    return found


async def test_several_processes_publish_each_letter_once(world: Settings, connection: asyncpg.Connection) -> None:
    count = 3 * LETTERS_MAX + 1
    await dead_letters.write(connection, [letter(offset, f"I{offset}") for offset in range(count)])
    pool, appender = await open_pool(world, stage="test", size=4), Appender(world, client="test")
    await appender.start()
    loops = [asyncio.create_task(dead_letters.run(pool, appender, world)) for _ in range(3)]
    try:
        deadline = time.monotonic() + WAIT_S_MAX
        while await connection.fetchval("SELECT count(*) FROM tartan.dead_letters WHERE published_at IS NULL"):
            assert time.monotonic() < deadline, "too late"
            await asyncio.sleep(0.05)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await appender.stop()
        await pool.close()

    found = await told(world)
    assert sorted(one.source_offset or 0 for _, one in found) == list(range(count))
    key, first = next(pair for pair in found if pair[1].source_offset == 0)
    quarantined_at = await connection.fetchval("SELECT quarantined_at FROM tartan.dead_letters WHERE source_offset = 0")
    assert key == b"1"
    assert first == DeadLetter(
        "projections",
        "changesets",
        1,
        0,
        "I0",
        "does not open",
        1,
        code_version(),
        round(quarantined_at.timestamp() * 1_000_000),
        b"1",
        b"sealed",
    )


async def test_the_incident_of_a_stop_ends_after_a_quiet_window(
    world: Settings, connection: asyncpg.Connection
) -> None:
    await incidents.report(connection, incidents.DEAD_LETTERS, "projections", "3 Items quarantined")
    await incidents.report(connection, incidents.DEAD_LETTERS, "streams", "still so")
    await connection.execute(
        "UPDATE tartan.incidents SET last_at = last_at - make_interval(secs => $1) WHERE subject = 'projections'",
        world.dead_letters_window_s + 1,
    )
    pool = await open_pool(world, stage="test", size=2)
    loop = asyncio.create_task(dead_letters.run(pool, Refusing(), world))  # type: ignore[arg-type]
    open_ones = "SELECT array_agg(subject) FROM tartan.incidents WHERE closed_at IS NULL"
    try:
        deadline = time.monotonic() + WAIT_S_MAX
        while await connection.fetchval(open_ones) != ["streams"]:
            assert time.monotonic() < deadline, "too late"
            await asyncio.sleep(0.02)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await pool.close()
