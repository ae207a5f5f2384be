"""Schema of the version that a rebuild fills: begin, finish and drop it, as the owner of the tables. Shell."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from projections.rebuild import versions
from projections.rebuild.load import Version
from projections.store import ddl, tables
from projections.store.grants import Roles
from projections.store.tables import NEXT, SCHEMA
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Halt, Retry

STATEMENT_S_MAX = 6 * 3600
"""For an index over years of rows, or one read of all of them; nobody waits for it."""
MAINTENANCE_MEMORY = "512MB"
"""Memory in which each of a few indexes is sorted."""
LOADING, LOADED, DROPPED = "loading", "loaded", "dropped"
"""States of a rebuild, in tartan.rebuilds."""


@asynccontextmanager
async def owner(settings: Settings, *, schema: str = SCHEMA) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection of the tables' owner, for work without a short time limit.

    Raises: Retry, where Postgres does not answer.
    """
    limits = dict.fromkeys(
        ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"), f"{STATEMENT_S_MAX}s"
    )
    session = server_settings(settings, "rebuild", search_path=schema)
    connection = await versions.connect_owner(settings, {**session, **limits})
    try:
        yield connection
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise Retry(f"Postgres: {type(error).__name__}; run the rebuild again: it goes on where it was") from error
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def exclusive_owner(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """Open the owner's connection of the one rebuild of this database; it holds a lock as long as it is open.

    Raises: Halt, where another process rebuilds or swaps.
    """
    async with owner(settings) as connection:
        if not await connection.fetchval(_TRY_LOCK):
            other = await connection.fetchrow(_HOLDER)
            who = "" if other is None else f" ({other['application_name']}, Postgres session {other['pid']})"
            raise Halt(f"another process rebuilds or swaps versions in this database{who}: wait for it, or stop it")
        yield connection


async def begin(connection: asyncpg.Connection, settings: Settings, *, with_events: bool) -> Version:
    """Return the version to fill: the one that an earlier rebuild began, or a new one, created in one transaction.

    `with_events`: it has all events encoded, also those that are published.
    Raises: Halt, where the one that was begun has not.
    """
    row = await connection.fetchrow(_BEGUN) if NEXT in await versions.load_versions(connection) else None
    if row is None:
        roles = Roles(settings.projector_role, settings.eraser_role)
        async with connection.transaction():
            number = await connection.fetchval(_NEW_NUMBER)
            for statement in [*ddl.create(NEXT, number, roles), _POSITIONS]:
                await connection.execute(statement)
            row = await connection.fetchrow(_BEGIN, number, tables.FOLD, with_events)
    assert row is not None
    checkpoints = msgspec.json.decode(row["checkpoints"], type=dict[int, int])
    if with_events and any(checkpoints.values()):
        raise Halt("the version that is begun keeps no events that are published: give --restart too")
    return Version(row["number"], checkpoints)


async def drop(connection: asyncpg.Connection) -> None:
    """Drop the version that a rebuild has begun, in one transaction with its record."""
    async with connection.transaction():
        await connection.execute(_DROPPED, DROPPED)
        await connection.execute(f"DROP SCHEMA {NEXT} CASCADE")


async def finish(connection: asyncpg.Connection, settings: Settings) -> None:
    """Create the indexes that only readers need, each on a connection of its own, and analyze all tables.

    Idempotence: an existing index stays.
    """

    async def create(statement: str) -> None:
        async with owner(settings, schema=NEXT) as indexer:
            await indexer.execute(f"SET maintenance_work_mem = '{MAINTENANCE_MEMORY}'")
            await indexer.execute(statement)

    await asyncio.gather(*(create(statement) for statement in ddl.deferred(NEXT).values()))
    for table in tables.metadata.sorted_tables:
        await connection.execute(f"ANALYZE {NEXT}.{table.name}")
    await connection.execute(_LOADED, LOADED)


async def store_result(connection: asyncpg.Connection, number: int, result: Mapping[str, Any]) -> None:
    """Store the result of a rebuild."""
    await connection.execute(_NOTE, number, msgspec.json.encode(result).decode())


async def size_bytes(connection: asyncpg.Connection) -> int:
    """Return the size of the live version on the disk, indexes included."""
    return int(await connection.fetchval(_SIZE, SCHEMA))


_KEY = "hashtextextended('tartan versions', 0)"
_TRY_LOCK = f"SELECT pg_try_advisory_lock({_KEY})"
# pg_locks has a lock's key of 64 bits as two halves.
_HOLDER = f"""
SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database = (
       SELECT oid FROM pg_database WHERE datname = current_database())
   AND (l.classid::bigint << 32 | l.objid::bigint) = {_KEY}"""
_NEW_NUMBER = f"""
SELECT 1 + greatest((SELECT number FROM {SCHEMA}.version), (SELECT coalesce(max(number), 0) FROM tartan.rebuilds))"""
_POSITIONS = f"""
INSERT INTO {NEXT}.positions (partition, position) SELECT partition, 0 FROM {SCHEMA}.positions"""
_BEGIN = f"""
INSERT INTO tartan.rebuilds (number, fold, state, checkpoints, started_at)
SELECT $1, $2, '{LOADING}', coalesce(jsonb_object_agg(partition, published), '{{}}'), tartan.clock()
  FROM tartan.published_checkpoints WHERE NOT $3
RETURNING number, checkpoints"""
_BEGUN = f"SELECT number, checkpoints FROM tartan.rebuilds JOIN {NEXT}.version USING (number)"
_DROPPED = f"""
UPDATE tartan.rebuilds SET state = $1, dropped_at = tartan.clock() WHERE number = (SELECT number FROM {NEXT}.version)"""
_LOADED = f"""
UPDATE tartan.rebuilds SET state = $1, loaded_at = coalesce(loaded_at, tartan.clock())
 WHERE number = (SELECT number FROM {NEXT}.version)"""
_NOTE = "UPDATE tartan.rebuilds SET result = coalesce(result, '{}') || $2::jsonb WHERE number = $1"
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
 WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace($1)"""
