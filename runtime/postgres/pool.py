"""Postgres connections: pools, sessions, transactions and snapshots, every option written out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.settings import Settings
from schemas.errors import Halt, Retry

CONTROL_SCHEMA = "tartan"
r"""Schema of the primary and operational tables: see `\d+ tartan.*`; the migrations create and describe them."""

LIVE_SCHEMA = "projection"
"""Schema of the derived tables of the live version."""

READS_SCHEMA = "reads"
"""Schema of the views that readers use, so that a swap of versions is a swap of views."""

EPOCH = "epoch"
"""Name of the fact (table facts) that changes where browsers have to load everything again."""

VERSION_HELD = f"LOCK TABLE {READS_SCHEMA}.positions IN ACCESS SHARE MODE"
"""First statement of a transaction that reads one version: a swap waits for its end, or it for the swap's."""

CONNECT_TIMEOUT_S = 15.0
IDLE_LIFETIME_S = 300.0

NO_ROLE = (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError)
"""Errors of a role that is missing, or that the user must not act as."""


async def open_pool(
    settings: Settings, *, stage: str, size: int | None = None, role: str | None = None
) -> asyncpg.Pool:
    """Open a pool whose sessions end locks and statements by timeouts, so that a stopped process blocks nobody.

    Raises: Halt, where its user may not act as `role`.
    """
    try:
        return await asyncpg.create_pool(
            settings.postgres_dsn.get_secret_value(),
            min_size=1,
            max_size=size or settings.postgres_pool_size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=settings.statement_timeout_s + 5.0,
            max_inactive_connection_lifetime=IDLE_LIFETIME_S,
            reset=_skip_reset,
            server_settings=server_settings(settings, stage, role=role),
        )
    except NO_ROLE as error:
        if role is None:
            raise
        raise Halt(no_role(role, error)) from error


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Borrow a connection; the pool's proxy behaves like one but has another type."""
    async with pool.acquire() as connection:
        yield cast(asyncpg.Connection, connection)


@asynccontextmanager
async def transaction(connection: asyncpg.Connection, first: str) -> AsyncIterator[str]:
    """Run a transaction that begins with these statements, in one round trip; yield the answer to the last of them.

    Any error rolls it back. Where the server does not confirm its end, the connection is closed and the server rolls
    back, so no connection returns to the pool with an open transaction.
    Raises: Retry, where it was rolled back at its COMMIT.
    """
    try:
        yield await connection.execute(f"BEGIN; {first}")
    except BaseException:
        await _roll_back(connection)
        raise
    try:
        answer = await connection.execute("COMMIT")
    except asyncpg.PostgresError:
        raise  # the server answered, and rolled back
    except BaseException:
        connection.terminate()  # committed or not is unknown
        raise
    # A transaction that failed before answers ROLLBACK, without an error.
    if answer != "COMMIT":
        raise Retry("Postgres rolled a transaction back")


@asynccontextmanager
async def snapshot(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Run a read-only transaction that sees one moment of one version; join a transaction that is open already.

    The lock comes before the snapshot, which Postgres takes with the first query: a snapshot from before a swap would
    show the new version as of then, which may be behind earlier reads.
    """
    if connection.is_in_transaction():
        yield
        return
    async with transaction(connection, f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {VERSION_HELD}"):
        yield


async def _roll_back(connection: asyncpg.Connection) -> None:
    if connection.is_closed():
        return
    try:
        await connection.execute("ROLLBACK")
    except POSTGRES_ERRORS:
        connection.terminate()
    except BaseException:
        connection.terminate()  # stopped once more
        raise


async def _skip_reset(_: asyncpg.Connection) -> None:
    """Skip asyncpg's own reset, a round trip at each release, about three a webhook.

    Settings are changed with SET LOCAL only, and listeners and owners of advisory locks keep their connections.
    """


def no_role(role: str, error: Exception) -> str:
    """Return the remedy of an error of NO_ROLE, in a sentence."""
    return f"cannot act as the role {role} ({error}): run `tartan migrate`, which makes it or says who has to"


def server_settings(
    settings: Settings, stage: str, *, role: str | None = None, search_path: str = f"{LIVE_SCHEMA}, {CONTROL_SCHEMA}"
) -> dict[str, str]:
    """Return the session settings of a stage's connections, which act as `role` where one is given."""
    return {
        **({} if role is None else {"role": role}),
        "application_name": f"tartan-{stage}-{settings.instance_id}"[:63],
        "timezone": "UTC",
        "search_path": search_path,
        "lock_timeout": f"{int(settings.lock_timeout_s * 1000)}",
        "statement_timeout": f"{int(settings.statement_timeout_s * 1000)}",
        "transaction_timeout": f"{int(settings.transaction_timeout_s * 1000)}",
        "idle_in_transaction_session_timeout": f"{int(settings.transaction_timeout_s * 1000)}",
        "jit": "off",
    }
