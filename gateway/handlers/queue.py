"""Queue: return the queue's status of a tenant, and run the schedule for an external cron."""

import asyncio

import asyncpg
import msgspec

from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.requests import Call, ok
from runtime.scheduler import enqueue, queue
from runtime.scheduler.queue_status import QueueStatus
from runtime.settings import Settings

ITEMS_A_MARK_MAX = 2_000
"""Items that one statement marks due: 20 ms in which their rows are locked."""
MARKS_MAX = 50
"""Statements of one call: 100,000 Items; a cron that calls so rarely is answered within seconds and calls again."""
SPREAD_S_MAX = 30.0
"""Items marked by one call are spread over a part of the interval, so that Plaid does not get all requests at once."""
SPREAD_SHARE = 1 / 60


class Queue:
    """Handlers of the queue and the schedule."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._reads: dict[str, asyncio.Task[QueueStatus]] = {}

    async def queue_status(self, call: Call) -> Answer:
        """Return the status of a tenant's Items. Simultaneous requests share one read, which scans all its Items."""
        task = self._reads.get(call.tenant)
        if task is None:
            task = self._reads[call.tenant] = asyncio.create_task(self._read(call.tenant))
            task.add_done_callback(lambda _: self._reads.pop(call.tenant))
        # Shielded: a client that hangs up must not cancel the read that others wait for.
        return ok(msgspec.structs.asdict(await asyncio.shield(task)))

    async def tick_schedule(self, _: Call) -> Answer:
        """Mark due every Item that was not synced for the schedule's interval."""
        marked = 0
        async with connected(self._pool) as connection:
            for _round in range(MARKS_MAX):
                count = await self._mark(connection)
                marked += count
                if count < ITEMS_A_MARK_MAX:
                    break
            if marked:
                await connection.execute(f"NOTIFY {enqueue.CHANNEL}")
            await queue.ticked(connection, marked)
            health = await queue.health(connection, self._settings)
        return ok({"marked": marked, "health": health})

    async def schedule_health(self, _: Call) -> Answer:
        """Return whether the schedule ticks and Items are synced in time."""
        async with snapshot(self._pool) as connection:
            return ok(msgspec.structs.asdict(await queue.health(connection, self._settings)))

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
