"""Listen in Postgres for Items that other processes made due. Shell."""

import asyncio
from collections.abc import Callable

import asyncpg

from runtime import logs
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.scheduler.enqueue import CHANNEL
from runtime.settings import Settings

PING_EVERY_S = 5.0
"""Time within which a lost connection is noticed; until then the dispatcher's poll finds the due Items."""

_log = logs.logger(__name__)


async def listen(settings: Settings, *, on_due: Callable[[], None]) -> None:
    """Listen for ever; notifications that are lost while Postgres is away are made up by the dispatcher's poll."""
    while True:
        try:
            await _listen(settings, on_due)
        except POSTGRES_ERRORS as error:
            _log.warning("not listening", reason=type(error).__name__)
            await asyncio.sleep(PING_EVERY_S)


async def _listen(settings: Settings, on_due: Callable[[], None]) -> None:
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(),
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=CONNECT_TIMEOUT_S,
        server_settings=server_settings(settings, "streams-listen"),
    )
    try:
        await connection.add_listener(CHANNEL, lambda *_: on_due())
        while True:
            await asyncio.sleep(PING_EVERY_S)
            await connection.execute("SELECT 1")
    finally:
        connection.terminate()
