"""Compare tables, topics and browsers with the log after `tartan chaos --rebuild`."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import asyncpg

from projections.rebuild.compare_versions import Side, compare
from projections.store.tables import OLD, SCHEMA
from projections.verify import digests
from runtime.archive.log_reader import LogReader
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from sandbox.observe import log_replay, published_events
from sandbox.observe.browsers import Browsers, delivery_problems
from schemas.errors import Halt
from schemas.topics import PUBLIC, Topic

READ_S_MAX = 1_800.0
POLL_S = 0.1
SHOWN_MAX = 5


async def await_all_read(connection: asyncpg.Connection, *, records: int) -> None:
    """Wait until each fed version has read so many records, and all events of the live one are published.

    Raises: Halt, at the bound.
    """
    deadline = time.monotonic() + READ_S_MAX
    query = _READ + _READ_BY_OLD if await connection.fetchval(_HAS_OLD) else _READ
    while not all(row["number"] == records for row in await connection.fetch(query)):
        if time.monotonic() > deadline:
            counts = ", ".join(f"{row['number']} {row['reader']}" for row in await connection.fetch(query))
            raise Halt(f"after {READ_S_MAX:g} s, of {records} records: {counts}")
        await asyncio.sleep(POLL_S)


async def find_problems(settings: Settings, browsers: Browsers, users: Mapping[str, int]) -> list[str]:
    """Return all problems of a stack whose log no longer grows; `users` maps a browser's user to the user's number."""
    problems: list[str] = []
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(_snapshot(settings, SCHEMA))
        positions = {row["partition"]: row["position"] for row in await live.connection.fetch(_POSITIONS)}
        await stack.enter_async_context(log_replay.replayed_tables(settings, positions))
        replay = await stack.enter_async_context(_snapshot(settings, log_replay.SCHEMA))
        sides = [live, replay]
        if await live.connection.fetchval(_HAS_OLD):
            sides.append(await stack.enter_async_context(_snapshot(settings, OLD)))
        for side in sides:
            ledger_problems = await digests.ledger_problems(side.connection)
            problems += [f"{side.schema}: {problem}" for problem in ledger_problems[:SHOWN_MAX]]
            if side is not live:
                problems += await _version_differences(live, side)
        for partition in positions:
            expected = await published_events.expected_events(replay.connection, partition)
            for topic in PUBLIC:
                published = await _read_published(settings, topic, partition)
                problems += published_events.first_difference((topic.name, partition), published, expected)
        problems += await delivery_problems(browsers, users, replay.connection)
    return problems


async def _version_differences(live: Side, other: Side) -> list[str]:
    comparison = await compare(live, other)
    if comparison.digest_equal:
        return []
    return [
        f"{other.schema} differs from the live version in {comparison.subjects_different} accounts, Items and users",
        *(
            f"{difference.item_id} {difference.account_id}: {', '.join(difference.tables)}"
            for difference in comparison.differences[:SHOWN_MAX]
        ),
    ]


async def _read_published(settings: Settings, topic: Topic, partition: int) -> list[published_events.Published]:
    """Return the deduplicated events of a partition."""
    reader = LogReader(settings, topic)
    await reader.start()
    try:
        end = (await reader.completeness([partition]))[partition].end
        events: list[published_events.Published] = []
        async with aclosing(reader.read(partition, 0, end)) as lists:
            async for records in lists:
                events += map(published_events.event_of, records)
        return published_events.deduplicate(events)
    finally:
        await reader.stop()


@asynccontextmanager
async def _snapshot(settings: Settings, schema: str) -> AsyncIterator[Side]:
    """Open a snapshot of a version's tables."""
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(),
        timeout=CONNECT_TIMEOUT_S,
        server_settings=server_settings(settings, "proof", search_path=schema),
    )
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield Side(connection, schema)
    finally:
        connection.terminate()


_POSITIONS = "SELECT partition, position FROM positions"
_HAS_OLD = f"SELECT to_regclass('{OLD}.positions') IS NOT NULL"
_READ = f"""
SELECT 'read' AS reader, sum(position)::bigint AS number FROM {SCHEMA}.positions
 UNION ALL SELECT 'published', sum(published)::bigint FROM tartan.published_checkpoints"""
_READ_BY_OLD = f" UNION ALL SELECT 'read by the old version', sum(position)::bigint FROM {OLD}.positions"
