"""One live process a stage and instance id: two with one static id throw each other out of the group once a second
and neither stops (FAUST.md). A Postgres advisory lock decides who is it. Shell."""

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
"""A process that was told to stop finishes within 60 s (runtime.lifecycle); its successor waits that long and more."""
TRY_EVERY_S = 0.25
LOOK_EVERY_S = 5.0
"""How soon a lost connection, and with it the lock, is noticed."""

_log = logs.logger(__name__)


@asynccontextmanager
async def alone(settings: Settings, stage: str) -> AsyncIterator["asyncio.Task[None]"]:
    """Hold this stage's and id's lock for a block; the task given ends, with Halt, when another process has it.

    Raises: Halt, where another process keeps the lock for TAKE_S_MAX, or Postgres does not answer for so long.
    """
    connection = await _taken(settings, stage)
    watch = asyncio.create_task(_keep(connection, settings, stage))
    try:
        yield watch
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _keep(connection: asyncpg.Connection, settings: Settings, stage: str) -> None:
    """Look whether the session that holds the lock is still there, and take the lock again where it is not."""
    try:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await connection.execute("SELECT 1")
            except POSTGRES_ERRORS as error:
                _log.warning("instance lock lost", reason=type(error).__name__)
                connection.terminate()
                connection = await _taken(settings, stage)
    finally:
        connection.terminate()


async def _taken(settings: Settings, stage: str) -> asyncpg.Connection:
    name = f"tartan {stage} {settings.topic_prefix} {settings.instance_id}"
    until = asyncio.get_running_loop().time() + TAKE_S_MAX
    problem = f"another process runs {stage} with TARTAN_INSTANCE_ID {settings.instance_id}"
    while asyncio.get_running_loop().time() < until:
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
