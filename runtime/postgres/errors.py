"""What an error of a batch means: the world is away, the batch takes too long, or its data is refused."""

import struct

import asyncpg
from asyncpg.exceptions import OutdatedSchemaCacheError

from schemas.errors import Quarantine, TartanError

TOO_LONG = (
    asyncpg.QueryCanceledError,
    asyncpg.exceptions.TransactionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ConnectionDoesNotExistError,
)
"""What a timeout of Postgres raises. Half of the batch may pass; the connection may be closed with it.

transaction_timeout ends the connection, and asyncpg then tells of a lost connection alone. Where it was lost for
another reason, the half has the same chance as the whole.
"""

AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.InvalidCachedStatementError,
    OutdatedSchemaCacheError,
    OSError,
    TimeoutError,
    *TOO_LONG,
)
"""What the world's state causes and no record does: the same work can succeed after a wait, on a new connection.

A migration beside a running process makes its prepared statements and types stale; a new connection has none.
"""

OF_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""SQLSTATE classes 22, 23 and 54: what one record's data causes. asyncpg raises the first one too for an argument
that it cannot encode."""

NOT_ENCODABLE = (Quarantine, ValueError, OverflowError, struct.error)
"""What encoding a row raises: a text that is no UTF-8, a number that its column does not hold."""


def reason(error: BaseException) -> str:
    """Why something was refused, without its content: a library's message may quote the data."""
    if isinstance(error, TartanError):
        return str(error)
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f', SQLSTATE {state}' if state else ''}"
