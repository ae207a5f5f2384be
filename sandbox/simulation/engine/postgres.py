"""A real Postgres at a time that is given: for runs on it, and for contracts between memory and the real parts."""

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
"""One statement runs at a time; a second connection is for one that has just broken."""

Result = TypeVar("Result")


class TimedPool:
    """A pool whose connections tell the time of a virtual clock; it stands where an asyncpg.Pool does."""

    def __init__(self, pool: asyncpg.Pool, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._now = now

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection on which `tartan.clock()` is the time now."""
        async with self._pool.acquire() as acquired:
            connection = cast(asyncpg.Connection, acquired)
            await set_clock(connection, self._now())
            yield connection


class Runs:
    """A server with a database for each run, copied from one that has all tables. It starts when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._server = Postgres(folder, options=PostgresOptions(fast=True))
        self._number = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """A database of a run's own: its connection string."""
        if not self._server.running:
            _finished(self._server.start())
            migrate(_finished(self._server.create_database(TEMPLATE)))
        self._number += 1
        name = f"run_{self._number}"
        try:
            yield _finished(self._server.create_database(name, template=TEMPLATE))
        finally:
            _finished(self._server.drop_database(name))

    def end(self) -> None:
        """End the server, where one was started."""
        self._server.kill()


@contextmanager
def runs() -> Iterator[Runs]:
    """Databases for runs, in a folder that goes with them."""
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent, prefix=PREFIX)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        found = Runs(Path(name) / "postgres")
        try:
            yield found
        finally:
            found.end()


async def opened(dsn: str) -> asyncpg.Pool:
    """Connections to a run's database. Nothing is reset between statements: they set their clock themselves."""
    pool: asyncpg.Pool = await asyncpg.create_pool(
        dsn, min_size=1, max_size=CONNECTIONS_MAX, reset=_kept, ssl=False, max_inactive_connection_lifetime=0
    )
    return pool


async def seen(connection: asyncpg.Connection, clock: Clock) -> Tables:
    """What the scheduler's tables hold now, as far as a story and its checks look at it."""
    tables = Tables(clock, random.Random(0))
    for found in await connection.fetch(_ROWS):
        known = {field.name: found[field.name] for field in fields(Row) if field.name in found}
        row = Row(**known | {"user": found["user_number"], "cause": Cause("seen"), "last_error": found["last_error"]})
        tables.rows[row.item_id] = row
    for found in await connection.fetch(_CREDENTIALS):
        tables.credentials[found["item_id"]] = Credential(
            found["tenant"],
            found["user_number"],
            found["institution_id"],
            found["institution_name"],
            "kept" if found["kept"] else None,
        )
    for found in await connection.fetch(_QUARANTINES):
        tables.quarantines[found["item_id"], found["first_offset"]] = ItemQuarantine(
            found["partition"], found["reason"], found["reader"], found["redrive_offset"]
        )
    for found in await connection.fetch(_POSITIONS):
        tables.positions[found["reader"], found["partition"]] = Position(found["position"])
    return tables


def _finished(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on a loop of its own, in the machine's time."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


async def _kept(connection: object) -> None:
    """Leave a connection as it is when it comes back to the pool."""


_ROWS = "SELECT * FROM tartan.sync_state ORDER BY item_id"
_CREDENTIALS = "SELECT *, sealed_token IS NOT NULL AS kept FROM tartan.credentials ORDER BY item_id"
_QUARANTINES = "SELECT * FROM tartan.quarantines ORDER BY item_id, first_offset"
_POSITIONS = "SELECT * FROM tartan.positions ORDER BY reader, partition"
