"""The stage killed at each of its steps: under the reader's rule every event comes once and in order."""

import asyncio
import base64
import os
import sys
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from projections.events import public_events
from projections.store import rows
from projections.verify import digests
from runtime.crash_points import VARIABLE, CrashPoint
from schemas.topics import HEADER_POSITION, PUBLIC, PUSH
from tests.integration.projections.test_stage import KEY, PARTITIONS, World, world  # noqa: F401
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

POINTS = (
    CrashPoint.PROJECT_BEFORE_COMMIT,
    CrashPoint.PROJECT_AFTER_COMMIT,
    CrashPoint.PUBLISH_BETWEEN_TOPICS,
    CrashPoint.PUBLISH_AFTER_SEND,
)
START_S_MAX = 60.0


def story() -> Log:
    # Of this hour: events older than a topic's retention are forgotten once they are published.
    log = Log(clock_us=int(time.time()) * 1_000_000 - 3_600_000_000)
    for user in (1, 2, 3):
        log.link(f"item{user}", user, *balance(account()))
        log.sync(f"item{user}", *added(transaction("P", "40", pending=True), transaction("T")), user=user)
        log.sync(f"item{user}", *removed("P"), *added(transaction("Q", "48", pending_transaction_id="P")), user=user)
        log.sync(f"item{user}", *modified(transaction("T", "11")), *balance(account(current="1")), user=user)
    return log


async def run(world: World, crash_at: str | None, *, first: str = "", **more: str) -> asyncio.subprocess.Process:
    """Start `tartan projections`. `first`: what Python does before; `more`: further variables of its environment."""
    settings = world.settings
    environment = {
        **os.environ,
        "TARTAN_KAFKA_ADDRESS": settings.kafka_address,
        "TARTAN_TOPIC_PREFIX": settings.topic_prefix,
        "TARTAN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "TARTAN_PARTITIONS": str(PARTITIONS),
        "TARTAN_KEY_ENCRYPTION_KEY": base64.b64encode(KEY).decode(),
        "TARTAN_INTERNAL_PORT": "0",
        "TARTAN_BATCH_RECORDS_MAX": "2",  # several batches, so that a crash finds others under way
        **more,
    }
    if crash_at is not None:
        environment[VARIABLE] = crash_at
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from cli import main as cli\n{first}\ncli.main()",
        "projections",
        env=environment,
        stdin=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def processes() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    started: list[asyncio.subprocess.Process] = []
    yield started
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def expected(tables: asyncpg.Connection) -> dict[str, list[tuple[int, int, int]]]:
    """The positions of all net events by topic: (partition, offset, index)."""
    topic_of = {kind: topic.name for topic in PUBLIC for kind in topic.event_types}
    found: dict[str, list[tuple[int, int, int]]] = {topic.name: [] for topic in PUBLIC}
    for row in await tables.fetch("SELECT partition, source_offset, events FROM reads.changesets"):
        for place, event in enumerate(public_events.decode_block(rows.decompress(row["events"]))):
            found[topic_of[event.type]].append((row["partition"], row["source_offset"], place))
    found[PUSH.name] = sorted(place for places in found.values() for place in places)
    return {topic: sorted(places) for topic, places in found.items()}


async def read_by_rule(world: World) -> dict[str, list[tuple[int, int, int]]]:
    """What a reader keeps that drops whatever is not above the last position of its partition."""
    kept: dict[str, list[tuple[int, int, int]]] = {}
    for topic in (*PUBLIC, PUSH):
        last: dict[int, tuple[int, int]] = {}
        kept[topic.name] = []
        for partition, headers in await world.read_places(topic):
            offset, _, index = headers[HEADER_POSITION].partition(".")
            at = (int(offset), int(index))
            if at > last.get(partition, (-1, -1)):
                last[partition] = at
                kept[topic.name].append((partition, *at))
    return {topic: sorted(places) for topic, places in kept.items()}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_each_event_comes_once_whatever_step_the_process_dies_at(
    world: World, processes: list[asyncio.subprocess.Process], point: CrashPoint, times: int
) -> None:
    log = story()
    count = len(log.records)
    await world.append(log)

    dying = await run(world, f"{point}:{times}")
    processes.append(dying)
    assert await asyncio.wait_for(dying.wait(), START_S_MAX) == -9
    processes.append(await run(world, None))
    await world.until_projected(count)

    assert await digests.ledger_problems(world.tables) == []
    assert await world.tables.fetchval("SELECT count(*) FROM reads.transactions WHERE removed_at IS NULL") == 6
    wanted = await expected(world.tables)
    assert sum(map(len, wanted.values())) == 2 * 3 * (2 + 2 + 1 + 2)
    assert await read_by_rule(world) == wanted
