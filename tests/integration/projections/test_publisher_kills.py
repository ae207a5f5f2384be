"""The publisher killed at random points, stopped and woken while another publishes, its topics emptied under it.

A reader that keeps the reader's rule has then got every event once, in order, of each topic.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from projections.publish import kafka_records
from projections.publish.outbox import Outbox
from runtime.crash_points import STOP_VARIABLE, CrashPoint
from runtime.kafka.clients import connection
from schemas.topics import PUBLIC, PUSH
from tests.integration.projections.test_crash import processes, run  # noqa: F401
from tests.integration.projections.test_stage import PARTITIONS, World, world  # noqa: F401
from tests.support.deduplicating_reader import DeduplicatingReader, UniqueRecords
from tests.support.examples import examples
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

KILLS = examples(10)
POINTS = (CrashPoint.PROJECT_AFTER_COMMIT, CrashPoint.PUBLISH_BETWEEN_TOPICS, CrashPoint.PUBLISH_AFTER_SEND, None)
"""None: whenever the signal comes."""
BATCHES = 8
"""Of two records at most, in what a process finds at its start; each point is passed once or more in each."""
END_S_MAX = 60.0
ASLEEP = {
    "TARTAN_SESSION_TIMEOUT_S": "6",  # the shortest that a broker grants
    "TARTAN_LOCK_TIMEOUT_S": "2",
    "TARTAN_STATEMENT_TIMEOUT_S": "3",
    "TARTAN_TRANSACTION_TIMEOUT_S": "3",
}
"""A stopped process soon loses its partitions and its locks."""
WARM = "import projections.app, uvloop, sys; sys.stdin.readline()"
"""Imports take half of a start: the next process does them while the one before it works."""


class Life:
    """Users whose banks have something to say for ever."""

    def __init__(self, chance: random.Random) -> None:
        # Of this hour: events older than a topic's retention are forgotten once they are published.
        self.log = Log(clock_us=int(time.time()) * 1_000_000 - 3_600_000_000)
        self.count = 0
        self._chance = chance
        self._told: dict[int, list[str]] = {1: [], 2: [], 3: []}
        for user in self._told:
            self.log.link(f"item{user}", user, *balance(account()))
            self.count += 1

    def go_on(self, records: int) -> None:
        """Append updates of random users: additions, changes, removals, balances."""
        for _ in range(records):
            user = self._chance.choice(list(self._told))
            told = self._told[user]
            self.count += 1
            amount = str(self._chance.randrange(1, 10_000))
            said = added(*(transaction(f"T{self.count}-{number}", amount) for number in range(3)))
            if told:
                said += modified(transaction(self._chance.choice(told), amount))
            if len(told) > 20:
                said += removed(told.pop(0))
            told.append(f"T{self.count}-0")
            self.log.sync(f"item{user}", *said, *balance(account(current=amount)), user=user)


@pytest.fixture
async def reader(world: World) -> AsyncIterator[DeduplicatingReader]:
    async with DeduplicatingReader(world.settings, (*PUBLIC, PUSH)) as made:
        yield made


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        database, min_size=1, max_size=2, server_settings={"search_path": "projection, tartan"}
    ) as made:
        yield made


async def stored(pool: asyncpg.Pool) -> UniqueRecords:
    """What is to be published of all net events in the table `changesets`, by topic and partition."""
    outbox = Outbox(pool)
    found: UniqueRecords = {(topic.name, number): [] for topic in (*PUBLIC, PUSH) for number in range(PARTITIONS)}
    for number in range(PARTITIONS):
        at = 0
        while rows := await outbox.read_changesets(number, at, 2**62):
            for lane, outgoing in kafka_records.build_records(rows).items():
                found[lane.topic.name, number] += [(one.key, one.value, tuple(one.headers)) for one in outgoing]
            at = rows[-1].offset + 1
    return found


async def empty(world: World, reader: DeduplicatingReader, lanes: Iterable[tuple[str, int]]) -> None:
    """Delete what the reader has read of these, as their retention would."""
    admin = AIOKafkaAdminClient(**connection(world.settings))
    await admin.start()
    try:
        await admin.delete_records({place: RecordsToDelete(at) for place, at in await reader.places(lanes)})
    finally:
        await admin.close()


@pytest.mark.timeout(60 + 30 * KILLS)
async def test_each_event_comes_once_and_in_order_whenever_the_publisher_dies(
    world: World, pool: asyncpg.Pool, reader: DeduplicatingReader, processes: list[asyncio.subprocess.Process]
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    life = Life(chance)

    points = [chance.choice(POINTS) for _ in range(KILLS)]
    plans = [f"{point}:{chance.randint(1, BATCHES)}" if point else None for point in points]
    processes.append(await run(world, plans[0], first=WARM))
    for point, following in zip(points, [*plans[1:], None], strict=True):
        life.go_on(2 * BATCHES)
        await world.append(life.log)
        dying = processes[-1]
        begin(dying)
        processes.append(await run(world, following, first=WARM))
        if point is None:
            await kill_at_work(world, dying, delay_s=chance.uniform(0.0, 0.3))
        assert await asyncio.wait_for(dying.wait(), END_S_MAX) == -signal.SIGKILL, f"seed {seed}"
        await reader.drain()
        await empty(world, reader, chance.sample(sorted(reader.records), 3))
    begin(processes[-1])
    await world.until_projected(life.count)

    await reader.drain()
    assert reader.records == await stored(pool), f"seed {seed}"


def begin(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def kill_at_work(world: World, process: asyncio.subprocess.Process, *, delay_s: float) -> None:
    query = "SELECT coalesce(sum(position), 0) FROM reads.positions"
    before = await world.tables.fetchval(query)

    async def works() -> bool:
        return bool(await world.tables.fetchval(query) > before)

    await world.until(works)
    await asyncio.sleep(delay_s)
    process.kill()


async def test_what_a_publisher_sends_that_slept_while_another_took_over_changes_nothing(
    world: World, pool: asyncpg.Pool, reader: DeduplicatingReader, processes: list[asyncio.subprocess.Process]
) -> None:
    life = Life(random.Random(1))
    life.go_on(4 * BATCHES)
    await world.append(life.log)
    point = {STOP_VARIABLE: f"{CrashPoint.PUBLISH_BETWEEN_TOPICS}:{BATCHES}"}
    slept = await run(world, None, **ASLEEP, **point, TARTAN_INSTANCE_ID="sleeper")
    processes.append(slept)
    await world.until(lambda: stopped(slept))
    processes.append(await run(world, None, **ASLEEP))
    await world.until_projected(life.count)
    life.go_on(BATCHES)
    await world.append(life.log)
    await world.until_projected(life.count)
    await reader.drain()

    slept.send_signal(signal.SIGCONT)
    life.go_on(BATCHES)
    await world.append(life.log)
    await world.until_projected(life.count)
    await world.until(lambda: drops(reader))

    assert reader.records == await stored(pool)


async def stopped(process: asyncio.subprocess.Process) -> bool:
    """Whether a process sleeps until somebody wakes it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def drops(reader: DeduplicatingReader) -> bool:
    """Whether what came late was there, and was dropped."""
    await reader.drain()
    return reader.dropped > 0
