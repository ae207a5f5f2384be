"""The schedule: Items that have not synced for a while become due, and old rows go. Shell."""

import asyncio
from collections.abc import Callable

import asyncpg

from runtime import logs
from runtime.scheduler import enqueue, queue
from runtime.settings import Settings
from schemas.errors import Retry
from streams.storage.session import session

TICKS_AN_INTERVAL = 60
"""Ticks in one schedule interval: 15 s at 15 minutes, so the schedule is late by at most 2 %."""
TICK_S_MIN, TICK_S_MAX = 0.2, 30.0
ITEMS_A_TICK_MAX = 2_000
"""Items that one tick marks; 120,000 in 15 minutes, which is more than Plaid's limits let one client ask for."""
PURGE_EVERY = 20

_log = logs.logger(__name__)


async def tick(pool: asyncpg.Pool, settings: Settings) -> int:
    """Make due what has not synced for the schedule's interval. Gives how many. Raises: Retry."""
    async with session(pool) as connection:
        marked = await enqueue.mark_scheduled(
            connection,
            interval_s=settings.schedule_interval_s,
            recheck_s=settings.accounts_interval_s,
            spread_s=tick_s(settings),
            items_max=ITEMS_A_TICK_MAX,
        )
        await queue.ticked(connection, marked)
        return marked


def tick_s(settings: Settings) -> float:
    """Seconds between two ticks. What one marks is spread up to the next."""
    return min(max(settings.schedule_interval_s / TICKS_AN_INTERVAL, TICK_S_MIN), TICK_S_MAX)


async def run(pool: asyncpg.Pool, settings: Settings, *, on_marked: Callable[[], None]) -> None:
    """Tick for ever."""
    ticks = 0
    while True:
        await asyncio.sleep(tick_s(settings))
        ticks += 1
        try:
            if await tick(pool, settings):
                on_marked()
            if ticks % PURGE_EVERY == 0:
                async with session(pool) as connection:
                    await enqueue.purge(connection)
        except Retry as error:
            _log.warning("schedule waits", reason=str(error))
