"""Versions of the projections: list them with their positions, and drop the one that a swap has kept. Shell."""

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
"""Longest wait of a drop for the feeders of the old version, whose batches wait behind it meanwhile."""
DROP_TRIES = 15
DROP_PAUSE_S = 2.0


class Version(NamedTuple):
    """A version of the projections. `not_fed`: reason why nothing is written to it any more, None where it is fed."""

    schema: str
    number: int
    fold: int
    made_at: datetime.datetime
    not_fed: str | None = None


class Status(NamedTuple):
    """A version for operators: records folded, and records that the live version is ahead.

    `state` is that of its rebuild, since `since`; the first version had none, and is live since it was made.
    """

    version: Version
    state: str
    since: datetime.datetime
    records: int
    behind: int

    def to_json(self) -> dict[str, Any]:
        """Return the status as one document."""
        return {
            "schema": self.version.schema,
            "number": self.version.number,
            "fold": self.version.fold,
            "state": self.state,
            "since": self.since.isoformat(),
            "records": self.records,
            "behind": self.behind,
            "not_fed": self.version.not_fed,
        }


class NotSwapped(TartanError):
    """Versions were not swapped, for the given reason; the live one stays live."""


async def load_versions(connection: asyncpg.Connection) -> dict[str, Version]:
    """Return the existing versions by schema, the live one first; no swap comes in between."""
    async with snapshot(connection):
        schemas = [
            schema
            for schema in SCHEMAS
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.version")
        ]
        if not schemas:
            return {}
        each = " UNION ALL ".join(
            f"SELECT {index} AS place, '{schema}' AS schema, number, fold, made_at FROM {schema}.version"
            for index, schema in enumerate(schemas)
        )
        return {row["schema"]: Version(*row) for row in await connection.fetch(_VERSIONS.format(each=each))}


async def status(connection: asyncpg.Connection) -> list[Status]:
    """Return the status of each version, the live one first."""
    statuses = []
    async with snapshot(connection):
        rebuilds = {row["number"]: row for row in await connection.fetch(_REBUILDS)}
        live = await positions(connection, SCHEMA)
        for version in (await load_versions(connection)).values():
            reached = await positions(connection, version.schema)
            row = rebuilds.get(version.number)
            state, since = ("live", version.made_at) if row is None else (row["state"], row["since"])
            records = sum(position.next for position in reached.values())
            gaps = (position.next - reached.get(number, Position(0)).next for number, position in live.items())
            statuses.append(Status(version, state, since, records, sum(max(0, gap) for gap in gaps)))
    return statuses


async def positions(connection: asyncpg.Connection | asyncpg.Pool, schema: str) -> dict[int, Position]:
    """Return the committed positions of a version, by partition."""
    rows = await connection.fetch(f"SELECT partition, position, last_checksum FROM {schema}.positions")
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


async def mark_not_fed(pool: asyncpg.Pool, number: int, why: str) -> None:
    """Record that an old version no longer follows the log, so that nobody swaps back to it."""
    await pool.execute(_NOT_FED, number, why)


async def drop_old(settings: Settings) -> Version:
    """Drop the version that was kept after a swap, and return it. Readers and the live version go on.

    Raises: NotSwapped, where there is none, other objects depend on it, or its locks are not free.
    """
    for tries_left in reversed(range(DROP_TRIES)):
        async with owner(settings) as connection:
            try:
                return await _drop_old(connection)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                if not tries_left:
                    users = await holders(connection, OLD)
                    raise NotSwapped(f"{OLD} cannot be locked: it is used by {users}") from error
            except asyncpg.DependentObjectsStillExistError as error:
                raise NotSwapped(f"{OLD} is not dropped, others depend on it: {error.detail}") from error
        await asyncio.sleep(DROP_PAUSE_S)
    raise AssertionError("unreachable")


async def _drop_old(connection: asyncpg.Connection) -> Version:
    limit = f"SET LOCAL lock_timeout = '{round(DROP_LOCK_S * 1000)}'"
    async with transaction(connection, f"{limit}; {VERSION_HELD}"):
        old = (await load_versions(connection)).get(OLD)
        if old is None:
            raise NotSwapped("no version is kept from before: `tartan rebuild --status` shows which there are")
        # Its feeders lock this table first, and the others after it.
        await connection.execute(f"LOCK TABLE {OLD}.positions IN ACCESS EXCLUSIVE MODE")
        # Not by CASCADE, which would silently drop what others built on these tables.
        names = ", ".join(row["name"] for row in await connection.fetch(_TABLES, OLD))
        await connection.execute(f"DROP TABLE {names}; DROP FUNCTION {OLD}.refuse_change; DROP SCHEMA {OLD}")
        await connection.execute(_DROPPED, old.number)
    return old


async def holders(connection: asyncpg.Connection, schema: str) -> str | None:
    """Return the sessions that hold locks on tables of a schema, with name and age; None where there are none."""
    return _sessions(await connection.fetch(_HOLDERS, schema))


async def blockers(connection: asyncpg.Connection, waiting: int) -> str | None:
    """Return the sessions that the session with this pid waits for, in the same form."""
    return _sessions(await connection.fetch(_BLOCKERS, waiting))


def _sessions(rows: Sequence[asyncpg.Record]) -> str | None:
    texts = [f"session {row['pid']} ({row['name'] or 'of another user'}, {row['age_s'] or 0:.1f} s)" for row in rows]
    return ", ".join(texts) or None


@asynccontextmanager
async def owner(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection of the tables' owner, for short transactions that lock tables.

    Raises: Retry, where Postgres does not answer.
    """
    connection = await connect_owner(
        settings, server_settings(settings, "versions"), command_timeout=settings.statement_timeout_s + 5.0
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def connect_owner(
    settings: Settings, session: dict[str, str], *, command_timeout: float | None = None
) -> asyncpg.Connection:
    """Connect as the tables' owner. Raises: Retry, where Postgres does not answer."""
    dsn = settings.postgres_dsn.get_secret_value()
    try:
        return await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=command_timeout, server_settings=session
        )
    except POSTGRES_ERRORS as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error


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
