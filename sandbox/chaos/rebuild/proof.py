"""What must be true after `tartan chaos --rebuild`: of tables, topics and browsers, held against the log."""

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
from sandbox.observe.listeners import Browsers, due, missed
from sandbox.observe.log_replay import REPLAY
from schemas.errors import Halt
from schemas.topics import PUBLIC, Topic

ALL_READ_S_MAX = 1_800.0
LOOK_S = 0.1
SHOWN_MAX = 5


async def all_read(connection: asyncpg.Connection, *, records: int) -> None:
    """Wait until each version that is fed has so many records, and all events of the live one are published.

    Raises: Halt, at the bound.
    """
    deadline = time.monotonic() + ALL_READ_S_MAX
    query = _READ + _READ_BY_OLD if await connection.fetchval(_HAS_OLD) else _READ
    while not all(row["number"] == records for row in await connection.fetch(query)):
        if time.monotonic() > deadline:
            told = ", ".join(f"{row['number']} {row['what']}" for row in await connection.fetch(query))
            raise Halt(f"after {ALL_READ_S_MAX:g} s, of {records} records: {told}")
        await asyncio.sleep(LOOK_S)


async def problems(settings: Settings, listeners: Browsers, users: Mapping[str, int]) -> list[str]:
    """What is wrong, in words, of a world in which nothing is written any more; empty where all is true."""
    found: list[str] = []
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(_side(settings, SCHEMA))
        positions = {row["partition"]: row["position"] for row in await live.connection.fetch(_POSITIONS)}
        await stack.enter_async_context(log_replay.replayed(settings, positions))
        third = await stack.enter_async_context(_side(settings, REPLAY))
        sides = [live, third]
        if await live.connection.fetchval(_HAS_OLD):
            sides.append(await stack.enter_async_context(_side(settings, OLD)))
        for side in sides:
            broken = await digests.ledger_problems(side.connection)
            found += [f"{side.schema}: {what}" for what in broken[:SHOWN_MAX]]
            if side is not live:
                found += await _unequal(live, side)
        found += await _of_topics(settings, third.connection, positions)
        for user, number in users.items():
            told = missed(listeners.heard[user], await due(third.connection, number))
            found += [f"the browser of {user}: {what}" for what in told]
    return found


async def _unequal(live: Side, other: Side) -> list[str]:
    compared = await compare(live, other)
    shown = [f"{one.item_id} {one.account_id}: {', '.join(one.tables)}" for one in compared.differences[:SHOWN_MAX]]
    if compared.digest_equal:
        return []
    return [
        f"{other.schema} differs from the live version in {compared.subjects_different} accounts, Items and users",
        *shown,
    ]


async def _of_topics(settings: Settings, third: asyncpg.Connection, positions: Mapping[int, int]) -> list[str]:
    """Each partition of each public topic by the reader's rule, against what the log gives from its beginning."""
    found = []
    for number in positions:
        wanted = await published_events.to_publish(third, number)
        for topic in PUBLIC:
            published = published_events.kept(await _published(settings, topic, number))
            found += published_events.unlike(f"{topic.name} {number}", published, wanted.get((topic.name, number), []))
    return found


async def _published(settings: Settings, topic: Topic, number: int) -> list[published_events.Published]:
    reader = LogReader(settings, topic)
    await reader.start()
    try:
        end = (await reader.completeness([number]))[number].end
        found: list[published_events.Published] = []
        async with aclosing(reader.read(number, 0, end)) as lists:
            async for records in lists:
                found += map(published_events.published, records)
        return found
    finally:
        await reader.stop()


@asynccontextmanager
async def _side(settings: Settings, schema: str) -> AsyncIterator[Side]:
    """A version's tables as they are at one moment."""
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
SELECT 'read' AS what, sum(position)::bigint AS number FROM {SCHEMA}.positions
 UNION ALL SELECT 'published', sum(published)::bigint FROM tartan.published_checkpoints"""
_READ_BY_OLD = f" UNION ALL SELECT 'read by the old version', sum(position)::bigint FROM {OLD}.positions"
