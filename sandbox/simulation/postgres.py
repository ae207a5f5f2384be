"""The scheduler's real Postgres at a time that is given: for contracts between memory and the real parts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import cast

import asyncpg

from runtime.clock import set_clock


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
