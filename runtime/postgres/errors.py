"""Classes of Postgres errors: away or late, too long, or caused by one record's data."""

import struct

import asyncpg
from asyncpg import exceptions

from schemas.errors import Quarantine, TartanError

TOO_LONG = (
    asyncpg.QueryCanceledError,
    exceptions.TransactionTimeoutError,
    exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.ConnectionDoesNotExistError,
)
"""Errors that a timeout of Postgres raises: half of the batch may pass; the connection may be closed with it.

transaction_timeout ends the connection, and asyncpg then reports a lost connection only. Where it was lost for another
reason, the half has the same chance as the whole.
"""

LATE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    exceptions.OperatorInterventionError,
    exceptions.TransactionRollbackError,
    exceptions.InsufficientResourcesError,
    exceptions.InvalidTransactionStateError,
    exceptions.LockNotAvailableError,
    exceptions.ObjectInUseError,
    exceptions.InvalidCachedStatementError,
    exceptions.OutdatedSchemaCacheError,
)
"""Errors caused by the state of the server or the network and by no record or request: the same work can succeed after
a wait, on a new connection.

Invalid transaction state includes a primary that became a standby (25006) and the server's timeouts. A migration beside
a running process makes its prepared statements and types stale; a new connection has none.
"""

AWAY = (*LATE, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""LATE, and the errors that asyncpg itself raises for a connection that ended, also between Postgres' last message and
the end of the connection.

asyncpg raises them for wrong use of a connection too, so the projector, which must not retry its own defects for ever,
catches LATE and checks the connection.
"""

POSTGRES_ERRORS = (asyncpg.PostgresError, *AWAY)
"""Every error of a statement or a connection, a wrong password or a missing table included: for connecting, and for
background work that goes on whatever Postgres answers."""

OF_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""SQLSTATE classes 22, 23 and 54: errors that one record's data causes. asyncpg raises the first one too for an
argument that it cannot encode."""

NOT_ENCODABLE = (Quarantine, ValueError, OverflowError, struct.error)
"""Errors of encoding a row: a text that is not UTF-8, a number that its column cannot store."""


def reason(error: BaseException) -> str:
    """Return why something failed, without its content: a library's message may quote the data."""
    if isinstance(error, TartanError):
        return str(error)
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f', SQLSTATE {state}' if state else ''}"
