"""Epoch watch: end all streams after a swap to a version of the tables with other content."""

import asyncpg

from gateway.http.database import connected
from gateway.live.hub import RESTARTED, Hub
from projections.read import queries

POLL_S = 2.0
"""Longest time for which a browser may continue with rows of a version that was replaced."""


class EpochWatch:
    """Ends all streams when the epoch of the tables changes."""

    def __init__(self, pool: asyncpg.Pool, hub: Hub) -> None:
        self._pool = pool
        self._hub = hub
        self._epoch: str | None = None

    async def check(self) -> None:
        """Compare the epoch with the one before; where Postgres does not answer it stays."""
        async with connected(self._pool) as connection:
            epoch = await queries.epoch(connection)
        if self._epoch not in (None, epoch):
            self._hub.end_all(RESTARTED)
        self._epoch = epoch
