"""Instance lock: one live process a stage and instance id, by a Postgres advisory lock.

Two processes with one static id expel each other from the consumer group once a second without end (FAUST.md).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from runtime import logs
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Halt

TAKE_S_MAX = 90.0
"""A stop takes at most 60 s (runtime.lifecycle); the successor waits longer than that."""
TRY_EVERY_S = 0.25
LOOK_EVERY_S = 5.0
"""Interval of the check for a lost connection, and with it a lost lock."""

_log = logs.logger(__name__)


@asynccontextmanager
async def alone(settings: Settings, stage: str) -> AsyncIterator["asyncio.Task[None]"]:
    """Hold the lock of this stage and id for a block; the yielded task ends, with Halt, when another process has it.

    Raises: Halt, where another process keeps the lock for TAKE_S_MAX, or Postgres does not answer for so long.
    """
    connection = await _acquire(settings, stage)
    watch = asyncio.create_task(_keep(connection, settings, stage))
    try:
        yield watch
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _keep(connection: asyncpg.Connection, settings: Settings, stage: str) -> None:
    """Check the session that has the lock, and acquire the lock again where the session is lost."""
    try:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await connection.execute("SELECT 1")
            except POSTGRES_ERRORS as error:
                _log.warning("instance lock lost", reason=type(error).__name__)
                connection.terminate()
                connection = await _acquire(settings, stage)
    finally:
        connection.terminate()


async def _acquire(settings: Settings, stage: str) -> asyncpg.Connection:
    name = f"tartan {stage} {settings.topic_prefix} {settings.instance_id}"
    now = asyncio.get_running_loop().time
    deadline = now() + TAKE_S_MAX
    problem = f"another process runs {stage} with TARTAN_INSTANCE_ID {settings.instance_id}"
    while now() < deadline:
        connection = None
        try:
            connection = await asyncpg.connect(
                settings.postgres_dsn.get_secret_value(),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=CONNECT_TIMEOUT_S,
                server_settings=server_settings(settings, f"{stage}-lock"),
            )
            if await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name):
                return connection
        except POSTGRES_ERRORS as error:
            problem = f"Postgres: {type(error).__name__}"
        if connection is not None:
            connection.terminate()
        await asyncio.sleep(TRY_EVERY_S)
    raise Halt(problem)
