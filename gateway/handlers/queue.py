"""The queue's status for tenants, and the schedule for an outside cron."""

import asyncio
from typing import Any

import asyncpg
import msgspec

from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.requests import Call, ok
from runtime.scheduler import enqueue, queue
from runtime.scheduler.queue_status import QueueStatus
from runtime.settings import Settings

ITEMS_A_MARK_MAX = 2_000
"""Items that one statement marks: 20 ms in which their rows are locked."""
MARKS_MAX = 50
"""Statements of one call: 100,000 Items; a cron that comes so rarely is answered within seconds and comes again."""
SPREAD_S_MAX = 30.0
"""What one call marks is spread over a part of the interval, so that Plaid is not asked for all of it at once."""
SPREAD_SHARE = 1 / 60


class Operating:
    """Handlers about the queue as a whole."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._reading: dict[str, asyncio.Task[QueueStatus]] = {}

    async def queue_status(self, call: Call) -> Answer:
        """How a tenant's Items stand. Those who ask at once share one reading: it looks at each Item of theirs."""
        task = self._reading.get(call.tenant)
        if task is None:
            task = self._reading[call.tenant] = asyncio.create_task(self._read(call.tenant))
            task.add_done_callback(lambda _: self._reading.pop(call.tenant))
        # Shielded: one who hangs up must not cancel what others wait for.
        return ok(_document(await asyncio.shield(task)))

    async def tick_schedule(self, _: Call) -> Answer:
        """Make due what has not synced for the schedule's interval."""
        marked = 0
        async with connected(self._pool) as connection:
            for _round in range(MARKS_MAX):
                found = await self._mark(connection)
                marked += found
                if found < ITEMS_A_MARK_MAX:
                    break
            if marked:
                await connection.execute(f"NOTIFY {enqueue.CHANNEL}")
            await queue.ticked(connection, marked)
            health = await queue.health(connection, self._settings)
        return ok({"marked": marked, "health": health})

    async def schedule_health(self, _: Call) -> Answer:
        """Whether the schedule ticks and Items are asked about in time."""
        async with snapshot(self._pool) as connection:
            return ok(_document(await queue.health(connection, self._settings)))

    async def _mark(self, connection: asyncpg.Connection) -> int:
        settings = self._settings
        return await enqueue.mark_scheduled(
            connection,
            interval_s=settings.schedule_interval_s,
            recheck_s=settings.accounts_interval_s,
            spread_s=min(settings.schedule_interval_s * SPREAD_SHARE, SPREAD_S_MAX),
            items_max=ITEMS_A_MARK_MAX,
        )

    async def _read(self, tenant: str) -> QueueStatus:
        async with snapshot(self._pool) as connection:
            return await queue.status(connection, self._settings, tenant=tenant)


def _document(value: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(value)
