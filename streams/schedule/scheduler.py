"""Make Items due by time, and listen for Items that other processes made due. Shell."""

import asyncio
from collections.abc import Callable

import asyncpg

from runtime import logs
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.scheduler import enqueue, queue
from runtime.settings import Settings
from schemas.errors import Retry
from streams.storage.session import session

TICKS_AN_INTERVAL = 60
"""Ticks in one schedule interval: 15 s at 15 minutes, so the schedule is late by at most 2 %."""
TICK_S_MIN, TICK_S_MAX = 0.2, 30.0
ITEMS_A_TICK_MAX = 2_000
"""Items that one tick marks; 120,000 in 15 minutes, which is more than Plaid's limits let one client read."""
PURGE_EVERY = 20
"""Ticks between two purges."""
PING_EVERY_S = 5.0
"""Time within which a lost connection is noticed; until then the dispatcher's poll finds the due Items."""

_log = logs.logger(__name__)


async def run(pool: asyncpg.Pool, settings: Settings, *, on_marked: Callable[[], None]) -> None:
    """Make Items due that have not synced for the schedule's interval, and delete old rows, for ever."""
    tick_s = min(max(settings.schedule_interval_s / TICKS_AN_INTERVAL, TICK_S_MIN), TICK_S_MAX)
    ticks = 0
    while True:
        await asyncio.sleep(tick_s)
        ticks += 1
        try:
            async with session(pool) as connection:
                marked = await enqueue.mark_scheduled(
                    connection,
                    interval_s=settings.schedule_interval_s,
                    recheck_s=settings.accounts_interval_s,
                    spread_s=tick_s,  # the marks of one tick are spread up to the next one
                    items_max=ITEMS_A_TICK_MAX,
                )
                await queue.ticked(connection, marked)
            if marked:
                on_marked()
            if ticks % PURGE_EVERY == 0:
                async with session(pool) as connection:
                    await enqueue.purge(connection)
        except Retry as error:
            _log.warning("schedule waits", reason=str(error))


async def listen(settings: Settings, *, on_due: Callable[[], None]) -> None:
    """Listen for ever; notifications that are lost while Postgres is away are made up by the dispatcher's poll."""
    while True:
        try:
            connection = await asyncpg.connect(
                settings.postgres_dsn.get_secret_value(),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=CONNECT_TIMEOUT_S,
                server_settings=server_settings(settings, "streams-listen"),
            )
            try:
                await connection.add_listener(enqueue.CHANNEL, lambda *_: on_due())
                while True:
                    await asyncio.sleep(PING_EVERY_S)
                    await connection.execute("SELECT 1")
            finally:
                connection.terminate()
        except POSTGRES_ERRORS as error:
            _log.warning("not listening", reason=type(error).__name__)
            await asyncio.sleep(PING_EVERY_S)
