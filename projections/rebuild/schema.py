"""The version that a rebuild fills: made, found again, finished, dropped. By the owner of the tables. Shell."""

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
from runtime import logs
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Halt, Retry

STATEMENT_S_MAX = 6 * 3600
"""An index over years of rows, or one read of all of them; nobody waits for it."""
MAINTENANCE_MEMORY = "512MB"
"""What each of a few indexes sorts in memory."""
LOADING, LOADED, DROPPED = "loading", "loaded", "dropped"
"""What has become of a rebuild, in tartan.rebuilds."""


@asynccontextmanager
async def owner(settings: Settings, *, schema: str = SCHEMA) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the tables' owner, for work that takes as long as it takes.

    Raises: Retry, where Postgres does not answer.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    limits = dict.fromkeys(
        ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"), f"{STATEMENT_S_MAX}s"
    )
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={**server_settings(settings, "rebuild", search_path=schema), **limits},
        )
    except POSTGRES_ERRORS as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error
    try:
        yield connection
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise Retry(f"Postgres: {type(error).__name__}; run the rebuild again: it goes on where it was") from error
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def alone(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection of the one rebuild of this database; its lock ends with it, however that ends.

    Raises: Halt, where another process works on a version.
    """
    async with owner(settings) as connection:
        if not await connection.fetchval(_TRY_LOCK):
            other = await connection.fetchrow(_HOLDER)
            who = "" if other is None else f" ({other['application_name']}, Postgres session {other['pid']})"
            raise Halt(f"another process rebuilds or swaps versions in this database{who}: wait for it, or stop it")
        yield connection


async def begin(connection: asyncpg.Connection, settings: Settings, *, with_events: bool) -> Version:
    """The version to fill: the one that an earlier rebuild began, or a new one, made in one transaction.

    `with_events`: it keeps all events encoded, also those that are published.
    Raises: Halt, where the one that was begun does not keep them.
    """
    row = await connection.fetchrow(_BEGUN) if NEXT in await versions.found(connection) else None
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
    """Make the indexes that only readers need, each on a connection of its own, and look at all rows once.

    Idempotence: an index that is there stays.
    """

    async def make(statement: str) -> None:
        async with owner(settings, schema=NEXT) as making:
            await making.execute(f"SET maintenance_work_mem = '{MAINTENANCE_MEMORY}'")
            await making.execute(statement)

    await asyncio.gather(*(make(statement) for statement in ddl.deferred(NEXT).values()))
    for table in tables.metadata.sorted_tables:
        await connection.execute(f"ANALYZE {NEXT}.{table.name}")
    await connection.execute(_LOADED, LOADED)


async def note(connection: asyncpg.Connection, number: int, result: Mapping[str, Any]) -> None:
    """Keep what came of a rebuild."""
    await connection.execute(_NOTE, number, msgspec.json.encode(result).decode())


async def size_bytes(connection: asyncpg.Connection) -> int:
    """What the live version fills on the disk, indexes included."""
    return int(await connection.fetchval(_SIZE, SCHEMA))


_KEY = "hashtextextended('tartan versions', 0)"
_TRY_LOCK = f"SELECT pg_try_advisory_lock({_KEY})"
# A lock's key of 64 bits is shown as two halves.
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
SELECT $1, $2, '{LOADING}', coalesce(jsonb_object_agg(partition, published), '{{}}'), tartan.clock() FROM tartan.published_checkpoints
 WHERE NOT $3
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
