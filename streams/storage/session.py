"""Connections for this stage, with Postgres's errors translated. Shell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from schemas.errors import Retry

_LATE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement between Postgres' last word to a session that it ended and its end
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.ObjectInUseError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
)
"""What Postgres says when it is away, restarting, or others hold a lock."""


@asynccontextmanager
async def session(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool. Raises: Retry, where Postgres is away or a lock was not given in time."""
    try:
        async with pool.acquire() as connection:
            yield cast("asyncpg.Connection", connection)
    except _LATE as error:
        raise Retry(f"Postgres: {type(error).__name__}") from error
