"""Sees that the epoch changes: after a swap to a version that says something else, browsers have to look anew."""

import asyncio
import contextlib

import asyncpg

from gateway.http.database import connected
from gateway.live.hub import RESTART, Ending, Hub
from projections.read import queries
from runtime.postgres.errors import AWAY

LOOK_S = 2.0
"""How long a browser may go on with what another version of the tables had shown it."""


class Epoch:
    """Ends all streams when the epoch is another one than before."""

    def __init__(self, pool: asyncpg.Pool, hub: Hub) -> None:
        self._pool = pool
        self._hub = hub
        self._known: str | None = None

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            with contextlib.suppress(*AWAY):  # /readyz says that Postgres is away; the epoch stays what it is
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once. Raises: one of AWAY."""
        async with connected(self._pool) as connection:
            now = await queries.epoch(connection)
        if self._known not in (None, now):
            self._hub.end_all(Ending(RESTART, "the stream begins anew: connect again"))
        self._known = now
