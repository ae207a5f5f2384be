"""Database connections of one request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from runtime.postgres import pool as postgres

ACQUIRE_S_MAX = 5.0
"""Longest wait of a request for a connection; then the answer is 503, which is better than a queue that only grows."""


@asynccontextmanager
async def connected(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Take a connection of the pool. Never take a second one while holding it: a full pool would wait for itself."""
    async with pool.acquire(timeout=ACQUIRE_S_MAX) as connection:
        yield cast(asyncpg.Connection, connection)


@asynccontextmanager
async def snapshot(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Take a connection on which all reads see one moment of one version."""
    async with connected(pool) as connection, postgres.snapshot(connection):
        yield connection
