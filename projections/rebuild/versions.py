"""Which versions of the projections there are, how far each is, and the end of the one that was kept. Shell."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from projections.store.tables import NEXT, OLD, SCHEMA
from runtime import logs
from runtime.kafka.reader import Position
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, VERSION_HELD, server_settings, snapshot, transaction
from runtime.settings import Settings
from schemas.errors import Retry, TartanError

SCHEMAS = (SCHEMA, NEXT, OLD)
DROP_LOCK_S = 2.0
"""How long a drop waits for the feeders of the old version, whose batches wait behind it meanwhile."""
DROP_TRIES = 15
DROP_PAUSE_S = 2.0


class Version(NamedTuple):
    """A version of the projections. `not_fed`: why nothing is written to it any more, None where it is fed."""

    schema: str
    number: int
    fold: int
    made_at: datetime.datetime
    not_fed: str | None = None


class Status(NamedTuple):
    """A version as operators see it: records folded, records that the live version is ahead, and since when it is so.

    `state` is what became of its rebuild; the first version had none, and is live since it was made.
    """

    version: Version
    state: str
    since: datetime.datetime
    records: int
    behind: int

    def told(self) -> dict[str, Any]:
        """For JSON."""
        number, fold, not_fed = self.version.number, self.version.fold, self.version.not_fed
        return {
            "schema": self.version.schema,
            "number": number,
            "fold": fold,
            "state": self.state,
            "since": self.since.isoformat(),
            "records": self.records,
            "behind": self.behind,
            "not_fed": not_fed,
        }


class NotSwapped(TartanError):
    """Versions were not swapped, and why; the live one goes on."""


async def found(connection: asyncpg.Connection) -> dict[str, Version]:
    """The versions that there are, by schema; no swap comes in between."""
    async with snapshot(connection):
        return {one.schema: one for one in await _found(connection)}


async def status(connection: asyncpg.Connection) -> list[Status]:
    """The versions that there are, the live one first."""
    async with snapshot(connection):
        rows = {row["number"]: row for row in await connection.fetch(_REBUILDS)}
        live = await positions(connection, SCHEMA)
        told = []
        for one in await _found(connection):
            at = await positions(connection, one.schema)
            row = rows.get(one.number)
            told.append(
                Status(
                    one,
                    "live" if row is None else row["state"],
                    one.made_at if row is None else row["since"],
                    sum(position.next for position in at.values()),
                    sum(max(0, position.next - at.get(number, Position(0)).next) for number, position in live.items()),
                )
            )
    return told


async def _found(connection: asyncpg.Connection) -> list[Version]:
    there = [
        schema
        for schema in SCHEMAS
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.version")
    ]
    each = " UNION ALL ".join(
        f"SELECT {place} AS place, '{schema}' AS schema, number, fold, made_at FROM {schema}.version"
        for place, schema in enumerate(there)
    )
    return [Version(*row) for row in await connection.fetch(_VERSIONS.format(each=each))] if there else []


async def positions(connection: asyncpg.Connection | asyncpg.Pool, schema: str) -> dict[int, Position]:
    """The committed positions of a version, by partition."""
    rows = await connection.fetch(f"SELECT partition, position, last_checksum FROM {schema}.positions")
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


async def mark_not_fed(pool: asyncpg.Pool, number: int, why: str) -> None:
    """Say that an old version is not what the log makes any more, and why: nobody goes back to it."""
    await pool.execute(_NOT_FED, number, why)


async def drop_old(settings: Settings) -> Version:
    """Drop the version that was kept after a swap, and give what it was. Readers and the live version go on.

    Raises: NotSwapped, where there is none, somebody's own objects depend on it, or locks on it are not to be had.
    """
    for left in reversed(range(DROP_TRIES)):
        async with owner(settings) as connection:
            try:
                return await _drop_old(connection)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                if not left:
                    who = await holders(connection, OLD)
                    raise NotSwapped(f"{OLD} cannot be locked: it is used by {who}") from error
            except asyncpg.DependentObjectsStillExistError as error:
                raise NotSwapped(f"{OLD} is not dropped, others depend on it: {error.detail}") from error
        await asyncio.sleep(DROP_PAUSE_S)
    raise AssertionError("unreachable")


async def _drop_old(connection: asyncpg.Connection) -> Version:
    limit = f"SET LOCAL lock_timeout = '{round(DROP_LOCK_S * 1000)}'"
    async with transaction(connection, f"{limit}; {VERSION_HELD}"):
        old = (await found(connection)).get(OLD)
        if old is None:
            raise NotSwapped("no version is kept from before: `tartan rebuild --status` shows which there are")
        # Its feeders hold this table first, and then want the others.
        await connection.execute(f"LOCK TABLE {OLD}.positions IN ACCESS EXCLUSIVE MODE")
        # Not by CASCADE, which would take with it what others built on these tables, and say nothing.
        named = ", ".join(row["name"] for row in await connection.fetch(_TABLES, OLD))
        await connection.execute(f"DROP TABLE {named}; DROP FUNCTION {OLD}.refuse_change; DROP SCHEMA {OLD}")
        await connection.execute(_DROPPED, old.number)
    return old


async def holders(connection: asyncpg.Connection, schema: str) -> str | None:
    """Whose transactions hold locks on tables of a schema, in words: session, its name, its age. None: nobody's."""
    return _named(await connection.fetch(_HOLDERS, schema))


