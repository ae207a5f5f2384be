"""Connections for this stage, with Postgres's errors translated. Shell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from runtime.postgres.errors import AWAY
from schemas.errors import Retry


@asynccontextmanager
async def session(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Acquire a connection of the pool. Raises: Retry, where Postgres is away or a lock was not given in time."""
    try:
        async with pool.acquire() as connection:
            yield cast("asyncpg.Connection", connection)
    except AWAY as error:
        raise Retry(f"Postgres: {type(error).__name__}") from error
