"""Run a real Postgres at a given time: for runs on it, and for contract tests of the memory tables."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg

from projections.store.migrate import migrate
from runtime.kafka.reader import Position
from runtime.postgres.clock import set_clock
from sandbox.infra.folders import remove_abandoned
from sandbox.infra.postgres import Postgres, PostgresOptions
from sandbox.simulation.memory.rows import Credential, ItemQuarantine, Row
from sandbox.simulation.memory.tables import Clock, Tables
from schemas.log.records import Cause

TEMPLATE = "template_of_runs"
PREFIX = "tartan-simulate-"
CONNECTIONS_MAX = 3
"""One statement runs at a time; a second connection replaces one that has just broken."""

Result = TypeVar("Result")


class TimedPool:
    """Act as an asyncpg.Pool whose connections have the time of a virtual clock."""

    def __init__(self, pool: asyncpg.Pool, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._now = now

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """Acquire a connection on which `tartan.clock()` is the current virtual time."""
        async with self._pool.acquire() as acquired:
            connection = cast(asyncpg.Connection, acquired)
            await set_clock(connection, self._now())
            yield connection


class RunDatabases:
    """Provide a database for each run, copied from a template, on a server that starts at the first use."""

    def __init__(self, folder: Path) -> None:
        self.server = Postgres(folder, options=PostgresOptions(fast=True))
        self._last_number = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """Create a database and yield its connection string."""
        if not self.server.running:
            _run(self.server.start())
            migrate(_run(self.server.create_database(TEMPLATE)))
        self._last_number += 1
        name = f"run_{self._last_number}"
        try:
            yield _run(self.server.create_database(name, template=TEMPLATE))
        finally:
            _run(self.server.drop_database(name))


@contextmanager
def run_databases() -> Iterator[RunDatabases]:
    """Provide databases in a temporary folder."""
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent, prefix=PREFIX)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        databases = RunDatabases(Path(name) / "postgres")
        try:
            yield databases
        finally:
            databases.server.kill()


async def open_pool(dsn: str) -> asyncpg.Pool:
    """Connect to a run's database. Connections are not reset, because each statement sets its clock."""
    pool: asyncpg.Pool = await asyncpg.create_pool(
        dsn, min_size=1, max_size=CONNECTIONS_MAX, reset=_keep, ssl=False, max_inactive_connection_lifetime=0
    )
    return pool


async def load_tables(connection: asyncpg.Connection, clock: Clock) -> Tables:
    """Load the scheduler's tables, as far as a scenario and its checks read them."""
    tables = Tables(clock, random.Random(0))
    for record in await connection.fetch("SELECT * FROM tartan.sync_state ORDER BY item_id"):
        values = {field.name: record[field.name] for field in fields(Row) if field.name in record}
        row = Row(**values | {"user": record["user_number"], "cause": Cause("seen")})
        tables.rows[row.item_id] = row
    for record in await connection.fetch(_CREDENTIALS):
        tables.credentials[record["item_id"]] = Credential(
            record["tenant"],
            record["user_number"],
            record["institution_id"],
            record["institution_name"],
            "kept" if record["has_token"] else None,
        )
    for record in await connection.fetch("SELECT * FROM tartan.quarantines ORDER BY item_id, first_offset"):
        tables.quarantines[record["item_id"], record["first_offset"]] = ItemQuarantine(
            record["partition"], record["reason"], record["reader"], record["redrive_offset"]
        )
    for record in await connection.fetch("SELECT * FROM tartan.positions ORDER BY reader, partition"):
        tables.positions[record["reader"], record["partition"]] = Position(record["position"])
    return tables


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on its own loop, in real time."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


async def _keep(connection: object) -> None:
    """Leave a connection as it is when it returns to the pool."""


_CREDENTIALS = "SELECT *, sealed_token IS NOT NULL AS has_token FROM tartan.credentials ORDER BY item_id"