async def blockers(connection: asyncpg.Connection, waiting: int) -> str | None:
    """Whom the session with this pid waits for, in the same words."""
    return _named(await connection.fetch(_BLOCKERS, waiting))


def _named(rows: Sequence[asyncpg.Record]) -> str | None:
    found = [f"session {row['pid']} ({row['name'] or 'of another user'}, {row['age_s'] or 0:.1f} s)" for row in rows]
    return ", ".join(found) or None


@asynccontextmanager
async def owner(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the tables' owner, for short transactions that lock tables.

    Raises: Retry, where Postgres does not answer.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=settings.statement_timeout_s + 5.0,
            server_settings=server_settings(settings, "versions"),
        )
    except POSTGRES_ERRORS as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error
    try:
        yield connection
    finally:
        connection.terminate()


_VERSIONS = """
SELECT v.schema, v.number, v.fold, v.made_at, r.result->>'not_fed'
  FROM ({each}) v LEFT JOIN tartan.rebuilds r USING (number) ORDER BY v.place"""

_REBUILDS = """
SELECT number, state, coalesce(dropped_at, swapped_at, loaded_at, started_at) AS since FROM tartan.rebuilds"""

_NOT_FED = """
UPDATE tartan.rebuilds SET result = coalesce(result, '{}') || jsonb_build_object('not_fed', $2::text)
 WHERE number = $1"""

_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'"""

_DROPPED = "UPDATE tartan.rebuilds SET state = 'dropped', dropped_at = now() WHERE number = $1"

# Autovacuum gives way by itself, and renaming does not disturb it.
_HOLDERS = """
SELECT l.pid, a.application_name AS name, extract(epoch FROM clock_timestamp() - min(a.xact_start))::float8 AS age_s
  FROM pg_locks l
  JOIN pg_class c ON c.oid = l.relation
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_stat_activity a USING (pid)
 WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND n.nspname = $1
   AND c.relkind = 'r' AND l.granted AND l.pid <> pg_backend_pid()
   AND coalesce(a.backend_type, '') <> 'autovacuum worker'
 GROUP BY l.pid, a.application_name ORDER BY age_s DESC NULLS LAST LIMIT 5"""

_BLOCKERS = """
SELECT pid, application_name AS name, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s
  FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids($1)) ORDER BY age_s DESC NULLS LAST LIMIT 5"""
